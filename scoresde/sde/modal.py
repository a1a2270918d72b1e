r"""SDEs that are diagonal in a basis of the event: anisotropic noise, noise in a subspace, and blurring.

Each mode u_k of the event has a scalar SDE of its own,

.. math:: u_k \mid x_0 \sim N(\alpha_{k} u_{0k}, \sigma_{k}^2), \qquad \alpha_k = \alpha\, d_k(t), \qquad
          \sigma_k = \sigma\, s_k,

with alpha and sigma of a scalar SDE, the ``base``, a damping d_k of the mode and the standard deviation s_k of its noise.
The lam of the base serves as lam.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import is_whole
from scoresde.sde.base import Time
from scoresde.sde.gaussian import GaussianSDE
from scoresde.sde.matrix import MatrixSDE
from scoresde.sde.modes import Basis, Cosines, Vectors
from scoresde.sde.published import VP

__all__ = ["Anisotropic", "Blurring", "Subspace"]


@dataclass(frozen=True)
class _Modal(MatrixSDE):
    """Base of the SDEs that are diagonal in a basis; a subclass has the field ``base`` and says how modes differ."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of the modes."""

    def log_damping(self, t: Tensor) -> Tensor:
        """Return log d_k, broadcastable to ``(*times, *modes)``; zero by default."""
        return torch.zeros((*t.shape, *[1] * len(self.shape)), dtype=torch.float64)

    def damping_rate(self, t: Tensor) -> Tensor:
        """Return the derivative of log d_k in time, of the shape of :meth:`log_damping`."""
        return torch.zeros((*t.shape, *[1] * len(self.shape)), dtype=torch.float64)

    @property
    def spread(self) -> Tensor:
        """The standard deviations s_k of the noise of the modes, shape of the modes."""
        return torch.ones(self.shape, dtype=torch.float64)

    @property
    def _scalar(self) -> GaussianSDE:
        """The field ``base`` of every subclass."""
        leaf: Any = self
        base: GaussianSDE = leaf.base
        return base

    def __post_init__(self) -> None:
        base = self._scalar
        if not isinstance(base, GaussianSDE):
            raise ValueError(f"got base={base!r}; expected a scalar SDE with Gaussian marginals, such as VP()")
        if not math.isfinite(float(base.lam(base.span[1]))) or not math.isfinite(float(base.lam(base.span[0]))):
            raise ValueError(
                f"got base={base!r}, where alpha or sigma is zero at an end of the span; expected both positive: a t_max "
                f"slightly below {base.span[1]:g}, or a larger t_min"
            )

    @property
    def span(self) -> tuple[float, float]:
        return self._scalar.span

    @property
    def variables(self) -> int:
        return 1

    @property
    def modes(self) -> int:
        return len(self.shape)

    def lam(self, t: Time) -> Tensor:
        return self._scalar.lam(t)

    def d_lam(self, t: Time) -> Tensor:
        t = self._times(t)
        return self._scalar.d_log_alpha(t) - self._scalar.d_log_sigma(t)

    def time(self, lam: Time) -> Tensor:
        return self._scalar.time(lam)

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        t = self._times(t)
        drift = self._of_time(self._scalar.d_log_alpha(t)) + self.damping_rate(t)
        both = 2 * (self._of_time(self._scalar.log_sigma(t)).exp() * self.spread) ** 2
        noise = both * (self._of_time(self._scalar.d_log_sigma(t)) - drift)
        return self._matrix(drift), self._matrix(noise)

    def transition(self, s: Time, t: Time) -> Tensor:
        s, t = self._times(s), self._times(t)
        base = self._of_time(self._scalar.log_alpha(s) - self._scalar.log_alpha(t))
        return self._matrix((base + self.log_damping(s) - self.log_damping(t)).exp())

    def mean_factor(self, t: Time) -> Tensor:
        t = self._times(t)
        return self._matrix((self._of_time(self._scalar.log_alpha(t)) + self.log_damping(t)).exp())

    def covariance(self, t: Time) -> Tensor:
        t = self._times(t)
        return self._matrix((self._of_time(self._scalar.log_sigma(t)).exp() * self.spread) ** 2)

    def _times(self, t: Time) -> Tensor:
        return self.check_time(t).cpu()

    def _of_time(self, values: Tensor) -> Tensor:
        return values.reshape(*values.shape, *[1] * len(self.shape))

    def _matrix(self, values: Tensor) -> Tensor:
        lead = values.shape[: values.ndim - len(self.shape)]
        return values.expand(*lead, *self.shape)[..., None, None]


