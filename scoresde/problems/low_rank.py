r"""Mixtures of Gaussians whose covariances have low rank plus a multiple of the identity: exact scores in many dimensions.

With :math:`C_k = F_k F_k^T + \psi_k I = U_k \operatorname{diag}(e_k) U_k^T + \psi_k I`, where :math:`U_k` has the r singular
vectors of the d x r factor, the noised component has the variance :math:`q_k = \alpha^2 \psi_k + \sigma^2` everywhere and
:math:`s_k = q_k + \alpha^2 e_k` along :math:`U_k`. With :math:`y_k = x - \alpha \mu_k` and :math:`z_k = U_k^T y_k`,

.. math:: -2 \log N_k = \frac{|y_k|^2 - |z_k|^2}{q_k} + \sum_i \frac{z_{ki}^2}{s_{ki}} + (d - r) \log 2 \pi q_k
          + \sum_i \log 2 \pi s_{ki}, \qquad
          \nabla \log N_k = - \frac{y_k}{q_k} + U_k \frac{\alpha^2 e_k z_k}{q_k s_k}, \qquad
          E_k[x_0 \mid x] = \mu_k + \frac{\alpha \psi_k}{q_k} y_k + U_k \frac{\alpha \sigma^2 e_k z_k}{q_k s_k}.

A sample costs O(K d r), in two matrix products. The differences cancel where q is small, so they are computed in float64:
where d / q is 1e9, seven digits of the log-density are left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.problems.base import Posterior, Problem, draw, normal, normalised, parameter
from scoresde.problems.mixture import GaussianMixture, given_measurement

__all__ = ["LowRankMixture"]


class _Tables(NamedTuple):
    centre: Tensor  # (d,), subtracted from everything, so that squares are as small as can be
    directions: Tensor  # (K + K r, d): the means less the centre, then the columns of every U
    offsets: Tensor  # (K, r): U^T of these means
    sizes: Tensor  # (K,): their squares
    eigenvalues: Tensor  # (K, r)
    noise: Tensor  # (K,)
    log_weights: Tensor  # (K,)


@dataclass(frozen=True, eq=False, repr=False)
class LowRankMixture(Problem[_Tables]):
    r"""The mixture :math:`\sum_k w_k N(\mu_k, F_k F_k^T + \psi_k I)`, a mixture of probabilistic PCAs.

    Everything is computed in float64 whatever the dtype of ``x``.

    Args:
        means: shape ``(K, *event)``; an event has d numbers.
        factors: shape ``(K, d, r)`` with 1 <= r <= d.
        noise: the variances :math:`\psi`, shape ``()`` or ``(K,)``. Zero is allowed; such a mixture has no density
            before noise is added, and no score where sigma = 0.
        weights: shape ``(K,)``, scaled to sum to one; equal by default.

    Raises:
        ValueError: for shapes that do not fit each other, values that are not finite, and negative noise or weights.

    Source: Tipping and Bishop, "Mixtures of Probabilistic Principal Component Analysers", Neural Computation 11, 1999,
    https://doi.org/10.1162/089976699300016728.

    Example:
        >>> problem = LowRankMixture([[0.0, 0.0]], [[[1.0], [1.0]]], 0.5)
        >>> problem.covariance
        tensor([[1.5000, 1.0000],
                [1.0000, 1.5000]], dtype=torch.float64)
    """

    means: Tensor
    factors: Tensor
    noise: Tensor
    weights: Tensor

    def __init__(self, means: Any, factors: Any, noise: Any, weights: Any = None) -> None:
        means, factors = parameter(means, "means"), parameter(factors, "factors")
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(f"got means of shape {tuple(means.shape)}; expected (components, *event), at least one")
        components, d = means.flatten(1).shape
        if factors.ndim != 3 or factors.shape[:2] != (components, d) or not 1 <= factors.shape[2] <= d:
            raise ValueError(
                f"got factors of shape {tuple(factors.shape)} for means of shape {tuple(means.shape)}; expected "
                f"({components}, {d}, rank) with a rank from 1 to {d}"
            )
        noise = parameter(noise, "noise")
        if noise.shape not in ((), (components,)) or bool((noise < 0).any()):
            raise ValueError(
                f"got noise {noise.tolist()}; expected a variance >= 0 for all or for each of {components} components"
            )
        weights = normalised(weights, components)
        basis, singular, _ = torch.linalg.svd(factors, full_matrices=False)
        centre = weights @ means.flatten(1)
        centred = means.flatten(1) - centre
        directions = torch.cat([centred, basis.mT.reshape(-1, d)])
        offsets = torch.einsum("kd,kdr->kr", centred, basis)
        sizes = (centred**2).sum(1)
        tables = _Tables(centre, directions, offsets, sizes, singular**2, noise.expand(components).clone(), weights.log())
        self._store(tables, means=means, factors=factors, noise=noise, weights=weights)

    def __repr__(self) -> str:
        components, _, rank = self.factors.shape
        return f"{type(self).__name__}(components={components}, rank={rank}, event={tuple(self.event)})"

    @property
    def event(self) -> torch.Size:
        """The shape of one sample."""
        return self.means.shape[1:]

    @property
    def mean(self) -> Tensor:
        """The mean of the data, shape ``event``, float64."""
        return self._exact.centre.reshape(self.event)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the flattened data, shape ``(d, d)``, float64."""
        centred = self.means.flatten(1) - self._exact.centre
        between = torch.einsum("k,kd,ke->de", self.weights, centred, centred)
        scaled = (self.weights.sqrt()[:, None, None] * self.factors).movedim(1, 0).flatten(1)
        noise = self.weights @ self._exact.noise
        return between + scaled @ scaled.T + noise * torch.eye(centred.shape[1], dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, in float64 on the device of ``generator``."""
        n = whole("n", n, 1)
        tables = self._tables(generator.device)
        (components, rank), d = tables.eigenvalues.shape, len(tables.centre)
        k = draw(tables.log_weights, n, generator)
        along = tables.eigenvalues[k].sqrt() * normal((n, rank), generator)
        x = tables.centre + tables.directions[k] + tables.noise[k].sqrt()[:, None] * normal((n, d), generator)
        for i in range(components):  # one matrix per component, never one per sample
            x[k == i] += along[k == i] @ tables.directions[components + i * rank : components + (i + 1) * rank]
        return x.reshape(n, *self.event).to(dtype or torch.get_default_dtype())

    def posterior(self, operator: Any, y: Any, sigma: float) -> GaussianMixture:
        """Return the mixture given a linear measurement, with full covariances; the components keep their order.

        See :meth:`scoresde.problems.Problem.posterior`.
        """
        isotropic = self._exact.noise.sqrt()[:, None, None] * torch.eye(len(self._exact.centre), dtype=torch.float64)
        roots = torch.cat([self.factors, isotropic], 2)
        means, weights = self.means.flatten(1), self._exact.log_weights
        return given_measurement(GaussianMixture, self, means, roots, weights, operator, y, sigma)

    @property
    def _singular(self) -> bool:
        # Without noise, the density of a component is positive in the span of its factor alone.
        along = (self._exact.eigenvalues > 0).sum(1) == len(self._exact.centre)
        return bool(((self._exact.noise == 0) & ~along).any())

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the probability that sample ``x`` comes from each component, shape ``(batch, K)``, float64."""
        one = torch.ones(1, 1, dtype=torch.float64, device=x.device)
        return self._joint(self._flat(x), one, 0 * one)[0].softmax(1)

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return log w_k + log N_k, shape ``(batch, K)``, the centred x, z, q and s."""
        tables = self._tables(x.device)
        components, rank = tables.eigenvalues.shape
        x = x.to(torch.float64) - alpha * tables.centre
        inner = x @ tables.directions.T  # (batch, K + K r)
        z = inner[:, components:].reshape(-1, components, rank) - alpha[:, :, None] * tables.offsets
        squares = (x**2).sum(1, keepdim=True) - 2 * alpha * inner[:, :components] + alpha**2 * tables.sizes
        q = alpha**2 * tables.noise + sigma**2
        s = q[:, :, None] + (alpha**2)[:, :, None] * tables.eigenvalues
        energy = (squares - (z**2).sum(2)) / q + (z**2 / s).sum(2)
        log_det = (len(tables.centre) - rank) * q.log() + s.log().sum(2) + len(tables.centre) * math.log(2 * math.pi)
        return tables.log_weights - 0.5 * (energy + log_det), x, z, q, s

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        tables = self._tables(x.device)
        log_joint, x, z, q, s = self._joint(x, alpha, sigma)
        responsibility = log_joint.softmax(1)
        over = responsibility / q
        shared = alpha[:, :, None] * tables.eigenvalues * over[:, :, None] * z / s

        def assemble(of_x: Tensor, of_means: Tensor, along: Tensor) -> Tensor:
            return of_x.sum(1, keepdim=True) * x + torch.cat([of_means, along.flatten(1)], 1) @ tables.directions

        score = assemble(-over, alpha * over, alpha[:, :, None] * shared)
        kept = alpha * tables.noise * over
        x0 = tables.centre + assemble(kept, responsibility - alpha * kept, (sigma**2)[:, :, None] * shared)
        return Posterior(log_joint.logsumexp(1), score, x0)
