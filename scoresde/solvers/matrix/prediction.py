r"""Predictions on SDEs with matrix coefficients: the quantity N = p z + q m that a solver interpolates, and in which clock.

With the data prediction m, the score is :math:`-\Sigma^{-1} (z - \psi m)`, and every reverse process is

.. math:: dz = \Big[ F z + \tfrac{1 + \eta}{2}\, G G^T \Sigma^{-1} (z - \psi m) \Big] dt + \sqrt{\eta}\, G\, d\bar w .

The data prediction solves all that is linear in z exactly and interpolates m. The others solve :math:`\dot z = F z` and
interpolate :math:`N = K^T \Sigma^{-1} (z - \psi m)`, minus the score in coordinates K:

=============  =====================================================================================================
K              N
=============  =====================================================================================================
``"flow"``     :math:`K = R` with :math:`\dot R = (F + \tfrac12 G G^T \Sigma^{-1}) R`, :math:`R R^T = \Sigma`: the
               noise that is constant along the flow of a single data point (gDDIM)
``"root"``     the Cholesky factor L: the noise that networks of Langevin diffusions predict
``"score"``    the identity
=============  =====================================================================================================

For one variable they are the predictions ``Data(eta)`` and ``Noise(eta)`` of scalar SDEs.

Source: Zhang, Tao and Chen, "gDDIM: Generalized Denoising Diffusion Implicit Models", 2023,
https://arxiv.org/abs/2206.05564.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
from torch import Tensor

from scoresde.sde.matrix import Factors, MatrixSDE
from scoresde.solvers.matrix.flow import Flow, flows, root_of
from scoresde.solvers.matrix.path import MatrixPoint

__all__ = ["Interval", "MatrixData", "MatrixNoise", "MatrixPrediction", "Prepared"]

CLOCKS = ("t", "lam")
COORDINATES = ("flow", "root", "score")


@dataclass(frozen=True)
class Interval:
    """An interval u -> v of a path with what the formulas of a prediction need there.

    Attributes:
        u, v: the points at its ends.
        flow: the linear flow of the prediction over it.
        start, end: the marginals at the ends.
        turned: for coordinates that follow the flow, the factors of R at the nodes, ``(n, *modes, b, b)``.
    """

    u: MatrixPoint
    v: MatrixPoint
    flow: Flow
    start: Factors
    end: Factors
    turned: Tensor | None = None


class Prepared(NamedTuple):
    """The intervals of a path by their ends, the marginals at their ends, and R there where coordinates follow the flow."""

    intervals: dict[tuple[MatrixPoint, MatrixPoint], Interval]
    at: dict[MatrixPoint, Factors]
    turns: dict[MatrixPoint, Tensor]


@dataclass(frozen=True)
class MatrixPrediction(ABC):
    """Interface of predictions: the exact linear part of a step, and the quantity that is left to interpolate.

    Args:
        eta: the noise, 0 for the flow and 1 for the time reversal.
        clock: the variable of the interpolating polynomial, ``"t"`` or ``"lam"``.

    Raises:
        ValueError: for a negative eta or another clock.
    """

    eta: float = 0.0
    clock: str = "lam"

    def __post_init__(self) -> None:
        if not self.eta >= 0:
            raise ValueError(f"got eta={self.eta}; expected a number >= 0 (0: probability flow, 1: time reversal)")
        if self.clock not in CLOCKS:
            raise ValueError(f"got clock={self.clock!r}; expected 't' or 'lam'")

    def clock_of(self, point: MatrixPoint) -> float:
        """Return the clock at ``point``."""
        return point.t if self.clock == "t" else point.lam

    def prepared(
        self, sde: MatrixSDE, pairs: Sequence[tuple[MatrixPoint, MatrixPoint]], visited: Sequence[MatrixPoint]
    ) -> Prepared:
        """Return the intervals ``pairs``, computed together; ``visited`` are the noisy points of the path in order."""
        at = _at(sde, list({p: None for pair in pairs for p in pair}))
        found = flows(sde, pairs, self._flow_eta)
        made = {(u, v): Interval(u, v, flow, at[u], at[v]) for (u, v), flow in zip(pairs, found, strict=True)}
        return Prepared(made, at, {})

    @property
    def _flow_eta(self) -> float:
        """The noise of the linear flow that the formulas of the prediction need."""
        return self.eta

    @abstractmethod
    def mix(self, sde: MatrixSDE, at: Factors, turn: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the matrices p and q of N = p z + q m at a point with the marginal ``at``; None for N = m."""

    @abstractmethod
    def carry(self, sde: MatrixSDE, over: Interval) -> Tensor:
        """Return the factor of the state at the start in the state at the end, shape ``(*modes, b, b)``."""

    @abstractmethod
    def weights(self, sde: MatrixSDE, over: Interval, nodes: Sequence[float]) -> list[Tensor]:
        """Return the factors of N at the ``nodes``, given by their clocks, in the state at the end of the interval."""

    @abstractmethod
    def noise(self, sde: MatrixSDE, over: Interval) -> Tensor:
        """Return a root of the covariance of the noise of the interval, shape ``(*modes, b, b)``; for eta > 0."""

    def _basis(self, over: Interval, nodes: Sequence[float]) -> Tensor:
        """Return the Lagrange polynomials of ``nodes`` at the quadrature nodes, shape ``(len(nodes), n)``."""
        clocks = over.flow.times if self.clock == "t" else over.flow.lams
        rows = []
        for j, node in enumerate(nodes):
            row = torch.ones_like(clocks)
            for i, other in enumerate(nodes):
                if i != j:
                    row = row * (clocks - other) / (node - other)
            rows.append(row)
        return torch.stack(rows)

    def _integrals(self, over: Interval, nodes: Sequence[float], values: Tensor) -> list[Tensor]:
        shape = (-1, *[1] * (values.ndim - 1))
        return [over.flow.integral(row.reshape(shape) * values) for row in self._basis(over, nodes)]


