"""The commands that try an installation: ``scoresde demo`` and ``scoresde doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scoresde import demo as demonstration
from scoresde import doctor as examination
from scoresde.cli.errors import reported
from scoresde.cli.options import Out, Progress

__all__ = ["demo", "doctor"]


@reported()
def demo(
    out: Out = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Do a twentieth of the work, to see that everything runs.")] = False,
    progress: Progress = True,
) -> None:
    """Train on handwritten digits, sample with every solver, and compare them: pictures and a table.

    It takes about three minutes on two CPU cores. An interrupted training continues, and a finished one is used again.
    """
    demonstration.run(out, quick=quick, progress=progress, echo=typer.echo)


@reported()
def doctor(
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check the numerics, in about ten seconds.")] = True,
) -> None:
    """Print versions, devices, precision and extras, and check the numerics: what a report of a fault should contain.

    The exit status is 1 if a check fails.
    """
    if not examination.examine(check, typer.echo):
        raise typer.Exit(1)
