"""Score models on SDEs with matrix coefficients: exact ones, networks, and their training by hybrid score matching."""

from __future__ import annotations

import math

import pytest
import torch

import scoresde
from scoresde import EDM, VP, GeneralSDE, ScoreModel, problems, sample, training
from scoresde.models import MLP, UNet
from scoresde.objectives import DSM, HSM, noised
from scoresde.problems import Gaussian, GaussianMixture
from scoresde.score import MatrixModel
from scoresde.sde import CLD, Anisotropic, Blurring, LinearSDE, Subspace, ThirdOrderLangevin
from scoresde.training import Method
from tests.support import generator, mixture

F64 = torch.float64
SDES = {
    "CLD": CLD(),
    "ThirdOrderLangevin": ThirdOrderLangevin(),
    "Blurring": Blurring((2,), blur=1.0),
    "Anisotropic": Anisotropic(torch.tensor([[2.0, 0.8], [0.8, 1.0]])),
    "Subspace": Subspace(torch.tensor([[0.6, 0.8]])),
}
every = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
coupled = pytest.mark.parametrize("sde", [CLD(), ThirdOrderLangevin()], ids=lambda sde: type(sde).__name__)
SKEWED = GaussianMixture([[-1.0, 0.3], [0.8, -0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]]], [0.3, 0.7])


def states(sde, t, n=5):
    x0 = mixture().sample(n, generator(), F64)
    return sde.perturb(x0, t, torch.randn(sde.state_shape(x0.shape), generator=generator(1), dtype=F64))


# Exact models --------------------------------------------------------------------------------------------------------


def law(problem, sde, t):
    """The mixture of the coordinates of the states, by unit vectors through the marginal: what the model must know."""
    one, shape = torch.eye(2, dtype=F64), sde.state_shape((2, 2))
    data = coordinates(sde, sde.perturb(one, t, torch.zeros(shape, dtype=F64)))  # (2, r)
    size = shape[1:].numel()
    units = torch.eye(size, dtype=F64).reshape(size, *shape[1:])
    noise = coordinates(sde, sde.perturb(torch.zeros(size, 2, dtype=F64), t, units))
    covariances = data.mT @ problem.covariances @ data + noise.mT @ noise
    parts = torch.distributions.MultivariateNormal(problem.means @ data, covariances)
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(problem.weights), parts)


def coordinates(sde, z):
    return sde.basis.forward(z if sde.variables > 1 else z[:, None]).flatten(1)


@every
def test_exact_models_have_the_density_of_the_noised_mixture(sde):
    model = SKEWED.model(sde)
    for t in (sde.span[0], 0.3, sde.span[1]):
        z = states(sde, t)
        torch.testing.assert_close(
            model.log_prob(z, t), law(SKEWED, sde, t).log_prob(coordinates(sde, z)), rtol=1e-7, atol=1e-7
        )


@every
def test_the_score_is_the_gradient_of_the_density(sde):
    model = SKEWED.model(sde)
    for t in (0.05, torch.linspace(0.1, 1.0, 5, dtype=F64)):
        z = states(sde, t).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(z, t).sum(), z)
        torch.testing.assert_close(model.score(z, t).detach(), gradient, rtol=1e-8, atol=1e-8)


@coupled
@pytest.mark.parametrize("name", ["ring", "moons", "funnel", "spiral"])
def test_every_problem_is_exact_where_the_modes_share_their_matrices(sde, name):
    model = problems.PROBLEMS[name]().model(sde)
    z = states(sde, 0.3).requires_grad_()
    (gradient,) = torch.autograd.grad(model.log_prob(z, 0.3).sum(), z)
    torch.testing.assert_close(model.score(z, 0.3).detach(), gradient, rtol=1e-7, atol=1e-8)


def test_problems_that_are_no_mixtures_are_refused_where_the_modes_differ():
    model = problems.funnel().model(Blurring((2,)))
    with pytest.raises(ValueError, match="expected a Gaussian or a GaussianMixture"):
        model.x0(torch.zeros(1, 2), 0.5)


