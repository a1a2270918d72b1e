r"""Coefficients of all solvers: exponential integrals of Lagrange polynomials, in float64.

.. math:: I_j(z) = \int_0^1 e^{-z (1 - \theta)}\, \ell_j(\theta)\, d\theta

With rate z = 0 these are the classical quadrature weights (Adams, trapezoid, ...); with z the length of a step in
log-SNR, the phi-functions of exponential integrators (Hochbruck and Ostermann, "Exponential integrators", 2010).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.solvers import scalar

__all__ = ["exponential_moments", "gauss_legendre", "lagrange_integrals", "lagrange_weights"]


def exponential_moments(z: float, count: int) -> list[float]:
    r"""Return :math:`M_k(z) = \int_0^1 e^{-z (1 - \theta)} \theta^k d\theta` for k = 0..count-1, to float64 precision.

    For a 0-dim tensor ``z`` the results are tensors, differentiable with respect to ``z``.

    Example:
        >>> exponential_moments(0.0, 3) == [1.0, 1 / 2, 1 / 3]
        True
    """
    if abs(z) > 25:  # integration by parts; stable where |z| exceeds k
        values = [-scalar.expm1(-z) / z]
        for k in range(1, count):
            values.append((1 - k * values[-1]) / z)
        return values
    if isinstance(z, Tensor):
        theta, weights = gauss_legendre()
        kernel = weights * torch.exp(-scalar.plain(z) * (1 - theta))
        return [cast(Any, (kernel * theta**k).sum().as_subclass(scalar.Coefficient)) for k in range(count)]
    # For smaller |z| that recurrence cancels. A series of positive terms does not. For |z| <= 1 the backward recurrence,
    # M_{k-1} = (1 - z M_k) / k, does not cancel either, so that one series is enough.
    if abs(z) > 1:
        return [_series(z, k) for k in range(count)]
    values = [_series(z, count - 1)]
    for k in range(count - 1, 0, -1):
        values.append((1 - z * values[-1]) / k)
    return values[::-1]


def _series(z: float, k: int) -> float:
    """Sum M_k(z) by a series of positive terms."""
    if z >= 0:  # e^-z sum_n z^n / (n! (n + k + 1))
        term, total, n = 1.0, 1.0 / (k + 1), 0
        while term > 1e-18 * total or n < z:
            n += 1
            term *= z / n
            total += term / (n + k + 1)
        return math.exp(-z) * total
    term = total = 1.0 / (k + 1)  # sum_n |z|^n k! / (k + n + 1)!
    n = 0
    while term > 1e-18 * total:
        n += 1
        term *= -z / (k + n + 1)
        total += term
    return total


@cache
def gauss_legendre(points: int = 40) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on [0, 1], exact for polynomials of degree 2 ``points`` - 1.

    With 40 points they are exact to rounding for e^{-25 theta} times any polynomial in use.
    """
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(points)
    return torch.from_numpy(0.5 * (nodes + 1)), torch.from_numpy(0.5 * weights)


def lagrange_integrals(nodes: Sequence[float], z: float) -> list[float]:
    r"""Return the weights I_j(z) of the interpolation at ``nodes``, in units of the step (0 is its start, 1 its end).

    Example:
        >>> lagrange_integrals([0.0, 1.0], 0.0)  # the trapezoidal rule
        [0.5, 0.5]
        >>> lagrange_integrals([0.0, -1.0], 0.0)  # Adams-Bashforth of order 2
        [1.5, -0.5]
    """
    return lagrange_weights(nodes, exponential_moments(z, len(nodes)))


def lagrange_weights(nodes: Sequence[float], powers: Sequence[float]) -> list[float]:
    """Return the weights of a linear functional of the interpolation at ``nodes``; ``powers`` are its values at theta^k.

    Example:
        >>> lagrange_weights([0.0, 1.0], [1.0, 0.25])  # the value at 1/4
        [0.75, 0.25]
    """
    if len(set(nodes)) != len(nodes):
        raise ValueError(f"got nodes {list(nodes)}; expected them distinct, since one polynomial passes through them all")
    weights = []
    for j, node in enumerate(nodes):
        values = list(powers)  # the functional's values at theta^k times the factors of l_j so far
        for i, other in enumerate(nodes):
            if i != j:
                scale = 1 / (node - other)
                values = [scale * (high - other * low) for low, high in itertools.pairwise(values)]
        weights.append(values[0])
    return weights
