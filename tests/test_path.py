"""Paths: where they start, where they end, and what they refuse."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES

from scoresde import DDPM, EDM, VE, VP, RectifiedFlow
from scoresde.objectives import TIMES, LogNormalTimes, ShiftedTimes
from scoresde.solvers import PATHS, ChainSpacing, Path, Shifted, flux_shift, make_path, resolution_shift

F64 = torch.float64


OF_CHAINS = ("leading", "trailing", "linspace")


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("path", [path for path in PATHS if path not in OF_CHAINS and not path.startswith("ays")])
@given(steps=st.integers(1, 60), end=st.sampled_from(["denoise", "flow", "stop"]))
def test_paths_run_from_the_prior_to_the_data(name: str, path: str, steps: int, end: str) -> None:
    sde = SDES[name]
    made = make_path(sde, path, steps, end=end)
    assert len(made) == steps and len(made.points) == steps + 1
    assert made.times[0] == sde.span[1]
    assert made.ends_clean == (end != "stop")
    if end == "stop":
        assert made.times[-1] == sde.span[0]
    lams = [p.lam for p in made.points]
    assert all(a < b for a, b in itertools.pairwise(lams))


@pytest.mark.parametrize("path", OF_CHAINS)
@given(total=st.integers(2, 1200), share=st.floats(0, 1), end=st.sampled_from(["denoise", "flow", "stop"]))
def test_the_spacings_of_chains_are_those_of_diffusers(path: str, total: int, share: float, end: str) -> None:
    """Their formulas for ``timesteps``, which count from 0; NumPy's rounding and theirs is to even."""
    n = 1 + int(share * (total - 1))
    chain = DDPM.linear(total, 1e-4, 0.02)
    wanted = {
        "leading": (np.arange(0, n) * (total // n)).round()[::-1],
        "trailing": np.round(np.arange(total, 0, -total / n))[:n] - 1,  # arange may round one too many in
        "linspace": np.linspace(0, total - 1, n).round()[::-1],
    }[path]
    if end == "stop" and n == 1:
        return  # a path has two points
    made = make_path(chain.sde(), path, n - (end == "stop"), end=end)
    times = made.times if end == "stop" else made.times[:-1]
    assert [float(chain.index(t)) for t in times] == wanted.tolist()
    assert made.ends_clean == (end != "stop") and made.end == end


def test_the_spacings_of_chains_between_two_times_and_with_an_offset() -> None:
    sde = DDPM().sde()
    steps = lambda spacing, n, **ends: [round(1000 * t) for t in make_path(sde, spacing, n, **ends).times[:-1]]  # noqa: E731
    assert steps("trailing", 4, t_max=0.4) == [400, 300, 200, 100]
    assert steps("linspace", 3, t_max=0.5, t_min=0.1) == [500, 300, 100]
    assert steps("leading", 3, t_max=0.6, t_min=0.301) == [501, 401, 301]
    assert steps(ChainSpacing("leading", offset=1), 4) == [752, 502, 252, 2]  # as in Stable Diffusion
    for call, sentence in [
        (lambda: make_path(VP(), "leading", 5), "which has no steps; expected the SDE of a chain"),
        (lambda: make_path(DDPM.linear(10).sde(), "trailing", 11), "expected no more than these"),
        (lambda: steps(ChainSpacing("trailing", 1), 4), "begin at number 1001 of 1000|is 1001 of 1000"),
        (lambda: ChainSpacing("middle"), "expected 'leading', 'trailing' or 'linspace'"),
        (lambda: ChainSpacing("leading", -1), "expected a whole number of at least 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_spacings_are_what_their_names_say() -> None:
    sde = VP()
    t = torch.tensor(make_path(sde, "t", 10, end="stop").times, dtype=F64)
    assert t.diff().std() < 1e-12
    root = torch.tensor(make_path(sde, "quadratic", 10, end="stop").times, dtype=F64).sqrt()
    assert root.diff().std() < 1e-12
    lam = torch.tensor([p.lam for p in make_path(sde, "lam", 10, end="stop").points], dtype=F64)
    assert lam.diff().std() < 1e-12
    for each in SDES.values():
        inner = make_path(each, "karras", 12, end="stop", t_max=0.9 * each.span[1]).points
        level = torch.tensor([math.exp(-p.lam / 7) for p in inner], dtype=F64)
        assert level.diff().std() < 1e-9 * level.max(), "equidistant in (sigma / alpha)^(1/7) on every SDE"
    # Karras et al., 2022, equation (5), on their own SDE
    got = [p.sigma for p in make_path(EDM(), "karras", 18).points]
    i = torch.arange(18, dtype=F64)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert got == pytest.approx([*wanted.tolist(), 0.0], rel=1e-10)


def test_points_carry_the_marginals_of_their_times() -> None:
    for sde in SDES.values():
        for p in make_path(sde, "t", 5).points[1:-1]:
            assert p.alpha == pytest.approx(sde.alpha(p.t).item()) and p.sigma == pytest.approx(sde.sigma(p.t).item())
            assert p.diffusion_squared == pytest.approx(sde.diffusion_squared(p.t).item())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: make_path(VP(), "lam", 0), "got steps=0; expected a whole number of at least 1"),
        (lambda: make_path(VP(), "lam", 2.5), "expected a whole number"),  # type: ignore[arg-type]
        (lambda: make_path(VP(), "karas"), "did you mean 'karras'"),
        (lambda: make_path(VP(), "lam", 5, t_min=0.0), "where sigma = 0 and lam is infinite"),
        (lambda: make_path(VP(), "t", 5, t_min=0.5, t_max=0.2), "expected 0 <= t_min < t_max"),
        (lambda: make_path(VP(), "t", 5, t_max=1.5), "t_max <= 1.0 on VP"),
        (lambda: Path.from_times(VP(), [0.0, 1.0]), "not its noisiest point"),
        (lambda: Path.from_times(VP(), [0.5]), "expected at least two"),
        (lambda: Path.from_times(VP(), [1.0, 1.0]), "equal or nearly so, t=1.0 and t=1.0"),
        (lambda: Path.from_times(VP(), [1.0, 0.0, 0.5]), "sigma = 0 before the end"),
        (lambda: Path.from_times(VP(), [1.2, 0.5]), "VP is defined for 0 <= t <= 1"),
        (lambda: Path.from_times(VP(), [math.nan, 0.5]), "expected a vector of finite times"),
    ],
)
def test_bad_input(build: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build()


def test_a_time_of_zero_at_the_end_is_the_data() -> None:
    for sde in (VP(), VE(), EDM(), RectifiedFlow()):
        path = Path.from_times(sde, [sde.span[1], 0.0])
        assert path.ends_clean and path.points[-1].alpha == 1


# The shift for resolutions -------------------------------------------------------------------------------------------

factors = st.floats(0.2, 8.0)


@pytest.mark.parametrize("name", SDES)
@given(factor=factors, steps=st.integers(2, 40))
def test_a_shift_translates_lam_between_fixed_ends(name: str, factor: float, steps: int) -> None:
    """Where the SDE goes on beyond its span by the shift, the times before it are those of the spacing itself."""
    sde = SDES[name]
    start, stop = 0.7 * sde.span[1], 0.3 * sde.span[1]
    times = Shifted(factor)(sde, steps, start, stop)
    assert float(times[0]) == pytest.approx(start, rel=1e-9) or factor < 1
    before = sde.time(sde.lam(times) + math.log(factor))
    if float(before.min()) > 0 and float(before.max()) < sde.span[1]:  # else it was cut at an end of the SDE
        torch.testing.assert_close(before, torch.linspace(float(before[0]), float(before[-1]), steps, dtype=F64))
        assert times[[0, -1]].tolist() == pytest.approx([start, stop], rel=1e-9)
    assert (times.diff() < 0).all()


@given(factor=factors, n=st.integers(1, 60))
def test_the_shift_of_rectified_flow_is_the_published_one(factor: float, n: int) -> None:
    s = 1 - torch.arange(n, dtype=F64) / n  # from which the samplers of Flux and Stable Diffusion 3 start
    published = factor * s / (1 + (factor - 1) * s)
    path = make_path(RectifiedFlow(t_min=1e-9), Shifted(factor), n, t_min=float(published[-1]) if n > 1 else 0.5)
    torch.testing.assert_close(torch.tensor(path.times[:-1], dtype=F64), published, rtol=1e-9, atol=1e-12)
    assert path.ends_clean


@given(one=factors, other=factors)
def test_shifts_multiply_and_one_changes_nothing(one: float, other: float) -> None:
    ends = (RectifiedFlow(), 9, 1.0, 0.01)
    torch.testing.assert_close(Shifted(one, Shifted(other))(*ends), Shifted(one * other)(*ends))
    torch.testing.assert_close(Shifted(1.0)(*ends), PATHS["t"](*ends))
    even = (VP(), 9, 0.8, 0.2)
    torch.testing.assert_close(Shifted(one, PATHS["lam"])(*even).log(), PATHS["lam"](*even).log(), rtol=1e-6, atol=1e-6)


@given(factor=factors, u=st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=5))
def test_shifted_times_are_logit_normal_about_the_logarithm_of_the_shift(factor: float, u: list[float]) -> None:
    quantiles, sde = torch.tensor(u, dtype=F64), RectifiedFlow(t_min=1e-9)
    t, weight = ShiftedTimes(factor).at(quantiles, sde)
    torch.testing.assert_close(t, LogNormalTimes(math.log(factor), 1.0).at(quantiles, sde)[0])
    assert torch.equal(weight, torch.ones_like(t))
    uniform = ShiftedTimes(factor, "uniform").at(quantiles, sde)[0]
    s = quantiles * (1 - 1e-9) + 1e-9
    torch.testing.assert_close(uniform, factor * s / (1 + (factor - 1) * s))
    assert TIMES["shifted"] == ShiftedTimes(3.0, LogNormalTimes(0.0, 1.0))


def test_the_shifts_of_the_papers() -> None:
    assert resolution_shift(1024**2, 512**2) == 2.0
    assert flux_shift(4096) == pytest.approx(math.exp(1.15)) and flux_shift(256) == pytest.approx(math.exp(0.5))
    assert flux_shift(2176) == pytest.approx(math.sqrt(flux_shift(4096) * flux_shift(256)))  # linear in between


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Shifted(0.0), "factor=0.0; expected a positive number"),
        (lambda: Shifted(math.inf), "factor=inf; expected a positive number"),
        (lambda: Shifted(2.0, ChainSpacing("trailing")), "to be shifted; expected a spacing of any SDE"),
        (lambda: Shifted(2.0, "t"), "spacing='t' to be shifted; expected a spacing of any SDE"),  # type: ignore[arg-type]
        (lambda: ShiftedTimes(-1.0), "factor=-1.0; expected a positive number"),
        (lambda: ShiftedTimes(2.0, "unifrom"), "did you mean 'uniform'"),
        (lambda: resolution_shift(0, 4), "pixels=0, base=4; expected two positive numbers"),
        (lambda: flux_shift(0), "tokens=0, .* expected a positive number of tokens"),
    ],
)
def test_shifts_that_are_none(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