@dataclass(frozen=True)
class Anisotropic(_Modal):
    r"""A scalar SDE whose noise has a given covariance C, :math:`dx = f x\, dt + g\, C^{1/2} dw`.

    Args:
        noise_covariance: C, symmetric and positive definite, shape ``(d, d)`` for events of d numbers.
        base: the scalar SDE.

    Raises:
        ValueError: for a matrix that is not symmetric, or for noise that never reaches a direction.

    Example:
        >>> sde = Anisotropic(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> z = sde.prior((50_000, 2), generator=torch.Generator().manual_seed(0))
        >>> (z.T @ z / len(z)).round(decimals=1)
        tensor([[2., 1.],
                [1., 2.]])
    """

    noise_covariance: Tensor
    base: GaussianSDE = field(default_factory=VP)

    def __post_init__(self) -> None:
        super().__post_init__()
        with torch.inference_mode(False):
            c = torch.as_tensor(self.noise_covariance, dtype=torch.float64, device="cpu").detach().clone()
        if c.ndim != 2 or c.shape[0] != c.shape[1] or not bool(torch.isfinite(c).all()) or not torch.allclose(c, c.mT):
            raise ValueError(
                f"got a covariance of shape {tuple(c.shape)}; expected a symmetric matrix (d, d) of finite numbers"
            )
        least, most = torch.linalg.eigvalsh(c)[[0, -1]].tolist()
        if not least > 1e-12 * abs(most):
            raise ValueError(
                f"got a covariance with the eigenvalue {least:.3g}, so that the noise never reaches a direction of the "
                "data; expected a positive definite one, or Subspace(vectors) for data and noise in the span of the others"
            )
        object.__setattr__(self, "noise_covariance", 0.5 * (c + c.mT))

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            values, vectors = torch.linalg.eigh(self.noise_covariance)
            return values.sqrt(), vectors.mT.contiguous()

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.noise_covariance),)

    @property
    def spread(self) -> Tensor:
        return self._decomposed[0]

    @cached_property
    def basis(self) -> Basis:
        """The eigenvectors of the covariance."""
        return Vectors(self._decomposed[1])


@dataclass(frozen=True)
class Subspace(_Modal):
    r"""A scalar SDE in a linear subspace, to which data, noise and prior are projected.

    The density of a state is the one in the subspace.

    Args:
        vectors: orthonormal vectors that span the subspace, shape ``(r, d)``.
        base: the scalar SDE.

    Raises:
        ValueError: for vectors that are not orthonormal.

    Example:
        >>> sde = Subspace(torch.full((1, 4), 0.5))  # the line of equal numbers
        >>> z = sde.prior((2, 4), generator=torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(z, z.mean(1, keepdim=True).expand(2, 4)))
        True
    """

    vectors: Tensor
    base: GaussianSDE = field(default_factory=VP)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "vectors", Vectors(self.vectors).vectors)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.vectors),)

    @cached_property
    def basis(self) -> Basis:
        """The vectors that span the subspace."""
        return Vectors(self.vectors)


@dataclass(frozen=True)
class Blurring(_Modal):
    r"""Blurring diffusion: a heat equation and a scalar SDE at once, diagonal in the cosine basis.

    The frequency k with the eigenvalue :math:`\mu_k = \sum_i (\pi k_i / n_i)^2` of the Laplacian is damped by

    .. math:: d_k = (1 - \delta)\, e^{-\mu_k b^2 / 2} + \delta, \qquad b = B \sin^2(\pi t / 2) .

    Source: Hoogeboom and Salimans, "Blurring Diffusion Models", 2023, https://arxiv.org/abs/2209.05557.

    Args:
        size: the lengths of the last axes of the event, ``(height, width)`` for images.
        blur: B, the standard deviation of the blur at t = 1, in pixels.
        floor: delta, the least damping, which keeps a trace of every frequency.
        base: the scalar SDE; the paper takes a cosine schedule.

    Raises:
        ValueError: for a size that is not positive, a negative blur, or a floor outside (0, 1].

    Example:
        >>> sde = Blurring((8, 8))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> sde.perturb(x, 0.5, torch.zeros_like(x)).std() < 0.2 * x.std()  # blurred
        tensor(True)
    """

    size: Sequence[int]
    blur: float = 20.0
    floor: float = 1e-3
    base: GaussianSDE = field(default_factory=VP)

    def __post_init__(self) -> None:
        super().__post_init__()
        size = tuple(self.size)
        if not size or not all(is_whole(n) and n >= 1 for n in size):
            raise ValueError(f"got size={self.size!r}; expected the lengths of the last axes, such as (28, 28)")
        if not 0 <= self.blur < math.inf or not 0 < self.floor <= 1:
            raise ValueError(f"got blur={self.blur} and floor={self.floor}; expected blur >= 0 and 0 < floor <= 1")
        object.__setattr__(self, "size", tuple(int(n) for n in size))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.size)

    @cached_property
    def basis(self) -> Basis:
        """The cosine transform over the axes of ``size``."""
        return Cosines(len(self.size))

    @cached_property
    def _eigenvalues(self) -> Tensor:
        found = torch.zeros(self.shape, dtype=torch.float64)
        for axis, n in enumerate(self.size):
            found = found + (math.pi * torch.arange(n, dtype=torch.float64) / n).square().reshape(
                -1, *[1] * (len(self.size) - 1 - axis)
            )
        return found

    def _faded(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return b b' and exp(-mu b^2 / 2), the rate and the factor of the heat equation."""
        unit = self._of_time(t / self.span[1])
        width = self.blur * torch.sin(0.5 * math.pi * unit) ** 2
        slope = self.blur * 0.5 * math.pi / self.span[1] * torch.sin(math.pi * unit)
        return width * slope, torch.exp(-0.5 * self._eigenvalues * width**2)

    def log_damping(self, t: Tensor) -> Tensor:
        faded = self._faded(t)[1]
        return torch.log((1 - self.floor) * faded + self.floor)

    def damping_rate(self, t: Tensor) -> Tensor:
        rate, faded = self._faded(t)
        kept = (1 - self.floor) * faded
        return -rate * self._eigenvalues * kept / (kept + self.floor)
