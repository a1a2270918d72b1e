"""The throughput of the trainer against a bare loop, and against diffusers' usual one, in one run.

The loops take turns, a few steps each, so that what else the machine does falls on both; the ratio is that of their
medians.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from scoresde import VP, ScoreModel
from scoresde.models import UNet
from scoresde.training import Trainer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, SHAPE = (256, (3, 32, 32)) if DEVICE == "cuda" else (32, (1, 16, 16))
ROUNDS, STEPS = (20, 20) if DEVICE == "cuda" else (15, 4)


def network() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(SHAPE[0], 64 if DEVICE == "cuda" else 24, (1, 2, 2), lean=True, blocks=1).to(DEVICE)


def images() -> Tensor:
    return torch.randn(2048, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def bare(net: nn.Module, x: Tensor) -> Callable[[], None]:
    """A loop as one writes it by hand: the same loss, clipping, Adam and moving average, on the same data."""
    optimizer, average = torch.optim.Adam(net.parameters(), lr=1e-3), copy.deepcopy(net)
    sde = VP()

    def step() -> None:
        x0 = x[torch.randint(len(x), (BATCH,), device=x.device)]
        t = 1e-3 + (1 - 1e-3) * torch.rand(BATCH, device=x.device, dtype=torch.float64)
        alpha, sigma = (c.float()[:, None, None, None] for c in (sde.alpha(t), sde.sigma(t)))
        eps = torch.randn_like(x0)
        loss = (net(alpha * x0 + sigma * eps, t.float()) - eps).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(net.parameters()), 0.001)
        loss.item()

    return step


def ours(net: nn.Module, x: Tensor) -> Callable[[], None]:
    trainer = Trainer(ScoreModel(net, VP()), x, batch_size=BATCH, progress=False)
    return lambda: trainer.run(trainer.steps + 1)


def seconds(step: Callable[[], None], steps: int) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def ratio(one: Callable[[], None], other: Callable[[], None]) -> float:
    """How many steps ``one`` makes in the time of one of ``other``."""
    for step in (one, other):
        seconds(step, 2)
    pairs = [(seconds(one, STEPS), seconds(other, STEPS)) for _ in range(ROUNDS)]
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def test_the_trainer_keeps_up_with_a_bare_loop() -> None:
    found = ratio(ours(network(), images()), bare(network(), images()))
    print(f"\n{DEVICE}: throughput of the trainer over that of a bare loop: {found:.3f}")
    assert found > 0.97


def test_the_trainer_keeps_up_with_diffusers_at_equal_parameter_count() -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.models import UNet2DModel

    net = network()
    count = sum(p.numel() for p in net.parameters())
    widths = range(8, 200, 8)

    def theirs(width: int) -> nn.Module:
        return UNet2DModel(
            sample_size=SHAPE[1],
            in_channels=SHAPE[0],
            out_channels=SHAPE[0],
            layers_per_block=1,
            block_out_channels=(width, 2 * width, 2 * width),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            attention_head_dim=16,
        )

    width = min(widths, key=lambda w: abs(sum(p.numel() for p in theirs(w).parameters()) - count))
    peer = theirs(width).to(DEVICE)
    share = sum(p.numel() for p in peer.parameters()) / count
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-3)
    x = images()

    def step() -> None:
        x0 = x[torch.randint(len(x), (BATCH,), device=x.device)]
        noise, t = torch.randn_like(x0), torch.randint(1000, (BATCH,), device=x.device)
        loss = nn.functional.mse_loss(peer(scheduler.add_noise(x0, noise, t), t, return_dict=False)[0], noise)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    found = ratio(ours(net, x), step)
    print(f"\n{DEVICE}: throughput over diffusers', which has {share:.2f} of our {count} parameters: {found:.3f}")
    assert found > 1
