r"""Analytic distributions: mixtures of Gaussians, whose score is known exactly under every SDE with Gaussian marginals.

If the data are :math:`\sum_k w_k N(\mu_k, C_k)` with :math:`C_k = U_k \operatorname{diag}(e_k) U_k^T`, the noised data
:math:`x = \alpha x_0 + \sigma \epsilon` are :math:`\sum_k w_k N(\alpha \mu_k, \alpha^2 C_k + \sigma^2 I)`. With
:math:`z_k = U_k^T (x - \alpha \mu_k)`, the variances :math:`s_k = \alpha^2 e_k + \sigma^2` and the responsibilities
:math:`r_k \propto w_k N(z_k; 0, \operatorname{diag}(s_k))`,

.. math:: \nabla \log p_t(x) = - \sum_k r_k U_k \frac{z_k}{s_k}, \qquad
          E[\epsilon \mid x] = \sigma \sum_k r_k U_k \frac{z_k}{s_k}, \qquad
          E[x_0 \mid x] = \sum_k r_k \Big( \mu_k + U_k \frac{\alpha e_k z_k}{s_k} \Big).

Neither expectation divides by alpha or sigma, so both are accurate at both ends of time: they are the ground truth that
solvers and networks are measured against. States have shape ``(batch, *event)``, times ``()`` or ``(batch,)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde._shape import as_time, check_batch, expand
from scoresde.chain import Chain
from scoresde.score import ScoreModel
from scoresde.sde import AffineSDE, Time

__all__ = ["PROBLEMS", "Gaussian", "GaussianMixture", "gaussian", "grid", "moons", "ring", "spiral", "textures"]

Values = Tensor | float


class _Tables(NamedTuple):
    """The parameters in one dtype and on one device."""

    means: Tensor  # (K, d)
    eigenvalues: Tensor  # (K, d)
    basis: Tensor | None  # (K, d, d), eigenvectors in its columns; None where it is the identity
    log_weights: Tensor  # (K,)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianMixture:
    r"""The mixture :math:`\sum_k w_k N(\mu_k, C_k)`, with exact density, score and data prediction at every time.

    Args:
        means: shape ``(K, *event)``, with d = prod(event) numbers each.
        covariances: a variance for all, shape ``()``; one for each component, ``(K,)``; diagonals, ``(K, *event)``; or
            full matrices, ``(K, d, d)``. A variance of zero is allowed (a mixture of points is the training set
            itself); such a mixture has no density before noise is added, and no value where sigma = 0.
        weights: shape ``(K,)``, scaled to sum to one; equal where not given.

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
    _exact: _Tables
    _cache: dict[tuple[torch.dtype, torch.device], _Tables]  # what earlier calls needed

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        means, covariances = _parameter(means, "means"), _parameter(covariances, "covariances")
        if means.ndim < 2 or means.numel() == 0:
            raise ValueError(
                f"got means of shape {tuple(means.shape)}; expected (components, *event) with at least one component "
                "and one event dimension: write scalars as (components, 1)"
            )
        weights = torch.ones(len(means), dtype=torch.float64) if weights is None else _parameter(weights, "weights")
        if weights.shape != means.shape[:1] or bool((weights < 0).any()) or not weights.sum() > 0:
            raise ValueError(
                f"got weights {weights.tolist()} for {len(means)} components; expected one non-negative number each, "
                "not all zero"
            )
        weights = weights / weights.sum()
        eigenvalues, basis = _decompose(covariances, means)
        tables = _Tables(means.flatten(1), eigenvalues, basis, weights.log())
        cpu = torch.device("cpu")
        cache = {(torch.float64, cpu): tables, (torch.float32, cpu): _convert(tables, torch.float32, cpu)}
        values = {"means": means, "covariances": covariances, "weights": weights, "_exact": tables, "_cache": cache}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(components={len(self.means)}, event={tuple(self.event)})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # copies on other devices are no part of the distribution

    # The data --------------------------------------------------------------------------------------------------------

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
        """``n`` independent samples, shape ``(n, *event)``, on the device of ``generator``.

        They are drawn in float64 and rounded to ``dtype``, so that they are the same in every precision.

        Example:
            >>> ring().sample(3, torch.Generator().manual_seed(0)).shape
            torch.Size([3, 2])
        """
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"got n={n!r} samples; expected a whole number of at least 1")
        tables = self._tables(torch.float64, generator.device)
        k = torch.multinomial(tables.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.event.numel(), generator=generator, dtype=torch.float64, device=generator.device)
        z = tables.eigenvalues[k].sqrt() * z
        x = tables.means[k]
        if tables.basis is None:
            x = x + z
        else:
            for i in range(len(tables.means)):  # one matrix per component, never one per sample
                x[k == i] += z[k == i] @ tables.basis[i].T
        return x.reshape(n, *self.event).to(dtype or torch.get_default_dtype())

    # The noised data -------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, sde: AffineSDE | None = None, t: Time | None = None) -> Tensor:
        """Log-density at ``x``, in nats, shape ``(batch,)``: of the data, or of the noised data at time ``t``.

        Raises:
            ValueError: if only one of ``sde`` and ``t`` is given, or the data have no density.

        Example:
            >>> x = torch.zeros(1, 1, dtype=torch.float64)
            >>> bool(Gaussian([0.0], 1.0).log_prob(x).exp() == 1 / math.sqrt(2 * math.pi))
            True
        """
        if (sde is None) != (t is None):
            raise ValueError(f"got sde={sde!r} and t={t!r}; expected both (the noised data) or neither (the data)")
        if sde is not None and t is not None:
            return self._whiten(x, *self._scales(x, sde, t))[1].logsumexp(1).to(x.dtype)
        if bool((self._exact.eigenvalues == 0).any()):
            raise ValueError(
                "the data have no density, because a covariance is singular; give an sde and a time t with sigma > 0"
            )
        one = torch.ones(1, 1, 1, dtype=_working_dtype(check_batch(x)), device=x.device)
        return self._whiten(x, one, 0 * one)[1].logsumexp(1).to(x.dtype)

    def score(self, x: Tensor, sde: AffineSDE, t: Time) -> Tensor:
        r"""The score :math:`\nabla_x \log p_t(x)`, shape of ``x``.

        Example:
            >>> from scoresde import VP
            >>> x = torch.ones(1, 2, dtype=torch.float64)
            >>> bool(torch.allclose(Gaussian([0.0, 0.0], 1.0).score(x, VP(), 0.3), -x))
            True
        """
        whitened, log_joint = self._whiten(x, *self._scales(x, sde, t))
        return -self._average(whitened, log_joint, x)

    def eps(self, x: Tensor, sde: AffineSDE, t: Time) -> Tensor:
        """The noise prediction E[eps | x_t = x], shape of ``x``."""
        return self._predictions(x, *self._scales(x, sde, t))[1]

    def x0(self, x: Tensor, sde: AffineSDE, t: Time) -> Tensor:
        """The data prediction E[x_0 | x_t = x], shape of ``x``."""
        return self._predictions(x, *self._scales(x, sde, t))[0]

    def v(self, x: Tensor, sde: AffineSDE, t: Time) -> Tensor:
        """alpha E[eps | x_t = x] - sigma E[x_0 | x_t = x], shape of ``x``."""
        scales = self._scales(x, sde, t)
        x0, eps = self._predictions(x, *scales)
        alpha, sigma = (expand(c[:, 0, 0], x).to(x) for c in scales)
        return alpha * eps - sigma * x0

    def model(self, sde: AffineSDE | Chain) -> ScoreModel:
        """The perfect score model of these data.

        Its network returns :meth:`v`, from which both the data and the noise prediction follow without cancellation at
        either end of time.

        Example:
            >>> from scoresde import VP
            >>> problem, x = ring(), torch.ones(1, 2, dtype=torch.float64)
            >>> model = problem.model(VP())
            >>> bool(torch.allclose(model.score(x, 0.5), problem.score(x, VP(), 0.5)))
            True
        """
        affine = sde.sde() if isinstance(sde, Chain) else sde
        return ScoreModel(_ExactNetwork(self, affine), sde, predicts="v", time=_same)

    # Parts -----------------------------------------------------------------------------------------------------------

    def _tables(self, dtype: torch.dtype, device: torch.device) -> _Tables:
        key = (dtype, device)
        if key not in self._cache:
            self._cache[key] = _convert(self._exact, dtype, device)
        return self._cache[key]

    def _scales(self, x: Tensor, sde: AffineSDE, t: Time) -> tuple[Tensor, Tensor]:
        """alpha and sigma, shape ``(batch or 1, 1, 1)``, computed in float64."""
        check_batch(x)
        t = _double(t)
        expand(as_time(t), x)  # a clear error for a wrong shape
        dtype = _working_dtype(x)
        alpha, sigma = (c.to(device=x.device, dtype=dtype).reshape(-1, 1, 1) for c in (sde.alpha(t), sde.sigma(t)))
        return alpha, sigma

    def _whiten(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """z_k / s_k, shape ``(batch, K, d)``, and log w_k + log N(z_k; 0, s_k), shape ``(batch, K)``."""
        if x.shape[1:] != self.event:
            raise ValueError(f"got x of shape {tuple(x.shape)}; expected {('batch', *self.event)}, the samples of {self!r}")
        means, eigenvalues, basis, log_weights = self._tables(alpha.dtype, x.device)
        z = x.to(alpha.dtype).flatten(1)[:, None] - alpha * means
        if basis is not None:
            z = torch.einsum("bkd,kde->bke", z, basis)
        variance = alpha**2 * eigenvalues + sigma**2
        whitened = z / variance
        log_density = -0.5 * (z * whitened + variance.log() + math.log(2 * math.pi)).sum(2)
        return whitened, log_weights + log_density

    def _average(self, z: Tensor, log_joint: Tensor, x: Tensor) -> Tensor:
        """sum_k r_k U_k z_k, shape and dtype of ``x``."""
        basis = self._tables(z.dtype, z.device).basis
        weighted = log_joint.softmax(1)[:, :, None] * z
        total = weighted.sum(1) if basis is None else torch.einsum("bke,kde->bd", weighted, basis)
        return total.reshape(x.shape).to(x.dtype)

    def _predictions(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_0 | x] and E[eps | x], shape and dtype of ``x``."""
        whitened, log_joint = self._whiten(x, alpha, sigma)
        tables = self._tables(alpha.dtype, x.device)
        of_means = (log_joint.softmax(1) @ tables.means).reshape(x.shape)
        x0 = of_means.to(x.dtype) + self._average(alpha * tables.eigenvalues * whitened, log_joint, x)
        return x0, self._average(sigma * whitened, log_joint, x)


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
        mean, covariance = _parameter(mean, "mean"), _parameter(covariance, "covariance")
        super().__init__(mean[None], covariance if covariance.ndim == 0 else covariance[None])


@dataclass(frozen=True)
class _ExactNetwork:
    """``net(x, t)`` of the perfect model, which predicts v."""

    problem: GaussianMixture
    sde: AffineSDE

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.problem.v(x, self.sde, t)


def _same(t: Tensor) -> Tensor:
    return t


def _working_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _double(t: Time) -> Time:
    # Python numbers stay what they are, because the SDE checks their range.
    return t.to(torch.float64) if isinstance(t, Tensor) else t


def _parameter(values: Any, name: str) -> Tensor:
    # Normal tensors even under inference mode, so that later calls may save them for a gradient.
    with torch.inference_mode(False):
        tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"got {name} with values that are not finite; expected finite numbers")
    return tensor


def _convert(tables: _Tables, dtype: torch.dtype, device: torch.device) -> _Tables:
    with torch.inference_mode(False):
        return _Tables(*(None if v is None else v.to(device=device, dtype=dtype) for v in tables))  # type: ignore[arg-type]


def _decompose(covariances: Tensor, means: Tensor) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues ``(K, d)``, exactly zero where they are no more than rounding errors, and eigenvectors or None."""
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


# Named problems, each of about unit variance per coordinate ----------------------------------------------------------


def ring(modes: int = 8, radius: float = 1.4, std: float = 0.1) -> GaussianMixture:
    """``modes`` isotropic Gaussians of deviation ``std`` on a circle of ``radius``, in two dimensions."""
    angle = 2 * math.pi * torch.arange(modes, dtype=torch.float64) / modes
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std**2)


