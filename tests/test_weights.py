"""Published weights: the tensors of every code base, run by an independent account of it, give the same outputs here."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from pathlib import Path
from typing import Any

import msgspec
import published as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from published import CONFIGS, EDM, OpenAI, Song, State
from safetensors.torch import save_file
from support import mostly_slow
from torch import Tensor

import scoresde
from scoresde import DDPM, VP, ScoreModel, SubVP, sample, solvers, weights
from scoresde.base.names import Table
from scoresde.models import NETWORKS, UNet
from scoresde.weights import PUBLISHED, WeightsError, diffusers, dit
from scoresde.weights.convert import build, mismatch
from scoresde.weights.parts import parts

LAYOUTS = {published.preset: name for name, published in reversed(list(PUBLISHED.items()))}
"""One checkpoint of each network."""


def size_of(config: Song | EDM | OpenAI) -> int:
    return config.img_resolution if isinstance(config, EDM) else config.image_size


def is_constant(name: str) -> bool:
    return name.endswith((".resample_filter", "map_noise.freqs", "all_modules.0.W"))


def state_of(config: Song | EDM | OpenAI, device: str = "cpu") -> State:
    """The tensors of a configuration's network."""
    state, n = State(device), size_of(config)
    like = {"dtype": torch.float64, "device": device}
    with torch.no_grad():
        reference.run(state, config, torch.zeros(1, 3, n, n, **like), torch.zeros(1, **like))
    return state


def test_every_published_checkpoint_is_written_down() -> None:
    assert CONFIGS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", mostly_slow(LAYOUTS.values(), list(LAYOUTS.values())[::3]))
def test_names_shapes_and_counts_are_those_of_the_published_code(name: str) -> None:
    state, published = state_of(CONFIGS[name], "meta"), PUBLISHED[name]
    with torch.device("meta"):
        net = published.net()
    assert mismatch(net, state.tensors, published.dialect) == ""
    count = sum(tensor.numel() for key, tensor in state.tensors.items() if not is_constant(key))
    assert count == NETWORKS[published.preset].parameters


# The same at small sizes, with values -------------------------------------------------------------------------------

