"""Problems by name; but for images and posteriors they have about unit variance per coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from scoresde.base.names import Table
from scoresde.base.numbers import whole
from scoresde.problems.base import Problem
from scoresde.problems.empirical import Empirical
from scoresde.problems.fitted import ppca_mixture
from scoresde.problems.heavy import funnel, laplace, student_t
from scoresde.problems.kernel import checkerboard, pinwheel, rings, spirals, swiss_roll
from scoresde.problems.low_rank import LowRankMixture
from scoresde.problems.mixture import Gaussian, GaussianMixture

__all__ = [
    "PROBLEMS",
    "digits",
    "gaussian",
    "grid",
    "measured",
    "moons",
    "ppca_digits",
    "random_mixture",
    "ring",
    "spiral",
    "textures",
]


def ring(modes: int = 8, radius: float = 1.4, std: float = 0.1) -> GaussianMixture:
    """Return ``modes`` isotropic Gaussians of standard deviation ``std`` on a circle of ``radius``, in two dimensions.

    Example:
        >>> [round(radius, 12) for radius in ring(4, radius=2.0).means.norm(dim=1).tolist()]
        [2.0, 2.0, 2.0, 2.0]
    """
    modes = whole("modes", modes, 1)
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std**2)


def grid(side: int = 3, spacing: float = 1.2, std: float = 0.1) -> GaussianMixture:
    """Return a grid of ``side`` x ``side`` isotropic Gaussians of standard deviation ``std``, ``spacing`` apart, in 2D.

    Example:
        >>> grid(3).means[:3]
        tensor([[-1.2000, -1.2000],
                [-1.2000,  0.0000],
                [-1.2000,  1.2000]], dtype=torch.float64)
    """
    side = whole("side", side, 1)
    axis = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    return GaussianMixture(torch.cartesian_prod(axis, axis), std**2)


def spiral(modes: int = 48, turns: float = 1.5, std: float = 0.08) -> GaussianMixture:
    """Return ``modes`` isotropic Gaussians of standard deviation ``std``, evenly along the arc of an Archimedean spiral.

    Example:
        >>> spiral(modes=8).means.shape
        torch.Size([8, 2])
    """
    modes = whole("modes", modes, 1)
    fraction = (torch.arange(modes, dtype=torch.float64) + 0.5) / modes
    angle, radius = 2 * math.pi * turns * fraction.sqrt(), 2 * fraction.sqrt()
    return GaussianMixture(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), std**2)


def moons(modes: int = 8, std: float = 0.08) -> GaussianMixture:
    """Return two interlocking half circles, each of ``modes`` Gaussians whose covariances are stretched along the arc.

    Example:
        >>> moons(modes=4).means.shape  # four components in each moon
        torch.Size([8, 2])
    """
    modes = whole("modes", modes, 1)
    angle = math.pi * (torch.arange(modes, dtype=torch.float64) + 0.5) / modes
    normal = torch.stack([angle.cos(), angle.sin()], 1)
    tangent = torch.stack([-angle.sin(), angle.cos()], 1)
    along = (0.5 * math.pi / modes) ** 2
    covariance = std**2 * normal[:, :, None] * normal[:, None] + along * tangent[:, :, None] * tangent[:, None]
    upper = normal + torch.tensor([-0.5, -0.25], dtype=torch.float64)
    means = torch.cat([upper, -upper])  # the lower moon is the upper one turned by half a circle about the centre
    scale = torch.tensor([1.14, 1.94], dtype=torch.float64)
    return GaussianMixture(scale * means, scale[:, None] * torch.cat([covariance, covariance]) * scale)


def gaussian(d: int = 2, condition: float = 100.0) -> Gaussian:
    """Return a correlated Gaussian in ``d`` dimensions whose covariance has condition number ``condition`` and trace d.

    Example:
        >>> covariance = gaussian(3, condition=25.0).covariance
        >>> round(torch.linalg.cond(covariance).item(), 9), round(covariance.trace().item(), 9)
        (25.0, 3.0)
    """
    d = whole("d", d, 1)
    variances = condition ** torch.linspace(0, 1, d, dtype=torch.float64)
    variances = variances / variances.mean()
    # A reflection across a plane that is oblique to every axis mixes all coordinates.
    direction = torch.arange(1, d + 1, dtype=torch.float64)
    direction = direction / direction.norm()
    reflection = torch.eye(d, dtype=torch.float64) - 2 * torch.outer(direction, direction)
    covariance = reflection @ torch.diag(variances) @ reflection
    return Gaussian(torch.zeros(d, dtype=torch.float64), 0.5 * (covariance + covariance.T))


def textures(size: int = 8, modes: int = 4) -> GaussianMixture:
    r"""Return stationary textures in ``modes`` orientations, as images of shape ``(1, size, size)``.

    Every component has mean zero and unit variance in every pixel, so the components differ in their correlations only.
    These are exp(-distance), where distances along the stripes count a tenth of distances across them.

    Example:
        >>> variance = textures(4).covariance.diagonal()  # of the 16 pixels
        >>> bool(torch.allclose(variance, torch.ones(16, dtype=torch.float64)))
        True
    """
    size, modes = whole("size", size, 1), whole("modes", modes, 1)
    row, column = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 2).T
    dy, dx = row[:, None] - row, column[:, None] - column
    angle = math.pi * torch.arange(modes, dtype=torch.float64)[:, None, None] / modes
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    covariances = torch.exp(-torch.hypot(along / 10, across))
    return GaussianMixture(torch.zeros(modes, 1, size, size), covariances)


def random_mixture(d: int = 64, modes: int = 16, rank: int = 4, seed: int = 0, noise: float = 0.02) -> LowRankMixture:
    """Return a random anisotropic mixture in ``d`` dimensions, from 2 to many thousands, with mean variance one.

    Half of the variance is between the means, which are a scaled standard normal sample. Of the other half, ``noise`` is
    isotropic; the rest is in ``rank`` random directions of each component, with variances that fall like 1, 1/2, 1/3, ..

    Args:
        d: the number of dimensions, at least 2.
        modes: the number of components, at least 2. The largest weight is at most twice the smallest.
        rank: the rank of each covariance without its isotropic part; at most d - 1 is used.
        seed: the seed of all random choices.
        noise: the isotropic variance, from 0 (degenerate covariances) to 0.5.

    Raises:
        ValueError: if ``d`` or ``modes`` is not a whole number of at least 2, ``rank`` of at least 1, or ``noise`` is not
            between 0 and 0.5.

    Example:
        >>> round(random_mixture(2).covariance.trace().item(), 12)
        2.0
    """
    d, modes, rank = whole("d", d, 2), whole("modes", modes, 2), whole("rank", rank, 1)
    if not 0 <= noise <= 0.5:
        raise ValueError(f"got noise={noise}; expected a variance between 0 and 0.5")
    g, rank = torch.Generator().manual_seed(whole("seed", seed)), min(rank, d - 1)
    weights = 1 + torch.rand(modes, generator=g, dtype=torch.float64)
    weights = weights / weights.sum()
    means = torch.randn(modes, d, generator=g, dtype=torch.float64)
    means = means - weights @ means
    means = means * (0.5 * d / (weights @ (means**2).sum(1))).sqrt()
    directions = torch.linalg.qr(torch.randn(modes, d, rank, generator=g, dtype=torch.float64)).Q
    falling = 1 / torch.arange(1, rank + 1, dtype=torch.float64)
    return LowRankMixture(means, directions * ((0.5 - noise) * d * falling / falling.sum()).sqrt(), noise, weights)


def measured(prior: str = "ring", numbers: int = 1, sigma: float = 0.3, seed: int = 0) -> Problem[Any]:
    """Return the posterior of a named problem given noisy measurements of the first ``numbers`` numbers of a sample.

    The sample and the noise are drawn with ``seed``. The result is itself a problem, on which solvers are compared with its
    exact score and methods for inverse problems with that of the prior.

    Args:
        prior: the name of a mixture or an empirical distribution by name, with its settings: ``"ring: modes=4"``.
        numbers: how many numbers of a flattened sample are measured.
        sigma: the standard deviation of the noise.
        seed: the seed of the sample and the noise.

    Raises:
        ValueError: for a problem without a posterior in closed form, and more numbers than a sample has.

    Example:
        >>> measured("gaussian", sigma=0.5).given.prior
        Gaussian(components=1, event=(2,))
    """
    of = PROBLEMS.make(prior)
    numbers = whole("numbers", numbers, 1, of.event.numel())
    generator = torch.Generator().manual_seed(whole("seed", seed, 0))
    sample = of.sample(1, generator, torch.float64).flatten()
    noise = torch.randn(numbers, generator=generator, dtype=torch.float64)
    matrix = torch.eye(of.event.numel(), dtype=torch.float64)[:numbers]
    return of.posterior(matrix, sample[:numbers] + sigma * noise, sigma)


def digits(std: float = 0.05) -> Empirical:
    """Return the empirical distribution of the 1797 images of :func:`scoresde.data.load_digits`, ``(1, 8, 8)`` in [-1, 1].

    They are smoothed with standard deviation ``std``, by default less than half the difference of neighbouring grey levels.
    """
    from scoresde.data import load_digits

    return Empirical(load_digits()[0], std)


@cache
def ppca_digits(modes: int = 10, rank: int = 8) -> LowRankMixture:
    """Return a :func:`scoresde.problems.ppca_mixture` fitted to the handwritten digits, computed once in a process."""
    from scoresde.data import load_digits

    return ppca_mixture(load_digits()[0], modes, rank)


PROBLEMS: Table[Callable[..., Problem[Any]]] = Table(
    "problem",
    "scoresde.problems.PROBLEMS",
    {
        "ring": ring,
        "grid": grid,
        "spiral": spiral,
        "moons": moons,
        "gaussian": gaussian,
        "textures": textures,
        "random": random_mixture,
        "student_t": student_t,
        "laplace": laplace,
        "funnel": funnel,
        "checkerboard": checkerboard,
        "swiss_roll": swiss_roll,
        "spirals": spirals,
        "pinwheel": pinwheel,
        "rings": rings,
        "measured": measured,
        "digits": digits,
        "ppca_digits": ppca_digits,
    },
    also="a problem, a score model or a Case",
    check=callable,
    expects="a function that returns a problem",
)
"""The problems by name; each is a function that makes the problem, and has defaults for all its arguments."""
