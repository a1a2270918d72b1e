"""Methods for inverse problems: exact where theory says so, biased by what is measured elsewhere, and good citizens."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import SDES, generator, mostly_slow
from torch import Tensor, nn

from scoresde import (
    EDM,
    VE,
    VP,
    CosineVP,
    RectifiedFlow,
    ScoreModel,
    SubVP,
    inverse,
    log_likelihood,
    problems,
    sample,
    solvers,
)
from scoresde.analysis import Moments, law
from scoresde.inverse import (
    DPS,
    METHODS,
    MMPS,
    SAMPLERS,
    TMPD,
    DiffPIR,
    Mask,
    Matrix,
    Observation,
    PiGDM,
    observe,
    smc,
)
from scoresde.inverse.linearization import Linearization
from scoresde.inverse.normal_equations import conjugate_gradients, weighed
from scoresde.score import Transformed
from scoresde.solvers import DRIVERS, centred

F64 = torch.float64
MEAN = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
COVARIANCE = torch.tensor([[1.0, 0.6, 0.5], [0.6, 1.2, -0.3], [0.5, -0.3, 0.8]], dtype=F64)
TWO = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], dtype=F64)
MIXED = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.8, 2.0]], dtype=F64)
Y = torch.tensor([1.0, -0.5], dtype=F64)
GAUSSIAN = problems.Gaussian(MEAN, COVARIANCE)
QUIET: dict[str, Any] = {"progress": False}
RUNNABLE = [name for name in DRIVERS if name not in ("cuda-graph", "compiled")]


def posterior(matrix: Tensor, sigma: float, covariance: Tensor = COVARIANCE, mean: Tensor = MEAN, y: Tensor = Y) -> Moments:
    """The law of N(mean, covariance) given y = A x + sigma noise, by the textbook formula."""
    noise = sigma**2 * torch.eye(len(matrix), dtype=F64)
    gain = covariance @ matrix.T @ torch.linalg.inv(matrix @ covariance @ matrix.T + noise)
    return Moments(mean + gain @ (Y[: len(matrix)] - matrix @ mean), covariance - gain @ matrix @ covariance)


def truth(matrix: Tensor, sigma: float, covariance: Tensor = COVARIANCE) -> problems.Gaussian:
    return problems.Gaussian(*vars(posterior(matrix, sigma, covariance)).values())


class Small(nn.Module):
    """A smooth network of few weights, which predicts less of the data the more noise there is."""

    def __init__(self, d: int = 3) -> None:
        super().__init__()
        self.w = nn.Parameter(0.6 * torch.randn(d, d, generator=generator(), dtype=F64))
        self.u = nn.Parameter(0.4 * torch.randn(d, generator=generator(1), dtype=F64))
        self.forwards = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.forwards += 1
        w, t = self.w.to(x), t.to(x)[:, None]
        return (1 - t) * torch.tanh(x @ w) @ w.T + self.u.to(x) * torch.cos(t)


def network(sde: Any = None) -> ScoreModel:
    return ScoreModel(Small(), VP() if sde is None else sde, "x0")


def start(n: int = 3, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=generator(1), dtype=F64)


# Exact on Gaussian data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.5, 0.1, 0.01, 0.0])
@pytest.mark.parametrize("matrix", [TWO, MIXED, MIXED[:1]], ids=["two", "mixed", "one"])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_exact_methods_predict_the_posterior(sde: Any, matrix: Tensor, sigma: float) -> None:
    """On Gaussian data, at every time: cov[x0 | x] is the Jacobian times sigma^2 / alpha."""
    y, x = Y[: len(matrix)], 2 * start(6)
    exact = truth(matrix, sigma).model(sde)
    seen = Observation(Matrix(matrix), y, sigma)
    low, high = sde.span
    times = torch.tensor([low + share * (high - low) for share in (0.0, 0.02, 0.2, 0.5, 0.9, 1.0)], dtype=F64)
    scaled = x * (sde.alpha(times) + sde.sigma(times))[:, None]
    wanted = exact.x0(scaled, times)
    found = [TMPD(GAUSSIAN.model(sde), seen), MMPS(GAUSSIAN.model(sde), seen, len(matrix) + 1)]
    found += [TMPD(GAUSSIAN.model(sde), seen, "diagonal")] * (len(matrix) == 1)
    for model in found:
        # Where alpha = 0 the covariance is taken at the nearest time where it can be computed, at alpha / sigma = 1e-8.
        torch.testing.assert_close(model.x0(scaled, times), wanted, rtol=1e-6, atol=3e-7)


@pytest.mark.parametrize("sde", [*SDES.values(), VE(sigma_max=1e7)], ids=[*SDES, "wide VE"])
def test_the_exact_methods_predict_the_posterior_in_single_precision(sde: Any) -> None:
    """At the noisy end, where the Jacobian is all rounding: taken at alpha / sigma = sqrt(eps), it is as good as that."""
    times = torch.tensor([1.0, 0.999, 0.9], dtype=F64) * sde.span[1]
    x = (start(3) * (sde.alpha(times) + sde.sigma(times))[:, None]).float()
    seen, wanted = Observation(Matrix(MIXED), Y, 0.1), truth(MIXED, 0.1).model(sde).x0(x, times)
    for model in (TMPD(GAUSSIAN.model(sde), seen), MMPS(GAUSSIAN.model(sde), seen)):
        torch.testing.assert_close(model.x0(x, times), wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("sigma", [0.5, 0.1, 0.01])
@pytest.mark.parametrize("sde", [RectifiedFlow(), pytest.param(CosineVP(), marks=pytest.mark.slow)], ids=repr)
@pytest.mark.parametrize("name", ["mmps", pytest.param("tmpd", marks=pytest.mark.slow)])
def test_the_exact_methods_sample_the_posterior(name: str, sde: Any, sigma: float) -> None:
    """On SDEs whose prior is the noised data, so that a hundred steps are all the error there is."""
    seen = Observation(Mask([True, True, False]), Y, sigma)
    found = law(METHODS[name](GAUSSIAN.model(sde), seen), (3,), "dpmpp-2m", 100)
    assert found.wasserstein(posterior(TWO, sigma)) < 5e-3


CUT = {"VP": VP(), "SubVP": SubVP(), "VE": VE(), "EDM": EDM()}
"""SDEs whose noised data keep a share of the data's mean at the end of time."""


