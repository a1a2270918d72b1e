"""Schedulers of diffusers: their configurations, read as SDEs and chains with the prediction of the network."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.sde import VE, GaussianSDE, RectifiedFlow
from scoresde.sde.chain import DDPM, Chain
from scoresde.weights.files import WeightsError

__all__ = ["Scheduler", "process"]

_PREDICTS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
_MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Scheduler:
    """The entries of a configuration of a scheduler, with the default values of diffusers.

    Example:
        >>> Scheduler(prediction_type="v_prediction").beta_end
        0.02
    """

    _class_name: str | None = None
    num_train_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: str | None = None
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: str = "epsilon"
    variance_type: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None


def process(
    schedule: Scheduler, centered: bool = False, source: str = "scheduler"
) -> tuple[GaussianSDE | Chain, str, dict[str, Any]]:
    """Convert the configuration of a scheduler to an SDE or chain.

    Args:
        schedule: the configuration.
        centered: the network itself scales data in [0, 1] to [-1, 1]. The process returned is on [-1, 1].
        source: the name of the file, for messages.

    Returns:
        The SDE or chain, the prediction of the network, and the network's arguments ``time_scale`` and ``time_shift``.

    Raises:
        WeightsError: for schedulers, predictions and betas without an equivalent here.

    Example:
        >>> process(Scheduler(beta_schedule="linear"))[1:]
        ('eps', {})
    """
    if schedule._class_name in _FLOWS or schedule.prediction_type == "flow_prediction":
        return RectifiedFlow(), "velocity", {"time_scale": 1 / schedule.num_train_timesteps}
    if schedule._class_name == "UnCLIPScheduler":  # whose configuration does not state its betas
        schedule = replace(schedule, beta_schedule="squaredcos_cap_v2")
    if schedule._class_name == "ScoreSdeVeScheduler":
        factor = 2 if centered else 1
        low, high = factor * (schedule.sigma_min or 0.01), factor * (schedule.sigma_max or 1348.0)
        if not 0 < low < high:
            raise WeightsError(f"{source} has sigma_min={low} and sigma_max={high}; expected 0 < sigma_min < sigma_max")
        rate = math.log(high / low)
        return VE(low, high), "eps", {"time_scale": 1 / rate, "time_shift": -math.log(low / factor) / rate}
    if centered or not (schedule.trained_betas or schedule.beta_schedule):
        raise WeightsError(
            f"{source} is for a {schedule._class_name}{' of a network that centers its input' if centered else ''}; "
            "expected ScoreSdeVeScheduler, or a scheduler with betas for data in [-1, 1]"
        )
    if schedule.prediction_type not in _PREDICTS:
        raise WeightsError(
            f"{source} has prediction_type={schedule.prediction_type!r}; expected one of {', '.join(_PREDICTS)}"
        )
    chain, predicts = DDPM(_betas(schedule, source)), _PREDICTS[schedule.prediction_type]
    if not schedule.rescale_betas_zero_snr:
        return chain, predicts, {}
    if predicts == "eps":
        raise WeightsError(
            f"{source} has betas rescaled to zero terminal signal for prediction_type='epsilon', which does not determine "
            "the data where there is no signal; expected prediction_type='v_prediction' or 'sample'"
        )
    return chain.rescale_zero_terminal_snr(), predicts, {}


def _betas(schedule: Scheduler, source: str) -> Tensor:
    n, low, high, kind = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end, schedule.beta_schedule
    if not 1 <= n <= _MOST_STEPS or not 0 < low <= high < 1:
        raise WeightsError(
            f"{source} has num_train_timesteps={n}, beta_start={low} and beta_end={high}; expected 1 to {_MOST_STEPS} steps "
            "and 0 < beta_start <= beta_end < 1"
        )
    kinds: dict[str, Callable[[], Tensor]] = {
        "linear": lambda: torch.linspace(low, high, n, dtype=torch.float64),
        "scaled_linear": lambda: torch.linspace(low**0.5, high**0.5, n, dtype=torch.float64) ** 2,
        "squaredcos_cap_v2": lambda: DDPM.cosine(n).betas,
    }
    if schedule.trained_betas:
        return torch.tensor(schedule.trained_betas, dtype=torch.float64)
    if kind not in kinds:
        raise WeightsError(f"{source} has beta_schedule={kind!r}; expected one of {', '.join(kinds)}")
    return kinds[kind]()
