"""Uses of models on SDEs with matrix coefficients: densities, encoding, guidance, inverse problems, by closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import scoresde
from scoresde import VP, guidance, inverse, log_likelihood, sample
from scoresde.inverse.operators import Mask
from scoresde.models import MLP
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.sampling import Coupled, decode, encode, latents, sdedit, teleport
from scoresde.score import MatrixModel
from scoresde.sde import CLD, Anisotropic, Blurring, LinearSDE, MatrixSDE, Subspace, ThirdOrderLangevin
from scoresde.solvers import BrownianNoise
from scoresde.training.files.description import build_process, describe
from tests.support import generator, mostly_slow

F64 = torch.float64
SDES: dict[str, MatrixSDE] = {
    "CLD": CLD(),
    "CLD without initial velocities": CLD(gamma=0.0),
    "ThirdOrderLangevin": ThirdOrderLangevin(),
    "LinearSDE": LinearSDE([[-1.0, 2.0], [-0.5, -1.5]], [[0.3, 0.0], [0.2, 1.1]], [[0.0, 0.0], [0.0, 0.5]], beta_max=4.0),
    "Blurring": Blurring((2,), blur=1.0),
    "Anisotropic": Anisotropic(torch.tensor([[2.0, 0.8], [0.8, 1.0]])),
    "Subspace": Subspace(torch.tensor([[0.6, 0.8]])),
}
"""SDEs of data with two numbers; a new one is tested by being added here."""
ONE = {name: sde for name, sde in SDES.items() if sde.variables == 1}
SKEWED = GaussianMixture([[-1.0, 0.3], [0.8, -0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]]], [0.3, 0.7])
GAUSSIAN = Gaussian([0.3, -0.5], [[0.5, 0.2], [0.2, 0.3]])
every = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


def data(sde: MatrixSDE, n: int = 4) -> Tensor:
    x = SKEWED.sample(n, generator(), F64)
    return x if sde.variables > 1 else sde.driven(x)  # in the subspace


def states(sde: MatrixSDE, t: float, n: int = 4) -> Tensor:
    x0 = SKEWED.sample(n, generator(), F64)
    return sde.perturb(x0, t, torch.randn(sde.state_shape(x0.shape), generator=generator(1), dtype=F64))


def density(sde: MatrixSDE, x: Tensor) -> Tensor:
    """The log-density of the first variable at t_min: the data shrunk, with its own part of the noise."""
    t = torch.tensor(sde.span[0], dtype=F64)
    if sde.variables == 1:
        return SKEWED.model(sde).log_prob(x, sde.span[0])
    psi, variance = float(sde.mean_factor(t)[0, 0]), float(sde.covariance(t)[0, 0])
    parts = MultivariateNormal(psi * SKEWED.means, psi**2 * SKEWED.covariances + variance * torch.eye(2, dtype=F64))
    return MixtureSameFamily(Categorical(SKEWED.weights), parts).log_prob(x)


# Likelihood ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SDES, ["CLD", "Blurring"]))
def test_the_likelihood_is_the_density_of_the_data(name):
    sde = SDES[name]
    x = data(sde, 2)
    found = log_likelihood(SKEWED.model(sde), x, 1e-3, draws=4)
    error = (found.log_prob + found.mismatch - density(sde, x)).abs()
    assert bool((error <= found.discretization + 6 * found.probe_error + 1e-4).all()), error
    assert float(found.discretization.max()) < 0.02 and float(error.max()) < 0.05
    assert found.latent.shape == sde.state_shape(x.shape) and found.estimates == (4 if sde.variables > 1 else 1)


@pytest.mark.slow
def test_a_given_number_of_steps_converges_with_order_four_at_least():
    sde = SDES["Blurring"]
    x, errors = data(sde), []
    for steps in (25, 100):
        found = log_likelihood(SKEWED.model(sde), x, steps=steps)
        errors.append(float((found.log_prob + found.mismatch - density(sde, x)).abs().max()))
        assert found.evaluations == steps + 3  # with the two of the mismatch
    assert errors[1] < max(2e-4, errors[0] / 64)


def test_sixty_steps_are_enough_with_velocities():
    # In coordinates that did not turn they would miss by tens of nats.
    x = data(CLD(), 1)
    found = log_likelihood(SKEWED.model(CLD()), x, steps=60, draws=2)
    error = (found.log_prob + found.mismatch - density(CLD(), x)).abs()
    assert bool((error <= found.discretization + 6 * found.probe_error).all()) and float(found.discretization.max()) < 0.1


@pytest.mark.slow
def test_draws_of_velocities_are_no_more_than_noise_of_the_result():
    # The integrand p(x, v) / q(v | x) hardly depends on v, and each sample has its own draws.
    model, x = SKEWED.model(CLD()), data(CLD(), 2)
    both = log_likelihood(model, x, 1e-2, draws=2, seed=[3, 4])
    alone = log_likelihood(model, x[1:], 1e-2, draws=2, seed=[4])
    torch.testing.assert_close(both.log_prob[1:], alone.log_prob, rtol=0, atol=1e-9)
    assert 0 < float(both.probe_error.max()) < 0.1
    assert bool(log_likelihood(model, x[:1], 0.1, draws=1).probe_error.isnan().all())


@pytest.mark.parametrize("name", mostly_slow(["Blurring", "Anisotropic"], ["Blurring"]))
def test_the_latent_decodes_to_the_data(name):
    # The flow by the integrator of densities, and back by rows of matrices.
    sde = ONE[name]
    model, x = SKEWED.model(sde), data(sde)
    latent = log_likelihood(model, x, 1e-6).latent
    torch.testing.assert_close(decode(model, latent, steps=100).x, x, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", mostly_slow(["Blurring", "CLD"], ["Blurring"]))
def test_gradients_of_the_likelihood_are_the_score(name):
    # The steps are constants of the gradient. With two draws of velocities it would have an error of 0.03.
    sde = SDES[name]
    x = data(sde, 2).requires_grad_()
    with torch.no_grad():
        found = log_likelihood(SKEWED.model(sde), x, 1e-5, gradients=True, draws=16)
    (gradient,) = torch.autograd.grad((found.log_prob + found.mismatch).sum(), x)
    (expected,) = torch.autograd.grad(density(sde, x).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0.02)


def test_probes_estimate_the_exact_divergence():
    sde = SDES["Anisotropic"]
    model, x = SKEWED.model(sde), data(sde, 2)
    exact = log_likelihood(model, x, steps=30)
    probed = log_likelihood(model, x, steps=30, trace="rademacher", probes=64)
    assert bool(((probed.log_prob - exact.log_prob).abs() < 5 * probed.probe_error).all())


def test_a_network_that_cuts_the_gradient_is_refused():
    model = MatrixModel(lambda x, t: torch.sin(x).detach(), Blurring((2,)), "edm")
    with pytest.raises(ValueError, match="carry no gradient"):
        log_likelihood(model, torch.zeros(1, 2))
    constant = MatrixModel(lambda x, t: torch.zeros_like(x), Blurring((2,)), "edm", sigma_data=1.0)
    found = log_likelihood(constant, torch.zeros(1, 2, dtype=F64))  # with a prediction that is linear in x
    assert bool(torch.isfinite(found.log_prob).all())


# Encoding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mostly_slow(SDES, ["Subspace"]))
def test_decoding_undoes_encoding_with_order_three(name):
    sde = SDES[name]
    model, z = SKEWED.model(sde), states(sde, sde.span[0])
    errors = []
    for steps in (20, 40):
        found = encode(model, z, steps=steps)
        errors.append(float((decode(model, found.x, steps=steps).x - z).abs().max()))
        assert found.times[0] == sde.span[0] and found.times[-1] == sde.span[1] and found.evaluations == 3 * steps
    assert errors[1] < errors[0] / 4.5 and errors[1] < 0.05


@pytest.mark.parametrize("name", mostly_slow(["CLD", "Blurring"], ["CLD"]))
def test_latents_of_gaussian_data_have_the_law_at_the_end(name):
    # The flow of Gaussian data is affine: the matrix that it is takes one covariance to the other.
    sde, model = SDES[name], GAUSSIAN.model(SDES[name])
    (low, high), d = sde.span, sde.state_shape((1, 2)).numel()
    units = torch.cat([torch.zeros(1, d, dtype=F64), torch.eye(d, dtype=F64)]).reshape(-1, *sde.state_shape((1, 2))[1:])
    moved = encode(model, units, steps=60).x.flatten(1)
    flow = moved[1:] - moved[:1]  # rows are the images of unit vectors

    def covariance(t: float) -> Tensor:
        roots = torch.linalg.cholesky(GAUSSIAN.covariance).mT
        of_data = sde.perturb(roots, t, torch.zeros(sde.state_shape((2, 2)), dtype=F64)).flatten(1)
        of_noise = sde.perturb(torch.zeros(d, 2, dtype=F64), t, units[1:]).flatten(1)
        return of_data.mT @ of_data + of_noise.mT @ of_noise

    torch.testing.assert_close(flow.mT @ covariance(low) @ flow, covariance(high), rtol=0, atol=1e-2)


def test_encoding_keeps_states_and_differentiates():
    sde = SDES["Subspace"]
    model, z = SKEWED.model(sde), states(sde, sde.span[0]).requires_grad_()
    path = [1.0, 0.5, 0.1]
    found = encode(model, z, "noise-2", path=path, keep=[0.5], driver="differentiable")
    (gradient,) = torch.autograd.grad(found.x.sum(), z)
    assert found.states[0.5].shape == z.shape and float(gradient.abs().min()) > 0


# Guidance ------------------------------------------------------------------------------------------------------------

LEFT, RIGHT = Gaussian([-1.0, 0.2], 0.2), Gaussian([1.0, -0.3], [[0.3, 0.1], [0.1, 0.2]])
BOTH = GaussianMixture([[-1.0, 0.2], [1.0, -0.3]], [[[0.2, 0.0], [0.0, 0.2]], [[0.3, 0.1], [0.1, 0.2]]])


@every
def test_guidance_by_contrast_adds_scores(sde):
    z, scale = states(sde, 0.3), torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64)
    strong, weak = RIGHT.model(sde), BOTH.model(sde)
    expected, one = strong.score(z, 0.3), weak.score(z, 0.3)
    w = scale.reshape(-1, *[1] * (z.ndim - 1))
    found = guidance.Auto(strong, weak, scale)
    torch.testing.assert_close(found.score(z, 0.3), one + w * (expected - one), rtol=1e-9, atol=1e-9)
    every_time = torch.full((4,), 0.3, dtype=F64)
    inside = guidance.Auto(strong, weak, scale, interval=(0.2, 0.4))
    torch.testing.assert_close(inside.x0(z, every_time), found.x0(z, 0.3), rtol=1e-9, atol=1e-9)
    product = guidance.Compose({strong: 2.0, weak: -1.0})
    torch.testing.assert_close(product.score(z, 0.3), 2 * expected - one, rtol=1e-9, atol=1e-9)


@every
def test_an_exact_classifier_and_an_exact_mixture_give_the_conditional_and_the_mixed_model(sde):
    left, right, both = LEFT.model(sde), RIGHT.model(sde), BOTH.model(sde)
    z = states(sde, 0.3)
    guided = guidance.Classifier(both, lambda x, t: right.log_prob(x, t) - both.log_prob(x, t), 1.0)
    torch.testing.assert_close(guided.x0(z, 0.3), right.x0(z, 0.3), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(guided.score(z, 0.3), right.score(z, 0.3), rtol=1e-6, atol=1e-6)
    mixed = guidance.Mixture({left: 0.5, right: 0.5}, [left.log_prob, right.log_prob])
    torch.testing.assert_close(mixed.x0(z, 0.3), both.x0(z, 0.3), rtol=1e-9, atol=1e-9)


def test_classifier_free_guidance_of_a_network_runs_and_is_counted():
    net = MLP(2, hidden=(8,), num_classes=3).double()
    torch.nn.init.normal_(net.output.weight, generator=generator())
    model, z, label = MatrixModel(net, CLD()), states(CLD(), 0.3), torch.tensor([0, 1, 2, 0])
    one, other = (model.x0(z, 0.3, label=v) for v in (label, torch.full((4,), 3)))
    for guided in (
        guidance.ClassifierFree(model, 2.0, {"label": 3}),
        guidance.Projected(model, 2.0, {"label": 3}, parallel=1.0),
        guidance.StaticThreshold(guidance.ClassifierFree(model, 2.0, {"label": 3}, batched=False), -9.0, 9.0),
    ):
        torch.testing.assert_close(guided.x0(z, 0.3, label=label), other + 2 * (one - other), rtol=1e-9, atol=1e-9)
    found = sample(guided, (4, 2), "gddim-2", 5, conditions={"label": label}, progress=False)
    assert found.evaluations == 10 and found.x.shape == (4, 2)
    rescaled = guidance.ClassifierFree(model, 2.0, {"label": 3}, rescale=1.0).x0(z, 0.3, label=label)
    torch.testing.assert_close(rescaled.std(1), one.std(1), rtol=1e-9, atol=1e-9)


# Inverse problems ----------------------------------------------------------------------------------------------------

SEEN = GAUSSIAN.posterior(torch.tensor([[1.0, 0.5]], dtype=F64), [0.7], 0.2)


@every
@pytest.mark.parametrize("method", ["TMPD", "MMPS"])
def test_methods_with_the_covariance_sample_the_posterior_of_gaussian_data(sde, method):
    if isinstance(sde, Subspace):
        pytest.skip("its data are a projection, of which the posterior problem knows nothing")
    model = getattr(inverse, method)(GAUSSIAN.model(sde), inverse.Observation.of(SEEN))
    for t in (sde.span[0], 0.3, sde.span[1]):
        z = states(sde, t)
        torch.testing.assert_close(model.x0(z, t), SEEN.model(sde).x0(z, t), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", [s for s in SDES.values() if not s.modes], ids=lambda s: type(s).__name__)
def test_pseudoinverse_guidance_is_exact_for_data_of_one_variance(sde):
    prior = Gaussian([0.3, -0.5], 0.49)
    seen = prior.posterior(torch.tensor([[1.0, 0.5]], dtype=F64), [0.7], 0.2)
    model, z = inverse.PiGDM(prior.model(sde), inverse.Observation.of(seen), std=0.7), states(sde, 0.3)
    torch.testing.assert_close(model.x0(z, 0.3), seen.model(sde).x0(z, 0.3), rtol=1e-9, atol=1e-9)


def test_methods_are_those_of_a_scalar_sde_where_the_coefficients_are_numbers():
    made, sde, t = LinearSDE([[-0.5]], [[1.0]], beta_min=0.1, beta_max=20.0), VP(), torch.tensor(0.4, dtype=F64)
    z, seen = states(made, 0.4), inverse.Observation(Mask([True, False]), torch.tensor([0.7], dtype=F64), 0.2)
    for make in (
        lambda m: inverse.TMPD(m, seen, "diagonal"),
        lambda m: inverse.PiGDM(m, seen),
        lambda m: inverse.DPS(m, seen, step="likelihood"),
        lambda m: inverse.DDNM(m, seen),
        lambda m: inverse.DiffPIR(m, seen),
        lambda m: inverse.ReconstructionGuidance(m, seen),
    ):
        one, other = (make(SKEWED.model(s)).x0(z, t) for s in (made, sde))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


# Files ---------------------------------------------------------------------------------------------------------------


@every
def test_a_saved_model_loads_alone(tmp_path, sde):
    model = MatrixModel(MLP(2, hidden=(4,)).double(), sde, "eps", sigma_data=0.7)
    scoresde.save(model, tmp_path / "model.safetensors")
    again = scoresde.load(tmp_path / "model.safetensors")
    assert type(again) is MatrixModel and again.sde == sde and again.predicts == "eps" and again.sigma_data == 0.7
    assert all(map(torch.equal, model.parameters(), again.parameters()))


def test_a_description_that_makes_no_sde_is_refused(tmp_path):
    model = MatrixModel(MLP(2, hidden=(4,)), CLD())
    described = describe(model)
    with pytest.raises(scoresde.training.CheckpointError, match="describes a CLD that cannot be built: got mass=-1"):
        build_process({**described["process"], "mass": -1.0}, "default", tmp_path)
    with pytest.raises(scoresde.training.CheckpointError, match="that cannot be built"):
        build_process({**described["process"], "mas": 1.0}, "default", tmp_path)


# What is refused -----------------------------------------------------------------------------------------------------

NOISY = inverse.Observation(Mask([True, False]), torch.tensor([0.7]), 0.1)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: log_likelihood(m, torch.zeros(2, 2), moments=GAUSSIAN.model(VP()).moments), "expected moments=None"),
        (lambda m: log_likelihood(m, torch.zeros(2, 2), draws=0), "got draws=0"),
        (lambda m: log_likelihood(m, torch.full((2, 2), torch.nan)), "4 numbers that are not finite"),
        (lambda m: log_likelihood(m, torch.zeros(2, 2), path=[0.5, 0.2]), "expected falling ones from the prior"),
        (lambda m: log_likelihood(m, torch.zeros(2, 2), path=[1.0, 0.0]), "where the data have a density"),
        (lambda m: log_likelihood(m, torch.zeros(2, 3)), "a state of GaussianMixture"),
        (
            lambda m: log_likelihood(SKEWED.model(SDES["Subspace"]), torch.ones(1, 2)),
            "data outside of the subspace of Subspace",
        ),
        (lambda m: encode(m, torch.zeros(2, 2)), r"expected states \(batch, 2, \*event\), such as sde.perturb"),
        (lambda m: encode(m, torch.zeros(2, 2, 2), "gddim-sde"), "which draws noise.*such as 'noise-2'"),
        (lambda m: encode(m, torch.zeros(2, 2, 2), "rk4"), "got matrix solver|expected a solver of"),
        (lambda m: encode(m, torch.zeros(2, 2, 2), Coupled()), "expected a deterministic solver"),
        (lambda m: encode(m, torch.zeros(2, 2, 2), path=[1.0, 0.0]), "ends at the clean data"),
        (lambda m: encode(m, torch.zeros(2, 2, 2), path=[1.0, 0.3, 0.5]), "goes back towards the noise"),
        (lambda m: encode(m, torch.zeros(0, 2, 2)), "expected at least one, all finite"),
        (lambda m: sdedit(m, torch.zeros(2, 2), 0.5), "there are sample, encode, decode, log_likelihood"),
        (lambda m: teleport(m, 0.5), "there are sample, encode, decode, log_likelihood"),
        (lambda m: latents(m, (2, 2)), "no single standard deviation"),
        (lambda m: scoresde.sampling.variational_bound(m, torch.zeros(2, 2)), "there are sample, encode"),
        (lambda m: guidance.CFGPlusPlus(m, 0.5, {"label": 3}), "for guidance that belongs to the steps of scalar solvers"),
        (lambda m: guidance.DynamicThreshold(m, path="lam"), "for guidance that belongs to the steps of scalar solvers"),
        (lambda m: guidance.Compose({m: 2.0}), "expected a sum of 1: add the unconditional model"),
        (lambda m: inverse.DPS(m, NOISY), "expected step='likelihood', TMPD, MMPS or PiGDM"),
        (lambda m: sample(m, (2, 2), inverse.ddrm(NOISY), progress=False), "whose coefficients are matrices; expected"),
        (lambda m: sample(m, (2, 2), noise=BrownianNoise([1, 2], "cpu"), progress=False), "leave noise out"),
    ],
)
def test_what_has_no_meaning_with_matrices_is_refused(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call(SKEWED.model(CLD()))
