"""Orders where there are none to measure: errors of zero, infinity and not-a-number, and solvers that are exact."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoresde.analysis import Measurement, convergence
from scoresde.analysis.convergence import Convergence
from scoresde.problems import GaussianMixture

STEPS = (5, 10, 20, 40, 80)
ODD = (0.0, math.inf, math.nan)


def of(errors: tuple[float, ...], **changes: object) -> Convergence:
    measured = tuple(Measurement(n, 2 * n, e) for n, e in zip(STEPS, errors, strict=False))
    values = {"solver": "mine", "declared": 2.0, "measurements": measured, "few": measured[:1], "asymptotic": None}
    values |= {"rounding": None, "order": math.nan, "interval": (-math.inf, math.inf), "weak": False}
    return Convergence(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("errors", list(itertools.permutations((*ODD, 1e-3, 1e-4))))
def test_the_table_shows_errors_that_have_no_slope(errors: tuple[float, ...]) -> None:
    found = of(errors)
    lines = repr(found).splitlines()
    assert found.verdict == "undecided" and "undecided" in lines[0]
    rows = lines[-len(STEPS) :]
    for (before, after), row in zip(itertools.pairwise(errors), rows[1:], strict=True):
        slope = row.split()[3]
        if all(0 < e < math.inf for e in (before, after)):
            assert float(slope) == pytest.approx(math.log2(before / after), abs=0.01)
        else:
            assert slope == "nan"


@given(order=st.floats(1.0, 4.0), constant=st.floats(1e-3, 10))
def test_the_slope_between_two_errors_is_the_power_they_fall_with(order: float, constant: float) -> None:
    errors = tuple(constant * n**-order for n in STEPS)
    rows = repr(of(errors)).splitlines()[-len(STEPS) :]
    assert all(float(row.split()[3]) == pytest.approx(order, abs=0.0051) for row in rows[1:])


@pytest.mark.parametrize(
    ("order", "interval", "verdict"),
    [
        (2.0, (1.9, 2.1), "confirmed"),
        (1.0, (0.9, 1.1), "lower"),
        (3.0, (2.9, 3.1), "higher"),
        (2.0, (-math.inf, math.inf), "undecided"),
        (2.0, (math.nan, math.nan), "undecided"),
    ],
)
def test_the_verdict(order: float, interval: tuple[float, float], verdict: str) -> None:
    errors = tuple(n**-order for n in STEPS)
    assert of(errors, asymptotic=(5, 80), order=order, interval=interval).verdict == verdict


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m"])
def test_a_solver_that_is_exact_leaves_nothing_but_rounding(solver: str) -> None:
    """The data prediction of a single point is constant, on which exponential integrators err not at all."""
    found = convergence(solver, GaussianMixture([[0.3, -0.2]], 0.0), steps=(10, 20, 40), few=(5,))
    assert found.rounding == 10 and found.asymptotic is None and found.verdict == "undecided"
    assert all(m.error < 1e-10 for m in (*found.measurements, *found.few)) and repr(found)
