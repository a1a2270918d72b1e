"""The corrected sampler: its particles follow the tilted density, and their error falls with their number."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde import EDM, VE, VP, CosineVP, RectifiedFlow, SubVP, guidance, problems
from scoresde.guidance import Auto, Classifier, ClassifierFree, Compose, Energy, feynman_kac, systematic

F64 = torch.float64
SDES = [VP(), SubVP(), VE(), EDM(), CosineVP(t_max=0.99), RectifiedFlow(t_max=0.99)]
PAIR, RIGHT = problems.GaussianMixture([[-1.0], [1.0]], 0.1), problems.Gaussian([1.0], 0.1)


def quadrature(log_density: Tensor, x: Tensor) -> tuple[float, float]:
    p = log_density.softmax(0)
    mean = (p * x[:, 0]).sum()
    return float(mean), float((p * (x[:, 0] - mean) ** 2).sum())


def moments(found: guidance.Particles) -> tuple[Tensor, Tensor]:
    """The weighted mean and variance of each population."""
    mean = found.mean()
    return mean, found.mean(lambda x: x.square()) - mean.square()


def within(values: Tensor, truth: float, bias: float) -> None:
    """The mean of independent populations is the truth up to five standard errors and an error of the steps."""
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean()) - truth) < 5 * error + bias, (float(values.mean()), truth, error)


GRID = torch.linspace(-8, 8, 100_001, dtype=F64)[:, None]


@pytest.mark.parametrize("scale", [0.5, 2.0, 3.0])
def test_two_gaussians_have_their_product(scale: float) -> None:
    """N(1, 0.5)^s N(0, 2)^(1 - s): precision 2 s + (1 - s) / 2, on every SDE."""
    precision = 2 * scale + 0.5 * (1 - scale)
    for sde in SDES if scale == 2.0 else SDES[:1]:
        one, other = problems.Gaussian([1.0], 0.5).model(sde), problems.Gaussian([0.0], 2.0).model(sde)
        mean, variance = moments(feynman_kac(Auto(one, other, scale), (16, 1), 256, 30, dtype=F64, seed=1))
        within(mean, 2 * scale / precision, 0.01)
        within(variance * 256 / 255, 1 / precision, 0.01 + 0.02 / precision)


def test_more_than_one_expert_and_weights_of_any_positive_sum() -> None:
    gaussians = [(1.0, 0.5), (0.0, 2.0), (-0.5, 1.0)]
    models = [problems.Gaussian([m], v).model(VP()) for m, v in gaussians]
    for weights in ([0.8, 0.7, -0.5], [1.0, 1.0, 0.5]):
        precision = sum(w / v for w, (_, v) in zip(weights, gaussians, strict=True))
        centre = sum(w * m / v for w, (m, v) in zip(weights, gaussians, strict=True)) / precision
        composed = Compose(dict(zip(models, weights, strict=True)))
        mean, variance = moments(feynman_kac(composed, (16, 1), 256, 40, dtype=F64))
        within(mean, centre, 0.02)
        within(variance * 256 / 255, 1 / precision, 0.03 / precision)


def log_right(x: Tensor, t: Tensor) -> Tensor:
    return RIGHT.log_prob(x, VP(), t) - PAIR.log_prob(x, VP(), t)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        Auto(RIGHT.model(VP()), PAIR.model(VP()), 2.0),
        Classifier(PAIR.model(VP()), log_right, 2.0),
    ],
    ids=["product", "potential"],
)
def test_the_tilted_mixture_is_sampled_where_plain_guidance_is_narrower(model: Any) -> None:
    """Truth 0.0989; plain guidance has 0.0515 by the flow and 0.090 by the reverse SDE."""
    mean, variance = quadrature(2 * RIGHT.log_prob(GRID) - PAIR.log_prob(GRID), GRID)
    assert variance == pytest.approx(0.0989, abs=5e-5)
    found = moments(feynman_kac(model, (8, 1), 16_384, 60, dtype=F64))
    within(found[0], mean, 0.005)
    within(found[1], variance, 0.002)


@pytest.mark.slow
def test_an_energy_of_the_predicted_data_that_empties_the_modes_by_the_flow_is_corrected() -> None:
    """E = 2 x^2 on modes at +-1: variance 0.5816, of which the flow leaves 0.034 and the reverse SDE 0.365."""
    model = Energy(PAIR.model(VP()), lambda x0: 2 * x0[:, 0] ** 2)
    mean, variance = quadrature(PAIR.log_prob(GRID) - 2 * GRID[:, 0] ** 2, GRID)
    assert variance == pytest.approx(0.5816, abs=5e-5)
    plain = scoresde.sample(model, (4000, 1), "dpmpp-2m", 50, progress=False, dtype=F64).x
    assert float(plain.var()) < 0.1
    found = moments(feynman_kac(model, (8, 1), 8192, 60, dtype=F64))
    within(found[0], mean, 0.01)
    within(found[1], variance, 0.005)


@pytest.mark.parametrize("of", ["x", "x0"])
def test_a_potential_is_exact_in_its_normalisation_of_modes(of: str) -> None:
    """E = -x tilts modes at +-1 to odds of exp(2 s): guidance by the mean prediction alone gets them wrong."""
    energy = (lambda x0: -x0[:, 0]) if of == "x0" else (lambda x, t: -x[:, 0] * (1 - t))
    model = Energy(PAIR.model(VP()), energy, 0.7, of=of)
    mean, variance = quadrature(PAIR.log_prob(GRID) + 0.7 * GRID[:, 0], GRID)
    found = moments(feynman_kac(model, (16, 1), 512, 30, dtype=F64))
    within(found[0], mean, 0.02)
    within(found[1], variance, 0.02)


def test_the_error_falls_as_the_root_of_the_number_of_particles() -> None:
    one, other = problems.Gaussian([1.0], 0.5).model(VP()), problems.Gaussian([0.0], 2.0).model(VP())
    errors = []
    for n in (32, 512):
        mean = feynman_kac(Auto(one, other, 2.0), (64, 1), n, 15, dtype=F64).mean()
        errors.append(float(mean.var()))
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.7)  # 64 populations tell a variance to 18 %, twice over


def test_at_scale_one_all_weights_are_equal_and_nothing_is_resampled() -> None:
    for model in (Auto(RIGHT.model(VP()), PAIR.model(VP()), 1.0), Classifier(PAIR.model(VP()), log_right, 0.0)):
        found = feynman_kac(model, (2, 1), 16, 10, dtype=F64)
        torch.testing.assert_close(found.log_weights, torch.full((2, 16), -math.log(16), dtype=F64))
        torch.testing.assert_close(found.effective, torch.full((10, 2), 16.0, dtype=F64))
        assert not bool(found.resampled.any())


def test_an_exact_classifier_has_nearly_equal_weights() -> None:
    found = feynman_kac(Classifier(PAIR.model(VP()), log_right, 1.0), (4, 1), 128, 100, threshold=0.0, dtype=F64)
    assert float(found.effective[-1].min()) > 0.85 * 128


class Labelled(nn.Module):
    """A network with a label and no more than that."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return 0.5 * x + 0.2 * label.to(x)[:, None]


