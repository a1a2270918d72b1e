"""The page of a report, in a browser: what a reader does to it, and what it shows then."""

import itertools
import math
import re
from pathlib import Path

import pytest
from browser import Tab, browser

from scoresde.comparison import Comparison, Record
from scoresde.comparison.report.page import page
from scoresde.comparison.report.series import better, coloured, front, labels, lines, styles
from scoresde.plots import PALETTE

EVIL = "</script><script>window.broken=1</script><img src=x onerror='window.broken=1'>&amp;\"',=#%"
SOLVERS = [EVIL, *(f"s{i}" for i in range(1, 15))]
BUDGETS = (5, 8, 10, 20, 50)
ABOUT = {
    "seed": 7,
    "command": f"scoresde compare --solvers {EVIL}",
    "metrics": {"rms": {"unit": ""}, "mmd": {"unit": "squared", "better": "zero"}, EVIL: {"better": "higher", "doc": EVIL}},
}


def comparison() -> Comparison:
    records = []
    for metric in ABOUT["metrics"]:
        for problem in ("ring", "grid"):
            for i, solver in enumerate(SOLVERS):
                for n in BUDGETS:
                    value = (1 + i) * 3.0 ** (1 + i % 4) * n ** -float(1 + i % 4) * (-1 if metric == "mmd" and i % 2 else 1)
                    bad = i == 14 and n == 5
                    numbers = [math.nan] * 3 if bad else [value, value - 0.3 * abs(value), value + 0.2 * abs(value)]
                    package = "diffusers" if i % 5 == 4 else "scoresde"
                    path = "karras" if i == 2 else "lam"
                    why = f"takes {EVIL}" if bad else ""
                    records.append(Record(problem, solver, path, n, n - 1, n, metric, *numbers, package, why))
    return Comparison(tuple(records), ABOUT)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page(comparison(), f"Title {EVIL}"), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def silent(tab):
    """After every test: nothing was asked of a network, the console is empty, no name has run as a script."""
    yield
    assert len(tab.requests) <= 1 and all(url.startswith("file://") for url in tab.requests)
    assert tab.complaints == []
    assert tab.js("window.broken") is None


def switch(tab: Tab, group: str, name: str) -> None:
    tab.js(f"[...document.querySelectorAll('input[name={group}]')].find(b => b.value === {name!r}).click()")


def drawn(tab: Tab, panel: int = 0, bright: bool = False) -> set[str]:
    """The names of the lines in a panel."""
    css = "g.bright" if bright else "g.line"
    return set(
        tab.js(f"[...document.querySelectorAll('figure')[{panel}].querySelectorAll('{css}')].map(g => g.dataset.line)")
    )


def captions(tab: Tab) -> list[str]:
    return tab.js("[...document.querySelectorAll('figcaption')].map(c => c.textContent)")


def column(tab: Tab, name: str) -> list[str]:
    k = tab.js(f"[...document.querySelectorAll('thead th')].findIndex(th => th.textContent === '{name}')")
    return tab.js(f"[...document.querySelectorAll('tbody tr')].map(tr => tr.cells[{k}].textContent)")


def test_the_file_names_no_address_and_forbids_itself_to_load_any(file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"(https?|wss?|ftp):|//[a-z]+\.[a-z]", text)
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2 and "<img" not in text


def test_it_opens_on_the_first_metric_with_the_lines_and_looks_of_the_figures(tab, file):
    tab.open(file)
    assert tab.requests == [file.as_uri()]  # the page itself, so that requests are seen
    given, style = comparison(), styles(comparison())
    assert captions(tab) == ["ring: rms", "grid: rms"]
    assert tab.js("document.title") == f"Title {EVIL}" == tab.js("document.querySelector('h1').textContent")
    names = labels(given)
    for i, problem in enumerate(("ring", "grid")):
        panel = lines(given, problem, "rms")
        assert drawn(tab, i) == {names[line.key] for line in panel}
        chosen = coloured(panel, style, better(given, "rms"))
        assert drawn(tab, i, bright=True) == {names[line.key] for line in chosen} and 0 < len(chosen) < len(panel)
        for line in chosen:
            stroke = tab.js(
                f"getComputedStyle([...document.querySelectorAll('figure')[{i}].querySelectorAll('g.line')]"
                f".find(g => g.dataset.line === {names[line.key]!r}).firstChild).stroke"
            )
            rgb = tuple(map(int, re.findall(r"\d+", stroke)))
            assert "#{:02X}{:02X}{:02X}".format(*rgb) == PALETTE[style[line.key].pick(PALETTE)].upper()
    assert f"scoresde compare --solvers {EVIL}" in tab.js("document.getElementById('about').textContent")


@pytest.mark.parametrize("solver", ["s3", EVIL])
def test_switching_a_solver_off_removes_its_line_and_its_numbers_and_on_brings_them_back(tab, file, solver):
    tab.open(file)
    before = drawn(tab)
    tab.js("document.getElementById('more').click()")
    assert solver in before and solver in column(tab, "solver")
    switch(tab, "solvers", solver)
    assert drawn(tab) == drawn(tab, 1) == before - {solver}
    assert solver not in column(tab, "solver")
    switch(tab, "solvers", solver)
    assert drawn(tab) == before


