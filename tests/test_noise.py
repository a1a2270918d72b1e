"""The shared Brownian path: a function of the seed, Brownian in law, and good for strong errors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import mixture, rms, slopes

from scoresde import VP, sample, solvers
from scoresde.solvers import BrownianNoise, FreshNoise, Path, RowSolver, make_path

F64 = torch.float64
CPU = torch.device("cpu")
FINE = make_path(VP(), "lam", 1024, t_min=0.02, end="stop")


def brownian(seeds: object = range(4), knots: object = (-8.0, 8.0), **kwargs: int) -> BrownianNoise:
    return BrownianNoise(list(seeds), CPU, knots, **kwargs)  # type: ignore[call-overload, arg-type]


def like(n: int = 4, *event: int) -> torch.Tensor:
    return torch.empty(n, *(event or (3,)), dtype=F64)


@given(st.lists(st.floats(-8, 8), min_size=2, max_size=6), st.randoms(), st.sampled_from([2, 3, 64]))
def test_the_path_does_not_depend_on_what_is_asked_nor_on_its_order_nor_on_the_cache(
    lams: list[float], random: object, cache: int
) -> None:
    first, other = brownian(), brownian(cache=cache)
    wanted = {lam: first.value(lam, like()).clone() for lam in lams}
    random.shuffle(lams)  # type: ignore[attr-defined]
    for lam in lams:
        assert torch.equal(other.value(lam, like()), wanted[lam])


def test_a_sample_sees_its_own_path_in_any_batch() -> None:
    batch, alone = brownian([5, 6, 7]), brownian([6])
    for lam in (-7.0, 0.1, 3.0):
        assert torch.equal(batch.value(lam, like(3))[1:2], alone.value(lam, like(1)))
    assert not torch.equal(batch.value(1.0, like(3)), brownian([5, 6, 8]).value(1.0, like(3)))


def test_the_draws_of_a_solver_add_up() -> None:
    """Over any partition of an interval the increments, draws times the roots of the lengths, have the same sum."""
    noise, points = brownian(knots=FINE), FINE.points
    whole = noise(points[0], points[-1], like()) * math.sqrt(points[-1].lam - points[0].lam)
    for step in (1, 3, 128):
        visited = [*points[::step], points[-1]]
        total = sum(noise(u, v, like()) * math.sqrt(v.lam - u.lam) for u, v in itertools.pairwise(visited) if v.lam > u.lam)
        torch.testing.assert_close(total, whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("knots", [(-8.0, 8.0), (-8.0, -3.0, -1.0, 0.3, 8.0)])
def test_the_law_is_that_of_brownian_motion(knots: tuple[float, ...]) -> None:
    """Covariance min(s, t) from the first knot on, at knots and between them, within five Monte Carlo deviations."""
    n, lams = 20000, (-7.0, -3.0, -2.9, 0.3, 1.7, 8.0)
    noise = brownian([3], knots)
    w = torch.stack([noise.value(lam, like(1, n))[0] for lam in lams])
    times = torch.tensor(lams, dtype=F64) + 8
    exact = torch.minimum(times[:, None], times[None])
    deviation = ((exact**2 + times[:, None] * times[None]) / n).sqrt()
    assert float(((w @ w.T / n - exact).abs() / deviation).max()) < 5
    assert float((w.mean(1).abs() / (times / n).sqrt()).max()) < 5


def test_what_is_no_step_of_the_reverse_sde_takes_fresh_noise() -> None:
    u, v = FINE.points[10], FINE.points[20]
    for start, to in ((v, u), (u, u), (u._replace(log_alpha=-math.inf), v)):
        got, fresh = brownian()(start, to, like()), FreshNoise(range(4), CPU).normal(like())
        assert torch.equal(got, fresh)


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
    """The root mean square distance, on one Brownian path, to another solver's end with 8 times as many steps."""
    noise, model = brownian(range(128), FINE), mixture().model(VP())
    x = FreshNoise(range(128), CPU).normal(like(128, 2))

    def end(name: str, every: int) -> torch.Tensor:
        method = solvers.get(name)
        assert isinstance(method, RowSolver)
        rows = method.rows(Path(VP(), FINE.points[::every], "stop"))
        return solvers.fast(rows, model, x, noise)  # type: ignore[arg-type]

    if not _truth:
        _truth.append(end("sde-dpmpp-2m", 1))
    errors = [rms(end(solver, every) - _truth[0]) for every in (32, 8)]
    # From an error of h - h_truth: log(31 / 7) / log(4) = 1.07 is order 1. Those of weak order 2 come down to it from above.
    slope = slopes(errors, factor=4)[0]
    assert 0.85 < slope < 1.5 and errors[-1] < 0.03, (errors, slope)


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
        (lambda: brownian().value(9.0, like()), "give it more knots"),
        (lambda: brownian().value(0.0, like(3)), "expected one seed per sample"),
        (lambda: brownian()(solvers.general.point_at(1.0), solvers.general.point_at(0.5), like()), "has no lam"),
    ],
)
def test_bad_input(call: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
