"""Plant small errors in a module, one at a time, and see whether the tests notice: a test of the tests.

    python tests/mutation.py scoresde/sde/chain.py --seed 1 --mutants 20
    python tests/mutation.py scoresde/score --tests tests/test_score.py tests/test_score_ends.py
    python tests/mutation.py scoresde/solvers/path.py --only 14 --show      # one mutant again, as a difference

A mutant is the module with one change: an operator, a comparison, a constant, ``and`` for ``or``, a sign, a condition turned
round or an operand left out. The tests run on a copy of the checkout, so that nothing here is touched and several may run
at once. A mutant that the tests notice is killed; so is one that takes far longer than the module itself. A survivor is
either equivalent, which a reader must tell, or something that no test knows: write that test.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The tests of a room or a file, by what a path begins with; the longest that fits is taken.
TESTS: dict[str, tuple[str, ...]] = {
    "scoresde/base/numbers.py": ("numbers",),
    "scoresde/sde": ("sde", "chain"),
    "scoresde/sde/chain.py": ("chain", "sde"),
    "scoresde/sde/bridge.py": ("chain",),
    "scoresde/score": ("score_ends", "score", "seam"),
    "scoresde/score/predictions.py": ("score_ends", "score"),
    "scoresde/problems": ("problems_geometry", "problems", "problems_data", "problems_heavy", "problems_laws"),
    "scoresde/problems/kernel.py": ("problems_geometry",),
    "scoresde/objectives": ("objectives", "variational_bound", "variance_reduction", "dequantization"),
    "scoresde/metrics": ("metrics", "metrics_intervals"),
    "scoresde/models": ("models", "models_published", "stored_values"),
    "scoresde/analysis": ("convergence_edges", "analysis"),
    "scoresde/solvers": ("solver_laws", "path", "coefficients", "solvers", "deterministic", "stochastic", "drivers"),
    "scoresde/solvers/methods/langevin.py": ("solver_laws", "langevin", "stochastic"),
    "scoresde/solvers/adaptive": ("solver_laws", "adaptive_sde", "drivers"),
    "scoresde/solvers/noise": ("noise",),
    "scoresde/guidance": ("guidance",),
    "scoresde/inverse": ("inverse",),
}

OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.FloorDiv: (ast.Div,),
    ast.Mod: (ast.Mult,),
    ast.MatMult: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
FUNCTIONS = {
    **{"sin": "cos", "cos": "sin", "sqrt": "square", "exp": "expm1", "expm1": "exp", "log1p": "log", "log": "log1p"},
    **{"min": "max", "max": "min", "all": "any", "any": "all", "amax": "amin", "floor": "ceil", "ceil": "floor"},
}


@dataclass(frozen=True)
class Mutant:
    """One change: the ``kind`` of change at ``line``, and the module's text without and with it."""

    kind: str
    line: int
    source: str
    text: str


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The nodes that may stand in the place of ``node``, with the kind of change."""
    match node:
        case ast.BinOp(op=op):
            for other in OPERATORS.get(type(op), ()):
                yield "operator", ast.BinOp(node.left, other(), node.right)
        case ast.Compare(ops=[op]):
            for other in COMPARISONS[type(op)]:
                yield "comparison", ast.Compare(node.left, [other()], node.comparators)
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                for other in COMPARISONS[type(op)]:
                    yield "comparison", ast.Compare(node.left, [*ops[:i], other(), *ops[i + 1 :]], node.comparators)
        case ast.BoolOp(op=op, values=values):
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            for i in range(len(values)):
                rest = [*values[:i], *values[i + 1 :]]
                yield "operand left out", rest[0] if len(rest) == 1 else ast.BoolOp(op, rest)
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield "sign", node.operand
        case ast.Constant(value=bool()):
            yield "constant", ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield "constant", ast.Constant(node.value + 1)
            if node.value not in (0, 1):
                yield "constant", ast.Constant(node.value * 1.01 if isinstance(node.value, float) else node.value - 1)
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test) if not isinstance(node, ast.While):
            kind = type(node)
            changed = ast.UnaryOp(ast.Not(), test)
            yield "branch", kind(**{**{f: getattr(node, f) for f in node._fields}, "test": changed})
        case ast.Attribute(attr=name) if name in FUNCTIONS:
            yield "function", ast.Attribute(node.value, FUNCTIONS[name], node.ctx)


def _where(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node that computes: its parent, the field and place in it, and the node; without annotations and messages."""
    skipped = {"annotation", "returns", "decorator_list", "type_comment"}

    def visit(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
        for name, value in ast.iter_fields(parent):
            if name in skipped:
                continue
            children = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for i, child in children:
                if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                    continue
                yield parent, name, i, child
                yield from visit(child)

    return visit(tree)


def mutants(source: str) -> list[Mutant]:
    """Every mutant of ``source``, in the order of its text."""
    tree, found = ast.parse(source), []
    lines = source.splitlines(keepends=True)
    for _, _, _, node in _where(tree):
        if not hasattr(node, "lineno"):
            continue
        for kind, changed in _changes(node):
            text = _replaced(lines, node, changed)
            if text is not None and text != source:
                found.append(Mutant(kind, node.lineno, source, text))
    return found


def _replaced(lines: Sequence[str], node: ast.AST, changed: ast.AST) -> str | None:
    """The text with ``changed`` for ``node``, all else as it was written."""
    if isinstance(node, ast.If):  # its body is too long to be written anew: the condition alone
        assert isinstance(changed, ast.If)
        return _replaced(lines, node.test, changed.test)
    first, last = node.lineno - 1, node.end_lineno - 1  # type: ignore[attr-defined]
    start = lines[first].encode()[: node.col_offset].decode()  # type: ignore[attr-defined]
    end = lines[last].encode()[node.end_col_offset :].decode()  # type: ignore[attr-defined]
    text = "".join([*lines[:first], f"{start}({ast.unparse(ast.fix_missing_locations(changed))}){end}", *lines[last + 1 :]])
    try:
        ast.parse(text)
    except SyntaxError:
        return None
    return text


def tests_of(module: str) -> list[str]:
    """The test files of a module, by :data:`TESTS`."""
    fitting = [start for start in TESTS if module == start or module.startswith(f"{start.removesuffix('/')}/")]
    if not fitting:
        raise SystemExit(f"got {module}; expected one of the table TESTS, {', '.join(TESTS)}, or test files by --tests")
    files = [f"tests/test_{name}.py" for name in TESTS[max(fitting, key=len)]]
    return [file for file in files if (ROOT / file).exists()]


def run(copy: Path, tests: Sequence[str], limit: float) -> tuple[bool, str]:
    """Whether the tests pass in ``copy``, and how they end."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return False, f"no end within {limit:.0f} s"
    said = done.stdout.strip().splitlines() or [done.stderr[-200:]]
    return done.returncode == 0, next((line for line in said if line.startswith(("FAILED", "ERROR"))), said[-1])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="a file or a folder of the package")
    parser.add_argument("--seed", type=int, default=0, help="which mutants are drawn")
    parser.add_argument("--mutants", type=int, default=20, metavar="N", help="how many are drawn; 0 for all there are")
    parser.add_argument("--tests", nargs="+", help="test files, instead of those of the table")
    parser.add_argument("--only", type=int, metavar="I", help="the mutant of this number alone")
    parser.add_argument("--show", action="store_true", help="show mutants as differences, and run nothing")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    place = ROOT / chosen.module
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    everything = [(path, mutant) for path in files for mutant in mutants(path.read_text())]
    numbers = list(range(len(everything)))
    if chosen.only is not None:
        numbers = [chosen.only]
    elif chosen.mutants:
        numbers = sorted(random.Random(chosen.seed).sample(numbers, min(chosen.mutants, len(numbers))))
    if chosen.show:
        for number in numbers:
            path, mutant = everything[number]
            before, after = (text.splitlines(keepends=True) for text in (mutant.source, mutant.text))
            print(number, mutant.kind, *difflib.unified_diff(before, after, str(path.relative_to(ROOT)), n=0), sep="\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", "__pycache__", "_build", ".*_cache", "runs")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
        killed = _campaign(copy, everything, numbers, chosen.tests)
    share = killed / max(1, len(numbers))
    drawn = f"{len(numbers)} of {len(everything)} mutants, seed {chosen.seed}"
    print(f"{chosen.module}: {drawn}: {killed} killed, {share:.1%}")


def _campaign(copy: Path, everything: list[tuple[Path, Mutant]], numbers: list[int], given: list[str] | None) -> int:
    """How many of the mutants with these ``numbers`` the tests notice."""
    killed, times = 0, {}
    for number in numbers:
        path, mutant = everything[number]
        module = str(path.relative_to(ROOT))
        tests = tuple(given or tests_of(module))
        if tests not in times:
            begin = time.monotonic()
            passes, how = run(copy, tests, 3600)
            if not passes:
                raise SystemExit(f"the tests fail without any mutant: {how}")
            times[tests] = time.monotonic() - begin
        (copy / module).write_text(mutant.text)
        survives, how = run(copy, tests, 60 + 4 * times[tests])
        (copy / module).write_text(mutant.source)
        killed += not survives
        line = mutant.text.splitlines()[mutant.line - 1].strip()
        print(f"{'SURVIVED' if survives else 'killed':8} {number:5} {module}:{mutant.line} {mutant.kind}: {line}")
        print(f"{'':14} {how[:110]}", flush=True)
    return killed


if __name__ == "__main__":
    main()
