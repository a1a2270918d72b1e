r"""Mixtures of Gaussians, whose score is known exactly under every SDE with Gaussian marginals.

If the data are :math:`\sum_k w_k N(\mu_k, C_k)` with :math:`C_k = U_k \operatorname{diag}(e_k) U_k^T`, the noised data
:math:`x = \alpha x_0 + \sigma \epsilon` are :math:`\sum_k w_k N(\alpha \mu_k, \alpha^2 C_k + \sigma^2 I)`. With
:math:`z_k = U_k^T (x - \alpha \mu_k)`, the variances :math:`s_k = \alpha^2 e_k + \sigma^2` and the responsibilities
:math:`r_k \propto w_k N(z_k; 0, \operatorname{diag}(s_k))`,

.. math:: \nabla \log p_t(x) = - \sum_k r_k U_k \frac{z_k}{s_k}, \qquad
          E[\epsilon \mid x] = \sigma \sum_k r_k U_k \frac{z_k}{s_k}, \qquad
          E[x_0 \mid x] = \sum_k r_k \Big( \mu_k + U_k \frac{\alpha e_k z_k}{s_k} \Big).

Neither expectation divides by alpha or sigma, so both are accurate at both ends of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.problems.base import Posterior, Problem, draw, normal, normalised, parameter, working_dtype
from scoresde.problems.conditioning import Given, condition, matrix_of, measurement, reweighted
from scoresde.sde import Basis

__all__ = ["Gaussian", "GaussianMixture"]


class _Tables(NamedTuple):
    means: Tensor  # (K, d)
    eigenvalues: Tensor  # (K, d)
    basis: Tensor | None  # (K, d, d), eigenvectors in its columns; None where it is the identity
    log_weights: Tensor  # (K,)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture(Problem[_Tables]):
    r"""The mixture :math:`\sum_k w_k N(\mu_k, C_k)`, with exact density, score and data prediction at every time.

    Args:
        means: shape ``(K, *event)``; an event has d numbers.
        covariances: one variance for all components, shape ``()``; a variance for each, ``(K,)``; diagonals,
            ``(K, *event)``; or full matrices, ``(K, d, d)``. A variance of zero is allowed (a mixture of points is a
            training set); such a mixture has no density before noise is added, and no score where sigma = 0.
        weights: shape ``(K,)``, scaled to sum to one; equal by default.

    The parameters are kept in float64 and receive no gradient; results have the dtype and device of ``x`` and are
    differentiable in ``x`` and ``t``.

    Raises:
        ValueError: for shapes that do not fit each other, values that are not finite, negative weights, and
            covariances that are not symmetric or not positive semi-definite.

    Example:
        >>> from scoresde import VP
        >>> problem = GaussianMixture([[-1.0], [1.0]], 0.01)
        >>> x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        >>> problem.x0(x, VP(), 0.0)  # clean data are their own prediction
        tensor([[0.],
                [1.]], dtype=torch.float64)
        >>> problem.x0(x, VP(), 1.0).abs().max() < 0.01  # and under pure noise it is the mean
        tensor(True)
    """

    means: Tensor
    covariances: Tensor
    weights: Tensor

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        means, covariances = parameter(means, "means"), parameter(covariances, "covariances")
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(
                f"got means of shape {tuple(means.shape)}; expected (components, *event) with at least one component "
                "and one event dimension: write scalars as (components, 1)"
            )
        weights = normalised(weights, len(means))
        tables = _Tables(means.flatten(1), *_decompose(covariances, means), weights.log())
        self._store(tables, means=means, covariances=covariances, weights=weights)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(components={len(self.means)}, event={tuple(self.event)})"

    @property
    def event(self) -> torch.Size:
        """The shape of one sample."""
        return self.means.shape[1:]

    @property
    def mean(self) -> Tensor:
        """The mean of the data, shape ``event``, float64."""
        return (self.weights @ self._exact.means).reshape(self.event)

    @property
    def covariance(self) -> Tensor:
        """The covariance of the flattened data, shape ``(d, d)``, float64."""
        means, eigenvalues, basis, _ = self._exact
        centred = means - self.weights @ means
        between = torch.einsum("k,kd,ke->de", self.weights, centred, centred)
        if basis is None:
            return between + torch.diag(self.weights @ eigenvalues)
        return between + torch.einsum("k,kdi,ki,kei->de", self.weights, basis, eigenvalues, basis)

    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, on the device of ``generator``.

        They are drawn in float64 and rounded to ``dtype``, so the same samples are drawn in every precision.

        Example:
            >>> Gaussian([0.0, 0.0], 1.0).sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        n = whole("n", n, 1)
        tables = self._tables(generator.device)
        k = draw(tables.log_weights, n, generator)
        z = normal((n, self.event.numel()), generator)
        z = tables.eigenvalues[k].sqrt() * z
        x = tables.means[k]
        if tables.basis is None:
            x = x + z
        else:
            for i in range(len(tables.means)):  # one matrix per component, never one per sample
                x[k == i] += z[k == i] @ tables.basis[i].T
        return x.reshape(n, *self.event).to(dtype or torch.get_default_dtype())

    def posterior_of_modes(self, basis: Basis, u: Tensor, alpha: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of noised coordinates and the mean of the coordinates of the data given them."""
        means, eigenvalues, own, log_weights = self._tables(u.device)
        components, d = means.shape
        roots = torch.diag_embed(eigenvalues.sqrt()) if own is None else (own * eigenvalues.sqrt()[:, None]).mT
        roots = basis.forward(roots.reshape(components, d, *self.event)).flatten(2)  # (K, d, r)
        centres = basis.forward(means.reshape(components, 1, *self.event)).flatten(1)  # (K, r)
        spread = roots.mT @ roots
        of_data = alpha[:, None, :, None] * spread * alpha[:, None, None, :]
        root = torch.linalg.cholesky(of_data + torch.diag_embed(variance)[:, None])  # (batch or 1, K, r, r)
        z = u[:, None] - alpha[:, None] * centres  # (batch, K, r)
        whitened = torch.linalg.solve_triangular(root, torch.eye(root.shape[-1]).to(root).expand_as(root), upper=False)
        w = torch.einsum("bkij,bkj->bki", whitened.expand(len(z), *whitened.shape[1:]), z)
        volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_joint = log_weights - 0.5 * w.square().sum(2) - volume - 0.5 * w.shape[2] * math.log(2 * math.pi)
        pulled = torch.einsum("bkij,bki->bkj", whitened.expand(len(z), *whitened.shape[1:]), w)  # V^-1 z
        found = centres + torch.einsum("kij,bkj->bki", spread, alpha[:, None] * pulled)
        return log_joint.logsumexp(1), (log_joint.softmax(1)[:, :, None] * found).sum(1)

    def posterior(self, operator: Any, y: Any, sigma: float) -> GaussianMixture:
        """Return the mixture given a linear measurement: every component updated, and weighted by its evidence.

        The components keep their order. See :meth:`scoresde.problems.Problem.posterior`.
        """
        means, eigenvalues, basis, log_weights = self._exact
        roots = torch.diag_embed(eigenvalues.sqrt()) if basis is None else basis * eigenvalues.sqrt()[:, None]
        kind = Gaussian if isinstance(self, Gaussian) else GaussianMixture
        return given_measurement(kind, self, means, roots, log_weights, operator, y, sigma)

    @property
    def _singular(self) -> bool:
        return bool((self._exact.eigenvalues == 0).any())

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        dtype = working_dtype(x)
        means, eigenvalues, basis, log_weights = self._tables(x.device, dtype)
        alpha, sigma = alpha.to(dtype)[:, :, None], sigma.to(dtype)[:, :, None]
        z = x.to(dtype)[:, None] - alpha * means
        if basis is not None:
            z = torch.einsum("bkd,kde->bke", z, basis)
        variance = alpha**2 * eigenvalues + sigma**2
        whitened = z / variance
        log_density = -0.5 * (z * whitened + variance.log() + math.log(2 * math.pi)).sum(2)
        log_joint = log_weights + log_density
        responsibility = log_joint.softmax(1)
        weighted = responsibility[:, :, None] * whitened
        shrunk = alpha * eigenvalues * weighted
        if basis is None:
            of_noise, of_data = weighted.sum(1), shrunk.sum(1)
        else:
            of_noise, of_data = (torch.einsum("bke,kde->bd", y, basis) for y in (weighted, shrunk))
        return Posterior(log_joint.logsumexp(1), -of_noise, responsibility @ means + of_data)


