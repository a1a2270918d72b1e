r"""The mean and the covariance of the data, and the Gaussian with these moments under every SDE with Gaussian marginals.

If the data have the mean :math:`\mu` and the covariance :math:`C = U \operatorname{diag}(e)\, U^T`, the noised data
:math:`x = \alpha x_0 + \sigma \epsilon` have the mean :math:`\alpha \mu` and the covariance
:math:`\alpha^2 C + \sigma^2 I`, whose eigenvectors are those of C at every time. The Gaussian with these moments therefore
has a density, a data prediction and a probability flow in closed form:

.. math:: E[x_0 \mid x] = \mu + U \frac{\alpha e}{\alpha^2 e + \sigma^2}\, U^T (x - \alpha \mu)

.. math:: x_t - \alpha_t \mu = U \sqrt{\frac{\alpha_t^2 e + \sigma_t^2}{\alpha_s^2 e + \sigma_s^2}}\;
          U^T (x_s - \alpha_s \mu)

At high noise the data are close to this Gaussian, whatever they are: the first cumulant in which they differ is the third.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import as_time, check_batch
from scoresde.sde import GaussianSDE, Time

__all__ = ["DataMoments"]

LARGEST_FULL = 1024
"""The largest number of dimensions for which ``DataMoments.of`` takes the full covariance by default."""


@dataclass(frozen=True, eq=False, repr=False)
class DataMoments:
    r"""The mean and the covariance of data, in a basis where the covariance is diagonal.

    Args:
        mean: shape ``event``, float64.
        variances: the eigenvalues e of the covariance, shape ``(r,)``: the variances along the columns of ``basis``. With
            ``basis="fourier"`` they have the shape ``event`` and belong to the frequencies.
        basis: orthonormal columns, shape ``(d, r)``; ``None`` for the coordinate axes, with r = d; ``"fourier"`` for the
            orthonormal Fourier basis of the last dimensions of an event, all but the first (channels).
        rest: the variance in every direction orthogonal to the columns of ``basis``, if r < d.

    Raises:
        ValueError: for shapes that do not fit each other, and variances that are negative or not finite.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.gaussian(2)
        >>> moments = DataMoments.from_covariance(problem.mean, problem.covariance)
        >>> x = torch.ones(1, 2, dtype=torch.float64)
        >>> bool(torch.allclose(moments.log_prob(x, VP(), 0.5), problem.log_prob(x, VP(), 0.5)))
        True
    """

    mean: Tensor
    variances: Tensor
    basis: Tensor | str | None = None
    rest: float = 0.0

    def __post_init__(self) -> None:
        d, shape = self.mean.numel(), tuple(self.variances.shape)
        if isinstance(self.basis, str):
            fits = self.basis == "fourier" and self.mean.ndim > 1 and self.variances.shape == self.mean.shape
        else:
            fits = shape == ((d,) if self.basis is None else (self.basis.shape[1],))
            fits = fits and (self.basis is None or (len(self.basis) == d >= shape[0]))
        if not fits:
            found = self.basis if isinstance(self.basis, str | None) else tuple(self.basis.shape)
            raise ValueError(
                f"got a mean of shape {tuple(self.mean.shape)}, variances of shape {shape} and basis {found}; expected "
                f"{d} variances along the axes, r variances and a basis of shape ({d}, r), or basis='fourier' with the "
                "variances in the shape of an event (channels, ..)"
            )
        for value in (self.mean, self.variances, torch.tensor(self.rest)):
            if not bool(torch.isfinite(value).all()):
                raise ValueError("got moments that are not finite; expected data with a mean and a covariance")
        if bool((self.variances < 0).any()) or self.rest < 0:
            raise ValueError(f"got a variance of {min(float(self.variances.min()), self.rest):.6g}; expected none below 0")

    @classmethod
    def of(cls, data: Tensor, kind: str = "auto", rank: int = 64) -> DataMoments:
        """Measure the moments of ``data`` of shape ``(n, *event)``.

        Args:
            data: at least two samples.
            kind: ``"full"`` takes the whole covariance. ``"low-rank"`` takes its ``rank`` largest eigenvalues, and the mean
                of the others in all other directions. ``"diagonal"`` takes the variance of each coordinate. ``"fourier"``
                takes the variance of each frequency, for images (channels, height, width) whose statistics do not change
                under shifts. ``"auto"`` is full up to 1024 dimensions if there are at least twice as many samples, and
                low-rank otherwise.
            rank: the number of eigenvalues of the low-rank covariance.

        Raises:
            ValueError: for another kind, fewer than two samples, and data that are not finite.

        Example:
            >>> data = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 1.0])
            >>> DataMoments.of(data, "low-rank", rank=1)
            DataMoments(event=(3,), rank=1)
        """
        x = check_batch(data).detach().to(device="cpu", dtype=torch.float64)
        if len(x) < 2 or kind not in ("auto", "full", "low-rank", "diagonal", "fourier"):
            raise ValueError(
                f"got {len(x)} samples and kind={kind!r}; expected at least two samples, and 'auto', 'full', 'low-rank', "
                "'diagonal' or 'fourier'"
            )
        n, d = len(x), x[0].numel()
        mean = x.mean(0)
        centred = (x - mean).flatten(1)
        if kind == "fourier":
            if x.ndim < 3:
                raise ValueError(f"got data of shape {tuple(x.shape)} for kind='fourier'; expected (n, channels, *size)")
            waves = torch.fft.fftn(x - mean, dim=tuple(range(2, x.ndim)), norm="ortho")
            return cls(mean, waves.abs().square().sum(0) / (n - 1), "fourier")
        if kind == "diagonal":
            return cls(mean, centred.square().sum(0) / (n - 1))
        if kind == "full" or (kind == "auto" and d <= LARGEST_FULL and n >= 2 * d):
            return cls.from_covariance(mean, centred.T @ centred / (n - 1))
        rank = min(whole("rank", rank, 1), d, n - 1)
        _, lengths, directions = torch.linalg.svd(centred, full_matrices=False)
        variances = lengths.square() / (n - 1)
        rest = float(variances[rank:].sum()) / (d - rank) if rank < d else 0.0
        return cls(mean, variances[:rank], directions[:rank].T.contiguous(), rest)

    @classmethod
    def from_covariance(cls, mean: Tensor, covariance: Tensor) -> DataMoments:
        """Return the moments with a mean of shape ``event`` and the covariance of the flattened data, shape ``(d, d)``."""
        variances, basis = torch.linalg.eigh(covariance.to(torch.float64))
        return cls(mean.to(torch.float64), variances.clamp(min=0), basis)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the moments as tensors by name, for a file."""
        fourier = isinstance(self.basis, str)
        found = {"mean": self.mean, "fourier" if fourier else "variances": self.variances}
        found["rest"] = torch.tensor([self.rest], dtype=torch.float64)
        return {**found, "basis": self.basis} if isinstance(self.basis, Tensor) else found

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> DataMoments:
        """Return the moments from the tensors made by :meth:`to_tensors`.

        Raises:
            ValueError: for other tensors.

        Example:
            >>> moments = DataMoments(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
            >>> DataMoments.from_tensors(moments.to_tensors())
            DataMoments(event=(3,), basis='axes')
        """
        kind = "fourier" if "fourier" in tensors else "variances"
        given = {name: value.to(torch.float64) for name, value in tensors.items()}
        if not {"mean", kind, "rest"} <= given.keys() or given["rest"].numel() != 1:
            raise ValueError(
                f"got tensors {', '.join(sorted(tensors))} for moments; expected mean, rest, and variances or fourier"
            )
        basis = "fourier" if kind == "fourier" else given.get("basis")
        return cls(given["mean"], given[kind], basis, float(given["rest"]))

    def __repr__(self) -> str:
        kind = f"rank={len(self.variances)}" if isinstance(self.basis, Tensor) else f"basis={self.basis or 'axes'!r}"
        return f"{type(self).__name__}(event={tuple(self.mean.shape)}, {kind})"

    @property
    def scale(self) -> float:
        """The root mean square standard deviation of a coordinate."""
        return math.sqrt(float(self.trace(lambda e: e)) / self.mean.numel())

    # The covariance --------------------------------------------------------------------------------------------------

    def quadratic(self, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        r"""Return :math:`y^T f(C)\, y` for each row of ``y``, shape ``(batch, *event)``, in float64.

        Args:
            function: f of the eigenvalues, elementwise; the result may have a batch dimension in front.
            y: vectors of the shape of an event.
        """
        squares, rest = self._split(y)
        value = (function(self.variances.to(y.device)) * squares).flatten(1).sum(1)
        return value if rest is None else value + function(self._rest(y))[..., 0] * rest

    def trace(self, function: Callable[[Tensor], Tensor], device: torch.device | None = None) -> Tensor:
        """Return the trace of f(C), shape ``()`` or ``(batch,)`` where the function adds a batch dimension."""
        value = function(self.variances.to(device).flatten()).sum(-1)
        if not (others := self.mean.numel() - self.variances.numel()):
            return value
        return value + others * function(torch.tensor([self.rest], dtype=torch.float64, device=device))[..., 0]

    def apply(self, function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
        """Return f(C) y for each row of ``y``, shape ``(batch, *event)``, in float64."""
        y = y.to(torch.float64)
        factors = function(self.variances.to(y.device))
        if self.basis is None:
            return (factors * y.flatten(1)).reshape(y.shape)
        if isinstance(self.basis, str):
            dims = tuple(range(2, y.ndim))
            filtered: Tensor = torch.fft.ifftn(factors * torch.fft.fftn(y, dim=dims, norm="ortho"), dim=dims, norm="ortho")
            return filtered.real
        basis, flat = self.basis.to(y.device), y.flatten(1)
        along = flat @ basis
        if basis.shape[0] == basis.shape[1]:
            return ((factors * along) @ basis.T).reshape(y.shape)
        rest = function(self._rest(y))
        return (((factors - rest) * along) @ basis.T + rest * flat).reshape(y.shape)

    def _rest(self, y: Tensor) -> Tensor:
        return torch.tensor([self.rest], dtype=torch.float64, device=y.device)

    def _split(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the squares along the basis, and the squared length of what is orthogonal to it, shape ``(batch,)``."""
        y = y.to(torch.float64)
        if self.basis is None:
            return y.flatten(1).square(), None
        if isinstance(self.basis, str):
            return torch.fft.fftn(y, dim=tuple(range(2, y.ndim)), norm="ortho").abs().square(), None
        flat, basis = y.flatten(1), self.basis.to(y.device)
        squares = (flat @ basis).square()
        return squares, None if basis.shape[1] == basis.shape[0] else flat.square().sum(1) - squares.sum(1)

    # The Gaussian with these moments ---------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        """Return the log-density of the noised Gaussian at ``x``, in nats, shape ``(batch,)``, float64."""
        alpha, sigma, y = self._centred(x, sde, t)

        def variance(e: Tensor) -> Tensor:
            return _of(alpha, e) ** 2 * e + _of(sigma, e) ** 2

        energy = self.quadratic(lambda e: 1 / variance(e), y)
        log_det = self.trace(lambda e: variance(e).log(), x.device)
        return -0.5 * (energy + log_det + self.mean.numel() * math.log(2 * math.pi))

    def x0(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        """Return the data prediction E[x_0 | x_t = x] of the Gaussian, shape of ``x``."""
        alpha, sigma, y = self._centred(x, sde, t)

        def gain(e: Tensor) -> Tensor:
            a, s = _of(alpha, e), _of(sigma, e)
            return a * e / (a**2 * e + s**2)

        return (self.mean.to(x.device) + self.apply(gain, y)).to(x.dtype)

    def flow(self, x: Tensor, sde: GaussianSDE, s: Time, t: Time) -> Tensor:
        """Follow the probability flow of the Gaussian from time ``s`` to time ``t`` in closed form, shape of ``x``.

        Example:
            >>> from scoresde import VP
            >>> moments = DataMoments(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
            >>> moments.flow(torch.ones(1, 2), VP(), 1.0, 0.5)  # standard normal data stay where they are
            tensor([[1., 1.]])
        """
        alpha, sigma, y = self._centred(x, sde, s)
        to_alpha, to_sigma = (c(as_time(t).to(torch.float64)).to(x.device) for c in (sde.alpha, sde.sigma))

        def stretch(e: Tensor) -> Tensor:
            after = _of(to_alpha, e) ** 2 * e + _of(to_sigma, e) ** 2
            return (after / (_of(alpha, e) ** 2 * e + _of(sigma, e) ** 2)).sqrt()

        mean = self.mean.to(x.device)
        return (_of(to_alpha, mean) * mean + self.apply(stretch, y)).to(x.dtype)

    def _centred(self, x: Tensor, sde: GaussianSDE, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        """Return alpha and sigma at ``t``, shapes ``()`` or ``(batch,)``, and x - alpha mean in float64."""
        if check_batch(x).shape[1:] != self.mean.shape:
            raise ValueError(f"got x of shape {tuple(x.shape)}; expected {('batch', *self.mean.shape)}, for {self!r}")
        t = as_time(t).to(torch.float64)
        alpha, sigma = (c(t).to(x.device) for c in (sde.alpha, sde.sigma))
        mean = self.mean.to(x.device)
        return alpha, sigma, x.to(torch.float64) - _of(alpha, mean) * mean


def _of(c: Tensor, like: Any) -> Tensor:
    """Reshape one coefficient, or one per sample, so that it broadcasts against ``like`` without its batch dimension."""
    return c if c.ndim == 0 else c.reshape(-1, *[1] * like.ndim)
