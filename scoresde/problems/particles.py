r"""Clusters of particles: Gaussian ones, whose density is known, and two with energies, drawn by a Markov chain.

All live in the subspace of zero centre of mass, of dimension (M - 1) n for M particles in n dimensions, with the density
:math:`p(x) \propto e^{-U(x)}` there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import centred, check_points
from scoresde.problems.mixture import Gaussian

__all__ = ["double_well", "harmonic_cluster", "lennard_jones", "metropolis"]

Energy = Callable[[Tensor], Tensor]


def harmonic_cluster(springs: Any, dims: int = 3) -> Gaussian:
    r"""Return the distribution of particles held together by springs, a Gaussian in the subspace.

    .. math:: U(x) = \tfrac12 \sum_{i < j} k_{ij} |x_i - x_j|^2

    Its covariance is the pseudo-inverse of the Laplacian of the springs, in each coordinate. With equal springs it is
    invariant under permutations; it is always invariant under rotations and reflections.

    Args:
        springs: the constants k, symmetric and not negative, shape ``(M, M)``; the diagonal is not used.
        dims: the number of coordinates n.

    Returns:
        A distribution of samples of shape ``(M, n)``. It has a density in the subspace and none outside: with its model in
        a :class:`scoresde.score.PointModel`, :func:`scoresde.log_likelihood` gives the former.

    Raises:
        ValueError: for springs of another shape, negative ones, and springs that do not hold all particles together.

    Example:
        >>> cluster = harmonic_cluster(torch.ones(3, 3), dims=2)
        >>> x = cluster.sample(5, torch.Generator().manual_seed(0))
        >>> x.shape, bool(x.sum(1).abs().max() < 1e-5)
        (torch.Size([5, 3, 2]), True)
    """
    k = torch.as_tensor(springs, dtype=torch.float64)
    dims = whole("dims", dims, 1)
    if k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 2 or not torch.equal(k, k.mT) or not bool((k >= 0).all()):
        raise ValueError(
            f"got springs of shape {tuple(k.shape)}; expected a symmetric matrix of constants, none "
            "below 0, for two particles or more"
        )
    k = k - torch.diag(k.diagonal())
    values, vectors = torch.linalg.eigh(torch.diag(k.sum(1)) - k)
    if not float(values[1]) > 1e-9 * float(values[-1]):
        raise ValueError("got springs that leave some particles free of the others; expected a chain of springs to each")
    covariance = (vectors[:, 1:] / values[1:]) @ vectors[:, 1:].mT
    return Gaussian(torch.zeros(len(k), dims), torch.kron(covariance, torch.eye(dims, dtype=torch.float64)))


def _distances(x: Tensor) -> Tensor:
    """Return the distances of all pairs, shape ``(batch, pairs)``, with finite gradients where two points meet."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1, device=x.device)
    return ((x[:, i] - x[:, j]).square().sum(2) + 1e-24).sqrt()


def double_well(x: Tensor, *, a: float = 0.9, b: float = -4.0, offset: float = 4.0) -> Tensor:
    r"""Return the energy of particles of which each two prefer two distances; DW4 is four of them in the plane.

    .. math:: U(x) = \sum_{i < j} a\, (d_{ij} - d_0)^4 + b\, (d_{ij} - d_0)^2

    Source: Köhler, Klein and Noé, "Equivariant Flows: Exact Likelihood Generative Learning for Symmetric Densities", 2020,
    https://arxiv.org/abs/2006.02425. Their sum over i and j counts each pair twice and is halved.

    Args:
        x: particles, shape ``(batch, M, n)``.
        a, b, offset: the constants a, b and d_0.

    Returns:
        The energies, shape ``(batch,)``.

    Example:
        >>> double_well(torch.tensor([[[0.0, 0.0], [5.0, 0.0]]]))
        tensor([-3.1000])
    """
    away = _distances(check_points(x, x.shape[-1])) - offset
    return (a * away**4 + b * away**2).sum(1)


