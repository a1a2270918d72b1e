"""What a comparison leaves behind: one record per number, and what it needs to be read."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["Comparison", "Record", "Trace"]

FILE = "comparison.json"


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
class Comparison:
    """What :func:`scoresde.compare` returns.

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
            >>> len(Comparison((one,)).select(solver=["ddim", "heun"], budget=10))
            1
        """
        wanted = {k: set(v) if isinstance(v, Iterable) and not isinstance(v, str) else {v} for k, v in conditions.items()}
        return tuple(r for r in self.records if all(getattr(r, k) in v for k, v in wanted.items()))

    def table(self, problem: str | Iterable[str] | None = None, metric: str | Iterable[str] | None = None) -> str:
        """The numbers as Markdown: see :func:`scoresde.compare.tables.markdown`."""
        from scoresde.compare.tables import markdown

        return markdown(self, problem, metric)

    def report(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write charts, tables and a page to ``folder`` and return their paths: :func:`scoresde.compare.report.write`."""
        from scoresde.compare.report import write

        return list(write(self, folder))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``comparison.json``, which holds all of it, to ``folder``.

        Example:
            >>> import tempfile
            >>> one = Comparison((Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.09, 0.2),), {"seed": 0})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Comparison.load(one.save(folder)) == one
            True
        """
        from scoresde._files import replacing
        from scoresde.compare.tables import to_json

        path = Path(folder) / FILE
        with replacing(path) as temporary:
            temporary.write_text(to_json(self), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read what :meth:`save` wrote: the file, or the folder it is in.

        Raises:
            ValueError: for a file that is cut short, or holds something else.
        """
        from scoresde.compare.tables import from_json

        file = Path(path)
        return from_json((file / FILE if file.is_dir() else file).read_text(encoding="utf-8"))
