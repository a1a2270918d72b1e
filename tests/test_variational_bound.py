"""The learned variance in sampling, and the objectives that teach it: closed forms on Gaussian data."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BasisNoise, LinearModel, generator
from torch import Tensor

from scoresde import DDPM, NCSN, VP, RectifiedFlow, ScoreModel, discretize, sample, solvers
from scoresde.objectives import DSM, AdaptiveTimes, Hybrid, VariationalBound, noised
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sde.chain import Chain
from scoresde.solvers import FreshNoise, Path, Point, make_path
from scoresde.solvers.updates import LearnedNoise, from_json, to_json

D = torch.float64
CHAINS: dict[str, Callable[[int], Chain]] = {
    "DDPM": lambda n: DDPM.linear(n, 2 / n / 10, min(20 / n, 0.9)),
    "NCSN": lambda n: NCSN.geometric(n, 0.05, 20.0),
    "flow": lambda n: discretize(RectifiedFlow(t_max=0.97), n),
}
each_chain = pytest.mark.parametrize("name", CHAINS)


def optimal(u: Point, v: Point, std: Tensor) -> Tensor:
    """The fraction of the best variance of the step u -> v on data of deviation ``std``, in closed form.

    x_v given x_u is Gaussian; its variance is that of v given u and the data, and what the data still vary.
    """
    lower = v.sigma**2 * -math.expm1(-2 * (v.lam - u.lam))
    of_data = v.alpha * -math.expm1(-2 * (v.lam - u.lam))
    left = std**2 * u.sigma**2 / (u.alpha**2 * std**2 + u.sigma**2)
    return (torch.log(lower + of_data**2 * left) - math.log(lower)) / (2 * math.log(u.sigma / v.sigma))


class Learned(LinearModel):
    """The exact model of N(mean, std^2) with the best variance for the steps of a path."""

    def __init__(self, path: Path, mean: float, std: float) -> None:
        super().__init__(path.sde, mean, std)
        self.next = dict(path.moves)

    def at_with_variance(self, times: Tensor, *, device: object, dtype: object) -> list[Callable[[Tensor], object]]:
        moves = {u.t: (u, v) for u, v in self.next.items()}

        def bind(t: float) -> Callable[[Tensor], object]:
            u, v = moves[t]
            fraction = optimal(u, v, torch.tensor(self.std, dtype=D)) if v.sigma > 0 else torch.zeros((), dtype=D)
            return lambda x: (self(x, torch.tensor(t, dtype=D)), fraction.expand_as(x))

        return [bind(t) for t in times.tolist()]


# Sampling ------------------------------------------------------------------------------------------------------------


@each_chain
@given(mean=st.floats(-2, 2), std=st.floats(0.05, 3.0), n=st.integers(2, 30), stride=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_the_best_variance_gives_exact_moments_in_any_number_of_steps(
    name: str, mean: float, std: float, n: int, stride: int
) -> None:
    chain = CHAINS[name](n)
    steps = sorted({n, *range(1, n, stride)}, reverse=True)
    path = Path.from_times(chain.sde(), [k / n for k in steps])
    start, end = path.points[0], path.points[-1]
    x = torch.zeros(1, 2 + len(path.points), dtype=D)
    x[0, 0], x[0, 1] = start.alpha * mean, math.sqrt(start.alpha**2 * std**2 + start.sigma**2)
    rows = solvers.ancestral("learned").rows(path)
    assert all(isinstance(row, LearnedNoise) for row in rows)
    x = solvers.fast(rows, Learned(path, mean, std), x, BasisNoise())
    assert float(x[0, 0]) == pytest.approx(end.alpha * mean, rel=1e-9, abs=1e-9)
    assert float(x[0, 1:].square().sum()) == pytest.approx(end.alpha**2 * std**2 + end.sigma**2, rel=1e-9)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("driver", ["readable", "fast", "differentiable", "compiled"])
def test_a_constant_fraction_is_that_fixed_variance(fraction: float, driver: str) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([0.3 * x, torch.full_like(x, 2 * fraction - 1)], 1)

    both = ScoreModel(net, DDPM.linear(50, 1e-3, 0.3), "v", learned_variance=True)
    one = ScoreModel(lambda x, t: 0.3 * x, DDPM.linear(50, 1e-3, 0.3), "v")
    loop = functools.partial(solvers.compiled, backend="eager") if driver == "compiled" else driver
    got, wanted = (
        sample(model, (3, 2, 4), solvers.ddpm(v), 7, "t", driver=loop, progress=False, dtype=D)  # type: ignore[arg-type]
        for model, v in ((both, "learned"), (one, fraction))
    )
    torch.testing.assert_close(got.x, wanted.x, rtol=1e-10, atol=1e-10)
    assert got.evaluations == wanted.evaluations == 7


def test_every_number_has_its_own_variance_and_transforms_still_apply() -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.cat([x, torch.tensor([[-1.0, 1.0]], dtype=x.dtype).expand_as(x)], 1)

    model = ScoreModel(net, DDPM.linear(20, 1e-3, 0.3), "x0", learned_variance=True)
    hooks = {"transform": lambda m, t: 0 * m, "seed": 1, "progress": False, "dtype": D, "end": "stop"}
    got, low, high = (sample(model, (5, 2), solvers.ddpm(v), 4, **hooks).x for v in ("learned", "lower", "upper"))  # type: ignore[arg-type]
    torch.testing.assert_close(got, torch.stack([low[:, 0], high[:, 1]], 1), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(low, high)


def test_other_solvers_take_the_prediction_alone() -> None:
    both = ScoreModel(lambda x, t: torch.cat([0.3 * x, x], 1), VP(), "v", learned_variance=True)
    one = ScoreModel(lambda x, t: 0.3 * x, VP(), "v")
    x = torch.randn(3, 2, generator=generator(), dtype=D)
    for name in ("dpmpp-2m", "ddpm", "pc", "dopri5"):
        assert torch.equal(sample(both, x, name, 5, progress=False).x, sample(one, x, name, 5, progress=False).x)
    for quantity in ("x0", "eps", "score", "v", "forward"):
        assert torch.equal(getattr(both, quantity)(x, 0.4), getattr(one, quantity)(x, 0.4))
    output, fraction = both.outputs(x, 0.4)
    assert torch.equal(output, 0.3 * x) and torch.equal(fraction, 0.5 * (x + 1))
    assert "learned_variance=True" in repr(both)


def test_rows_with_learned_noise_survive_json_and_callbacks_count_their_steps() -> None:
    rows = solvers.ancestral("learned").rows(make_path(VP(), "t", 4))
    assert from_json(to_json(rows)) == rows
    model = ScoreModel(lambda x, t: torch.cat([x, 0 * x], 1), VP(), learned_variance=True)
    steps: list[int] = []
    sample(model, (2, 2), solvers.ddpm("learned"), 4, callback=lambda s: steps.append(s.step), progress=False)
    assert steps == [1, 2, 3, 4]


def test_who_cannot_have_a_learned_variance_says_so() -> None:
    plain = ScoreModel(lambda x, t: x, VP())
    path = make_path(VP(), "t", 3, end="stop")
    with pytest.raises(ValueError, match="got a model without a learned variance; expected ScoreModel"):
        sample(plain, (2, 2), solvers.ddpm("learned"), 3, progress=False)
    with pytest.raises(ValueError, match="got a model without a learned variance"):
        plain.outputs(torch.ones(2, 2), 0.5)
    with pytest.raises(ValueError, match=r"for a model \(LinearModel\) that predicts none"):
        solvers.fast(solvers.ddpm("learned").rows(path), LinearModel(VP(), 0.0, 1.0), torch.ones(1, 4), BasisNoise())  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"expected \(4, 4\); a learned variance needs twice the channels"):
        ScoreModel(lambda x, t: x, VP(), learned_variance=True).score(torch.ones(4, 2), 0.5)
    with pytest.raises(ValueError, match="twice the channels"):
        sample(ScoreModel(lambda x, t: x, VP(), learned_variance=True), (2, 2), "ddim", 3, progress=False)
    both = ScoreModel(lambda x, t: torch.cat([x, x], 1), VP(), learned_variance=True)
    with pytest.raises(ValueError, match="learned noise or with a measurement, so that driver 'parallel' cannot"):
        sample(both, (2, 2), solvers.ddpm("learned"), 3, driver="parallel", progress=False)
    times = torch.tensor([0.9, 0.5, 0.1], dtype=D, requires_grad=True)
    with pytest.raises(ValueError, match="gradients for a solver with a learned variance"):
        sample(both, torch.ones(2, 2, dtype=D), solvers.ddpm("learned"), path=times, driver="differentiable", progress=False)
    with pytest.raises(ValueError, match="a learned variance, which depends on the model"):
        solvers_moments(path)
    with pytest.raises(ValueError, match="expected 'lower', 'upper', 'learned' or a number"):
        solvers.ancestral("larned")


def solvers_moments(path: Path) -> object:
    from scoresde.analysis import moments

    return moments(solvers.ddpm("learned"), path, [0.0], 1.0)


def test_gradients_reach_both_outputs_through_sampling() -> None:
    weights = torch.tensor([0.3, 0.2], dtype=D, requires_grad=True)

    def end(w: Tensor) -> Tensor:
        model = ScoreModel(lambda x, t: torch.cat([w[0] * x, torch.tanh(w[1] * x)], 1), VP(), learned_variance=True)
        rows = solvers.ddpm("learned").rows(make_path(VP(), "t", 3))  # type: ignore[union-attr]
        x = torch.randn(2, 2, generator=generator(), dtype=D)
        *_, last = solvers.differentiable(rows, model, x, FreshNoise(range(2), x.device))  # type: ignore[arg-type]
        return last.x

    assert torch.autograd.gradcheck(end, (weights,))


# The bound -----------------------------------------------------------------------------------------------------------


def quadrature(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal distribution."""
    z, w = np.polynomial.hermite_e.hermegauss(n)
    return torch.tensor(z, dtype=D), torch.tensor(w / math.sqrt(2 * math.pi), dtype=D)


