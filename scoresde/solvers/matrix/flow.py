r"""The linear part of the reverse process with matrix coefficients, and its integrals, in float64.

If the data prediction were a constant m, the residual :math:`r = z - \psi m` of the reverse process would obey

.. math:: dr = \Big( F + \tfrac{1 + \eta}{2}\, G G^T \Sigma^{-1} \Big) r\, dt + \sqrt{\eta}\, G\, d\bar w .

In whitened form, :math:`r = L \rho` with :math:`L L^T = \Sigma`, its linear part is
:math:`\dot\rho = (\Omega + \tfrac{\eta}{2} B) \rho` with :math:`B = L^{-1} G G^T L^{-T}` and a skew-symmetric
:math:`\Omega`: a rotation for the flow, and a contraction besides for the SDE. For one variable it is a number,
:math:`e^{-\eta \Delta\lambda}`. For more it is computed by Gauss-Legendre collocation on short pieces of a step, whose nodes
serve all further integrals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from scoresde.sde.matrix import Factors, MatrixSDE
from scoresde.solvers.matrix.path import MatrixPoint

__all__ = ["Flow", "flows", "generator", "root_of", "whitened"]

NODES = 10
"""Gauss-Legendre nodes in a piece."""

LONGEST = 0.5
"""The greatest length of a piece in lam, of any mode."""


@dataclass(frozen=True)
class Flow:
    """The whitened linear flow over one interval, and the nodes and weights of a quadrature along it.

    Attributes:
        whole: the factor of the whitened residual over the interval, shape ``(*modes, b, b)``.
        times, lams: the times of the nodes and their lam, shape ``(n,)``.
        weights: the weights of an integral in time from the start of the interval to its end, shape ``(n,)``.
        factors: the marginals at the nodes.
        until: the factors from the start of the interval to the nodes, shape ``(n, *modes, b, b)``.
        onward: the factors from the nodes to the end of the interval, of the same shape.
        flux: the matrix B at the nodes, of the same shape.
    """

    whole: Tensor
    times: Tensor
    lams: Tensor
    weights: Tensor
    factors: Factors
    until: Tensor
    onward: Tensor
    flux: Tensor

    def integral(self, values: Tensor) -> Tensor:
        """Return the integral over the interval of ``values`` at the nodes, ``(n, *modes, o, i)``."""
        total: Tensor = torch.tensordot(self.weights, values, dims=1)
        return total


@cache
def _tableau() -> tuple[Tensor, Tensor, Tensor]:
    """Return the nodes, the weights and the matrix of the Gauss-Legendre collocation method on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    c = 0.5 * (x + 1)
    # The integral from 0 to c_i of the j-th Lagrange polynomial, by the same nodes scaled to [0, c_i].
    inner = c[:, None] * c[None, :]
    values = np.ones((NODES, NODES, NODES))  # (i, node, j)
    for j in range(NODES):
        for k in range(NODES):
            if k != j:
                values[:, :, j] *= (inner - c[k]) / (c[j] - c[k])
    a = c[:, None] * np.einsum("n,inj->ij", 0.5 * w, values)
    return torch.from_numpy(c), torch.from_numpy(0.5 * w), torch.from_numpy(a)


def flows(sde: MatrixSDE, intervals: Sequence[tuple[MatrixPoint, MatrixPoint]], eta: float) -> list[Flow]:
    """Return the flow over each interval from noise to data, whose pieces are computed all at once."""
    if not intervals:
        return []
    ends = torch.tensor([[u.t, v.t] for u, v in intervals], dtype=torch.float64)
    signal = sde.factors(ends).signal.square().sum((-2, -1)).log() / 2  # (intervals, 2, *modes)
    lengths = (signal[:, 1] - signal[:, 0]).abs().reshape(len(ends), -1).amax(1)
    counts = [max(1, math.ceil(length / LONGEST)) for length in lengths.tolist()]
    cuts = [u * (v / u) ** (torch.arange(n + 1, dtype=torch.float64) / n) for (u, v), n in zip(ends, counts, strict=True)]
    starts, stops = torch.cat([c[:-1] for c in cuts]), torch.cat([c[1:] for c in cuts])
    c, w, a = _tableau()
    times = starts[:, None] + (stops - starts)[:, None] * c  # (pieces, nodes)
    factors = sde.factors(times)
    drift, noise = sde.rates(times)
    flux = whitened(factors.root, noise)
    if sde.variables == 1:
        before, after = (sde.factors(t).signal for t in (starts, stops))
        until, whole = (before[:, None] / factors.signal) ** eta, (before / after) ** eta
    else:
        until, whole = _collocated(generator(factors.root, drift, flux, eta), stops - starts, w, a)
    weights = (stops - starts)[:, None] * w
    parts = [torch.split(x, counts) for x in (times, sde.lam(times), weights, *factors, until, whole, flux)]
    return [_joined(*each) for each in zip(*parts, strict=True)]


