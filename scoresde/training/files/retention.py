"""The files of a training: what is written when, and which of them stay."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scoresde.base.files import replacing

__all__ = ["Files", "Keep"]


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay, in the folder ``checkpoints`` beside the newest.

    Args:
        last: so many of the last ones.
        every: all whose step is a multiple of this.
        best: the one with the least value of the first number that the monitor returned, as ``best.safetensors``.
    """

    last: int = 0
    every: int | None = None
    best: bool = False

    def __post_init__(self) -> None:
        if self.last < 0 or (self.every is not None and self.every < 1):
            raise ValueError(f"got last={self.last} and every={self.every}; expected at least 0 and at least 1")

    def stays(self, step: int, steps: Sequence[int]) -> bool:
        """Whether the checkpoint of ``step`` stays among those of ``steps``."""
        newer = sum(other > step for other in steps)
        return newer < self.last or (self.every is not None and step % self.every == 0)


@dataclass(frozen=True)
class Files:
    """Where the newest checkpoint is, and what is written beside it; the arguments of :class:`Trainer` of these names."""

    path: Path
    save_every: int
    keep: Keep
    snapshot_every: int | None
    log: bool
    tensorboard: bool

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.path.parent / "checkpoints" / f"best{self.path.suffix}"

    def snapshot(self, step: int) -> Path | None:
        """Where the snapshot of a step goes, where there is one."""
        due = self.snapshot_every and step % self.snapshot_every == 0
        return self.path.parent / "snapshots" / f"{step:09d}.safetensors" if due else None

    def check_writable(self) -> None:
        """Fail before the training, not after it.

        Raises:
            ValueError: for a folder in place of a file.
            PermissionError: if nothing can be written there.
        """
        path = self.path
        if path.is_dir():
            raise ValueError(f"got the folder {path} for a checkpoint; expected the name of a file: {path / 'model'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"the folder {path.parent} cannot be written to; no checkpoint could be saved there")

    def remove_leftovers(self) -> None:
        """Remove the temporary files of a training that was killed while it wrote."""
        for folder in (self.path.parent, self.path.parent / "checkpoints", self.path.parent / "snapshots"):
            stem = self.path.stem if folder == self.path.parent else ""
            for file in folder.glob(f".{stem}*"):
                if re.fullmatch(r"\..*\.\d+\.(safetensors|csv)|\..*\.\d+" + re.escape(self.path.suffix), file.name):
                    file.unlink(missing_ok=True)

    def retain(self, step: int) -> None:
        """Keep what was written now under the number of its step, and remove what need not be kept any more."""
        if not self.keep.last and not self.keep.every:
            return
        folder = self.path.parent / "checkpoints"
        with replacing(folder / f"{step:09d}{self.path.suffix}") as temporary:
            os.link(self.path, temporary)  # one file under two names, until the newest is replaced
        files = {int(file.stem): file for file in folder.glob(f"*{self.path.suffix}") if file.stem.isdigit()}
        for other, file in files.items():
            if not self.keep.stays(other, list(files)):
                file.unlink()
