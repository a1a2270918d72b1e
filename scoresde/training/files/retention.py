"""The files of a training: which are written, when, and which are kept.

The name of every file starts with the name of the newest checkpoint. Files of which there can be several start with the name
of the *run*, the name of the checkpoint and a digest of the training's description. Trainings that share a folder, at the
same time or one after the other, therefore change their own files only.
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
    """The files that a training writes, and when.

    Raises:
        ValueError: for a setting out of its range, and for an ``accept`` that is a single text.

    Example:
        >>> Files("runs/mine/model.safetensors", save_every=500, keep_last=2).log
        True
    """

    path: str | os.PathLike[str] | None = None
    """The newest checkpoint, ``"run/model.safetensors"``. It is written every ``save_every`` steps, at the end, and on
    Ctrl-C or SIGTERM. All other files are beside it. With ``None`` nothing is written."""
    save_every: int = option(1000, "Steps between checkpoints.", least=1)
    keep_last: int = option(0, "Number of older checkpoints to keep.", least=0)
    keep_every: int = option(0, "Keep the checkpoints at multiples of so many steps; 0 for none.", least=0)
    keep_best: bool = option(False, "Keep the checkpoint with the smallest first number of the monitor.")
    snapshot_every: int = option(
        0, "Steps between snapshots of the power-function averages, for reconstruct; 0 for none.", least=0
    )
    log: bool = option(True, "Write CSV files with the loss of every step and the numbers of the monitor.")
    tensorboard: bool = option(False, "Write logs for TensorBoard too.")
    resume: bool = option(True, "Resume from the checkpoint, if there is one.")
    accept: Sequence[str] = option(
        (), "A setting that may differ from the setting in the checkpoint, such as lr; may be repeated.", kind=str
    )
    monitor_every: int = option(1000, "Steps between calls of the monitor; 0 for never.", least=0)

    def __post_init__(self) -> None:
        if isinstance(self.accept, str):
            raise ValueError(f"got accept={self.accept!r}; expected a sequence of names: pass accept=({self.accept!r},)")
        check_options(self)

    def keeps(self, step: int, steps: Sequence[int]) -> bool:
        """Return whether to keep the checkpoint of ``step``, given the steps of all checkpoints."""
        newer = sum(other > step for other in steps)
        return newer < self.keep_last or bool(self.keep_every and step % self.keep_every == 0)

    def accepts(self, entry: str) -> bool:
        """Return whether an entry of a description, ``"training.lr"``, may differ from the entry in the checkpoint."""
        return any(re.fullmatch(rf"(training\.)?{re.escape(name)}(\..*)?", entry) for name in self.accept)


@dataclass(frozen=True)
class Places:
    """The paths of the files of one run.

    Args:
        path: the newest checkpoint.
        run: the start of the names of kept checkpoints and snapshots.

    Example:
        >>> Places(Path("mine/model.safetensors"), "model-0123abcd").kept(500).name
        'model-0123abcd-000000500.safetensors'
    """

    path: Path
    run: str

    @classmethod
    def of(cls, path: str | os.PathLike[str], description: Any) -> Places:
        """Return the paths of the training with this description.

        Raises:
            ValueError: for a path with the extension of a pickle, ``.pt`` or the like.
        """
        path = check_name(path)
        return cls(path, f"{_base(path)}-{digest(description)[:8]}")

    @property
    def best(self) -> Path:
        """The path of the best checkpoint."""
        return self.path.parent / "checkpoints" / f"{self.run}-best.safetensors"

    def kept(self, step: int) -> Path:
        """Return the path of the kept checkpoint of a step."""
        return self.path.parent / "checkpoints" / f"{self.run}-{step:09d}.safetensors"

    def snapshot(self, step: int) -> Path:
        """Return the path of the snapshot of a step."""
        return self.path.parent / "snapshots" / f"{self.run}-{step:09d}.safetensors"

    @property
    def log(self) -> Path:
        """The path of the log of steps."""
        return self.path.with_name(f"{_base(self.path)}.csv")

    @property
    def metrics(self) -> Path:
        """The path of the log of the monitor's numbers."""
        return self.path.with_name(f"{_base(self.path)}.metrics.csv")

    @property
    def lock(self) -> Lock:
        """The lock that the process which writes these files holds."""
        return Lock(self.path, self.path.with_name(f".{_base(self.path)}.lock"))

    @property
    def board(self) -> Path:
        """The folder of the logs for TensorBoard."""
        return self.path.parent / "tensorboard" / self.run

    def check_writable(self) -> None:
        """Check that checkpoints can be written, and create the folder if it does not exist.

        Raises:
            ValueError: if the path of the checkpoint is a folder.
            PermissionError: if the folder is not writable.
        """
        path = self.path
        if path.is_dir():
            raise ValueError(
                f"got the folder {path} for a checkpoint; expected the path of a file: {path / 'model.safetensors'}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(
                f"the folder {path.parent} cannot be written to; expected a folder for checkpoints: choose another"
            )

    def state(self) -> tuple[int, int, int] | None:
        """Return the inode, time and size of the newest checkpoint, which identify it; ``None`` if there is none."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def remove_later(self, step: int) -> None:
        """Remove temporary files of a killed process, and the files of this run of steps after ``step``."""
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
        """Yield the steps and paths of the files of this run in a folder."""
        pattern = re.compile(re.escape(self.run) + r"-(\d+)\.safetensors")
        for file in folder.iterdir() if folder.is_dir() else ():
            found = pattern.fullmatch(file.name)
            if found:
                yield int(found[1]), file

    def retain(self, step: int, files: Files) -> None:
        """Keep a copy of the newest checkpoint under its step, and remove the copies that ``files`` does not keep."""
        if not files.keep_last and not files.keep_every:
            return
        with replacing(self.kept(step)) as temporary:
            try:
                os.link(self.path, temporary)  # a second name of the same file, until the newest is replaced
            except OSError:  # the file system has no hard links
                shutil.copyfile(self.path, temporary)
        found = dict(self._numbered(self.kept(step).parent))
        for other, file in found.items():
            if not files.keeps(other, list(found)):
                file.unlink()


def _base(path: Path) -> str:
    """Return the file name without ``.safetensors``; any other ending is part of the name, as in ``lr0.001``."""
    return path.stem if path.suffix == ".safetensors" else path.name
