"""Anomaly scores against their closed forms on Gaussian data, the area under the ROC curve, and real images."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import SDES, generator, model_on
from torch import Tensor

from scoresde import EDM, VP, GeneralSDE, RectifiedFlow, ScoreModel, data, problems
from scoresde.evaluation import (
    ANOMALY_SCORES,
    Detector,
    LikelihoodScore,
    LossExcess,
    Reconstruction,
    ScoreNorms,
    Typicality,
)
from scoresde.metrics import auroc, auroc_estimate
from scoresde.problems import Gaussian
from scoresde.sampling import sdedit
from scoresde.sde import GaussianSDE

F64 = torch.float64
VARIANCE = torch.tensor([0.8, 0.1], dtype=F64)
DATA = Gaussian(torch.zeros(2, dtype=F64), VARIANCE.diag())


# The area under the ROC curve -----------------------------------------------------------------------------------------


def normal(d: float) -> float:
    """Phi(d / sqrt 2), the area between N(0, 1) and N(d, 1)."""
    return 0.5 * (1 + math.erf(d / 2))


@pytest.mark.parametrize("d", [-1.0, 0.0, 0.5, 1.0, 2.5])
def test_the_area_between_normal_scores_is_known(d: float) -> None:
    g, n = generator(), 50_000
    x, y = torch.randn(n, generator=g), torch.randn(n, generator=g) + d
    found = auroc_estimate(x, y, 0.9999)
    assert found.low < normal(d) < found.high and found.high - found.low < 0.02
    assert found.value == float(auroc(x, y))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12), st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_the_area_counts_pairs_with_half_of_the_ties(inside: list[int], outside: list[int]) -> None:
    x, y = torch.tensor(inside, dtype=F64), torch.tensor(outside, dtype=F64)
    pairs = [float(b > a) + 0.5 * float(b == a) for a in inside for b in outside]
    assert float(auroc(x, y)) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert float(auroc(y, x)) == pytest.approx(1 - np.mean(pairs), abs=1e-12)
    found = auroc_estimate(x, y)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert float(auroc(x.exp(), y.exp())) == float(auroc(x, y)), "the order alone counts"


def test_the_area_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    x, y = (torch.randn(n, generator=generator(n)).round(decimals=1) for n in (50, 70))
    truth = roc_auc_score([0] * 50 + [1] * 70, torch.cat([x, y]).numpy())
    assert float(auroc(x, y)) == pytest.approx(truth, abs=1e-12)


def test_the_variance_is_delong_s_by_its_definition() -> None:
    x, y = torch.randn(30, generator=generator(1), dtype=F64), torch.randn(40, generator=generator(2), dtype=F64) + 1
    order = (y[:, None] > x[None]).double()
    variance = order.mean(0).var() / 30 + order.mean(1).var() / 40
    found, a = auroc_estimate(x, y, 0.6826894921370859), float(order.mean())  # one standard error to either side
    logit = math.log(found.high / (1 - found.high)) - math.log(a / (1 - a))
    assert logit == pytest.approx(float(variance.sqrt()) / (a * (1 - a)), rel=1e-9)


@pytest.mark.parametrize(("d", "n", "m"), [(0.0, 40, 40), (1.0, 30, 60), (1.5, 100, 20), (3.0, 40, 40)])
def test_the_interval_covers_as_often_as_it_says(d: float, n: int, m: int) -> None:
    """At d = 3 the area is 0.983, and one pair of samples in fifteen is separated."""
    g, runs, hits = generator(), 1000, 0
    for _ in range(runs):
        found = auroc_estimate(torch.randn(n, generator=g), torch.randn(m, generator=g) + d)
        hits += found.low <= normal(d) <= found.high
    # Four standard errors of a rate of 95 %, and what a normal interval misses at these sizes.
    assert 0.93 - 4 * (0.05 * 0.95 / runs) ** 0.5 + 0.01 < hits / runs < 0.985


def test_separated_scores_have_an_interval_too() -> None:
    for n in (3, 10, 100):
        found = auroc_estimate(torch.arange(float(n)), torch.arange(float(n)) + n)
        assert found.value == found.high == 1 and 1 - 4 / n < found.low < 1
        other = auroc_estimate(torch.arange(float(n)) + n, torch.arange(float(n)))
        assert (other.low, other.value) == (0, 0) and other.high == pytest.approx(1 - found.low)
    equal = auroc_estimate(torch.ones(5), torch.ones(5))
    assert (equal.value, equal.low, equal.high) == (0.5, 0, 1)


# Statistics in closed form --------------------------------------------------------------------------------------------


def at(model: ScoreModel, score: object, x: Tensor) -> tuple[Tensor, Tensor]:
    detector = Detector(model, score, DATA.sample(4, generator(), dtype=F64))
    return detector._statistics(x, None, 5)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_loss_is_the_closed_form(sde: GaussianSDE) -> None:
    """E |eps_hat - eps|^2 = sum (alpha sigma x / S)^2 + (alpha^2 C / S)^2 with S = alpha^2 C + sigma^2."""
    x, times = torch.tensor([[1.5, -0.4], [0.0, 0.0]], dtype=F64), [float(sde.time(lam)) for lam in (2.0, 0.0, -1.0)]
    n = 4000
    found = at(DATA.model(sde), LossExcess(times, draws=1), x.repeat_interleave(n, 0)).values.reshape(2, n, 3)
    for k, t in enumerate(sorted(times)):
        a, s = sde.alpha(t), sde.sigma(t)
        total = a**2 * VARIANCE + s**2
        truth = ((a * s * x / total) ** 2 + (a**2 * VARIANCE / total) ** 2).mean(1)
        assert ((found[..., k].mean(1) - truth).abs() < 5 * found[..., k].std(1) / n**0.5).all()


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_score_norms_are_the_closed_form(sde: GaussianSDE) -> None:
    x = torch.tensor([[1.5, -0.4], [0.1, 0.7]], dtype=F64)
    times = [float(sde.time(lam)) for lam in (2.0, 0.0, -1.0)]
    found = at(DATA.model(sde), ScoreNorms(times), x)
    for k, t in enumerate(sorted(times)):
        a, s = sde.alpha(t), sde.sigma(t)
        truth = (s * a * x / (a**2 * VARIANCE + s**2)).norm(dim=1).log()
        torch.testing.assert_close(found.values[:, k], truth, rtol=1e-6, atol=1e-6)


def test_reconstructions_are_those_of_sdedit() -> None:
    """Along the flow each coordinate ends at gain (alpha x + sigma eps): the mean squared error is known."""
    sde, n = EDM(), 4000
    x, t = torch.tensor([[1.5, -0.4]], dtype=F64).expand(n, 2), 0.7
    found = at(DATA.model(sde), Reconstruction([t], "dpm-3", 8), x)
    gain = (VARIANCE / (VARIANCE + t**2)).sqrt()
    truth = ((gain - 1) ** 2 * x[0] ** 2 + gain**2 * t**2).mean()
    assert abs(float(found.values.mean() - truth)) < 5 * float(found.values.std()) / n**0.5 + 1e-3
    one = sdedit(DATA.model(sde), x[:2], t, "dpm-3", 8).x
    assert one.shape == (2, 2)


@pytest.mark.parametrize("sde", [VP(), RectifiedFlow()], ids=repr)
def test_the_likelihood_and_typicality_are_the_closed_form(sde: GaussianSDE) -> None:
    x, reference = torch.tensor([[1.5, -0.4], [0.0, 0.0]], dtype=F64), DATA.sample(100, generator(1), dtype=F64)
    model, exact = DATA.model(sde), {"tolerance": 1e-3}
    truth = -DATA.log_prob(x)
    found = Detector(model, LikelihoodScore(**exact))(x)
    torch.testing.assert_close(found.score, truth, rtol=0, atol=2e-2)  # of the noise at t_min, and the prior
    assert float(found.error.max()) <= 2e-3
    entropy = -DATA.log_prob(reference).mean()
    torch.testing.assert_close(
        Detector(model, Typicality(**exact), reference)(x).score, (truth - entropy).abs(), rtol=0, atol=2e-2
    )
    guessed = Detector(model, LikelihoodScore(probes=8, trace="rademacher"))(x)
    assert ((guessed.score - found.score).abs() < 5 * guessed.error + 1e-6).all()


# Laws of every score --------------------------------------------------------------------------------------------------


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ANOMALY_SCORES)
def test_a_score_depends_on_its_seed_alone_and_not_on_the_batch(name: str) -> None:
    model, x = model_on(VP()), torch.randn(7, 2, generator=generator(), dtype=F64)
    reference = problems.ring().sample(20, generator(1), torch.float64)
    whole, parts = (Detector(model, name, reference, batch_size=n)(x) for n in (256, 3))
    torch.testing.assert_close(whole.score, parts.score, rtol=1e-6, atol=1e-9)
    assert whole.score.shape == whole.error.shape == (7,) and whole.score.dtype == whole.error.dtype == F64
    before = torch.random.get_rng_state()
    assert torch.equal(Detector(model, name, reference)(x).score, whole.score)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", ANOMALY_SCORES)
@pytest.mark.parametrize(
    "sde", [VP(), *(pytest.param(s, marks=pytest.mark.slow) for s in (EDM(), RectifiedFlow()))], ids=repr
)
def test_every_score_tells_what_is_far_from_the_data_and_nothing_of_data(name: str, sde: GaussianSDE) -> None:
    problem = problems.ring()
    x, reference = problem.sample(120, generator(2)), problem.sample(150, generator(3))
    detector = Detector(problem.model(sde), name, reference)
    same = auroc_estimate(detector(x).score, detector(problem.sample(120, generator(4))).score, 0.9999)
    assert same.low < 0.5 < same.high
    assert float(auroc(detector(x).score, detector(3 * x).score)) > 0.97


@pytest.mark.parametrize("name", ["reconstruction", "loss-excess"])
def test_the_error_is_the_deviation_over_seeds(name: str) -> None:
    model, x = model_on(VP()), torch.tensor([[0.3, 0.2]], dtype=F64).expand(400, 2)
    reference = problems.ring().sample(50, generator(1), F64)
    found = Detector(model, f"{name}: draws=6", reference)(x)
    assert float(found.error.square().mean().sqrt()) == pytest.approx(float(found.score.std()), rel=0.15)
    assert bool(Detector(model, f"{name}: draws=1", reference)(x[:2]).error.isnan().all())


def test_the_likelihood_fails_where_typicality_does_not() -> None:
    """In 64 dimensions the mode of a Gaussian has a larger density than all data, and is nothing like them."""
    data = Gaussian(torch.zeros(64), torch.eye(64))
    x, reference = data.sample(100, generator()), data.sample(200, generator(1))
    simple = 0.3 * data.sample(100, generator(2))
    area = {
        name: float(auroc(*(Detector(data.model(EDM()), name, reference)(z).score for z in (x, simple))))
        for name in ("likelihood: probes=1", "typicality: probes=1", "score-norms")
    }
    assert area["likelihood: probes=1"] < 0.01
    assert area["typicality: probes=1"] > 0.99 and area["score-norms"] > 0.99


def test_conditions_reach_the_model_and_are_split_with_the_batch() -> None:
    class Shifted(ScoreModel):
        def x0(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
            at, (a, s) = conditions["at"].to(x)[:, None], (float(f(t)) for f in (self.sde.alpha, self.sde.sigma))
            return at + a * 0.2 / (a**2 * 0.2 + s**2) * (x - a * at)

    model, x = Shifted(None, VP(), "x0"), torch.tensor([[0.3], [3.3], [0.3], [3.3]], dtype=F64)
    reference = Gaussian([0.0], [[0.2]]).sample(40, generator(), F64)
    for name in ("likelihood: steps=5", "typicality: steps=5", "reconstruction: levels=3", "score-norms", "loss-excess"):
        detector = Detector(model, name, reference, conditions={"at": 0.0}, batch_size=3)
        right = detector(x, conditions={"at": [0.0, 3.0, 0.0, 3.0]}).score
        wrong = detector(x, conditions={"at": [3.0, 0.0, 3.0, 0.0]}).score
        assert bool((wrong > right).all()), name


@pytest.mark.slow
@pytest.mark.parametrize(("inside", "outside"), [("mnist", "fashion-mnist"), ("fashion-mnist", "mnist")])
def test_digits_and_clothes_are_told_apart_both_ways(shared_data: Path, inside: str, outside: str) -> None:
    """By the exact score of a mixture fitted to one set, at 14 x 14 pixels; the bounds are below what was measured."""

    def images(name: str, split: str) -> Tensor:
        found = data.open(f"{name}:{shared_data / name}", split=split)
        return torch.nn.functional.avg_pool2d(found.samples(range(2000)), 2)

    training, own, other = images(inside, "train"), images(inside, "test"), images(outside, "test")
    noise = 0.05 * torch.randn(training.shape, generator=generator())
    model = problems.ppca_mixture(training + noise, 10, 20, iterations=3).model(VP())
    least = {
        "likelihood: steps=8, probes=1, t_min=0.01": 0.9,
        "reconstruction": 0.9,
        "score-norms": 0.75,
        "loss-excess": 0.9,
    }
    for name, bound in least.items():
        detector = Detector(model, name, own[:200])
        assert float(auroc(detector(own[200:400]).score, detector(other[:200]).score)) > bound, name


# Refusals -------------------------------------------------------------------------------------------------------------

OU = GeneralSDE(f=lambda x, t: -x, g=lambda x, t: math.sqrt(2) * torch.ones_like(x), t_max=3.0)


@pytest.mark.parametrize(
    ("call", "error", "sentence"),
    [
        (lambda m, x: Detector(m, "loss-excess"), ValueError, "got no reference samples for LossExcess"),
        (lambda m, x: Detector(m, "typicality", x[:1]), ValueError, "got 1 reference samples for Typicality"),
        (lambda m, x: Detector(m, "loss-excess", x * math.nan), ValueError, "numbers that are not finite"),
        (lambda m, x: Detector(m, "likelihood")(x[:0]), ValueError, "got 0 samples"),
        (lambda m, x: Detector(m, "likelihood")(x[:, 0]), ValueError, r"write scalars as \(batch, 1\)"),
        (lambda m, x: Detector(m, "likelyhood"), ValueError, "did you mean 'likelihood'"),
        (lambda m, x: Detector(m, 3, x), TypeError, "got anomaly score 3"),
        (lambda m, x: Detector(lambda x, t: x, "likelihood"), TypeError, r"ScoreModel\(net, sde\) makes one"),
        (
            lambda m, x: Detector(ScoreModel(lambda x, t: x, OU), "likelihood"),
            ValueError,
            "expected a model on a GaussianSDE",
        ),
        (lambda m, x: Detector(m, LossExcess([2.0]), x), ValueError, "expected times from 0.001 to 1, with some noise"),
        (lambda m, x: Detector(m, LossExcess(0), x), ValueError, "got levels=0"),
        (lambda m, x: Detector(m, LossExcess([]), x), ValueError, "or a number of levels"),
        (lambda m, x: Detector(m, LossExcess(draws=0), x), ValueError, "got draws=0"),
        (lambda m, x: Detector(m, Reconstruction(draws=0), x), ValueError, "got draws=0"),
        (lambda m, x: Detector(m, "score-norms", x, batch_size=0), ValueError, "got batch_size=0"),
        (lambda m, x: auroc(torch.ones(3), torch.ones(1)), ValueError, "one for each of at least two samples"),
        (lambda m, x: auroc(torch.ones(3), torch.tensor([1.0, math.nan])), ValueError, "got 1 scores that are NaN"),
        (lambda m, x: auroc_estimate(torch.ones(3), torch.ones(3), 1.0), ValueError, "got confidence=1.0"),
    ],
)
def test_bad_input(call: Callable[[ScoreModel, Tensor], object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(model_on(VP()), torch.randn(3, 2, generator=generator()))