def whitened(root: Tensor, noise: Tensor) -> Tensor:
    """Return B = L^-1 G G^T L^-T for a Cholesky factor L and G G^T, shape ``(*times, *modes, b, b)``."""
    if root.shape[-1] == 1:
        return noise / root.square()
    half = torch.linalg.solve_triangular(root, noise, upper=False)
    flux: Tensor = torch.linalg.solve_triangular(root, half.mT, upper=False)
    return flux


def generator(root: Tensor, drift: Tensor, flux: Tensor, eta: float) -> Tensor:
    """Return the matrix Omega + eta B / 2 of the whitened residual, shape ``(*times, *modes, b, b)``.

    Args:
        root: L, the Cholesky factor of the covariance.
        drift: F.
        flux: B, by :func:`whitened`.
        eta: the noise.
    """
    turned = torch.linalg.solve_triangular(root, drift @ root, upper=False)
    rate = turned + turned.mT + flux  # L^-1 dSigma/dt L^-T, whose lower half is L^-1 dL/dt
    lower = rate.tril(-1) + 0.5 * torch.diag_embed(rate.diagonal(dim1=-2, dim2=-1))
    found: Tensor = turned + 0.5 * (1 + eta) * flux - lower
    return found


def _collocated(rate: Tensor, lengths: Tensor, w: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Solve rho' = rate rho from the identity, over each piece: its values at the nodes and at the end."""
    b = rate.shape[-1]
    m = rate.movedim(1, -3)  # (pieces, *modes, nodes, b, b)
    h = lengths.reshape(-1, *[1] * (m.ndim - 1))
    blocks = torch.einsum("ij,...jkl->...ikjl", a, h * m)
    size = NODES * b
    system = torch.eye(size, dtype=torch.float64) - blocks.reshape(*m.shape[:-3], size, size)
    ones = torch.eye(b, dtype=torch.float64).repeat(NODES, 1).expand(*m.shape[:-3], size, b)
    nodes = torch.linalg.solve(system, ones).reshape(*m.shape[:-2], b, b)
    whole = torch.eye(b, dtype=torch.float64) + torch.einsum("j,...jkl->...kl", w, (h * m) @ nodes)
    return nodes.movedim(-3, 1), whole


def _joined(
    times: Tensor,
    lams: Tensor,
    weights: Tensor,
    psi: Tensor,
    root: Tensor,
    signal: Tensor,
    until: Tensor,
    whole: Tensor,
    flux: Tensor,
) -> Flow:
    """Join the pieces of one interval."""
    total = torch.eye(whole.shape[-1], dtype=torch.float64).expand_as(whole[0])
    carried = []
    for piece, inner in zip(whole, until, strict=True):
        carried.append(inner @ total)
        total = piece @ total
    found = torch.cat(carried)
    onward = total / found if total.shape[-1] == 1 else total @ torch.linalg.inv(found)
    return Flow(
        total,
        times.flatten(),
        lams.flatten(),
        weights.flatten(),
        Factors(psi.flatten(0, 1), root.flatten(0, 1), signal.flatten(0, 1)),
        found,
        onward,
        flux.flatten(0, 1),
    )


def root_of(covariance: Tensor) -> Tensor:
    """Return a matrix R with R R^T = ``covariance``, positive semi-definite up to rounding, of the same shape."""
    if covariance.shape[-1] == 1:
        return covariance.clamp(min=0).sqrt()
    scale = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    unit = torch.where(scale > 0, 1 / scale, 0.0)
    values, vectors = torch.linalg.eigh(unit[..., :, None] * covariance * unit[..., None, :])
    found: Tensor = scale[..., :, None] * vectors * values.clamp(min=0).sqrt()[..., None, :]
    return found
