"""The files of a training: what is written when, and which of them stay.

All of them carry the name of the newest checkpoint, and those that there may be several of the *run*: that name with a
digest of all that the training is. So trainings that share a folder, or follow each other in it, see their own files alone.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoresde.base.files import leftovers, replacing
from scoresde.base.identity import digest
from scoresde.base.lock import Lock
from scoresde.base.options import check_options, option
from scoresde.training.files.models import check_name

__all__ = ["Files", "Places"]


@dataclass(frozen=True)
class Files:
    """What a training writes, and when.

    Example:
        >>> Files("runs/mine/model.safetensors", save_every=500, keep_last=2).log
        True
    """

    path: str | os.PathLike[str] | None = None
    """The newest checkpoint, ``"run/model.safetensors"``, written every ``save_every`` steps, at the end, and on Ctrl-C or
    SIGTERM. The rest lies beside it. Without it nothing is written."""
    save_every: int = option(1000, "Steps between checkpoints.", least=1)
    keep_last: int = option(0, "So many older checkpoints stay.", least=0)
    keep_every: int = option(0, "Checkpoints at a multiple of so many steps stay; 0 for none.", least=0)
    keep_best: bool = option(False, "The checkpoint with the least first number of the monitor stays.")
    snapshot_every: int = option(
        0, "Steps between snapshots of the power-function averages, for reconstruct; 0 for none.", least=0
    )
    log: bool = option(True, "Write the loss of every step, and what the monitor returns, to tables.")
    tensorboard: bool = option(False, "Log for TensorBoard too.")
    resume: bool = option(True, "Continue from the checkpoint where there is one.")
    accept: Sequence[str] = option(
        (), "A setting that may differ from the checkpoint's, such as lr; may be repeated.", kind=str
    )
    monitor_every: int = option(1000, "Steps between calls of the monitor; 0 for never.", least=0)

    def __post_init__(self) -> None:
        if isinstance(self.accept, str):
            raise ValueError(f"got accept={self.accept!r}; expected several names: accept=({self.accept!r},)")
        check_options(self)

    def keeps(self, step: int, steps: Sequence[int]) -> bool:
        """Whether the checkpoint of ``step`` stays among those of ``steps``."""
        newer = sum(other > step for other in steps)
        return newer < self.keep_last or bool(self.keep_every and step % self.keep_every == 0)

    def accepts(self, entry: str) -> bool:
        """Whether an entry of a description, ``"training.lr"``, may differ from the checkpoint's."""
        return any(re.fullmatch(rf"(training\.)?{re.escape(name)}(\..*)?", entry) for name in self.accept)


@dataclass(frozen=True)
class Places:
    """Where the files of one run are.

    Args:
        path: the newest checkpoint.
        run: what the names of the others start with.
    """

    path: Path
    run: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], description: Any) -> Places:
        """The places of the training that ``description`` is of."""
        path = check_name(path)
        return cls(path, f"{_base(path)}-{digest(description)[:8]}")

    @property
    def best(self) -> Path:
        """The best checkpoint."""
        return self.path.parent / "checkpoints" / f"{self.run}-best.safetensors"

    def kept(self, step: int) -> Path:
        """The checkpoint of a step that stays."""
        return self.path.parent / "checkpoints" / f"{self.run}-{step:09d}.safetensors"

    def snapshot(self, step: int) -> Path:
        """The snapshot of a step."""
        return self.path.parent / "snapshots" / f"{self.run}-{step:09d}.safetensors"

    @property
    def log(self) -> Path:
        """The table of the steps."""
        return self.path.with_name(f"{_base(self.path)}.csv")

    @property
    def metrics(self) -> Path:
        """The table of what the monitor returned."""
        return self.path.with_name(f"{_base(self.path)}.metrics.csv")

    @property
    def lock(self) -> Lock:
        """The lock of whoever writes them."""
        return Lock(self.path, self.path.with_name(f".{_base(self.path)}.lock"))

    @property
    def board(self) -> Path:
        """The folder of TensorBoard's files."""
        return self.path.parent / "tensorboard" / self.run

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

    def state(self) -> tuple[int, int, int] | None:
        """What changes when the newest checkpoint is replaced; ``None`` where there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def remove_later(self, step: int) -> None:
        """Remove what is left of this run by a process that was killed, and of steps that are to be made again."""
        for file in (self.path, self.log, self.metrics):
            for left in list(leftovers(file)):
                left.unlink(missing_ok=True)
        for folder in ("checkpoints", "snapshots"):
            inside = self.path.parent / folder
            for left in list(leftovers(inside / f"{self.run}.safetensors", r"-(\d+|best)")):
                left.unlink(missing_ok=True)
            for number, file in list(self._numbered(inside)):
                if number > step:
                    file.unlink(missing_ok=True)
        if step == 0:
            self.best.unlink(missing_ok=True)

    def _numbered(self, folder: Path) -> Iterator[tuple[int, Path]]:
        """The files of this run in a folder, with their steps."""
        pattern = re.compile(re.escape(self.run) + r"-(\d+)\.safetensors")
        for file in folder.iterdir() if folder.is_dir() else ():
            found = pattern.fullmatch(file.name)
            if found:
                yield int(found[1]), file

    def retain(self, step: int, files: Files) -> None:
        """Keep the newest checkpoint under the number of its step, and remove what need not be kept any more."""
        if not files.keep_last and not files.keep_every:
            return
        with replacing(self.kept(step)) as temporary:
            try:
                os.link(self.path, temporary)  # one file under two names, until the newest is replaced
            except OSError:  # a disk without such links
                shutil.copyfile(self.path, temporary)
        found = dict(self._numbered(self.kept(step).parent))
        for other, file in found.items():
            if not files.keeps(other, list(found)):
                file.unlink()


def _base(path: Path) -> str:
    """The name of the newest checkpoint without ``.safetensors``; of any other ending it is a part, as in ``lr0.001``."""
    return path.stem if path.suffix == ".safetensors" else path.name
