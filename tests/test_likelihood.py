"""Likelihoods by the probability flow, against the densities that are known."""

import itertools
import math
from typing import Any

import pytest
import torch
from support import SDES, generator, mixture, mostly_slow, rms
from torch import Tensor, nn

from scoresde import DDPM, VP, CosineVP, ScoreModel, log_likelihood, problems, sample
from scoresde.models import UNet
from scoresde.objectives import bits_per_dim
from scoresde.problems import Gaussian
from scoresde.sampling import TRACES
from scoresde.sampling.likelihood import gradients
from scoresde.sampling.likelihood.adams import interpolation_weights
from scoresde.score import DataMoments, Wrapper
from scoresde.sde import GaussianSDE

F64 = torch.float64


def points(n: int = 6) -> Tensor:
    return mixture().sample(n, generator(), F64)


def true_density(problem: problems.Problem[Any], sde: GaussianSDE, x: Tensor) -> Tensor:
    return problem.log_prob(x.double(), sde, sde.span[0])


class Unknown(Wrapper):
    """A model whose moments are not known."""


# The value and its error ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SDES, ["VP", "EDM"]))
def test_the_default_result_is_the_density_of_the_data(name: str) -> None:
    """Near and far from the data, where the prior is corrected by the moments."""
    sde, problem = SDES[name], mixture()
    x = torch.cat([points(), torch.tensor([[0.0, 0.0], [-2.5, 2.0], [4.0, 4.0]], dtype=F64)])
    found = log_likelihood(problem.model(sde), x)
    error = (found.log_prob - true_density(problem, sde, x)).abs()
    assert float(error.max()) < 1e-3
    assert float(found.discretization.max()) < 4e-4 and found.evaluations < 120
    assert torch.equal(found.error, found.discretization)  # the divergence is exact


@pytest.mark.parametrize("sde", [VP(), *mostly_slow([CosineVP(), DDPM.linear(1000).sde()], [])], ids=repr)
def test_points_between_the_modes_of_a_ring_are_as_exact_as_others(sde: GaussianSDE) -> None:
    problem = problems.ring()
    far = torch.tensor([[-0.2506, -0.4339], [0.0, 0.0], [1e-3, 0.0], [0.5, 0.2071], [2.8, -2.9], [1.4, 0.0]], dtype=F64)
    found = log_likelihood(problem.model(sde), far)
    assert float((found.log_prob - true_density(problem, sde, far)).abs().max()) < 1e-3


def test_sixty_evaluations_give_two_ten_thousandths_of_a_nat_per_dimension() -> None:
    problem = problems.random_mixture(64)
    x = problem.sample(4, generator(), F64)
    found = log_likelihood(problem.model(VP()), x, 1e-3, trace="exact")
    assert found.evaluations <= 60
    assert rms(found.log_prob - true_density(problem, VP(), x)) / 64 < 2e-4


@pytest.mark.parametrize("tolerance", mostly_slow([1e-2, 1e-4, 1e-6], [1e-2]))
def test_the_reported_error_covers_the_true_one_and_keeps_to_the_tolerance(tolerance: float) -> None:
    problem, x = problems.moons(), problems.moons().sample(40, generator(), F64)
    found = log_likelihood(problem.model(VP()), x, tolerance)
    error = (found.log_prob - true_density(problem, VP(), x)).abs()
    assert float((error <= found.error + 1e-7).double().mean()) >= 0.95  # what the moments leave of the prior's mismatch
    assert float(found.error.max()) <= 4 * tolerance  # in nats, of two dimensions


def test_given_steps_report_their_error_as_well() -> None:
    problem, x = mixture(), points(20)
    for steps in (10, 20, 40):
        found = log_likelihood(problem.model(VP()), x, steps=steps)
        error = (found.log_prob - true_density(problem, VP(), x)).abs()
        assert found.evaluations == steps + 1
        assert float((error <= found.error).double().mean()) >= 0.95
    assert rms(error) < 1e-3


