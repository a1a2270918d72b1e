"""Folders of diffusers: each class of network, with random weights, gives the same outputs here as there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import diffusers_class
from safetensors.torch import save_file
from torch import Tensor, nn

import scoresde
from scoresde import weights

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
@pytest.mark.parametrize("kind", UNETS)
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
