r"""The law of data given a noisy linear measurement, exactly: mixtures of Gaussians stay mixtures of Gaussians.

The data have components :math:`N(\mu_k, C_k)` with weights :math:`w_k`, and :math:`y = A x + \sigma \epsilon` was measured.
With a root :math:`C = L L^T` and the singular value decomposition :math:`A L = P \operatorname{diag}(b) Q^T`, the component
given y is Gaussian with

.. math:: \mu' = \mu + L Q \frac{b}{b^2 + \sigma^2} P^T (y - A \mu), \qquad
          C' = L' L'^T, \quad L' = L Q \operatorname{diag} \frac{\sigma}{\sqrt{b^2 + \sigma^2}},

and its weight is proportional to :math:`w_k N(y; A \mu_k, A C_k A^T + \sigma^2 I)`. Nothing cancels, so that a variance of
:math:`\sigma^2` is relatively accurate however small it is. With sigma = 0, directions that A sees lose their variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Condensed", "Given", "condition", "matrix_of", "measurement", "reweighted"]


@dataclass(frozen=True, eq=False)
class Given:
    """What a posterior problem is the posterior of.

    Attributes:
        prior: the problem before the measurement.
        operator: an operator of :mod:`scoresde.inverse.operators`, or a matrix.
        y: the measurement, shape ``(measurements,)``, float64.
        sigma: the standard deviation of its noise.
        log_evidence: log p(y), the log-density of the measurement under the prior, in nats; with sigma = 0 its density in
            the range of what is measured, and for a distribution on points the log-probability.
    """

    prior: Any
    operator: Any
    y: Tensor
    sigma: float
    log_evidence: float


@dataclass(frozen=True)
class Condensed:
    """Components given a measurement: their log evidences ``(K,)``, means ``(K, d)`` and roots of covariances ``(K, d,
    r)``."""

    log_evidence: Tensor
    means: Tensor
    roots: Tensor


def matrix_of(operator: Any, event: Sequence[int]) -> Tensor:
    """Return the matrix of an operator with a method ``matrix``, or a matrix as it is; shape ``(measurements, d)``, float64.

    Raises:
        TypeError: for anything else.
        ValueError: for a matrix with another number of columns than an event has numbers, or values that are not finite.
    """
    given = operator.matrix() if callable(getattr(operator, "matrix", None)) else operator
    try:
        matrix = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"got {type(operator).__name__} for the operator of a measurement; expected a linear operator of "
            "scoresde.inverse.operators, such as Mask(mask), or a matrix"
        ) from None
    d = torch.Size(event).numel()
    if matrix.ndim != 2 or matrix.shape[1] != d or not len(matrix) or not bool(torch.isfinite(matrix).all()):
        raise ValueError(
            f"got the matrix of a measurement of shape {tuple(matrix.shape)} for data of shape {tuple(event)}; expected "
            f"finite entries, one row for each measured number and {d} columns"
        )
    return matrix


def measurement(y: Any, numbers: int, sigma: float) -> tuple[Tensor, float]:
    """Return one measurement of so many ``numbers``, flat and in float64, and the relative rounding error it came with.

    Raises:
        ValueError: for another number of values, values that are not finite, or a negative ``sigma``.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"got sigma={sigma!r}; expected the standard deviation of the noise, a number of at least 0")
    given = torch.as_tensor(y)
    rounding = torch.finfo(given.dtype).eps if given.is_floating_point() else torch.finfo(torch.float64).eps
    flat = given.detach().to(device="cpu", dtype=torch.float64).flatten()
    if len(flat) != numbers or not bool(torch.isfinite(flat).all()):
        raise ValueError(
            f"got a measurement y of shape {tuple(given.shape)}; expected one measurement of {numbers} finite numbers: a "
            "posterior is that of one y"
        )
    return flat, 100 * rounding


def condition(means: Tensor, roots: Tensor, matrix: Tensor, y: Tensor, sigma: float, rounding: float) -> Condensed:
    """Return Gaussian components given a measurement.

    Args:
        means: shape ``(K, d)``; ``roots``: of their covariances, ``(K, d, r)`` or ``(1, d, r)`` for all.
        matrix: A, shape ``(m, d)``; ``y``: shape ``(m,)``; ``sigma``: the standard deviation of the noise.
        rounding: the relative error of ``y``, up to which a measurement without noise must be possible.

    Raises:
        ValueError: if ``sigma`` is 0 and no component can give ``y``.
    """
    p, b, qt = torch.linalg.svd(matrix @ roots, full_matrices=True)
    m, r = p.shape[-1], qt.shape[-1]
    floor = (
        max(m, r) * torch.finfo(torch.float64).eps * torch.linalg.matrix_norm(roots) * torch.linalg.matrix_norm(matrix, 2)
    )
    b = torch.where(b > floor[:, None], b, 0.0)
    of_y, of_x = _padded(b, m), _padded(b, r)  # by measured numbers, and by columns of the root
    residual = y - means @ matrix.T
    z = torch.einsum("kij,ki->kj", p.expand(len(means), m, m), residual)
    variance = of_y**2 + sigma**2
    gain = torch.where(of_x > 0, of_x / (of_x**2 + sigma**2), 0.0)
    shrink = sigma / (of_x**2 + sigma**2).sqrt() if sigma else (of_x == 0).double()
    turned = roots @ qt.mT
    along = torch.zeros(len(means), r, dtype=torch.float64)
    along[:, : min(m, r)] = z[:, : min(m, r)]
    moved = means + torch.einsum("kdr,kr->kd", turned.expand(len(means), *turned.shape[1:]), gain * along)
    seen = (variance > 0).expand_as(z)
    densities = -0.5 * (z**2 / variance + (2 * math.pi * variance).log())
    log_evidence = torch.where(seen, densities, 0.0).sum(1)
    if sigma == 0:
        scale = y.norm() + (means @ matrix.T).norm(dim=1)
        possible = torch.where(seen, 0.0, z).norm(dim=1) <= rounding * scale
        if not bool(possible.any()):
            raise ValueError(
                "got a measurement without noise that the data cannot give: y is not A x for any x that has a density; "
                "expected sigma > 0, or y = A x"
            )
        # A component that is concentrated on fewer directions is infinitely more probable where it is possible at all.
        rank = seen.sum(1)
        least = rank[possible].min()
        log_evidence = torch.where(possible & (rank == least), log_evidence, -math.inf)
    return Condensed(log_evidence, moved, turned * shrink[:, None])


def reweighted(prior: Tensor, log_evidence: Tensor) -> tuple[Tensor, float]:
    """Return the weights of components given a measurement, and its log evidence under all."""
    joint = prior + log_evidence
    return joint.softmax(0), float(joint.logsumexp(0))


def _padded(b: Tensor, n: int) -> Tensor:
    made = torch.zeros(len(b), n, dtype=torch.float64)
    made[:, : min(n, b.shape[1])] = b[:, :n]
    return made