def test_with_few_solvers_left_all_are_in_colour(tab, file):
    tab.open(file)
    tab.js("document.querySelector('button[aria-label=\"no solvers\"]').click()")
    assert captions(tab) == [] and "Nothing to draw" in tab.js("document.querySelector('main').textContent")
    for solver in SOLVERS[:8]:
        switch(tab, "solvers", solver)
    assert drawn(tab, bright=True) == drawn(tab) == set(SOLVERS[:8])
    legend = tab.js("[...document.querySelectorAll('#legend li')].map(li => li.textContent)")
    assert set(legend) == set(SOLVERS[:8])


def test_switching_problems_paths_and_metrics_changes_the_panels_and_the_axis(tab, file):
    tab.open(file)
    switch(tab, "problems", "ring")
    switch(tab, "paths", "karras")
    assert captions(tab) == ["grid: rms"] and "s2" not in drawn(tab)
    title = "document.querySelector('.ylabel').textContent"
    assert tab.js(title) == "rms"
    switch(tab, "metrics", "rms")
    switch(tab, "metrics", "mmd")
    assert tab.js(title) == "|mmd| (squared)" and captions(tab) == ["grid: mmd"]
    assert set(column(tab, "metric")) == {"mmd"} and set(column(tab, "problem")) == {"grid"}


