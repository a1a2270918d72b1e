"""The shared Brownian path: a function of the seed, Brownian in law, and good for strong errors."""

from __future__ import annotations

import functools
import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import mixture, rms

import scoresde
from scoresde import VP, sample, solvers
from scoresde.solvers import BrownianNoise, FreshNoise, Path, RowSolver, make_path
from scoresde.solvers.methods import drift_diffusion
from scoresde.solvers.methods.er import power
from scoresde.solvers.noise.multiwavelets import cell_weights, split_matrix

F64 = torch.float64
CPU = torch.device("cpu")
FINE = make_path(VP(), "lam", 1024, t_min=0.02, end="stop")


ALL = (0.0, 1.0, -1.0, 0.5)


def brownian(seeds: object = range(4), knots: object = (-8.0, 8.0), **kwargs: object) -> BrownianNoise:
    return BrownianNoise(list(seeds), CPU, knots, **kwargs)  # type: ignore[call-overload, arg-type]


def like(n: int = 4, *event: int, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.empty(n, *(event or (3,)), dtype=dtype)


def integrals_of_exponentials(low: float, high: float) -> np.ndarray:
    """The covariance of the integrals with the kernels ``ALL``: that of e^{(k + l) s} from low to high."""
    rates = np.add.outer(ALL, ALL)
    safe = np.where(rates == 0, 1.0, rates)
    return np.where(rates == 0, high - low, np.exp(safe * low) * np.expm1(safe * (high - low)) / safe)


lams = st.floats(-8, 8).map(lambda lam: round(lam, 4))
kernels = st.sampled_from(ALL)
lengths = st.floats(1e-5, 2)


@given(st.lists(st.tuples(lams, lams, kernels), min_size=1, max_size=5), st.randoms())
def test_the_path_does_not_depend_on_what_is_asked_nor_on_its_order(asked: list[tuple[float, ...]], random: object) -> None:
    first, other = brownian(kernels=ALL), brownian(kernels=ALL)
    wanted = {(min(u, v), max(u, v), k) for u, v, k in asked if u != v}
    found = {spec: first.integral(*spec[:2], like(), spec[2]) for spec in sorted(wanted)}
    again = sorted(wanted)
    random.shuffle(again)  # type: ignore[attr-defined]
    for spec in again:
        assert torch.equal(other.integral(*spec[:2], like(), spec[2]), found[spec])


@pytest.mark.parametrize(("event", "dtype"), [((3,), F64), ((1,), torch.float32), ((3, 7, 11), torch.float32)])
def test_a_sample_sees_its_own_path_in_any_batch(event: tuple[int, ...], dtype: torch.dtype) -> None:
    batch, alone = brownian([5, 6, 7], kernels=ALL), brownian([6], kernels=ALL)
    for v in (-7.0, 0.1, 3.0):
        whole = batch.integral(-8, v, like(3, *event, dtype=dtype), 0.5)
        assert torch.equal(whole[1:2], alone.integral(-8, v, like(1, *event, dtype=dtype), 0.5))
    others = brownian([5, 8, 7], kernels=ALL).integral(-8, 3.0, like(3, *event, dtype=dtype), 0.5)
    assert torch.equal(whole[0], others[0]) and not torch.equal(whole[1], others[1])


@given(st.lists(lams, min_size=3, max_size=5, unique=True), kernels, st.sampled_from([(), (-2.0, -1.5, 0.0, 0.1, 4.0)]))
def test_the_integrals_over_the_parts_of_an_interval_add_up(
    at: list[float], kernel: float, inner: tuple[float, ...]
) -> None:
    noise = brownian(knots=(-8.0, *inner, 8.0), kernels=ALL)
    at.sort()
    total = sum(noise.integral(u, v, like(), kernel) for u, v in itertools.pairwise(at))
    size = math.exp(abs(kernel) * max(map(abs, at)))
    torch.testing.assert_close(total, noise.integral(at[0], at[-1], like(), kernel), rtol=1e-11, atol=1e-11 * size)


def test_the_draws_of_a_solver_add_up() -> None:
    """Over any partition of an interval the increments, draws times the roots of the lengths, have the same sum."""
    noise, points = brownian(knots=FINE), FINE.points
    whole = noise(points[0], points[-1], like()) * math.sqrt(points[-1].lam - points[0].lam)
    for step in (1, 3, 128):
        visited = [*points[::step], points[-1]]
        total = sum(noise(u, v, like()) * math.sqrt(v.lam - u.lam) for u, v in itertools.pairwise(visited) if v.lam > u.lam)
        torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-10)


