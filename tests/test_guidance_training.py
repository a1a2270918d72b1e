"""What training leaves behind for guidance: a record of the conditions left out, and classifiers of noised data."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import scoresde
from scoresde import VE, VP, ScoreModel, guidance, problems, sample
from scoresde.objectives import DSM, Classification, LabelDropout
from scoresde.score import Wrapper

X, LABELS = torch.randn(64, 2), torch.arange(64) % 3
NULL = {"label": 3}


def trained(objective: Any, **how: Any) -> ScoreModel:
    model = ScoreModel(scoresde.models.MLP(2, hidden=(8,), num_classes=3), VP(), "v")
    given: dict[str, Any] = {"steps": 1, "batch_size": 8, "progress": False, **how}
    return scoresde.fit(model, X, objective, conditions={"label": LABELS}, **given).model


def warned(model: ScoreModel, null: Any = None) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        guidance.ClassifierFree(model, 2.0, NULL if null is None else null)
        guidance.Projected(model, 2.0, NULL if null is None else null)
        guidance.CFGPlusPlus(model, 0.5, NULL if null is None else null)
    assert len({str(w.message) for w in found}) <= 1 and len(found) in (0, 3)
    assert all(w.filename == __file__ for w in found)  # the line of the caller
    return [str(w.message) for w in found[:1]]


@pytest.mark.parametrize("objective", ["v", DSM("v", noise="antithetic"), LabelDropout("v", NULL, 0.0)])
def test_guidance_on_a_model_trained_without_label_dropout_is_a_warning(objective: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = trained(objective, out=path)
    scoresde.save(model, tmp_path / "saved.safetensors")
    like = ScoreModel(scoresde.models.MLP(2, hidden=(8,), num_classes=3), VP(), "v")
    for found in (
        model,
        Wrapper(guidance.DynamicThreshold(model)),
        scoresde.load(path),
        scoresde.load(tmp_path / "saved.safetensors"),
        scoresde.load(path, model=like),
    ):
        (message,) = warned(found)
        assert "without label dropout" in message and "LabelDropout('ddpm', {'label': 3})" in message


def test_guidance_on_a_model_trained_with_label_dropout_is_none(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = trained(LabelDropout("v", NULL), out=path, steps=1)
    assert model.dropped == scoresde.load(path).dropped == NULL
    assert not warned(model) and not warned(scoresde.load(path)) and not warned(model, {"label": torch.tensor(3)})
    (message,) = warned(model, {"label": 2})
    assert "take null={'label': 3}" in message
    assert trained(LabelDropout("v", NULL), out=path, steps=2).dropped == NULL  # resumed
    assert not warned(ScoreModel(scoresde.models.MLP(2, num_classes=3), VP()))  # of which no training is known


def test_a_null_value_that_is_a_tensor_is_recorded(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
            return self.a * x + text

    null = {"text": torch.tensor([0.5, -1.0])}
    objective = LabelDropout(LabelDropout("v", {"text": torch.zeros(2)}), null)
    path = tmp_path / "model.safetensors"
    how: dict[str, Any] = {"conditions": {"text": X}, "steps": 1, "batch_size": 8, "progress": False, "out": path}
    model = scoresde.fit(ScoreModel(Net(), VP(), "v"), X, objective, **how).model
    for found in (model, scoresde.load(path, Net())):
        assert not warned(found, null)


# Classifiers ---------------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """A small classifier of noised points."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.body(torch.cat([x, t[:, None].to(x), torch.exp(-3 * t)[:, None].to(x)], 1))
        return found


CLASSES = [problems.Gaussian([-1.0, 0.3], 0.1), problems.Gaussian([1.0, -0.2], 0.3), problems.Gaussian([0.2, 1.0], 0.2)]
ALL = problems.GaussianMixture(torch.stack([p.mean for p in CLASSES]), torch.tensor([0.1, 0.3, 0.2]))


