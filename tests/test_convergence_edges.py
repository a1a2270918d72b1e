"""Orders where there are none to measure: errors of zero, infinity and not-a-number, and solvers that are exact."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoresde import solvers
from scoresde.analysis import Measurement, convergence, error_constants
from scoresde.analysis.convergence import Convergence
from scoresde.problems import GaussianMixture
from scoresde.solvers import SOLVERS, Path, Row, RowSolver, Update

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


# Error constants ------------------------------------------------------------------------------------------------------

BASHFORTH = {1: 1 / 2, 2: 5 / 12, 3: 3 / 8, 4: 251 / 720}
MOULTON = {2: -1 / 12, 3: -1 / 24, 4: -19 / 720, 5: -3 / 160}

CONSTANTS: dict[str, list[tuple[int, float]]] = {
    **{name: [(2, BASHFORTH[2])] for name in ("dpm-2m", "dpmpp-2m", "deis-2", "tab-2", "rhoab-2", "velocity-2")},
    **{name: [(2, BASHFORTH[2])] for name in ("sde-dpmpp-2m", "sde-dpm-2", "auto-sde")},
    **{name: [(3, BASHFORTH[3])] for name in ("deis-3", "tab-3", "rhoab-3", "velocity-3", "ipndm-3", "ipndm-v-3")},
    **{name: [(4, BASHFORTH[4])] for name in ("deis-4", "tab-4", "rhoab-4", "velocity-4", "lms", "ipndm", "plms", "pndm")},
    # Half of the integral of theta^2, a third, is missed.
    **{name: [(2, (1 / 3 - 1 / 6) / 2)] for name in ("dpm-3m", "dpmpp-3m", "sde-dpmpp-3m")},
    # 2 N(0) - N(-1) of theta is 1, where its integral is a half.
    "gradient-estimation": [(1, 1 / 2 - 1)],
    # A twelfth of the third difference too much, which is 3! for theta^3.
    "ipndm-v": [(3, -1 / 12)],
    **{f"unipc-{p}": [(p, BASHFORTH[p]), (p + 1, MOULTON[p + 1])] for p in (2, 3, 4)},
    **{f"{name}-{p}": [(p, BASHFORTH[p]), (p, MOULTON[p])] for name in ("expam", "abm") for p in (2, 3, 4)},
    "auto": [(4, BASHFORTH[4]), (4, MOULTON[4])],  # abm-4, at these numbers of steps
    "sa": [(3, BASHFORTH[3]), (4, MOULTON[4])],
}
"""By name: the lowest degree that is not integrated exactly, and the classical constant, of predictor and corrector."""


@pytest.mark.parametrize("name", SOLVERS)
def test_every_multistep_solver_has_the_error_constants_of_its_stencil(name: str) -> None:
    found = error_constants(name)
    assert [c.degree for c in found] == [degree for degree, _ in CONSTANTS.get(name, [])]
    for constant, (degree, value) in zip(found, CONSTANTS.get(name, []), strict=True):
        assert constant.value == pytest.approx(value, abs=2e-4) and constant.agrees
        assert constant.expected == (degree, pytest.approx(value, abs=1e-12))


@pytest.mark.parametrize("finish", ["same", "lower-order", "high-order"])
@pytest.mark.parametrize("start", ["published", "high-order"])
def test_error_constants_are_those_of_the_middle_whatever_the_ends(start: str, finish: str) -> None:
    (found,) = error_constants(solvers.dpmpp_3m("exact", start, finish))
    assert found.degree == 3 and found.agrees and found.nodes == (0.0, -1.0, -2.0)
    (found,) = error_constants(solvers.lms(4, start, finish))
    assert found.degree == 4 and found.agrees


def with_second_difference(share: float, solver: RowSolver) -> RowSolver:
    """``solver`` of three nodes with ``share`` of the second difference that it has: exact on lines whatever it is."""

    def rows(path: Path) -> list[Update]:
        out: list[Update] = []
        for row in solver.rows(path):
            if isinstance(row, Row) and len(row.w) == 3:
                # The part of the weights that is a multiple of (1, -2, 1), by the oldest of them.
                bend = row.w[2]
                row = replace(row, w=tuple(w - (1 - share) * bend * c for w, c in zip(row.w, (1, -2, 1), strict=True)))
            out.append(row)
        return out

    return replace(solver, rows=rows)


@pytest.mark.parametrize("wrong", [-1.0, 0.97])
@pytest.mark.parametrize("variant", ["published", "exact"])
def test_a_wrong_coefficient_that_keeps_the_order_is_seen(variant: str, wrong: float) -> None:
    """The order of a three-step method that starts with DDIM is two, whatever its second difference is multiplied by."""
    solver = solvers.dpmpp_3m(variant)
    steps = (20, 40, 80, 160)
    right = convergence(with_second_difference(1.0, solver), steps=steps, few=(5,))
    assert right.verdict == "confirmed" and "as expected" in repr(right)
    found = convergence(with_second_difference(wrong, solver), steps=steps, few=(5,))
    assert found.verdict == "other constant" and "(expected 0." in repr(found)
    assert abs(found.order - found.declared) < 0.25, "its order alone is as declared"


def test_solvers_whose_steps_look_back_on_none_have_no_error_constants() -> None:
    for solver in ("ddim", "heun", "dpm-3", "rk4", "rk45", "dopri5", "edm", "pc", "dpm-fast", solvers.unipc(1)):
        assert error_constants(solver) == ()
    assert error_constants(solvers.er_sde_solver(3)) == ()  # its sums have no limit
    assert all(c.agrees for p in (2, 3) for c in error_constants(solvers.er_sde_solver(p, variant="exact")))