@pytest.mark.parametrize("sigma", [0.5, *(pytest.param(level, marks=pytest.mark.slow) for level in (0.1, 0.01))])
@pytest.mark.parametrize("sde", mostly_slow(CUT, ["VE", "EDM"]))
def test_the_exact_methods_sample_the_posterior_from_a_centred_start(sde: str, sigma: float) -> None:
    """There the mean of the posterior is missing at the start, which no solver makes up for."""
    model = MMPS(GAUSSIAN.model(CUT[sde]), Observation(Mask([True, True, False]), Y, sigma), 2)
    found = [
        law(model, (3,), solver, 100).wasserstein(posterior(TWO, sigma)) for solver in ("dpmpp-2m", centred("dpmpp-2m"))
    ]
    assert found[1] < 5e-3
    assert found[1] < found[0]
    if sigma == 0.5 and sde in ("VE", "EDM"):
        assert found[0] > 5e-3


@pytest.mark.parametrize("sigma", [0.5, 0.0])
@pytest.mark.parametrize("std", [1.0, 0.3])
def test_pigdm_is_exact_for_white_data(std: float, sigma: float) -> None:
    sde, x, times = VP(), 2 * start(4), torch.tensor([1.0, 0.5, 0.1, 1e-3], dtype=F64)
    exact = truth(MIXED, sigma, std**2 * torch.eye(3, dtype=F64)).model(sde)
    model = PiGDM(problems.Gaussian(MEAN, std**2).model(sde), Observation(Matrix(MIXED), Y, sigma), std)
    torch.testing.assert_close(model.x0(x, times), exact.x0(x, times), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("weight", [1.0, 0.3])
@pytest.mark.parametrize("sde", mostly_slow(SDES, ["VP", "EDM"]))
def test_reconstruction_guidance_has_the_coefficient_of_its_paper(sde: str, weight: float) -> None:
    """Ho et al., equation (7), with the blocks of Gaussian data: x_b + w alpha (dx_a / dz_b)^T (y - x_a)."""
    process, x, t = SDES[sde], 2 * start(5), torch.tensor(0.3, dtype=F64)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=F64))
    m = MEAN + (x - alpha * MEAN) @ gain.T
    measured, rest = [0, 2], [1]
    wanted = m.clone()
    wanted[:, measured] = Y
    wanted[:, rest] += weight * alpha * (Y - m[:, measured]) @ gain[measured][:, rest]
    seen = Observation(Mask([True, False, True]), Y, 0.1)
    found = inverse.ReconstructionGuidance(GAUSSIAN.model(process), seen, weight).x0(x, t)
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", mostly_slow(SDES, ["VP", "EDM"]))
def test_reconstruction_guidance_of_weight_one_is_exact_to_first_order_at_low_noise(sde: str) -> None:
    """With r = sigma / alpha the data given the state have the covariance V = r^2 (1 - O(r^2 / C)): w = 1 takes V_aa = r^2.

    The mean of the rest given the measured data as well is m_b + V_ba V_aa^-1 (y - m_a), and V_ba = r^2 alpha dx_b / dz_a.
    """
    process, measured, rest = SDES[sde], [0, 2], [1]
    seen, precision = Observation(Mask([True, False, True]), Y, 0.0), torch.linalg.inv(COVARIANCE)
    exact = GAUSSIAN.posterior(seen.operator, Y, 0.0)
    for lam in (2.0, 3.0):
        t, r2 = process.time(torch.tensor(lam, dtype=F64)), math.exp(-2 * lam)
        x = float(process.alpha(t)) * GAUSSIAN.sample(5, generator(), F64) + float(process.sigma(t)) * start(5)
        m, model = GAUSSIAN.model(process).x0(x, t), GAUSSIAN.model(process)
        spread = torch.linalg.inv(torch.eye(3, dtype=F64) + r2 * precision)[rest][:, measured].norm()
        share = r2 * float(torch.linalg.matrix_norm(precision, 2))
        bound = share / (1 - share) * spread * (Y - m[:, measured]).norm(dim=1)
        off = [
            (inverse.ReconstructionGuidance(model, seen, w).x0(x, t) - exact.model(process).x0(x, t)).detach().abs()[:, 1]
            for w in (1.0, 0.5)
        ]
        assert bool((off[0] <= bound + 1e-12).all())
        assert bool((off[1] > off[0]).all())


