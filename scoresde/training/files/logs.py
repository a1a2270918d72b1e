"""Logs: CSV files that grow by a line, and stay readable after a process was killed while writing one."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scoresde.base.files import replacing

__all__ = ["Log", "read_log"]


def _rows(path: Path) -> list[list[str]]:
    """Return the complete lines, including the header."""
    content = path.read_text(encoding="utf-8", errors="replace")
    return list(csv.reader(content[: content.rfind("\n") + 1].splitlines()))


def read_log(path: str | os.PathLike[str]) -> dict[str, list[float]]:
    """Read the columns of a log by name; an incomplete last line is left out.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Log(f"{folder}/log.csv", ["step", "loss"])
        ...     log.write({"step": 1, "loss": 0.5})
        ...     log.close()
        ...     read_log(f"{folder}/log.csv")
        {'step': [1.0], 'loss': [0.5]}
    """
    heading, *rows = _rows(Path(path)) or [[]]
    return {name: [float(row[i]) for row in rows] for i, name in enumerate(heading)}


class Log:
    """A CSV file whose first column is the step.

    Opening it removes the lines of steps after ``step`` and an incomplete line; a resumed training writes them again.

    Args:
        path: the path of the file.
        columns: the names of the columns, the step first.
        step: the last step whose lines are kept; 0 starts an empty log.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = Log(f"{folder}/log.csv", ["step", "loss"])
        ...     log.write({"step": 1, "loss": 0.5})
        ...     log.close()
        ...     Path(folder, "log.csv").read_text().split()
        ['step,loss', '1,0.5']
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str], step: int = 0) -> None:
        path, self.columns = Path(path), list(columns)
        kept = [self.columns]
        if step and path.exists():
            heading, *rows = _rows(path) or [[]]
            if heading == self.columns:
                kept += [row for row in rows if len(row) == len(heading) and row[0].isdigit() and int(row[0]) <= step]
        with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(kept)
        self._file = open(path, "a", buffering=1, newline="", encoding="utf-8")  # noqa: SIM115  # closed by close()
        self._writer = csv.writer(self._file, lineterminator="\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line, given the value of each column."""
        self._writer.writerow([row[name] for name in self.columns])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
