"""What solvers that are fitted to a model share: the identity of the model, and their files."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path as File
from typing import Any

import torch
from torch import nn

from scoresde.base.files import replacing
from scoresde.base.identity import digest

__all__ = ["check_same", "model_identity", "read_plain", "write_plain"]


def model_identity(model: nn.Module) -> str:
    """Return the digest of a score model for which a solver is tuned: equal for copies in float32 and float64.

    What the model itself carries besides does not count: a solver, and the moments of its data.

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
    return [name for name in ("tuned", "moments") if vars(module).get(name) is not None]


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