@pytest.mark.parametrize("sigma", [0.5, 0.0])
def test_daps_is_exact_for_white_data(sigma: float) -> None:
    """Each step draws the data given the state, so that the number of steps does not matter."""
    sde = CosineVP()
    seen = Observation(Matrix(MIXED), Y, sigma)
    found = law(problems.Gaussian(MEAN, 0.25).model(sde), (3,), inverse.daps(seen, std=0.5), 7)
    assert (
        found.wasserstein(posterior(MIXED, sigma, 0.25 * torch.eye(3, dtype=F64))) < 1e-3
    )  # the size of the noise at the last time


def test_langevin_dynamics_of_daps_draws_what_the_decomposition_does() -> None:
    model = problems.Gaussian(MEAN, 0.25).model(CosineVP())
    dynamics = inverse.daps(Observation(Blind(MIXED), Y, 0.5), std=0.5, langevin=300, step=0.1, curvature=5.0)
    found = law(model, (3,), dynamics, 1)
    assert (
        found.wasserstein(posterior(MIXED, 0.5, 0.25 * torch.eye(3, dtype=F64))) < 0.02
    )  # unadjusted: variances are too large by up to step / 2


class Blind(inverse.Operator):
    """A matrix as an operator without a singular value decomposition."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((matrix.shape[1],), (matrix.shape[0],))
        with torch.inference_mode(False):
            self.entries = matrix.clone()

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.entries.T.to(x)

    def singular(self) -> Any:
        raise ValueError("got an operator without a decomposition")


# Biased elsewhere: what is measured is written down, so that a change is seen --------------------------------------------

BIAS = {  # the Wasserstein distance to the posterior at sigma = 0.5 and 0.01; two of three correlated numbers measured
    "pigdm": (0.236, 0.283),  # takes the data given the state to be white
    "diffpir": (0.297, 0.580),  # leaves out the Jacobian as well
    "ddnm": (0.698, 0.580),  # and the noise of the measurement
    "reconstruction": (0.669, 0.377),  # leaves out the noise, and takes the rest to be of infinite variance
    "ddrm": (0.391, 0.473),  # what is measured passes to the rest by the network alone
    "ddnm+": (0.391, 0.473),  # the same
    "daps": (0.284, 0.475),  # draws the data given the state as if they were white
    "replacement": (0.544, 0.544),  # the rest does not know of later replacements
    "repaint": (0.544, 0.371),  # it is replaced again and again, so that it does, to some extent
}


@pytest.mark.parametrize("name", BIAS)
def test_the_bias_of_the_other_methods_is_what_it_was(name: str) -> None:
    model = GAUSSIAN.model(CosineVP())
    for sigma, wanted in zip((0.5, 0.01), BIAS[name], strict=True):
        seen = Observation(Mask([True, True, False]), Y, sigma)
        if name in METHODS:
            found = law(METHODS[name](model, seen), (3,), "dpmpp-2m", 15)
        else:
            settings = {"resamplings": 5, "jump": 3} if name == "repaint" else {}
            found = law(model, (3,), SAMPLERS[name](seen, **settings), 15)
        assert found.wasserstein(posterior(TWO, sigma)) == pytest.approx(wanted, rel=0.02)


def test_the_normalised_step_of_dps_does_not_know_the_noise() -> None:
    """Its samples are the same at every level of noise, and so are those of the posterior of one level at most."""
    model, drawn = GAUSSIAN.model(CosineVP()), []
    for sigma, bias in ((0.5, 0.62), (0.01, 0.54)):
        seen = Observation(Mask([True, True, False]), Y, sigma)
        drawn.append(sample(DPS(model, seen, steps=100), (1000, 3), "ddpm", 100, "t", dtype=F64, **QUIET).x)
        found = Moments(drawn[-1].mean(0), drawn[-1].T.cov()).wasserstein(posterior(TWO, sigma))
        assert found == pytest.approx(bias, abs=0.05)  # a standard error of a thousand samples is 0.03
    assert torch.equal(*drawn)


# Systems ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["one", "per sample", "per number"])
@pytest.mark.parametrize("operator", [Matrix(MIXED), Blind(MIXED), Mask([True, False, True]), Matrix(MIXED.T)], ids=repr)
def test_systems_are_solved(operator: inverse.Operator, noise: str) -> None:
    d, m = operator.event.numel(), operator.measured.numel()
    matrix, r = operator.matrix(), torch.randn(4, m, generator=generator(), dtype=F64)
    v = torch.tensor([1e-6, 0.3, 2.0, 1e4], dtype=F64)
    c = {
        "one": torch.tensor(0.25, dtype=F64),
        "per sample": torch.tensor([1.0, 1e-3, 0.1, 2.0], dtype=F64),
        "per number": torch.rand(4, m, generator=generator(), dtype=F64) + 0.1,
    }[noise]
    dense = (c.reshape(-1, 1) if c.ndim <= 1 else c).expand(4, m)
    wanted = [matrix.T @ torch.linalg.solve(v[i] * matrix @ matrix.T + dense[i].diag(), r[i]) for i in range(4)]
    torch.testing.assert_close(weighed(operator, r, v, c), torch.stack(wanted), rtol=1e-6, atol=1e-9)
    assert d == matrix.shape[1]


def test_a_singular_system_weighs_by_the_pseudoinverse() -> None:
    zero, one = torch.zeros((), dtype=F64), torch.ones((), dtype=F64)
    twice = torch.cat([MIXED, MIXED[:1]])  # a row that says the same again
    r = torch.randn(4, 3, generator=generator(), dtype=F64)  # no measurement of any state
    for operator in (Matrix(twice), Blind(twice)):
        torch.testing.assert_close(weighed(operator, r, 4 * one, zero), Matrix(twice).pinv(r) / 4, rtol=1e-7, atol=1e-9)
        assert not bool(weighed(operator, r, zero, zero).any())


def test_conjugate_gradients_stop_sample_by_sample() -> None:
    """A solved sample stays as it is while others go on, and directions of no or negative curvature are not followed."""
    matrices = torch.stack([torch.eye(3), MIXED.T @ MIXED + 0.1 * torch.eye(3), torch.zeros(3, 3), -torch.eye(3)]).to(F64)
    r = torch.randn(4, 3, generator=generator(), dtype=F64)

    def system(p: Tensor, rows: Any = slice(None)) -> tuple[Tensor, Tensor]:
        return torch.einsum("bij,bj->bi", matrices[rows], p), p

    found = conjugate_gradients(system, r, 20)
    torch.testing.assert_close(found[:2], torch.linalg.solve(matrices[:2], r[:2]), rtol=1e-9, atol=1e-9)
    assert not bool(found[2:].any())
    for i in range(4):
        alone = conjugate_gradients(lambda p, i=i: system(p, slice(i, i + 1)), r[i : i + 1], 20)
        torch.testing.assert_close(alone[0], found[i], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("tolerance", [0.3, 1e-2, 1e-4])
def test_conjugate_gradients_stop_at_a_tolerance(tolerance: float) -> None:
    """At the relative residual asked for, each sample by itself, with no more iterations than the slowest needs."""
    spectra = torch.stack([torch.ones(12), torch.logspace(0, 2, 12), torch.logspace(0, 4, 12)]).to(F64)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=generator(), dtype=F64))[0]
    matrices = turn @ torch.diag_embed(spectra) @ turn.T
    r = torch.randn(3, 12, generator=generator(1), dtype=F64)

    def solve(rows: Any) -> tuple[Tensor, int]:
        called = 0

        def system(p: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal called
            called += 1
            return torch.einsum("bij,bj->bi", matrices[rows], p), p

        return conjugate_gradients(system, r[rows], 50, tolerance), called

    together, calls = solve(slice(None))
    left = r - torch.einsum("bij,bj->bi", matrices, together)
    assert bool((left.norm(dim=1) <= tolerance * r.norm(dim=1)).all())
    alone = [solve(slice(i, i + 1)) for i in range(3)]
    assert calls == max(n for _, n in alone)
    assert alone[0][1] == 1 < alone[1][1] < alone[2][1] <= 24  # a condition number of 1, 100 and 10,000
    for i, (found, _) in enumerate(alone):
        torch.testing.assert_close(found[0], together[i], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("sigma", [0.1, 0.01])
def test_a_tolerance_makes_mmps_exact_where_few_iterations_are_not(sigma: float) -> None:
    """Under an ill-conditioned operator, at every time: the error is the tolerance's."""
    operator = inverse.Blur(inverse.gaussian_kernel(0.8, 3), (1, 4, 4))
    prior, sde = problems.Gaussian(torch.zeros(1, 4, 4), problems.textures(4, 1).covariances[0]), VP()
    x0 = prior.sample(6, generator(), F64)
    exact = prior.posterior(operator, operator(x0)[0], sigma)
    times = torch.tensor([1.0, 0.6, 0.3, 0.1, 0.02, 0.005], dtype=F64)
    alpha, std = (c(times).reshape(-1, 1, 1, 1) for c in (sde.alpha, sde.sigma))
    x = alpha * x0 + std * torch.randn(x0.shape, generator=generator(1), dtype=F64)
    wanted, seen = exact.model(sde).x0(x, times), Observation.of(exact)
    few, tight = (MMPS(prior.model(sde), seen, *how).x0(x, times) for how in ((3,), (50, 1e-4)))
    assert float((few - wanted).flatten(1).norm(dim=1).max().detach()) > 0.5
    assert float((tight - wanted).flatten(1).norm(dim=1).max().detach()) < 0.02


