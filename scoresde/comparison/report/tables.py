"""A comparison as a table: Markdown for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scoresde.comparison.records import Record, Records
from scoresde.comparison.report.series import COSTS, better, called, cost, drawn, labels, titles, twins

__all__ = ["latex", "markdown", "number", "to_csv"]

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

    The best of a column is bold, with all that print the same, where no other's confidence interval reaches its own. An
    interval follows its number as ±. Solvers with equal numbers share a row. A footnote gives the reason where there is no
    number.

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
    tables = [_markdown(comparison, grid) for grid in _grids(comparison, problem, metric)]
    return "\n".join([*tables, "Columns: evaluations of the model allowed.\n"])


def _chosen(comparison: Records, attribute: str, wanted: str | Iterable[str] | None) -> list[str]:
    known = comparison.named(attribute)
    chosen = known if wanted is None else [wanted] if isinstance(wanted, str) else list(wanted)
    for name in chosen:
        if name not in known:
            raise ValueError(f"got {attribute} {name!r}; expected one of the comparison: {', '.join(known)}")
    return chosen


@dataclass(frozen=True)
class _Grid:
    """A table before it is written: its rows from the best on average, its columns, the cells, and those that are best."""

    title: str
    metric: str
    problem: str
    rows: list[str]
    columns: list[int]
    cells: dict[tuple[str, int], Record]
    best: set[tuple[str, int]]


def _grids(comparison: Records, problem: str | Iterable[str] | None, metric: str | Iterable[str] | None) -> Iterator[_Grid]:
    problems, metrics = (_chosen(comparison, "problem", problem), _chosen(comparison, "metric", metric))
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for r in comparison.records:
        groups.setdefault((r.problem, r.sde, r.metric), []).append(r)
    full, merged, first = labels(comparison), called(comparison), twins(comparison)
    for panel, title in titles(comparison).items():
        for name in metrics if panel[0] in problems else ():
            records = groups.get((*panel, name), [])
            if name in COSTS:
                cells = {(full[r.solver, r.path], r.budget): r for r in records}
            else:
                cells = {(merged[first[r.solver, r.path]], r.budget): r for r in reversed(records)}
                cells = {place: cells[place] for place in reversed(cells)}
            if records:
                yield _grid(title, cells, better(comparison, name))


def _grid(title: str, cells: dict[tuple[str, int], Record], direction: str) -> _Grid:
    one = next(iter(cells.values()))
    columns, rows = sorted({budget for _, budget in cells}), list(dict.fromkeys(name for name, _ in cells))
    place, best = dict.fromkeys(rows, 0), set[tuple[str, int]]()
    for budget in columns:
        found = {name: cells[name, budget] for name in rows if _finite(cells.get((name, budget)))}
        ranked = sorted(found, key=lambda name: (cost(found[name].value, direction), name))
        order = {name: i for i, name in enumerate(ranked)}
        for name in rows:
            place[name] += order.get(name, len(rows))
        same = [name for name in ranked if number(found[name].value) == number(found[ranked[0]].value)]
        rivals = [name for name in ranked if name not in same and _overlap(found[name], found[ranked[0]], direction)]
        if not rivals and len(same) < len(found):
            best.update((name, budget) for name in same)
    return _Grid(title, one.metric, one.problem, sorted(rows, key=place.__getitem__), columns, cells, best)


def _overlap(record: Record, best: Record, direction: str) -> bool:
    """Tell whether the confidence intervals of two numbers share a point."""
    (_, low, high), (_, best_low, best_high) = drawn(record, direction), drawn(best, direction)
    return low <= best_high and best_low <= high


def _markdown(comparison: Records, grid: _Grid) -> str:
    notes: dict[str, int] = {}
    out = [
        f"### {_escaped(grid.title)}: {_escaped(grid.metric)}",
        "",
        *_conditions(comparison, grid.problem),
        f"| solver | {' | '.join(map(str, grid.columns))} |",
        "|---" + "|---:" * len(grid.columns) + "|",
    ]
    for name in grid.rows:
        entries = [_cell(grid.cells.get((name, b)), (name, b) in grid.best, notes) for b in grid.columns]
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


def _cell(record: Record | None, best: bool, notes: dict[str, int]) -> str:
    if record is None:
        return ""
    if not _finite(record):
        why = record.error or f"the number is {record.value}"
        return f"none ({notes.setdefault(why, len(notes) + 1)})"
    value, _, interval = number(record.value, record.low, record.high).partition(" ")
    return f"**{value}** {interval}".rstrip() if best else f"{value} {interval}".rstrip()


def latex(comparison: Records, problem: str | Iterable[str] | None = None, metric: str | Iterable[str] | None = None) -> str:
    r"""Return the tables of :func:`markdown` for a paper: a ``table`` with a caption each, with the rules of booktabs.

    The preamble needs ``\usepackage{booktabs}``. A number that is missing is a dash.

    Args:
        comparison: the comparison.
        problem, metric: names, one or several; by default all.

    Raises:
        ValueError: for a problem or metric that is not in the comparison.

    Example:
        >>> records = [Record("ring", name, "lam", 10, 10, 10, "rms", v, v, v) for name, v in (("a_b", 2e-5), ("c", 0.5))]
        >>> print(latex(Records(tuple(records))))
        \begin{table}
          \centering
          \caption{ring: rms against the evaluations of the model allowed.}
          \begin{tabular}{lr}
            \toprule
            solver & 10 \\
            \midrule
            a\_b & $\mathbf{2 \times 10^{-5}}$ \\
            c & $0.5$ \\
            \bottomrule
          \end{tabular}
        \end{table}
        <BLANKLINE>
    """
    return "\n".join(_latex(grid) for grid in _grids(comparison, problem, metric))


def _latex(grid: _Grid) -> str:
    rows = [[_tex(name), *(_tex_cell(grid, name, b) for b in grid.columns)] for name in grid.rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_tex(grid.title)}: {_tex(grid.metric)} against the evaluations of the model allowed.}}",
            rf"  \begin{{tabular}}{{l{'r' * len(grid.columns)}}}",
            r"    \toprule",
            rf"    solver & {' & '.join(map(str, grid.columns))} \\",
            r"    \midrule",
            *(rf"    {' & '.join(row)} \\" for row in rows),
            r"    \bottomrule",
            r"  \end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _tex_cell(grid: _Grid, name: str, budget: int) -> str:
    record = grid.cells.get((name, budget))
    if record is None or not _finite(record):
        return "--"
    value, _, interval = number(record.value, record.low, record.high).partition(" ± ")
    value = rf"\mathbf{{{_power(value)}}}" if (name, budget) in grid.best else _power(value)
    return f"${value} \\pm {_power(interval)}$" if interval else f"${value}$"


def _power(text: str) -> str:
    """Write 1.5e-07 as TeX's product with a power of ten."""
    digits, _, power = text.partition("e")
    return rf"{digits} \times 10^{{{int(power)}}}" if power else digits


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
        ">": r"\textgreater{}", "|": r"\textbar{}", **{c: f"\\{c}" for c in "&%$#_{}"}}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(c, c) for c in " ".join(text.split()))


def to_csv(comparison: Records) -> str:
    """Return a line for each record under a line of names, with all digits of the numbers."""
    out = io.StringIO()
    writer = csv.writer(out)  # lines end as RFC 4180 says, so that a line break inside a name is quoted
    writer.writerow(COLUMNS)
    writer.writerows([getattr(r, name) for name in COLUMNS] for r in comparison.records)
    return out.getvalue()
