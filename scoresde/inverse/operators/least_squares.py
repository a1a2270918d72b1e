"""Least squares by conjugate gradients, for operators without a closed form of their inverse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["least_squares"]


def least_squares(
    forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], y: Tensor, steps: int, tolerance: float = 1e-12
) -> Tensor:
    r"""Return the shortest x that minimises :math:`|A x - y|^2`, by conjugate gradients on the normal equations from x = 0.

    The iterates stay in the range of :math:`A^T`, so that the limit is the Moore-Penrose inverse times y. Each sample stops
    by itself and does not depend on its batch.

    Args:
        forward, adjoint: A and its adjoint, on batches.
        y: shape ``(batch, *measured)``.
        steps: the most iterations.
        tolerance: where :math:`|A^T (y - A x)|` has fallen to this fraction of :math:`|A^T y|`, a sample stops.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
    https://doi.org/10.6028/jres.049.044 (in the form that is called CGLS).
    """
    residual, gradient = y, adjoint(y)
    x, direction = torch.zeros_like(gradient), gradient
    first = energy = _squares(gradient)
    for _ in range(steps):
        active = energy > tolerance**2 * first
        if not bool(active.any()):
            break
        image = forward(direction)
        length = torch.where(active, energy / _squares(image).clamp(min=torch.finfo(y.dtype).tiny), 0.0)
        x = x + _over(length, x) * direction
        residual = residual - _over(length, residual) * image
        gradient = adjoint(residual)
        new = _squares(gradient)
        ratio = torch.where(active, new / energy.clamp(min=torch.finfo(y.dtype).tiny), 0.0)
        direction, energy = gradient + _over(ratio, gradient) * direction, torch.where(active, new, energy)
    return x


def _squares(v: Tensor) -> Tensor:
    return v.flatten(1).square().sum(1)


def _over(values: Tensor, v: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (v.ndim - 1))
