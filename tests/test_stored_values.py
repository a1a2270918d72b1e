"""Numbers that other packages returned, written down once: what is checked here needs none of them installed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from scoresde.models import UNet
from scoresde.weights.diffusers import unet2d
from scoresde.weights.keys import Dialect, takes

# diffusers.models.embeddings.get_timestep_embedding(torch.tensor([3.0]), 8, flip_sin_to_cos=.., downscale_freq_shift=..)
TIME_EMBEDDINGS: dict[tuple[bool, int], list[float]] = {
    (True, 0): [-0.989992, 0.955337, 0.999550, 0.999996, 0.141120, 0.295520, 0.029995, 0.003000],
    (True, 1): [-0.989992, 0.990321, 0.999979, 1.000000, 0.141120, 0.138798, 0.006463, 0.000300],
    (False, 0): [0.141120, 0.295520, 0.029995, 0.003000, -0.989992, 0.955337, 0.999550, 0.999996],
    (False, 1): [0.141120, 0.138798, 0.006463, 0.000300, -0.989992, 0.990321, 0.999979, 1.000000],
}


@pytest.mark.parametrize("said", [True, False], ids=["said", "by default"])
@pytest.mark.parametrize(("flip", "shift"), TIME_EMBEDDINGS)
def test_the_first_layer_meets_the_features_of_time_in_the_order_of_diffusers(flip: bool, shift: int, said: bool) -> None:
    """Their weights on their features, sines or cosines first, are our weights on ours."""
    config: dict[str, Any] = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
    }
    if said or (flip, shift) != (True, 0):
        config |= {"flip_sin_to_cos": flip, "freq_shift": shift}
    read = msgspec.convert(config, unet2d.UNet2D)
    net = UNet(**unet2d.network(read))
    dialect = Dialect("diffusers", sine_first=unet2d._sine_first(read))
    (first,) = [take for take in takes(net, {}, dialect) if take.ours == "embedding.layer1.weight"]
    assert first.theirs == ("time_embedding.linear_1.weight",)
    theirs = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    wanted = theirs @ torch.tensor(TIME_EMBEDDINGS[flip, shift])
    features = net.get_submodule("embedding.features")(torch.tensor([3.0]))[0]
    torch.testing.assert_close(first.layout(theirs) @ features, wanted, rtol=0, atol=2e-5)