def gaussian_model(chain: Chain, mean: float, std: float, shift: float = 0.0) -> ScoreModel:
    """The exact model of N(mean, std^2) on a chain with its best variance, ``shift`` added to the fraction."""
    sde, n = chain.sde(), len(chain)
    times = [k / n for k in range(n, 0, -1)]
    points = {round(p.t * n): p for p in Path.from_times(sde, times).points}
    table = [optimal(points[k], points[k - 1], torch.tensor(std, dtype=D)) for k in range(2, n + 1)]
    # The last step is decoded with what the data vary given x_1, between the bounds that the second step has below.
    s1, a1 = chain.sigma[0] ** 2, chain.alpha[0] ** 2
    low, up = chain.posterior_variance("lower")[1].log(), chain.variance[0].log()
    first = ((std**2 * s1 / (a1 * std**2 + s1)).log() - low) / (up - low)
    fractions = torch.stack([first, *table]) + shift
    exact = Gaussian([mean], std**2).model(chain)

    def net(x: Tensor, index: Tensor) -> Tensor:
        t = (index + 1) / n
        f = fractions[index.round().long()][:, None].expand_as(x)
        return torch.cat([exact.v(x, t), 2 * f - 1], 1)

    return ScoreModel(net, chain, "v", learned_variance=True)


