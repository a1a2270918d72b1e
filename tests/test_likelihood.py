"""Likelihoods by the probability flow, against the densities that are known."""

import math

import pytest
import torch
from support import SDES, mixture
from torch import Tensor, nn

from scoresde import DDPM, VP, ScoreModel, log_likelihood, sample
from scoresde.models import UNet
from scoresde.objectives import bits_per_dim
from scoresde.problems import Gaussian


def points(n: int = 6) -> Tensor:
    return mixture().sample(n, torch.Generator().manual_seed(0)).double()


def error(sde, steps: int, path="lam") -> Tensor:
    """Of the log-density along the flow, with the true density in place of the prior at its end."""
    problem, x = mixture(), points()
    found = log_likelihood(problem.model(sde), x, steps, path, trace="exact")
    end = problem.log_prob(found.latent, sde, sde.span[1])
    return found.log_prob - sde.prior_log_prob(found.latent) + end - problem.log_prob(x, sde, sde.span[0])


@pytest.mark.parametrize("name", SDES)
def test_the_flow_carries_the_true_density_with_order_four(name: str) -> None:
    coarse, fine = (error(SDES[name], steps).abs().mean() for steps in (16, 64))
    assert fine < 1e-5
    assert 3.3 < math.log(coarse / fine, 4) < 5.2


@pytest.mark.parametrize("path", ["t", "quadratic", "karras"])
def test_every_path_leads_to_the_same_density(path: str) -> None:
    assert error(VP(), 150, path).abs().max() < 2e-3


def test_a_gaussian_has_its_density_under_a_chain() -> None:
    problem = Gaussian([0.3, -0.2], [[0.5, 0.2], [0.2, 0.4]])
    model, x = problem.model(DDPM.linear(100)), points()
    found = log_likelihood(model, x, 100, trace="exact")
    true = problem.log_prob(x, model.sde, model.sde.span[0])
    prior = problem.log_prob(found.latent, model.sde, model.sde.span[1]) - model.sde.prior_log_prob(found.latent)
    torch.testing.assert_close(found.log_prob + prior, true, atol=2e-3, rtol=0)


def test_the_latent_is_the_start_of_the_flow_that_ends_at_the_data() -> None:
    model, sde = mixture().model(VP()), VP()
    start = sde.prior_std * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = sample(model, start, "dpmpp-3m", 400, end="stop", progress=False).x
    torch.testing.assert_close(log_likelihood(model, x, 100).latent, start, atol=1e-4, rtol=1e-4)


def test_probes_estimate_the_exact_trace_without_bias() -> None:
    """For a Gaussian the Jacobian is the same everywhere, so that all that probes change is the trace."""
    covariance = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.5]], dtype=torch.float64)
    model = Gaussian(torch.zeros(3, dtype=torch.float64), covariance).model(VP())
    x = torch.tensor([[0.4, -0.3, 0.9]], dtype=torch.float64).expand(4000, 3)
    exact = log_likelihood(model, x[:1], 20, trace="exact").log_prob
    one, four = (log_likelihood(model, x, 20, probes=probes).log_prob - exact for probes in (1, 4))
    assert one.std() > 0.05
    for estimate in (one, four):
        assert abs(estimate.mean()) < 4 * estimate.std() / math.sqrt(len(x))
    assert 0.85 < 2 * four.std() / one.std() < 1.15


def test_the_error_is_the_deviation_of_the_estimates() -> None:
    """For a Gaussian all that probes change is the trace, so that the estimates of one point are all of one law."""
    covariance = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.5]], dtype=torch.float64)
    model = Gaussian(torch.zeros(3, dtype=torch.float64), covariance).model(VP())
    x = torch.tensor([[0.4, -0.3, 0.9]], dtype=torch.float64).expand(2000, 3)
    found = log_likelihood(model, x, 10, probes=8)
    assert float(found.error.square().mean().sqrt()) == pytest.approx(float(found.log_prob.std()), rel=0.1)
    assert bool(log_likelihood(model, x[:3], 10).error.isnan().all())
    assert log_likelihood(model, x[:3], 10, trace="exact").error.tolist() == [0.0] * 3


