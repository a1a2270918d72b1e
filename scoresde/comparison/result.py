"""The result of a comparison: its records, with methods that tabulate, draw and save them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scoresde.base.files import replacing
from scoresde.comparison.file import from_json, read, to_json
from scoresde.comparison.records import Records
from scoresde.comparison.report.folder import write
from scoresde.comparison.report.tables import COLUMNS, latex, markdown

if TYPE_CHECKING:
    import pandas

__all__ = ["Comparison"]

FILE = "comparison.json"


SHOWN = 4
"""The number of tables that a notebook shows."""


@dataclass(frozen=True, repr=False)
class Comparison(Records):
    """The result of :func:`scoresde.compare`: :class:`~scoresde.comparison.Records` with a table, a report and a file.

    A notebook shows the first tables.

    Example:
        >>> from scoresde.comparison import Record
        >>> found = Comparison((Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.09, 0.2),), {"seed": 0})
        >>> found.select(solver="ddim")[0].value
        0.1
    """

    def table(self, problem: str | Iterable[str] | None = None, metric: str | Iterable[str] | None = None) -> str:
        """Return the numbers as Markdown: see :func:`scoresde.comparison.report.tables.markdown`."""
        return markdown(self, problem, metric)

    def to_latex(self, problem: str | Iterable[str] | None = None, metric: str | Iterable[str] | None = None) -> str:
        """Return the numbers as tables for a paper: see :func:`scoresde.comparison.report.tables.latex`."""
        return latex(self, problem, metric)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row for each record and a column for each attribute of a record.

        Raises:
            ImportError: where pandas is not installed.

        Example:
            >>> from scoresde.comparison import Record
            >>> one = Comparison((Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.09, 0.2),), {"seed": 0})
            >>> one.to_pandas()[["solver", "value"]].values.tolist()
            [['ddim', 0.1]]
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame([[getattr(r, name) for name in COLUMNS] for r in self.records], columns=list(COLUMNS))

    def report(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write charts, tables and a page to ``folder`` and return their paths."""
        return list(write(self, folder))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the whole comparison to ``comparison.json`` in ``folder`` and return the path of the file.

        Example:
            >>> import tempfile
            >>> from scoresde.comparison import Record
            >>> one = Comparison((Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.09, 0.2),), {"seed": 0})
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Comparison.load(one.save(folder)) == one
            True
        """
        path = Path(folder) / FILE
        with replacing(path) as temporary:
            temporary.write_text(to_json(self), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Comparison:
        """Read a comparison that :meth:`save` wrote, from the file or its folder.

        Raises:
            ValueError: for a file that is cut short, or holds no comparison.
            FileNotFoundError: if there is no such file.
        """
        file = Path(path)
        file = file / FILE if file.is_dir() else file
        found = from_json(read(file), str(file))
        return cls(found.records, found.about, found.traces)

    def _repr_markdown_(self) -> str:
        """Return the first tables, for a notebook."""
        tables = self.table().split("\n### ")
        more = f"\n{len(tables) - SHOWN} more tables: print(comparison.table())\n" if len(tables) > SHOWN else ""
        return "\n### ".join(tables[:SHOWN]) + more
