"""The records of a comparison: one for each number, with the descriptions needed to read them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Record", "Records", "Trace"]


@dataclass(frozen=True)
class Record:
    """One number: the value of ``metric`` for ``solver`` on ``problem`` within ``budget`` evaluations.

    Attributes:
        problem, solver, path, metric: names; ``solver`` is the label in figures and tables.
        package: the package that the solver is from: "scoresde", "k-diffusion", "diffusers", "torchsde".
        budget: the evaluations allowed.
        evaluations: the counted evaluations, at most the budget.
        steps: the steps that make them.
        value: the number.
        low, high: its confidence interval, equal to ``value`` where the number is exact.
        error: the reason why there is no number (``value`` is then NaN), or empty.
        sde: the name of the SDE; a problem may be compared on several.

    Example:
        >>> one = Record("ring", "ddim", "lam", 10, 10, 10, "rms", 0.1, 0.09, 0.12)
        >>> one.solver, one.value, one.package
        ('ddim', 0.1, 'scoresde')
    """

    problem: str
    solver: str
    path: str
    budget: int
    steps: int
    evaluations: int
    metric: str
    value: float
    low: float
    high: float
    package: str = "scoresde"
    error: str = ""
    sde: str = ""


@dataclass(frozen=True)
class Trace:
    """The trajectories of a few samples: states ``x``, shape ``(points, samples, *event)``, at ``times``.

    Example:
        >>> import torch
        >>> one = Trace("ring", "ddim", "lam", 2, (1.0, 0.5, 0.0), torch.zeros(3, 4, 2))
        >>> len(one.times) == len(one.x)
        True
    """

    problem: str
    solver: str
    path: str
    budget: int
    times: tuple[float, ...]
    x: Tensor
    sde: str = ""


@dataclass(frozen=True, repr=False)
class Records:
    """The records of a comparison and the descriptions needed to read them.

    Attributes:
        records: the records in the order in which they were computed.
        about: versions, seed, machine kind, command, and the descriptions of ``problems``, ``solvers`` (family, paper,
            order, evaluations per step, stochastic) and ``metrics`` (unit, direction, one sentence), each a mapping by name.
        traces: the trajectories, for problems in the plane.

    Example:
        >>> Records((Record("ring", "ddim", "lam", 10, 10, 10, "rms", 0.1, 0.1, 0.1, sde="VP"),))
        <Records: 1 number of 1 solver on 1 problem (ring), VP, by rms, within 10 evaluations>
    """

    records: tuple[Record, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()

    def select(self, **conditions: Any) -> tuple[Record, ...]:
        """Return the records whose attributes equal the conditions; a condition may be a collection of values.

        Example:
            >>> one = Record("ring", "ddim", "lam", 10, 10, 10, "rms", 0.1, 0.1, 0.1)
            >>> len(Records((one,)).select(solver=["ddim", "heun"], budget=10))
            1
        """
        wanted = {k: set(v) if isinstance(v, Iterable) and not isinstance(v, str) else {v} for k, v in conditions.items()}
        return tuple(r for r in self.records if all(getattr(r, k) in v for k, v in wanted.items()))

    def named(self, attribute: str) -> list[Any]:
        """Return the names of the problems, solvers, paths, metrics or SDEs, or the budgets, in the order of the records."""
        return list(dict.fromkeys(getattr(r, attribute) for r in self.records))

    def __repr__(self) -> str:
        budgets = sorted(self.named("budget"))
        parts = [f"{_counted(len(self.records), 'number')} of {_counted(len(self.named('solver')), 'solver')}"]
        parts[0] += f" on {_counted(len(self.named('problem')), 'problem')} ({_few(self.named('problem'))})"
        parts += [_few(sdes)] if (sdes := [sde for sde in self.named("sde") if sde]) else []
        parts += [f"by {_few(self.named('metric'))}"]
        if budgets:
            parts += [f"within {budgets[0]}{f' to {budgets[-1]}' * (len(budgets) > 1)} evaluations"]
        return f"<{type(self).__name__}: {', '.join(parts)}>"


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _few(names: Sequence[str], most: int = 4) -> str:
    return ", ".join([*names[:most], *([".."] if len(names) > most else [])]) or "none"
