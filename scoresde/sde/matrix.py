r"""SDEs with matrix coefficients, :math:`dz = F(t)\, z\, dt + G(t)\, dw`.

The state z has b variables, of which the first is the data and the others, such as velocities, start from noise. Its
marginals are Gaussian given the data,

.. math:: z_t \mid x_0 \sim N(\psi_t x_0, \Sigma_t), \qquad \psi_t = \Psi(t, 0)\, e_1, \qquad
          \dot\Sigma = F \Sigma + \Sigma F^T + G G^T,

where :math:`\Psi(t, s)` is the solution of :math:`\dot\Psi = F \Psi`. With the Cholesky factor :math:`L L^T = \Sigma` and
:math:`c = L^{-1} \psi`, the state tells as much of the data as one observation with noise of variance :math:`1 / |c|^2`.
Half the logarithm of this signal-to-noise ratio is lam: it falls, and is the lam of a scalar SDE where b = 1.

All matrices are float64, one for each mode of a basis of the event (:mod:`scoresde.sde.modes`), with the shape
``(*times, *modes, b, b)``.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.base.shape import as_time, expand
from scoresde.sde.base import SDE, Field, HasScore, ReverseSDE, Time
from scoresde.sde.modes import Basis, ModalMap

__all__ = ["Factors", "MatrixSDE"]

_NODES, _STEPS = 256, 2
"""Times in the table from which the search for a time starts, and its Newton steps."""


class Factors(NamedTuple):
    """The marginal at some times, in factors; ``b`` is the number of variables.

    Example:
        >>> from scoresde.sde import CLD
        >>> found = CLD().factors(torch.tensor([0.5], dtype=torch.float64))
        >>> found.psi.shape, bool(torch.allclose(found.root @ found.signal, found.psi))
        (torch.Size([1, 2, 1]), True)
    """

    psi: Tensor
    """The factor of the data in the mean, shape ``(*times, *modes, b, 1)``."""
    root: Tensor
    """The Cholesky factor L of the covariance, shape ``(*times, *modes, b, b)``."""
    signal: Tensor
    """The factor of the data in the whitened state, c = L^-1 psi, shape of ``psi``."""


@dataclass(frozen=True)
class MatrixSDE(SDE):
    """Interface of the SDEs with matrix coefficients: see the module.

    A subclass implements ``span``, ``variables``, ``basis``, ``rates``, ``transition``, ``mean_factor`` and ``covariance``.
    """

    # What a subclass implements --------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def variables(self) -> int:
        """The number b of variables of the state; where b > 1 states have the shape ``(batch, b, *event)``."""

    @property
    @abstractmethod
    def basis(self) -> Basis:
        """The orthonormal basis of the event, for each of whose modes there is a matrix."""

    @abstractmethod
    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return F and G G^T at the times ``t``, each of shape ``(*times, *modes, b, b)``."""

    @abstractmethod
    def transition(self, s: Time, t: Time) -> Tensor:
        """Return the factor Psi(s, t) of the state at ``t`` in the mean at ``s``; times of one shape, in any order."""

    @abstractmethod
    def mean_factor(self, t: Time) -> Tensor:
        """Return the factor psi of the data in the mean of the state, shape ``(*times, *modes, b, 1)``."""

    @abstractmethod
    def covariance(self, t: Time) -> Tensor:
        """Return the covariance of the state given the data, shape ``(*times, *modes, b, b)``."""

    # Derived ---------------------------------------------------------------------------------------------------------

    def factors(self, t: Time) -> Factors:
        """Return the marginal at the times ``t``, between the ends of the span, in factors.

        Raises:
            ValueError: so close to the data that the covariance is singular in float64.
        """
        covariance, psi = self.covariance(t), self.mean_factor(t)
        if self.variables == 1:
            root = covariance.sqrt()
            return Factors(psi, root, psi / root)
        root, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed.any()):
            raise ValueError(
                f"got a time as small as {float(torch.as_tensor(t).min()):.3g}, where the covariance of "
                f"{type(self).__name__} is singular in float64; expected times from t_min={self.span[0]:g} on"
            )
        return Factors(psi, root, torch.linalg.solve_triangular(root, psi, upper=False))

    def lam(self, t: Time) -> Tensor:
        """Return half the log signal-to-noise ratio of the data in the state, log of the norm of c, shape of ``t``.

        An SDE with several modes overrides it with one number for all.
        """
        return self._lam(self.factors(t))

    def d_lam(self, t: Time) -> Tensor:
        """Return the derivative of lam in time, which is negative, shape of ``t``."""
        t = self.check_time(t)
        return self._slope(t, self.factors(t))

    def time(self, lam: Time) -> Tensor:
        """Return the time in the span at which ``lam(t) = lam``, by Newton steps from a table; shape of ``lam``."""
        given = as_time(lam).detach().to(torch.float64)
        log_t, lams, slopes = self._table
        target = given.cpu().clamp(lams[0], lams[-1])
        i = torch.searchsorted(lams, target).clamp(1, len(lams) - 1)
        low, high, width = log_t[i - 1], log_t[i], lams[i] - lams[i - 1]
        s = (target - lams[i - 1]) / width
        # Hermite's cubic through both ends, with the slopes of log t in lam there.
        bend = (1 - s) * (slopes[i - 1] * width - (high - low)) - s * (slopes[i] * width - (high - low))
        log_time = low + s * (high - low) + s * (1 - s) * bend
        first, last = self.span
        for _ in range(_STEPS):
            t = log_time.exp().clamp(first, last)
            factors = self.factors(t)
            error = self._lam(factors) - target
            log_time = (log_time - error / (t * self._slope(t, factors))).clamp(math.log(first), math.log(last))
        return log_time.exp().clamp(first, last).to(given.device)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logarithms of times from noise to data, lam there, which rises, and the slopes of the first in the second."""
        with torch.inference_mode(False):
            first, last = self.span
            log_t = torch.linspace(math.log(last), math.log(first), _NODES, dtype=torch.float64)
            t = log_t.exp().clamp(first, last)
            factors = self.factors(t)
            return log_t, self._lam(factors), 1 / (t * self._slope(t, factors))

    @staticmethod
    def _lam(factors: Factors) -> Tensor:
        size: Tensor = factors.signal.square().sum((-2, -1)).log()
        return 0.5 * size

    def _slope(self, t: Tensor, factors: Factors) -> Tensor:
        return -0.5 * self._flux(t, factors) / factors.signal.square().sum((-2, -1))

    def _flux(self, t: Tensor, factors: Factors) -> Tensor:
        """Return c^T B c with B = L^-1 G G^T L^-T: twice the rate at which |c|^2 / 2 falls."""
        tilted = torch.linalg.solve_triangular(factors.root.mT, factors.signal, upper=True)
        flux: Tensor = (tilted.mT @ self.rates(t)[1] @ tilted)[..., 0, 0]
        return flux

    def check_time(self, t: Time) -> Tensor:
        """Return ``t`` as a float64 tensor; a Python number must be above 0 and at most ``t_max``.

        Raises:
            ValueError: for a Python number outside the time of the SDE.
        """
        if not isinstance(t, Tensor) and not 0 < t <= self.span[1]:
            raise ValueError(f"got time {t}; {type(self).__name__} has a density for 0 < t <= {self.span[1]}")
        return as_time(t).to(torch.float64)

    # States and data -------------------------------------------------------------------------------------------------

    def state_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the states of data of ``shape``, ``(batch, *event)``: with an axis of variables if b > 1."""
        return torch.Size((shape[0], self.variables, *shape[1:]) if self.variables > 1 else shape)

    def data_shape(self, shape: Sequence[int]) -> torch.Size:
        """Return the shape of the data of states of ``shape``."""
        return torch.Size((shape[0], *shape[2:]) if self.variables > 1 else shape)

    def data(self, z: Tensor) -> Tensor:
        """Return the first variable of the states ``z``, which is the data at time zero."""
        return z[:, 0] if self.variables > 1 else z

    def map(self, matrix: Tensor, *, of_state: bool = True, to_state: bool = True) -> ModalMap:
        """Return the linear map with a matrix for each mode, ``(*modes, o, i)``, or for each sample and mode.

        Args:
            matrix: float64; with a leading dimension more than ``rates`` has at one time, it is one for each sample.
            of_state, to_state: whether it takes and returns states, or data.
        """
        stacked = self.variables > 1
        return ModalMap(matrix, self.basis, (stacked and of_state, stacked and to_state), each=self._each(matrix))

    def _each(self, matrix: Tensor) -> bool:
        return matrix.ndim > 2 + self.modes

    @property
    def modes(self) -> int:
        """The number of dimensions of the modes in the shape of a matrix, 0 where all modes share it."""
        return 0

    def driven(self, z: Tensor) -> Tensor:
        """Return the last variable of the states or noise ``z``, shape of the data."""
        return z[:, -1] if self.variables > 1 else self._shown(z)

    def _shown(self, z: Tensor) -> Tensor:
        """Return ``z`` in the span of the basis."""
        one = torch.eye(1, dtype=torch.float64)
        return self.map(one) * z

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Return the state psi x0 + L eps at ``t``, for data ``x0`` and standard normal ``eps`` of the shape of the state.

        Raises:
            ValueError: for ``eps`` of another shape.
        """
        if eps.shape != self.state_shape(x0.shape):
            raise ValueError(
                f"got eps of shape {tuple(eps.shape)} for x0 of shape {tuple(x0.shape)}; expected the shape of a state of "
                f"{type(self).__name__}, {tuple(self.state_shape(x0.shape))}"
            )
        t = self.check_time(t)
        expand(t, x0)  # a clear error for a wrong shape
        f = self.factors(t)
        return self.map(f.psi, of_state=False) * x0 + self.map(f.root) * eps

    # The interface of every SDE --------------------------------------------------------------------------------------

    @property
    def prior_std(self) -> float:
        raise ValueError(
            f"{type(self).__name__} has a covariance at t_max, and no single standard deviation; expected a start from "
            "sde.prior(shape, generator=..), or the shape of the data in sample(model, shape)"
        )

    def to_data(self, t: Time) -> ModalMap:
        r"""Return the linear map :math:`\psi^T / |c|^2` from gradients in the state to changes of the data prediction.

        A potential adds its gradient g to the score, so that the data prediction m becomes :math:`m + \psi^T g / |c|^2` if
        the potential depends on the state through what it tells of the data. For one variable it is sigma^2 / alpha.
        """
        f = self.factors(self.check_time(t))
        return self.map(f.psi.mT / f.signal.square().sum(-2, keepdim=True), to_state=False)

    def score(self, z: Tensor, m: Tensor, t: Time) -> Tensor:
        """Return the score -Sigma^-1 (z - psi m) of the states ``z`` for the data prediction ``m``, shape of ``z``."""
        f = self.factors(self.check_time(t))
        whitening = self.whitening(f.root)
        pull = whitening.mT @ whitening
        return self.map(pull @ f.psi, of_state=False) * m - self.map(pull) * z

    def eps(self, z: Tensor, m: Tensor, t: Time) -> Tensor:
        """Return the noise (L^-1 (z - psi m))_b of the last variable for the data prediction ``m``, shape of the data.

        The noise of a Langevin diffusion enters this variable alone, and its score is minus this over L_bb.
        """
        f = self.factors(self.check_time(t))
        last = self.whitening(f.root)[..., -1:, :]
        return self.map(last, to_state=False) * z - self.map(f.signal[..., -1:, :], of_state=False, to_state=False) * m

    @staticmethod
    def whitening(root: Tensor) -> Tensor:
        """Return the inverse of a Cholesky factor, L^-1, which whitens the noise of a state; shape of ``root``."""
        if root.shape[-1] == 1:
            return 1 / root
        eye = torch.eye(root.shape[-1]).to(root).expand_as(root)
        inverse: Tensor = torch.linalg.solve_triangular(root, eye, upper=False)
        return inverse

    def prior(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Draw states of ``shape`` from the prior, the Gaussian with the covariance at ``t_max``."""
        eps = torch.randn(*shape, generator=generator, dtype=dtype, device=device)
        return self.map(self.factors(self.span[1]).root) * eps

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of the prior at the states ``x``, in nats, shape ``(batch,)``."""
        return self.log_normal(x, self.factors(self.span[1]).root)

    def log_normal(self, z: Tensor, root: Tensor) -> Tensor:
        """Return the log-density of N(0, L L^T) at the states ``z`` in nats, shape ``(batch,)``, float64.

        On a basis of fewer vectors than dimensions it is the density in the subspace.
        """
        u = self.basis.forward(z.to(torch.float64) if self.variables > 1 else z.to(torch.float64).unsqueeze(1))
        plain = ModalMap(self.whitening(root), _Coordinates(), (True, True), each=self._each(root))
        volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (*batch, *modes)
        lead = volume.shape[:1] if self._each(root) else volume.shape[:0]
        modes = volume.shape[len(lead) :]
        volume = volume.reshape(*(lead or (1,)), *[1] * (u.ndim - 2 - len(modes)), *modes)
        volume = volume.expand(-1, *u.shape[2:]).flatten(1).sum(1).to(u.device)
        w = (plain * u).flatten(1)
        return -0.5 * w.square().sum(1) - volume - 0.5 * w.shape[1] * math.log(2 * math.pi)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the forward drift F(t) z at the states ``x``, shape of ``x``."""
        return self.map(self.rates(self.check_time(t))[0]) * x

    def diffusion(self, x: Tensor, t: Time) -> Tensor:
        raise ValueError(
            f"got {type(self).__name__}, whose diffusion is a matrix and no factor of the noise; expected "
            "sde.rates(t)[1], the matrix G G^T"
        )

    def diffusion_divergence(self, x: Tensor, t: Time) -> float:
        return 0.0

    def reverse(self, model: HasScore | Field, eta: float = 1.0) -> ReverseSDE:
        raise ValueError(
            f"got {type(self).__name__}, whose diffusion is a matrix, for a reverse process with a diffusion for each "
            "number; expected sample(model, shape, 'em') for the reverse SDE, 'gddim' for the flow"
        )


@dataclass(frozen=True)
class _Coordinates(Basis):
    """The basis of what is in coordinates already."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, coordinates: Tensor, event: torch.Size) -> Tensor:
        return coordinates
