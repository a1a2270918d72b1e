"""The command ``scoresde compare``."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from scoresde.cli import app
from scoresde.comparison import Comparison, Suite, suites
from scoresde.solvers import get


def invoke(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["compare", *arguments, "--no-progress"])
    return result.exit_code, result.stdout, result.stderr


SMALL = ("--solver", "ddim,heun", "--evaluations", "5,10", "--metric", "rms", "-n", "8")


def test_problems_are_compared_and_a_table_is_printed() -> None:
    code, out, _ = invoke("ring", "grid", *SMALL, "--path", "lam,karras", "--sde", "edm")
    assert code == 0 and "### ring: rms" in out and "### grid: rms" in out
    assert all(f"| {solver}, {path} |" in out for solver in ("ddim", "heun") for path in ("lam", "karras"))


def test_the_folder_holds_the_report_and_the_same_command_adds_nothing(tmp_path: Path) -> None:
    assert invoke("ring", *SMALL, "--out", str(tmp_path))[0] == 0
    before = (tmp_path / "records.jsonl").read_text()
    code, out, _ = invoke("ring", *SMALL, "--out", str(tmp_path))
    assert code == 0 and (tmp_path / "records.jsonl").read_text() == before
    assert {(r.solver, r.budget) for r in Comparison.load(tmp_path).records} == {
        (s, b) for s in ("ddim", "heun") for b in (5, 10)
    }
    assert "index.html" in out and (tmp_path / "index.html").exists()


def test_a_suite_is_run_by_name() -> None:
    entry = suites.Entry(suites.problems.gaussian, n=8)
    tiny = Suite("tiny", 1, {"g": entry}, {"d": lambda: get("ddim")}, (5,), ("lam",), ("rms",))
    suites.SUITES.register("tiny", tiny)
    try:
        code, out, _ = invoke("--suite", "tiny")
    finally:
        suites.SUITES.unregister("tiny")
    assert code == 0 and "### g: rms" in out and "| d |" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rign",), "did you mean 'ring'"),
        (("ring", "--evaluations", "5,x"), "whole numbers with commas"),
        (("ring", "--suite", "quick"), "brings its own problems"),
        (("--suite", "quik"), "did you mean 'quick'"),
        (("ring", "--solver", ""), "got no solvers"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(arguments: tuple[str, ...], says: str) -> None:
    code, _, err = invoke(*arguments)
    assert code == 2 and says in err and err.count("\n") == 1