SMALL: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # name: a checkpoint of the kind, what is smaller there, and what is smaller here
    "DDPM": ("vp/ddpm/cifar10", {"nf": 32, "ch_mult": (1, 2)}, {"width": 32, "multipliers": (1, 2)}),
    "DDPM++": ("vp/cifar10_ddpmpp_continuous", {"nf": 16, "num_res_blocks": 2}, {"width": 16, "blocks": 2}),
    "NCSN++": ("ve/cifar10_ncsnpp_continuous", {"nf": 16, "num_res_blocks": 1}, {"width": 16, "blocks": 1}),
    "NCSN++ in steps": ("ve/cifar10_ncsnpp", {"nf": 16, "num_res_blocks": 1}, {"width": 16, "blocks": 1}),
    "NCSN++ 256": (
        "ve/church_ncsnpp_continuous",
        {"nf": 16, "num_res_blocks": 1, "image_size": 64, "ch_mult": (1, 1, 2)},
        {"width": 16, "blocks": 1, "multipliers": (1, 1, 2), "attention": (2,)},
    ),
    "EDM VP": (
        "edm-cifar10-32x32-cond-vp",
        {"model_channels": 16, "num_blocks": 1},
        {"width": 16, "stem": 16, "blocks": 1},
    ),
    "EDM VE": (
        "edm-cifar10-32x32-cond-ve",
        {"model_channels": 16, "num_blocks": 2},
        {"width": 16, "stem": 16, "blocks": 2},
    ),
    "EDM ADM": (
        "edm-imagenet-64x64-cond-adm",
        {"model_channels": 64, "num_blocks": 1, "channel_mult": (1, 2), "label_dim": 7, "attn_resolutions": (32,)},
        {"width": 64, "blocks": 1, "multipliers": (1, 2), "num_classes": 7, "attention": (1,)},
    ),
    "improved": (
        "cifar10_uncond_50M_500K",
        {"num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2)},
        {"width": 32, "blocks": 1, "multipliers": (1, 2), "attention": (1,)},
    ),
    "improved, added": (
        "lsun_uncond_100M_1200K_bs128",
        {"num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2), "image_size": 32},
        {"width": 32, "blocks": 1, "multipliers": (1, 2), "attention": (1,)},
    ),
    "guided": (
        "128x128_diffusion",
        {"num_channels": 32, "num_res_blocks": 1, "channel_mult": (1, 2, 2), "image_size": 32, "class_cond": 7},
        {"width": 32, "blocks": 1, "multipliers": (1, 2, 2), "num_classes": 7, "attention": (0, 1, 2)},
    ),
    "guided, new order": (
        "64x64_diffusion",
        {"num_channels": 64, "num_res_blocks": 1, "channel_mult": (1, 2), "image_size": 32, "class_cond": 7},
        {"width": 64, "blocks": 1, "multipliers": (1, 2), "num_classes": 7, "attention": (0, 1)},
    ),
}


def small(kind: str) -> tuple[weights.Published, State, Song | EDM | OpenAI]:
    name, there, here = SMALL[kind]
    published = dataclasses.replace(PUBLISHED[name], config={**PUBLISHED[name].config, **here})
    config = dataclasses.replace(CONFIGS[name], **there)
    return published, state_of(config), config


def batch(seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    return x, torch.rand(2, generator=generator, dtype=torch.float64)


def model_of(published: weights.Published, state: State) -> ScoreModel:
    net = build(published.net, state.tensors, published.dialect, "the test")
    # The weights are cut to single precision on the way, and so they are there, but the arithmetic is double on both sides.
    for name, tensor in state.tensors.items():
        state.tensors[name] = tensor.float().double()
    learned = published.learned_variance
    return ScoreModel(net.double(), published.process(), published.predicts, learned_variance=learned).eval()


def told(config: Song | EDM | OpenAI, model: ScoreModel, t: Tensor) -> Tensor:
    """What the published code tells its network at the time t, in its own words."""
    sigma = model.sde.sigma(t) / model.sde.alpha(t)
    if isinstance(config, EDM):
        return sigma.log() / 4
    if isinstance(config, OpenAI):
        chain = model.sde.chain  # type: ignore[attr-defined]
        return chain.index(t) * (1000 / len(chain))
    if config.embedding_type == "fourier":
        return (sigma / 2).log()  # of data in [0, 1]
    return 999 * t


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind != "NCSN++ in steps"])
@torch.no_grad()
def test_outputs_are_those_of_the_published_code(kind: str) -> None:
    published, state, config = small(kind)
    model, (x, t) = model_of(published, state), batch()
    low, high = model.sde.span
    t = low + (high - low) * t if math.isfinite(high) else t
    if hasattr(model.sde, "chain"):
        t = (t * len(model.sde.chain)).ceil() / len(model.sde.chain)  # a step of the chain
    there: dict[str, Tensor] = {}
    here: dict[str, Tensor] = {}
    if model.net.config["num_classes"]:
        there = {"label": torch.tensor([1, 6])}
        here = dict(there)
    if model.net.config["augment"]:
        there["augment"] = here["augment"] = torch.tensor([[0.3, -1.0] + [0.5] * 7, [1.0] * 9], dtype=torch.float64)
    time = 999 * t if kind == "DDPM" else told(config, model, t)
    if kind == "DDPM":
        time = model.sde.chain.index(t)
    scale = model.coefficients(t).c_in
    output = reference.run(state, config, x if scale is None else scale[:, None, None, None] * x, time, **there)
    assert output.std() > 0.05
    sign = -1 if published.dialect.negated else 1
    torch.testing.assert_close(sign * model(x, t, **here), output[:, :3], rtol=1e-4, atol=2e-5)
    assert model.learned_variance == isinstance(config, OpenAI)
    if model.learned_variance:
        fraction = model.outputs(x, t, **here)[1]
        torch.testing.assert_close(2 * fraction - 1, output[:, 3:], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["improved", "guided, new order"])
