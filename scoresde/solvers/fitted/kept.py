"""What solvers that are fitted to a model share: the identity of the model, and their files."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path as File
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.solvers.path import Path

__all__ = ["Learned", "check_same", "learned_for", "model_identity", "plain", "read_plain", "restored_solver", "write_plain"]


def model_identity(model: nn.Module) -> str:
    """Return the digest of a score model for which a solver is tuned: equal for copies in float32 and float64.

    What the model itself carries besides does not count: a solver, the moments of its data, and the departure from them.

    Example:
        >>> from scoresde import VP, problems
        >>> model = problems.ring().model(VP())
        >>> model_identity(model) == model_identity(copy.deepcopy(model)) != model_identity(problems.moons().model(VP()))
        True
    """
    double = any(p.is_floating_point() and p.dtype != torch.float64 for p in (*model.parameters(), *model.buffers()))
    if double or any(_carried(module) for module in model.modules()):
        model = copy.deepcopy(model).double()
        for module in model.modules():
            for name in _carried(module):
                delattr(module, name)
                if name == "tuned":
                    module.tuned = None  # type: ignore[assignment]
    return digest(model, libraries=False)


def _carried(module: nn.Module) -> list[str]:
    """Return the names of the attributes of a model that do not change what it predicts."""
    return [name for name in ("tuned", "moments", "departure") if vars(module).get(name) is not None]


def check_same(model: nn.Module, identity: str) -> None:
    """Refuse a model whose :func:`model_identity` is another one.

    Raises:
        ValueError: for another model.
    """
    if model_identity(model) != identity:
        raise ValueError(
            f"got {type(model).__name__} that is not the model for which this solver was tuned, or has changed since; "
            "expected the same weights, guidance and conditions: tune again, or allow other models by any_model=True"
        )


def read_plain(path: str | os.PathLike[str]) -> Any:
    """Return the plain values in a JSON file of a solver.

    Raises:
        ValueError: for a file that is missing or no JSON.
    """
    try:
        return json.loads(File(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read the tuned solver {str(path)!r}: {error}") from error


def write_plain(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write the plain values of a solver to a JSON file.

    Raises:
        ValueError: for a name that does not end in ``.json``.
    """
    if File(path).suffix != ".json":
        raise ValueError(f"got {str(path)!r} for a tuned solver; expected a name that ends in .json")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")


# Numbers learned for the times of a path ---------------------------------------------------------------------------------


class Learned(Protocol):
    """Interface of the numbers learned for one number of steps: times, and the marginals by which an SDE is recognised."""

    @property
    def times(self) -> tuple[float, ...]:
        """The times of the path before its clean end."""

    @property
    def log_alpha(self) -> tuple[float, ...]:
        """The logarithms of alpha there."""

    @property
    def log_sigma(self) -> tuple[float, ...]:
        """The logarithms of sigma there."""


Numbers = TypeVar("Numbers", bound=Learned)
Fitted = TypeVar("Fitted")

EXACT = 1e-9
"""The relative difference of two times that is rounding."""


def learned_for(path: Path, steps: Sequence[Numbers], what: str) -> Numbers:
    """Return the numbers learned for a path with as many steps, or refuse it.

    Args:
        path: the path.
        steps: the numbers, an entry for each number of steps.
        what: the number that was learned for, in words: "evaluations".

    Raises:
        ValueError: for a path that stops before sigma = 0, another number of steps, another SDE, and another start.
    """
    if not path.ends_clean:
        raise ValueError(
            "got a path that stops before sigma = 0, where a tuned solver ends; expected end='denoise' or 'flow'"
        )
    counts = [len(one.times) for one in steps]
    if len(path) not in counts:
        known = ", ".join(map(str, counts))
        raise ValueError(f"got steps={len(path)} for a solver tuned for {known} {what}; expected steps={known}")
    one = steps[counts.index(len(path))]
    t = torch.tensor(one.times, dtype=torch.float64)
    own = torch.tensor([one.log_alpha, one.log_sigma], dtype=torch.float64)
    inside = float(t.max()) <= path.sde.span[1] * (1 + EXACT)
    if not inside or not torch.allclose(torch.stack([path.sde.log_alpha(t), path.sde.log_sigma(t)]), own, 0.0, 1e-6):
        raise ValueError(
            f"got a path on {path.sde!r}, whose marginals differ from those of the SDE for which the solver was tuned; "
            "expected the same SDE, or a solver tuned on this one"
        )
    if abs(path.points[0].t - one.times[0]) > 1e-6 * one.times[0]:
        raise ValueError(
            f"got a path that starts at t={path.points[0].t:.6g} for a solver tuned from t={one.times[0]:.6g}; expected "
            f"the same start: t_max={one.times[0]:.6g}"
        )
    return one


def plain(value: Any) -> Any:
    """Return the value with lists for tuples, and None for a number that is not finite, for which JSON has no word."""
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _restored(value: Any) -> Any:
    """Return the value of which :func:`plain` made another."""
    if value is None:
        return math.nan
    return tuple(_restored(v) for v in value) if isinstance(value, list) else value


def restored_solver(
    value: Any, kind: str, make: Callable[..., Numbers], build: Callable[[tuple[Numbers, ...], str, bool], Fitted]
) -> Fitted:
    """Return the solver with learned numbers in plain values.

    Args:
        value: the plain values, of which nothing is known.
        kind: the kind of solver that they must name, which the messages name too.
        make: the class of the numbers of one number of steps.
        build: the class of the solver, made of these, the identity of its model, and whether it may sample others.

    Raises:
        ValueError: for values of another kind or version, or that are damaged.
    """
    if not isinstance(value, Mapping) or (value.get("kind"), value.get("version")) != (kind, 1):
        raise ValueError(f"got values that are no {kind} of version 1; expected those that its to_json makes")
    try:
        steps = tuple(make(**{k: _restored(v) for k, v in one.items()}) for one in value["steps"])
        return build(steps, str(value["model"]), bool(value["any_model"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"got a damaged {kind} ({error}); expected the values that its to_json makes") from error
