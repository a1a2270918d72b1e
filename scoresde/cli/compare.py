"""The command ``scoresde compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import scoresde
from scoresde.base.processes import launch_rank
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.source import Guidance, Labels, chosen_labels, guided, open_model
from scoresde.comparison import BUDGETS, DEFAULT_SOLVERS, Case, Comparison, best_ratio, suite
from scoresde.sde import names as sdes

__all__ = ["compare"]


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _listed(text)]
    except ValueError:
        raise ValueError(f"got --evaluations {text!r}; expected whole numbers with commas, such as 5,10,20,50") from None


@reported()
def compare(
    on: Annotated[
        list[str] | None, typer.Argument(help="Names of problems (ring, grid, ..), or one run folder or checkpoint.")
    ] = None,
    suite_name: Annotated[
        str | None, typer.Option("--suite", help="Suite, quick or standard, in place of all options below.")
    ] = None,
    solver: Annotated[str, typer.Option(help="Names of solvers, with commas: scoresde solvers lists them.")] = ",".join(
        DEFAULT_SOLVERS
    ),
    evaluations: Annotated[str, typer.Option(help="Budgets of evaluations, with commas.")] = ",".join(map(str, BUDGETS)),
    path: Annotated[str, typer.Option(help="Paths: t, quadratic, lam or karras, several with commas.")] = "lam",
    metric: Annotated[
        str | None, typer.Option(help="Names of metrics, with commas; by default rms, strong and energy.")
    ] = None,
    sde: Annotated[
        list[str] | None,
        typer.Option(help=f"SDE: {', '.join(sdes.SDES)}, with settings; repeat it for several.  [default: vp]"),
    ] = None,
    n: options.Samples = 256,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    end: options.End = "flow",
    shape: options.Shape = None,
    label: Labels = None,
    guidance: Guidance = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Compare the samplers of k-diffusion, diffusers and torchsde too.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for the results of finished runs and for the report.")] = None,
    progress: options.Progress = True,
) -> None:
    """Compare solvers by their error against evaluations of the model: a table and, with --out, charts and a page.

    An interrupted comparison continues when the same command is given again. Several processes that are given it at once,
    by torchrun or by hand, share the runs.
    """
    rank, count = launch_rank()
    if count > 1 and out is None:
        raise ValueError(f"got {count} processes without a folder to share; expected --out FOLDER, which all of them see")
    if suite_name is not None:
        if on:
            raise ValueError(f"got {' '.join(on)} and --suite {suite_name}, which brings its own problems; expected one")
        arguments = suite(suite_name).arguments()
    else:
        arguments = {
            **_compared(on or ["ring"], sde or ["vp"], shape, label, guidance, n),
            "solvers": _listed(solver),
            "evaluations": _numbers(evaluations),
            "paths": _listed(path),
            "metrics": None if metric is None else _listed(metric),
            "n": n,
            "seed": seed,
            "end": end,
        }
    if isinstance(arguments["problem"], dict) and "tuned" in arguments["solvers"]:
        arguments["solvers"] = _with_tuned(arguments["solvers"], arguments["problem"])
    found = scoresde.compare(**arguments, out=out, peers=peers, progress=progress)
    if rank == 0:
        _tell(found, out)


def _compared(
    names: list[str], sde: list[str], shape: str | None, label: list[str] | None, guidance: float | None, n: int
) -> dict[str, Any]:
    """Return the problems of these names or the model in a file or folder of that name."""
    if len(names) == 1 and Path(names[0]).exists():
        model, event, classes = open_model(Path(names[0]), shape)
        labels = chosen_labels(label, model, classes)
        conditions = {} if labels is None else {"label": [labels[i % len(labels)] for i in range(n)]}
        return {
            "problem": {
                Path(names[0]).name: Case(guided(model, guidance, labels), event, conditions=conditions, classes=classes)
            }
        }
    if label or guidance is not None:
        given = f"--label {','.join(label)}" if label else f"--guidance {guidance}"
        raise ValueError(f"got {given} for problems, which have no classes; expected a run folder")
    return {"problem": names, "sde": sde}


def _with_tuned(solvers: list[str], problem: dict[str, Any]) -> dict[str, Any]:
    """Return the solvers by name, the name "tuned" with the solver that was saved with the model."""
    ((name, case),) = problem.items()
    if case.model.tuned is None:
        raise ValueError(f"got --solver tuned for {name}, which holds no tuned solver; fit one: scoresde tune {name}")
    return {solver: case.model.tuned if solver == "tuned" else solver for solver in solvers}


def _tell(found: Comparison, out: Path | None) -> None:
    metrics = list(dict.fromkeys(r.metric for r in found.records))
    typer.echo(found.table(metric=metrics[0]))
    for note in found.about["notes"]:
        typer.echo(f"left out: {note}")
    if any(r.package != "scoresde" and not r.error for r in found.records):
        typer.echo(f"{'problem':<16} {'SDE':<8} {'budget':>6} {'ratio':>8}  best here, best peer ({metrics[0]})")
        for r in best_ratio(found, metrics[0]):
            pair = f"{r.ours.solver} on {r.ours.path}, {r.peer.solver} on {r.peer.path}"
            typer.echo(f"{r.problem:<16} {r.sde:<8} {r.budget:>6} {r.ratio:>8.3f}  {pair}")
    if out is not None:
        for path in found.report(out):
            typer.echo(str(path))
