"""Guidance against exact answers: what each method computes, what it samples, what it costs and what it refuses."""

import contextlib
import copy
import itertools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from scoresde import EDM, VE, VP, CosineVP, RectifiedFlow, ScoreModel, Shared, SubVP, guidance, problems, sample
from scoresde.guidance import (
    Auto,
    CFGPlusPlus,
    Classifier,
    ClassifierFree,
    ClassLogProb,
    Compose,
    DynamicThreshold,
    Energy,
    Given,
    Mixture,
    Projected,
    StaticThreshold,
)
from scoresde.score import PREDICTIONS, Calls, Wrapper, target
from scoresde.solvers import make_path

F64 = torch.float64
SDES = [VP(), SubVP(), VE(), EDM(), CosineVP(t_max=0.99), RectifiedFlow(t_max=0.99)]
CLASSES = [problems.Gaussian([-1.0, 0.3], 0.1), problems.Gaussian([1.0, -0.2], 0.3), problems.Gaussian([0.2, 1.0], 0.2)]
WEIGHTS = [0.5, 0.3, 0.2]
ALL = problems.GaussianMixture([[-1.0, 0.3], [1.0, -0.2], [0.2, 1.0]], [[0.1, 0.1], [0.3, 0.3], [0.2, 0.2]], WEIGHTS)
NULL = {"label": 3}


class ByLabel(ScoreModel):
    """The exact score model of each class and, for label 3, of all of them."""

    def __init__(self, sde: Any) -> None:
        super().__init__(None, sde, "x0")
        self.rows: list[int] = []

    def x0(self, x: Tensor, t: Any, label: Tensor, **conditions: Any) -> Tensor:
        self.rows.append(len(x))
        found = torch.stack([problem.x0(x, self.sde, t) for problem in (*CLASSES, ALL)])
        return found[label, torch.arange(len(x))]


def log_class(x: Tensor, t: Tensor, label: Tensor, sde: Any) -> Tensor:
    """The exact log-probability of a class given the noised state, by Bayes' theorem."""
    each = torch.stack([p.log_prob(x, sde, t) + math.log(w) for p, w in zip(CLASSES, WEIGHTS, strict=True)])
    return each[label, torch.arange(len(x))] - ALL.log_prob(x, sde, t)


def noise(n: int, sde: Any, seed: int = 0) -> Tensor:
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return float(sde.sigma(sde.span[1])) * x


LABEL = torch.tensor([0, 1, 2, 0, 1])


# Classifier-free guidance --------------------------------------------------------------------------------------------


SOLVERS = ["ddim", "dpmpp-2m", "heun", "sde-dpmpp-2m", "dopri5"]
QUICK = {("VP", solver) for solver in SOLVERS[:-1]} | {(type(sde).__name__, "ddim") for sde in SDES}


