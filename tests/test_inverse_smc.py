"""Sequential Monte Carlo: exact as the number of particles grows, at the rate of its square root."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from support import generator
from test_inverse_methods import COVARIANCE, F64, MEAN, MIXED, Blind, Y, network, posterior, start
from torch import Tensor

from scoresde import CosineVP, problems, solvers
from scoresde.analysis import Moments, law
from scoresde.inverse import Function, Matrix, Observation, observe, resampled
from scoresde.inverse import smc as shown_smc
from scoresde.solvers import make_path

smc = functools.partial(shown_smc, progress=False)

MODES = problems.GaussianMixture(
    torch.tensor([[-1.0, 0.6], [1.0, -0.4], [0.2, 1.2]], dtype=F64),
    torch.tensor([[[0.1, 0.05], [0.05, 0.2]], [[0.2, -0.1], [-0.1, 0.15]], [[0.05, 0.0], [0.0, 0.05]]], dtype=F64),
    torch.tensor([0.3, 0.5, 0.2], dtype=F64),
)
SUM = torch.tensor([[1.0, 1.0]], dtype=F64)
SEEN = torch.tensor([0.7], dtype=F64)
"""A sum of two numbers, which all three modes can give."""


def mixture_posterior(sigma: float) -> tuple[problems.GaussianMixture, float]:
    """The mixture given the sum, component by component, and log p(y)."""
    logs, means, covariances = [], [], []
    for weight, mean, covariance in zip(MODES.weights, MODES.means, MODES.covariances, strict=True):
        variance = SUM @ covariance @ SUM.T + sigma**2
        residual, gain = SEEN - SUM @ mean, covariance @ SUM.T / variance
        logs.append(weight.log() - 0.5 * (residual**2 / variance + (2 * math.pi * variance).log()).sum())
        means.append(mean + gain @ residual)
        covariances.append(covariance - gain @ SUM @ covariance)
    found = torch.stack(logs)
    return problems.GaussianMixture(torch.stack(means), torch.stack(covariances), found.softmax(0)), float(
        found.logsumexp(0)
    )


def shares(x: Tensor, weights: Tensor, of: problems.GaussianMixture) -> Tensor:
    """The weighted averages of the responsibilities, whose expectations are the weights of the modes."""
    each = zip(of.means, of.covariances, of.weights, strict=True)
    parts = [problems.Gaussian(mean, covariance).log_prob(x) + weight.log() for mean, covariance, weight in each]
    return weights @ torch.stack(parts, 1).softmax(1)


@pytest.mark.parametrize("sigma", [0.5, pytest.param(0.1, marks=pytest.mark.slow)])
def test_the_modes_have_their_weights_and_the_evidence_is_right(sigma: float) -> None:
    wanted, evidence = mixture_posterior(sigma)
    found = smc(MODES.model(CosineVP()), Observation(Matrix(SUM), SEEN, sigma), (4096, 2), steps=60, dtype=F64)
    equal = torch.full((4096,), 1 / 4096, dtype=F64)
    assert float((shares(found.x, equal, wanted) - wanted.weights).abs().max()) < 0.02
    weighted = shares(found.info["particles"], found.info["log_weights"].exp(), wanted)
    assert float((weighted - wanted.weights).abs().max()) < 0.02
    # The steps are what is left of the error, which falls in proportion to their length.
    assert float(found.info["log_evidence"][0]) == pytest.approx(evidence, abs=0.06)
    assert float((found.x.mean(0) - wanted.mean).abs().max()) < 0.06
    assert float((found.x.T.cov() - wanted.covariance).abs().max()) < 0.05


MODEL = problems.Gaussian(MEAN, COVARIANCE).model(CosineVP())


def limit(steps: int, sigma: float) -> tuple[Moments, float]:
    """What smc converges to with so many steps: the posterior of the sampler's own law, and its log p(y)."""
    prior = law(MODEL, (3,), solvers.ddpm(0.5), steps)
    of_y = MIXED @ prior.covariance @ MIXED.T + sigma**2 * torch.eye(2, dtype=F64)
    log_evidence = float(torch.distributions.MultivariateNormal(MIXED @ prior.mean, of_y).log_prob(Y))
    return posterior(MIXED, sigma, prior.covariance, prior.mean), log_evidence


def check(found: Any, steps: int, sigma: float) -> None:
    """Within five standard errors of half of the least effective sample size, since each resampling adds to the variance."""
    effective = float(found.info["ess"].min()) / 2
    wanted, log_evidence = limit(steps, sigma)
    deviations = wanted.covariance.diagonal().sqrt()
    weights, x = found.info["log_weights"].exp(), found.info["particles"]
    for mean in (found.x.mean(0), weights @ x):
        assert float(((mean - wanted.mean) / deviations).abs().max()) < 5 / math.sqrt(effective)
    centred = x - wanted.mean
    covariance = torch.einsum("n,ni,nj->ij", weights, centred, centred)
    scale = torch.outer(deviations, deviations)
    assert float(((covariance - wanted.covariance) / scale).abs().max()) < 5 * math.sqrt(2 / effective)
    assert float(found.info["log_evidence"][0]) == pytest.approx(log_evidence, abs=5 / math.sqrt(effective))


