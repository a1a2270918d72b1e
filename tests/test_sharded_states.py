"""States that are sharded over a mesh of two processes: the numbers of an unsharded run, noise included."""

from __future__ import annotations

import datetime
import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import mixture
from test_launchers import free_port
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from scoresde import VP, ScoreModel, sample
from scoresde.solvers import SOLVERS, BrownianNoise, FreshNoise, get, make_path, sample_seeds
from scoresde.solvers.noise.region import Region


def _enter(rank: int, port: str, check: Callable[[Any], None], failures: Any) -> None:
    torch.set_num_threads(1)
    try:
        address = f"tcp://127.0.0.1:{port}"
        dist.init_process_group("gloo", address, datetime.timedelta(seconds=60), world_size=2, rank=rank)
        check(init_device_mesh("cpu", (2,)))
        dist.destroy_process_group()
    except Exception:
        failures.put(f"process {rank}: {traceback.format_exc()}")


def on_two(check: Callable[[Any], None]) -> None:
    """Run ``check(mesh)`` in two processes, forked from this one, which has imported all they need."""
    context = multiprocessing.get_context("fork")
    failures, port = context.SimpleQueue(), free_port()
    both = [context.Process(target=_enter, args=(rank, port, check, failures)) for rank in (0, 1)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
    assert failures.empty() and [p.exitcode for p in both] == [0, 0], failures.get()


class Elementwise(nn.Module):
    """A network without sums over dimensions, so that a shard sees what the whole does; it has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(self.slope * x)


def start(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assert_same(sharded: Tensor, whole: Tensor) -> None:
    assert isinstance(sharded, DTensor)
    assert torch.equal(sharded.full_tensor(), whole)


NORMS = ("pc", "pc-underdamped", "annealed-langevin", "langevin", "sgld")
"""Solvers whose step depends on the norm of a sample: a sum over shards, in another order than over the whole."""

QUICK = ("ddim", "dpmpp-2m", "heun", "ddpm", "sde-dpmpp-2m", "pc", "euler-a")


def runs(names: Any, events: Any = ((4, 3),)) -> Callable[[Any], None]:
    def check(mesh: Any) -> None:
        model = ScoreModel(Elementwise(), VP())
        for name in names:
            for event in events:
                x = start(5, *event)
                for driver in ("readable", "fast"):
                    whole = sample(model, x, name, 4, driver=driver, seed=3, progress=False).x
                    for placement in (Shard(0), Shard(1)):
                        parts = distribute_tensor(x, mesh, [placement])
                        found = sample(model, parts, name, 4, driver=driver, seed=3, progress=False).x
                        if placement == Shard(0) or name not in NORMS:
                            assert_same(found, whole)
                        else:
                            torch.testing.assert_close(found.full_tensor(), whole, rtol=1e-12, atol=1e-12)
                        assert torch.equal(parts.full_tensor(), x)  # the start is as it was

    return check


def test_a_sharded_state_ends_where_the_whole_one_does() -> None:
    on_two(runs(QUICK))


@pytest.mark.slow
def test_a_sharded_state_ends_where_the_whole_one_does_by_every_solver_of_rows() -> None:
    names = [name for name in SOLVERS if hasattr(get(name), "rows") and "student" not in name and name != "tuned"]
    on_two(runs(names, ((4, 3), (4, 300))))  # events below and above the size from which each sample has a generator


def noises(mesh: Any) -> None:
    seeds = sample_seeds(1, 5)
    u, v, w = make_path(VP(), "lam", 2, end="stop").points
    device = torch.device("cpu")
    for event in ((3, 4), (5, 300)):
        for make in (lambda: FreshNoise(seeds, device), lambda: BrownianNoise(seeds, device, make_path(VP(), "lam", 2))):
            for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
                whole, parts = make(), make()
                for a, b in ((u, v), (v, w)):
                    for dtype in (torch.float64, torch.float32):
                        out = torch.empty(5, *event, dtype=dtype)
                        assert_same(parts(a, b, distribute_tensor(out, mesh, [placement]), 1.0), whole(a, b, out, 1.0))
    changing, whole = (FreshNoise(seeds, device) for _ in range(2))
    for placement in (Shard(1), Shard(0)):  # another region for each draw
        out = torch.empty(5, 5, 300)
        assert_same(changing.normal(distribute_tensor(out, mesh, [placement])), whole.normal(out))
    partial = DTensor.from_local(torch.empty(5, 2), mesh, [Partial()])
    with pytest.raises(ValueError, match=r"got a state placed as .*; expected Shard\(dim\) or Replicate\(\)"):
        FreshNoise(seeds, device).normal(partial)


def test_the_shards_of_noise_are_those_of_the_whole() -> None:
    on_two(noises)


def regions(mesh: Any) -> None:
    for n in (1, 2, 5, 7):
        x = torch.arange(12.0 * n).reshape(n, 3, 4)
        for dim in (0, 1, 2):
            parts = distribute_tensor(x, mesh, [Shard(dim)])
            assert torch.equal(parts.to_local(), x[Region.of(parts).spans])


def exact_models(mesh: Any) -> None:
    model = mixture().model(VP())  # whose means and covariances each process has whole
    x = start(6, 2)
    whole = sample(model, x, "dpmpp-2m", 5, progress=False).x
    parts = sample(model, distribute_tensor(x, mesh, [Shard(0)]), "dpmpp-2m", 5, progress=False).x
    assert isinstance(parts, DTensor)
    torch.testing.assert_close(parts.full_tensor(), whole, rtol=1e-12, atol=1e-12)
    # The start that the function draws itself, drawn by shards: the noise goes on where the start ends.
    seeds = sample_seeds(7, 6)
    noise, empty = FreshNoise(seeds, "cpu"), distribute_tensor(torch.empty(6, 2, dtype=torch.float64), mesh, [Shard(0)])
    drawn = sample(model, noise.normal(empty) * model.sde.prior_std, "ddpm", 5, noise=noise, progress=False).x
    wanted = sample(model, (6, 2), "ddpm", 5, seed=7, dtype=torch.float64, progress=False).x
    assert isinstance(drawn, DTensor)
    torch.testing.assert_close(drawn.full_tensor(), wanted, rtol=1e-12, atol=1e-12)


def test_regions_are_the_shards_of_torch_and_models_of_plain_tensors_work() -> None:
    on_two(lambda mesh: (regions(mesh), exact_models(mesh))[0])
