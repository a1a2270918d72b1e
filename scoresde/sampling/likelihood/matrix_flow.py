r"""The probability flow under an SDE with matrix coefficients, in the coordinates of the integrator of densities.

With :math:`\Sigma = L L^T` and :math:`u = 1 / (1 + e^\lambda)` the coordinates are :math:`w = u\, R^{-1} z`, in which the
noise has the standard deviation u, as in :math:`x / (\alpha + \sigma)` for a scalar SDE. Here :math:`R = L Q` with an
orthogonal Q that turns, :math:`\dot Q = M Q`. At high noise the noise prediction of a single data point turns at the rate
:math:`\Omega` of :mod:`scoresde.solvers.matrix.flow` while nothing else happens, and at low noise the direction of
:math:`c = L^{-1} \psi` turns at a rate A. Q follows the one and the other, :math:`M = u\, \Omega + (1 - u)\, A`, so that w
is smooth in u at both ends. With :math:`c = R^{-1} \psi`, :math:`\epsilon = R^{-1} (z - \psi m)` and
:math:`B = R^{-1} G G^T R^{-T}` the flow and the rate of the log-density in :math:`\tau = \log u` are

.. math:: \frac{dw}{du} = (1 + W)\, \epsilon + \Big(c + W c - \tfrac12 \frac{dt}{d\tau} B c\Big)\, m, \qquad
          G = D - \tfrac12 \frac{dt}{d\tau}\; \nabla_z \cdot \big( G G^T \Sigma^{-1} \psi\, m \big),

with :math:`W = \tfrac{dt}{d\tau}\, Q^T (\Omega - M)\, Q` and D the number of dimensions of the state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoresde.sampling.likelihood.adams import Rates
from scoresde.sampling.likelihood.clock import Clock, Where
from scoresde.sampling.likelihood.divergence import TraceEstimate
from scoresde.sampling.likelihood.flow import Flow
from scoresde.score import MatrixModel, ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.matrix.flow import generator, whitened

__all__ = ["MatrixClock", "MatrixFlow", "Place"]


class MatrixClock(Clock):
    """The clock of an SDE with matrix coefficients, with the alpha and the sigma of rectified flow at the same lam."""

    def _where(self, tau: Tensor, t: Tensor) -> Where:
        return Where(tau, t, -torch.expm1(tau), tau.exp())


class Turns:
    """The orthogonal matrices Q in R = L Q, with Q = 1 at the least noise, between two times.

    They are computed at even steps in log t by Magnus' method of order four, and in between by cubics through two of them,
    which are made orthogonal again.
    """

    NODES = 1024

    def __init__(self, sde: MatrixSDE, t_min: float, t_max: float) -> None:
        self.sde, self.first = sde, math.log(t_min)
        self.step = h = (math.log(t_max) - self.first) / (self.NODES - 1)
        nodes = torch.linspace(self.first, math.log(t_max), self.NODES, dtype=torch.float64)
        middle, off = 0.5 * (nodes[1:] + nodes[:-1]), math.sqrt(3) / 6 * h
        one, other = self._rate((middle - off).exp()), self._rate((middle + off).exp())
        steps = torch.matrix_exp(0.5 * h * (one + other) + math.sqrt(3) / 12 * h**2 * (other @ one - one @ other))
        turns = [torch.eye(sde.variables, dtype=torch.float64)]
        for each in steps:
            turns.append(each @ turns[-1])
        self.turns = torch.stack(turns)
        self.slopes = h * self._rate(nodes.exp().clamp(max=t_max)) @ self.turns

    def _rate(self, t: Tensor) -> Tensor:
        """Return the rate of the turn in log t."""
        return t[:, None, None] * turning(self.sde, t)[1]

    def at(self, t: Tensor) -> Tensor:
        """Return Q at the times ``t``, shape ``(*times, b, b)``."""
        place = ((t.log() - self.first) / self.step).clamp(0, self.NODES - 1)
        i = place.floor().long().clamp(max=self.NODES - 2)
        s = (place - i)[..., None, None]
        low, high = self.turns[i], self.turns[i + 1]
        bend = (1 - s) * (self.slopes[i] - (high - low)) - s * (self.slopes[i + 1] - (high - low))
        found = low + s * (high - low) + s * (1 - s) * bend
        eye = torch.eye(found.shape[-1], dtype=torch.float64)
        return 0.5 * found @ (3 * eye - found.mT @ found)


def turning(sde: MatrixSDE, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return Omega at the times ``t``, and the rate M at which the coordinates turn; both ``(*times, b, b)``."""
    f, (drift, noise) = sde.factors(t), sde.rates(t)
    flux = whitened(f.root, noise)
    omega = generator(f.root, drift, flux, 0.0)
    along = f.signal / torch.linalg.vector_norm(f.signal, dim=(-2, -1), keepdim=True)
    moved = (omega - 0.5 * flux) @ along
    moved = moved - along @ (along.mT @ moved)
    following = moved @ along.mT - along @ moved.mT  # the turn of the direction of c
    u = torch.sigmoid(-sde.lam(t))[..., None, None]
    return omega, u * omega + (1 - u) * following


