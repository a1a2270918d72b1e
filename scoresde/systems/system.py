"""Systems in folders: a description in JSON, and a file of weights for each model.

The description names the class and its arguments. A score model, and any other network, is named by its file; a text encoder
by its folder, since it is neither trained nor copied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from torch import nn

from scoresde.base.files import replacing
from scoresde.models import TextEncoder
from scoresde.objectives import BlurredLow, LowAugmentation, NoisedLow
from scoresde.score import LatentModel, ScoreModel
from scoresde.sde import VP, GaussianSDE
from scoresde.training.files.checkpoint import CheckpointError
from scoresde.training.files.description import build_process
from scoresde.training.files.models import load, save

__all__ = ["SYSTEM", "System", "kind_of"]

SYSTEM = "system.json"
"""The file in a folder that describes the system."""

_AUGMENTATIONS = {kind.__name__: kind for kind in (NoisedLow, BlurredLow)}


class System:
    """Interface of the systems that are saved in a folder: dataclasses of models, numbers, names, and other systems.

    Example:
        >>> import scoresde, tempfile
        >>> from scoresde.systems import Cascade, CascadeStage
        >>> model = ScoreModel(scoresde.models.UNet(1, 8, (1, 2)), scoresde.VP(), "v")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Cascade([CascadeStage(model, (1, 4, 4), steps=3)]).save(folder)
        ...     Cascade.open(folder).stages[0].steps
        3
    """

    _known: ClassVar[dict[str, type[System]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        System._known[cls.__name__] = cls

    def save(self, folder: str | os.PathLike[str], written: Mapping[str, str] | None = None) -> None:
        """Save the system in a folder, from which :meth:`open` builds it again.

        Args:
            folder: the folder; it is made where it does not exist.
            written: the files of models that are in the folder already, such as those of a training, by the name of the
                argument: ``{"model": "model.safetensors"}``.

        Raises:
            TypeError: for a part that has no description, such as a solver that is not given by its name.
        """
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_told(self, "", out, dict(written or {})), indent=1)
        with replacing(out / SYSTEM) as temporary:
            Path(temporary).write_text(text, encoding="utf-8")

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Self:
        """Open the system in a folder; called as ``System.open`` it opens one of any class.

        Raises:
            CheckpointError: for a folder without a system of this class, and a damaged one.
            ValueError: if the folder of its text encoder is gone.
        """
        file = Path(folder) / SYSTEM
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no {SYSTEM}; expected a folder that System.save or a training has written"
            )
        try:
            found = _made(json.loads(file.read_text(encoding="utf-8")), Path(folder))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{file} does not describe a system ({error}); expected a file of System.save") from error
        if not isinstance(found, cls):
            raise CheckpointError(f"{folder} holds a {type(found).__name__}; expected a {cls.__name__}")
        return found


def kind_of(folder: str | os.PathLike[str]) -> str | None:
    """Return the name of the class of the system in a folder, or ``None`` where there is none that can be read.

    Example:
        >>> kind_of("no-such-run") is None
        True
    """
    try:
        kind = json.loads((Path(folder) / SYSTEM).read_text(encoding="utf-8"))["system"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return kind if isinstance(kind, str) else None


def _told(value: Any, name: str, out: Path, written: Mapping[str, str]) -> Any:
    """Return a part of a system as plain values; weights are written to ``out``."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, System):
        inner = f"{name}." if name else ""
        own = {f.name: _told(getattr(value, f.name), inner + f.name, out, written) for f in fields(cast(Any, value))}
        return {"system": type(value).__name__, "arguments": own}
    if isinstance(value, LowAugmentation) and type(value).__name__ in _AUGMENTATIONS:
        own = {f.name: _told(getattr(value, f.name), name, out, written) for f in fields(value)}
        return {"augmentation": type(value).__name__, "arguments": own}
    if isinstance(value, GaussianSDE):
        return {"sde": value.config()}
    if isinstance(value, TextEncoder):
        told = {"folder": str(value.folder.resolve()), "pooling": value.pooling, "length": value.length}
        return {"encoder": told | {"cache": None if value.cache is None else str(value.cache.resolve())}}
    if type(value) in (ScoreModel, LatentModel):
        file = written.get(name, f"{name}.safetensors")
        if name not in written:
            save(value, out / file)
        return {"model": file}
    if isinstance(value, nn.Module) and not isinstance(value, ScoreModel):
        save(ScoreModel(value, VP()), out / f"{name}.safetensors")  # as fit trains it
        return {"network": f"{name}.safetensors"}
    if isinstance(value, Sequence):
        return [_told(part, f"{name}.{i}", out, written) for i, part in enumerate(value)]
    raise TypeError(
        f"got a {type(value).__name__} for {name} of a system to save; expected plain score models, with guidance and "
        "thresholds as arguments of the system, and solvers by name"
    )


def _made(told: Any, folder: Path) -> Any:
    """Return the part of a system that is described."""
    if isinstance(told, list):
        return [_made(part, folder) for part in told]
    if not isinstance(told, dict):
        return told
    if "system" in told or "augmentation" in told:
        kind: Any = System._known[told["system"]] if "system" in told else _AUGMENTATIONS[told["augmentation"]]
        return kind(**{name: _made(part, folder) for name, part in told["arguments"].items()})
    if "sde" in told:
        return build_process(told["sde"], "default", folder / SYSTEM)
    if "encoder" in told:
        return TextEncoder(**told["encoder"])
    model = load(_inside(folder, told.get("model") or told["network"]))
    return model if "model" in told else model.net.requires_grad_(False).eval()  # contrastive models guide, frozen


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder; a name that leads out of it is refused."""
    if Path(name).name != name:
        raise CheckpointError(f"{folder / SYSTEM} names the file {name!r}; expected one in the same folder")
    return folder / name