@pytest.mark.parametrize("metric", ["rms", "mmd", EVIL])
def test_pointing_at_a_marker_says_the_number_that_is_in_the_records(tab, file, metric):
    tab.open(file)
    if metric != "rms":
        switch(tab, "metrics", "rms")
        switch(tab, "metrics", metric)
    given = comparison()
    (winner, _), *_ = front(lines(given, "ring", metric), better(given, metric)).most_common()
    records = [r for r in given.select(solver=winner[0], problem="ring", metric=metric) if math.isfinite(r.value)]
    for k, r in enumerate(records):
        place = tab.js(
            "(() => { const bright = [...document.querySelector('figure').querySelectorAll('g.bright')]; "
            f"const g = bright.find(g => g.dataset.line === {winner[0]!r}); "
            f"const b = [...g.querySelectorAll('path[transform]')][{k}].getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        tab.point(*place)
        said = tab.js("document.getElementById('read').textContent")
        assert said.startswith(f"{winner[0]} on ring, {r.evaluations} evaluations in {r.steps} steps: {metric} ")
        numbers = [float(v) for v in re.findall(r"-?[\d.]+(?:e-?\d+)?", said.rpartition(f"{metric} ")[2])]
        assert numbers == pytest.approx([r.value, r.low, r.high], rel=1e-3)
    tab.point(2, 2)
    assert tab.js("document.querySelector('figure circle').getAttribute('visibility')") == "hidden"


def test_intervals_stand_side_by_side_each_within_its_marker(tab, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page(comparison(), highlight=["s1", "s2", "s3"]), encoding="utf-8")
    tab.open(path)
    found = tab.js(
        "[...document.querySelector('figure').querySelectorAll('g.bright')].map(g => "
        "[...g.querySelectorAll('path:not([transform])')].slice(1).map(bar => ["
        "parseFloat(bar.nextElementSibling.getAttribute('transform').slice(10)), "
        "parseFloat(bar.getAttribute('d').slice(1))]))"
    )
    shifts = [{round(bar - marker, 6) for marker, bar in line} for line in found]
    assert len(shifts) >= 3 and all(len(shift) == 1 for shift in shifts)
    flat = sorted(min(shift) for shift in shifts)
    assert all(b - a > 0.5 for a, b in itertools.pairwise(flat)) and -3.5 <= flat[0] < flat[-1] <= 3.5


def test_the_keyboard_reaches_the_charts_and_walks_along_the_lines(tab, file):
    tab.open(file, "#solvers=s1,s3&problems=ring")
    for _ in range(40):
        tab.key("Tab")
        if tab.js("document.activeElement.tagName") == "svg":
            break
    else:
        pytest.fail("no chart is reached by Tab")
    read = "document.getElementById('read')"
    assert tab.js(f"{read}.getAttribute('aria-live')") == "polite"

    def said() -> tuple[str, int]:
        found = re.match(r"(\w+) on ring, (\d+) evaluations", tab.js(f"{read}.textContent"))
        return found[1], int(found[2])

    name, n = said()
    assert n == BUDGETS[-1]
    for budget in reversed(BUDGETS[:-1]):
        tab.key("ArrowLeft")
        assert said() == (name, budget)
    tab.key("ArrowRight")
    assert said() == (name, BUDGETS[1])
    records = comparison().select(solver=["s1", "s3"], problem="ring", metric="rms", budget=BUDGETS[1])
    ranked = [r.solver for r in sorted(records, key=lambda r: r.value)]
    for press, wanted in [("ArrowDown", ranked[0])] * 2 + [("ArrowUp", ranked[1])] * 2 + [("ArrowDown", ranked[0])]:
        tab.key(press)
        assert said() == (wanted, BUDGETS[1])


def test_the_table_sorts_by_a_column_either_way_with_what_has_no_number_last(tab, file):
    tab.open(file, f"#solvers={','.join(f's{i}' for i in range(1, 15))}")
    tab.js("document.getElementById('more').click()")
    assert tab.js("document.querySelector('th[aria-sort]').textContent") == "value"
    for direction in ("ascending", "descending"):
        if direction == "descending":
            tab.js("document.querySelector('th[aria-sort] button').click()")
        assert tab.js("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == direction
        found = column(tab, "value")
        assert found[-2:] == ["\u2013"] * 2 and "\u2013" not in found[:-2]
        values = [float(v) for v in found[:-2]]
        assert values == sorted(values, reverse=direction == "descending") and len(values) == 2 * 14 * len(BUDGETS) - 2
    assert column(tab, "error")[-1] == f"takes {EVIL}"


def test_what_is_shown_is_in_the_address_and_comes_back_from_it(tab, file):
    tab.open(file)
    switch(tab, "solvers", EVIL)
    switch(tab, "problems", "grid")
    tab.js("[...document.querySelectorAll('thead button')].find(b => b.textContent === 'steps').click()")
    before = [drawn(tab), captions(tab), column(tab, "steps"), column(tab, "solver")]
    state = tab.js("location.hash")
    tab.open(file, state)
    assert [drawn(tab), captions(tab), column(tab, "steps"), column(tab, "solver")] == before
    tab.open(file, "#metrics=no-such&problems=ring&sort=none")  # from another comparison
    assert captions(tab) == [] and "Nothing to draw" in tab.js("document.querySelector('main').textContent")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_fits_the_screen_and_follows_its_colour_scheme(tab, file, width, dark, tmp_path):
    tab.open(file, "#solvers=s1,s2,s3", width=width, dark=dark)
    assert tab.js("document.documentElement.scrollWidth") <= width
    luminance = "((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, v) => a + +v, 0) / 765)"
    paper = tab.js(f"{luminance}(getComputedStyle(document.body).backgroundColor)")
    ink = tab.js(f"{luminance}(getComputedStyle(document.querySelector('h1')).color)")
    assert (paper < 0.2 and ink > 0.8) if dark else (paper > 0.8 and ink < 0.2)
    boxes = tab.js(
        "[...document.querySelectorAll('figure')]"
        ".map(f => [...f.querySelectorAll('text.axis:not(.ylabel), text.name')].map(t => {"
        " const b = t.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; }))"
    )
    for panel in boxes:
        assert panel and all(left >= 0 and right <= width for left, right, _, _ in panel)
        for i, a in enumerate(panel):
            assert not [b for b in panel[:i] if a[0] < b[1] and b[0] < a[1] and a[2] + 3 < b[3] and b[2] + 3 < a[3]]
    tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_twins_are_one_line_that_the_second_takes_over_when_the_first_is_off(tab, tmp_path):
    values = {"a": 1.0, "b": 1.0, "c": 2.0}
    records = [Record("ring", s, "lam", n, n, n, "rms", v / n, v / n, v / n) for s, v in values.items() for n in BUDGETS]
    about = {
        "seed": 3,
        "n": 64,
        "versions": {"scoresde": "9.9"},
        "problems": {"ring": {"n": 64, "sdes": {"VP": "VP(beta=1)"}}},
    }
    path = tmp_path / "twins.html"
    path.write_text(page(Comparison(tuple(records), about)), encoding="utf-8")
    tab.open(path)
    assert drawn(tab) == {"a", "c"}
    assert tab.js("[...document.querySelectorAll('#legend li')].map(li => li.textContent)") == ["a = b", "c"]
    assert tab.js("document.getElementById('settings').textContent") == "VP(beta=1); 64 samples; seed 3; scoresde 9.9"
    assert column(tab, "solver").count("b") == len(BUDGETS)  # the table has all numbers
    switch(tab, "solvers", "a")
    assert drawn(tab) == {"b", "c"}


def test_a_large_comparison_shows_a_bounded_part_of_itself(tab, tmp_path):
    problems, solvers = [f"p{i}" for i in range(40)], [f"s{i}" for i in range(25)]
    records = [Record(p, s, "lam", n, n, n, "rms", (1 + j) / n, 0.9 * (1 + j) / n, 1.1 * (1 + j) / n)
               for p in problems for j, s in enumerate(solvers) for n in BUDGETS]  # fmt: skip
    path = tmp_path / "large.html"
    path.write_text(page(Comparison(tuple(records))), encoding="utf-8")
    tab.open(path)
    assert len(captions(tab)) == 4 and len(column(tab, "value")) == 200
    tab.js("document.querySelector('button[aria-label=\"all problems\"]').click()")
    assert len(captions(tab)) == 24 and "16 more panels are not drawn" in tab.js(
        "document.querySelector('main').textContent"
    )
    assert tab.js("document.querySelector('caption').textContent") == f"200 of {len(records)} numbers that are switched on"