@pytest.mark.parametrize("name", mostly_slow(SDES, ["VP", "RectifiedFlow"]))
def test_given_steps_converge_with_order_four_at_least(name: str) -> None:
    problem, x, sde = mixture(), points(), SDES[name]
    coarse, fine = (
        rms(log_likelihood(problem.model(sde), x, steps=steps).log_prob - true_density(problem, sde, x))
        for steps in (25, 100)
    )
    assert fine < 2e-4 and math.log(coarse / fine, 4) > 3


@pytest.mark.parametrize("path", mostly_slow(["t", "karras"], ["karras"]))
def test_every_path_leads_to_the_same_density(path: str) -> None:
    problem, x = mixture(), points()
    found = log_likelihood(problem.model(VP()), x, steps=200, path=path)
    torch.testing.assert_close(found.log_prob, true_density(problem, VP(), x), rtol=0, atol=5e-3)


def test_the_weights_integrate_polynomials_through_uneven_nodes() -> None:
    nodes = torch.tensor([[0.3], [0.0], [-0.1], [-0.4], [-1.1], [-1.3]], dtype=F64)
    for n in range(1, 7):
        use = torch.arange(6)[:, None] < n
        weights = interpolation_weights(nodes, use, nodes[1], nodes[0])[:, 0]
        assert bool((weights[n:] == 0).all())
        for power in range(n):
            exact = 0.3 ** (power + 1) / (power + 1)
            assert float(weights @ nodes[:, 0] ** power) == pytest.approx(exact, rel=1e-11)


def test_the_latent_is_the_start_of_the_flow_that_ends_at_the_data() -> None:
    model = mixture().model(VP())
    start = VP().prior_std * torch.randn(8, 2, dtype=F64, generator=generator(1))
    x = sample(model, start, "dpmpp-3m", 400, end="stop", progress=False).x
    torch.testing.assert_close(log_likelihood(model, x, 1e-6).latent, start, atol=2e-4, rtol=0)


@pytest.mark.parametrize("dtype", mostly_slow([torch.float32, torch.float64], [torch.float32]))
def test_a_sample_does_not_depend_on_its_batch(dtype: torch.dtype) -> None:
    model, x = mixture().model(VP()), points(5).to(dtype)
    for trace in ("exact", "rademacher") if dtype == F64 else ("rademacher",):
        whole = log_likelihood(model, x, 1e-2, trace=trace, seed=[3, 1, 4, 15, 9])
        part = log_likelihood(model, x[2:4], 1e-2, trace=trace, seed=[4, 15])
        torch.testing.assert_close(part.log_prob, whole.log_prob[2:4], rtol=1e-12 if dtype == F64 else 1e-5, atol=0)
        torch.testing.assert_close(part.error, whole.error[2:4], rtol=1e-6 if dtype == F64 else 0.2, atol=1e-4)


def test_single_precision_is_followed_to_its_rounding() -> None:
    problem, x = mixture(), points()
    for tolerance in (1e-4, 1e-9):
        found = log_likelihood(problem.model(VP()), x.float(), tolerance)
        assert found.latent.dtype == torch.float32 and found.log_prob.dtype == F64
        torch.testing.assert_close(found.log_prob, true_density(problem, VP(), x), rtol=0, atol=1e-3)


def test_a_flow_that_cannot_be_followed_is_an_error() -> None:
    def rough(x: Tensor, t: Tensor) -> Tensor:
        return x + torch.where(t > 0.3, math.nan, 0.0)[:, None]

    with pytest.raises(ArithmeticError, match="Check that the network is finite"):
        log_likelihood(ScoreModel(rough, VP()), points())
    with pytest.raises(ArithmeticError, match="Check the network there"):
        log_likelihood(ScoreModel(rough, VP()), points(), steps=10)


# The prior --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SDES, ["VP"]))
def test_the_mismatch_of_the_prior_is_what_moments_correct_and_the_model_can_tell(name: str) -> None:
    sde, problem, x = SDES[name], Gaussian([1.3, -0.2], [[0.5, 0.2], [0.2, 2.4]]), points()
    known = log_likelihood(problem.model(sde), x, 1e-6)
    true = problem.log_prob(known.latent, sde, sde.span[1]) - sde.prior_log_prob(known.latent)
    torch.testing.assert_close(known.mismatch, true, rtol=1e-6, atol=1e-9)
    told = log_likelihood(Unknown(problem.model(sde)), x, 1e-6)
    torch.testing.assert_close(told.mismatch, true, rtol=0.02, atol=1e-5)
    torch.testing.assert_close(told.log_prob + true, known.log_prob, rtol=0, atol=1e-5)


