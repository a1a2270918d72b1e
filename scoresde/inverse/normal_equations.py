r"""Linear systems :math:`(v A A^T + C)\, u = r` of a linear operator A, which weigh a residual by its covariance.

If the data given the noised state are :math:`N(\hat x_0, v I)` and the noise of the measurement is N(0, C), the residual
:math:`r = y - A \hat x_0` has the covariance :math:`v A A^T + C`, and the mean of the data given y as well is
:math:`\hat x_0 + v A^T u`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.inverse.operators import Operator, Singular

__all__ = ["conjugate_gradients", "singular_or_none", "weighed"]

LARGEST = 1e30
"""The largest variance in a system; the squares of larger ones do not fit into float32."""


def weighed(operator: Operator, residual: Tensor, signal: Tensor, noise: Tensor, iterations: int = 50) -> Tensor:
    r"""Return :math:`A^T (v A A^T + C)^{-1} r`, shape ``(batch, *event)``, and zero where v A A^T + C = 0.

    It is computed from the singular value decomposition where all numbers of a measurement have the same noise and the
    operator has one, and else by conjugate gradients.

    Args:
        operator: A, linear.
        residual: r, shape ``(batch, *measured)``.
        signal: v, shape ``()`` or ``(batch,)``, float64.
        noise: the variances in C, shape ``()`` or ``(batch,)``, or one that broadcasts to that of ``residual``; float64.
        iterations: the most conjugate gradient iterations.

    Example:
        >>> from scoresde.inverse.operators import Matrix
        >>> one = torch.ones((), dtype=torch.float64)
        >>> weighed(Matrix([[2.0, 0.0]]), torch.ones(1, 1, dtype=torch.float64), one, one).tolist()  # 2 / (4 + 1)
        [[0.4, 0.0]]
    """
    signal, noise = signal.to(residual.device), noise.to(residual.device).clamp(max=LARGEST)
    of = singular_or_none(operator) if noise.ndim <= 1 else None
    if of is not None:
        values = of.values.to(residual.device)
        variance = signal.reshape(-1, 1) * values**2 + noise.reshape(-1, 1)  # (batch or 1, d)
        gain = torch.where(variance > 0, values / variance.where(variance > 0, 1.0), 0.0)
        return of.to_x(gain.to(residual.dtype) * of.from_y(residual))
    if noise.ndim <= 1 and not bool(noise.any()):  # whatever y is: also one of no state
        scale = torch.where(signal > 0, 1 / signal.where(signal > 0, 1.0), 0.0)
        back = operator.pinv(residual)
        return expand(scale, back).to(back.dtype) * back
    v, c = (expand(s, residual) if s.ndim <= 1 else s for s in (signal, noise))

    def system(p: Tensor) -> tuple[Tensor, Tensor]:
        back = operator.adjoint(p)
        return v.to(p.dtype) * operator(back) + c.to(p.dtype) * p, back

    return conjugate_gradients(system, residual, min(iterations, operator.measured.numel()))


def singular_or_none(operator: Operator) -> Singular | None:
    """Return the singular value decomposition of an operator, or ``None`` if it has none."""
    try:
        return operator.singular()
    except ValueError:
        return None


def conjugate_gradients(
    system: Callable[[Tensor], tuple[Tensor, Tensor]], residual: Tensor, iterations: int, tolerance: float = 0.0
) -> Tensor:
    r"""Solve M u = r for a symmetric positive semi-definite M, and return B u for a second linear map B.

    Each sample has a trajectory of its own and stops by itself: where :math:`\|r - M u\|` is below ``tolerance`` times
    :math:`\|r\|` or is rounding error, or where the curvature :math:`p^T M p` along a direction is not positive. The loop
    ends with the last sample if there is a tolerance. Without one, and where a CUDA graph is captured, the number of calls
    of ``system`` depends on no value.

    Args:
        system: ``system(p)`` returns M p, shape ``(batch, *measured)``, and B p, of any shape ``(batch, ..)``.
        residual: r, shape ``(batch, *measured)``.
        iterations: how often to call it at most, at least once.
        tolerance: the relative residual at which to stop.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952,
    https://doi.org/10.6028/jres.049.044.

    Example:
        >>> conjugate_gradients(lambda p: (4 * p, 2 * p), torch.ones(1, 3), 1)  # 2 u with 4 u = 1
        tensor([[0.5000, 0.5000, 0.5000]])
    """
    r = p = residual
    energy = first = _products(r, r)
    alive = torch.ones_like(energy, dtype=torch.bool)
    least = max(4 * torch.finfo(residual.dtype).eps, tolerance) ** 2
    stops = tolerance > 0 and not (residual.is_cuda and torch.cuda.is_current_stream_capturing())
    total: Tensor | float = 0.0
    for i in range(iterations):
        if i and stops and not bool((alive & (energy > least * first)).any()):
            break
        image, mapped = system(p)
        curvature = _products(p, image)
        alive = alive & (energy > least * first) & (curvature > 0)
        length = torch.where(alive, energy / curvature.where(alive, 1.0), 0.0)
        total = total + _over(length, mapped) * mapped
        r = r - _over(length, r) * image
        new = _products(r, r)
        ratio = torch.where(alive, new / energy.where(alive, 1.0), 0.0)
        p, energy = r + _over(ratio, r) * p, torch.where(alive, new, energy)
    assert isinstance(total, Tensor)
    return total


def _products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, float32 at least, shape ``(batch,)``."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) * b.to(dtype)).flatten(1).sum(1)


def _over(values: Tensor, like: Tensor) -> Tensor:
    return expand(values, like).to(like.dtype)