def bayes(x: Tensor, t: Tensor) -> Tensor:
    return torch.stack([p.log_prob(x, VP(), t) for p in CLASSES], 1).log_softmax(1)


def test_a_classifier_trained_on_noised_data_is_nearly_that_of_bayes_and_guides() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([p.sample(2000, generator) for p in CLASSES])
    label = torch.arange(3).repeat_interleave(2000)
    how: dict[str, Any] = {"steps": 800, "batch_size": 256, "lr": 5e-3, "ema": 0.98, "seed": 0, "progress": False}
    found = scoresde.fit(ScoreModel(Logits(), VP()), x, Classification(), conditions={"label": label}, **how)
    net = found.model.net
    t = torch.linspace(0.01, 1, 6000)
    noised = VP().alpha(t)[:, None] * x + VP().sigma(t)[:, None] * torch.randn(6000, 2, generator=generator)
    with torch.no_grad():
        gap = F.kl_div(net(noised, t).log_softmax(1), bayes(noised, t), log_target=True, reduction="batchmean")
    assert 0 <= float(gap) < 0.01
    assert found.report.loss[0] < 0.3 < 1.0 < found.report.loss[-1] < 1.12  # log 3 = 1.099, where all is noise
    drawn = {}
    for name, log_prob in (("trained", guidance.ClassLogProb(net)), ("exact", guidance.ClassLogProb(bayes))):
        guided = guidance.Classifier(ALL.model(VP()), log_prob, 1.0, takes="label")
        drawn[name] = sample(
            guided, (300, 2), "dpmpp-2m", 15, progress=False, conditions={"label": 1}, dtype=torch.float32
        ).x
    assert float((drawn["trained"] - drawn["exact"]).square().mean().sqrt()) < 0.15
    torch.testing.assert_close(drawn["trained"].mean(0), CLASSES[1].mean.float(), rtol=0, atol=0.15)


@pytest.mark.parametrize("sde", [VP(), VE(), scoresde.DDPM.linear(20, 1e-3, 0.3)], ids=lambda s: type(s).__name__)
def test_the_cross_entropy_is_that_of_the_noised_data(sde: Any) -> None:
    seen: list[Tensor] = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return torch.stack([x[:, 0], x[:, 1], t], 1)

    model = ScoreModel(net, sde)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x0, eps, label = torch.ones(3, 2), torch.full((3, 2), 0.5), torch.tensor([0, 2, 1])
    loss = Classification(name="kind").at(model, x0, t, eps, kind=label)
    alpha, sigma = model.sde.alpha(t).float(), model.sde.sigma(t).float()
    size = alpha + 0.5 * sigma
    logits = torch.stack([size, size, t.float()], 1)
    torch.testing.assert_close(loss, -logits.log_softmax(1)[torch.arange(3), label], rtol=1e-5, atol=1e-6)
    assert seen[0].dtype == torch.float32 and torch.equal(seen[0], t.float())  # also on a chain: the time, no index


def test_bad_classifications_are_refused() -> None:
    model, how = ScoreModel(Logits(), VP()), {"steps": 1, "batch_size": 8, "progress": False}
    with pytest.raises(ValueError, match="no condition 'label'"):
        scoresde.fit(model, X, Classification(), **how)  # type: ignore[arg-type]
    wrong = ScoreModel(nn.Linear(2, 2), VP())
    wrong.net.forward = lambda x, t: x.sum() * wrong.net.weight.sum()
    with pytest.raises(ValueError, match="expected logits"):
        scoresde.fit(wrong, X, Classification(), conditions={"label": LABELS}, **how)  # type: ignore[arg-type]
    with pytest.raises(KeyError, match="unifrom"):
        Classification("unifrom")
    with pytest.raises(ValueError, match="weighting of a classification"):
        scoresde.fit(model, X, Classification(), conditions={"label": LABELS}, truth=ALL.model(VP()), **how)  # type: ignore[arg-type]
