"""Folders of diffusers: each class of network, with random weights, gives the same outputs here as there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import diffusers_class
from safetensors.torch import save_file
from support import mostly_slow
from torch import Tensor, nn

import scoresde
from scoresde import weights
from scoresde.models import NETWORKS, EmbeddingPrior, MMDiT
from scoresde.weights import WeightsError, keys
from scoresde.weights.convert import differences
from scoresde.weights.diffusers import mmdit, prior

LINEAR = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def peer(name: str, **config: Any) -> nn.Module:
    """A network of diffusers with random weights, no layer of which is silent."""
    kind = diffusers_class(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net: nn.Module = kind(**config).eval()
        for p in net.parameters():
            p.data += 0.1 * torch.randn_like(p) if p.ndim == 1 or not p.any() else 0
    return net


def folder_of(net: Any, scheduler: dict[str, Any], folder: Path) -> Path:
    """Write what diffusers' save_pretrained writes."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**net.config, "_class_name": type(net).__name__}, default=list))
    (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, folder / "diffusion_pytorch_model.safetensors")
    return folder


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_equal(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = float(expected.abs().max())
    assert scale > 1e-2
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


# UNet2DConditionModel ------------------------------------------------------------------------------------------------

_TINY = {
    "sample_size": 8,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": 6,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
UNETS: dict[str, dict[str, Any]] = {
    "1": {},
    "2": {"attention_head_dim": (1, 4), "use_linear_projection": True},
    "XL": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": (2, 4),
        "transformer_layers_per_block": (1, 2),
        "layers_per_block": (2, 1),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 5 + 6 * 4,
    },
    "labels": {"num_class_embeds": 3, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0},
    "vectors": {
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 7,
        "resnet_time_scale_shift": "scale_shift",
        "out_channels": 8,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", mostly_slow(UNETS, ("XL", "vectors")))
@torch.no_grad()
def test_conditional_unets(kind: str, tmp_path: Path) -> None:
    net = peer("UNet2DConditionModel", **_TINY | UNETS[kind])
    model = scoresde.load(folder_of(net, LINEAR, tmp_path))
    assert weights.event(tmp_path) == (4, 8, 8)
    x, context, steps = normal(2, 4, 8, 8), normal(2, 5, 6, seed=1), torch.tensor([7, 800])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ours: dict[str, Any] = {"context": context, "context_mask": mask}
    theirs: dict[str, Any] = {"encoder_attention_mask": mask}
    if kind == "labels":
        ours["label"] = theirs["class_labels"] = torch.tensor([2, 0])
    if kind == "vectors":
        ours["pooled"] = theirs["class_labels"] = normal(2, 7, seed=2)
    if kind == "XL":
        text, sizes = normal(2, 5, seed=2), torch.tensor([[9.0, 8, 0, 1, 7, 6], [8.0, 8, 0, 0, 8, 8]])
        theirs["added_cond_kwargs"] = {"text_embeds": text, "time_ids": sizes}
        angle = sizes[..., None] * torch.tensor([1.0, 0.01])
        ours["pooled"] = torch.cat([text, torch.cat([angle.cos(), angle.sin()], -1).flatten(1)], 1)
    expected = net(x, steps, context, **theirs).sample
    t = (steps + 1) / 1000
    found = model.eps(x, t, **ours)
    if model.learned_variance:
        found = torch.cat([found, 2 * model.outputs(x, t, **ours)[1] - 1], 1)
    assert_equal(found, expected)
    assert (model.eps(x, t, **ours | {"context": context.flip(0)}) - model.eps(x, t, **ours)).abs().amax() > 1e-3


# UNet3DConditionModel ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frames", mostly_slow((1, 3), (3,)))
@torch.no_grad()
def test_videos(frames: int, tmp_path: Path) -> None:
    names = ("down_block_types", "up_block_types")
    blocks = {name: tuple(kind.replace("2D", "3D") for kind in _TINY[name]) for name in names}
    net = peer("UNet3DConditionModel", **_TINY | blocks | {"attention_head_dim": 8})
    model = scoresde.load(folder_of(net, LINEAR, tmp_path))
    x, context, steps = normal(2, 4, frames, 8, 8), normal(2, 5, 6, seed=1), torch.tensor([7, 800])
    expected = net(x, steps, context).sample
    assert_equal(model.eps(x, (steps + 1) / 1000, context=context), expected)


# Transformers of image and text -------------------------------------------------------------------------------------

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8, "joint_attention_dim": 6, "pooled_projection_dim": 5}
_FLUX = _HEADS | {"in_channels": 8, "num_layers": 2, "num_single_layers": 2, "axes_dims_rope": (2, 2, 4)}
FLUXES: dict[str, dict[str, Any]] = {"schnell": {}, "dev": {"guidance_embeds": True}}
_SD3 = _HEADS | {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "caption_projection_dim": 16,
    "pos_embed_max_size": 6,
}
SD3S: dict[str, dict[str, Any]] = {
    "3": {},
    "3.5 large": {"qk_norm": "rms_norm"},
    "3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0,)},
    "patches of 4": {"patch_size": 4, "num_layers": 1, "sample_size": 16},
}


def packed(x: Tensor) -> Tensor:
    """Patches of 2 by 2, as Flux's pipeline cuts them."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", mostly_slow(FLUXES, ("dev",)))
@torch.no_grad()
def test_flux(kind: str, tmp_path: Path) -> None:
    net = peer("FluxTransformer2DModel", **_FLUX | FLUXES[kind])
    model = scoresde.load(folder_of(net, FLOW, tmp_path))
    assert isinstance(model.sde, scoresde.RectifiedFlow) and model.predicts == "velocity"
    x, context, pooled, t = normal(2, 2, 8, 6), normal(2, 5, 6, seed=1), normal(2, 5, seed=2), torch.tensor([0.2, 0.9])
    guidance = {"guidance": torch.tensor([3.5, 1.0])} if kind == "dev" else {}
    places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij"), -1).reshape(-1, 2)
    ids = torch.cat([torch.zeros(12, 1), places], 1)
    theirs = {"pooled_projections": pooled, "timestep": t, "img_ids": ids, "txt_ids": torch.zeros(5, 3)}
    expected = net(packed(x), encoder_hidden_states=context, **theirs, **guidance).sample
    found = model(x, t, context=context, pooled=pooled, **guidance)
    assert_equal(packed(found), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", mostly_slow(SD3S, ("3", "3.5 medium")))
@torch.no_grad()
def test_stable_diffusion_3(kind: str, tmp_path: Path) -> None:
    net = peer("SD3Transformer2DModel", **_SD3 | SD3S[kind])
    model = scoresde.load(folder_of(net, FLOW, tmp_path))
    assert weights.event(tmp_path) == (4, net.config["sample_size"], net.config["sample_size"])
    x, context, pooled, t = normal(2, 4, 12, 8), normal(2, 5, 6, seed=1), normal(2, 5, seed=2), torch.tensor([0.2, 0.9])
    expected = net(x, context, pooled, 1000 * t).sample
    assert_equal(model(x, t, context=context, pooled=pooled), expected)


# The prior of unCLIP --------------------------------------------------------------------------------------------------

_PRIOR = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 6, "num_embeddings": 5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("changes", [{}, {"embedding_proj_dim": 7}])
@torch.no_grad()
def test_priors(changes: dict[str, Any], tmp_path: Path) -> None:
    net = peer("PriorTransformer", **_PRIOR | changes)
    schedule = {"_class_name": "UnCLIPScheduler", "prediction_type": "sample", "num_train_timesteps": 1000}
    model = scoresde.load(folder_of(net, schedule, tmp_path))
    assert weights.event(tmp_path) == (6,) and model.predicts == "x0"
    torch.testing.assert_close(model.sde.chain.betas, scoresde.DDPM.cosine().betas)
    x, context, steps = normal(2, 6), normal(2, 5, 6, seed=1), torch.tensor([7, 800])
    pooled, mask = normal(2, changes.get("embedding_proj_dim", 6), seed=2), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    expected = net(x, steps, pooled, context, mask).predicted_image_embedding
    told = {"context": context, "pooled": pooled}
    assert_equal(model.x0(x, (steps + 1) / 1000, **told, context_mask=mask), expected)
    assert_equal(model.x0(x, (steps + 1) / 1000, **told)[:1], expected[:1])  # whose mask is all ones
    assert_equal(model.net.denormalized(x), net.post_process_latents(x))


# Autoencoders --------------------------------------------------------------------------------------------------------

_CODER = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
}
_ATTENDS = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
}
CODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "KL": ("AutoencoderKL", {}),
    "KL of Stable Diffusion 3": (
        "AutoencoderKL",
        {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5},
    ),
    "KL with attention": ("AutoencoderKL", {"layers_per_block": 2, "mid_block_add_attention": False, **_ATTENDS}),
    "KL with statistics": ("AutoencoderKL", {"latents_mean": (0.1, 0.2, 0.3, 0.4), "latents_std": (1.0, 2.0, 3.0, 4.0)}),
    "VQ": ("VQModel", {"num_vq_embeddings": 7}),
    "VQ of other features": ("VQModel", {"latent_channels": 4, "vq_embed_dim": 5, **_ATTENDS}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", mostly_slow(CODERS, ("KL", "VQ of other features")))
@torch.no_grad()
def test_autoencoders(kind: str, tmp_path: Path) -> None:
    name, changes = CODERS[kind]
    net = peer(name, **_CODER | changes)
    autoencoder = weights.load_published_autoencoder(folder_of(net, {}, tmp_path))
    x = normal(2, 3, 8, 8)
    code = net.encode(x)
    latent = code.latent_dist.mean if name == "AutoencoderKL" else code.latents
    assert_equal(autoencoder.encode(x), latent)
    if name == "AutoencoderKL":
        assert_equal(autoencoder.moments(x)[1], code.latent_dist.logvar)
    z = normal(*latent.shape, seed=1)
    assert_equal(autoencoder.decode(z), net.decode(z).sample)
    config = net.config
    mean, std = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(1.0)
    if config.get("latents_mean"):
        mean, std = (torch.tensor(config[f"latents_{name}"]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    assert_equal(autoencoder.standardized(x), (latent - mean) * config["scaling_factor"] / std)
    assert_equal(autoencoder.restored(z), net.decode(z * std / config["scaling_factor"] + mean).sample)
    with pytest.raises(WeightsError, match=r"is of an autoencoder, .*load it with"):
        (tmp_path / "scheduler_config.json").write_text(json.dumps(LINEAR))
        scoresde.load(tmp_path)


_WRONG_CODERS: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"_class_name": "AutoencoderTiny"}, "is of a AutoencoderTiny; expected one of AutoencoderKL, VQModel"),
    "blocks": ({"down_block_types": ["Down"]}, "with Down; expected types among DownEncoderBlock2D"),
    "mirror": ({"up_block_types": ["AttnUpDecoderBlock2D"]}, "the mirror of down_block_types"),
    "levels": ({"block_out_channels": [8, 16]}, "2 block_out_channels, .* expected one number of channels for each"),
    "channels": ({"out_channels": 4}, "out_channels=4; expected 3"),
    "one convolution": ({"use_post_quant_conv": False}, "use_post_quant_conv=False; expected True"),
    "scale": ({"scaling_factor": 0.0}, "scaling_factor=0.0; expected a positive number"),
    "norms": ({"_class_name": "VQModel", "norm_type": "spatial"}, "norm_type='spatial'; expected 'group'"),
    "depth": ({"layers_per_block": 99}, "has more layers than"),
}


@pytest.mark.parametrize("name", _WRONG_CODERS)
def test_autoencoders_without_equivalent_here(name: str, tmp_path: Path) -> None:
    config, message = _WRONG_CODERS[name]
    if name == "scale":
        folder_of(peer("AutoencoderKL", **_CODER | config), {}, tmp_path)
    else:
        written(tmp_path, {"one": torch.ones(1)}, config=config)
    with pytest.raises(WeightsError, match=message):
        weights.load_published_autoencoder(tmp_path)


# Presets -------------------------------------------------------------------------------------------------------------

_STABLE = {"sample_size": 64, "cross_attention_dim": 768}
_BIG = {"attention_head_dim": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 2048}
PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "stable-diffusion-1": ("UNet2DConditionModel", _STABLE),
    "stable-diffusion-2": (
        "UNet2DConditionModel",
        _STABLE | {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "stable-diffusion-xl": (
        "UNet2DConditionModel",
        {
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "stable-diffusion-3": (
        "SD3Transformer2DModel",
        _BIG | {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "stable-diffusion-3.5-medium": (
        "SD3Transformer2DModel",
        _BIG
        | {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": tuple(range(13)),
        },
    ),
    "stable-diffusion-3.5-large": (
        "SD3Transformer2DModel",
        _BIG
        | {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "unclip-prior": ("PriorTransformer", {}),
    "flux-schnell": ("FluxTransformer2DModel", {}),
    "flux-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
}


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in NETWORKS[name].build().parameters())


@pytest.mark.parametrize("name", mostly_slow(PRESETS, ("stable-diffusion-3.5-medium", "flux-dev")))
def test_counts_and_shapes_are_those_of_diffusers(name: str) -> None:
    kind, config = PRESETS[name]
    with torch.device("meta"):
        theirs, ours = diffusers_class(kind)(**config), NETWORKS[name].build()
    statistics = 2 * 768 if kind == "PriorTransformer" else 0  # which are parameters there and buffers here
    assert parameters(name) == sum(p.numel() for p in theirs.parameters()) - statistics == NETWORKS[name].parameters
    tensors = dict(theirs.state_dict())
    dialect = keys.Dialect("diffusers")
    conversions: Iterable[keys.Take]
    if isinstance(ours, MMDiT | EmbeddingPrior):
        conversions = mmdit.takes(ours) if isinstance(ours, MMDiT) else prior.takes(ours)
    else:
        conversions = keys.takes(ours, tensors, dialect)  # type: ignore[arg-type]
    assert differences(ours, tensors, conversions, ("pos_embed.pos_embed",)) == ""


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("stable-diffusion-1", 0.860),
        ("stable-diffusion-2", 0.866),
        ("stable-diffusion-xl", 2.6),
        ("stable-diffusion-3", 2),
        ("stable-diffusion-3.5-medium", 2.2),
        ("stable-diffusion-3.5-large", 8.1),
        ("flux-schnell", 12),
        ("flux-dev", 12),
    ],
)
def test_counts_are_those_that_are_stated(name: str, billions: float) -> None:
    assert NETWORKS[name].parameters == pytest.approx(billions * 1e9, rel=0.02)


# Folders -------------------------------------------------------------------------------------------------------------


def written(folder: Path, tensors: dict[str, Tensor], **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_tensors_in_several_files_are_those_of_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    net = peer("UNet2DConditionModel", **_TINY)
    for folder in (whole, parts):
        folder_of(net, LINEAR, folder)
    (parts / "diffusion_pytorch_model.safetensors").unlink()
    tensors = {k: v.contiguous() for k, v in net.state_dict().items()}
    names = {key: f"part-{i % 2}.safetensors" for i, key in enumerate(tensors)}
    for file in set(names.values()):
        save_file({k: v for k, v in tensors.items() if names[k] == file}, parts / file)
    index = parts / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    one, other = (scoresde.load(folder).net.state_dict() for folder in (whole, parts))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    index.write_text(json.dumps({"weight_map": {key: "../whole/config.json" for key in tensors}}))
    with pytest.raises(WeightsError, match=r"names a file outside its folder, '\.\./whole/config\.json'"):
        scoresde.load(parts)


_CONDITION = {"_class_name": "UNet2DConditionModel"}
_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class": ({"_class_name": "WuerstchenPrior"}, "is of a WuerstchenPrior; expected one of UNet2DModel, UNet2DCondition"),
    "blocks": (
        _CONDITION | {"down_block_types": ["KDownBlock2D"] * 4},
        "with KDownBlock2D; expected types among D",
    ),
    "mirror": (_CONDITION | {"up_block_types": ["UpBlock2D"] * 4}, "expected the mirror of down_block_types"),
    "levels": (_CONDITION | {"block_out_channels": [32, 64]}, "2 block_out_channels for 4 down_block_types"),
    "heads": (_CONDITION | {"attention_head_dim": [2, 4]}, r"attention_head_dim=\[2, 4\] for 4 block_out_channels"),
    "contexts": (_CONDITION | {"cross_attention_dim": [4, 4, 8, 8]}, "expected one number of features"),
    "sizes": (_CONDITION | {"layers_per_block": 0}, "layers_per_block=0; expected whole numbers from 1"),
    "groups": (_CONDITION | {"norm_num_groups": None}, "has no norm_num_groups; expected a whole number"),
    "pooled": (_CONDITION | {"addition_embed_type": "text_time"}, "expected the number of features of the vector"),
    "addition": (_CONDITION | {"addition_embed_type": "image"}, "addition_embed_type='image'; expected None or 'text_time'"),
    "depth": (_CONDITION | {"layers_per_block": 500}, "has more layers than .* has tensors, 1; expected the configuration"),
    "tensors": (_CONDITION, "has more layers than .* has tensors, 1"),
    "Flux patches": ({"_class_name": "FluxTransformer2DModel", "patch_size": 2}, "patch_size=2; expected 1"),
    "Flux channels": (
        {"_class_name": "FluxTransformer2DModel", "in_channels": 6},
        "=6; expected a multiple of 4",
    ),
    "SD3 widths": ({"_class_name": "SD3Transformer2DModel", "caption_projection_dim": 6}, "=6; expected 1152"),
    "SD3 norms": ({"_class_name": "SD3Transformer2DModel", "qk_norm": "layer_norm"}, "expected None or 'rms_norm'"),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_what_has_no_equivalent_here_is_a_sentence(name: str, tmp_path: Path) -> None:
    config, message = _REFUSED[name]
    written(tmp_path, {"one": torch.ones(1)}, config=config, scheduler_config=LINEAR)
    with pytest.raises(WeightsError, match=message):
        scoresde.load(tmp_path)


def test_positions_of_stable_diffusion_3_are_checked(tmp_path: Path) -> None:
    net = peer("SD3Transformer2DModel", **_SD3)
    net.pos_embed.pos_embed[0, 3] += 0.1
    with pytest.raises(WeightsError, match="expected sines and cosines of the positions"):
        scoresde.load(folder_of(net, FLOW, tmp_path))
