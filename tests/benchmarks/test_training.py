"""The throughput of the trainer against a bare loop, and against diffusers' usual one, in one run.

The loops take turns, a few steps each, so that what else the machine does falls on both; the ratio is that of their
medians. A loop is a function of the number of steps.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from scoresde import VP, ScoreModel
from scoresde.models import UNet
from scoresde.training import Method, Trainer

Loop = Callable[[int], None]

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH, SHAPE = (256, (3, 32, 32)) if DEVICE == "cuda" else (32, (1, 16, 16))
ROUNDS, STEPS = (20, 20) if DEVICE == "cuda" else (15, 4)


def network() -> UNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet(SHAPE[0], 64 if DEVICE == "cuda" else 24, (1, 2, 2), lean=True, blocks=1).to(DEVICE)


def images() -> Tensor:
    return torch.randn(2048, *SHAPE, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def repeated(step: Callable[[], None]) -> Loop:
    def loop(steps: int) -> None:
        for _ in range(steps):
            step()

    return loop


def bare(net: nn.Module, x: Tensor) -> Loop:
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

    return repeated(step)


def ours(net: nn.Module, x: Tensor, **options: Any) -> Loop:
    trainer = Trainer(ScoreModel(net, VP()), x, method=Method(batch_size=BATCH, **options), progress=False)
    return lambda steps: trainer.run(trainer.steps + steps)


def seconds(loop: Loop, steps: int) -> float:
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    loop(steps)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def ratio(one: Loop, other: Loop) -> float:
    """How many steps ``one`` makes in the time of one of ``other``."""
    for loop in (one, other):
        seconds(loop, 3)  # compiles, where that is asked for
    pairs = [(seconds(one, STEPS), seconds(other, STEPS)) for _ in range(ROUNDS)]
    return statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs)


def test_the_trainer_keeps_up_with_a_bare_loop() -> None:
    found = ratio(ours(network(), images()), bare(network(), images()))
    print(f"\n{DEVICE}: throughput of the trainer over that of a bare loop: {found:.3f}")
    assert found > 0.97


def of_diffusers(count: int) -> nn.Module:
    """The UNet2DModel of the same levels whose number of parameters comes closest to ``count``."""
    from diffusers.models import UNet2DModel

    def of_width(width: int) -> nn.Module:
        net: nn.Module = UNet2DModel(
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
        return net

    return min(map(of_width, range(8, 200, 8)), key=lambda net: abs(parameters(net) - count)).to(DEVICE)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def usual(net: nn.Module, x: Tensor, dtype: torch.dtype | None = None, compile: bool = False) -> Loop:
    """The loop of diffusers' own examples; ``dtype`` is that of the network's arithmetic."""
    import diffusers

    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    called = torch.compile(net) if compile else net

    def step() -> None:
        x0 = x[torch.randint(len(x), (BATCH,), device=x.device)]
        noise, t = torch.randn_like(x0), torch.randint(1000, (BATCH,), device=x.device)
        with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
            output = called(scheduler.add_noise(x0, noise, t), t, return_dict=False)[0]
            loss = nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return repeated(step)


def test_the_trainer_keeps_up_with_diffusers_at_equal_parameter_count() -> None:
    pytest.importorskip("diffusers")
    net, x = network(), images()
    peer = of_diffusers(parameters(net))
    found = ratio(ours(net, x), usual(peer, x))
    share = parameters(peer) / parameters(net)
    print(f"\n{DEVICE}: throughput over diffusers', which has {share:.2f} of our parameters: {found:.3f}")
    assert found > 1


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # one in diffusers' network
def test_the_trainer_is_ahead_of_diffusers_in_bf16_with_compiled_networks() -> None:
    pytest.importorskip("diffusers")
    net, x = network(), images()
    peer = of_diffusers(parameters(net))
    mine = ours(net, x, precision="bf16", compile=True, channels_last=True)
    found = ratio(mine, usual(peer, x, torch.bfloat16, compile=True))
    share = parameters(peer) / parameters(net)
    print(f"\n{DEVICE}, bf16, compiled: throughput over diffusers', which has {share:.2f} of our parameters: {found:.3f}")
    assert found > 1.3
