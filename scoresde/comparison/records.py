"""What a comparison leaves behind: one record per number, and what it needs to be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Record", "Records", "Trace"]


@dataclass(frozen=True)
class Record:
    """One number: what ``metric`` says of ``solver`` on ``problem`` within ``budget`` evaluations.

    Attributes:
        problem, solver, path, metric: by name; ``solver`` is the label it is drawn under.
        package: whose solver it is: "scoresde", "k-diffusion", "diffusers", "torchsde".
        budget: the evaluations allowed; ``evaluations``: those counted, at most the budget; ``steps``: the steps they make.
        value: the number; ``low``, ``high``: its confidence interval, equal to ``value`` where the number is exact.
        error: why there is no number (``value`` is then NaN), or empty.
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


@dataclass(frozen=True)
class Trace:
    """The states of a few samples along the path, for a picture: ``x``, ``(points, samples, *event)``, at ``times``."""

    problem: str
    solver: str
    path: str
    budget: int
    times: tuple[float, ...]
    x: Tensor


@dataclass(frozen=True)
class Records:
    """The numbers of a comparison, and what it takes to read them.

    Attributes:
        records: in the order in which they were computed.
        about: versions, seed, machine kind, command, and the descriptions of ``problems``, ``solvers`` (family, paper,
            order, evaluations per step, stochastic) and ``metrics`` (unit, direction, one sentence), each a mapping by name.
        traces: of problems in the plane.
    """

    records: tuple[Record, ...]
    about: Mapping[str, Any] = field(default_factory=dict)
    traces: tuple[Trace, ...] = ()

    def select(self, **conditions: Any) -> tuple[Record, ...]:
        """The records whose attributes equal the conditions; a condition may be a collection of values.

        Example:
            >>> one = Record("ring", "ddim", "lam", 10, 10, 10, "rms", 0.1, 0.1, 0.1)
            >>> len(Records((one,)).select(solver=["ddim", "heun"], budget=10))
            1
        """
        wanted = {k: set(v) if isinstance(v, Iterable) and not isinstance(v, str) else {v} for k, v in conditions.items()}
        return tuple(r for r in self.records if all(getattr(r, k) in v for k, v in wanted.items()))