# Networks ------------------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("predicts", ["eps", "x0", "edm"])
def test_predictions_of_a_network_are_one_another(sde, predicts):
    # A network that returns what the exact model says it should gives the exact model.
    exact, t = mixture().model(sde), torch.linspace(0.1, 1.0, 5, dtype=F64)
    z = states(sde, t)
    m = sde.map(torch.eye(1, dtype=F64), of_state=False, to_state=False) * exact.x0(z, t)  # in the subspace
    blank = MatrixModel(lambda x, t: torch.zeros_like(m), sde, predicts, sigma_data=0.7)
    whole = MatrixModel(lambda x, t: torch.ones_like(m), sde, predicts, sigma_data=0.7)
    if predicts == "x0":
        output = m
    elif predicts == "eps":
        output = sde.eps(z, m, t)
    else:
        output = (m - blank.x0(z, t)) / (whole.x0(z, t) - blank.x0(z, t))
        if sde.modes:
            pytest.skip("its factors differ from mode to mode")
    model = MatrixModel(lambda x, t: output, sde, predicts, sigma_data=0.7)
    torch.testing.assert_close(model.x0(z, t), m, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.score(z, t), exact.score(z, t), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.eps(z, t), sde.eps(z, m, t), rtol=1e-9, atol=1e-9)
    assert torch.equal(model(z, t), output)


@coupled
def test_with_edm_the_network_has_the_task_of_a_scalar_sde_at_the_same_lam(sde):
    def net(x, t):
        return torch.sin(3 * x) + t[:, None]

    model, scalar = MatrixModel(net, sde, sigma_data=0.7), ScoreModel(net, EDM(), "edm", sigma_data=0.7)
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    z, f = states(sde, t), sde.factors(t)
    whitening = torch.linalg.inv(f.root)
    pooled = f.signal.mT @ whitening / f.signal.square().sum(-2, keepdim=True)
    torch.testing.assert_close(model.x0(z, t), scalar.x0(sde.map(pooled, to_state=False) * z, (-sde.lam(t)).exp()))


@pytest.mark.parametrize("base", [VP(), EDM(sigma_max=20.0)], ids=lambda base: type(base).__name__)
def test_with_edm_modes_without_differences_give_the_scalar_model(base):
    sde = Subspace(torch.eye(2), base)
    net, t = MLP(2, hidden=(8,)).double(), torch.linspace(0.2, 0.9, 5, dtype=F64)
    torch.nn.init.normal_(net.output.weight, generator=generator())
    x = torch.randn(5, 2, generator=generator(), dtype=F64)
    for score in ("x0", "eps", "score"):
        one, other = (getattr(made, score) for made in (MatrixModel(net, sde), ScoreModel(net, base, "edm")))
        torch.testing.assert_close(one(x, t), other(x, t), rtol=1e-9, atol=1e-9)


def test_networks_get_all_variables_beside_each_other():
    seen = []

    def net(x, t, label):
        seen.append((tuple(x.shape), tuple(t.shape), label))
        return x[:, ::2].contiguous()

    model = MatrixModel(net, CLD(), "eps")
    samples = sample(model, (3, 2, 4, 4), "gddim", 2, conditions={"label": 3}, progress=False)
    assert samples.x.shape == (3, 2, 4, 4) and seen[0][:2] == ((3, 4, 4, 4), (3,)) and samples.evaluations == 2
    assert seen[0][2].unique().tolist() == [3]
    images = MatrixModel(UNet(2, 8, (1,), out_channels=1, groups=1, heads=1), CLD(), "eps")
    assert sample(images, (2, 1, 8, 8), "data-2", 2, progress=False).x.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda: MatrixModel(MLP(2), VP()), TypeError, "expected one with matrix coefficients, such as CLD"),
        (lambda: ScoreModel(MLP(2), CLD()), TypeError, r"expected scoresde.score.MatrixModel\(net, sde\)"),
        (lambda: MatrixModel(MLP(2), CLD(), "v"), ValueError, "expected 'eps', 'x0' or 'edm'"),
        (lambda: MatrixModel(MLP(2), CLD()).x0(torch.zeros(1, 2), 0.5), ValueError, r"expected \(batch, 2, \*event\)"),
        (lambda: MatrixModel(MLP(2), CLD()).x0(torch.zeros(1, 3, 2), 0.5), ValueError, r"expected \(batch, 2, \*event\)"),
        (lambda: MatrixModel(MLP(2), CLD()).x0(torch.zeros(1, 2, 2), 1.5), ValueError, "has a density for 0 < t"),
        (lambda: MatrixModel(MLP(4), CLD(), "eps").x0(torch.zeros(1, 2, 2), 0.5), ValueError, r"expected \(1, 2\)"),
        (lambda: MatrixModel(MLP(2), CLD()).v(torch.zeros(1, 2, 2), 0.5), ValueError, "no Gaussian marginals"),
        (lambda: MLP(2, out_features=0), ValueError, "expected positive sizes"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call()


# Training ------------------------------------------------------------------------------------------------------------


@every
def test_hybrid_score_matching_is_the_error_of_the_noise_of_the_last_variable(sde):
    model, t = mixture().model(sde), torch.linspace(0.1, 1.0, 5, dtype=F64)
    x0 = mixture().sample(5, generator(), F64)
    eps = torch.randn(sde.state_shape(x0.shape), generator=generator(1), dtype=F64)
    z = noised(sde, x0, t, eps)
    # The noise is what whitens the rest of the state given the data.
    rest = z - sde.map(sde.mean_factor(t), of_state=False) * x0
    whitened = sde.map(torch.linalg.inv(torch.linalg.cholesky(sde.covariance(t)))) * rest
    last = whitened[:, -1] if sde.variables > 1 else whitened
    expected = (model.eps(z, t) - last).square().mean(1)
    torch.testing.assert_close(HSM().at(model, x0, t, eps), expected, rtol=1e-8, atol=1e-8)


def test_hybrid_score_matching_is_denoising_score_matching_with_scalar_coefficients():
    t, x0 = torch.tensor([0.2, 0.7], dtype=F64), mixture().sample(2, generator(), F64)
    eps = torch.randn(2, 2, generator=generator(1), dtype=F64)
    scalar, one = mixture().model(VP()), mixture().model(LinearSDE([[-0.5]], [[1.0]], beta_min=0.1, beta_max=20.0))
    expected = DSM("ddpm").at(scalar, x0, t, eps)
    torch.testing.assert_close(HSM().at(scalar, x0, t, eps), expected)
    torch.testing.assert_close(HSM().at(one, x0, t, eps), expected, rtol=1e-9, atol=1e-9)


def test_other_objectives_are_refused_with_the_one_to_take():
    model = MatrixModel(MLP(2, hidden=(4,)), CLD())
    with pytest.raises(ValueError, match="expected objective='hsm' with matrix coefficients"):
        scoresde.fit(model, torch.randn(8, 2), steps=1, batch_size=4, progress=False)
    with pytest.raises(ValueError, match="got weighting='v' for HSM"):
        HSM("v")
    general = ScoreModel(lambda x, t: -x, GeneralSDE(lambda x, t: -x, lambda x, t: torch.ones_like(x)))
    with pytest.raises(ValueError, match="no alpha and sigma"):
        DSM().at(general, torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2))


