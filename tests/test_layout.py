"""The layout's laws: imports go one way, links point into the package, public names exist and are documented."""

import ast
import graphlib
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import FunctionType

import pytest

import scoresde

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "scoresde"

# The rooms of the house from the top floor down: a room imports only from rooms below it, deferred imports included.
HOUSE = (
    "cli",
    "demo",
    "doctor",
    "__init__",
    "comparison",
    "interop",
    "tuning",
    "systems",
    "tuning",
    "evaluation",
    "presets",
    "training",
    "plots",
    "inverse",
    "analysis",
    "discrete",
    "guidance",
    "sampling",
    "weights",
    "objectives",
    "problems",
    "score",
    "solvers",
    "models",
    "sde",
    "data",
    "metrics",
    "base",
)
# Rooms that stand on the same floor as others and never meet, where the order of the list would let them.
APART = {
    "models": {"sde"},  # a network knows nothing of SDEs
    "solvers": {"models", "data", "metrics"},  # a solver nothing of networks
    "score": {"solvers", "models"},
    "sde": {"data", "metrics"},
}
MOST_FILES = 14
"""In one folder, its ``__init__`` included."""


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target`` at ``place``: "" at its top level, else a qualified name or "TYPE_CHECKING".

    ``deferred``: it does not run when the module does, but in a function or for the type checker alone.
    """

    module: str
    target: str
    place: str
    deferred: bool


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every import in ``source``, with ``from a import b`` as ``a.b``."""

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        parents = module.split(".") if is_package else module.split(".")[:-1]
        base = parents[: len(parents) + 1 - node.level] if node.level else []
        for alias in node.names:
            yield ".".join([*base, *([node.module] if node.module else []), alias.name])

    def visit(node: ast.AST, place: str, deferred: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(module, target, place, deferred) for target in targets(node))
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            place = f"{place}.{node.name}" if place else node.name
            deferred = deferred or not isinstance(node, ast.ClassDef)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            place, deferred = "TYPE_CHECKING", True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, place, deferred)

    return visit(ast.parse(source), "", False)


@cache
def sources() -> dict[str, Path]:
    """The files of the package by the names of their modules."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def package_imports() -> tuple[Import, ...]:
    """The imports of the package from itself; ``target`` is the module that is imported from."""
    found = []
    for module, path in sources().items():
        for item in imports_of(path.read_text(), module, path.name == "__init__.py"):
            if item.target.split(".")[0] != "scoresde":
                continue
            target = item.target
            while target not in sources():  # an attribute, whose module is the longest prefix that is a file
                target = target.rpartition(".")[0]
            found.append(replace(item, target=target))
    return tuple(found)


def unit(module: str) -> str:
    """The row of the table to which a module belongs."""
    return module.split(".")[1] if "." in module else "__init__"


# Imports ------------------------------------------------------------------------------------------------------------


def test_the_reader_of_imports_sees_every_form():
    source = """
import scoresde.a
from scoresde.b import x as y
from . import c
from .d import z
if TYPE_CHECKING:
    from scoresde import e
class K:
    from scoresde import h
    def f(self):
        from ..up import g
