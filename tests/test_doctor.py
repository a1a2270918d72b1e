"""``scoresde doctor``: what it prints, and that its checks fail where the numerics are wrong."""

import math
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import scoresde
from scoresde import doctor
from scoresde.cli import app
from scoresde.doctor import Check, numerics, requirements
from scoresde.solvers import RowSolver, dpmpp_2m


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments], env={"COLUMNS": "200"})


def test_it_prints_what_a_report_of_a_fault_should_contain() -> None:
    done = invoke("--no-check")
    assert done.exit_code == 0, done.output
    for part in (
        scoresde.__version__,
        torch.__version__,
        "Python 3.",
        "device cpu",
        "default float32",
        "numpy",
        "required: ",
    ):
        assert part in done.output


def test_all_checks_pass_here() -> None:
    checks = list(numerics())
    assert len(checks) == 6 and all(check.passed for check in checks), [str(check) for check in checks]


def test_a_number_that_is_not_finite_fails() -> None:
    assert not Check("a", math.nan, 1.0).passed and not Check("a", math.inf, 1.0).passed and Check("a", 1.0, 1.0).passed
    assert str(Check("a", math.nan, 1.0)).startswith("FAIL")


def test_a_coefficient_that_is_off_by_a_part_in_a_million_is_found(monkeypatch) -> None:
    def wrong(variant="published"):
        right = dpmpp_2m(variant=variant)
        return RowSolver(
            right.description,
            lambda path: [replace(r, w=tuple(w * (1 + 1e-6) for w in r.w)) for r in right.rows(path)],
        )

    monkeypatch.setattr(doctor, "dpmpp_2m", wrong)
    assert not next(numerics()).passed


def test_a_wrong_order_and_a_wrong_likelihood_fail_the_command(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "convergence", lambda name: type("Found", (), {"order": 1.0})())
    monkeypatch.setattr(doctor, "log_likelihood", lambda model, x, tolerance: type("Found", (), {"log_prob": x.sum(1)})())
    done = invoke()
    assert done.exit_code == 1
    assert done.output.count("FAIL") == 2 and "order of dpmpp-2m" in done.output


def test_an_error_of_a_device_is_a_check_that_fails(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "devices", lambda: {"cuda:99": "a device that is not there"})
    done = invoke()
    assert done.exit_code == 1 and "cuda:99: FAIL" in done.output


def test_a_package_that_was_not_installed_has_no_requirements(monkeypatch) -> None:
    def absent(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "requires", absent)
    assert requirements() == {}
    assert invoke("--no-check").exit_code == 0


@pytest.mark.parametrize("extra", ["train", "eval", "peers", "docs"])
def test_missing_packages_of_an_extra_are_named(monkeypatch, extra) -> None:
    lines = ["numpy>=1.26", f'no-such-package>=1 ; extra == "{extra}"', f"also-none ; extra == '{extra}'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: lines)
    assert f"{extra}: none; missing: no-such-package, also-none" in invoke("--no-check").output
