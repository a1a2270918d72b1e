r"""Separable Gaussian processes: videos and series whose law, and whose missing parts given the rest, are known exactly.

On a grid with points i along axis a, the covariance is the product of one correlation for each axis,

.. math:: \operatorname{cov}[x_i, x_j] = s^2 \prod_a k\big(|i_a - j_a| / \ell_a\big) ,

so that the matrix is a Kronecker product. For a video the axes are channels, frames, height and width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from scoresde.base.numbers import whole
from scoresde.problems.mixture import Gaussian

__all__ = ["gaussian_process"]

_KERNELS = {"exponential": lambda r: torch.exp(-r), "squared": lambda r: torch.exp(-0.5 * r**2)}


def gaussian_process(
    event: Sequence[int] = (1, 3, 2, 2),
    lengths: Sequence[float] = (0.0, 3.0, 1.5, 1.5),
    kernel: str = "exponential",
    std: float = 1.0,
) -> Gaussian:
    r"""Return a stationary Gaussian process of mean zero on a grid, with a separable covariance.

    Args:
        event: the shape of a sample: ``(channels, frames, height, width)`` of a video, ``(channels, length)`` of a series.
        lengths: the correlation length along each axis, in grid points: 0 for independence, infinity for equal values.
        kernel: ``"exponential"``, :math:`k(r) = e^{-r}`, which is a Markov chain along an axis; or ``"squared"``,
            :math:`k(r) = e^{-r^2 / 2}`, which is smooth.
        std: s, the standard deviation of each number.

    Its :meth:`~scoresde.problems.Problem.posterior` given some frames is that of the missing ones.

    Raises:
        ValueError: for another number of lengths than axes, negative ones, an unknown kernel, and a standard deviation that
            is not positive.

    Source: Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006, http://gaussianprocess.org/gpml,
    sections 4.2.1 and 5.4.3.

    Example:
        >>> process = gaussian_process((1, 3), (0, 2.0))
        >>> [round(v, 4) for v in process.covariance[0].tolist()]  # exp(-1/2) from one to the next
        [1.0, 0.6065, 0.3679]
    """
    sizes = [whole("event", n, 1) for n in event]
    if len(lengths) != len(sizes) or not sizes or not all(length >= 0 for length in lengths):
        raise ValueError(
            f"got lengths={tuple(lengths)} for samples of shape {tuple(event)}; expected a correlation length of at least 0 "
            "for each axis"
        )
    if kernel not in _KERNELS:
        raise ValueError(f"got kernel={kernel!r}; expected one of {', '.join(map(repr, _KERNELS))}")
    if not 0 < std < math.inf:
        raise ValueError(f"got std={std!r}; expected a positive standard deviation")
    covariance = std**2 * torch.ones(1, 1, dtype=torch.float64)
    for n, length in zip(sizes, lengths, strict=True):
        place = torch.arange(n, dtype=torch.float64)
        apart = (place[:, None] - place).abs()
        along = _KERNELS[kernel](apart / length) if length > 0 else torch.eye(n, dtype=torch.float64)
        covariance = torch.kron(covariance, along)
    return Gaussian(torch.zeros(sizes, dtype=torch.float64), covariance)
