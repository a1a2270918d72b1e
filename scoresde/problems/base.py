r"""The interface of analytic problems: a density, a score and predictions at every time, from one function.

The noised data are :math:`x = \alpha x_0 + \sigma \epsilon`. Given alpha and sigma, a distribution computes the log-density
of ``x``, its gradient and :math:`E[x_0 \mid x]`. The other predictions follow without a division by alpha or sigma, so they
are accurate at both ends of time:

.. math:: E[\epsilon \mid x] = -\sigma \nabla \log p(x), \qquad
          E[v \mid x] = \alpha E[\epsilon \mid x] - \sigma E[x_0 \mid x].

States have shape ``(batch, *event)``, times ``()`` or ``(batch,)``.
"""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from scoresde.base.shape import as_time, check_batch, expand
from scoresde.problems.conditioning import Given
from scoresde.problems.matrix import ExactMatrixModel
from scoresde.score import DataMoments, ScoreModel
from scoresde.sde import Basis, GaussianSDE, MatrixSDE, Time
from scoresde.sde.chain import Chain

__all__ = ["ExactModel", "Posterior", "Problem"]

LARGEST_FULL = 1024
"""The largest number of dimensions in which an exact model takes the eigenvectors of the covariance."""

T = TypeVar("T", bound=tuple[Tensor | None, ...])


class Posterior(NamedTuple):
    """The log-density of noised data ``x`` of shape ``(batch, d)``, its gradient, and the posterior mean of the data.

    Example:
        >>> from scoresde.problems import Gaussian
        >>> x, one = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> found = Gaussian([0.0, 0.0], 1.0).posterior_at(x, one, one)
        >>> found.x0.tolist(), found.score.tolist()
        ([[0.5, 0.5]], [[-0.5, -0.5]])
    """

    log_prob: Tensor
    """The log-density at ``x``, shape ``(batch,)``."""
    score: Tensor
    """The gradient of the log-density, shape ``(batch, d)``."""
    x0: Tensor
    """The mean of the data given ``x``, shape ``(batch, d)``."""