@pytest.mark.parametrize(
    ("sde", "solver"),
    [
        pytest.param(sde, solver, marks=[] if (type(sde).__name__, solver) in QUICK else pytest.mark.slow)
        for sde in SDES
        for solver in SOLVERS
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_an_exact_classifier_and_classifier_free_guidance_agree_path_by_path(sde: Any, solver: str) -> None:
    free = ClassifierFree(ByLabel(sde), 2.5, NULL)
    by_classifier = Classifier(ALL.model(sde), lambda x, t, label: log_class(x, t, label, sde), 2.5, takes="label")
    paths: list[list[Tensor]] = []
    for model in (free, by_classifier):
        states: list[Tensor] = []
        how: dict[str, Any] = {"seed": 3, "progress": False, "conditions": {"label": LABEL}}
        sample(model, noise(5, sde), solver, 12, callback=lambda s, states=states: states.append(s.x.clone()), **how)
        paths.append(states)
    assert len(paths[0]) == len(paths[1]) >= 12
    for one, other in zip(*paths, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("predicts", PREDICTIONS)
def test_guidance_is_the_same_in_every_parametrization(sde: Any, predicts: str) -> None:
    """For a network of each kind, guiding its data, noise, v or score predictions is one thing."""
    exact = ByLabel(sde)
    carrier = ScoreModel(nn.Identity(), sde, predicts)

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        times = when.repeat(len(x) // len(when))
        state = x if carrier.coefficients(times).c_in is None else x / carrier.coefficients(times).c_in[:, None]
        m = exact.x0(state, times, label)
        alpha, sigma = (c(times)[:, None] for c in (sde.alpha, sde.sigma))
        return target(predicts, m, (state - alpha * m) / sigma, alpha[:, 0], sigma[:, 0], carrier.sigma_data)

    model = ScoreModel(net, sde, predicts)
    when = torch.tensor([0.7, 0.3, 0.5, 0.9, 0.2], dtype=F64) * sde.span[1]
    x = sde.alpha(when)[:, None] * ALL.sample(5, torch.Generator().manual_seed(0), F64) + sde.sigma(when)[:, None] * 0.7
    guided, scale = ClassifierFree(model, 3.0, NULL), 3.0
    for view in ("x0", "eps", "v", "score"):
        got = getattr(guided, view)(x, when, label=LABEL)
        with_it, without = (getattr(exact, view)(x, when, label=y) for y in (LABEL, torch.full((5,), 3)))
        wanted = without + scale * (with_it - without)
        size = wanted.abs().amax(1, keepdim=True).clamp(min=1)
        rho = (sde.sigma(when) / sde.alpha(when))[:, None].clamp(min=1)  # what one conversion costs in rounding
        assert float(((got - wanted).abs() / size / rho**2).max()) < 1e-12


@pytest.mark.parametrize("w", [-0.5, 0.0, 1.0, 3.0])
def test_two_gaussians_under_ve_shrink_by_the_closed_factor(w: float) -> None:
    sde, v_c, v_u = VE(), 0.3, 2.0
    conditional, unconditional = (problems.Gaussian([0.0], v).model(sde) for v in (v_c, v_u))
    guided = Auto(conditional, unconditional, 1 + w)
    x = torch.tensor([[1.0], [-2.5]], dtype=F64) * float(sde.sigma(sde.span[1]))
    got = sample(guided, x, "rk4", 150, end="stop", progress=False).x

    def size(s: float) -> float:
        return float((v_c + s**2) ** ((1 + w) / 2) * (v_u + s**2) ** (-w / 2))

    low, high = (float(sde.sigma(t)) for t in sde.span)
    torch.testing.assert_close(got / x, torch.full_like(x, size(low) / size(high)), rtol=1e-5, atol=0)


def tilted_moments(scale: float) -> tuple[float, float]:
    """The mean and variance of p(x | right)^s p(x)^(1 - s) by quadrature, for modes at +-1 of variance 0.1."""
    x = torch.linspace(-8, 8, 400_001, dtype=F64)[:, None]
    p = (scale * RIGHT.log_prob(x) + (1 - scale) * PAIR.log_prob(x)).softmax(0)
    mean = (p * x[:, 0]).sum()
    return float(mean), float((p * (x[:, 0] - mean) ** 2).sum())


PAIR, RIGHT = problems.GaussianMixture([[-1.0], [1.0]], 0.1), problems.Gaussian([1.0], 0.1)


def test_plain_guidance_is_narrower_than_the_tilted_density_by_what_is_documented() -> None:
    """Truth 0.0989, by the flow 0.0515, by the reverse SDE 0.09: the numbers of the page on guidance."""
    assert tilted_moments(2.0)[1] == pytest.approx(0.0989, abs=5e-5)
    guided = Auto(RIGHT.model(VP()), PAIR.model(VP()), 2.0)
    z = torch.linspace(-6, 6, 801, dtype=F64)[:, None]
    weight = (-0.5 * z.square()).softmax(0)
    x = sample(guided, z, "heun", 100, progress=False).x
    mean = (weight * x).sum()
    assert float((weight * (x - mean) ** 2).sum()) == pytest.approx(0.0515, abs=5e-4)
    x = sample(guided, (10_000, 1), "sde-dpmpp-2m", 60, progress=False, dtype=F64).x
    assert float(x.var()) == pytest.approx(0.090, abs=4 * 0.09 * math.sqrt(2 / 10_000))


@pytest.mark.parametrize("scale", [1, torch.ones(5), lambda t: 1.0])
def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one(scale: Any) -> None:
    model, x, t = ByLabel(VP()), noise(5, VP()), torch.linspace(0.1, 0.9, 5, dtype=F64)
    for kind in (ClassifierFree, Projected):
        assert torch.equal(kind(model, scale, NULL).x0(x, t, label=LABEL), model.x0(x, t, label=LABEL))
    none = ClassifierFree(model, 0.0, NULL).x0(x, t, label=LABEL)
    assert torch.equal(none, model.x0(x, t, label=torch.full((5,), 3)))


def test_a_scale_may_belong_to_samples_and_to_times() -> None:
    model, x = ByLabel(VP()), noise(5, VP())
    each = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=F64)
    how: dict[str, Any] = {"progress": False, "conditions": {"label": LABEL}}
    for driver in ("fast", "readable", "parallel", "differentiable"):
        got = sample(ClassifierFree(model, each, NULL), x, "heun", 6, driver=driver, **how).x
        for i, s in enumerate(each.tolist()):
            asked = {"progress": False, "conditions": {"label": LABEL[i : i + 1]}}
            alone = sample(ClassifierFree(model, s, NULL), x[i : i + 1], "heun", 6, **asked).x
            torch.testing.assert_close(got[i : i + 1], alone, rtol=2e-3 if driver == "parallel" else 1e-9, atol=1e-3)
    falling = ClassifierFree(model, lambda t: 1 + 2 * t, NULL)
    t = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.2], dtype=F64)
    torch.testing.assert_close(
        falling.x0(x, t, label=LABEL), ClassifierFree(model, 1 + 2 * t, NULL).x0(x, t, label=LABEL), rtol=1e-12, atol=1e-12
    )
    one = falling.x0(x, 0.4, label=LABEL)
    torch.testing.assert_close(one, ClassifierFree(model, 1.8, NULL).x0(x, 0.4, label=LABEL), rtol=1e-12, atol=1e-12)


def test_guidance_in_an_interval_costs_one_call_outside_it() -> None:
    model = ByLabel(VP())
    guided = ClassifierFree(model, 3.0, NULL, interval=(0.3, 0.6))
    x, t = noise(5, VP()), torch.tensor([0.1, 0.3, 0.5, 0.6, 0.9], dtype=F64)
    inside = torch.tensor([False, True, True, True, False])[:, None]
    on, off = ClassifierFree(model, 3.0, NULL).x0(x, t, label=LABEL), model.x0(x, t, label=LABEL)
    assert torch.equal(guided.x0(x, t, label=LABEL), torch.where(inside, on, off))
    for i, at in enumerate(t.tolist()):
        alone = guided.x0(x[i : i + 1], at, label=LABEL[i : i + 1])
        torch.testing.assert_close(alone, guided.x0(x, t, label=LABEL)[i : i + 1], rtol=1e-12, atol=1e-12)
    for wrapped in (guided, Wrapper(guided), DynamicThreshold(guided)):
        model.rows.clear()
        drawn = sample(wrapped, x, "ddim", 20, "t", progress=False, conditions={"label": LABEL})
        assert drawn.evaluations == sum(model.rows) / 5 and 20 < drawn.evaluations < 30


def test_rescaling_brings_back_the_standard_deviation_of_the_conditional_prediction() -> None:
    model, x, t = ByLabel(VP()), noise(5, VP()), torch.linspace(0.1, 0.9, 5, dtype=F64)
    plain, full, half = (ClassifierFree(model, 4.0, NULL, rescale=r).x0(x, t, label=LABEL) for r in (0.0, 1.0, 0.5))
    torch.testing.assert_close(full.std(1), model.x0(x, t, label=LABEL).std(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(half, 0.5 * (plain + full), rtol=1e-12, atol=1e-12)


# CFG++, projection, autoguidance -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", [VP(), VE(), CosineVP(), RectifiedFlow()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("path", ["lam", "t", "karras"])
def test_cfg_plus_plus_is_the_published_step(sde: Any, path: str) -> None:
    model, x = ByLabel(sde), noise(5, sde)
    points = make_path(sde, path, 9).points
    y, none = x, torch.full((5,), 3)
    for u, v in itertools.pairwise(points):
        m, m_none = model.x0(y, u.t, label=LABEL), model.x0(y, u.t, label=none)
        y = v.alpha * (m_none + 0.6 * (m - m_none)) + v.sigma * (y - u.alpha * m_none) / u.sigma
    guided = CFGPlusPlus(model, 0.6, NULL, path, 9)
    got = sample(guided, x, "ddim", 9, path, progress=False, conditions={"label": LABEL}).x
    torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)


def test_on_the_path_lam_cfg_plus_plus_is_guidance_at_a_constant_scale_until_the_last_step() -> None:
    model, x, points = ByLabel(VP()), noise(5, VP()), make_path(VP(), "lam", 10).points
    constant = 0.6 / -math.expm1(points[0].lam - points[1].lam)
    for point in points[:-2]:
        one, other = CFGPlusPlus(model, 0.6, NULL, "lam", 10), ClassifierFree(model, constant, NULL)
        torch.testing.assert_close(one.x0(x, point.t, label=LABEL), other.x0(x, point.t, label=LABEL), rtol=1e-9, atol=1e-9)


def test_projection_keeps_the_orthogonal_part_and_bounds_its_norm() -> None:
    model, x, t = ByLabel(VP()), noise(5, VP()), torch.linspace(0.2, 0.9, 5, dtype=F64)
    strong, weak = model.x0(x, t, label=LABEL), model.x0(x, t, label=torch.full((5,), 3))
    whole = Projected(model, 5.0, NULL, parallel=1.0).x0(x, t, label=LABEL)
    torch.testing.assert_close(whole, ClassifierFree(model, 5.0, NULL).x0(x, t, label=LABEL), rtol=1e-12, atol=1e-12)
    moved = Projected(model, 5.0, NULL).x0(x, t, label=LABEL) - strong
    torch.testing.assert_close((moved * strong).sum(1), torch.zeros(5, dtype=F64), rtol=0, atol=1e-12)
    across = torch.stack([-strong[:, 1], strong[:, 0]], 1) / strong.norm(dim=1, keepdim=True)
    torch.testing.assert_close((moved * across).sum(1), 4 * ((strong - weak) * across).sum(1), rtol=1e-9, atol=1e-12)
    bounded = Projected(model, 5.0, NULL, parallel=1.0, norm=1.2).x0(x, t, label=LABEL) - strong
    lengths = (strong - weak).norm(dim=1)
    assert bool((lengths > 1.2).any()) and bool((lengths < 1.2).any())
    torch.testing.assert_close(bounded.norm(dim=1), 4 * lengths.clamp(max=1.2), rtol=1e-9, atol=1e-12)


# Classifiers and energies --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, contextlib.nullcontext])
@pytest.mark.parametrize("of", ["x", "x0"])
def test_a_gradient_is_there_in_every_mode(mode: Callable[[], Any], of: str) -> None:
    model = ALL.model(VP())
    if of == "x":
        guided: ScoreModel = Classifier(model, lambda x, t, label: log_class(x, t, label, VP()), 2.0, takes="label")
    else:
        guided = Classifier(model, lambda x0, label: -(x0 - label[:, None]).square().sum(1), 2.0, of="x0", takes="label")
    wanted = guided.x0(noise(5, VP()), 0.4, label=LABEL)
    with mode():
        found = guided.x0(noise(5, VP()), 0.4, label=LABEL.clone())
        drawn = sample(guided, noise(5, VP()), "ddim", 4, progress=False, conditions={"label": LABEL.clone()})
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-12, atol=1e-12)
    assert (drawn.evaluations, drawn.backward) == (4, 4 * (of == "x0"))
    assert not torch.allclose(wanted, model.x0(noise(5, VP()), 0.4), atol=1e-3)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_quadratic_energy_of_the_predicted_data_has_a_closed_gradient(sde: Any) -> None:
    """For N(0, v) the prediction is linear, D = a v x / (a^2 v + s^2), and so is the gradient of |D - y|^2 / 2."""
    v, y, t = 0.7, 1.5, torch.tensor([0.2, 0.5, 0.8], dtype=F64) * sde.span[1]
    guided = Energy(problems.Gaussian([0.0], v).model(sde), lambda x0: 0.5 * (x0 - y).square().sum(1), 1.3)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    x = 0.4 * alpha + 0.9 * sigma
    gain = alpha * v / (alpha**2 * v + sigma**2)
    wanted = gain * x - 1.3 * sigma**2 / alpha * gain * (gain * x - y)
    torch.testing.assert_close(guided.x0(x, t), wanted, rtol=1e-10, atol=1e-12)


def test_second_derivatives_pass_through_guidance() -> None:
    guided = Classifier(ALL.model(VP()), lambda x, t, label: log_class(x, t, label, VP()), 2.0, takes="label")
    free = ClassifierFree(ByLabel(VP()), 2.0, NULL)
    found = []
    for model in (guided, free):
        x = noise(5, VP()).requires_grad_()
        (slope,) = torch.autograd.grad(model.x0(x, 0.5, label=LABEL).square().sum(), x)
        found.append(slope)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


def test_a_classifier_of_clean_data_is_biased_where_there_is_noise() -> None:
    """log p(y | E[x_0 | x]) is not log E[p(y | x_0) | x]; the two agree where little noise is left."""
    model, x = PAIR.model(VP()), torch.tensor([[0.3]], dtype=F64)
    clean = Classifier(model, lambda x0: RIGHT.log_prob(x0) - PAIR.log_prob(x0), 1.0, of="x0")
    noisy = Classifier(model, lambda x, t: RIGHT.log_prob(x, VP(), t) - PAIR.log_prob(x, VP(), t), 1.0)
    gap = [float((clean.x0(x, t) - noisy.x0(x, t)).detach().abs()) for t in (0.02, 0.4)]
    assert gap[0] < 0.01 < 0.05 < gap[1]


# Compositions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_composition_has_the_sum_of_the_scores(sde: Any) -> None:
    x, t = noise(5, sde), torch.tensor([0.2, 0.5, 0.8, 0.9, 0.4], dtype=F64) * sde.span[1]
    models = [p.model(sde) for p in CLASSES]
    for weights in ([0.5, 0.3, 0.2], [2.0, -0.5, -0.5], [1.0, 1.0, 0.5], [1.0, -2.0, 0.5]):
        wanted = sum(w * p.score(x, sde, t) for w, p in zip(weights, CLASSES, strict=True))
        composed = Compose(dict(zip(models, weights, strict=True)))
        assert composed.calls == Calls(3)
        torch.testing.assert_close(composed.score(x, t), wanted, rtol=1e-8, atol=1e-8)


def test_given_makes_a_composition_of_one_network_the_guided_one() -> None:
    model, x = ByLabel(VP()), noise(5, VP())
    composed = Compose({Given(model, {"label": LABEL}): 2.5, Given(model, {"label": torch.full((5,), 3)}): -1.5})
    wanted = ClassifierFree(model, 2.5, NULL).x0(x, 0.4, label=LABEL)
    torch.testing.assert_close(composed.x0(x, 0.4), wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="'label' with 5 entries for 4 samples"):
        sample(composed, x[:4], "ddim", 3, progress=False)
    dropped = Given(ALL.model(VP()), without="label")
    assert torch.equal(dropped.x0(x, 0.4, label=LABEL), ALL.model(VP()).x0(x, 0.4))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_mixture_of_models_is_the_model_of_the_mixture(sde: Any) -> None:
    x, t = noise(5, sde), torch.tensor([0.2, 0.5, 0.8, 0.9, 0.4], dtype=F64) * sde.span[1]
    log_probs = [lambda x, t, p=p: p.log_prob(x, sde, t) for p in CLASSES]
    mixed = Mixture({p.model(sde): 3 * w for p, w in zip(CLASSES, WEIGHTS, strict=True)}, log_probs)
    torch.testing.assert_close(mixed.x0(x, t), ALL.x0(x, sde, t), rtol=1e-9, atol=1e-9)


# Thresholds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
@pytest.mark.parametrize("make", [StaticThreshold, DynamicThreshold, lambda m: DynamicThreshold(m, 1.0)])
def test_thresholds_change_nothing_in_range_bit_for_bit(make: Any, dtype: torch.dtype) -> None:
    drawn = torch.rand(64, 3, 5, generator=torch.Generator().manual_seed(0)).mul(2).sub(1).to(dtype)
    drawn[0, 0, 0], drawn[0, 0, 1], drawn[0, 0, 2] = 1.0, -1.0, -0.0

    class Constant(Wrapper):
        def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return drawn

    model = make(Constant(ScoreModel(nn.Identity(), VP())))
    for t in (0.5, torch.full((64,), 0.5)):
        assert torch.equal(model.x0(drawn, t).view(torch.uint8), drawn.view(torch.uint8))


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.995, 1.0])
def test_a_dynamic_threshold_is_the_published_one_sample_by_sample(quantile: float) -> None:
    drawn = 3 * torch.randn(7, 4, 9, generator=torch.Generator().manual_seed(0), dtype=F64)
    drawn[3] *= 0.01

    class Constant(Wrapper):
        def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
            return drawn[: len(x)]

    model = DynamicThreshold(Constant(ScoreModel(nn.Identity(), VP())), quantile)
    s = np.maximum(np.quantile(np.abs(drawn.numpy()).reshape(7, -1), quantile, axis=1), 1.0)[:, None, None]
    wanted = torch.from_numpy(np.clip(drawn.numpy(), -s, s) / s)
    torch.testing.assert_close(model.x0(drawn, 0.5), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.x0(drawn[:2], 0.5), wanted[:2], rtol=1e-12, atol=1e-12)