def test_a_sample_has_its_own_probes_whatever_its_batch() -> None:
    model, x = mixture().model(VP()), points(5)
    whole = log_likelihood(model, x, 5, seed=[3, 1, 4, 15, 9]).log_prob
    assert torch.equal(log_likelihood(model, x[2:4], 5, seed=[4, 15]).log_prob, whole[2:4])
    others = [log_likelihood(model, x[3:4], 5, seed=[seed]).log_prob.item() for seed in range(20, 30)]
    assert len(set(others)) == 2  # up to their sign there are two probes in the plane


def test_what_the_network_gets_and_how_often() -> None:
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return 0 * x

    label = torch.tensor([3, 1, 4])
    found = log_likelihood(ScoreModel(net, VP(), "x0"), torch.ones(3, 2), 7, conditions={"label": label})
    assert found.evaluations == len(seen) == 28 and all(torch.equal(s, label) for s in seen)


def test_a_prediction_without_a_graph_is_looked_at_once_more_and_counted() -> None:
    times = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    assert log_likelihood(ScoreModel(net, VP(), "x0"), torch.ones(3, 2), 7).evaluations == len(times) == 29


def test_a_network_that_predicts_no_data_gives_the_density_of_none() -> None:
    """m = 0 is right for data at 0, whose noised density is a Gaussian of deviation sigma."""
    model, x = ScoreModel(lambda x, t: torch.zeros_like(x), VP(), "x0"), 1e-2 * points()
    low, high = VP().span
    sigma = float(VP().sigma(low))
    true = -0.5 * (x / sigma).square().sum(1) - 2 * math.log(sigma * math.sqrt(2 * math.pi))
    found = log_likelihood(model, x, 60)
    at_end = VP().prior_std / float(VP().sigma(high))  # the prior is a little wider than the density that is carried there
    correction = 2 * math.log(at_end) - 0.5 * (found.latent.square().sum(1) * (at_end**2 - 1)) / VP().prior_std ** 2
    torch.testing.assert_close(found.log_prob + correction, true, atol=1e-4, rtol=1e-6)


def test_images_in_single_precision_leave_network_and_generator_as_they_were() -> None:
    net = UNet(1, 8, (1, 2), lean=True).train()
    nn.init.normal_(net.output.weight, std=0.05)
    before = torch.random.get_rng_state()
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    exact = log_likelihood(ScoreModel(net, VP(), "v"), x, 3, trace="exact")
    many = log_likelihood(ScoreModel(net, VP(), "v"), x, 3, probes=40)
    assert exact.log_prob.dtype == torch.float64 and exact.latent.dtype == x.dtype and not exact.log_prob.requires_grad
    torch.testing.assert_close(many.log_prob, exact.log_prob, atol=1.5, rtol=0)
    assert net.training and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.slow
def test_bits_of_data_on_a_grid_bound_their_probability() -> None:
    model, width = Gaussian([0.1], [[0.3]]).model(VP()), 0.5
    x = torch.tensor([[-0.5], [0.0], [0.5]], dtype=torch.float64)
    edges = torch.stack([x - width / 2, x + width / 2]).squeeze(2)
    true = -torch.log2(torch.special.ndtr((edges[1] - 0.1) / 0.3**0.5) - torch.special.ndtr((edges[0] - 0.1) / 0.3**0.5))
    log_prob = lambda y: log_likelihood(model, y, 16, trace="exact").log_prob  # noqa: E731
    bits = bits_per_dim(log_prob, x, width, torch.Generator().manual_seed(0), samples=100)
    assert bool((bits > true - 0.03).all() and (bits < true + 0.1).all())


@pytest.mark.parametrize(
    ("call", "wrong", "sentence"),
    [
        (lambda m: log_likelihood(m, torch.ones(3)), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m: log_likelihood(m, torch.ones(3, 2, dtype=torch.int64)), ValueError, "expected a floating point tensor"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), trace="full"), ValueError, "expected 'hutchinson' or 'exact'"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), probes=0), ValueError, "at least one probe"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[0.5, 0.1]), ValueError, "expected falling ones from the prior"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[1.0, 0.1, 0.0]), ValueError, "to one with some noise"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[1.0, 0.1, 0.5]), ValueError, "expected falling ones"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), steps=0), ValueError, "got steps=0"),
        (lambda m: log_likelihood(m.net, torch.ones(3, 2)), TypeError, "expected a ScoreModel"),
    ],
)
def test_what_cannot_be_is_refused(call, wrong: type[Exception], sentence: str) -> None:
    with pytest.raises(wrong, match=sentence):
        call(mixture().model(VP()))