def test_moments_of_the_data_do_not_describe_data_under_conditions() -> None:
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        return 0 * x

    label = torch.tensor([3, 1, 4])
    model = ScoreModel(net, VP(), "x0")
    model.moments = DataMoments(torch.ones(2, dtype=F64), torch.ones(2, dtype=F64))
    found = log_likelihood(model, torch.ones(3, 2), steps=7, conditions={"label": label})
    assert found.evaluations == len(seen) == 10 and all(torch.equal(s, label) for s in seen)
    given = log_likelihood(model, torch.ones(3, 2), steps=7, conditions={"label": label}, moments=model.moments)
    difference = given.log_prob - found.log_prob
    torch.testing.assert_close(difference, given.mismatch)


def test_a_network_that_predicts_no_data_gives_the_density_of_none() -> None:
    """m = 0 is right for data at 0, whose noised density is a Gaussian of standard deviation sigma."""
    model, x = ScoreModel(lambda x, t: torch.zeros_like(x), VP(), "x0"), 1e-2 * points()
    model.moments = DataMoments(torch.zeros(2, dtype=F64), torch.zeros(2, dtype=F64))
    sigma = float(VP().sigma(VP().span[0]))
    true = -0.5 * (x / sigma).square().sum(1) - 2 * math.log(sigma * math.sqrt(2 * math.pi))
    torch.testing.assert_close(log_likelihood(model, x).log_prob, true, atol=1e-4, rtol=1e-6)


# Probes -----------------------------------------------------------------------------------------------------------------


def correlated(d: int) -> Gaussian:
    """A Gaussian, whose Jacobian is the same everywhere, so that probes change the trace alone."""
    return problems.gaussian(d, 30.0)


@pytest.mark.parametrize("trace", [name for name in TRACES if name != "exact"])
def test_probes_estimate_the_exact_trace_without_bias_and_report_their_error(trace: str) -> None:
    model = Unknown(correlated(12).model(VP()))
    x = torch.full((1000, 12), 0.3, dtype=F64)
    exact = log_likelihood(model, x[:1], steps=12).log_prob
    found = log_likelihood(model, x, steps=12, trace=trace, probes=6)
    off = found.log_prob - exact
    assert float(off.std()) > 0.02
    assert abs(float(off.mean())) < 4 * float(off.std()) / math.sqrt(len(x))
    assert rms(found.probe_error) == pytest.approx(float(off.std()), rel=0.15)
    assert found.estimates == (2 if trace == "hutch++" else 6)
    covered = (off.abs() <= found.error - found.discretization).double().mean()
    assert 0.9 < float(covered) < 0.98


def test_a_single_probe_has_an_unknown_error_and_the_exact_trace_none() -> None:
    model, x = mixture().model(VP()), points(3)
    one = log_likelihood(model, x, steps=10, trace="rademacher", probes=1)
    assert bool(one.error.isnan().all()) and bool(one.discretization.isfinite().all())
    assert log_likelihood(model, x, steps=10, trace="exact").probe_error.tolist() == [0.0] * 3


@pytest.mark.parametrize("trace", mostly_slow(["rademacher", "gaussian"], ["gaussian"]))
def test_moments_take_away_all_that_the_probes_of_a_gaussian_miss(trace: str) -> None:
    problem = correlated(3)
    x = problem.sample(5, generator(), F64)
    with_moments, without = (
        log_likelihood(m, x, 1e-3, trace=trace, probes=4) for m in (problem.model(VP()), Unknown(problem.model(VP())))
    )
    assert float(with_moments.probe_error.max()) < 1e-4 < 0.05 < float(without.probe_error.max())
    torch.testing.assert_close(with_moments.log_prob, true_density(problem, VP(), x), rtol=0, atol=3e-3)