def test_a_threshold_may_keep_the_noise_prediction_of_before() -> None:
    model, x, points = ALL.model(VP()), 2 * noise(6, VP()), make_path(VP(), "t", 8).points
    y = x
    for u, v in itertools.pairwise(points):
        m = model.x0(y, u.t)
        y = v.alpha * m.clamp(-0.4, 0.4) + v.sigma * (y - u.alpha * m) / u.sigma
    got = sample(StaticThreshold(model, -0.4, 0.4, path="t", steps=8), x, "ddim", 8, "t", progress=False).x
    torch.testing.assert_close(got, y, rtol=1e-9, atol=1e-9)
    other = sample(StaticThreshold(model, -0.4, 0.4), x, "ddim", 8, "t", progress=False).x
    assert float((other - y).abs().max()) > 1e-3


# Calls and conditions ------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A network that records the batches it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((), 0.3, dtype=F64))
        self.seen: list[dict[str, Any]] = []

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        self.seen.append({"x": x, **conditions})
        label = conditions["label"]
        push = torch.tensor([len(text) for text in label]) if isinstance(label, list) else torch.as_tensor(label)
        return self.w * x * (1 + push.to(x).reshape(-1, 1))


@pytest.mark.parametrize(
    ("label", "null", "calls"),
    [
        (LABEL, 3, 1),
        (LABEL.tolist(), 3, 1),
        (2, 3, 1),
        (["a", "bc", "d", "", "efg"], "", 1),
        (torch.rand(5, 1, dtype=F64), torch.zeros(1, dtype=F64), 1),
        (Shared(torch.tensor(2)), Shared(torch.tensor(3)), 2),
    ],
)
def test_both_predictions_are_one_call_where_conditions_can_be_stacked(label: Any, null: Any, calls: int) -> None:
    net, matrix = Counting(), torch.eye(5)
    model = ScoreModel(net, VP(), "x0")
    x = noise(5, VP())
    told = {"label": label, "mixing": Shared(matrix), "size": 2.0}
    got = ClassifierFree(model, 2.0, {"label": null}).x0(x, 0.5, **told)
    assert [len(call["x"]) for call in net.seen] == ([10] if calls == 1 else [5, 5])
    assert all(call["mixing"] is matrix for call in net.seen)
    apart = ClassifierFree(model, 2.0, {"label": null}, batched=False)
    net.seen.clear()
    torch.testing.assert_close(apart.x0(x, 0.5, **told), got, rtol=1e-12, atol=1e-12)
    assert [len(call["x"]) for call in net.seen] == [5, 5]
    drawn = sample(ClassifierFree(model, 2.0, {"label": null}), x, "heun", 5, progress=False, conditions=told)
    assert drawn.evaluations == 18


