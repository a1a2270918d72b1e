"""The base of score models that are conditioned on an observation, and the refusal of what a method cannot carry."""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse.observation import Observation
from scoresde.score import Calls, ScoreModel, Wrapper
from scoresde.sde import GaussianSDE, MatrixSDE, Time

__all__ = [
    "Conditioned",
    "check_gaussian",
    "check_linear",
    "check_observation",
    "check_scalar",
    "check_scale",
    "noise_variance",
    "observed",
]


class Conditioned(Wrapper):
    """A score model around another one, conditioned on an observation; a subclass overrides ``x0``.

    Args:
        model: the model of the data, before the measurement.
        observation: the measurement, with its operator and its noise.

    Raises:
        TypeError: if ``model`` is not a score model or ``observation`` not an observation.
        ValueError: for a model on an SDE without Gaussian marginals.

    Example:
        >>> from scoresde import VP, inverse, problems
        >>> class Unchanged(Conditioned):
        ...     def x0(self, x, t, **conditions):
        ...         return self.model.x0(x, t, **conditions)
        >>> seen = inverse.Observation(inverse.operators.Mask([True, False]), torch.ones(1, 1), 0.1)
        >>> Unchanged(problems.ring().model(VP()), seen).calls
        Calls(forward=1, backward=0)
    """

    def __init__(self, model: ScoreModel, observation: Observation) -> None:
        super().__init__(model)
        check_observation(observation, type(self).__name__)
        sde: Any = model.sde
        if not isinstance(sde, GaussianSDE | MatrixSDE):
            raise ValueError(
                f"got a model on {type(model.sde).__name__} for {type(self).__name__}; expected an SDE with Gaussian "
                "marginals, such as VP(), because a measurement is compared with a data prediction"
            )
        self.observation = observation

    def _calls(self, backward: int) -> Calls:
        """Return the calls of a prediction of the inner model and of ``backward`` products with its Jacobian."""
        inner = self.model.calls
        return Calls(inner.forward, inner.backward + backward * (inner.forward + inner.backward))

    def _observed(self, x: Tensor, t: Time) -> Observation:
        """Return the observation of the states ``x``, which may be several copies of the batch (parallel driver)."""
        sde: Any = self.model.sde
        x = sde.data(x) if isinstance(sde, MatrixSDE) else x
        return observed(self.observation, x, copies=isinstance(t, Tensor) and t.ndim > 0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r}, {self.observation!r})"


def observed(observation: Observation, x: Tensor, copies: bool = False) -> Observation:
    """Return the observation of the states ``x``.

    Args:
        observation: one measurement for all states, or one for each.
        x: states, ``(batch, *event)``.
        copies: whether the states may be several copies of the batch, which the parallel driver stacks.

    Raises:
        ValueError: for states of another shape than those of the operator.
    """
    observation.operator.check_x(x)
    n = len(observation.y)
    if observation.batched and copies and len(x) > n and len(x) % n == 0:
        return observation.select(torch.arange(n, device=observation.y.device).repeat(len(x) // n))
    return observation


def noise_variance(observation: Observation) -> Tensor:
    """Return the variance of the noise, float64: shape ``()``, or ``(batch or 1, *measured)`` where it differs by number."""
    variance = torch.as_tensor(observation.variance, dtype=torch.float64)
    return variance[None] if variance.ndim and not observation.batched else variance


# Refusals ------------------------------------------------------------------------------------------------------------


def check_observation(observation: Any, method: str) -> None:
    """Refuse what is not an observation.

    Raises:
        TypeError: with the call that makes one.
    """
    if not isinstance(observation, Observation):
        raise TypeError(
            f"got {type(observation).__name__} for the observation of {method}; expected Observation(operator, y, sigma)"
        )


def check_linear(observation: Observation, method: str) -> None:
    """Refuse a nonlinear operator for a method that needs the adjoint.

    Raises:
        ValueError: with the methods that can carry it.
    """
    if not observation.operator.linear:
        raise ValueError(
            f"got the nonlinear operator {observation.operator!r} for {method}, which needs an adjoint; expected a linear "
            "one, or a method that can carry it: DPS, daps or smc"
        )


def check_gaussian(observation: Observation, method: str) -> None:
    """Refuse measurements with other than Gaussian noise of one standard deviation.

    Raises:
        ValueError: with the methods that can carry them.
    """
    if observation.noise != "gaussian":
        raise ValueError(
            f"got an observation with {observation.noise} noise for {method}, which needs Gaussian noise of one standard "
            "deviation; expected noise='gaussian', or a method that can carry it: DPS, PiGDM, TMPD, MMPS, DDNM, DiffPIR, "
            "daps or smc"
        )


def check_scalar(model: ScoreModel, method: str, instead: str) -> None:
    """Refuse a model on an SDE with matrix coefficients for a method that belongs to scalar ones.

    Raises:
        ValueError: with what to take ``instead``.
    """
    sde: Any = model.sde
    if isinstance(sde, MatrixSDE):
        raise ValueError(
            f"got a model on {type(sde).__name__}, whose coefficients are matrices, for {method}, whose step is that of a "
            f"scalar SDE; expected {instead}"
        )


def check_scale(name: str, value: float) -> float:
    """Return ``value`` if it is a positive, finite number.

    Raises:
        ValueError: for any other.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
        raise ValueError(f"got {name}={value!r}; expected a positive number")
    return float(value)