@each_chain
@given(mean=st.floats(-1, 1), std=st.floats(0.3, 2.0), n=st.integers(2, 12))
@settings(max_examples=10, deadline=None)
def test_the_exact_model_attains_the_bound_in_closed_form(name: str, mean: float, std: float, n: int) -> None:
    """It is the entropy of the data and what the prior is off: every other divergence is zero."""
    chain = CHAINS[name](n)
    model, bound = gaussian_model(chain, mean, std), VariationalBound("learned")
    z, w = quadrature(4)  # the terms are quadratic
    x0, eps = (mean + std * z).repeat_interleave(4)[:, None], z.repeat(4)[:, None]
    weights = w.repeat_interleave(4) * w.repeat(4)
    terms = [
        float((weights * bound.at(model, x0, torch.full((16,), k / n, dtype=D), eps)).sum()) / n for k in range(1, n + 1)
    ]
    a2, s2 = float(chain.alpha[-1] ** 2), float(chain.sigma[-1] ** 2)
    prior_given_data = 0.5 * a2 * (mean**2 + std**2) / s2
    v = a2 * std**2 + s2
    prior = 0.5 * ((v + a2 * mean**2) / s2 - 1 - math.log(v / s2))
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    assert sum(terms) + prior_given_data / math.log(2) == pytest.approx((entropy + prior) / math.log(2), rel=1e-7, abs=1e-9)
    one = bound.total(model, x0[:2], generator(1))
    assert one.shape == (2,)


@each_chain
def test_the_total_is_the_sum_of_its_terms_at_the_noise_it_draws(name: str) -> None:
    chain, n = CHAINS[name](5), 5
    model, bound = gaussian_model(chain, 0.2, 0.7), VariationalBound()
    x0, draws = torch.tensor([[0.4], [-1.0], [0.1]], dtype=D), generator(3)
    wanted = 0.5 * (chain.alpha[-1] / chain.sigma[-1]) ** 2 * x0[:, 0] ** 2 / math.log(2)
    for k in range(1, n + 1):
        eps = torch.randn(3, 1, generator=draws, dtype=D)
        wanted = wanted + bound.at(model, x0, torch.full((3,), k / n, dtype=D), eps) / n
    torch.testing.assert_close(bound.total(model, x0, generator(3)), wanted)