def lennard_jones(x: Tensor, *, strength: float = 1.0, radius: float = 1.0, trap: float = 1.0) -> Tensor:
    r"""Return the energy of particles that repel each other nearby and attract each other far away; LJ13 is 13 in space.

    .. math:: U(x) = \epsilon \sum_{i < j} \Big[ \big(r / d_{ij}\big)^{12} - 2 \big(r / d_{ij}\big)^6 \Big]
              + \tfrac{c}{2} \sum_i |x_i - \bar x|^2

    The second term keeps the cluster together. Source: Köhler, Klein and Noé, "Equivariant Flows: Exact Likelihood
    Generative Learning for Symmetric Densities", 2020, https://arxiv.org/abs/2006.02425.

    Args:
        x: particles, shape ``(batch, M, n)``.
        strength, radius, trap: epsilon, the distance r of the smallest energy, and c.

    Returns:
        The energies, shape ``(batch,)``.

    Example:
        >>> lennard_jones(torch.tensor([[[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]]), trap=0.0)
        tensor([-1.])
    """
    ratio = (radius / _distances(check_points(x, x.shape[-1]))) ** 6
    inside = 0.5 * trap * centred(x, x.shape[-1]).square().sum((1, 2))
    return strength * (ratio * ratio - 2 * ratio).sum(1) + inside


def metropolis(
    energy: Energy, start: Tensor, steps: int, generator: torch.Generator, *, size: float = 0.02, thin: int = 1
) -> tuple[Tensor, float]:
    r"""Draw from :math:`e^{-U}` in the subspace of zero centre of mass by the Metropolis-adjusted Langevin algorithm.

    Each chain proposes :math:`y = x - h \nabla U(x) + \sqrt{2 h}\, P \xi`, and accepts it with the probability of Metropolis
    and Hastings, so that the law is exact in the long run for any step h.

    Source: Roberts and Tweedie, "Exponential Convergence of Langevin Distributions and Their Discrete Approximations", 1996.

    Args:
        energy: U, a function of ``(chains, M, n)`` that returns ``(chains,)``, invariant under translations.
        start: the first states of the chains, shape ``(chains, M, n)``; they are centred.
        steps: the number of steps of each chain.
        generator: the source of the random numbers.
        size: h.
        thin: how many steps lie between two states that are returned.

    Returns:
        The states after every ``thin`` steps, shape ``(chains * (steps // thin), M, n)``, and the share of accepted steps.

    Raises:
        ValueError: for numbers that are not positive.

    Example:
        >>> start = torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(0))
        >>> x, accepted = metropolis(double_well, start, 40, torch.Generator().manual_seed(1), size=0.004, thin=20)
        >>> x.shape, 0.3 < accepted < 1
        (torch.Size([200, 4, 2]), True)
    """
    steps, thin = whole("steps", steps, 1), whole("thin", thin, 1)
    if not size > 0:
        raise ValueError(f"got size={size} for the steps of a Markov chain; expected a positive number")
    dims = check_points(start, start.shape[-1]).shape[2]

    def slope(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            u = energy(x)
            return u.detach(), torch.autograd.grad(u.sum(), x)[0]

    x = centred(start.detach(), dims)
    u, gradient = slope(x)
    found, accepted = [], torch.zeros((), dtype=torch.float64)
    for step in range(1, steps + 1):
        xi = centred(torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device).to(x), dims)
        y = x - size * gradient + (2 * size) ** 0.5 * xi
        u_y, gradient_y = slope(y)
        there = (y - x + size * gradient).square().sum((1, 2))
        back = (x - y + size * gradient_y).square().sum((1, 2))
        ratio = u - u_y + (there - back) / (4 * size)
        draw = torch.rand(len(x), generator=generator, dtype=x.dtype, device=generator.device).to(x)
        moved = (draw.log() < ratio)[:, None, None]  # false where an energy is not a number
        x, gradient = torch.where(moved, y, x), torch.where(moved, gradient_y, gradient)
        u = torch.where(moved[:, 0, 0], u_y, u)
        accepted = accepted + moved.double().mean().cpu()
        if step % thin == 0:
            found.append(x)
    return torch.cat(found) if found else x[:0], float(accepted) / steps
