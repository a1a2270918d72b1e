"""Bounds of the likelihood, which an exact score makes tight, and importance-weighted estimates."""

import math

import pytest
import torch
from support import SDES, generator, mixture, mostly_slow, rms

from scoresde import DDPM, VP, CosineVP, ScoreModel
from scoresde.objectives import VariationalBound
from scoresde.problems import Gaussian
from scoresde.sampling import importance_weighted, variational_bound
from scoresde.score import Wrapper

F64 = torch.float64


@pytest.mark.parametrize("name", mostly_slow(SDES, ["VP", "RectifiedFlow"]))
def test_the_bound_of_an_exact_score_is_the_density(name: str) -> None:
    problem, x = mixture(), mixture().sample(40, generator(), F64)
    found = variational_bound(problem.model(SDES[name]), x, 32, repeats=4)
    off = found.log_prob - problem.log_prob(x)
    ratio = off / found.error
    assert abs(float(off.mean())) < 4 * rms(found.error) / math.sqrt(len(x)) + 0.02  # of the decoder at t_min
    assert float((ratio.abs() < 3.182).double().mean()) > 0.85  # Student's interval at 95 % of four repeats
    torch.testing.assert_close(found.prior + found.path + found.decoder, found.log_prob)
    assert found.evaluations == 4 * 33


def test_the_terms_of_a_gaussian_are_known() -> None:
    """For standard normal data under VP the noise prediction is sigma x, with error alpha^2 eps - alpha sigma x_0."""
    x = torch.tensor([[0.7, -1.2]], dtype=F64).expand(300, 2)
    sde = VP()
    found = variational_bound(Gaussian([0.0, 0.0], 1.0).model(sde), x, 32)
    (a, b), (s, r) = ([float(f(t)) for t in sde.span] for f in (sde.alpha, sde.sigma))
    square = float(x[0].square().sum())
    prior = -0.5 * (b**2 * square / r**2)
    decoder = -0.5 * (a**4 * 2 + a**2 * s**2 * square) - 2 * (math.log(s / a) + 0.5 * math.log(2 * math.pi))
    # With A = alpha^2 = 1 / (1 + e^(-2 lam)), d lam = dA / (2 A (1 - A)): the integral of 2 A^2 + A (1 - A) x^2.
    high, low = a**2, b**2
    path = -(-(high - low) - math.log((1 - high) / (1 - low))) - 0.5 * (high - low) * square
    for name, wanted in (("prior", prior), ("path", path), ("decoder", decoder)):
        value = getattr(found, name)
        assert abs(float(value.mean()) - wanted) < 4 * float(value.std()) / math.sqrt(len(x)) + 1e-9, name


def test_a_wrong_score_has_a_bound_below_the_density() -> None:
    class Shrunk(Wrapper):
        def x0(self, x, t, **conditions):
            return 0.8 * self.model.x0(x, t, **conditions)

    problem, x = mixture(), mixture().sample(30, generator(), F64)
    found = variational_bound(Shrunk(problem.model(VP())), x, 32)
    assert float((found.log_prob - problem.log_prob(x)).mean()) < -1


def test_importance_weights_approach_the_density_from_below() -> None:
    problem = Gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.4]])
    x, model = problem.sample(30, generator(), F64), problem.model(VP())
    few, many = (importance_weighted(model, x, k, tolerance=1e-2) - problem.log_prob(x) for k in (1, 8))
    assert rms(many) < 0.02 and rms(many) < rms(few)
    assert float(few.mean()) < 3 * float(few.std()) / math.sqrt(len(x)) + 0.02  # the tolerance of two dimensions
    early = importance_weighted(model, x, 2, t=0.15, tolerance=1e-2) - problem.log_prob(x)
    assert float(early.mean()) < 0 and rms(early) > 2 * rms(many)  # the decoder is wider than the posterior


@pytest.mark.parametrize("seeds", [[5, 6, 7, 8]])
def test_a_sample_has_its_own_draws(seeds: list[int]) -> None:
    model, x = mixture().model(CosineVP()), mixture().sample(4, generator(), F64)
    whole, part = (variational_bound(model, x[i:], 8, seed=seeds[i:]) for i in (0, 2))
    torch.testing.assert_close(whole.log_prob[2:], part.log_prob, rtol=1e-10, atol=0)
    whole, part = (importance_weighted(model, x[i:], 2, t=0.1, tolerance=1e-2, seed=seeds[i:]) for i in (0, 2))
    torch.testing.assert_close(whole[2:], part, rtol=1e-10, atol=0)


def test_the_terms_of_a_chain_add_up() -> None:
    model = Gaussian([0.0], 1.0).model(DDPM.linear(40, 1e-3, 0.2))
    x = torch.tensor([[0.0], [1.0]], dtype=F64)
    bound = VariationalBound("upper")
    terms = bound.terms(model, x, generator())
    assert terms.shape == (41, 2)
    torch.testing.assert_close(terms.sum(0), bound.total(model, x, generator()))
    sigma, alpha = (float(f(1.0)) for f in (model.sde.sigma, model.sde.alpha))
    torch.testing.assert_close(terms[0], 0.5 * (alpha / sigma) ** 2 * x[:, 0] ** 2 / math.log(2))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x: variational_bound(m, x, 0), "got draws=0"),
        (lambda m, x: variational_bound(m, x, 4, repeats=1), "got repeats=1"),
        (lambda m, x: variational_bound(m, x, 4, t_min=0.0), "expected a time with some noise"),
        (lambda m, x: variational_bound(m, x.int(), 4), "expected a floating point tensor"),
        (lambda m, x: importance_weighted(m, x, 0), "got samples=0"),
        (lambda m, x: importance_weighted(m, x, 2, t=1.0), "expected a time with some noise"),
    ],
)
def test_what_cannot_be_is_refused(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(mixture().model(VP()), torch.ones(3, 2))


def test_conditions_reach_the_network() -> None:
    labels = []

    def net(x, t, label):
        labels.append(label.tolist())
        return 0 * x

    x = torch.ones(2, 3)
    model = ScoreModel(net, VP(), "x0")
    variational_bound(model, x, 2, repeats=2, conditions={"label": [4, 5]})
    assert labels == [[4, 5]] * 6
