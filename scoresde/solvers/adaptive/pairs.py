r"""Embedded pairs: two estimates of the end of a step of the probability flow from the same evaluations.

The stages and both estimates are

.. math:: x_i = \frac{\alpha_i}{\alpha_u} x_u + \sum_j w_{ij}\, \epsilon_j,

with factors for each sample, since each sample has its own steps. A Butcher tableau is applied to x / alpha in lam or in
rho = sigma / alpha. The pairs of DPM-Solver integrate exponentials instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DPM_12", "DPM_23", "Pair", "Where", "bogacki_shampine_32", "dormand_prince_54"]


class Where(NamedTuple):
    """The marginals at one time per sample; each field has shape ``(batch,)``, in float64."""

    lam: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


Weights = Callable[[list[Where], int], list[Tensor]]


@dataclass(frozen=True)
class Pair:
    """An embedded pair: see the module.

    Attributes:
        order: the order of the better estimate, which is kept.
        c: the positions of the n evaluations, as fractions of the step in the clock; the first is 0. A pair whose last
            position is 1 evaluates at the end of the step, and the next step starts with this evaluation.
        weights: the function ``weights(where, i)`` that returns the factors of the noise predictions, each of shape
            ``(batch,)``, in the state at ``where[i]``. ``where`` holds the points of the n evaluations and the end. i from 1
            to n - 1 is a stage, i = n is the end, i = n + 1 is the other estimate of the end.
        clock: the variable of the fractions ``c``, "lam" or "rho".
    """

    order: int
    c: tuple[float, ...]
    weights: Weights
    clock: str

    @property
    def reuses_last(self) -> bool:
        """Whether the last evaluation of an accepted step is the first of the next."""
        return self.c[-1] == 1

    def lams(self, u: Tensor, v: Tensor) -> list[Tensor]:
        """Return lam at all points of a step from ``u`` to ``v``."""
        if self.clock == "lam":
            inner = [u + c * (v - u) for c in self.c[1:]]
        else:
            inner = [u - torch.log1p(c * torch.expm1(u - v)) if c < 1 else v for c in self.c[1:]]
        return [u, *inner, v]


def _tableau(order: int, c: tuple[float, ...], a: list[list[float]], b: list[float], low: list[float], clock: str) -> Pair:
    """Make a pair of a Butcher tableau; ``a`` leaves out the first row, which is empty."""
    if clock not in ("lam", "rho"):
        raise ValueError(f"got clock={clock!r}; expected 'lam' or 'rho'")
    rows = [*a, b, low]

    def weights(where: list[Where], i: int) -> list[Tensor]:
        row, alpha = rows[i - 1], where[min(i, len(where) - 1)].alpha
        u, v = where[0].lam, where[-1].lam
        if clock == "lam":
            return [-w * alpha * (v - u) * torch.exp(-where[j].lam) for j, w in enumerate(row)]
        return [w * alpha * torch.exp(-u) * torch.expm1(u - v) for w in row]

    return Pair(order, c, weights, clock)


def _phi(h: Tensor) -> Tensor:
    """Return (e^h - 1) / h - 1, by its series where the difference cancels."""
    series = h * (1 / 2 + h * (1 / 6 + h * (1 / 24 + h * (1 / 120 + h * (1 / 720 + h / 5040)))))
    safe = torch.where(h == 0, 1.0, h)
    return torch.where(h.abs() < 1e-2, series, torch.expm1(safe) / safe - 1)


def _dpm_12(where: list[Where], i: int) -> list[Tensor]:
    """Return the weights of DPM-Solver-1 beside DPM-Solver-2, with a stage at the middle of the step."""
    u, to = where[0], where[min(i, 2)]
    whole = -to.sigma * torch.expm1(to.lam - u.lam)
    zero = torch.zeros_like(whole)
    return {1: [whole], 2: [zero, whole], 3: [whole, zero]}[i]


def _dpm_23(where: list[Where], i: int) -> list[Tensor]:
    """Return the weights of DPM-Solver-2, with a stage at a third of the step, beside DPM-Solver-3."""
    u, to = where[0], where[min(i, 3)]
    h = to.lam - u.lam
    whole, line = -to.sigma * torch.expm1(h), -to.sigma * _phi(h)
    zero = torch.zeros_like(whole)
    ends = {1: [whole], 2: [whole - 2 * line, 2 * line], 3: [whole - 1.5 * line, zero, 1.5 * line]}
    return ends[i] if i in ends else [-0.5 * whole, 1.5 * whole, zero]


DPM_12 = Pair(2, (0.0, 0.5), _dpm_12, "lam")
"""The pair of DPM-Solver-1 and DPM-Solver-2."""

DPM_23 = Pair(3, (0.0, 1 / 3, 2 / 3), _dpm_23, "lam")
"""The pair of DPM-Solver-2 and DPM-Solver-3."""


def bogacki_shampine_32(clock: str) -> Pair:
    """Return Bogacki and Shampine's pair of orders 3 and 2."""
    a = [[1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]]
    return _tableau(3, (0, 1 / 2, 3 / 4, 1), a, [*a[-1], 0], [7 / 24, 1 / 4, 1 / 3, 1 / 8], clock)


def dormand_prince_54(clock: str) -> Pair:
    """Return Dormand and Prince's pair of orders 5 and 4."""
    a = [
        [1 / 5],
        [3 / 40, 9 / 40],
        [44 / 45, -56 / 15, 32 / 9],
        [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
        [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ]
    low = [5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40]
    return _tableau(5, (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1), a, [*a[-1], 0], low, clock)
