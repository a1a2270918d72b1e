"""The handling of errors by commands: one line on standard error and an exit status."""

from __future__ import annotations

import contextlib
import inspect
import re
import typing
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import torch
import typer
from typer.models import OptionInfo

__all__ = ["reported"]

Command = TypeVar("Command", bound=Callable[..., Any])


class reported(contextlib.ContextDecorator):  # lower case, since it is used as a function
    """A decorator of commands that turns errors of the library into a line on standard error and an exit status.

    Where the message names arguments of the library, ``resume=False`` or ``lr=0.5``, the line names the options of the
    command: ``--no-resume``, ``--lr 0.5``.
    """

    def __init__(self) -> None:
        self.options: dict[str, list[str]] = {}

    def __call__(self, command: Command) -> Command:
        self.options = _options(command)
        return super().__call__(command)

    def __enter__(self) -> reported:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo(f"interrupted: {error}" if str(error) else "interrupted", err=True)
            raise typer.Exit(130) from None
        if isinstance(error, ValueError | OSError | FloatingPointError):
            typer.echo(f"scoresde: {_in_options(' '.join(str(error).split()), self.options)}", err=True)
            raise typer.Exit(2) from None
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            reason = str(error).partition("\n")[0]
            typer.echo(f"scoresde: the memory is too small for this: {reason}; take smaller batches or sizes", err=True)
            raise typer.Exit(2) from None


def _options(command: Callable[..., Any]) -> dict[str, list[str]]:
    """Return the options of a command by its arguments: one for each, or two for a switch."""
    found = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        infos = [m for m in typing.get_args(parameter.annotation)[1:] if isinstance(m, OptionInfo)]
        for info in infos:
            declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str) and d.startswith("--")]
            found[name] = (declared[0] if declared else f"--{name.replace('_', '-')}").split("/")
    return found


def _in_options(text: str, options: dict[str, list[str]]) -> str:
    for argument, names in options.items():
        name = rf"(?<![\w.]){re.escape(argument)}="
        if len(names) == 2:
            text = re.sub(name + "False", names[1], re.sub(name + "True", names[0], text))
        text = re.sub(name + r"(?:'([^']*)'|\"([^\"]*)\"|(?!\.)([^\s,;:)]+))", rf"{names[0]} \1\2\3", text)
    return text