def test_hutch_plus_plus_is_exact_for_a_jacobian_of_low_rank() -> None:
    factor = torch.randn(8, 2, dtype=F64, generator=generator())
    x = torch.randn(4, 8, dtype=F64, generator=generator(1), requires_grad=True)
    found = TRACES["hutch++"](x.detach(), 9, [1, 2, 3, 4])(x @ factor @ factor.T, x, False)
    torch.testing.assert_close(found, (factor**2).sum().expand(3, 4).clone())


def test_a_sample_has_its_own_probes() -> None:
    model, x = mixture().model(VP()), points(4)
    others = [
        log_likelihood(model, x[3:4], steps=5, trace="rademacher", probes=1, seed=[seed]).log_prob.item()
        for seed in range(20, 30)
    ]
    assert len({round(value, 9) for value in others}) == 2  # up to their sign there are two probes in the plane


# Gradients --------------------------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """The data prediction of a Gaussian with independent coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.2, -0.4], dtype=F64))
        self.variance = nn.Parameter(torch.tensor([0.3, 1.7], dtype=F64))

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
        mean = self.mean + shift
        return mean + alpha * self.variance / (alpha**2 * self.variance + sigma**2) * (x - alpha * mean)


@pytest.mark.parametrize(
    ("how", "mode"),
    [
        ({"tolerance": 1e-5}, torch.no_grad),
        pytest.param({"tolerance": 1e-7}, torch.enable_grad, marks=pytest.mark.slow),
        pytest.param({"steps": 60}, torch.enable_grad, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_closed_form_of_a_linear_flow(how: dict[str, Any], mode: Any) -> None:
    net = Linear()
    x = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=F64, requires_grad=True)
    shift = torch.tensor([[0.1], [-0.3]], dtype=F64, requires_grad=True)
    leaves = [x, shift, *net.parameters()]
    with mode():
        found = log_likelihood(ScoreModel(net, VP(), "x0"), x, gradients=True, conditions={"shift": shift}, **how)
    grads = torch.autograd.grad(found.log_prob.sum(), leaves)
    (a, b), (s, r) = ([f(t) for t in VP().span] for f in (VP().alpha, VP().sigma))
    mean, start, end = net.mean + shift, a**2 * net.variance + s**2, b**2 * net.variance + r**2
    latent = b * mean + (end / start).sqrt() * (x - a * mean)
    true = VP().prior_log_prob(latent) + 0.5 * (end / start).log().sum()
    torch.testing.assert_close(found.log_prob, true, rtol=0, atol=1e-4)
    for got, wanted in zip(grads, torch.autograd.grad(true.sum(), leaves), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_an_exact_model_is_its_score() -> None:
    problem = problems.ring()
    x = problem.sample(3, generator(), F64).requires_grad_()
    found = log_likelihood(problem.model(VP()), x, 1e-3, gradients=True)
    (grad,) = torch.autograd.grad(found.log_prob.sum(), x)
    torch.testing.assert_close(grad, problem.score(x.detach(), VP(), VP().span[0]), rtol=1e-2, atol=1e-2)
    assert not log_likelihood(problem.model(VP()), x, steps=5).log_prob.requires_grad


@pytest.mark.slow
def test_gradients_keep_neither_the_graph_of_the_network_nor_the_states_of_all_steps() -> None:
    """The peak of the memory, in states: six more for twice the steps, where all of them would be as many as the steps."""

    def peak(steps: int) -> float:
        x = torch.randn(1, 4000, generator=generator(), requires_grad=True)
        model = ScoreModel(lambda x, t: x.tanh().sin().tanh().sin(), VP(), "v")
        with torch.profiler.profile(profile_memory=True) as profile:
            found = log_likelihood(model, x, steps=steps, trace="rademacher", probes=1, gradients=True)
            found.log_prob.sum().backward()
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / 16000

    short, long = peak(16), peak(64)
    assert short < 80 and long - short < 20


def test_gradients_do_not_depend_on_the_pieces_in_which_the_flow_is_followed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, model, grads = points(2).requires_grad_(), mixture().model(VP()), []
    for piece in (1000, 3, 1):
        monkeypatch.setattr(gradients, "PIECE", piece)
        grads.append(*torch.autograd.grad(log_likelihood(model, x, steps=13, gradients=True).log_prob.sum(), x))
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_the_backward_pass_evaluates_the_network_as_the_forward_pass_did() -> None:
    net = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2)).double().train()
    x = points(2).requires_grad_()
    grads = []
    for training in (True, False):
        found = log_likelihood(ScoreModel(net_of(net.train(training)), VP(), "x0"), x, steps=20, gradients=True)
        grads.append(torch.autograd.grad(found.log_prob.sum(), [x, *net.parameters()]))
        assert net.training == training
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def net_of(net: nn.Module) -> nn.Module:
    class Timeless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.inner(x)

    return Timeless()


# Networks ---------------------------------------------------------------------------------------------------------------


def test_a_prediction_without_a_graph_is_looked_at_once_more_and_counted() -> None:
    times = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        times.append(t)
        return torch.zeros_like(x)

    assert log_likelihood(ScoreModel(net, VP(), "x0"), torch.ones(3, 2), steps=7).evaluations == len(times) == 11


def test_images_in_single_precision_leave_network_and_generator_as_they_were() -> None:
    net = UNet(1, 8, (1, 2), lean=True).train()
    nn.init.normal_(net.output.weight, std=0.05)
    before = torch.random.get_rng_state()
    x = torch.randn(2, 1, 4, 4, generator=generator())
    exact = log_likelihood(ScoreModel(net, VP(), "v"), x, steps=4, trace="exact")
    many = log_likelihood(ScoreModel(net, VP(), "v"), x, steps=4, trace="rademacher", probes=12)
    assert exact.log_prob.dtype == F64 and exact.latent.dtype == x.dtype and not exact.log_prob.requires_grad
    assert bool(((many.log_prob - exact.log_prob).abs() < 4 * many.probe_error).all())
    assert net.training and torch.equal(torch.random.get_rng_state(), before)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.slow
def test_bits_of_data_on_a_grid_bound_their_probability() -> None:
    model, width = Gaussian([0.1], [[0.3]]).model(VP()), 0.5
    x = torch.tensor([[-0.5], [0.0], [0.5]], dtype=F64)
    edges = torch.stack([x - width / 2, x + width / 2]).squeeze(2)
    true = -torch.log2(torch.special.ndtr((edges[1] - 0.1) / 0.3**0.5) - torch.special.ndtr((edges[0] - 0.1) / 0.3**0.5))
    log_prob = lambda y: log_likelihood(model, y).log_prob  # noqa: E731
    bits = bits_per_dim(log_prob, x, width, generator(), samples=100)
    assert bool((bits > true - 0.03).all() and (bits < true + 0.1).all())


@pytest.mark.parametrize(
    ("call", "wrong", "sentence"),
    [
        (lambda m: log_likelihood(m, torch.ones(3)), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m: log_likelihood(m, torch.ones(3, 2, dtype=torch.int64)), ValueError, "expected a floating point tensor"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), trace="full"), ValueError, "expected one of exact, rademacher"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), trace="hutch++", probes=2), ValueError, "expected at least 3"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), probes=0), ValueError, "got probes=0"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), 50), ValueError, "steps=50 gives a number of steps"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), 0.0), ValueError, "got tolerance=0.0"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[0.5, 0.1]), ValueError, "expected falling ones from the prior"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[1.0, 0.1, 0.0]), ValueError, "to one with some noise"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), path=[1.0, 0.1, 0.5]), ValueError, "expected falling ones"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), t_min=0.0), ValueError, "to one with some noise"),
        (lambda m: log_likelihood(m, torch.ones(3, 2), steps=0), ValueError, "got steps=0"),
        (lambda m: log_likelihood(m, torch.ones(3, 3)), ValueError, r"got x of shape \(3, 3\)"),
        (lambda m: log_likelihood(m.net, torch.ones(3, 2)), TypeError, "expected a ScoreModel"),
    ],
)
def test_what_cannot_be_is_refused(call, wrong: type[Exception], sentence: str) -> None:
    with pytest.raises(wrong, match=sentence):
        call(mixture().model(VP()))