def test_poisson_noise_is_weighed_number_by_number() -> None:
    """A method for Gaussian noise takes the variance of each count: for Gaussian data that is a posterior in closed form."""
    sde, x = VP(), start(5)
    y = torch.tensor([3.0, 0.25], dtype=F64)
    seen = Observation(Matrix(MIXED), y, 0.0, "poisson", gain=4.0)
    noise = torch.diag(torch.as_tensor(seen.variance, dtype=F64))
    model = problems.Gaussian(MEAN, 1.0).model(sde)
    system = MIXED @ MIXED.T + noise
    gain = MIXED.T @ torch.linalg.inv(system)
    exact = problems.Gaussian(MEAN + gain @ (y - MIXED @ MEAN), torch.eye(3, dtype=F64) - gain @ MIXED).model(sde)
    for made in (TMPD(model, seen), MMPS(model, seen), PiGDM(model, seen)):
        torch.testing.assert_close(made.x0(x, 0.4), exact.x0(x, 0.4), rtol=1e-8, atol=1e-8)
    assert bool(torch.isfinite(DiffPIR(model, seen).x0(x, 0.4)).all())


NONLINEAR = inverse.Function(lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].exp()], 1), (3,))
LIKELIHOODS = {
    "linear": Observation(Matrix(MIXED), Y, 0.3),
    "nonlinear": Observation(NONLINEAR, Y, 0.3),
    "poisson": Observation(
        inverse.Function(lambda x: x[:, :2].square() + 0.5, (3,)), Y.abs(), 0.0, "poisson", gain=5.0, background=0.25
    ),
}