"""
    seen = {(i.target, i.place, i.deferred) for i in imports_of(source, "scoresde.p.m")}
    assert seen == {
        ("scoresde.a", "", False),
        ("scoresde.b.x", "", False),
        ("scoresde.p.c", "", False),
        ("scoresde.p.d.z", "", False),
        ("scoresde.e", "TYPE_CHECKING", True),
        ("scoresde.h", "K", False),
        ("scoresde.up.g", "K.f", True),
    }
    assert {i.target for i in imports_of("from .m import x", "scoresde.p", is_package=True)} == {"scoresde.p.m.x"}


def test_every_module_has_a_room():
    missing = {unit(module) for module in sources()} - set(HOUSE)
    assert not missing, f"give {sorted(missing)} a place in HOUSE"


def test_imports_go_downwards():
    floor = {room: i for i, room in enumerate(HOUSE)}
    against = {
        (item.module, item.place, item.target)
        for item in package_imports()
        if floor[unit(item.target)] < floor[unit(item.module)] or unit(item.target) in APART.get(unit(item.module), ())
    }
    assert not against


def test_files_import_each_other_without_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in sources()}
    for item in package_imports():
        graph[item.module].add(item.target)
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_rooms_inside_a_package_import_each_other_without_a_circle():
    graph: dict[str, set[str]] = {}
    for item in package_imports():
        for depth in range(2, 5):
            a, b = (".".join(name.split(".")[:depth]) for name in (item.module, item.target))
            if a != b and a.split(".")[:-1] == b.split(".")[:-1] and not (a in b or b in a):
                graph.setdefault(a, set()).add(b)
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_no_folder_holds_more_than_about_a_dozen_files():
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in [PACKAGE, *PACKAGE.rglob("*")] if folder.is_dir()}
    assert not {str(folder): n for folder, n in sizes.items() if n > MOST_FILES}


def test_no_public_name_hides_a_package():
    for package in [name for name, path in sources().items() if path.name == "__init__.py" and "." in name]:
        parent, _, name = package.rpartition(".")
        importlib.import_module(package)
        assert inspect.ismodule(getattr(importlib.import_module(parent), name)), f"{parent}.{name} hides {package}"


def test_importing_the_package_loads_no_third_party_library_that_torch_has_not_loaded():
    programme = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import scoresde\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names - {'scoresde', 'torch'}))"
    )
    run = subprocess.run([sys.executable, "-c", programme], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.split() == []


@pytest.mark.parametrize("folder", ["scoresde", "tests", "examples", "docs"])
def test_nothing_imports_torchvision_or_through_the_links(folder):
    for path in (ROOT / folder).rglob("*.py"):
        roots = {item.target.split(".")[0] for item in imports_of(path.read_text(), path.stem)}
        assert not roots & {"torchvision", "solvers", "models"}, path


# Packaging ----------------------------------------------------------------------------------------------------------


def test_no_requirement_brings_torchvision():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [table["dependencies"], *table["optional-dependencies"].values()]
    requirements = [requirement for group in groups for requirement in group]
    assert any(requirement.startswith("torch>=") for requirement in requirements)
    # torch-fidelity, clean-fid and k-diffusion require it, and so do extras of torchmetrics.
    banned = ("torchvision", "torch-fidelity", "clean-fid", "k-diffusion", "torchmetrics[")
    assert not [requirement for requirement in requirements if requirement.startswith(banned)]


@pytest.mark.parametrize("name", ["solvers", "models"])
def test_links_at_the_root_are_relative_and_point_into_the_package(name):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout: the links are part of the repository, not of the distribution")
    assert os.readlink(ROOT / name) == os.path.join("scoresde", name)
    assert (ROOT / name).samefile(PACKAGE / name)


def test_the_package_is_marked_as_typed():
    assert (PACKAGE / "py.typed").is_file()


# Public names -------------------------------------------------------------------------------------------------------

PUBLIC = sorted(
    module.name
    for module in pkgutil.walk_packages(scoresde.__path__, "scoresde.")
    if not any(part.startswith("_") for part in module.name.split("."))
)


@cache
def documented_constants() -> frozenset[str]:
    """The names assigned at the top level of a module with a string below them, Sphinx's form for a constant."""
    found = set()
    for path in sources().values():
        body = ast.parse(path.read_text()).body
        for node, below in pairwise(body):
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(found)


def is_documented(name: str, value: object) -> bool:
    if inspect.isclass(value):
        # A dataclass without a docstring gets its signature for one.
        return bool(value.__doc__) and not value.__doc__.startswith(f"{value.__name__}(")
    if inspect.isroutine(value) or inspect.ismodule(value):
        return bool(inspect.getdoc(value))
    return name in documented_constants()


@pytest.mark.parametrize("name", ["scoresde", *PUBLIC])
def test_public_names_exist_and_are_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert len(set(module.__all__)) == len(module.__all__)
    for public in module.__all__:
        assert hasattr(module, public), f"{name}.__all__ lists {public}, which does not exist"
        assert is_documented(public, getattr(module, public)), f"{name}.{public} has no docstring"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_methods_are_documented(name):
    module = importlib.import_module(name)
    for public in module.__all__:
        cls = getattr(module, public)
        if not inspect.isclass(cls) or getattr(cls, "_is_protocol", False):
            continue
        for attribute, value in vars(cls).items():
            if not attribute.startswith("_") and isinstance(value, property | classmethod | staticmethod | FunctionType):
                assert inspect.getdoc(getattr(cls, attribute)), f"{name}.{public}.{attribute} has no docstring"


def test_every_public_module_has_a_page_in_the_reference():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    described = {line.split()[-1] for line in text.splitlines() if line.startswith(".. automodule::")}
    assert described >= {f"scoresde.{unit(name)}" for name in PUBLIC} - {"scoresde.cli", "scoresde.base"}


def test_the_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {scoresde.__version__}\n" in citation
    assert f"## [{scoresde.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_a_public_name_means_one_thing():
    meanings: dict[str, dict[int, str]] = {}
    for room in ["scoresde", *(f"scoresde.{module.name}" for module in pkgutil.iter_modules(scoresde.__path__))]:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            meanings.setdefault(name, {}).setdefault(id(getattr(module, name)), room)
    assert {name: [*rooms.values()] for name, rooms in meanings.items() if len(rooms) > 1} == {}
