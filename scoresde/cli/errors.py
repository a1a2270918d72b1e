"""What a command does with an error: one line on standard error, and an exit status."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import typer

__all__ = ["reported"]


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turn what the library raises into a line on standard error and an exit status; decorates a command."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        typer.echo(f"interrupted: {interrupt}" if str(interrupt) else "interrupted", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        typer.echo(f"scoresde: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        reason = str(error).partition("\n")[0]
        typer.echo(f"scoresde: the memory is too small for this: {reason}; take smaller batches or sizes", err=True)
        raise typer.Exit(2) from None