@pytest.mark.parametrize("case", LIKELIHOODS)
def test_the_gradient_of_dps_is_that_of_the_likelihood_or_the_misfit(case: str) -> None:
    seen, model, x, t = LIKELIHOODS[case], network(), start(4).requires_grad_(), 0.4
    m = model.x0(x, t)
    (uphill,) = torch.autograd.grad(seen.log_likelihood(m).sum(), x, retain_graph=True)
    sde = model.sde
    wanted = m + 0.7 * sde.sigma(t) ** 2 / sde.alpha(t) * uphill
    torch.testing.assert_close(DPS(model, seen, 0.7, "likelihood").x0(x, t), wanted, rtol=1e-9, atol=1e-9)
    weight = torch.as_tensor(seen.variance, dtype=F64).sqrt() if case == "poisson" else 1.0
    (misfit,) = torch.autograd.grad((seen.residual(m) / weight).norm(dim=1).sum(), x)
    lam = sde.lam(0.39) - sde.lam(0.4)
    wanted = m - 0.7 * misfit / (sde.alpha(0.39) * (1 - (-2 * lam).exp()))
    torch.testing.assert_close(DPS(model, seen, 0.7, steps=100).x0(x, t), wanted, rtol=1e-9, atol=1e-9)


def test_a_measurement_that_is_met_pulls_nowhere() -> None:
    model = GAUSSIAN.model(VP())
    x = start(2)
    for step in ("normalised", "likelihood"):
        seen = Observation(Matrix(MIXED), Matrix(MIXED)(model.x0(x, 0.3)), 0.1)
        torch.testing.assert_close(DPS(model, seen, step=step).x0(x, 0.3), model.x0(x, 0.3))


# Good citizens ----------------------------------------------------------------------------------------------------------


def all_methods(seen: Observation) -> dict[str, Callable[[ScoreModel], tuple[ScoreModel, Any]]]:
    """Every method, as the model and the solver to sample with."""
    made: dict[str, Callable[[ScoreModel], tuple[ScoreModel, Any]]] = {
        name: lambda model, name=name: (METHODS[name](model, seen), "sde-dpmpp-2m") for name in METHODS
    }
    made["dps"] = lambda model: (DPS(model, seen, 0.3, steps=6), "ddpm")
    made["dps of the likelihood"] = lambda model: (DPS(model, seen, 0.1, "likelihood"), "ddim")
    made["diagonal tmpd"] = lambda model: (TMPD(model, seen, "diagonal"), "heun")
    made["published pigdm"] = lambda model: (PiGDM(model, seen, variant="published"), "ddim")
    made["renoised diffpir"] = lambda model: (DiffPIR(model, seen, 3.0), inverse.renoised(0.3))
    settings: dict[str, dict[str, Any]] = {"repaint": {"resamplings": 2, "jump": 2}, "ddrm": {"eta_b": 0.5}}
    for name in SAMPLERS:
        made[name] = lambda model, name=name: (model, SAMPLERS[name](seen, **settings.get(name, {})))
    made["langevin daps"] = lambda model: (model, inverse.daps(replace_operator(seen), langevin=3))
    return made


def replace_operator(seen: Observation) -> Observation:
    return Observation(Blind(seen.operator.matrix()), seen.y, seen.sigma)


EACH = observe(Matrix(MIXED), start(3), 0.2, seed=1)
"""A measurement for each of three samples."""
NAMES = list(all_methods(EACH))


def drawn(name: str, seen: Observation = EACH, x: Tensor | None = None, model: ScoreModel | None = None, **how: Any) -> Any:
    made, solver = all_methods(seen)[name](network() if model is None else model)
    return sample(made, start() if x is None else x, solver, 6, **{**QUIET, "seed": [5, 7, 11], **how})