class Problem(ABC, Generic[T]):
    """Interface of the distributions whose score is known exactly under every SDE with Gaussian marginals.

    A subclass is a frozen dataclass whose fields are its parameters, which receive no gradient. It implements ``event``,
    ``sample``, ``mean``, ``covariance`` and ``_posterior``. Results have the dtype and device of ``x`` and are
    differentiable in ``x`` and ``t``.
    """

    given: Given | None = None
    """Of a posterior, the prior, the measurement and the evidence; None for other problems."""

    _exact: T  # the parameters as _posterior needs them, on the host
    _cache: dict[tuple[torch.dtype | None, torch.device], T]  # copies that earlier calls needed

    def _store(self, tables: T, **values: Any) -> None:
        for name, value in {**values, "_exact": tables, "_cache": {}}.items():
            object.__setattr__(self, name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # copies are no part of the distribution

    # What a distribution implements ----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def event(self) -> torch.Size:
        """The shape of one sample."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """The mean of the data, shape ``event``, float64; raises a ValueError if it does not exist."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """The covariance of the flattened data, shape ``(d, d)``, float64; raises a ValueError if it does not exist."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` independent samples, shape ``(n, *event)``, in float64 on the device of ``generator``.

        Args:
            n: the number of samples.
            generator: the source of the random numbers.
            dtype: the dtype to which the samples are rounded; by default PyTorch's default dtype.
        """

    @abstractmethod
    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Return the posterior at ``x`` for given alpha and sigma.

        Args:
            x: noised data, shape ``(batch, d)``, any dtype.
            alpha, sigma: scales of shape ``(batch or 1, 1)``, float64.
        """

    @property
    def _singular(self) -> bool:
        """Whether the data have no density before noise is added."""
        return False

    # What follows ----------------------------------------------------------------------------------------------------

    def log_prob(self, x: Tensor, sde: GaussianSDE | None = None, t: Time | None = None) -> Tensor:
        """Return the log-density of the data at ``x`` or, at a time ``t``, of the noised data; in nats, shape ``(batch,)``.

        Raises:
            ValueError: if only one of ``sde`` and ``t`` is given, or the data have no density.

        Example:
            >>> import math
            >>> from scoresde.problems import Gaussian
            >>> x = torch.zeros(1, 1, dtype=torch.float64)
            >>> bool(Gaussian([0.0], 1.0).log_prob(x).exp() == 1 / math.sqrt(2 * math.pi))
            True
        """
        if (sde is None) != (t is None):
            raise ValueError(f"got sde={sde!r} and t={t!r}; expected both (the noised data) or neither (the data)")
        if sde is not None and t is not None:
            return self._at(x, sde, t)[0].log_prob.to(x.dtype)
        if self._singular:
            raise ValueError(
                "the data have no density, because a covariance is singular; give an sde and a time t with sigma > 0"
            )
        one = torch.ones(1, 1, dtype=torch.float64, device=x.device)
        return self._posterior(self._flat(x), one, 0 * one).log_prob.to(x.dtype)

    def score(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        r"""Return the score :math:`\nabla_x \log p_t(x)`, shape of ``x``.

        Example:
            >>> from scoresde import VP
            >>> from scoresde.problems import Gaussian
            >>> x = torch.ones(1, 2, dtype=torch.float64)
            >>> bool(torch.allclose(Gaussian([0.0, 0.0], 1.0).score(x, VP(), 0.3), -x))
            True
        """
        return _like(self._at(x, sde, t)[0].score, x)

    def eps(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        """Return the noise prediction E[eps | x_t = x], shape of ``x``."""
        at, _, sigma = self._at(x, sde, t)
        return _like(-sigma.to(at.score) * at.score, x)

    def x0(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        """Return the data prediction E[x_0 | x_t = x], shape of ``x``."""
        return _like(self._at(x, sde, t)[0].x0, x)

    def v(self, x: Tensor, sde: GaussianSDE, t: Time) -> Tensor:
        """Return the v-prediction alpha E[eps | x_t = x] - sigma E[x_0 | x_t = x], shape of ``x``."""
        at, alpha, sigma = self._at(x, sde, t)
        return _like(-sigma.to(at.score) * (alpha.to(at.score) * at.score + at.x0), x)

    def model(self, sde: GaussianSDE | Chain | MatrixSDE) -> ScoreModel:
        """Return the exact score model of these data under ``sde``.

        Each prediction is computed directly, without cancellation at either end of time. On an SDE with matrix coefficients
        it is an :class:`ExactMatrixModel`.

        Example:
            >>> from scoresde import VP, problems
            >>> problem, x = problems.ring(), torch.ones(1, 2, dtype=torch.float64)
            >>> model = problem.model(VP())
            >>> bool(torch.allclose(model.score(x, 0.5), problem.score(x, VP(), 0.5)))
            True
        """
        if isinstance(sde, MatrixSDE):
            return ExactMatrixModel(self, sde)
        return ExactModel(self, sde)

    def posterior(self, operator: Any, y: Any, sigma: float) -> Problem[Any]:
        r"""Return the distribution of the data given the measurement :math:`y = A(x) + \sigma \epsilon`, a problem again.

        It has an exact density, score and sampling. Its attribute ``given`` has the prior, the measurement and log p(y).

        Args:
            operator: A, a linear operator of :mod:`scoresde.inverse.operators` or a matrix, ``(measurements, d)``. An
                :class:`Empirical` distribution on points takes any function of a batch of data.
            y: one measurement.
            sigma: the standard deviation of its noise, at least 0.

        Raises:
            TypeError: for something else than an operator.
            ValueError: for a distribution without a posterior in closed form, an operator that is not linear, a measurement
                of another shape or, with sigma = 0, one that the data cannot give.

        Example:
            >>> from scoresde.problems import Gaussian
            >>> posterior = Gaussian([0.0, 0.0], 1.0).posterior([[1.0, 0.0]], [2.0], sigma=1.0)
            >>> posterior.mean, posterior.covariance.diagonal()
            (tensor([1., 0.], dtype=torch.float64), tensor([0.5000, 1.0000], dtype=torch.float64))
        """
        raise ValueError(
            f"got {self!r}, which has no posterior in closed form; expected a Gaussian, GaussianMixture, LowRankMixture or "
            "Empirical distribution"
        )

    def fingerprint(self) -> str:
        """Return a hash of the kind and the parameters, which is equal for equal problems in every process.

        Example:
            >>> from scoresde import problems
            >>> problems.ring().fingerprint() == problems.ring(8).fingerprint() != problems.ring(9).fingerprint()
            True
        """
        digest = hashlib.sha256(type(self).__name__.encode())
        for f in fields(self):  # type: ignore[arg-type]
            if not f.name.startswith("_"):
                value = getattr(self, f.name)
                if isinstance(value, Tensor):
                    digest.update(f"{f.name} {value.dtype} {tuple(value.shape)}".encode())
                    digest.update(value.contiguous().numpy().tobytes())
                else:
                    digest.update(f"{f.name} {value!r}".encode())
        return digest.hexdigest()

    def posterior_at(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Return the posterior given noised data ``x``, ``(batch, *event)``, for scales of shape ``(batch or 1, 1)``."""
        return self._posterior(self._flat(x), alpha, sigma)

    def posterior_of_modes(self, basis: Basis, u: Tensor, alpha: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-density of noised coordinates and the mean of the coordinates of the data given them.

        Args:
            basis: the orthonormal basis of the coordinates.
            u: noised coordinates, shape ``(batch, r)``, float64.
            alpha, variance: the scale of the data and the variance of the noise of each, shape ``(batch or 1, r)``.

        Raises:
            ValueError: for a distribution that is no mixture of Gaussians.
        """
        raise ValueError(
            f"got {self!r} on an SDE with a schedule for each mode; expected a Gaussian or a GaussianMixture, whose "
            "posterior is known there"
        )

    # Parts -----------------------------------------------------------------------------------------------------------

    def _tables(self, device: torch.device, dtype: torch.dtype | None = None) -> T:
        """Return the parameters on ``device``, in their own dtypes or in ``dtype``."""
        if device.type == "cpu" and dtype is None:
            return self._exact
        if (dtype, device) not in self._cache:
            # Normal tensors even under inference mode, so that later calls may save them for a gradient.
            with torch.inference_mode(False):
                moved = (None if v is None else v.to(device=device, dtype=dtype or v.dtype) for v in self._exact)
                self._cache[dtype, device] = type(self._exact)(*moved)  # type: ignore[arg-type]
        return self._cache[dtype, device]

    def _flat(self, x: Tensor) -> Tensor:
        if check_batch(x).shape[1:] != self.event:
            raise ValueError(f"got x of shape {tuple(x.shape)}; expected {('batch', *self.event)}, the samples of {self!r}")
        return x.flatten(1)

    def _at(self, x: Tensor, sde: GaussianSDE, t: Time) -> tuple[Posterior, Tensor, Tensor]:
        """Return the posterior at ``x`` and ``t``, alpha and sigma."""
        flat = self._flat(x)
        if isinstance(t, Tensor):  # Python numbers stay what they are, because the SDE checks their range
            t = t.to(torch.float64)
        expand(as_time(t), x)  # a clear error for a wrong shape
        alpha, sigma = (c.to(device=x.device).reshape(-1, 1) for c in (sde.alpha(t), sde.sigma(t)))
        return self._posterior(flat, alpha, sigma), alpha, sigma


class ExactModel(ScoreModel):
    """The exact score model of a problem, which has no network.

    Args:
        problem: the distribution of the data.
        sde: the forward SDE or chain.
    """

    def __init__(self, problem: Problem[Any], sde: GaussianSDE | Chain) -> None:
        super().__init__(None, sde, "v")
        self.problem = problem

    @functools.cached_property
    def moments(self) -> DataMoments | None:  # type: ignore[override]
        """The moments of the problem; ``None`` where it has none, or more than 1024 dimensions.

        Where they exceed the noise at ``t_max``, as those of a truncated Cauchy distribution do, they tell nothing of the
        bulk of the data, and are left out.
        """
        if self.problem.event.numel() > LARGEST_FULL or not isinstance(self.sde, GaussianSDE):
            return None
        try:
            found = DataMoments.from_covariance(self.problem.mean, self.problem.covariance)
        except ValueError:
            return None
        end = self.sde.span[1]
        return (
            found if float(self.sde.alpha(end)) * float(found.variances.max()) ** 0.5 < float(self.sde.sigma(end)) else None
        )

    def x0(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the data prediction E[x_0 | x_t = x], shape of ``x``."""
        return self.problem.x0(x, self.sde, t)

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the noise prediction E[eps | x_t = x], shape of ``x``."""
        return self.problem.eps(x, self.sde, t)

    def score(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the score of the noised data, shape of ``x``."""
        return self.problem.score(x, self.sde, t)

    def v(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the v-prediction alpha eps - sigma x0, shape of ``x``."""
        return self.problem.v(x, self.sde, t)

    def forward(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the v-prediction, which stands for the output of a network here; shape of ``x``."""
        return self.problem.v(x, self.sde, t)

    def __repr__(self) -> str:
        return f"{self.problem!r}.model({self.sde!r})"


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(x.shape).to(x.dtype)


def working_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of ``x``, or float32 where that is less precise."""
    return torch.promote_types(x.dtype, torch.float32)


def parameter(values: Any, name: str, dtype: torch.dtype | None = torch.float64) -> Tensor:
    """Return a copy of ``values`` on the host, in ``dtype`` or in its own, and refuse values that are not finite."""
    with torch.inference_mode(False):
        tensor = torch.as_tensor(values, dtype=dtype, device="cpu").detach().clone()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"got {name} with values that are not finite; expected finite numbers")
    return tensor


def normalised(weights: Any, components: int) -> Tensor:
    """Return the weights of ``components`` scaled to sum to one; equal weights for ``None``."""
    w = torch.ones(components, dtype=torch.float64) if weights is None else parameter(weights, "weights")
    if w.shape != (components,) or bool((w < 0).any()) or not w.sum() > 0:
        raise ValueError(
            f"got weights {w.tolist()} for {components} components; expected one non-negative number each, not all zero"
        )
    return w / w.sum()


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard normal numbers in float64 on the device of ``generator``."""
    return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)


def draw(log_weights: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw ``n`` indices with probabilities exp(``log_weights``), shape ``(n,)``."""
    return torch.multinomial(log_weights.exp(), n, replacement=True, generator=generator)