def _at(sde: MatrixSDE, points: Sequence[MatrixPoint]) -> dict[MatrixPoint, Factors]:
    found = sde.factors(torch.tensor([p.t for p in points], dtype=torch.float64))
    return {p: Factors(*each) for p, each in zip(points, zip(*found, strict=True), strict=True)}


@dataclass(frozen=True)
class MatrixData(MatrixPrediction):
    """N = m, with all that is linear in the state solved exactly; eta = 1 is the SDE.

    Example:
        >>> MatrixData().mix(None, None, None), MatrixData(eta=1.0).eta  # N = m, for the SDE
        ((None, None), 1.0)
    """

    def mix(self, sde: MatrixSDE, at: Factors, turn: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def carry(self, sde: MatrixSDE, over: Interval) -> Tensor:
        return over.end.root @ over.flow.whole @ sde.whitening(over.start.root)

    def weights(self, sde: MatrixSDE, over: Interval, nodes: Sequence[float]) -> list[Tensor]:
        flow = over.flow
        values = -0.5 * (1 + self.eta) * (flow.onward @ (flow.flux @ flow.factors.signal))
        return [over.end.root @ w for w in self._integrals(over, nodes, values)]

    def noise(self, sde: MatrixSDE, over: Interval) -> Tensor:
        flow = over.flow
        return over.end.root @ root_of(-self.eta * flow.integral(flow.onward @ flow.flux @ flow.onward.mT))


@dataclass(frozen=True)
class MatrixNoise(MatrixPrediction):
    """N = K^T Sigma^-1 (z - psi m), minus the score in the coordinates K: see the module.

    Args:
        coordinates: K, ``"flow"``, ``"root"`` or ``"score"``.

    Raises:
        ValueError: for other coordinates.

    Example:
        >>> MatrixNoise().coordinates, MatrixNoise(coordinates="score").eta
        ('flow', 0.0)
    """

    coordinates: str = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.coordinates not in COORDINATES:
            raise ValueError(f"got coordinates={self.coordinates!r}; expected 'flow', 'root' or 'score'")

    @property
    def _flow_eta(self) -> float:
        return 0.0

    def prepared(
        self, sde: MatrixSDE, pairs: Sequence[tuple[MatrixPoint, MatrixPoint]], visited: Sequence[MatrixPoint]
    ) -> Prepared:
        found = super().prepared(sde, pairs, visited)
        made = found.intervals
        if self.coordinates != "flow":
            return found
        steps = list(itertools.pairwise(visited))
        turn = torch.eye(sde.variables, dtype=torch.float64)
        turns = {visited[0]: turn}
        for (_, v), flow in zip(steps, flows(sde, steps, 0.0), strict=True):
            turn = flow.whole @ turn
            turns[v] = turn
        for (u, v), over in made.items():  # stages within a step
            if v not in turns:
                turns[v] = over.flow.whole @ turns[u]
        turned = {k: replace(o, turned=o.flow.until @ turns[o.u]) for k, o in made.items()}
        return Prepared(turned, found.at, turns)

    def mix(self, sde: MatrixSDE, at: Factors, turn: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        whitening = sde.whitening(at.root)
        if self.coordinates == "score":
            p = whitening.mT @ whitening
        elif self.coordinates == "root" or turn is None:
            p = whitening
        else:
            p = cast(Tensor, torch.linalg.solve(turn, whitening))
        return p, -p @ at.psi

    def carry(self, sde: MatrixSDE, over: Interval) -> Tensor:
        return sde.transition(over.v.t, over.u.t)

    def weights(self, sde: MatrixSDE, over: Interval, nodes: Sequence[float]) -> list[Tensor]:
        flow = over.flow
        onward = sde.transition(torch.full_like(flow.times, over.v.t), flow.times)
        if self.coordinates == "score":
            tilted = flow.factors.root @ flow.flux @ flow.factors.root.mT
        elif self.coordinates == "root" or over.turned is None:
            tilted = flow.factors.root @ flow.flux
        else:
            tilted = flow.factors.root @ flow.flux @ over.turned
        return self._integrals(over, nodes, 0.5 * (1 + self.eta) * (onward @ tilted))

    def noise(self, sde: MatrixSDE, over: Interval) -> Tensor:
        flow = over.flow
        onward = sde.transition(torch.full_like(flow.times, over.v.t), flow.times) @ flow.factors.root
        return root_of(-self.eta * flow.integral(onward @ flow.flux @ onward.mT))