def test_a_population_depends_on_its_own_seed_and_condition_only() -> None:
    model = ClassifierFree(scoresde.ScoreModel(Labelled(), VP(), "x0"), torch.tensor([1.5, 2.0, 0.5]), {"label": 0})
    how: dict[str, Any] = {"particles": 8, "steps": 6, "dtype": F64}
    all_ = feynman_kac(model, (3, 2), seed=[4, 5, 6], conditions={"label": [1, 2, 3]}, **how)
    assert all_.x.shape == (3, 8, 2) and all_.evaluations == 12 and all_.seeds == [4, 5, 6]
    for i, (scale, seed) in enumerate(zip([1.5, 2.0, 0.5], [4, 5, 6], strict=True)):
        alone = ClassifierFree(model.model, scale, {"label": 0})
        one = feynman_kac(alone, (1, 2), seed=[seed], conditions={"label": [i + 1]}, **how)
        torch.testing.assert_close(one.x[0], all_.x[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(one.log_weights[0], all_.log_weights[i], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", [CosineVP(), RectifiedFlow()], ids=repr)
def test_products_start_where_alpha_is_zero(sde: Any) -> None:
    one, other = problems.Gaussian([1.0], 0.5).model(sde), problems.Gaussian([0.0], 2.0).model(sde)
    mean, _ = moments(feynman_kac(Auto(one, other, 2.0), (16, 1), 256, 40, dtype=F64))
    within(mean, 8 / 7, 0.03)


def test_resampling_is_systematic_and_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    log_weights = torch.randn(5, 40, generator=generator, dtype=F64)
    expected = 40 * log_weights.softmax(1)
    counts = []
    for offset in torch.linspace(0, 1, 401, dtype=F64)[:-1]:
        chosen = systematic(log_weights + 3.0, offset.expand(5))
        counts.append(torch.stack([torch.bincount(row, minlength=40) for row in chosen]).to(F64))
        assert bool((counts[-1] >= expected.floor()).all()) and bool((counts[-1] <= expected.floor() + 1).all())
    torch.testing.assert_close(torch.stack(counts).mean(0), expected, rtol=0, atol=2 / 400)
    one = systematic(torch.tensor([[-math.inf, 0.0, -math.inf]]), torch.tensor([0.999]))
    assert one.tolist() == [[1, 1, 1]]


def test_equally_weighted_particles_have_the_weighted_moments() -> None:
    one, other = problems.Gaussian([1.0], 0.5).model(VP()), problems.Gaussian([0.0], 2.0).model(VP())
    found = feynman_kac(Auto(one, other, 2.0), (3, 1), 2000, 20, threshold=0.0, dtype=F64)
    assert float(found.effective[-1].max()) < 1900
    torch.testing.assert_close(found.equally_weighted().mean(1), found.mean(), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (PAIR.model(VP()), TypeError, "ClassifierFree, Auto, Compose"),
        (guidance.StaticThreshold(PAIR.model(VP())), TypeError, "outermost"),
        (Auto(RIGHT.model(VP()), PAIR.model(VP()), lambda t: 1 + t), ValueError, "changes with time"),
        (Auto(RIGHT.model(VP()), PAIR.model(VP()), 2.0, (0.1, 0.5)), ValueError, "changes with time"),
        (Compose({RIGHT.model(VP()): -1.0, PAIR.model(VP()): 0.5}), ValueError, "positive sum"),
        (ClassifierFree(PAIR.model(VP()), 2.0, {"label": 0}, rescale=0.5), ValueError, "rescale"),
        (guidance.Projected(PAIR.model(VP()), 2.0, {"label": 0}), ValueError, "tilts no density"),
        (guidance.CFGPlusPlus(PAIR.model(VP()), 0.5, {"label": 0}), ValueError, "tilts no density"),
        (Energy(PAIR.model(RectifiedFlow()), lambda x0: x0[:, 0]), ValueError, "alpha = 0"),
    ],
)
def test_what_tilts_no_density_is_refused(model: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        feynman_kac(model, (2, 1), 4, 4, conditions={"label": 1})


@pytest.mark.parametrize(
    "change",
    [{"particles": 0}, {"eta": 0.0}, {"threshold": 1.5}, {"shape": (3,)}, {"shape": (0, 1)}, {"path": [1, 0.5, 0.7, 0]}],
)
def test_numbers_out_of_range_are_refused(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"shape": (2, 1), "particles": 4, "steps": 4, **change}
    with pytest.raises(ValueError, match="expected"):
        feynman_kac(Auto(RIGHT.model(VP()), PAIR.model(VP()), 2.0), **given)
