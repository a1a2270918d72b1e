"""The commands on solvers: their table, and ``scoresde choose`` and ``scoresde tune``, which fit one to a model."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path as File
from typing import Annotated

import typer

from scoresde.base.processes import launch_rank
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.source import Labels, chosen_labels, guided, open_model
from scoresde.sde import GaussianSDE, names
from scoresde.solvers import SOLVERS, Chooser, Chosen, RowSolver, Tuned, get, make_path, to_json
from scoresde.training import CheckpointError, save_tuned
from scoresde.tuning import choose as pick
from scoresde.tuning import tune as fit

__all__ = ["choose", "solvers", "tune"]

Run = Annotated[
    File, typer.Argument(help="Run folder, checkpoint, published weights, or folder of diffusers, as for scoresde.load.")
]
Evaluations = Annotated[str, typer.Option(help="Numbers of evaluations of the model, with commas.")]
Guidance = Annotated[float | None, typer.Option(help="Scale of classifier-free guidance towards --label.")]

_WIDTH = 100
_COLUMNS = f"{'name':<18} {'family':<12} {'order':<7} {'evals/step':<10} {'noise':<6} "


@reported()
def solvers(
    show: Annotated[
        str | None,
        typer.Option(help="Print the rows of this solver, or of a tuned one in a JSON file, and of auto what it chooses."),
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
    if isinstance(solver, Tuned):
        _tell(solver, len(path))
    typer.echo("y = a x + sum w N + sum s xi, with N = p y + q m(y, t), newest first; * ends a step\n")
    typer.echo(f"  {'t':>9} {'to':>9} {'a':>11} {'p':>11} {'q':>11}  w | s")
    for row in rows:
        typer.echo(str(row))


def _tell(solver: Tuned, *numbers: int) -> None:
    """Print the errors of a tuned solver at these numbers of evaluations."""
    for one in solver.steps:
        if len(one.times) in numbers:
            typer.echo(
                f"{len(one.times)} evaluations: rms error {one.held_out:.3g} on held-out starts ({one.training:.3g} on "
                f"those of the fit), {one.untuned:.3g} by the best named solver: {one.held_out / one.untuned:.2f} of it"
            )


@reported()
def tune(
    run: Run,
    evaluations: Evaluations = "8",
    starts: Annotated[
        int | None, typer.Option(help="Starts of the fit; by default as many as have 65536 numbers, 256 to 1024.")
    ] = None,
    iterations: Annotated[int, typer.Option(help="Most iterations of the fit over all numbers.")] = 40,
    tolerance: Annotated[
        float, typer.Option(help="Tolerance of the model's own flow, to whose end the solver is fitted.")
    ] = 1e-10,
    end: Annotated[str, typer.Option(help="End of the model's own flow: flow or denoise.")] = "flow",
    seed: options.Seed = 0,
    label: Labels = None,
    guidance: Guidance = None,
    out: Annotated[
        File | None, typer.Option(help="JSON file; by default tuned.json beside the checkpoint, and in the checkpoint too.")
    ] = None,
    shape: options.Shape = None,
    progress: options.Progress = True,
) -> None:
    """Fit a solver to a trained model: its times and coefficients for a few evaluations.

    An interrupted command continues when it is given again. Several processes that are given it at once, by torchrun or by
    hand, share the numbers of evaluations. The checkpoint keeps the solver for scoresde sample RUN --solver
    tuned, and the file is the name of a solver everywhere.
    """
    model, event, classes = open_model(run, shape)
    labels = chosen_labels(label, model, classes)
    solver = fit(
        guided(model, guidance, labels),
        _counts(evaluations),
        shape=event,
        starts=starts,
        conditions=None if labels is None else {"label": list(labels)},
        end=end,
        iterations=iterations,
        tolerance=tolerance,
        seed=seed,
        out=out or _beside(run, "tuned.json"),
        progress=progress,
    )
    if launch_rank()[0] != 0:
        return
    _tell(solver, *solver.step_counts)
    typer.echo(str(out or _beside(run, "tuned.json")))
    if guidance is None and out is None:
        _save(solver, run)


@reported()
def choose(
    run: Run,
    evaluations: Evaluations = "5,8,10,20",
    starts: Annotated[int, typer.Option(help="Starts of the pilot; as many others measure the choice.")] = 64,
    tolerance: Annotated[
        float, typer.Option(help="Tolerance of the model's own flow, from whose end errors are measured.")
    ] = 1e-8,
    end: Annotated[str, typer.Option(help="End of the model's own flow: flow, denoise or data.")] = "flow",
    seed: options.Seed = 0,
    label: Labels = None,
    guidance: Guidance = None,
    out: Annotated[
        File | None, typer.Option(help="JSON file; by default chosen.json beside the checkpoint, and in the checkpoint too.")
    ] = None,
    shape: options.Shape = None,
    progress: options.Progress = True,
) -> None:
    """Choose the solver, path and end that serve a trained model best at a few numbers of evaluations, by a pilot.

    An interrupted command continues when it is given again. The checkpoint keeps the choice for scoresde sample RUN --solver
    tuned, in place of a tuned solver, and the file is the name of a solver everywhere.
    """
    model, event, classes = open_model(run, shape)
    labels = chosen_labels(label, model, classes)
    solver = pick(
        guided(model, guidance, labels),
        _counts(evaluations),
        shape=event,
        starts=starts,
        conditions=None if labels is None else {"label": list(labels)},
        end=end,
        tolerance=tolerance,
        seed=seed,
        out=out or _beside(run, "chosen.json"),
        progress=progress,
    )
    typer.echo(solver.table(3))
    typer.echo(str(out or _beside(run, "chosen.json")))
    if guidance is None and out is None:
        _save(solver, run)


def _beside(run: File, name: str) -> File:
    return (run if run.is_dir() else run.parent) / name


def _save(solver: Tuned | Chosen, run: File) -> None:
    """Save a solver in the checkpoint of its model, and print where."""
    try:
        typer.echo(str(save_tuned(solver, run)))
    except CheckpointError:  # weights of another package, which hold no solver
        typer.echo("the weights are no checkpoint of scoresde: the solver is in its file alone")


def _counts(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"got --evaluations {text!r}; expected whole numbers with commas, such as 5,8,10") from None
