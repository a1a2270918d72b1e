"""Times by the rules of papers: GITS by brute force, AYS by its bound in closed form and by samples, published tables."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from scoresde import DDPM, EDM, VE, VP, RectifiedFlow, ScoreModel, problems, sample
from scoresde.models import MLP
from scoresde.solvers import PATHS, make_path
from scoresde.solvers.spacings import PublishedLevels
from scoresde.tuning import ays, ays_costs, cheapest_chain, denoising_errors, gits, gits_costs

STABLE_DIFFUSION = DDPM(torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).sde()


def cheapest_by_hand(costs: Tensor, steps: int, coefficient: float) -> tuple[float, list[int]]:
    n = len(costs)
    found = []
    for inner in itertools.combinations(range(1, n - 1), steps - 1):
        chain = [0, *inner, n - 1]
        found.append((sum(coefficient**s * float(costs[i, j]) for s, (i, j) in enumerate(itertools.pairwise(chain))), chain))
    return min(found)


# Dynamic programming --------------------------------------------------------------------------------------------------


@given(st.integers(2, 12), st.integers(0, 10_000), st.floats(0.5, 1.5), st.booleans(), st.data())
def test_the_cheapest_chain_is_that_of_brute_force(
    n: int, seed: int, coefficient: float, signed: bool, data: st.DataObject
) -> None:
    costs = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5 * signed
    steps = data.draw(st.integers(1, n - 1))
    least, chain = cheapest_by_hand(costs, steps, coefficient)
    assert cheapest_chain(costs, steps, coefficient) == chain, least


@pytest.mark.parametrize(
    "wrong", [(torch.zeros(3, 2), 1), (torch.zeros(3, 3), 0), (torch.zeros(3, 3), 3), (torch.zeros(3), 1)]
)
def test_impossible_chains_are_refused(wrong: tuple[Tensor, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        cheapest_chain(*wrong)


# GITS -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["deviation", "l2", "l1"])
@pytest.mark.parametrize("sde", [VE(), VP(), EDM()], ids=lambda sde: type(sde).__name__)
def test_gits_costs_are_those_of_euler_steps_written_out(cost: str, sde: VE) -> None:
    model, n = problems.ring().model(sde), 7
    start = float(sde.sigma(sde.span[1])) * torch.randn(
        5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    costs, times = gits_costs(model, start, grid=n, cost=cost)
    path = make_path(sde, "karras", n)
    assert times == [p.t for p in path.points[:-1]]
    states = [start]
    sample(model, start, "ipndm", path=path, progress=False, callback=lambda state: states.append(state.x))
    scaled = [x / p.alpha for x, p in zip(states, path.points, strict=False)][:n]

    def off_the_line(x: Tensor, s: int) -> float:  # by Pythagoras
        to, along = scaled[-1][s] - x, scaled[-1][s] - scaled[0][s]
        return math.sqrt(max(float(to @ to) - float(to @ along) ** 2 / float(along @ along), 0.0))

    for i, j in itertools.combinations(range(n), 2):
        rho = [p.sigma / p.alpha for p in path.points[:-1]]
        reached = scaled[i] + (rho[j] - rho[i]) * model.eps(states[i], times[i])
        each = []
        for s in range(len(start)):
            gap = reached[s] - scaled[j][s]
            distances = {"l2": gap.square().sum().sqrt(), "l1": gap.abs().sum()}
            each.append(
                float(distances[cost])
                if cost != "deviation"
                else off_the_line(reached[s], s) - off_the_line(scaled[j][s], s)
            )
        assert float(costs[i, j]) == pytest.approx(sum(each) / len(each), rel=1e-5, abs=1e-6)


def test_gits_chooses_what_brute_force_does_and_its_times_are_a_path() -> None:
    model = problems.ring().model(VP())
    costs, times = gits_costs(model, (16, 2), grid=12)
    for evaluations in (2, 5, 12):
        _, chain = cheapest_by_hand(costs, evaluations - 1, 1.15)
        found = gits(model, (16, 2), evaluations, grid=12)
        assert found == [*(times[i] for i in chain), 0.0]
        assert sample(model, (3, 2), "dpmpp-2m", path=found, progress=False).evaluations == evaluations
    with pytest.raises(ValueError, match="no more evaluations"):
        gits(model, (16, 2), 13, grid=12)
    with pytest.raises(ValueError, match="'deviation', 'l2' or 'l1'"):
        gits(model, (16, 2), 5, cost="lpips")
    with pytest.raises(ValueError, match="alpha = 0"):
        gits(problems.ring().model(RectifiedFlow()), (16, 2), 5)


# AYS ------------------------------------------------------------------------------------------------------------------


def test_the_bound_of_a_gaussian_is_its_closed_form() -> None:
    # For N(0, c^2) with c = 1, mse = 1 / (1 + e^{2 lam}), and the integral of e^{2 lam} mse is log(1 + e^{2 lam}) / 2.
    lam = torch.linspace(-4, 3, 2000, dtype=torch.float64)
    errors = 1 / (1 + (2 * lam).exp())
    u, v = lam[:, None], lam[None]
    exact = (
        errors[:, None] * ((2 * v).exp() - (2 * u).exp()) / 2 - (torch.log1p((2 * v).exp()) - torch.log1p((2 * u).exp())) / 2
    )
    torch.testing.assert_close(ays_costs(lam, errors).triu(1), exact.triu(1), rtol=0, atol=2e-5)


def test_the_bound_is_that_of_pairs_of_noised_data() -> None:
    sde, problem = VP(), problems.ring()
    model, g = problem.model(sde), torch.Generator().manual_seed(0)
    u, v = 0.0, 1.0
    lam = torch.linspace(u, v, 60, dtype=torch.float64)
    by_curve = float(ays_costs(lam, denoising_errors(model, sde.time(lam), n=20_000))[0, -1])
    data = problem.sample(20_000, g, torch.float64)
    middle = (lam[1:] + lam[:-1]) / 2
    pairs = 0.0
    for at in middle[::3]:  # the same integral from pairs (x_lam, x_u) of the forward process
        t, t_u = float(sde.time(at)), float(sde.time(torch.tensor(u).double()))
        x = sde.perturb(data, t, torch.randn(data.shape, generator=g, dtype=torch.float64))
        a = float(sde.alpha(t_u) / sde.alpha(t))
        spread = math.sqrt(float(sde.sigma(t_u)) ** 2 - (a * float(sde.sigma(t))) ** 2)
        x_u = a * x + spread * torch.randn(data.shape, generator=g, dtype=torch.float64)
        gap = (model.x0(x, t) - model.x0(x_u, t_u)).square().sum(1).mean()
        pairs += 3 * float((2 * at).exp() * gap) * float(lam[1] - lam[0])
    assert by_curve == pytest.approx(pairs * (v - u) / (3 * len(middle[::3]) * float(lam[1] - lam[0])), rel=0.03)


def test_ays_finds_the_least_bound_and_its_times_are_a_path() -> None:
    problem, sde = problems.Gaussian([0.0, 0.0], 1.0), VP()
    model = problem.model(sde)
    found = ays(model, 3, grid=40)
    lam = torch.linspace(float(sde.lam(1.0)), float(sde.lam(sde.span[0])), 40, dtype=torch.float64)
    costs = ays_costs(lam, denoising_errors(model, sde.time(lam)))
    _, chain = cheapest_by_hand(costs, 3, 1.0)
    expected = [*(float(t) for t in sde.time(lam[chain[:-1]])), 0.0]
    assert found == pytest.approx(expected, abs=1e-9) and found[0] == 1.0
    assert sample(model, (3, 2), "ddim", path=found, progress=False).evaluations == 3
    for wrong, said in (({"evaluations": 40}, "a grid of more times"), ({"evaluations": 0}, "at least 1")):
        with pytest.raises(ValueError, match=said):
            ays(model, grid=40, **wrong)
    with pytest.raises(ValueError, match=r"expected data="):
        ays(ScoreModel(MLP(2, hidden=(8,)), VP()), 3)
    assert len(ays(ScoreModel(MLP(2, hidden=(8,)), VP()), 3, grid=10, data=torch.zeros(4, 2))) == 4
    assert len(ays(problems.ring().model(RectifiedFlow()), 3, grid=20)) == 4


# Published tables -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "published"),
    [  # as in diffusers, to the digits printed there
        ("ays-sd15", [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]),
        ("ays-sdxl", [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]),
    ],
)
def test_published_paths_are_the_published_numbers(path: str, published: list[float]) -> None:
    made = make_path(STABLE_DIFFUSION, path, 10)
    levels = [p.sigma / p.alpha for p in made.points]
    assert levels == pytest.approx(published, rel=1.5e-2)  # diffusers rounds to whole steps of the chain
    assert made.times[0] == STABLE_DIFFUSION.span[1] and made.ends_clean
    spacing = PATHS[path]
    assert isinstance(spacing, PublishedLevels)
    assert levels[1:-1] == pytest.approx(spacing.levels[1:-1], rel=1e-9)
    model = problems.ring().model(STABLE_DIFFUSION)
    assert sample(model, (2, 2), "dpmpp-2m", 10, path, progress=False).evaluations == 10


@pytest.mark.parametrize("n", [1, 2, 5, 20, 37])
def test_other_numbers_of_steps_interpolate_the_logarithms(n: int) -> None:
    import numpy as np

    spacing = PATHS["ays-sdxl"]
    assert isinstance(spacing, PublishedLevels)
    levels = np.array(spacing.levels)
    expected = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, 11), np.log(levels)))[:-1]
    made = [p.sigma / p.alpha for p in make_path(STABLE_DIFFUSION, "ays-sdxl", n).points[:-1]]
    assert made[1:] == pytest.approx(expected[1:], rel=1e-9) and len(made) == n
    svd = make_path(VE(sigma_max=700.0, sigma_min=0.002), "ays-svd", n)
    stops = make_path(STABLE_DIFFUSION, "ays-sdxl", n, end="stop")
    assert [p.sigma / p.alpha for p in stops.points[:-1]] == made and stops.times[-1] == STABLE_DIFFUSION.span[0]
    assert len(svd) == n and svd.points[0].sigma == pytest.approx(700.0)


def test_an_sde_of_another_span_is_refused() -> None:
    for sde, path in ((EDM(sigma_max=50.0), "ays-svd"), (EDM(sigma_max=5.0), "ays-sd15"), (VE(sigma_min=0.5), "ays-sdxl")):
        with pytest.raises(ValueError, match="leaves the span"):
            make_path(sde, path, 10)
    for levels in ((1.0,), (1.0, 2.0), (1.0, 0.0)):
        with pytest.raises(ValueError, match="positive and falling"):
            PublishedLevels(levels)
