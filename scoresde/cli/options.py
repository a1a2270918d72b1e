"""Options that several commands share, and the dataclasses, presets and files they come from."""

from __future__ import annotations

import functools
import inspect
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, is_dataclass
from pathlib import Path as File
from typing import Annotated, Any, TypeVar, cast

import typer

from scoresde import presets
from scoresde.base.names import near
from scoresde.base.options import Option, options_of
from scoresde.cli.errors import reported
from scoresde.sde.names import SDES

__all__ = ["checked", "derived", "from_file", "from_preset", "parse_shape"]

Command = TypeVar("Command", bound=Callable[..., Any])

# Annotations for the signatures of the commands.
Solver = Annotated[str, typer.Option(help="Solver: a name that scoresde solvers lists, a file of scoresde tune, or tuned.")]
Steps = Annotated[int, typer.Option(help="Number of steps of the solver.")]
Path = Annotated[str, typer.Option(help="Path of the solver: t, quadratic, lam or karras.")]
OwnPath = Annotated[
    str | None, typer.Option(help="Path of the solver: t, quadratic, lam, karras or arctan; by default the solver's own.")
]
End = Annotated[str, typer.Option(help="End of the path: denoise, flow, extrapolate or stop.")]
OwnEnd = Annotated[
    str | None, typer.Option(help="End of the path: denoise, flow, extrapolate or stop; by default the solver's own.")
]
Samples = Annotated[int, typer.Option("--n", "-n", help="Number of samples.")]
Seed = Annotated[int, typer.Option(help="Seed from which the seeds of all samples derive.")]
Shape = Annotated[str | None, typer.Option(help="Shape of a sample, such as 1,28,28, where there is no run folder.")]
Process = Annotated[str, typer.Option(help=f"SDE or chain: {', '.join(SDES)}, with settings: 've: sigma_max=100.0'.")]
Out = Annotated[File, typer.Option(help="Run folder.")]
Unreadable = Annotated[str, typer.Option(help="Treatment of damaged files and files that are no images: raise or skip.")]
Device = Annotated[str, typer.Option(help="Device of the model: cpu, cuda, ..")]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars.")]


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Return the shape of a sample that ``"1,28,28"`` stands for."""
    try:
        return None if text is None else tuple(int(n) for n in text.split(","))
    except ValueError:
        raise ValueError(f"got --shape {text!r}; expected whole numbers with commas, such as 1,28,28") from None


# Options from a dataclass ---------------------------------------------------------------------------------------------


def derived(**defaults: Any) -> Callable[[Command], Command]:
    """Give a command the options of the dataclasses among its parameters, and call it with these dataclasses filled.

    Args:
        defaults: the defaults of the command that differ from those of the dataclass.

    Example:
        >>> from scoresde.training import Method
        >>> @derived(lr=0.5)
        ... def command(*, method: Method):
        ...     return method.lr
        >>> command(), command(lr=0.25)
        (0.5, 0.25)
    """

    def of(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        classes: dict[str, Any] = {
            name: p.annotation for name, p in signature.parameters.items() if is_dataclass(p.annotation)
        }
        parameters = [p for name, p in signature.parameters.items() if name not in classes]
        for cls in classes.values():
            parameters += [_parameter(f, about, defaults.get(f.name, f.default)) for f, about in options_of(cls)]

        @functools.wraps(command)
        def filled(*arguments: Any, **given: Any) -> Any:
            for name, cls in classes.items():
                values = {f.name: given.pop(f.name, defaults.get(f.name, f.default)) for f, _ in options_of(cls)}
                several = {f.name for f, _ in options_of(cls) if isinstance(f.default, tuple)}
                given[name] = cls(**{key: tuple(v or ()) if key in several else v for key, v in values.items()})
            return command(*arguments, **given)

        filled.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        filled.__annotations__ = {p.name: p.annotation for p in parameters}
        return cast(Command, filled)

    return of


def _parameter(f: Field[Any], about: Option, default: Any) -> inspect.Parameter:
    """Return the parameter of a command from which typer makes the option of a field."""
    name = (about.name or f.name).replace("_", "-")
    kind: Any = about.kind
    declared = [f"--{name}/--no-{name}"] if kind is bool else [f"--{name}"]
    if isinstance(default, tuple):
        kind, default = list[kind] | None, None
    elif kind is not None and default is None:
        kind = kind | None
    elif not isinstance(default, kind):
        default = kind(default)
    annotation = Annotated[kind, typer.Option(*declared, help=about.help)]
    return inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


# Options from a preset or a file -------------------------------------------------------------------------------------


def checked(command: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options that a file gives to ``command``, by the names of its arguments.

    Raises:
        ValueError: for a key that is no option; the message lists the nearest ones.
    """
    by_option = {option.lstrip("-"): p.name for p in command.params for option in p.opts if option.startswith("--")}
    names = {name.replace("-", "_"): argument for name, argument in by_option.items() if name not in ("help", "preset")}
    options = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in names:
            raise ValueError(
                f"got {key!r} in {where}; expected options of scoresde {command.name}: {', '.join(sorted(names))}"
                f"{near(name, names)}"
            )
        options[names[name]] = value
    return options


def _take(context: typer.Context, kind: str, given: Mapping[str, Any], where: str) -> None:
    """Take options that the command line does not give from a preset or a file; those of a file win."""
    sources = context.meta.setdefault("options", {})
    sources[kind] = checked(context.command, given, where)
    context.default_map = {**(context.default_map or {}), **sources.get("preset", {}), **sources.get("file", {})}


@reported()
def from_preset(context: typer.Context, name: str | None) -> str | None:
    """Take the options of a preset."""
    if name is not None:
        _take(context, "preset", presets.find_preset(name).train, f"the preset {name!r}")
    return name


@reported()
def from_file(context: typer.Context, path: File | None) -> File | None:
    """Take the options of a TOML file, which may be a preset that was edited."""
    if path is not None:
        try:
            given = tomllib.loads(path.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"cannot read {str(path)!r} as TOML: {error}") from error
        _take(context, "file", {key: value for key, value in given.items() if key not in presets.TABLES}, repr(str(path)))
    return path