class Gaussian(GaussianMixture):
    """The Gaussian N(mean, covariance): a mixture of one component.

    Args:
        mean: shape ``event``, with at least one dimension.
        covariance: a variance, shape ``()``; a diagonal, shape ``event``; or a full matrix, ``(d, d)``.

    Example:
        >>> problem = Gaussian([1.0, 2.0], [[2.0, 1.0], [1.0, 2.0]])
        >>> round(problem.covariance.det().item(), 12)
        3.0
    """

    def __init__(self, mean: Any, covariance: Any) -> None:
        mean, covariance = parameter(mean, "mean"), parameter(covariance, "covariance")
        super().__init__(mean[None], covariance if covariance.ndim == 0 else covariance[None])


def given_measurement(
    kind: type[GaussianMixture],
    prior: Problem[Any],
    means: Tensor,
    roots: Tensor,
    log_weights: Tensor,
    operator: Any,
    y: Any,
    sigma: float,
) -> GaussianMixture:
    """Return the posterior of a mixture with components of ``means`` and covariances ``roots @ roots.mT``.

    Args:
        kind: the class of the result.
        prior: the problem with these components.
        means: shape ``(K, d)``; ``roots``: ``(K, d, r)``, or ``(1, d, r)`` for all; ``log_weights``: ``(K,)``.
        operator, y, sigma: the measurement.
    """
    components, d = means.shape
    if components * d * d > MOST:
        raise ValueError(
            f"got {prior!r}, whose posterior has {components} covariances of {d} x {d} numbers; expected at most "
            f"{MOST:,} numbers in all: fewer components or dimensions, or Empirical(data, std=0), whose posterior is on "
            "points"
        )
    matrix = matrix_of(operator, prior.event)
    flat, rounding = measurement(y, len(matrix), sigma)
    found = condition(means, roots, matrix, flat, sigma, rounding)
    weights, log_evidence = reweighted(log_weights, found.log_evidence)
    made = object.__new__(kind)
    basis, lengths, _ = torch.linalg.svd(found.roots, full_matrices=True)
    lengths = torch.where(lengths > d * torch.finfo(torch.float64).eps * lengths.amax(1, keepdim=True), lengths, 0.0)
    eigenvalues, basis = _padded(lengths**2, d).expand(components, d), basis.expand(components, d, d)
    tables = _Tables(found.means, eigenvalues, basis, weights.log())
    covariances = (found.roots @ found.roots.mT).expand(components, d, d)
    made._store(
        tables,
        means=found.means.reshape(components, *prior.event),
        covariances=covariances,
        weights=weights,
        given=Given(prior, operator, flat, float(sigma), log_evidence),
    )
    return made


