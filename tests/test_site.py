"""The built documentation in a browser: nothing is missing, nothing is asked of a network, everything fits and can be read.

It needs a site: ``sphinx-build -D nb_execution_mode=off docs docs/_build/html``, which runs no page and takes a minute or
two, then ``pytest tests/test_site.py --site docs/_build/html``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browser

UNBUILT = "needs a built site: pytest tests/test_site.py --site docs/_build/html"
HIDDEN = ("_modules", "_static", "_sources", "downloads")  # folders without pages of the book

# What is rendered by MathJax is waited for. Each finding is a list that should be empty.
READY = "window.MathJax && MathJax.startup ? MathJax.startup.promise.then(() => 1) : 1"
MISSING = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.getAttribute('src'))"
WITHOUT_TEXT = "[...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i => i.getAttribute('src'))"
UNRENDERED = (
    "[...document.querySelectorAll('.math')].filter(m => m.closest('pre') === null && !m.querySelector('mjx-container'))"
    ".map(m => m.textContent.trim().slice(0, 60))"
)
WRONG = "[...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(m => m.textContent.slice(0, 60))"
LINKS = (
    "[...document.querySelectorAll('article a[href^=\"#\"]')].map(a => decodeURIComponent(a.hash.slice(1)))"
    ".filter(id => id && !document.getElementById(id))"
)
WIDE = (
    "((width) => document.documentElement.scrollWidth <= width ? [] : [...document.querySelectorAll('article *')]"
    ".filter(e => e.getBoundingClientRect().right > width + 1).slice(0, 3)"
    ".map(e => e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40)).concat("
    "document.documentElement.scrollWidth))"
)
# Relative luminance and contrast as in the Web Content Accessibility Guidelines 2.1.
CONTRAST = (
    "(() => { const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;"
    " const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number); return 0.2126 * part(r) + 0.7152 * part(g)"
    " + 0.0722 * part(b); };"
    " const paper = light(getComputedStyle(document.body).backgroundColor);"
    " const ink = light(getComputedStyle(document.querySelector('article, [role=main]') || document.body).color);"
    " return [paper, (Math.max(paper, ink) + 0.05) / (Math.min(paper, ink) + 0.05)]; })()"
)


FINDINGS = {
    "images that are missing": MISSING,
    "images without an alternative text": WITHOUT_TEXT,
    "equations that are not rendered": UNRENDERED,
    "equations with an error": WRONG,
    "links to nowhere": LINKS,
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "page" in metafunc.fixturenames:
        site = metafunc.config.getoption("site")
        found = [] if site is None else sorted(Path(site).rglob("*.html"))
        pages = [p for p in found if p.relative_to(site).parts[0] not in HIDDEN]
        if site is not None and not pages:
            raise pytest.UsageError(
                f"got --site {site}, which holds no pages; expected a folder that sphinx-build has written"
            )
        given = [pytest.param(p, id=str(p.relative_to(site))) for p in pages] or [
            pytest.param(None, marks=pytest.mark.skip(reason=UNBUILT))
        ]
        metafunc.parametrize("page", given)


@pytest.fixture(scope="module")
def site(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("site")
    if folder is None:
        pytest.skip(UNBUILT)
    return Path(folder)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def at(tab: Tab, width: int, dark: bool) -> None:
    """Change the screen of a page that is loaded, and wait until it is laid out again."""
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    tab.call("Emulation.setEmulatedMedia", features=[scheme])
    tab.js("new Promise(r => setTimeout(() => requestAnimationFrame(() => r()), 50))")


def test_a_page_is_whole_and_fits_every_screen(tab: Tab, page: Path) -> None:
    tab.open(page, width=1400)
    tab.js(READY)
    found = {name: tab.js(code) for name, code in FINDINGS.items()}
    for width, dark in ((1400, False), (390, False), (390, True)):
        at(tab, width, dark)
        found[f"wider than {width} pixels"] = tab.js(f"{WIDE}({width})")
        paper, contrast = tab.js(CONTRAST)
        readable = (paper < 0.2) == dark and contrast >= 4.5
        found[f"unreadable, dark={dark}"] = [] if readable else [paper, contrast]
    found["console"] = tab.complaints
    found["requests to elsewhere"] = [url for url in tab.requests if not url.startswith(("file://", "data:", "blob:"))]
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize("word", ["likelihood", "dpmpp"])
def test_the_search_finds_a_word_without_a_network(tab: Tab, site: Path, word: str) -> None:
    tab.open(site / "search.html", f"?q={word}")
    found = tab.js(
        "new Promise(r => { let left = 100; const look = () => {"
        " const n = document.querySelectorAll('#search-results li a').length;"
        " n || !left-- ? r(n) : setTimeout(look, 100); }; look(); })"
    )
    # For the lines that it shows of a page the search reads that page, which browsers refuse to files and allow to servers.
    refused = ("origin 'null'", "net::ERR_FAILED", "Failed to fetch")
    assert [what for what in tab.complaints if not any(why in what for why in refused)] == []
    assert found > 0 and all(url.startswith(("file://", "data:")) for url in tab.requests)


# The folders of versions ----------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[1] / ".ci" / "site"


@pytest.mark.skipif(not SCRIPT.is_file(), reason="an archive of the sources has no .ci")
def test_each_version_has_a_folder_and_latest_is_the_newest(tmp_path: Path) -> None:
    site, pages = tmp_path / "site", tmp_path / "html"
    for version in ("0.9.0", "0.10.0", "0.9.1", "0.10.0"):  # a correction of an older version, and one built again
        pages.mkdir(exist_ok=True)
        (pages / "index.html").write_text(version)
        (pages / f"only-{version}.html").write_text("")
        subprocess.run([SCRIPT, f"v{version}", pages, site], check=True)
        shutil.rmtree(pages)
    names = {path.name for path in site.iterdir()}
    assert names == {"0.9.0", "0.9.1", "0.10.0", "latest", "index.html", "versions.html", ".nojekyll"}
    for name in ("0.9.0", "0.9.1", "0.10.0", "latest"):
        wanted = "0.10.0" if name == "latest" else name
        assert {path.name for path in (site / name).iterdir()} == {"index.html", f"only-{wanted}.html"}
        assert (site / name / "index.html").read_text() == wanted
    listed = re.findall(r'href="(.+?)/"', (site / "versions.html").read_text())
    assert listed == ["latest", "0.10.0", "0.9.1", "0.9.0"] and "latest/" in (site / "index.html").read_text()
    wrong = subprocess.run([SCRIPT, "v1", tmp_path, site], capture_output=True, text=True)
    assert wrong.returncode == 1 and "expected a tag" in wrong.stderr and not (site / "1").exists()
