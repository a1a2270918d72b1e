"""The report of a comparison: a folder with tables, figures and a page."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoresde.base.files import replacing
from scoresde.comparison.file import to_json
from scoresde.comparison.records import Records
from scoresde.comparison.report import figures, tables
from scoresde.comparison.report.order_plots import by_order
from scoresde.comparison.report.page import page
from scoresde.comparison.report.series import styles, titles, twins
from scoresde.plots import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["write"]


def write(
    comparison: Records,
    folder: str | os.PathLike[str],
    *,
    title: str = "Records of solvers",
    highlight: Collection[str] = (),
) -> list[Path]:
    """Write the report into ``folder``, each file whole or not at all.

    Every report has ``comparison.json``, ``records.csv``, ``table.md``, ``table.tex`` and ``index.html``. Where there are
    numbers, it has the figure ``work-precision`` for the first metric, and ``work-precision-<metric>`` for the others. Where
    solvers declare orders and the error at the end was measured at two numbers of steps, it has ``orders`` for the first
    problem, and ``orders-<SDE>`` for each further SDE of that problem. Where there are traces, it has ``trajectories`` for
    the first problem with them, and ``trajectories-<problem>`` for the others. Each figure is there as PNG and PDF, those of
    work and precision also as SVG.

    Args:
        comparison: the comparison to report.
        folder: the folder, created where it does not exist.
        title: the title of the page.
        highlight: the solvers to draw in colour, whether on the front or not.

    Returns:
        The paths of the files.

    Raises:
        ValueError: for a comparison without records.
        OSError: for a folder that cannot be written.

    Example:
        >>> import tempfile
        >>> from scoresde.comparison.records import Record
        >>> one = Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     print(*[path.name for path in write(Records((one,)), place)][:6])
        comparison.json records.csv table.md table.tex index.html work-precision.png
    """
    html = page(comparison, title, highlight=highlight)
    folder = Path(folder)
    texts = {
        "comparison.json": to_json(comparison),
        "records.csv": tables.to_csv(comparison),
        "table.md": tables.markdown(comparison),
        "table.tex": tables.latex(comparison),
        "index.html": html,
    }
    written = []
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
        written.append(folder / name)
    for name, figure in _figures(comparison, highlight):
        for suffix in (".png", ".pdf", ".svg") if name.startswith("work-precision") else (".png", ".pdf"):
            path = _free(folder / f"{name}{suffix}", written)
            save_figure(figure, path)
            written.append(path)
    return written


def _free(path: Path, taken: Collection[Path]) -> Path:
    """Return ``path``, with a number added where another file has taken it."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{i}") for i in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _figures(comparison: Records, highlight: Collection[str]) -> Iterator[tuple[str, Figure]]:
    drawable = [m for m in comparison.named("metric") if any(math.isfinite(r.value) for r in comparison.select(metric=m))]
    for i, metric in enumerate(drawable):
        figure = figures.work_precision(comparison, metric, highlight=highlight)
        yield f"work-precision-{_file(metric)}" if i else "work-precision", figure
    called = titles(comparison)
    first = comparison.records[0].problem
    ordered = [sde for problem, sde in called if problem == first and by_order(comparison, "rms", first, sde)]
    for i, sde in enumerate(ordered):
        name = f"orders-{_file(sde)}" if i else "orders"
        yield name, figures.orders(comparison, "rms", first, sde, highlight=highlight)
    style, leaders = styles(comparison, highlight), twins(comparison)
    for i, panel in enumerate(dict.fromkeys((trace.problem, trace.sde) for trace in comparison.traces)):
        traces = [trace for trace in comparison.traces if (trace.problem, trace.sde) == panel]
        traces = [trace for trace in traces if leaders[trace.solver, trace.path] == (trace.solver, trace.path)] or traces
        traces.sort(key=lambda trace: style[trace.solver, trace.path].rank)
        name = f"trajectories-{_file(called[panel])}" if i else "trajectories"
        yield name, figures.trajectories(traces, _samples(panel[0]), style=style, title=called[panel])


def _file(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)


def _samples(problem: str) -> Tensor | None:
    """Return samples of a problem in the plane, where the problem can be made from its name."""
    from scoresde.problems import PROBLEMS

    if problem.partition(":")[0] not in PROBLEMS:
        return None
    found = PROBLEMS.make(problem)
    return found.sample(2000, torch.Generator().manual_seed(0)) if tuple(found.event) == (2,) else None