# Bad input -----------------------------------------------------------------------------------------------------------


def made(what: str, **change: Any) -> Any:
    model = ByLabel(VP())
    given: dict[str, Any] = {"model": model, "scale": 2.0, "null": NULL, **change}
    return {"free": ClassifierFree, "projected": Projected, "plus": CFGPlusPlus}[what](**given)


@pytest.mark.parametrize("what", ["free", "projected", "plus"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"null": {}}, ValueError, r"null=\{'label': 10\}"),
        ({"null": None}, ValueError, r"null=\{'label': 10\}"),
        ({"null": 10}, ValueError, r"null=\{'label': 10\}"),
        ({"scale": "strong"}, TypeError, "scale of type str"),
        ({"scale": True}, TypeError, "scale of type bool"),
        ({"scale": math.nan}, ValueError, "finite"),
        ({"scale": torch.ones(2, 2)}, ValueError, r"scale of shape \(2, 2\)"),
        ({"model": nn.Identity()}, TypeError, "expected a ScoreModel"),
    ],
)
def test_wrong_arguments_are_refused_where_guidance_is_made(
    what: str, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        made(what, **change)
    if "null" in change:
        with pytest.raises(ValueError, match=words):
            {"free": ClassifierFree, "projected": Projected, "plus": CFGPlusPlus}[what](ByLabel(VP()), 2.0)


@pytest.mark.parametrize("interval", [(0.8, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.1,), 0.5, "ab", (math.nan, 1.0)])
def test_a_reversed_interval_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match="interval="):
        made("free", interval=interval)


