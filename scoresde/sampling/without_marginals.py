"""Sampling of an SDE without marginals: its times, and its dynamics with counted calls of the drift."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.sde import ReverseSDE
from scoresde.solvers.path import PathLike
from scoresde.solvers.solver import Dynamics

__all__ = ["CountedDynamics", "falling_times"]


def falling_times(
    span: tuple[float, float], path: PathLike | None, steps: int, t_max: float | None, t_min: float | None
) -> list[float]:
    """Return the times of a path on an SDE without lam, evenly spaced or given as a list.

    Raises:
        ValueError: for a spacing other than "t", ``steps=0``, times that do not fall, or times outside the span.
    """
    low, high = span
    if isinstance(path, Tensor | list | tuple):
        times = torch.as_tensor(path, dtype=torch.float64).tolist()
    elif path in (None, "t", "lam"):  # there is no lam here
        steps = whole("steps", steps, 1)
        first, last = high if t_max is None else t_max, low if t_min is None else t_min
        times = torch.linspace(first, last, steps + 1, dtype=torch.float64).tolist()
    else:
        raise ValueError(f"got path {path!r} for an SDE without marginals; expected 't' or a list of times")
    if len(times) < 2 or any(u <= v for u, v in itertools.pairwise(times)) or not low <= times[-1]:
        raise ValueError(f"got times from {times[0]} to {times[-1]}; expected falling times between {high} and {low}")
    return cast(list[float], times)


class CountedDynamics:
    """The dynamics of a reverse process, which count the calls of the drift."""

    def __init__(self, reverse: ReverseSDE) -> None:
        self.reverse, self.calls = reverse, 0

    def _drift(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.reverse.drift(x, t)

    def _conversion(self, x: Tensor, t: Tensor) -> Tensor | float:
        # Time runs backwards: the correction -c c' / 2 of the drift changes its sign.
        return 0.25 * self.reverse.eta * self.reverse.forward.diffusion_divergence(x, t)

    def dynamics(self) -> Dynamics:
        """Return the drift and the diffusion in the form that the solvers take."""
        return Dynamics(self._drift, self.reverse.diffusion, self._conversion, self.reverse.eta)