MOST = 2**26
"""The most numbers in the covariances of a posterior."""


def _padded(values: Tensor, d: int) -> Tensor:
    made = torch.zeros(len(values), d, dtype=torch.float64)
    made[:, : values.shape[1]] = values[:, :d]
    return made


def _decompose(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the eigenvalues ``(K, d)``, rounding errors set to zero, and the eigenvectors, or None for diagonal ones."""
    components, d = len(means), means[0].numel()
    basis = None
    if covariances.ndim == 0 or covariances.shape == (components,):
        eigenvalues = covariances.expand(components)[:, None].expand(components, d).clone()
    elif covariances.shape == means.shape:
        eigenvalues = covariances.flatten(1)
    elif covariances.shape == (components, d, d):
        # Loose enough for a matrix that was computed in float32.
        if not torch.allclose(covariances, covariances.mT, rtol=0, atol=1e-6 * float(covariances.abs().max())):
            raise ValueError("got a covariance matrix which is not symmetric; expected C = C^T: use (C + C.mT) / 2")
        eigenvalues, basis = torch.linalg.eigh(covariances)
        rounding = d * torch.finfo(torch.float64).eps * eigenvalues.abs().amax(1, keepdim=True)
        eigenvalues = torch.where(eigenvalues.abs() <= rounding, 0.0, eigenvalues)
    else:
        raise ValueError(
            f"got covariances of shape {tuple(covariances.shape)} for means of shape {tuple(means.shape)}; expected a "
            f"variance for all (), for each component ({components},), diagonals {tuple(means.shape)} or matrices "
            f"({components}, {d}, {d})"
        )
    if bool((eigenvalues < 0).any()):
        raise ValueError(
            f"got a covariance with the negative variance {eigenvalues.min().item():.3g}; expected positive "
            "semi-definite covariances"
        )
    return eigenvalues, basis