@given(lengths, st.floats(0.01, 0.99))
def test_a_cell_and_its_parts_have_the_joint_law_of_their_integrals(length: float, share: float) -> None:
    """Given independent standard normal numbers this is all that the law rests on."""
    left, n = share * length, len(ALL)
    right = length - left
    matrix = np.array(split_matrix(ALL, left, right))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(2 * n), atol=1e-13)
    weights = np.array([cell_weights(ALL, k, length) for k in ALL])
    np.testing.assert_allclose(weights @ weights.T, integrals_of_exponentials(-length / 2, length / 2), rtol=1e-12)
    for k, whole in zip(ALL, weights, strict=True):
        ends = math.exp(-k * right / 2), math.exp(k * left / 2)  # from the middle of the cell to those of its parts
        parts = [e * w for e, of in zip(ends, (left, right), strict=True) for w in cell_weights(ALL, k, of)]
        # The integral over the whole is the sum over the parts: nothing of the fresh numbers is left in it.
        np.testing.assert_allclose(np.array(parts) @ matrix, [*np.zeros(n), *whole], atol=1e-13 * math.sqrt(length))


@pytest.mark.parametrize("knots", [(-8.0, 8.0), (-8.0, -3.0, -1.0, 0.3, 8.0)])
def test_the_law_is_that_of_the_integrals(knots: tuple[float, ...]) -> None:
    """Covariances over overlapping intervals, of all kernels, at knots and between them, within five deviations."""
    n, at = 20000, (-8.0, -3.0, -2.9, 0.3, 1.7)
    noise = brownian([3], knots, kernels=ALL)
    spans = list(itertools.combinations(at, 2))
    found = torch.stack([noise.integral(u, v, like(1, n), k)[0] for u, v in spans for k in ALL])
    exact = torch.zeros(len(found), len(found), dtype=F64)
    for (i, (a, b)), (j, (c, d)) in itertools.product(enumerate(spans), repeat=2):
        if max(a, c) < min(b, d):
            block = torch.from_numpy(integrals_of_exponentials(max(a, c), min(b, d)))
            exact[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = block
    variance = exact.diagonal()
    deviation = ((exact**2 + variance[:, None] * variance) / n).sqrt()
    assert float(((found @ found.T / n - exact).abs() / deviation).max()) < 5
    assert float((found.mean(1).abs() / (variance / n).sqrt()).max()) < 5


def test_a_kernel_that_is_not_named_is_replaced_by_its_projection() -> None:
    """With n kernels its relative error is of order n in the step; the draw is standard normal all the same."""
    for named in ((0.0,), (0.0, 1.0), (0.0, 1.0, -1.0)):
        lost = []
        for h in (0.4, 0.2):
            missing = 1 - sum(w**2 for w in cell_weights(named, 0.5, h)) / (2 * math.sinh(0.5 * h))
            lost.append(math.sqrt(missing))
        assert math.log2(lost[0] / lost[1]) == pytest.approx(len(named), abs=0.02)
    noise, (u, v) = brownian([1], FINE, kernels=(0.0,)), FINE.points[::1024]
    draw = noise(u, v, like(1, 20000), 1.0)
    assert abs(float(draw.var()) - 1) < 5 * math.sqrt(2 / 20000)


@pytest.mark.parametrize(("every", "cost"), [(1, 1.0), (2, 1.0), (8, 1.0), (64, 1.0), (3, 2.6)])
def test_coarse_steps_on_fine_knots_cost_no_more_than_fine_ones(
    every: int, cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draws a step: one where every 2nd, 4th, .. knot is visited, those between them elsewhere."""
    calls, normal = [], BrownianNoise._normal
    monkeypatch.setattr(BrownianNoise, "_normal", lambda self, key: calls.append(key) or normal(self, key))
    fine = make_path(VP(), "karras", 600, t_min=0.02, end="stop")
    noise, visited = brownian([1], fine), fine.points[::every]
    for u, v in itertools.pairwise(visited):
        noise(u, v, like(1))
    assert len(calls) <= cost * (len(visited) - 1) + 1  # and one that leads beyond the last of them
    assert len(set(calls)) == len(calls)


def test_what_is_no_step_of_the_reverse_sde_takes_fresh_noise() -> None:
    u, v = FINE.points[10], FINE.points[20]
    for start, to in ((v, u), (u, u), (u._replace(log_alpha=-math.inf), v)):
        got, fresh = brownian()(start, to, like()), FreshNoise(range(4), CPU).normal(like())
        assert torch.equal(got, fresh)


class Constant:
    """A model whose data prediction, or whose noise prediction, is the same everywhere."""

    def __init__(self, predicts: str) -> None:
        self.predicts = predicts

    def at(self, times: torch.Tensor, *, device: torch.device, dtype: torch.dtype) -> list[object]:
        return [lambda x, t=t: self(x, t) for t in times]

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        value = torch.linspace(-1, 1, x.shape[1], dtype=F64).expand_as(x)
        if self.predicts == "data":
            return value
        alpha, sigma = (f(t).reshape(-1, *[1] * (x.ndim - 1)) for f in (VP().alpha, VP().sigma))
        return (x - sigma * value) / alpha


def _exponential() -> dict[str, tuple[float, RowSolver]]:
    """The stochastic solvers whose noise is an exponential integral, with its kernel: from the table, and at other eta."""
    found = {}
    for name in solvers.SOLVERS:
        method = solvers.get(name)
        if isinstance(method, RowSolver) and method.stochastic:
            rows = [row for row in method.rows(Path(VP(), FINE.points[::128], "stop")) if getattr(row, "draw", None)]
            drawn = {row.kernel if row.draw[0].lam < row.draw[1].lam else 0.0 for row in rows}
            if len(drawn) == 1 and drawn < {1.0, -1.0}:
                found[name] = (*drawn, method)
    found.pop("ddpm")  # its published noise is that of the forward transition
    found.pop("auto-sde")  # which is ddpm at few steps
    for eta in (1.0, 0.5):
        for kind in ("1", "2s", "2m", "3m"):
            found[f"sde-dpmpp-{kind} eta={eta}"] = eta, solvers.sde_dpmpp(kind, eta, "exact")
        found[f"sa eta={eta}"] = eta, solvers.sa_solver(3, 3, math.sqrt(eta))
        found[f"er-sde-3 eta={eta}"] = eta, solvers.er_sde_solver(3, power(eta), "exact")
    found["ddim eta=1"] = 1.0, solvers.ddim(1.0)
    return found


EXPONENTIAL = _exponential()


def test_the_table_has_exponential_solvers_of_both_kinds() -> None:
    names = {"ncsn", "sde-dpmpp-1", "sde-dpmpp-2s", "sde-dpmpp-2m", "sde-dpmpp-3m", "sa", "sde-dpm-1", "sde-dpm-2"}
    assert names | {"seeds-1", "seeds-2", "seeds-3"} <= set(EXPONENTIAL)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_where_the_prediction_is_constant_every_step_size_ends_at_the_same_point(name: str) -> None:
    """Exponential integrators solve that SDE exactly: on one path all of them, on any path of steps, agree to rounding."""
    kernel, method = EXPONENTIAL[name]
    # Not solved step by step but all at once, from what the path itself says of the noise.
    noise = brownian(range(5), FINE, kernels=(kernel, 0.0))
    x = FreshNoise(range(5), CPU).normal(like(5))
    u, v = FINE.points[0], FINE.points[-1]
    constant = torch.linspace(-1, 1, 3, dtype=F64)
    integral = noise.integral(u.lam, v.lam, like(5), kernel)
    if kernel > 0:
        decay = math.exp(-kernel * (v.lam - u.lam))
        share = -math.expm1(-(1 + kernel) * (v.lam - u.lam))
        deviation = v.sigma * math.sqrt(2 * kernel) * math.exp(-kernel * v.lam)
        exact = v.sigma / u.sigma * decay * x + v.alpha * share * constant + deviation * integral
    else:
        exact = (
            v.alpha / u.alpha * x - 2 * v.sigma * math.expm1(v.lam - u.lam) * constant + math.sqrt(2) * v.alpha * integral
        )
    for every in (1024, 256, 300, 16):
        visited = (*FINE.points[:-1:every], v)
        rows = method.rows(Path(VP(), visited, "stop"))
        found = solvers.fast(rows, Constant("data" if kernel > 0 else "noise"), x, noise)  # type: ignore[arg-type]
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-10 * float(exact.abs().max()))


def test_several_paths_are_the_knots_of_one_brownian_path() -> None:
    """Their points, merged: the same numbers whatever the order in which the paths are given."""
    one, other = make_path(VP(), "lam", 8, end="stop"), make_path(VP(), "karras", 6, end="stop")
    both, again = brownian(knots=[one, other]), brownian(knots=[other, one])
    assert len(both.knots) == 9 + 7 - 2
    for u, v in (*one.moves, *other.moves):
        assert torch.equal(both(u, v, like(), 1.0), again(u, v, like(), 1.0))


DRIVERS = {
    "fast": "fast",
    "compiled": functools.partial(solvers.compiled, backend="eager"),
    "parallel": functools.partial(solvers.parallel, tolerance=0.0),
    "differentiable": "differentiable",
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_asks_for_the_same_integrals(driver: str) -> None:
    def run(chosen: object) -> torch.Tensor:
        path, noise = Path(VP(), FINE.points[::128], "stop"), brownian(knots=FINE)
        model = mixture().model(VP())
        return sample(  # type: ignore[call-overload, no-any-return]
            model, (4, 2), "sde-dpmpp-2s", path=path, noise=noise, driver=chosen, dtype=F64, progress=False
        ).x

    torch.testing.assert_close(run(DRIVERS[driver]), run("readable"), rtol=1e-10, atol=1e-10)


def test_rows_keep_their_kernel_in_json() -> None:
    rows = solvers.seeds(2).rows(Path(VP(), FINE.points[::256], "stop"))
    assert {row.kernel for row in rows if isinstance(row, solvers.Row)} == {-1.0}
    assert solvers.from_json(json.loads(json.dumps(solvers.to_json(rows)))) == rows


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "solver",
    [
        "euler-maruyama",
        "ddpm",
        "reverse-diffusion",
        "sde-dpmpp-1",
        "sde-dpmpp-2m",
        "sde-dpmpp-3m",
        "sde-dpm-2",
        "sde-heun",
        "sa",
    ],
)
def test_strong_order_one_on_a_shared_path(solver: str) -> None:
    """The mean distance, on one Brownian path, to another solver's end with 8 times as many steps, falls like the step.

    A mean over samples has a standard error, and so has the slope of two of them (the delta method). A tenth is for the
    terms of higher order; the bound stays below the half that would let strong order 1/2 pass. (Root mean squares would
    have standard errors three times as large: a few samples that end in the other mode make them up.)
    """
    n = 384
    noise, model = brownian(range(n), FINE), mixture().model(VP())
    x = FreshNoise(range(n), CPU).normal(like(n, 2))

    def end(name: str, every: int) -> torch.Tensor:
        method = solvers.get(name)
        assert isinstance(method, RowSolver)
        rows = method.rows(Path(VP(), FINE.points[::every], "stop"))
        return solvers.fast(rows, model, x, noise)  # type: ignore[arg-type]

    if not _truth:
        _truth.append(end("sde-dpmpp-2m", 1))
    coarse, fine = ((end(solver, every) - _truth[0]).norm(dim=1) for every in (32, 8))
    slope = math.log(coarse.mean() / fine.mean()) / math.log(4)
    deviation = float((coarse / coarse.mean() - fine / fine.mean()).std()) / math.log(4) / math.sqrt(n)
    first_order = math.log(31 / 7) / math.log(4)  # of an error of h - h_truth
    bound = 5 * deviation + 0.1
    assert abs(slope - first_order) < bound < 0.5, (slope, deviation)


_truth: list[torch.Tensor] = []


def test_fresh_noise_tells_nothing_of_strong_errors() -> None:
    """The law behind the test above: without the shared path the distance does not fall."""
    model, method = mixture().model(VP()), solvers.sde_dpmpp("2m")
    x = FreshNoise(range(64), CPU).normal(like(64, 2))
    ends = [
        solvers.fast(method.rows(make_path(VP(), "lam", n, t_min=0.02, end="stop")), model, x, FreshNoise(range(64), CPU))  # type: ignore[arg-type]
        for n in (64, 128)
    ]
    assert rms(ends[0] - ends[1]) > 0.2


def test_two_calls_of_the_front_door_share_one_path() -> None:
    model, noise = mixture().model(VP()), brownian(range(6), FINE)
    coarse, fine, again = (
        sample(model, (6, 2), "sde-dpmpp-2m", path=Path(VP(), FINE.points[::k], "stop"), noise=noise, progress=False)
        for k in (16, 8, 8)
    )
    assert fine.seeds == list(range(6)) and torch.equal(fine.x, again.x)
    assert rms(coarse.x - fine.x) < 0.1 * rms(fine.x)
    with pytest.raises(ValueError, match="got 6 seeds for 5 samples"):
        sample(model, (5, 2), "ddpm", noise=noise, progress=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: brownian(knots=(1.0,)), "expected at least two finite values of lam"),
        (lambda: brownian(knots=(0.0, math.inf)), "expected at least two finite values of lam"),
        (lambda: brownian().integral(0.0, 9.0, like()), "give it more knots"),
        (lambda: brownian().integral(0.0, 1.0, like(3)), "expected one seed per sample"),
        (lambda: brownian().integral(1.0, 1.0, like()), "expected the first below the second"),
        (lambda: brownian(resolution=0.1).integral(0.501, 0.502, like()), "below the resolution 0.1 of the Brownian path"),
        (lambda: brownian(resolution=0.0), "expected a positive length in lam"),
        (lambda: brownian(kernels=()), "expected distinct finite rates"),
        (lambda: brownian(kernels=(1.0, 1.0)), "expected distinct finite rates"),
        (lambda: brownian()(drift_diffusion.point_at(1.0), drift_diffusion.point_at(0.5), like()), "has no lam"),
    ],
)
def test_bad_input(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]


def test_without_knots_it_takes_those_of_the_first_path_and_stays_one_path() -> None:
    """Two solvers at two step sizes, one noise: the difference falls as it does where the knots are given."""
    model, x = scoresde.problems.Gaussian([0.5, -0.5], 0.3).model(VP()), FreshNoise(range(256), CPU).normal(like(256, 2))

    def ends(noise: BrownianNoise) -> list[torch.Tensor]:
        how: dict[str, Any] = {"noise": noise, "end": "stop", "progress": False}
        return [sample(model, x, "sde-dpmpp-2m", n, **how).x for n in (16, 32, 64)]

    noise = BrownianNoise(range(256), CPU)
    a, b, c = ends(noise)
    wanted = {p.lam for p in make_path(VP(), "lam", 16, end="stop").points}
    assert wanted <= set(noise.knots) and {-32.0, 32.0} <= set(noise.knots)
    assert torch.equal(ends(BrownianNoise(range(256), CPU, noise.knots))[0], a)
    first, second = float((a - b).square().mean().sqrt()), float((b - c).square().mean().sqrt())
    assert 1.5 < first / second < 4.5  # strong order one and more
    assert float((a - ends(BrownianNoise(range(256, 512), CPU))[0]).square().mean().sqrt()) > 5 * first
