"""The code of README and of the pages: it compiles, the names in it exist, and its calls fit the signatures.

The cells of pages run when the site is built, the sessions (``pycon``) of the others in the tests that name them, and the
plain blocks in ``test_pages_run``.
"""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\{code-cell\} python|python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
THEIRS = {"coming_from.md"}  # its blocks of Python show other packages


def blocks(page: Path) -> list[tuple[str, str]]:
    """The code of a page with its kind; a session without its outputs."""
    found = []
    for kind, code in FENCE.findall(page.read_text()):
        if kind == "pycon":
            code = "\n".join(line[4:] for line in code.splitlines() if line.startswith((">>>", "...")))
        code = re.sub(r"\A---\n.*?^---\n", "", code, flags=re.MULTILINE | re.DOTALL)  # the settings of a cell
        code = "\n".join(line for line in code.splitlines() if not line.startswith((":tags:", "%")))
        found.append((kind.split("}")[-1].strip(), code))
    return found


def names_of(trees: list[ast.AST]) -> dict[str, Any]:
    """What the imports of scoresde on a page bind; every one must succeed."""
    bound: dict[str, Any] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "scoresde":
                    module = importlib.import_module(alias.name)
                    bound[alias.asname or "scoresde"] = module if alias.asname else importlib.import_module("scoresde")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "scoresde":
            module = importlib.import_module(node.module)
            for alias in node.names:
                try:
                    bound[alias.asname or alias.name] = getattr(module, alias.name)
                except AttributeError:
                    bound[alias.asname or alias.name] = importlib.import_module(f"{node.module}.{alias.name}")
    return bound


def found_at(node: ast.AST, bound: dict[str, Any]) -> Any:
    """The object that a chain of attributes from a bound name stands for, or ``None`` for another expression."""
    if isinstance(node, ast.Name):
        return bound.get(node.id)
    if isinstance(node, ast.Attribute):
        of = found_at(node.value, bound)
        if inspect.ismodule(of):
            return getattr(of, node.attr)  # raises where the page names what does not exist
    return None


def faults(page: Path) -> list[str]:
    """What is wrong with the code of a page: names that do not exist, and keywords that a function does not take."""
    trees = [ast.parse(code) for kind, code in blocks(page) if not (kind == "python" and page.name in THEIRS)]
    bound = {"scoresde": importlib.import_module("scoresde")} | names_of(trees)
    wrong = []
    for node in (node for tree in trees for node in ast.walk(tree)):
        try:
            if isinstance(node, ast.Attribute):
                found_at(node, bound)
            if isinstance(node, ast.Call) and (called := found_at(node.func, bound)) is not None:
                wrong += [f"{ast.unparse(node.func)} takes no {name}" for name in _unknown(called, node)]
        except AttributeError as error:
            wrong.append(f"{ast.unparse(node)}: {error}")
    return wrong


def _unknown(called: Any, call: ast.Call) -> list[str]:
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):
        return []
    if any(p.kind == p.VAR_KEYWORD for p in parameters):
        return []
    known = {p.name for p in parameters if p.kind != p.POSITIONAL_ONLY}
    return [k.arg for k in call.keywords if k.arg is not None and k.arg not in known]


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_the_code_of_a_page_compiles_and_names_what_exists(page: Path) -> None:
    for _, code in blocks(page):
        compile(code, str(page), "exec")
    assert faults(page) == []


def test_a_name_and_a_keyword_that_do_not_exist_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport scoresde\nfrom scoresde import solvers as s\nscoresde.simple(1)\ns.ddim(eta=1, color=2)\n"
        "scoresde.sample(model, (2,), steps=3)\nx.anything(y=1)\n```\n\n"
        "```pycon\n>>> scoresde.VP(\n...     beta=3)\n3\n```\n"
    )
    assert {fault.split(":")[0] for fault in faults(page)} == {
        "scoresde.simple",
        "scoresde.simple(1)",
        "s.ddim takes no color",
        "scoresde.VP takes no beta",
    }
    page.write_text("```python\nfor x in:\n```\n")
    with pytest.raises(SyntaxError):
        faults(page)


def test_every_page_with_sessions_is_run_by_a_test() -> None:
    """Those that the site does not execute; the lists of pages that tests run are read from the tests."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    for page in PAGES:
        if any(kind == "pycon" for kind, _ in blocks(page)):
            assert f'"{page.stem}"' in tests or f'"{page.name}"' in tests or f"{page.name}" in tests, page
