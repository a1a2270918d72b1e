"""Score-based generative models seen as stochastic differential equations.

Rooms that a first sample does not need are imported when they are first asked for, so that ``import scoresde`` costs little
more than ``import torch``: ``scoresde.analysis``, ``scoresde.comparison`` and so on need no import of their own.
"""

import importlib
from typing import TYPE_CHECKING, Any

from scoresde.base.version import __version__
from scoresde.sampling import Likelihood, NonFiniteError, Samples, log_likelihood, sample
from scoresde.score import ScoreModel, Shared
from scoresde.sde import (
    DDPM,
    EDM,
    NCSN,
    SDE,
    VE,
    VP,
    CosineVP,
    FunctionSDE,
    GaussianChain,
    GaussianSDE,
    GeneralSDE,
    RectifiedFlow,
    SubVP,
    discretize,
)

if TYPE_CHECKING:
    from scoresde import (
        analysis,
        comparison,
        data,
        evaluation,
        guidance,
        inverse,
        metrics,
        models,
        objectives,
        plots,
        presets,
        problems,
        sampling,
        score,
        sde,
        solvers,
        systems,
        training,
        tuning,
        weights,
    )
    from scoresde.comparison import compare
    from scoresde.training import FitResult, load, save
    from scoresde.training.fit import fit

__all__ = [
    "DDPM",
    "EDM",
    "NCSN",
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "FitResult",
    "FunctionSDE",
    "GaussianChain",
    "GaussianSDE",
    "GeneralSDE",
    "Likelihood",
    "NonFiniteError",
    "RectifiedFlow",
    "Samples",
    "ScoreModel",
    "Shared",
    "SubVP",
    "__version__",
    "analysis",
    "compare",
    "comparison",
    "data",
    "discretize",
    "evaluation",
    "fit",
    "guidance",
    "inverse",
    "load",
    "log_likelihood",
    "metrics",
    "models",
    "objectives",
    "plots",
    "presets",
    "problems",
    "sample",
    "sampling",
    "save",
    "score",
    "sde",
    "solvers",
    "systems",
    "training",
    "tuning",
    "weights",
]

_ON_USE = {"compare": "comparison", "FitResult": "training", "fit": "training", "load": "training", "save": "training"}
_ROOMS = frozenset(
    [
        "analysis",
        "comparison",
        "data",
        "evaluation",
        "guidance",
        "inverse",
        "metrics",
        "models",
        "objectives",
        "plots",
        "presets",
        "problems",
        "sampling",
        "score",
        "sde",
        "solvers",
        "systems",
        "training",
        "tuning",
        "weights",
    ]
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"scoresde.{name}")
    if name in _ON_USE:
        return getattr(importlib.import_module(f"scoresde.{_ON_USE[name]}"), name)
    raise AttributeError(f"module 'scoresde' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