def test_it_bounds_the_likelihood_and_tends_to_it() -> None:
    """On a mixture, with the exact score and either fixed variance; by quadrature over data and noise."""
    problem = GaussianMixture([[-1.0], [0.8]], torch.tensor([0.09, 0.16]), [0.4, 0.6])
    z, w = quadrature(32)
    x0 = torch.cat([-1.0 + 0.3 * z, 0.8 + 0.4 * z])
    of_data = torch.cat([0.4 * w, 0.6 * w])
    entropy = -float((of_data * problem.log_prob(x0[:, None])).sum()) / math.log(2)
    grid, noise = x0.repeat_interleave(32)[:, None], z.repeat(64)[:, None]
    weights = of_data.repeat_interleave(32) * w.repeat(64)
    found: dict[str, list[float]] = {}
    for variance in ("lower", "upper"):
        gaps: list[float] = []
        for n in (15, 60, 240):
            chain = discretize(VP(beta_max=40.0), n)
            model, total = problem.model(chain), torch.zeros((), dtype=D)
            ratio = float(chain.alpha[-1] ** 2 / chain.sigma[-1] ** 2)
            total = total + 0.5 * ratio * (weights * grid[:, 0] ** 2).sum() / math.log(2)
            for k in range(1, n + 1):
                t = torch.full((len(grid),), k / n, dtype=D)
                total = total + (weights * VariationalBound(variance).at(model, grid, t, noise)).sum() / n
            gaps.append(float(total) - entropy)
        found[variance] = gaps
    assert min(map(min, found.values())) > 0
    assert found["upper"][0] > 3 * found["upper"][1] > 9 * found["upper"][2]
    # The lower one is too small by half in the first steps, of whatever size, where the data look smooth.
    assert found["lower"][2] > 0.5


@each_chain
@pytest.mark.parametrize("hybrid", [True, False])
def test_the_minimiser_over_the_second_output_is_the_best_variance(name: str, hybrid: bool) -> None:
    chain, std, n = CHAINS[name](6), 0.6, 6
    z, w = quadrature(4)
    x0, eps = (0.1 + std * z).repeat_interleave(4)[:, None], z.repeat(4)[:, None]
    weights = w.repeat_interleave(4) * w.repeat(4)
    loss = Hybrid() if hybrid else VariationalBound()
    for k in range(1, n + 1):
        t = torch.full((16,), k / n, dtype=D)

        def expected(shift: Tensor, t: Tensor = t) -> Tensor:
            model = gaussian_model(chain, 0.1, std, shift)  # type: ignore[arg-type]
            total: Tensor = (weights * loss.at(model, x0, t, eps)).sum()
            return total

        zero = torch.zeros((), dtype=D)
        slope, bend = torch.func.grad(expected)(zero), torch.func.hessian(expected)(zero)
        assert bend > 0 and abs(slope) < 1e-9 * max(1.0, float(bend)), k
        assert torch.func.grad(expected)(zero + 0.05) > 0 > torch.func.grad(expected)(zero - 0.05)


def test_the_hybrid_teaches_the_prediction_by_the_simple_loss_alone() -> None:
    chain, simple = CHAINS["DDPM"](8), DSM("min-snr")
    x0, eps = torch.randn(2, 5, 3, generator=generator(), dtype=D)
    t = torch.tensor([1, 2, 4, 6, 8], dtype=D) / 8

    def gradient(loss: object, both: bool) -> Tensor:
        theta = torch.tensor([0.3, 0.1], dtype=D, requires_grad=True)

        def net(x: Tensor, _: Tensor) -> Tensor:
            n = torch.tanh(theta[0] * x)
            return torch.cat([n, theta[1] * torch.sin(x)], 1) if both else n

        total = loss.at(ScoreModel(net, chain, learned_variance=both), x0, t, eps).sum()  # type: ignore[attr-defined]
        (found,) = torch.autograd.grad(total, theta, allow_unused=True)
        return found

    got = gradient(Hybrid(simple, scale=0.01), True)
    assert got[0] == pytest.approx(float(gradient(simple, False)[0]), rel=1e-12)
    assert got[1] == pytest.approx(0.01 * float(gradient(VariationalBound(), True)[1]), rel=1e-10)


