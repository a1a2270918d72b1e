"""The cases on which solvers are compared: a model and what is known about its data."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.inverse import Steered
from scoresde.problems import PROBLEMS
from scoresde.score import ScoreModel
from scoresde.sde import VP, Chain, ChainSDE, GaussianSDE
from scoresde.sde import names as sdes
from scoresde.solvers import Solver

__all__ = ["Case", "Processes", "gather"]

Process = str | GaussianSDE | Chain

Processes = Process | Sequence[Process] | Mapping[str, Process]
"""An SDE, the name of one, several of either, or a mapping from labels to them."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model and what is known about its data.

    Attributes:
        model: the score model, in evaluation mode.
        event: the shape of one sample.
        problem: the distribution of the data, with at least ``sample``; ``None`` for a trained network.
        truth: samples of the data, shape ``(m, *event)``, for a model without a problem.
        n: the number of samples; by default the comparison decides.
        conditions: the values on which the network is conditioned, as for :func:`scoresde.sample`. A value per sample has an
            entry for each sample of the comparison.
        classes: the names of the classes, which reports print for the labels.

    Example:
        >>> from scoresde import EDM, problems
        >>> Case.of(problems.ring(), EDM()).event
        (2,)
    """

    model: ScoreModel
    event: tuple[int, ...]
    problem: Any = None
    truth: Tensor | None = None
    n: int | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()

    @classmethod
    def of(cls, problem: Any, sde: GaussianSDE | Chain | None = None, n: int | None = None) -> Case:
        """Return the case of a problem, or of its name with settings, on an SDE or a chain, by default VP."""
        if isinstance(problem, str):
            problem = PROBLEMS.make(problem)
        return cls(problem.model(VP() if sde is None else sde), tuple(problem.event), problem, n=n)

    @property
    def sde(self) -> GaussianSDE:
        """The SDE of the model."""
        return self.model.sde

    def on(self, solver: Solver) -> tuple[ScoreModel, Solver]:
        """Return the model that ``solver`` samples and the solver itself.

        A method for inverse problems brings its own model and its own solver.
        """
        return solver.on(self.problem, self.sde) if isinstance(solver, Steered) else (self.model, solver)

    @property
    def device(self) -> torch.device:
        """The device on which the model computes."""
        return self.model.device

    @property
    def t_max(self) -> float:
        """The time at which all runs start: the end of the SDE's time or, where alpha = 0 there, the time with lam = -5.

        Not every solver can start from alpha = 0. The end of VP lies near lam = -5 too.
        """
        end = self.sde.span[1]
        return end if math.isfinite(float(self.sde.lam(end))) else float(self.sde.time(-5.0))

    def precise(self) -> Case:
        """Return the case with the network in float64 and in evaluation mode: rounding then hides no error of a solver."""
        if next(self.model.parameters(), None) is None:
            return self
        return replace(self, model=copy.deepcopy(self.model).double().eval())


def gather(
    what: Any,
    sde: Processes | None = None,
    shape: Sequence[int] | None = None,
    truth: Tensor | None = None,
    conditions: Mapping[str, Any] | None = None,
) -> dict[tuple[str, str], Case]:
    """Return cases by the names of their problem and their SDE.

    A comparison accepts a name, a problem, a score model, a case, several of them in a list, or a mapping from names.

    Raises:
        ValueError: for an unknown name, nothing at all, a model without the shape of its samples, or an ``sde`` that is not
            the model's.

    Example:
        >>> list(gather(["ring", "grid"], ["vp", "ve"]))
        [('ring', 'VP'), ('ring', 'VE'), ('grid', 'VP'), ('grid', 'VE')]
    """
    if isinstance(what, Mapping):
        named = dict(what)
    elif isinstance(what, Iterable) and not isinstance(what, str):
        items = list(what)
        named = {_name(item): item for item in items}
        if len(named) < len(items):
            raise ValueError(f"got problems with one name, {', '.join(map(_name, items))}; expected a mapping by name")
    else:
        named = {_name(what): what}
    if not named:
        raise ValueError(f"got no problem; expected one of {', '.join(PROBLEMS)}, a problem, or a score model")
    on = None if sde is None else _processes(sde)
    found = {}
    for name, item in named.items():
        for label, case in _cases(item, on, shape, truth).items():
            found[str(name), label] = replace(case, conditions=dict(conditions)) if conditions else case
    return found


def _processes(given: Processes) -> dict[str, GaussianSDE]:
    """Return SDEs by name, at least one."""
    if isinstance(given, Mapping):
        labelled = list(given.items())
    else:
        listed = [given] if isinstance(given, str | GaussianSDE | Chain) else list(given)
        labelled = [(item if isinstance(item, str) and ":" in item else "", item) for item in listed]
    found: dict[str, GaussianSDE] = {}
    for label, item in labelled:
        made = sdes.process(item) if isinstance(item, str) else item
        if not isinstance(made, GaussianSDE | Chain):
            raise TypeError(
                f"got {type(made).__name__} for an SDE; expected a name ({', '.join(sdes.SDES)}), an SDE with Gaussian "
                "marginals, a chain, a list or a mapping of them"
            )
        name = label or _called(made)
        if name in found:
            raise ValueError(f"got two SDEs called {name!r}; expected a mapping from labels of your own to SDEs")
        found[name] = made.sde() if isinstance(made, Chain) else made
    if not found:
        raise ValueError(f"got no SDE; expected some of {', '.join(sdes.SDES)}")
    return found


def _called(sde: GaussianSDE | Chain) -> str:
    return type(sde.chain if isinstance(sde, ChainSDE) else sde).__name__


def _name(item: Any) -> str:
    if isinstance(item, str):
        return PROBLEMS.name(item) if item in PROBLEMS else item  # with settings, the whole text
    item = item.problem if isinstance(item, Case) and item.problem is not None else item
    given = getattr(item, "given", None)
    return type(item).__name__ if given is None else f"posterior of {type(given.prior).__name__}"


def _cases(
    item: Any, on: dict[str, GaussianSDE] | None, shape: Sequence[int] | None, truth: Tensor | None
) -> dict[str, Case]:
    """Return the cases of one problem or model by the name of their SDE."""
    if not isinstance(item, Case | ScoreModel):
        if not isinstance(item, str) and not all(hasattr(item, name) for name in ("model", "sample", "event")):
            raise TypeError(
                f"got a {type(item).__name__} to compare solvers on; expected the name of a problem, a problem, a "
                "ScoreModel or a Case"
            )
        return {name: Case.of(item, sde) for name, sde in (on or {"VP": VP()}).items()}
    if on is not None and any(sde != item.sde for sde in on.values()):
        raise ValueError(f"got sde={list(on.values())!r} and a model on {item.sde!r}; expected the same, or no sde")
    name = next(iter(on)) if on else _called(item.sde)
    if isinstance(item, Case):
        return {name: item}
    if shape is None and truth is None:
        raise ValueError("got a model without the shape of its samples; expected shape=(1, 28, 28), say, or truth=samples")
    event = tuple(shape) if shape is not None else tuple(truth.shape[1:])  # type: ignore[union-attr]
    return {name: Case(item, event, truth=truth)}