def test_numbers_out_of_range_are_refused() -> None:
    model = ByLabel(VP())
    for make, words in (
        (lambda: made("free", rescale=1.5), "rescale"),
        (lambda: made("projected", norm=0.0), "norm"),
        (lambda: StaticThreshold(model, 1.0, -1.0), "low < high"),
        (lambda: DynamicThreshold(model, 99.5), "from 0 to 1"),
        (lambda: Compose({model: 1.0, PAIR.model(VE()): 1.0}), "same SDE"),
        (lambda: Auto(model, PAIR.model(VE()), 2.0), "same SDE"),
        (lambda: Mixture({model: -1.0}, [lambda x, t: x[:, 0]]), "positive"),
        (lambda: Mixture({model: 1.0}, []), "0 densities for 1 models"),
        (lambda: Energy(model, lambda x0: x0[:, 0], of="eps"), "of='eps'"),
        (lambda: made("plus", path=[1.0, 0.5, 0.7, 0.1]), "back towards the noise"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    for wrong in ([model], {}, {nn.Identity(): 1.0}, {model: torch.ones(2)}):
        with pytest.raises(TypeError):
            Compose(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("driver", ["fast", "readable", "parallel"])
@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(10), [1.0]])
def test_a_scale_of_another_length_than_the_batch_is_refused(driver: str, scale: Any) -> None:
    model = made("free", scale=scale)
    with pytest.raises(ValueError, match=r"scale with .* entries for 5 samples"):
        sample(model, noise(5, VP()), "ddim", 3, driver=driver, progress=False, conditions={"label": LABEL})
    with pytest.raises(ValueError, match=r"scale with .* entries for 5 samples"):
        model.x0(noise(5, VP()), 0.5, label=LABEL)
    with pytest.raises(ValueError, match=r"scale with .* entries for 5 samples"):
        scoresde.log_likelihood(DynamicThreshold(model), noise(5, VP()), conditions={"label": LABEL})


def test_what_the_sampler_is_given_must_fit() -> None:
    x = noise(5, VP())
    with pytest.raises(ValueError, match="no condition 'label'"):
        sample(made("free"), x, "ddim", 3, progress=False)
    with pytest.raises(ValueError, match="no condition 'label'"):
        made("free").x0(x, 0.5)
    with pytest.raises(ValueError, match=r"null value of shape \(2,\)"):
        made("free", null={"label": torch.zeros(2)}).x0(x, 0.5, label=LABEL)
    network = ScoreModel(scoresde.models.MLP(2, num_classes=3), VP())
    for bad in ([0, 1, 2, 4, 0], [0, -1, 2, 1, 0]):
        with pytest.raises(ValueError, match="expected labels from 0 to 2"):
            sample(ClassifierFree(network, 2.0, NULL), (5, 2), "ddim", 3, progress=False, conditions={"label": bad})
    with pytest.raises(ValueError, match="expected labels from 0 to 2"):
        ClassifierFree(network, 2.0, {"label": 10}).x0(x.float(), 0.5, label=LABEL)


CLEAN = nn.Linear(2, 3).to(F64)


@pytest.mark.parametrize(
    ("log_prob", "how", "error", "words"),
    [
        (lambda x, t: x[:, 0], {}, ValueError, "ignores the time"),
        (lambda x, t: CLEAN(x).log_softmax(1), {}, ValueError, r"returned shape \(5, 3\) for 5 samples"),
        (lambda x, t: x.sum() * t.sum(), {}, ValueError, r"returned shape \(\) for 5 samples"),
        (lambda x, t: (x * t[:, None]).sum(1, keepdim=True), {}, ValueError, r"returned shape \(5, 1\)"),
        (lambda x, t: 1.0, {}, ValueError, "returned a float"),
        (lambda x, t: x.detach()[:, 0] * t, {}, ValueError, "carries no gradient"),
        (lambda x0: x0[:, 0].round().detach(), {"of": "x0"}, ValueError, "carries no gradient"),
        (lambda x0: x0, {"of": "x0"}, ValueError, r"returned shape \(5, 2\)"),
        (lambda x: x[:, 0], {}, TypeError, "of='x0'"),
        (CLEAN, {}, TypeError, "cannot be called as"),
        (lambda x, t: x[:, 0], {"of": "x0"}, TypeError, "cannot be called as"),
        (lambda x, t: x[:, 0], {"takes": "label"}, TypeError, "cannot be called as"),
        (lambda x, t, label: x[:, 0] * t, {"takes": "label"}, ValueError, "no condition 'label'"),
        (3.0, {}, TypeError, "expected a function"),
        (ClassLogProb(lambda x, t: x * t[:, None]), {"takes": "label"}, ValueError, "no condition 'label'"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(
    log_prob: Any, how: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        sample(Classifier(ALL.model(VP()), log_prob, **how), noise(5, VP()), "ddim", 3, progress=False)


def test_labels_and_logits_of_a_classifier_are_checked() -> None:
    net = ClassLogProb(lambda x, t: torch.stack([x[:, 0] * t, x[:, 1] * t, 0 * t], 1))
    guided = Classifier(ALL.model(VP()), net, takes="label")
    for label in ([0, 1, 2, 3, 0], [0, 1, -1, 1, 0], 3):
        with pytest.raises(ValueError, match="expected labels from 0 to 2"):
            sample(guided, noise(5, VP()), "ddim", 3, progress=False, conditions={"label": label})
    with pytest.raises(ValueError, match="integers"):
        sample(guided, noise(5, VP()), "ddim", 3, progress=False, conditions={"label": torch.rand(5)})
    with pytest.raises(ValueError, match="expected logits"):
        ClassLogProb(lambda x, t: x[:, 0])(noise(5, VP()), torch.ones(5), label=LABEL)


@pytest.mark.parametrize("sde", [CosineVP(), RectifiedFlow()], ids=repr)
def test_where_alpha_is_zero_gradients_are_refused_and_predictions_are_not(sde: Any) -> None:
    for refused in (
        Classifier(ALL.model(sde), lambda x, t: x[:, 0] * t),
        Energy(ALL.model(sde), lambda x0: x0[:, 0]),
        Compose({ALL.model(sde): 1.0, CLASSES[0].model(sde): 0.5}),
        DynamicThreshold(Energy(ALL.model(sde), lambda x0: x0[:, 0])),
    ):
        with pytest.raises(ValueError, match=r"alpha = 0.* smaller t_max"):
            sample(refused, noise(5, sde), "ddim", 3, progress=False)
    for allowed in (
        ClassifierFree(ByLabel(sde), 3.0, NULL),
        Compose({Given(ByLabel(sde), {"label": LABEL}): 2.0, Given(ByLabel(sde), {"label": LABEL * 0}): -1.0}),
    ):
        drawn = sample(allowed, noise(5, sde), "ddim", 5, progress=False, conditions={"label": LABEL})
        assert bool(torch.isfinite(drawn.x).all())


def test_an_sde_without_marginals_is_refused() -> None:
    sde = scoresde.GeneralSDE(lambda x, t: -0.5 * x, lambda x, t: torch.ones_like(x), std=1.0)
    model = ScoreModel(lambda x, t: -x, sde)
    for make in (
        lambda: ClassifierFree(model, 2.0, NULL),
        lambda: Energy(model, lambda x0: x0[:, 0]),
        lambda: Compose({model: 1.0}),
        lambda: StaticThreshold(model),
    ):
        with pytest.raises(ValueError, match="no Gaussian marginals"):
            make()


@pytest.mark.parametrize(
    "make",
    [
        lambda m: ClassifierFree(m, torch.tensor([1.0, 2.0]), NULL, (0.1, 0.9), 0.5),
        lambda m: Projected(m, 3.0, NULL, norm=1.0),
        lambda m: CFGPlusPlus(m, 0.6, NULL),
        lambda m: DynamicThreshold(ClassifierFree(m, 3.0, NULL), path="lam"),
        lambda m: Compose({Given(m, {"label": 1}): 2.0, Given(m, {"label": 0}): -1.0}),
    ],
)
def test_a_guided_model_is_saved_copied_and_pickled(make: Any, tmp_path: Path) -> None:
    network = ScoreModel(scoresde.models.MLP(2, num_classes=3), VP(), "v")
    other = ScoreModel(scoresde.models.MLP(2, num_classes=3), VP(), "v")
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1)
    model, x, label = make(network), torch.ones(2, 2), torch.tensor([0, 1])
    scoresde.save(model, tmp_path / "model.safetensors")
    loaded = scoresde.load(tmp_path / "model.safetensors", model=make(other))
    for again in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again.x0(x, 0.5, label=label), model.x0(x, 0.5, label=label))


def test_every_public_method_is_tried_on_every_solver_by_the_seam() -> None:
    """What is a score model here stands in the table of tests/test_seam.py."""
    from tests import test_seam

    models = {
        name
        for name in guidance.__all__
        if isinstance(getattr(guidance, name), type) and issubclass(getattr(guidance, name), ScoreModel)
    }
    abstract = {"Contrast", "Nulled", "Tilted"}
    made = [make(test_seam.network(VP())) for make in test_seam.WRAPPERS.values()]
    assert models - abstract <= {type(model).__name__ for model in made}
    for model in made:  # what is counted at one time, and where samples have different times
        assert model.calls_at(0.5) == model.calls == Wrapper(model).calls_at(0.5) == Wrapper(model).calls
