"""The command ``scoresde solvers``: the table, and the rows of one solver."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated

import typer

from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.sde import GaussianSDE, names
from scoresde.solvers import SOLVERS, Chooser, RowSolver, get, make_path, to_json

__all__ = ["solvers"]

_WIDTH = 100
_COLUMNS = f"{'name':<18} {'family':<12} {'order':<7} {'evals/step':<10} {'noise':<6} "


@reported()
def solvers(
    show: Annotated[
        str | None,
        typer.Option(help="Print the rows of this solver in place of the table, and of auto what it chooses."),
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of steps of the rows.")] = 5,
    path: options.OwnPath = None,
    sde: options.Process = "vp",
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON, which solvers.from_json reads.")] = False,
) -> None:
    """List the solvers: name, family, order, evaluations per step, whether noise is drawn, paper.

    The order is the order of the error at the end or, for a solver that draws noise, the weak order, that of the moments. A
    dash marks solvers without an order in the step.
    """
    SOLVERS.load()  # solvers of installed packages are listed too
    if show is not None:
        _show_rows(show, names.sde(sde), path, steps, as_json)
        return
    typer.echo(_COLUMNS + "paper")
    typer.echo("-" * _WIDTH)
    for name, make in SOLVERS.items():
        d = make().description
        order = str(d.order) if d.order else f"{d.weak_order:g} weak" if d.weak_order else "-"
        calls = "adaptive" if d.evaluations is None else str(d.evaluations)
        paper = textwrap.wrap(d.paper, _WIDTH - len(_COLUMNS))
        noise = "yes" if d.stochastic else "no"
        typer.echo(f"{name:<18} {d.family:<12} {order:<7} {calls:<10} {noise:<6} {paper[0]}")
        for line in paper[1:]:
            typer.echo(" " * len(_COLUMNS) + line)


def _show_rows(name: str, sde: GaussianSDE, spacing: str | None, steps: int, as_json: bool) -> None:
    """Print each row y = a x + sum_j w_j N_j + sum_k s_k xi_k with N = p y + q m evaluated at t, newest first."""
    solver = get(name)
    if not isinstance(solver, RowSolver):
        raise ValueError(f"solver {name!r} chooses its own steps, so that it has no rows to show")
    path = solver.own_path(sde, steps) if spacing is None else make_path(sde, spacing, steps)
    rows = solver.rows(path)
    if as_json:
        typer.echo(json.dumps(to_json(rows)))
        return
    if isinstance(solver, Chooser):
        choice = solver.choice(steps)
        where = spacing or choice.spacing
        last = path.points[-2] if path.ends_clean else path.points[-1]
        typer.echo(
            f"{name} with {steps} steps: {choice.solver.name} on the path {where}, from t={path.points[0].t:.4g} to "
            f"t={last.t:.4g}, end {path.end!r}\n"
        )
    typer.echo("y = a x + sum w N + sum s xi, with N = p y + q m(y, t), newest first; * ends a step\n")
    typer.echo(f"  {'t':>9} {'to':>9} {'a':>11} {'p':>11} {'q':>11}  w | s")
    for row in rows:
        typer.echo(str(row))
