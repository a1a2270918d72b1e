"""The driver that captures the whole of sampling as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.solvers.drivers.base import Driver
from scoresde.solvers.drivers.model import Denoiser, Project, bind
from scoresde.solvers.drivers.plain import run_in_place
from scoresde.solvers.drivers.states import InPlace
from scoresde.solvers.noise.fresh import NoiseSource, sample_seeds
from scoresde.solvers.updates import Update

__all__ = ["CapturedSampler", "CudaGraph"]


class CapturedSampler:
    """A sampler captured as one CUDA graph of all evaluations and rows, which the host launches at once.

    The capture fixes the rows, the network, the batch and event shape, and the conditions. The parameters of the network
    are read in place, so that new values written there count. A graph pays where it is replayed: capture once, then call
    with other starts and seeds.

    Args:
        rows: the updates to make.
        model: the model, called at the times of the rows.
        x: a start on a CUDA device; all starts share its shape and dtype.
        noise: the source of noise. It needs an attribute ``generators``, as :class:`~scoresde.solvers.FreshNoise` has: the
            generators from which it draws, on the device of ``x``.
        project: the projection ``project(x, t)`` of the state at the end of every step. It is captured, so that it may not
            wait for the device.
        warmup: the number of times that the first evaluation runs before the capture, during which libraries may not
            initialise themselves.

    Raises:
        ValueError: if ``x`` is not on a CUDA device, or the coefficients carry gradients.

    Example:
        >>> from scoresde.solvers import FreshNoise
        >>> CapturedSampler([], lambda x: x, torch.zeros(1, 2), FreshNoise([0], "cpu"))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: got a start on device 'cpu'; driver 'cuda-graph' needs a CUDA device: ...
    """

    def __init__(
        self,
        rows: Sequence[Update],
        model: Denoiser,
        x: Tensor,
        noise: NoiseSource,
        *,
        project: Project | None = None,
        warmup: int = 2,
    ) -> None:
        if x.device.type != "cuda":
            raise ValueError(
                f"got a start on device {str(x.device)!r}; driver 'cuda-graph' needs a CUDA device: move the model and the "
                "start there, or take driver='fast' or 'compiled'"
            )
        CudaGraph().check(rows)
        self._generators: list[torch.Generator] = list(getattr(noise, "generators", []))
        self._start = x.detach().clone(memory_format=torch.contiguous_format)
        rows, evaluations = bind(rows, model, x)
        with torch.no_grad(), torch.cuda.device(x.device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warmup):
                    for evaluation in evaluations[:1]:
                        evaluation(self._start)
            torch.cuda.current_stream().wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            for generator in self._generators:
                self._graph.register_generator_state(generator)
            with torch.cuda.graph(self._graph):
                self._end = run_in_place(rows, InPlace(rows, iter(evaluations), self._start, noise, project), None)

    def __call__(self, x: Tensor, seeds: int | Sequence[int] | None = None) -> Tensor:
        """Sample from the start ``x``, with new ``seeds`` of the noise; without seeds its generators go on."""
        if x.shape != self._start.shape:
            raise ValueError(
                f"got a start of shape {tuple(x.shape)}; this graph was captured for {tuple(self._start.shape)}, and for no "
                "other"
            )
        if seeds is not None:
            for generator, seed in zip(self._generators, sample_seeds(seeds, len(self._generators)), strict=True):
                generator.manual_seed(seed)
        self._start.copy_(x)
        self._graph.replay()
        return self._end.clone()


@dataclass(frozen=True)
class CudaGraph(Driver):
    """A driver that captures sampling as one CUDA graph, replays it once and forgets it; equal to :class:`Fast`.

    Keep a :class:`CapturedSampler` to replay a graph often. ``on_step`` is called once, with the number of all steps, since
    they are one launch. The warm-up before the capture calls the network too, and these calls are counted.

    Example:
        >>> CudaGraph().name, CudaGraph().shows_states
        ('cuda-graph', False)
    """

    name: ClassVar[str] = "cuda-graph"
    takes_matrices: ClassVar[bool] = False
    shows_states: ClassVar[bool] = False
    copies_start: ClassVar[bool] = True

    def __call__(
        self,
        rows: Sequence[Update],
        model: Denoiser,
        x: Tensor,
        noise: NoiseSource,
        on_step: Callable[[int], None] | None = None,
        *,
        project: Project | None = None,
    ) -> Tensor:
        end = CapturedSampler(rows, model, x, noise, project=project)(x)
        if on_step is not None:
            on_step(sum(row.ends_step for row in rows))
        return end
