"""The command ``scoresde demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scoresde import demo as demonstration
from scoresde.cli.errors import reported
from scoresde.cli.options import Out, Progress

__all__ = ["demo"]


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
