"""Data as the commands open them: what is left out is said."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import typer

from scoresde import data

__all__ = ["open_data"]


def open_data(name: str | Path, **how: Any) -> data.Dataset:
    """:func:`scoresde.data.open`, with a line for each file that is left out in place of its warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "left out")
        found = data.open(name, **how)
    for file in found.skipped:
        typer.echo(f"left out, cannot be read: {file}", err=True)
    return found