@pytest.mark.parametrize("name", NAMES)
def test_no_sample_depends_on_its_batch(name: str) -> None:
    together = drawn(name).x
    for i in range(3):
        alone = drawn(name, EACH.select(slice(i, i + 1)), start()[i : i + 1], seed=[[5, 7, 11][i]]).x
        torch.testing.assert_close(alone[0], together[i], rtol=1e-9, atol=1e-10)
    shared = Observation(EACH.operator, EACH.y[0], EACH.sigma)
    repeated = Observation(EACH.operator, EACH.y[:1].repeat(3, 1), EACH.sigma)
    torch.testing.assert_close(drawn(name, shared).x, drawn(name, repeated).x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("driver", [d for d in RUNNABLE if d != "fast"])
@pytest.mark.parametrize("name", NAMES)
def test_every_driver_gives_the_same_samples(name: str, driver: str) -> None:
    if driver == "parallel" and (name in SAMPLERS or name == "langevin daps"):
        with pytest.raises(ValueError, match="driver='fast'"):
            drawn(name, driver=driver)
        return
    how = {"tolerance": 0.0} if driver == "parallel" else {}
    made = DRIVERS[driver] if not how else type(DRIVERS[driver])(**how)
    got, wanted = drawn(name, driver=made), drawn(name, driver="fast")
    torch.testing.assert_close(got.x.detach(), wanted.x, rtol=1e-8, atol=1e-9)
    if driver == "readable":
        assert (got.evaluations, got.backward) == (wanted.evaluations, wanted.backward)


@pytest.mark.parametrize("name", ["pigdm", "ddrm", "langevin daps", "replacement"])
def test_the_compiled_driver_runs_them(name: str) -> None:
    found = drawn(name, driver=solvers.Compiled("eager"))  # what is compiled, without a compiler
    torch.testing.assert_close(found.x, drawn(name).x, rtol=1e-9, atol=1e-10)


SLOW_SOLVERS = [pytest.param(solver, marks=pytest.mark.slow) for solver in ("rk45", "torchsde-euler")]


@pytest.mark.parametrize("solver", ["dopri5", *SLOW_SOLVERS])
def test_solvers_with_loops_of_their_own_run_them(solver: str) -> None:
    """Each sample at a time of its own, with a measurement of its own."""
    x, how = start(3), {"solver": solver, "steps": 20, **QUIET}
    found = sample(MMPS(GAUSSIAN.model(VP()), EACH), x, **how, seed=[1, 2, 3]).x
    for i in range(3):
        alone = MMPS(GAUSSIAN.model(VP()), EACH.select(slice(i, i + 1)))
        torch.testing.assert_close(sample(alone, x[i : i + 1], **how, seed=[i + 1]).x[0], found[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_there_whatever_the_mode(name: str, mode: Callable[[], Any]) -> None:
    wanted = drawn(name).x
    model = network()
    with mode():
        seen = observe(Matrix(MIXED), start(3), 0.2, seed=1)
        found = drawn(name, seen, start(), model).x
        predicted = all_methods(seen)[name](model)[0].x0(start(), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(found.clone(), wanted, rtol=1e-12, atol=1e-12)
    again = all_methods(EACH)[name](model)[0].x0(start(), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(predicted.clone(), again.detach(), rtol=1e-12, atol=1e-12)
    assert again.requires_grad  # to the parameters, where the caller wants it


@pytest.mark.parametrize("checkpoint", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_flow_through_the_samples(name: str, checkpoint: bool) -> None:
    """Of a function of the samples with respect to the start and a parameter, against differences."""
    model, driver = network(), type(DRIVERS["differentiable"])(checkpoint=checkpoint)
    x, direction = start().requires_grad_(), torch.randn(3, 3, generator=generator(4), dtype=F64)
    drawn(name, x=x, model=model, driver=driver).x.square().sum().backward()
    ways = [
        ((x.grad * direction).sum(), lambda h: (x.detach() + h * direction, 0.0)),
        (model.net.u.grad[0], lambda h: (x.detach(), h)),
    ]
    for got, moved in ways:
        values = []
        for h in (1e-5, -1e-5):
            there, step = moved(h)
            other = network()
            with torch.no_grad():
                other.net.u[0] += step
            values.append(float(drawn(name, x=there, model=other).x.square().sum()))
        assert float(got) == pytest.approx((values[0] - values[1]) / 2e-5, rel=2e-4, abs=1e-6)


HALF = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_carried(name: str, dtype: torch.dtype) -> None:
    found, wanted = drawn(name, x=start().to(dtype), model=network()), drawn(name)
    assert found.x.dtype == dtype
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}[dtype]
    torch.testing.assert_close(found.x.double(), wanted.x, rtol=tolerance, atol=tolerance)


class Counting(torch.autograd.Function):
    """The identity, which counts the backward calls through it."""

    backwards = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Counting.backwards += 1
        return gradient


@pytest.mark.parametrize("name", NAMES)
def test_forward_and_backward_calls_are_counted_apart(name: str) -> None:
    net = Small()
    model = ScoreModel(lambda x, t: Counting.apply(net(x, t)), VP(), "v")
    Counting.backwards = 0
    found = drawn(name, model=model)
    assert (found.evaluations, found.backward) == (net.forwards, Counting.backwards)
    assert found.evaluations > 0


@pytest.mark.parametrize("name", NAMES)
def test_both_ends_of_time_are_finite(name: str) -> None:
    """alpha = 0 at the start of a rectified flow, and sigma = 0 where a model is asked there."""
    model = network(RectifiedFlow())
    assert bool(torch.isfinite(drawn(name, model=model, x=start()).x).all())
    made = all_methods(EACH)[name](model)[0]
    for t in (0.0, 1.0):
        assert bool(torch.isfinite(made.x0(start(), t)).all()), t
    clean = made.x0(start(), torch.tensor([0.0, 0.0, 0.5], dtype=F64))
    if name not in ("ddnm", "dps", "reconstruction"):  # which do not ask how noisy the state is
        torch.testing.assert_close(clean[:2].detach(), model.x0(start(), 0.0)[:2].detach(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name", ["tmpd", "mmps", "pigdm", "ddnm", "reconstruction", "diffpir", "ddrm", "ddnm+", "daps", "replacement", "repaint"]
)
def test_a_measurement_without_noise_is_met(name: str) -> None:
    """sigma = 0: what is measured of the samples is y, up to the noise that the last time leaves."""
    seen = Observation(Matrix(TWO), Y, 0.0)
    made, solver = all_methods(seen)[name](GAUSSIAN.model(CosineVP()))
    solver = "dpmpp-2m" if isinstance(solver, str) else solver
    x = sample(made, (32, 3), solver, 40, dtype=F64, **QUIET).x
    exact = name in ("ddnm", "reconstruction", "replacement", "repaint", "daps", "diffpir")
    assert float((x[:, :2] - Y).abs().max()) < (1e-9 if exact else 0.02)


def test_methods_nest_with_other_wrappers() -> None:
    seen = Observation(Matrix(MIXED), Y, 0.2)
    model = MMPS(Transformed(network(), lambda m, t: 0.5 * m), seen)
    assert bool(torch.isfinite(sample(model, start(), "ddim", 4, **QUIET).x).all())
    both = PiGDM(
        PiGDM(GAUSSIAN.model(VP()), Observation(Matrix(MIXED[:1]), Y[:1], 0.2)), Observation(Matrix(MIXED[1:]), Y[1:], 0.2)
    )
    assert both.calls == (1, 3)  # a backward call through an inner one is two
    assert bool(torch.isfinite(sample(both, start(), "ddim", 4, **QUIET).x).all())


def test_a_conditioned_model_has_a_likelihood() -> None:
    """TMPD on Gaussian data is the posterior's own model, so its likelihood is the density of the posterior."""
    sde, x = CosineVP(), start(4)
    model = TMPD(GAUSSIAN.model(sde), Observation(Matrix(MIXED), Y, 0.5))
    found = log_likelihood(model, x).log_prob
    torch.testing.assert_close(found, truth(MIXED, 0.5).log_prob(x, sde, sde.span[0]), rtol=0, atol=1e-3)


# Refusals ---------------------------------------------------------------------------------------------------------------

PLAIN = Observation(Matrix(MIXED), Y, 0.2)
CURVED = Observation(NONLINEAR, Y, 0.2)
COUNTS = Observation(Matrix(MIXED), Y.abs(), 0.0, "poisson")
EXACT = Observation(Matrix(MIXED), Y, 0.0)
LINEAR_ONLY = [name for name in [*METHODS, *SAMPLERS] if name not in ("dps", "daps")]


def make(name: str, seen: Any, **settings: Any) -> Any:
    return METHODS[name](network(), seen, **settings) if name in METHODS else SAMPLERS[name](seen, **settings)


@pytest.mark.parametrize("name", LINEAR_ONLY)
def test_a_nonlinear_operator_is_refused_with_the_methods_for_it(name: str) -> None:
    with pytest.raises(ValueError, match=r"nonlinear operator .* or a method that can carry it: DPS, daps or smc"):
        make(name, CURVED)


def test_the_methods_for_nonlinear_operators_carry_them() -> None:
    for x in (
        sample(DPS(network(), CURVED, 0.1), start(), "ddim", 3, **QUIET).x,
        sample(network(), start(), inverse.daps(CURVED, langevin=5), 3, **QUIET).x,
        smc(network(), CURVED, (4, 3), steps=3, progress=False).x,
    ):
        assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("name", ["ddrm", "ddnm+", "replacement", "repaint"])
def test_counts_are_refused_with_the_methods_for_them(name: str) -> None:
    with pytest.raises(ValueError, match=r"poisson noise .* DPS, PiGDM, TMPD, MMPS, DDNM, DiffPIR, daps or smc"):
        make(name, COUNTS)
    for other in ("dps", "pigdm", "tmpd", "mmps", "ddnm", "reconstruction", "diffpir", "daps"):
        made = make(other, COUNTS)
        x = (
            sample(made, start(), "ddim", 3, **QUIET).x
            if other in METHODS
            else sample(network(), start(), made, 3, **QUIET).x
        )
        assert bool(torch.isfinite(x).all()), other


@pytest.mark.parametrize("name", [*METHODS, *SAMPLERS])
def test_what_is_no_observation_is_refused(name: str) -> None:
    with pytest.raises(
        TypeError, match=r"got Tensor for the observation of \S+; expected Observation\(operator, y, sigma\)"
    ):
        make(name, Y)


@pytest.mark.parametrize("name", NAMES)
def test_states_and_measurements_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"expected states of shape \('batch', 3\)"):
        drawn(name, x=start(3, 4), model=ScoreModel(Small(4), VP(), "v"))
    for n, driver in ((2, "fast"), (6, "fast"), (6, "readable")):  # twice as many are no copies of the batch
        with pytest.raises(ValueError, match=f"got 3 measurements for {n} samples"):
            drawn(name, x=start(n), seed=0, driver=driver)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        *[
            (lambda v=v: DPS(network(), PLAIN, v), f"got scale={v!r}; expected a positive number")
            for v in (0, -1.0, math.inf, math.nan)
        ],
        (lambda: DPS(network(), PLAIN, step="squared"), "got step='squared'; expected 'normalised' or 'likelihood'"),
        (lambda: DPS(network(), PLAIN, steps=0), "got steps=0; expected a whole number of at least 1"),
        (lambda: DPS(network(), EXACT, step="likelihood"), "got sigma=0 for DPS .* or step='normalised'"),
        (lambda: PiGDM(network(), PLAIN, std=0.0), "got std=0.0; expected a positive number"),
        (lambda: PiGDM(network(), PLAIN, variant="mine"), "got variant='mine'; expected 'exact' or 'published'"),
        (lambda: TMPD(network(), PLAIN, "dense"), "got covariance='dense'; expected 'full' or 'diagonal'"),
        (lambda: MMPS(network(), PLAIN, 0), "got iterations=0; expected a whole number of at least 1"),
        (lambda: MMPS(network(), PLAIN, 3, 1.0), "got tolerance=1.0; expected a relative residual from 0"),
        (lambda: DiffPIR(network(), PLAIN, -1.0), "got scale=-1.0; expected a positive number"),
        (lambda: inverse.renoised(1.5), "got share=1.5; expected a number between 0"),
        (lambda: inverse.ddrm(PLAIN, eta=2.0), "got eta=2.0; expected a number from 0 to 1"),
        (lambda: inverse.ddrm(PLAIN, eta_b=-1.0), "got eta_b=-1.0; expected a number from 0 to 1"),
        (
            lambda: inverse.ddrm(Observation(Blind(MIXED), Y, 0.2)),
            "a method that needs no decomposition .* MMPS",
        ),
        (lambda: inverse.daps(PLAIN, std=-1.0), "got std=-1.0; expected a positive number"),
        (lambda: inverse.daps(PLAIN, langevin=0), "got langevin=0; expected a whole number of at least 1"),
        (lambda: inverse.daps(Observation(NONLINEAR, Y, 0.0)), "got sigma=0 for daps .* expected sigma > 0"),
        (lambda: inverse.repaint(PLAIN, resamplings=0), "got resamplings=0; expected a whole number of at least 1"),
        (lambda: inverse.repaint(PLAIN, jump=0), "got jump=0; expected a whole number of at least 1"),
        (lambda: smc(network(), EXACT, (8, 3)), "got sigma=0 for smc, .* MMPS, TMPD or PiGDM"),
        (lambda: smc(network(), EACH, (8, 3)), "got 8 particles for 3 measurements; expected the same number for each"),
        (lambda: smc(network(), PLAIN, (8, 4)), r"expected states of shape \('batch', 3\)"),
        (lambda: smc(network(), PLAIN, (8, 3), solvers.ddim()), "got solver <solver ddim> for smc, .* draws noise"),
        (lambda: smc(network(), PLAIN, (8, 3), solvers.get("sde-dpmpp-2m")), "look back on nothing"),
        (lambda: smc(network(), PLAIN, (8, 3), "dopri5"), "got solver 'dopri5' for smc"),
        *[
            (lambda make=make, solver=solver: make(PLAIN, solver), "expected one that makes rows, such as 'ddpm'")
            for make in (inverse.replacement, inverse.repaint)
            for solver in ("dopri5", solvers.get("rk45"))
        ],
        (lambda: smc(network(), PLAIN, (8, 3), threshold=2.0), "got threshold=2.0; expected a number from 0"),
        (lambda: smc(network(), PLAIN, (8, 3), std=0.0), "got std=0.0; expected a positive number"),
    ],
)
def test_wrong_values_are_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_what_is_no_model_is_refused() -> None:
    for call in (lambda: PiGDM(Small(), PLAIN), lambda: smc(Small(), PLAIN, (8, 3))):  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="expected a ScoreModel"):
            call()


@pytest.mark.parametrize("predicts", ["eps", "x0", "v"])
def test_a_network_that_cuts_the_gradient_is_refused(predicts: str) -> None:
    def cut(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.tanh(x)

    model = PiGDM(ScoreModel(cut, VP(), predicts), PLAIN)
    with pytest.raises(ValueError, match="depend on x but carry no gradient"):
        sample(model, start(), "ddim", 3, **QUIET)
    with torch.inference_mode():
        stuck = network()
    with pytest.raises(ValueError, match="made in inference mode"):
        PiGDM(stuck, PLAIN).x0(start(), 0.5)
    constant = PiGDM(ScoreModel(lambda x, t: torch.ones_like(x), VP(), "x0"), PLAIN)  # data of one point: nothing to learn
    torch.testing.assert_close(constant.x0(start(), 0.5), torch.ones(3, 3, dtype=F64))


def test_a_linearization_is_the_jacobian() -> None:
    model, x, v = network(), start(2), start(2)
    at = Linearization(model, x, 0.4, {})
    jacobian = torch.autograd.functional.jacobian(lambda x: model.x0(x, 0.4).sum(0), x).permute(1, 0, 2)
    torch.testing.assert_close(at.pull(v).detach(), torch.einsum("bij,bi->bj", jacobian, v))
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        assert not Linearization(model, x, 0.4, {}).m.requires_grad
