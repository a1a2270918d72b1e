"""What is read off a comparison: orders, fronts, evaluations to an accuracy, ranks and ratios."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import mixture

from scoresde import solvers
from scoresde.analysis.convergence import Measurement, judge
from scoresde.comparison import (
    SUITES,
    Comparison,
    Record,
    best_ratio,
    compare,
    evaluations_to_reach,
    orders,
    pareto,
    ranking,
    suite,
)
from scoresde.solvers import Description, RowSolver
from scoresde.solvers.updates import Row

errors = st.floats(1e-8, 1e2)


def record(solver: str, steps: int, value: float, problem: str = "p", package: str = "scoresde") -> Record:
    return Record(problem, solver, "lam", steps, steps, steps, "rms", value, value, value, package)


def comparison(records: list[Record], order: int = 2) -> Comparison:
    names = {r.solver for r in records}
    return Comparison(tuple(records), {"end": "stop", "solvers": {name: {"order": order} for name in names}})


# Orders ---------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4), st.floats(0.1, 1e2))  # all errors lie above the floor
def test_a_power_law_has_its_power_for_its_order(order: int, factor: float) -> None:
    steps = (10, 20, 40, 80)
    found = orders(comparison([record("a", n, factor * n**-order) for n in steps], order))["p", "a", "lam", ""]
    assert found.order == pytest.approx(order) and found.verdict == "confirmed" and found.asymptotic == (10, 80)
    low, high = found.interval
    assert low <= order + 1e-6 and high >= order - 1e-6
    wrong = orders(comparison([record("a", n, factor * n**-order) for n in steps], order + 1))["p", "a", "lam", ""]
    assert wrong.verdict == "lower"


@given(
    st.integers(1, 3),
    st.lists(st.sampled_from([0.0, math.inf, math.nan, 1e-320, -1.0, None]), min_size=6, max_size=6),
    st.sampled_from([0.0, 1e-9]),
)
def test_errors_that_are_no_numbers_or_zero_are_in_no_range(order: int, odd: list[float | None], floor: float) -> None:
    """Where the last three are a power law the order is theirs, whatever stands before; and nothing raises."""
    steps = (5, 10, 20, 40, 80, 160)
    measured = [Measurement(n, n, 0.5 * n**-order if value is None else value) for n, value in zip(steps, odd, strict=True)]
    found = judge("a", order, measured, (), floor)
    assert str(found) and found.verdict in ("confirmed", "lower", "higher", "undecided")
    if found.asymptotic is not None:
        low, high = found.asymptotic
        assert all(0 < m.error < math.inf for m in measured if low <= m.steps <= high)
        assert found.verdict == "confirmed" and found.order == pytest.approx(order)
    if odd[-3:] == [None] * 3:
        rounding = [m.steps for m in measured if m.error < max(floor, 1e-300)]
        assert (found.asymptotic is not None and found.asymptotic[1] == 160) or rounding
    records = [record("a", m.steps, m.error) for m in measured]
    given_ = comparison(records, order)
    assert all(str(judged) for judged in orders(given_).values())
    ranking(given_, resamples=2)
    if any(math.isfinite(r.value) for r in records):
        assert pareto(given_, "p") and evaluations_to_reach(given_, 0.1)


def broken(path: solvers.Path) -> list[Any]:
    """DPM-Solver++(2M) with half more of the older prediction and as much less of the newer: consistent, of order one."""

    def rows() -> Iterator[Any]:
        for row in solvers.dpmpp_2m().rows(path):
            if isinstance(row, Row) and len(row.w) == 2:
                row = dataclasses.replace(row, w=(row.w[0] - 0.5 * row.w[1], 1.5 * row.w[1]))
            yield row

    return list(rows())


def test_a_planted_wrong_coefficient_is_flagged_and_the_right_one_is_not() -> None:
    planted = RowSolver(Description("broken", "test", "", order=2), broken)
    found = compare(
        {"smooth": mixture()},
        [planted, "dpmpp-2m", "ddim", "dpm-2", "dpm-3"],
        [50, 100, 200, 400],
        metrics=["rms"],
        n=4,
        progress=False,
    )
    judged = {curve.solver: measured for curve, measured in orders(found).items()}
    assert judged["broken"].verdict == "lower" and abs(judged["broken"].order - 1) < 0.25
    assert [judged[s].verdict for s in ("dpmpp-2m", "ddim", "dpm-2", "dpm-3")] == ["confirmed"] * 4


# Fronts, accuracies, ranks --------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(5, 100), errors), min_size=1, max_size=12))
def test_the_front_is_what_no_other_beats(points: list[tuple[str, int, float]]) -> None:
    records = {(solver, n): record(solver, n, value) for solver, n, value in points}.values()
    front = pareto(Comparison(tuple(records)), "p")

    def beats(a: Record, b: Record) -> bool:
        better = (a.evaluations < b.evaluations, a.value < b.value)
        return a.evaluations <= b.evaluations and a.value <= b.value and any(better)

    assert not any(beats(a, b) for a, b in itertools.permutations(front, 2))
    assert all(any(beats(a, r) or (a.evaluations, a.value) == (r.evaluations, r.value) for a in front) for r in records)


@given(st.floats(0.5, 4), st.floats(-1, 3))
def test_the_evaluations_to_an_error_invert_a_power_law(power: float, digits: float) -> None:
    steps = (5, 10, 30, 100)
    found = Comparison(tuple(record("a", n, n**-power) for n in steps))
    error = 10**-digits
    wanted = max(error ** (-1 / power), 5)
    assert evaluations_to_reach(found, error)["p", "a", "lam", ""] == pytest.approx(
        wanted if wanted <= 100 else math.inf, rel=1e-6
    )


@given(st.lists(errors, min_size=3, max_size=6, unique=True), st.lists(st.booleans(), min_size=6, max_size=6))
def test_a_distance_estimated_without_bias_is_the_better_the_nearer_to_zero(sizes: list[float], below: list[bool]) -> None:
    """Numbers of either sign rank as their absolute values do."""
    signed = [-size if minus else size for size, minus in zip(sizes, below, strict=False)]
    about = {"metrics": {"rms": {"better": "zero"}}}

    def made(values: list[float], **kind: Any) -> Comparison:
        return Comparison(tuple(record(f"s{i}", 5 + i, v) for i, v in enumerate(values)), **kind)

    found, plain = made(signed, about=about), made(sizes)
    assert [r.solver for r in pareto(found, "p")] == [r.solver for r in pareto(plain, "p")]
    assert evaluations_to_reach(found, max(sizes)) == evaluations_to_reach(plain, max(sizes))
    same = [dataclasses.replace(r, budget=5) for r in found.records]
    ranks = ranking(Comparison(tuple(same), about=about), resamples=2)
    assert [r.solver for r in ranks] == [f"s{i}" for i in sorted(range(len(sizes)), key=sizes.__getitem__)]


def test_an_error_that_comes_back_is_not_reached_before_it_left_for_good() -> None:
    found = Comparison(tuple(record("a", n, v) for n, v in ((5, 0.1), (10, 1.0), (20, 0.1))))
    assert evaluations_to_reach(found, 0.1)["p", "a", "lam", ""] == pytest.approx(20)
    with pytest.raises(ValueError, match="error=0; expected a positive number"):
        evaluations_to_reach(found, 0)


@given(st.integers(2, 5), st.integers(1, 4), st.data())
def test_ranks_add_up_and_do_not_depend_on_the_scale(k: int, problems: int, data: st.DataObject) -> None:
    drawn = {(p, s): data.draw(errors) for p in range(problems) for s in range(k)}
    ranks = ranking(Comparison(tuple(record(f"s{s}", 10, v, f"p{p}") for (p, s), v in drawn.items())), resamples=50)
    assert sum(r.mean for r in ranks) == pytest.approx(k * (k + 1) / 2)
    assert all(1 <= r.low <= r.high <= k and r.low - 1e-9 <= r.mean <= r.high + 1e-9 for r in ranks)
    scaled = Comparison(tuple(record(f"s{s}", 10, v * 10.0**p, f"p{p}") for (p, s), v in drawn.items()))
    assert ranking(scaled, resamples=50) == ranks


def test_a_solver_without_a_value_ranks_last() -> None:
    records = [record("a", 10, 0.1), record("b", 10, math.nan), record("c", 10, 0.2)]
    assert [(r.solver, r.mean) for r in ranking(Comparison(tuple(records)))] == [("a", 1.0), ("c", 2.0), ("b", 3.0)]


def test_the_best_of_both_sides_are_compared() -> None:
    records = [record("a", 10, 0.1), record("b", 10, 0.4), record("k/x", 10, 0.2, package="k"), record("a", 20, 0.1)]
    (ratio,) = best_ratio(Comparison(tuple(records)))
    assert (ratio.ours.solver, ratio.peer.solver, ratio.ratio) == ("a", "k/x", pytest.approx(0.5))
    with pytest.raises(ValueError, match="without peers; expected compare"):
        best_ratio(Comparison(tuple(records[:2])))


@pytest.mark.parametrize(
    "ask", [orders, ranking, lambda c, m: pareto(c, "p", m), lambda c, m: evaluations_to_reach(c, 1, m)]
)
def test_an_unknown_metric_is_refused(ask: Any) -> None:
    with pytest.raises(ValueError, match=r"metric 'rmse'.*expected"):
        ask(Comparison((record("a", 10, 0.1),)), "rmse")


# Suites ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_what_compare_takes(name: str) -> None:
    arguments = suite(name).arguments()
    first = next(iter(arguments["problem"].items()))
    few = {**arguments, "problem": dict([first]), "evaluations": (6,), "paths": arguments["paths"][:1]}
    found = compare(**few, progress=False)
    assert {r.solver for r in found.records} == set(arguments["solvers"])
    assert not {r.error for r in found.select(metric="rms") if r.steps} - {""}


def test_an_unknown_suite_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'standard'"):
        suite("standart")
