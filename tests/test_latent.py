"""Latent diffusion: equal to pixel diffusion under an orthonormal autoencoder, trained and guided as its inner model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support import mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import VP, RectifiedFlow, ScoreModel, guidance, models, problems, sample, sampling, training
from scoresde.models import Autoencoder, KLAutoencoder, Reconstructed, UNet, VQAutoencoder
from scoresde.objectives import LabelDropout
from scoresde.sampling import log_likelihood
from scoresde.score import LatentModel, Transformed
from scoresde.solvers import FreshNoise
from scoresde.systems import LatentDiffusion, Latents, nulls_of, train_latent, with_dropout
from scoresde.training import CheckpointError, load

D = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Orthonormal(Autoencoder):
    """x = Q z with orthonormal columns."""

    q: Tensor

    def __init__(self, d: int, k: int) -> None:
        super().__init__(k)
        self.register_buffer("q", torch.linalg.qr(torch.randn(d, k, generator=generator(4), dtype=D))[0])

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.q

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.q.T

    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        return Reconstructed(self.decode(self.encode(x)), torch.zeros(len(x)))


class Embedded(FreshNoise):
    """The draws of k numbers, in the span of Q."""

    def __init__(self, n: int, q: Tensor) -> None:
        super().__init__(range(n), torch.device("cpu"))
        self.q = q

    def __call__(self, start: Any, to: Any, out: Tensor, kernel: float = 0.0) -> Tensor:
        z = super().__call__(start, to, out.new_empty(len(out), self.q.shape[1]), kernel)
        return out.copy_(z @ self.q.T)


@pytest.mark.parametrize("sde", [VP(), RectifiedFlow()], ids=["VP", "flow"])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "heun", "rk4", "ddpm", "sde-dpmpp-2m"])
def test_latent_and_pixel_diffusion_end_alike(solver: str, sde: scoresde.sde.GaussianSDE) -> None:
    d, k, n = 7, 3, 5
    autoencoder = Orthonormal(d, k)
    means = torch.randn(2, k, generator=generator(1), dtype=D)
    roots = torch.randn(2, k, k, generator=generator(2), dtype=D)
    small = problems.GaussianMixture(means, roots @ roots.mT)
    large = problems.LowRankMixture(means @ autoencoder.q.T, autoencoder.q @ roots, 0.0)
    latent = LatentModel(small.model(sde), autoencoder)
    t = 0.95 * sde.span[1]
    start = torch.randn(n, k, generator=generator(3), dtype=D) * float(sde.sigma(t))
    how: dict[str, Any] = {"solver": solver, "steps": 12, "t_max": t, "progress": False}
    z = sample(latent, start, noise=FreshNoise(range(n), torch.device("cpu")), **how)
    x = sample(large.model(sde), start @ autoencoder.q.T, noise=Embedded(n, autoencoder.q), **how)
    assert z.x.shape == (n, d) and z.evaluations == x.evaluations and z.latent is not None and x.latent is None
    torch.testing.assert_close(z.x, x.x, rtol=0, atol=1e-12 * float(x.x.abs().max()))
    torch.testing.assert_close(z.latent @ autoencoder.q.T, z.x, rtol=0, atol=1e-14)


# The model -----------------------------------------------------------------------------------------------------------


def pair(kind: type[Autoencoder] = KLAutoencoder, predicts: str = "v", **more: Any) -> LatentModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        extra = {"codes": 16} if kind is VQAutoencoder else {}
        autoencoder = kind(1, 2, 4, (1, 2), blocks=1, groups=2, **extra)  # type: ignore[call-arg]
        autoencoder.measure(images())
        net = UNet(2, 8, (1, 2), lean=True, blocks=1, **more)
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
    return LatentModel(ScoreModel(net, VP(), predicts), autoencoder)


def images(n: int = 24) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=generator(5)) * 2 - 1


@pytest.mark.parametrize("predicts", mostly_slow(["eps", "v", "x0", "edm"], {"v", "edm"}))
def test_predictions_are_those_of_the_inner_model_to_the_last_bit(predicts: str) -> None:
    latent, x, t = pair(predicts=predicts), torch.randn(3, 2, 4, 4, generator=generator()), torch.tensor([0.2, 0.5, 0.9])
    inner = latent.model
    for name in ("x0", "eps", "score", "v", "forward"):
        assert torch.equal(getattr(latent, name)(x, t), getattr(inner, name)(x, t)), name
    times, where = t.double(), {"device": x.device, "dtype": x.dtype}
    for one, other in zip(latent.at(times, **where), inner.at(times, **where), strict=True):
        assert torch.equal(one(x), other(x))
    assert latent.calls == inner.calls and latent.coefficients(t).x0[0].equal(inner.coefficients(t).x0[0])
    z = sample(inner, x, "dpmpp-2m", 4, progress=False)
    assert torch.equal(sample(latent, x, "dpmpp-2m", 4, progress=False).x, latent.decode(z.x).detach())


def test_a_learned_variance_is_that_of_the_inner_model() -> None:
    net, chain = UNet(2, 8, (1, 2), lean=True, blocks=1, out_channels=4, time_scale=10.0), scoresde.DDPM.linear(10)
    inner = ScoreModel(net, chain, learned_variance=True)
    latent, x = LatentModel(inner, pair().autoencoder), torch.randn(2, 2, 4, 4, generator=generator())
    solver = scoresde.solvers.ancestral("learned")
    z = sample(inner, x, solver, path="t", steps=5, progress=False)
    found = sample(latent, x, solver, path="t", steps=5, progress=False)
    assert torch.equal(found.latent, z.x) and found.evaluations == z.evaluations
    for a, b in zip(latent.outputs(x, 0.5 * chain.sde().span[1]), inner.outputs(x, 0.5 * chain.sde().span[1]), strict=True):
        assert torch.equal(a, b)


def test_what_is_around_it_samples_data_too() -> None:
    latent = pair(num_classes=3)
    shape, label = (4, *latent.event((1, 8, 8))), torch.tensor([0, 1, 2, 0])
    plain = guidance.ClassifierFree(latent.model, 2.0, {"label": 3})
    around = guidance.ClassifierFree(latent, 2.0, {"label": 3})
    how: dict[str, Any] = {"solver": "ddim", "steps": 3, "progress": False, "conditions": {"label": label}}
    z, x = sample(plain, shape, **how), sample(around, shape, **how)
    torch.testing.assert_close(x.latent, z.x, rtol=1e-4, atol=1e-5)
    assert torch.equal(x.x, latent.decode(x.latent).detach()) and x.evaluations == z.evaluations == 6
    clipped = sample(Transformed(around, lambda m, t: m.clamp(-1, 1)), shape, **how)
    assert clipped.x.shape == (4, 1, 8, 8) and float(clipped.latent.abs().max()) <= 1
    assert torch.equal(sample(latent, shape, transform=lambda m, t: m.clamp(-1, 1), **how).latent.clamp(-1, 1), sample(
        Transformed(latent, lambda m, t: m.clamp(-1, 1)), shape, **how).latent)  # fmt: skip


def test_the_flow_and_the_likelihood_are_those_of_the_latents() -> None:
    latent = pair()
    z = latent.encode(images(3))
    found, inner = (log_likelihood(model, z, steps=2) for model in (latent, latent.model))
    assert torch.equal(found.log_prob, inner.log_prob) and torch.equal(found.latent, inner.latent)
    up = sampling.encode(latent, z, "ddim", 5)
    assert up.x.shape == z.shape and up.latent is None  # noise, and not decoded
    for method, tolerance in (("rk4", 0.05), (sampling.Bidirectional(), 1e-4)):
        told = sampling.encode(latent, z, method, 12)
        back = sampling.decode(latent, told.x, method, 12, partner=told.info.get("partner"))
        torch.testing.assert_close(back.x, latent.decode(z).detach(), rtol=tolerance, atol=tolerance)
    assert sampling.sdedit(latent, z, 0.3, steps=3).x.shape == (3, 1, 8, 8)


def test_diffusion_runs_before_quantisation() -> None:
    latent = pair(VQAutoencoder)
    z = latent.encode(images())
    codes = latent.autoencoder.codebook
    assert torch.equal(z, latent.autoencoder.standardized(images()))
    assert len(z.transpose(0, 1).flatten(1).unique(dim=1).T) > codes.size  # not quantised
    raw = latent.autoencoder.encode(images())
    quantised = codes.lookup(codes.indices(raw))
    torch.testing.assert_close(latent.decode(z), latent.autoencoder.decode(quantised))


def test_a_start_in_the_space_of_the_data_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got a start of shape \(2, 1, 8, 8\) for latents of 2 channels; expected .*event"):
        sample(pair(), (2, 1, 8, 8), steps=2, progress=False)


def test_what_is_no_autoencoder_is_refused() -> None:
    for wrong in (models.MLP(2), lambda x: x):
        with pytest.raises(TypeError, match="for the autoencoder of a latent model; expected"):
            LatentModel(pair().model, wrong)  # type: ignore[arg-type]


# Training and files --------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", mostly_slow([KLAutoencoder, VQAutoencoder], {VQAutoencoder}))
def test_training_it_is_training_the_inner_model(kind: type[Autoencoder], tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch_size": 8, "progress": False}
    latent, other = pair(kind), pair(kind)
    before = state(latent.autoencoder)
    for steps in (2, 4):
        found = scoresde.fit(latent, Latents(latent.autoencoder, images()), "v", steps=steps, out=tmp_path / "m", **how)
    inner = scoresde.fit(other.model, Latents(other.autoencoder, images()), "v", steps=4, **how)
    assert found.history == inner.history
    assert same(state(found.model.model), state(inner.model)) and same(state(found.raw.model), state(inner.raw))
    assert same(state(found.model.autoencoder), before) and not found.raw.autoencoder.training
    assert all(p.grad is None and not p.requires_grad for p in found.raw.autoencoder.parameters())
    found.raw.train()
    assert found.raw.model.training and not any(m.training for m in found.raw.autoencoder.modules())
    back = load(tmp_path / "m")
    assert type(back) is LatentModel and same(state(back), state(found.model)) and not back.training
    assert same(state(load(tmp_path / "m", model=pair(kind))), state(back))
    assert same(state(load(tmp_path / "m", ema=False)), state(found.raw))


def test_saved_and_loaded_it_samples_the_same(tmp_path: Path) -> None:
    latent = pair(num_classes=3)
    latent.dropped = {"label": 3}
    path = tmp_path / "latent.safetensors"
    scoresde.save(latent, path, event=latent.event((1, 8, 8)), classes=("a", "b", "c"))
    back = load(path)
    assert back.dropped == {"label": 3}
    guided = [guidance.ClassifierFree(model, 2.0, {"label": 3}) for model in (latent, back)]
    one, two = (sample(model, (2, 2, 4, 4), steps=3, conditions={"label": [0, 2]}, progress=False).x for model in guided)
    assert torch.equal(one, two)
    found, event = training.files.runs.open_run(path)
    assert event == (2, 4, 4) and same(state(found), state(latent))


def test_an_autoencoder_of_ones_own_is_given_again(tmp_path: Path) -> None:
    def made() -> LatentModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return LatentModel(ScoreModel(models.MLP(3, (8,)), VP(), "v"), Orthonormal(7, 3).float())

    path, latent = tmp_path / "latent.safetensors", made()
    scoresde.save(latent, path)
    with pytest.raises(CheckpointError, match=r"Orthonormal, which scoresde cannot build; pass .*model=\.\."):
        load(path)
    assert same(state(load(path, model=made())), state(latent))
    with pytest.raises(CheckpointError, match="another model"):
        load(path, model=pair())
    with pytest.raises(CheckpointError, match="autoencoder"):
        load(path, model=made().model)


def test_latents_are_cached_by_what_they_are_of(tmp_path: Path) -> None:
    latent, path = pair(), tmp_path / "latents.safetensors"
    label = torch.arange(24) % 3
    latents = Latents(latent.autoencoder, images(), {"label": label})
    known, order = latents.cached(path, batch_size=7), torch.tensor([5, 0, 23])
    for found in (known, latents.cached(path), Latents(latent.autoencoder, scoresde.data.Arrays(images(), label)).cached()):
        torch.testing.assert_close(found.batch(order)[0], latents.batch(order)[0], rtol=1e-5, atol=1e-6)
        assert torch.equal(found.batch(order)[1]["label"], label[order]) and found.event == (2, 4, 4) and len(found) == 24
    assert latents.fingerprint() == known.fingerprint()
    written = path.stat().st_mtime_ns
    latents.cached(path)
    assert path.stat().st_mtime_ns == written
    moved, elsewhere = Latents(latent.autoencoder, images() + 0.1), Latents(pair(VQAutoencoder).autoencoder, images())
    same = Latents(pair(VQAutoencoder).autoencoder, images(), {"label": label})
    for other in (moved, elsewhere, same):
        assert other.fingerprint() != latents.fingerprint()
        torch.testing.assert_close(other.cached(path).known, other.batch(torch.arange(24))[0], rtol=1e-5, atol=1e-6)
    path.write_bytes(b"damaged")
    assert torch.equal(latents.cached(path).known, latents.cached(path).known)
    with pytest.raises(ValueError, match="got condition 'label' with 3 entries for 24 samples"):
        Latents(latent.autoencoder, images(), {"label": label[:3]})


# Conditions ----------------------------------------------------------------------------------------------------------


def test_conditions_are_dropped_apart() -> None:
    seen: dict[str, Tensor] = {}

    class Net(nn.Module):
        config: ClassVar = {"context": 2, "pooled": 3, "num_classes": 4}

        def forward(self, x: Tensor, t: Tensor, **conditions: Tensor) -> Tensor:
            seen.update(conditions)
            return x

    n, net = 4000, Net()
    given = {
        "context": torch.ones(n, 5, 2), "context_mask": torch.zeros(n, 5, dtype=torch.bool), "pooled": torch.ones(n, 3),
        "label": torch.zeros(n, dtype=torch.int64),
    }  # fmt: skip
    objective = with_dropout("v", net, {"context": 0.3, "pooled": 0.5, "label": 0.1})
    assert objective.dropped == nulls_of(net) == {"context": 0.0, "context_mask": True, "pooled": 0.0, "label": 4}
    objective(ScoreModel(net, VP(), "v"), torch.zeros(n, 1), generator(), **given)
    lost = {"context": (seen["context"] == 0).flatten(1).all(1), "label": seen["label"] == 4}
    lost["pooled"] = (seen["pooled"] == 0).all(1)
    assert torch.equal(seen["context_mask"], lost["context"][:, None].expand(n, 5))
    shares = torch.stack([lost[name].double() for name in ("context", "pooled", "label")])
    torch.testing.assert_close(shares.mean(1), torch.tensor([0.3, 0.5, 0.1], dtype=D), rtol=0, atol=0.03)
    assert float((torch.corrcoef(shares) - torch.eye(3)).abs().max()) < 0.06
    # One label dropout with a probability for each does the same, and a probability of 0 drops nothing.
    one = LabelDropout("v", {"pooled": 0.0, "label": 4}, {"pooled": 0.5, "label": 0.0})
    assert one.dropped == {"pooled": 0.0}
    one(ScoreModel(net, VP(), "v"), torch.zeros(n, 1), generator(), **given)
    assert abs(float((seen["pooled"] == 0).all(1).double().mean()) - 0.5) < 0.03 and bool((seen["label"] == 0).all())
    with pytest.raises(ValueError, match=r"got probabilities of \['label'\] for the null values of \['pooled'\]"):
        LabelDropout("v", {"pooled": 0.0}, {"label": 0.1})
    with pytest.raises(ValueError, match="got a dropout of 'text' for a Net that takes context, pooled, label"):
        with_dropout("v", net, {"text": 0.1})


def test_a_system_is_trained_in_a_folder_and_opened_again(tmp_path: Path) -> None:
    data = scoresde.data.Arrays(images(), torch.arange(24) % 3)

    def run(steps: tuple[int, int]) -> LatentDiffusion:
        latent = pair(num_classes=3)
        method = training.Method(batch_size=8)
        torch.manual_seed(1)
        autoencoder = KLAutoencoder(1, 2, 4, (1, 2), blocks=1, groups=2)
        net = latent.model.net
        return train_latent(data, tmp_path, autoencoder, net, steps=steps, methods=(method, method), progress=False)

    found = run((2, 2))
    again = run((2, 3))
    assert training.files.runs.steps_done(tmp_path / "model.safetensors") == 3
    opened = LatentDiffusion.open(tmp_path)
    how: dict[str, Any] = {"steps": 3, "progress": False}
    for system in (again, opened):
        drawn = system.draw(labels=[0, 2, 3], guidance=2.0, **how)
        assert drawn.x.shape == (3, 1, 8, 8) and drawn.evaluations == 6
    assert torch.equal(again.draw(labels=[1], **how).x, opened.draw(labels=[1], **how).x)
    assert not torch.equal(found.draw(n=2, labels=[1, 1], **how).x, opened.draw(labels=[1, 1], **how).x)
    with pytest.raises(ValueError, match="got prompts for a system without a text encoder"):
        opened.draw(["red apple"], **how)
    with pytest.raises(ValueError, match="got texts without a text encoder"):
        train_latent(data, tmp_path, KLAutoencoder(1, 2, 4, (1, 2)), UNet(2, 8, (1, 2)), steps=(1, 1), texts=["a"] * 24)