def test_training_reports_the_excess_and_resumes_bit_for_bit(tmp_path):
    def trained(steps, out=None):
        torch.manual_seed(0)
        model = MatrixModel(MLP(2, hidden=(8,)), CLD(), sigma_data=1.0)
        data = problems.ring().sample(64, generator())
        return scoresde.fit(model, data, "hsm", steps=steps, batch_size=16, seed=0, out=out, progress=False)

    whole, file = trained(4), tmp_path / "model.safetensors"
    trained(2, file)
    resumed = trained(4, file)
    assert all(map(torch.equal, whole.raw.parameters(), resumed.raw.parameters()))
    truth = problems.ring().model(CLD())
    report = training.report(whole.model, problems.ring(), truth, objective="hsm", bins=2, samples=64, batch_size=32)
    assert float(report.excess.min()) > 0 and bool((report.loss > report.excess * 0.5).all())
    with pytest.raises(ValueError, match="expected both under the same process"):
        training.report(whole.model, problems.ring(), problems.ring().model(CLD(mass=0.5)), objective="hsm")


def test_the_exact_model_has_no_excess_and_the_loss_of_its_variance():
    # For Gaussian data the error of the noise is known: c_b^2 times the variance of the data given the state.
    model, sde = Gaussian([0.0], 1.0).model(CLD()), CLD()
    t = torch.full((20_000,), 0.3, dtype=F64)
    x0 = torch.randn(20_000, 1, generator=generator(), dtype=F64)
    eps = torch.randn(20_000, 2, 1, generator=generator(1), dtype=F64)
    c = sde.factors(0.3).signal
    expected = float(c[-1, 0] ** 2 / (1 + c.square().sum()))
    assert abs(float(HSM().at(model, x0, t, eps).mean()) / expected - 1) < 5 * math.sqrt(2 / 20_000)


@pytest.mark.slow
def test_training_in_the_plane_reaches_the_excess_of_the_scalar_sde():
    ring, found = problems.ring(), {}
    for name, make, sde in (("vp", ScoreModel, VP()), ("cld", MatrixModel, CLD())):
        torch.manual_seed(0)
        fit = scoresde.fit(
            make(MLP(2), sde, "edm", sigma_data=1.0),
            ring,
            "ddpm" if name == "vp" else "hsm",
            steps=3000,
            batch_size=256,
            lr=2e-3,
            seed=0,
            truth=ring.model(sde),
            method=Method(schedule="cosine-3000"),
            progress=False,
        )
        found[name] = float(fit.report.excess.mean())
    assert found["cld"] < 1.5 * found["vp"] < 0.01, found