@pytest.mark.parametrize("k", [1, 2, 500])
@torch.no_grad()
def test_a_step_with_the_learned_variance_is_equation_15(kind: str, k: int) -> None:
    """Nichol and Dhariwal, 2021: from step k (0, 1, ..) to the one before, sigma^2 = exp(v log beta + (1 - v) log beta~)."""
    published, state, config = small(kind)
    model, (x, _) = model_of(published, state), batch()
    here = {"label": torch.tensor([1, 6])} if model.net.config["num_classes"] else {}
    chain = model.sde.chain  # type: ignore[attr-defined]
    n, betas = len(chain), chain.betas
    told_ = torch.full((2,), k * 1000 / n if kind == "improved" else k, dtype=torch.float64)
    eps, v = reference.run(state, config, x, told_, **here).chunk(2, 1)
    v = (v + 1) / 2
    product = torch.cumprod(1 - betas, 0)
    beta, tilde = betas[k], betas[k] * (1 - product[k - 1]) / (1 - product[k])
    mean = (x - beta / (1 - product[k]).sqrt() * eps) / (1 - beta).sqrt()
    std = torch.exp(0.5 * (v * beta.log() + (1 - v) * tilde.log()))
    arguments: dict[str, Any] = {
        "path": [(k + 1) / n, k / n],
        "seed": 5,
        "end": "stop",
        "progress": False,
        "conditions": here,
    }
    lower, learned = (sample(model, x, solvers.ddpm(variance), **arguments).x for variance in ("lower", "learned"))
    noise = (lower - mean) / tilde.sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    torch.testing.assert_close(learned, mean + std * noise, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_labels_left_out_are_those_of_edm() -> None:
    published, state, config = small("EDM VP")
    model, (x, t) = model_of(published, state), batch()
    expected = reference.edm(state, x, t, config)  # type: ignore[arg-type]
    torch.testing.assert_close(model.net(x, t), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_edm_denoiser_is_equation_7() -> None:
    published, state, config = small("EDM VE")
    model, (x, t) = model_of(published, state), batch()
    sigma = 0.1 + t[:, None, None, None]
    c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    output = reference.run(state, config, x / (sigma**2 + 0.25).sqrt(), sigma.flatten().log() / 4)
    torch.testing.assert_close(model.x0(x, sigma.flatten()), c_skip * x + c_out * output, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_score_of_a_ve_network_is_that_of_its_own_scale() -> None:
    # There, x lies in [0, 1] with noise sigma, and the score is f(2 x - 1, log sigma) / sigma. Here, y = 2 x - 1.
    published, state, config = small("NCSN++")
    model, (x, t) = model_of(published, state), batch()
    sigma = 0.01 * 5000**t
    there = reference.run(state, config, 2 * x - 1, sigma.log()) / sigma[:, None, None, None]
    torch.testing.assert_close(2 * model.score(2 * x - 1, t), there, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_ve_network_in_steps_counts_from_the_largest_noise() -> None:
    published, state, config = small("NCSN++ in steps")
    model, (x, _) = model_of(published, state), batch()
    k = torch.tensor([10, 700])  # of 1000 noise levels, of which the first is the largest
    sigma = torch.exp(torch.linspace(math.log(50), math.log(0.01), 1000, dtype=torch.float64))[k]
    there = reference.run(state, config, 2 * x - 1, k.double()) / sigma[:, None, None, None]
    score = model.score(2 * x - 1, (1000 - k) / 1000)
    torch.testing.assert_close(2 * score, there, rtol=1e-4, atol=1e-4)


# What the configurations state, in their words. Of score_sde_pytorch: the largest noise of VE models. Of OpenAI's: the
# number of steps, the schedule, and whether the steps are told as if there were 1000.
SIGMA_MAX = {"bedroom": 378, "church": 380, "ffhq_256": 348, "celebahq_256": 348, "ffhq": 1348, "celebahq": 1348}
STEPS = {
    "cifar10_uncond_50M_500K": (4000, "cosine", True),
    "cifar10_uncond_vlb_50M_500K": (4000, "cosine", True),
    "imagenet64_uncond_100M_1500K": (4000, "cosine", True),
    "imagenet64_uncond_vlb_100M_1500K": (4000, "cosine", True),
    "imagenet64_cond_270M_250K": (4000, "cosine", False),
    "64x64_diffusion": (1000, "cosine", False),
}


def stated(name: str, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Times at the fractions ``u`` of a configuration, the scale of the data and of the noise there, and what is told.

    For data in [-1, 1]: where the configuration has them in [0, 1], they and the noise are doubled.
    """
    n, schedule, rescaled = STEPS.get(name, (1000, "linear", False))
    k = (n * u).floor()  # a step, from 0
    baseline, steps = name.startswith("baseline"), not name.startswith(("baseline", "edm")) and "continuous" not in name
    if name.startswith("ve") or (baseline and name.endswith("ve")):
        sigma_max = SIGMA_MAX.get(name.removeprefix("ve/").removesuffix("_ncsnpp_continuous"), 50)
        levels = torch.exp(torch.linspace(math.log(sigma_max), math.log(0.01), 1000, dtype=torch.float64))
        sigma = 0.01 * (sigma_max / 0.01) ** u
        if steps:
            return (k + 1) / 1000, torch.ones_like(u), 2 * levels[999 - k.long()], 999 - k
        return u, torch.ones_like(u), 2 * sigma, sigma.log()
    if name.startswith("edm"):
        sigma = 80 * u
        return sigma, torch.ones_like(u), sigma, sigma.log() / 4
    if steps:
        t = torch.arange(n + 1, dtype=torch.float64) / n
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        betas = torch.linspace(1e-4, 0.02, n, dtype=torch.float64) if schedule == "linear" else betas
        product = torch.cumprod(1 - betas, 0)[k.long()]
        return (k + 1) / n, product.sqrt(), (1 - product).sqrt(), k * (1000 / n if rescaled else 1.0)
    log_mean = -0.25 * u**2 * (20 - 0.1) - 0.5 * u * 0.1
    variance = 1 - torch.exp(2 * log_mean)
    return u, log_mean.exp(), variance if name.startswith("subvp") else variance.sqrt(), 999 * u


@pytest.mark.parametrize("name", PUBLISHED)
def test_noise_and_what_the_network_is_told_are_those_of_the_configuration(name: str) -> None:
    published = PUBLISHED[name]
    t, alpha, sigma, label = stated(name, torch.tensor([0.003, 0.2, 0.5, 0.999], dtype=torch.float64))
    model = ScoreModel(torch.nn.Identity(), published.process(), published.predicts)
    torch.testing.assert_close(model.sde.alpha(t), alpha, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(model.sde.sigma(t), sigma, rtol=1e-9, atol=1e-12)
    config = {"time_shift": 0.0, "time_scale": 1.0, **NETWORKS[published.preset].config, **published.config}
    given = (model._time(t) - config["time_shift"]) / config["time_scale"]
    torch.testing.assert_close(given, label, rtol=1e-9, atol=1e-9)
    # Of VE models the output is a score times sigma.
    assert published.predicts == ("edm" if name.startswith("edm") else "eps")
    assert published.dialect.negated == (name.startswith("ve/") or name == "baseline-cifar10-32x32-uncond-ve")


# Files --------------------------------------------------------------------------------------------------------------


def patched(monkeypatch: pytest.MonkeyPatch, **entries: weights.Published) -> None:
    monkeypatch.setattr(weights, "PUBLISHED", Table("config", "scoresde.weights.PUBLISHED", entries))


def as_file(state: State, path: Path) -> Path:
    tensors = {name: tensor.float().contiguous() for name, tensor in state.tensors.items()}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_is_known_by_its_tensors_and_sampled_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    published, state, _ = small("DDPM++")
    patched(monkeypatch, ours=published, other=small("EDM VP")[0])
    file = as_file(state, tmp_path / f"anything{suffix}")
    assert weights.recognizes(file)
    model = scoresde.load(file)
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.float32}
    drawn = sample(model, (2, 3, 32, 32), "ddim", steps=3, progress=False)
    assert torch.isfinite(drawn.x).all()


def test_a_loaded_learned_variance_is_sampled_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, state, _ = small("improved")
    patched(monkeypatch, ours=published)
    model = weights.load_published(as_file(state, tmp_path / "theirs.pt"))
    scoresde.save(model, tmp_path / "ours.safetensors")
    again = scoresde.load(tmp_path / "ours.safetensors")
    first, second = (sample(m, (1, 3, 32, 32), solvers.ddpm("learned"), 3, progress=False).x for m in (model, again))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4 * float(first.abs().max()))


def test_a_loaded_model_can_be_saved_and_loaded_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, state, _ = small("NCSN++")
    patched(monkeypatch, ours=published)
    model = weights.load_published(as_file(state, tmp_path / "theirs.pt"))
    scoresde.save(model, tmp_path / "ours.safetensors")
    again, (x, t) = scoresde.load(tmp_path / "ours.safetensors"), batch()
    assert torch.equal(again.score(x.float(), t), model.score(x.float(), t))


def test_wrappers_around_the_names_are_taken_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, state, _ = small("EDM VP")
    patched(monkeypatch, ours=published)
    wrapped = {f"model.{name}": tensor.float() for name, tensor in state.tensors.items()}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    plain = weights.load_published(as_file(state, tmp_path / "plain.pt"))
    loaded = weights.load_published(tmp_path / "wrapped.pt")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_averages_without_names_get_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, state, _ = small("NCSN++")
    patched(monkeypatch, ours=published)
    model = {"sigmas": torch.ones(5)} | {f"module.{n}": t.float() for n, t in state.tensors.items()}
    model = {f"module.{n.removeprefix('module.')}": t for n, t in model.items()}
    trained = [n for n in model if n not in ("module.sigmas", "module.all_modules.0.W")]
    content = {"model": model, "ema": {"decay": 0.999, "shadow_params": [model[n] + 1 for n in trained]}, "step": 3}
    torch.save(content, tmp_path / "checkpoint.pth")
    last = weights.load_published(tmp_path / "checkpoint.pth", ema=False).net
    averaged = weights.load_published(tmp_path / "checkpoint.pth").net
    torch.testing.assert_close(averaged.stem.weight, last.stem.weight + 1)
    assert torch.equal(averaged.embedding.features.frequencies, last.embedding.features.frequencies)
    content["ema"]["shadow_params"].pop()  # type: ignore[index]
    torch.save(content, tmp_path / "short.pth")
    with pytest.raises(WeightsError, match="trained tensors; expected one for each: pass ema=False"):
        weights.load_published(tmp_path / "short.pth")


def test_a_name_of_a_file_decides_between_equals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    published, state, _ = small("DDPM++")
    sub = dataclasses.replace(published, process=SubVP)
    entries = {"vp/one": published, "subvp/two": sub}
    monkeypatch.setattr(weights, "PUBLISHED", Table("config", "scoresde.weights.PUBLISHED", entries))
    assert isinstance(weights.load_published(as_file(state, tmp_path / "two.pt")).sde, SubVP)
    assert isinstance(weights.load_published(as_file(state, tmp_path / "two.pt"), "vp/one").sde, VP)
    with pytest.raises(WeightsError, match="has the tensors of vp/one, subvp/two; expected only one match: pass config="):
        weights.load_published(as_file(state, tmp_path / "three.pt"))
    again = dataclasses.replace(published, config={**published.config, "dropout": 0.4})
    patched(monkeypatch, one=published, again=again)  # which differ in nothing that matters
    assert isinstance(weights.load_published(tmp_path / "three.pt").sde, VP)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_each_missing_or_surplus_or_reshaped_tensor_is_named(data: st.DataObject) -> None:
    published, state, _ = WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))]
    with torch.device("meta"):
        net = published.net()
    tensors = dict(state.tensors)
    name = data.draw(st.sampled_from(sorted(tensors)))
    change = data.draw(st.sampled_from(["missing", "surplus", "reshaped"]))
    if change == "missing" and not name.endswith(".resample_filter"):
        del tensors[name]
        assert f"it lacks {name}" in mismatch(net, tensors, published.dialect)
    elif change == "surplus":
        tensors[f"{name}_"] = tensors[name]
        assert f"it also holds {name}_" in mismatch(net, tensors, published.dialect)
    else:
        tensors[name] = torch.cat([tensors[name], tensors[name]])
        assert name in mismatch(net, tensors, published.dialect)


WHOLE = {kind: small(kind) for kind in ("DDPM++", "EDM VE", "guided")}


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("the file was unpickled",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (Bomb(), "holds more than tensors and plain values, or is damaged, and is not opened further"),
        ([torch.ones(2)], "holds a list; expected the tensors of a network by name"),
        ({"a": 3}, "'a' is a int; save its state_dict"),
        ({}, "it is empty"),
        ({"input_blocks.0.0.weight": torch.ones(2)}, "has the tensors of no published configuration"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patched(monkeypatch, ours=small("guided")[0])
    if content is not None:
        torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=message):
        weights.load_published(tmp_path / "file.pt")


def test_a_plain_pickle_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(WeightsError, match=r"save the network's state_dict\(\)"):
        weights.load_published(tmp_path / "network.pkl")
    assert not weights.recognizes(tmp_path / "network.pkl")


def test_an_unknown_configuration_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'edm-cifar10-32x32-cond-v"):
        weights.load_published(tmp_path / "file.pt", "edm-cifar10-cond-vp")


def test_parts_are_all_of_the_network() -> None:
    net = small("NCSN++ 256")[0].net()
    names = [part.name for part in parts(net) if part.name]
    assert len(set(names)) == len(names)
    covered = tuple(f"{name}." for name in names)
    assert all(key.startswith((*covered, "norm.", "output.")) for key in net.state_dict())


# Transformers --------------------------------------------------------------------------------------------------------

SIZES = {"width": 128, "depth": 2, "heads": 2, "patch": 2, "out": 8}


def transformer(**changes: Any) -> tuple[State, Tensor]:
    """The tensors of a small DiT of 7 classes, and its outputs."""
    state, generator = State(), torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64)
    steps, label = torch.tensor([3.0, 900.0], dtype=torch.float64), torch.tensor([2, 7])  # 7: no label
    reference.dit(state, x, steps, label, **SIZES | changes)
    for name, tensor in state.tensors.items():
        state.tensors[name] = tensor.float().double()
    return state, reference.dit(state, x, steps, label, **SIZES | changes)


@pytest.mark.parametrize("changes", [{}, {"patch": 4}, {"width": 192, "heads": 3}, {"out": 4}])
@torch.no_grad()
def test_outputs_of_a_transformer_are_those_of_the_published_code(changes: dict[str, int], tmp_path: Path) -> None:
    state, output = transformer(**changes)
    assert weights.recognizes(as_file(state, tmp_path / "0400000.pt"))
    model = scoresde.load(tmp_path / "0400000.pt").double()
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t, label = torch.tensor([4, 901], dtype=torch.float64) / 1000, torch.tensor([2, 7])
    torch.testing.assert_close(model.eps(x, t, label=label), output[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.sde.chain.betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    assert model.learned_variance == (output.shape[1] == 8)
    if model.learned_variance:
        fraction = model.outputs(x, t, label=label)[1]
        torch.testing.assert_close(2 * fraction - 1, output[:, 4:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["dit-s-2", "dit-xl-2"])
def test_the_presets_are_known_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        net = NETWORKS[name].build()
        tensors = {theirs: net.state_dict()[ours] for ours, theirs in dit.names(net).items()}  # type: ignore[arg-type]
        tensors["pos_embed"] = net.positions[None]
        assert dit._like(tensors).config == net.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.proj.bias"), r"it lacks blocks\.1\.attn\.proj\.bias"),
        (lambda s: s.update(more=torch.ones(1)), "it also holds more"),
        (lambda s: s.pop("pos_embed"), "than a DiT: it lacks pos_embed"),
        (lambda s: s.update(pos_embed=torch.rand(16, 128)), "of another number of axes"),
        (
            lambda s: s.update(pos_embed=torch.rand(1, 15, 128)),
            "pos_embed of shape|a pos_embed that is not a DiT's; expected sines",
        ),
        (
            lambda s: s.update(pos_embed=torch.rand(1, 16, 128)),
            "pos_embed of shape|a pos_embed that is not a DiT's; expected sines",
        ),
        (
            lambda s: s.update({"t_embedder.mlp.0.weight": torch.ones(128, 64)}),
            r"has t_embedder\.mlp\.0\.weight of shape \(128, 64\); expected \(128, 256\)",
        ),
    ],
)
def test_other_transformers_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state, _ = transformer()
    change(state.tensors)
    with pytest.raises(WeightsError, match=message):
        weights.load_published(as_file(state, tmp_path / "file.pt"))


# RefineNets ----------------------------------------------------------------------------------------------------------


def refinenet(deeper: int) -> tuple[State, Tensor, Tensor]:
    """The tensors of a small NCSNv2, images, and its outputs."""
    state, x = State(), torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference.ncsnv2(state, x, width=8, deeper=deeper)
    for name, tensor in state.tensors.items():
        state.tensors[name] = tensor.float().double()
    return state, x, reference.ncsnv2(state, x, width=8, deeper=deeper)


SIGMAS = torch.exp(torch.linspace(math.log(50), math.log(0.01), 232, dtype=torch.float64))


@pytest.mark.parametrize("deeper", [0, 1, 2])
@torch.no_grad()
def test_scores_of_a_refinenet_are_those_of_its_own_scale(deeper: int, tmp_path: Path) -> None:
    """There, x lies in [0, 1] with noise sigma, and the score is f(2 x - 1) / sigma. Here, y = 2 x - 1."""
    state, y, output = refinenet(deeper)
    state.tensors["sigmas"] = SIGMAS
    assert weights.recognizes(as_file(state, tmp_path / "any.pt"))
    model = scoresde.load(tmp_path / "any.pt").double()
    k = torch.tensor([3, 200])  # of the noise levels, of which the first is the largest
    there = output / SIGMAS.float()[k, None, None, None]
    torch.testing.assert_close(2 * model.score(y, (232 - k) / 232), there, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_ncsnv2_holds_averages_by_name(tmp_path: Path) -> None:
    state, _, _ = refinenet(0)
    trained = {name: tensor.float() for name, tensor in state.tensors.items()}
    model = {f"module.{name}": tensor for name, tensor in {**trained, "sigmas": SIGMAS.float()}.items()}
    averages = {name: tensor + 1 for name, tensor in trained.items()}
    torch.save([model, {"state": {}, "param_groups": []}, 3, 100, averages], tmp_path / "checkpoint.pth")
    last, averaged = (weights.load_published(tmp_path / "checkpoint.pth", ema=ema).net for ema in (False, True))
    torch.testing.assert_close(averaged.stem.weight, last.stem.weight + 1)
    torch.testing.assert_close(averaged.output.weight, last.output.weight - 1, msg="which is negated")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("refine2.crp.convs.1.weight"), r"it lacks refine2\.crp\.convs\.1\.weight"),
        (lambda s: s.update(more=torch.ones(1)), "it also holds more"),
        (lambda s: s.update({"res1.0.conv1.bias": torch.ones(9)}), r"it has in another shape res1\.0\.conv1\.bias"),
        (lambda s: s.pop("sigmas"), "it has 4 stages, without sigmas; expected 4, 5 or 6"),
        (lambda s: s.update({"res7.0.conv1.bias": torch.ones(9)}), r"it lacks refine5\.adapt_convs"),
    ],
)
def test_other_refinenets_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    state, _, _ = refinenet(0)
    state.tensors["sigmas"] = SIGMAS
    change(state.tensors)
    with pytest.raises(WeightsError, match=message):
        weights.load_published(as_file(state, tmp_path / "file.pt"))


# Folders of diffusers -----------------------------------------------------------------------------------------------

_LINEAR = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
_VE = {"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01, "sigma_max": 300.0}


def scheduler(config: dict[str, Any]) -> diffusers.Scheduler:
    return msgspec.convert(config, diffusers.Scheduler)


def unet(config: dict[str, Any]) -> diffusers.UNet2D:
    return msgspec.convert(config, diffusers.UNet2D)


_SMALL = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
_SKIP: dict[str, Any] = {
    "block_out_channels": (128, 128),
    "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "norm_num_groups": None,
    "norm_eps": 1e-6,
    "time_embedding_type": "fourier",
    "mid_block_scale_factor": math.sqrt(2),
    "attention_head_dim": None,
}
PEERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (
        _LINEAR,
        _SMALL | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    ),
    "DDPM": (
        _LINEAR,
        {
            "block_out_channels": (32, 64),
            "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "downsample_padding": 0,
            "attention_head_dim": None,
            "norm_eps": 1e-6,
            "num_class_embeds": 5,
            "out_channels": 6,
        },
    ),
    "ADM": (
        _LINEAR,
        _SMALL
        | {
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "resnet_time_scale_shift": "scale_shift",
            "attn_norm_num_groups": 8,
        },
    ),
    "NCSN++": (_VE, _SKIP),
    "NCSN++, centered": (_VE, _SKIP | {"center_input_sample": True}),
}


def peer(config: dict[str, Any]) -> Any:
    """A network of diffusers with random weights; skips the test where it cannot be imported."""
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers' UNet2DModel cannot be imported: {error}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet2DModel(sample_size=16, **config).eval()
        for p in net.parameters():
            p.data += 0.1 * torch.randn_like(p) if p.ndim == 1 else 0
    return net


def folder_of(net: Any, scheduler: dict[str, Any], folder: Path, *, pipeline: bool = False) -> Path:
    places = (folder / "unet", folder / "scheduler") if pipeline else (folder, folder)
    for place in places:
        place.mkdir(exist_ok=True)
    (places[0] / "config.json").write_text(json.dumps(dict(net.config), default=list))
    (places[1] / "scheduler_config.json").write_text(json.dumps(scheduler))
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, places[0] / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", PEERS)
@torch.no_grad()
def test_parity_with_diffusers(kind: str, tmp_path: Path) -> None:
    scheduler, config = PEERS[kind]
    net = peer(config)
    model = scoresde.load(folder_of(net, scheduler, tmp_path, pipeline=kind == "plain"))
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if config.get("time_embedding_type") == "fourier":
        t = torch.tensor([0.3, 0.8], dtype=torch.float64)
        factor = 2 if config.get("center_input_sample") else 1
        sigma = (0.01 * 30000**t).float()
        expected = net((x + 1) / 2 if factor == 2 else x, sigma).sample
        found = factor * model.score(x, t)
    else:
        steps, label = torch.tensor([7, 800]), torch.tensor([1, 2]) if "num_class_embeds" in config else None
        conditions = {} if label is None else {"label": label}
        expected = net(x, steps, **({} if label is None else {"class_labels": label})).sample
        found = model.eps(x, (steps + 1) / 1000, **conditions)
        if model.learned_variance:
            fraction = model.outputs(x, (steps + 1) / 1000, **conditions)[1]
            found = torch.cat([found, 2 * fraction - 1], 1)
    scale = expected.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_log_variance_itself_is_no_place_between_bounds(tmp_path: Path) -> None:
    folder = folder_of(peer(PEERS["DDPM"][1]), _LINEAR | {"variance_type": "learned"}, tmp_path)
    with pytest.raises(WeightsError, match="expected variance_type='learned_range'"):
        scoresde.load(folder)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (_LINEAR, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
        (_LINEAR | {"beta_schedule": "scaled_linear"}, torch.linspace(0.01, 0.02**0.5, 1000, dtype=torch.float64) ** 2),
        (_LINEAR | {"beta_schedule": "squaredcos_cap_v2"}, DDPM.cosine().betas),
        (_LINEAR | {"trained_betas": [0.1, 0.2]}, torch.tensor([0.1, 0.2], dtype=torch.float64)),
        (_LINEAR | {"rescale_betas_zero_snr": True}, DDPM.linear().rescale_zero_terminal_snr().betas),
    ],
)
def test_schedules_of_diffusers(schedule: dict[str, Any], expected: Tensor) -> None:
    made, predicts, _ = diffusers.process(scheduler(schedule | {"prediction_type": "v_prediction"}))
    assert isinstance(made, DDPM) and predicts == "v"
    torch.testing.assert_close(made.betas, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: diffusers.process(scheduler({"_class_name": "KarrasVeScheduler"})),
            "is for a KarrasVeScheduler; expected ScoreSdeVe",
        ),
        (lambda: diffusers.process(scheduler(_LINEAR), centered=True), "of a network that centers its input"),
        (
            lambda: diffusers.process(scheduler(_LINEAR | {"prediction_type": "flow"})),
            "prediction_type='flow'; expected one of eps",
        ),
        (
            lambda: diffusers.process(scheduler(_LINEAR | {"beta_schedule": "sigmoid"})),
            "beta_schedule='sigmoid'; expected one of lin",
        ),
        (
            lambda: diffusers.process(scheduler(_LINEAR | {"rescale_betas_zero_snr": True})),
            "rescaled to zero terminal signal for prediction_type='epsilon', .* expected prediction_type='v_prediction'",
        ),
        (
            lambda: diffusers.network(unet({"down_block_types": ["KDownBlock2D"]})),
            "with KDownBlock2D; expected types among DownBl",
        ),
        (lambda: diffusers.network(unet({"up_block_types": ["UpBlock2D"] * 4})), "expected the mirror of down_block_types"),
        (lambda: diffusers.network(unet({"act_fn": "relu"})), "act_fn='relu'; expected 'silu' or 'swish'"),
        (lambda: diffusers.network(unet({"mid_block_scale_factor": 2})), "mid_block_scale_factor=2.0; expected 1.0"),
        (
            lambda: diffusers.network(
                unet(
                    {
                        "down_block_types": ["SkipDownBlock2D", "DownBlock2D", "DownBlock2D"],
                        "up_block_types": ["UpBlock2D", "UpBlock2D", "SkipUpBlock2D"],
                    }
                )
            ),
            "mixes kinds of down-sampling",
        ),
    ],
)
def test_what_diffusers_has_and_this_library_has_not(call: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        call()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "has no config.json"),
        ("scheduler_config.json", "has no scheduler_config.json, which contains the noise schedule"),
        ("diffusion_pytorch_model.safetensors", "has no weights; expected"),
    ],
)
def test_an_incomplete_folder(tmp_path: Path, missing: str, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "scheduler_config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_text("")
    (tmp_path / missing).unlink()
    with pytest.raises(WeightsError, match=message):
        weights.load_published(tmp_path)


def test_old_names_of_attention() -> None:
    old = {"mid_block.attentions.0.query.weight": torch.ones(1), "mid_block.attentions.0.proj_attn.bias": torch.ones(1)}
    assert set(diffusers.folder._renamed(old)) == {
        "mid_block.attentions.0.to_q.weight",
        "mid_block.attentions.0.to_out.0.bias",
    }


def test_the_preset_of_ddpm_is_that_of_diffusers() -> None:
    config = {
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    }
    with torch.device("meta"):
        theirs, ours = UNet(**diffusers.network(unet(config))), NETWORKS["ddpm-cifar10"].build()
    irrelevant = {"dropout", "unconditional", "out_channels", "project_skips"}
    assert {k: v for k, v in theirs.config.items() if k not in irrelevant} == {
        k: v
        for k, v in ours.config.items()
        if k not in irrelevant  # type: ignore[union-attr]
    }