def test_probabilities_of_levels_sum_to_one() -> None:
    """The last term with the discretized decoder, over all levels of one number, whatever the prediction."""
    chain, levels = DDPM.linear(10, 0.01, 0.4), 9
    x0 = torch.linspace(-1, 1, levels, dtype=D)[:, None]
    for mean in (-3.0, -0.2, 0.5, 1.7):
        model = ScoreModel(lambda x, t, m=mean: torch.full_like(x, m), chain, "x0")
        t, eps = torch.full((levels,), 0.1, dtype=D), torch.zeros(levels, 1, dtype=D)
        bits = VariationalBound("upper", levels=levels).at(model, x0, t, eps) / 10
        assert float(torch.exp2(-bits).sum()) == pytest.approx(1, rel=1e-9)
        assert bool(torch.isfinite(bits).all())
    # Fine levels tend to the density times their width.
    at, fine = torch.tensor([[0.25]], dtype=D), 20001
    model = ScoreModel(lambda x, t: torch.full_like(x, 0.2), chain, "x0")
    t, eps = torch.full((1,), 0.1, dtype=D), torch.zeros(1, 1, dtype=D)
    both = [VariationalBound("upper", levels=k).at(model, at, t, eps) / 10 for k in (fine, None)]
    torch.testing.assert_close(both[0], both[1] - math.log2(2 / (fine - 1)), rtol=1e-5, atol=0)


def test_far_from_a_level_the_loss_stays_finite_and_pulls_back() -> None:
    chain = DDPM.linear(10, 1e-4, 0.4)
    m = torch.tensor([[-5.0], [0.0], [4.0]], requires_grad=True)
    model = ScoreModel(lambda x, t: m, chain, "x0")
    x0 = torch.tensor([[0.5], [-1.0], [1.0]])
    loss = VariationalBound("upper", levels=256).at(model, x0, torch.full((3,), 0.1), torch.zeros(3, 1))
    (slope,) = torch.autograd.grad(loss.sum(), m)
    assert bool(torch.isfinite(loss).all() and torch.isfinite(slope).all())
    assert slope[0] < 0 < slope[1] and slope[2] == 0, "beyond the outer level every mean is as good"


def test_loss_aware_resampling_is_the_papers() -> None:
    """p_k proportional to the root of the mean of the last ten squared losses, uniform until all are known; unbiased."""
    n = 6
    chain = CHAINS["DDPM"](n)
    times = AdaptiveTimes("steps", bins=n, uniform=0.0)
    bound, model = VariationalBound(times=times), gaussian_model(chain, 0.0, 0.3, shift=0.2)
    x0 = 0.3 * torch.randn(16, 1, generator=generator(), dtype=D)
    seen: dict[int, list[float]] = {k: [] for k in range(n)}
    draws = generator(2)
    for _ in range(30):
        p = times.probabilities
        full = all(len(v) >= 10 for v in seen.values())
        roots = torch.tensor([math.sqrt(sum(x**2 for x in v[-10:]) / 10) if full else 1.0 for v in seen.values()], dtype=D)
        torch.testing.assert_close(p, roots / roots.sum())
        loss, t = bound(model, x0, draws)
        k = (t * n).round().long() - 1
        for i in range(16):
            seen[int(k[i])].append(float(loss[i] * n * p[k[i]]))
    assert times.probabilities.max() > 2 * times.probabilities.min()
    u = (torch.arange(60_000, dtype=D) + 0.5) / 60_000
    t, weight = times.at(u, chain.sde())
    for step in range(1, n + 1):
        assert float(weight[(t * n).round() == step].sum()) / 60_000 == pytest.approx(1 / n, rel=5e-3)


def test_noised_data_are_those_of_the_chain() -> None:
    chain = CHAINS["NCSN"](5)
    x0, eps = torch.randn(2, 5, 3, generator=generator(), dtype=D)
    k = torch.arange(1, 6)
    torch.testing.assert_close(noised(chain.sde(), x0, k / 5, eps), chain.perturb(x0, k, eps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VariationalBound("best"), "got variance='best'; expected 'learned', 'lower', 'upper' or a number"),
        (lambda: VariationalBound(1.5), "got variance=1.5"),
        (lambda: VariationalBound(levels=1), "got levels=1; expected at least 2"),
        (lambda: VariationalBound(times="stpes"), "got distribution of times 'stpes'; .* did you mean 'steps'"),
        (lambda: Hybrid(DSM(noise="control")), "expected 'fresh' noise"),
        (lambda: Hybrid(bound=VariationalBound("upper")), "a 'learned' variance"),
        (lambda: Hybrid(scale=-1.0), "a scale of at least 0"),
        (
            lambda: VariationalBound("upper")(ScoreModel(lambda x, t: x, VP()), torch.ones(2, 2), torch.Generator()),
            "got a model of VP for the bound of a chain; build the model with discretize",
        ),
        (
            lambda: VariationalBound()(ScoreModel(lambda x, t: x, DDPM.linear(9)), torch.ones(2, 2), torch.Generator()),
            "got a model without a learned variance",
        ),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