def test_the_error_falls_with_the_root_of_the_number_of_particles() -> None:
    """Of the mean of the posterior of Gaussian data, over 24 groups: each group is a run by itself."""
    runs, errors, logs = 24, [], []
    wanted, log_evidence = limit(25, 0.3)
    for particles in (32, 512):
        seen = Observation(Matrix(MIXED), Y.expand(runs, 2), 0.3)
        found = smc(MODEL, seen, (runs * particles, 3), steps=25, dtype=F64, seed=particles)
        weights = found.info["log_weights"].exp().reshape(runs, particles)
        means = torch.einsum("gn,gnd->gd", weights, found.info["particles"].reshape(runs, particles, 3))
        errors.append(float((means - wanted.mean).square().sum(1).mean().sqrt()))
        logs.append(float((found.info["log_evidence"] - log_evidence).square().mean().sqrt()))
    # Each root mean square of 24 runs of 3 numbers has a relative error of about 1 / sqrt(2 * 24 * 3), 8 percent.
    for large, small in (errors, logs):
        assert math.log(large / small) / math.log(16) == pytest.approx(0.5, abs=0.15)


def test_without_guidance_the_answer_is_the_same() -> None:
    """Any twist is right: one far from the truth costs particles, not the answer."""
    ess = []
    for std, operator in ((1.0, Matrix(MIXED)), (0.6, Matrix(MIXED)), (1.0, Blind(MIXED))):
        found = smc(MODEL, Observation(operator, Y, 0.5), (2048, 3), steps=20, std=std, curvature=5.0, dtype=F64)
        check(found, 20, 0.5)
        ess.append(float(found.info["ess"].min()))
    assert ess[0] > ess[1]
    assert all(1 <= size <= 2048 for size in ess)


def test_a_nonlinear_measurement_and_counts_are_weighed_by_their_likelihood() -> None:
    """Against importance sampling of the prior."""
    data = problems.Gaussian([0.5, -0.2], [[0.5, 0.2], [0.2, 0.4]])
    x = data.sample(200_000, generator(), dtype=F64)
    square = Function(lambda x: x.square().sum(1, keepdim=True), (2,))
    for seen in (
        Observation(square, torch.tensor([1.0], dtype=F64), 0.2),
        Observation(square, torch.tensor([1.5], dtype=F64), 0.0, "poisson", gain=4.0),
    ):
        logs = seen.log_likelihood(x)
        weights = logs.softmax(0)
        found = smc(data.model(CosineVP()), seen, (2048, 2), steps=40, curvature=2.0, dtype=F64)
        assert float((found.x.mean(0) - weights @ x).abs().max()) < 0.08
        assert float(found.info["log_evidence"][0]) == pytest.approx(float(logs.logsumexp(0)) - math.log(len(x)), abs=0.1)


def test_a_group_depends_on_its_own_seeds_alone() -> None:
    model, seen = network(), observe(Matrix(MIXED), start(3), 0.3, seed=1)
    seeds = list(range(10, 34))
    together = smc(model, seen, (24, 3), steps=8, seed=seeds, dtype=F64)
    for g in range(3):
        of = slice(8 * g, 8 * g + 8)
        alone = smc(model, seen.select(slice(g, g + 1)), (8, 3), steps=8, seed=seeds[of], dtype=F64)
        one = smc(model, Observation(seen.operator, seen.y[g], 0.3), (8, 3), steps=8, seed=seeds[of], dtype=F64)
        for found in (alone, one):
            torch.testing.assert_close(found.x, together.x[of], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found.info["log_evidence"], together.info["log_evidence"][g : g + 1])
            torch.testing.assert_close(found.info["ess"][:, 0], together.info["ess"][:, g])


def test_what_it_reports() -> None:
    found = smc(network(), Observation(Matrix(MIXED), Y, 0.3), (16, 3), steps=8, seed=2)
    assert (found.evaluations, found.backward, found.solver) == (8, 8, "smc")
    assert found.x.dtype == network().dtype and len(found.seeds) == 16 and len(found.times) == 9
    assert found.info["ess"].shape == (9, 1)
    assert float(found.info["log_weights"].exp().sum()) == pytest.approx(1)
    again = smc(network(), Observation(Matrix(MIXED), Y, 0.3), (16, 3), steps=8, seed=2)
    assert torch.equal(found.x, again.x)
    model = network()
    with torch.inference_mode():
        quiet = smc(model, Observation(Matrix(MIXED), Y, 0.3), (16, 3), steps=8, seed=2)
    torch.testing.assert_close(quiet.x.clone(), found.x)


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_resampling_never_and_always_agree(threshold: float) -> None:
    found = smc(MODEL, Observation(Matrix(MIXED), Y, 0.5), (2048, 3), steps=20, threshold=threshold, dtype=F64)
    check(found, 20, 0.5)


def test_lost_particles_are_told() -> None:
    dark = Function(lambda x: -1 - x[:, :1].square(), (3,))
    counts = Observation(dark, torch.tensor([3.0], dtype=F64), 0.0, "poisson")
    with pytest.raises(ValueError, match="all particles of a measurement have lost their weight"):
        smc(network(), counts, (8, 3), steps=4)


def test_a_path_that_goes_back_is_refused() -> None:
    path = resampled(make_path(MODEL.sde, "lam", 20), 2, 5)
    with pytest.raises(ValueError, match="particles would forget the measurement"):
        smc(MODEL, Observation(Matrix(MIXED), Y, 0.5), (8, 3), path=path)