def grid(side: int = 3, spacing: float = 1.2, std: float = 0.1) -> GaussianMixture:
    """``side`` x ``side`` isotropic Gaussians of deviation ``std``, ``spacing`` apart, in two dimensions."""
    axis = spacing * (torch.arange(side, dtype=torch.float64) - (side - 1) / 2)
    return GaussianMixture(torch.cartesian_prod(axis, axis), std**2)


def spiral(modes: int = 48, turns: float = 1.5, std: float = 0.08) -> GaussianMixture:
    """Isotropic Gaussians close together along an Archimedean spiral, heavier outwards as its arc is."""
    fraction = (torch.arange(modes, dtype=torch.float64) + 0.5) / modes
    angle, radius = 2 * math.pi * turns * fraction.sqrt(), 2 * fraction.sqrt()
    return GaussianMixture(torch.stack([radius * angle.cos(), radius * angle.sin()], 1), std**2)


def moons(modes: int = 8, std: float = 0.08) -> GaussianMixture:
    """Two interlocking half circles, each of ``modes`` Gaussians with full covariances stretched along it."""
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
    """A correlated Gaussian in ``d`` dimensions, its variances spread over a factor ``condition`` with mean one."""
    variances = condition ** torch.linspace(0, 1, d, dtype=torch.float64)
    variances = variances / variances.mean()
    # A reflection across a plane that is oblique to every axis mixes all coordinates.
    direction = torch.arange(1, d + 1, dtype=torch.float64)
    direction = direction / direction.norm()
    reflection = torch.eye(d, dtype=torch.float64) - 2 * torch.outer(direction, direction)
    covariance = reflection @ torch.diag(variances) @ reflection
    return Gaussian(torch.zeros(d, dtype=torch.float64), 0.5 * (covariance + covariance.T))


def textures(size: int = 8, modes: int = 4) -> GaussianMixture:
    r"""Images of ``size`` x ``size`` pixels, shape ``(1, size, size)``: stationary textures in ``modes`` orientations.

    Every component has mean zero and unit variance in every pixel, so that only the correlations, exp(-distance) with
    distances measured ten times shorter along the stripes than across them, tell them apart.
    """
    row, column = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 2).T
    dy, dx = row[:, None] - row, column[:, None] - column
    angle = math.pi * torch.arange(modes, dtype=torch.float64)[:, None, None] / modes
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    covariances = torch.exp(-torch.hypot(along / 10, across))
    return GaussianMixture(torch.zeros(modes, 1, size, size), covariances)


PROBLEMS: dict[str, Callable[[], GaussianMixture]] = {
    "ring": ring,
    "grid": grid,
    "spiral": spiral,
    "moons": moons,
    "gaussian": gaussian,
    "textures": textures,
}
"""The named problems, by name, with their default sizes."""
