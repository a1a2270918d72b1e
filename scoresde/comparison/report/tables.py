"""A comparison as a table: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Sequence

from scoresde.comparison.records import Record, Records
from scoresde.comparison.report.series import better, cost, labels, titles

__all__ = ["markdown", "number", "to_csv"]

COLUMNS = tuple(field.name for field in dataclasses.fields(Record))


def number(value: float, low: float | None = None, high: float | None = None) -> str:
    """Format a number with at most three significant digits and the wider side of its confidence interval with two.

    Example:
        >>> number(0.012345, 0.0121, 0.0126), number(1.5e-7), number(12345.6, 12345.6, 12345.6)
        ('0.0123 ± 0.00026', '1.5e-07', '1.23e+04')
    """
    text = f"{value:.3g}"
    if low is None or high is None or not (math.isfinite(value) and low < high):
        return text
    return f"{text} ± {max(high - value, value - low):.2g}"


def markdown(
    comparison: Records, problem: str | Iterable[str] | None = None, metric: str | Iterable[str] | None = None
) -> str:
    """Return a table for each problem, SDE and metric: a row per solver, the best on average first, a column per budget.

    The best of a column is bold, with all that print the same. A confidence interval follows its number as ±. A footnote
    gives the reason where there is no number.

    Args:
        comparison: the comparison.
        problem, metric: names, one or several; by default all.

    Raises:
        ValueError: for a problem or metric that is not in the comparison.

    Example:
        >>> records = [
        ...     Record("ring", "ddim", "lam", 10, 10, 10, "rms", 0.31, 0.29, 0.33),
        ...     Record("ring", "heun", "lam", 10, 5, 10, "rms", 0.12, 0.12, 0.12),
        ... ]
        >>> print(markdown(Records(tuple(records))))
        ### ring: rms
        <BLANKLINE>
        | solver | 10 |
        |---|---:|
        | heun | **0.12** |
        | ddim | 0.31 ± 0.02 |
        <BLANKLINE>
        Columns: evaluations of the model allowed.
        <BLANKLINE>
    """
    problems, metrics = (_chosen(comparison, "problem", problem), _chosen(comparison, "metric", metric))
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in comparison.records:
        groups.setdefault((r.problem, r.sde, r.metric), []).append(r)
    panels = [panel for panel in titles(comparison) if panel[0] in problems]
    tables = [_table(comparison, groups[*p, m]) for p in panels for m in metrics if (*p, m) in groups]
    return "\n".join([*tables, "Columns: evaluations of the model allowed.\n"])


def _chosen(comparison: Records, attribute: str, wanted: str | Iterable[str] | None) -> list[str]:
    known = comparison.named(attribute)
    chosen = known if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in chosen:
        if name not in known:
            raise ValueError(f"got {attribute} {name!r}; expected one of the comparison: {', '.join(known)}")
    return chosen


def _table(comparison: Records, records: Sequence[Record]) -> str:
    panel, metric = (records[0].problem, records[0].sde), records[0].metric
    direction = better(comparison, metric)
    names = labels(comparison)
    columns = sorted({r.budget for r in records})
    cells = {(names[r.solver, r.path], r.budget): r for r in records}
    rows = list(dict.fromkeys(name for name, _ in cells))
    best: dict[int, str] = {}
    place = dict.fromkeys(rows, 0)
    for budget in columns:
        finite = [(cost(cells[n, budget].value, direction), n) for n in rows if _finite(cells.get((n, budget)))]
        order = {name: i for i, (_, name) in enumerate(sorted(finite))}
        for name in rows:
            place[name] += order.get(name, len(rows))
        if finite:
            best[budget] = number(cells[min(finite)[1], budget].value)
    notes: dict[str, int] = {}
    out = [
        f"### {_escaped(titles(comparison)[panel])}: {_escaped(metric)}",
        "",
        *_conditions(comparison, records[0].problem),
        f"| solver | {' | '.join(map(str, columns))} |",
        "|---" + "|---:" * len(columns) + "|",
    ]
    for name in sorted(rows, key=place.__getitem__):
        entries = [_cell(cells.get((name, b)), best.get(b), notes) for b in columns]
        out.append(f"| {_escaped(name)} | {' | '.join(entries)} |")
    out += ["", *(f"({i}) {_escaped(why)}  " for why, i in notes.items()), *([""] if notes else [])]
    return "\n".join(out)


def _conditions(comparison: Records, problem: str) -> list[str]:
    """Return a line with the values on which the model was conditioned, and an empty one; no line without conditions."""
    told = comparison.about.get("problems", {}).get(problem, {})
    conditions = told.get("conditions") if isinstance(told, dict) else None
    if not isinstance(conditions, dict):
        return []
    return ["; ".join(f"{_escaped(str(name))}: {_escaped(str(value))}" for name, value in conditions.items()), ""]


def _finite(record: Record | None) -> bool:
    return record is not None and math.isfinite(record.value)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _cell(record: Record | None, best: str | None, notes: dict[str, int]) -> str:
    if record is None:
        return ""
    if not _finite(record):
        why = record.error or f"the number is {record.value}"
        return f"none ({notes.setdefault(why, len(notes) + 1)})"
    text = number(record.value, record.low, record.high)
    value, _, interval = text.partition(" ")
    return f"**{value}** {interval}".rstrip() if value == best else text


def to_csv(comparison: Records) -> str:
    """Return a line for each record under a line of names, with all digits of the numbers."""
    out = io.StringIO()
    writer = csv.writer(out)  # lines end as RFC 4180 says, so that a line break inside a name is quoted
    writer.writerow(COLUMNS)
    writer.writerows([getattr(r, name) for name in COLUMNS] for r in comparison.records)
    return out.getvalue()