class Place(NamedTuple):
    """The matrices of the flow at some points, shape ``(*times, *modes, o, i)``, and the number of dimensions of a state.

    Attributes:
        psi: the factor of the data in the mean.
        root, whitening: R and its inverse.
        signal: c.
        pull: G G^T Sigma^-1 psi, the factor of m in the divergence.
        straight, along: the factors of epsilon and of m in dw/du.
        speed: dt / dtau, shape ``(*times, *modes, 1, 1)`` with modes of length 1.
        size: D.
    """

    psi: Tensor
    root: Tensor
    whitening: Tensor
    signal: Tensor
    pull: Tensor
    straight: Tensor
    along: Tensor
    speed: Tensor
    size: int


class MatrixFlow(Flow):
    """The rates of a model's flow on an SDE with matrix coefficients: see the module.

    Args:
        model, trace, conditions: as for :class:`~scoresde.sampling.likelihood.flow.Flow`.
        clock: the clock, between whose ends the flow is followed.
    """

    def __init__(self, model: ScoreModel, trace: TraceEstimate, conditions: Mapping[str, Any], clock: Clock) -> None:
        super().__init__(model, trace, conditions)
        self._turns = Turns(self.sde, clock.t_min, clock.t_max) if self.sde.variables > 1 else None

    @property
    def sde(self) -> MatrixSDE:
        """The SDE of the model."""
        return cast(MatrixSDE, cast(Any, self.model.sde))

    def place(self, where: Where, z: Tensor) -> Place:
        """Return the matrices at points, for states of the shape of ``z``."""
        sde, t, tau = self.sde, where.t.cpu(), where.tau.cpu()
        f, noise = sde.factors(t), sde.rates(t)[1]
        root, whitening, signal, turn = f.root, sde.whitening(f.root), f.signal, None
        if self._turns is not None:
            turn = self._turns.at(t)
            root, whitening, signal = root @ turn, turn.mT @ whitening, turn.mT @ signal
        pull = noise @ (whitening.mT @ signal)
        flowing = whitening @ pull  # B c
        slope = sde.d_lam(t) if sde.modes else -0.5 * (signal.mT @ flowing)[..., 0, 0] / signal.square().sum((-2, -1))
        shape = (*t.shape, *[1] * (sde.modes + 2))
        speed = (1 / (torch.expm1(tau) * slope)).reshape(shape)
        straight, along = torch.ones_like(speed), signal - 0.5 * speed * flowing
        if turn is not None:
            omega, rate = turning(sde, t)
            left = speed * (turn.mT @ (omega - rate) @ turn)
            straight, along = torch.eye(sde.variables, dtype=torch.float64) + left, along + left @ signal
        one = z[:1].detach()
        size = sde.basis.forward(one if sde.variables > 1 else one.unsqueeze(1)).numel()
        return Place(f.psi, root, whitening, signal, pull, straight, along, speed, size)

    def predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the data prediction at the states ``x`` and ``t``, and count it."""
        calls = self.model.calls if t.ndim else self.model.calls_at(float(t))
        self.evaluations += calls.forward
        return self.model.x0(x, t, **self.conditions)

    def check_gradient(self, z: Tensor, t: Tensor) -> None:
        """Refuse a network whose output carries no gradient; the data prediction has one from its part in z all the same."""
        if isinstance(self.model, MatrixModel) and self.model.predicts != "x0":
            self.evaluations += 1
            output = self.model(z.clone().requires_grad_(), t, **self.conditions)
            if not output.requires_grad:
                self._refuse_cut(torch.equal(self.model(1.01 * z + 0.01, t, **self.conditions), output))

    def rates(self, w: Tensor, where: Where, create_graph: bool) -> Rates:
        """Compute the rates, with the graph to ``w`` and all else if ``create_graph``."""
        sde, at = self.sde, self.place(where, w)
        u = where.tau.exp().cpu().reshape(at.speed.shape)
        z = sde.map(at.root / u) * w
        if not z.requires_grad:
            z = z.requires_grad_()
        m = self.predicted(z.clone(), where.t)
        if not m.requires_grad and not self._constant:
            self._check_constant(z.detach(), where.t, m)
        divergence = self.trace(sde.map(at.pull, of_state=False) * m, z, create_graph).double()
        density = at.size - 0.5 * at.speed.reshape(-1).to(divergence.device) * divergence
        eps = sde.map(at.whitening) * z - sde.map(at.signal, of_state=False) * m
        slope = sde.map(at.straight) * eps + sde.map(at.along, of_state=False) * m
        return Rates(slope, eps, density)

    def mismatch(self, latent: Tensor, end: Where, at: Place) -> Tensor:
        r"""Return an estimate of log p_T - log prior at the latents, to second order in c, shape ``(batch,)``.

        .. math:: h \cdot \tfrac12 (m(0) + m(z)) - \tfrac12 \big( \operatorname{tr} \psi\, \partial_z m + |c\, m(0)|^2 \big),
                  \qquad h = \psi^T \Sigma^{-1} z
        """
        sde = self.sde
        z = latent.clone().requires_grad_()
        m = self.predicted(z.clone(), end.t)
        spread = self.trace(sde.map(at.psi, of_state=False) * m, z, create_graph=False).double().mean(0)
        with torch.no_grad():
            at_zero = self.predicted(torch.zeros_like(latent), end.t)
            pull = sde.map(at.signal.mT @ at.whitening, to_state=False) * latent
            linear = (pull * 0.5 * (at_zero + m)).flatten(1).double().sum(1)
            size = (sde.map(at.signal, of_state=False) * at_zero).flatten(1).double().square().sum(1)
        return linear - 0.5 * (spread + size)
