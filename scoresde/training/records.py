"""The progress bar and the logs of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scoresde.training.files.logs import Log
from scoresde.training.files.retention import Files, Places
from scoresde.training.steps import Outcome

__all__ = ["Records"]


class Records:
    """The progress bar and the logs of a training, open during a run.

    Args:
        places: the paths of the logs; ``None`` writes no logs.
        files: the logs to write.
        done: steps done before the run.
        total: steps of the whole training.
        size: samples per step.
        progress: show the progress bar.
        metrics: log the numbers of a monitor too.
    """

    def __init__(
        self, places: Places | None, files: Files, done: int, total: int, size: int, progress: bool, metrics: bool
    ) -> None:
        self.places, self.files, self.done, self.total, self.size = places, files, done, total, size
        self.progress, self.expected = progress, metrics
        self.smooth = math.nan
        self.log: Log | None = None
        self.numbers: Log | None = None
        self.board: Any = None

    def __enter__(self) -> Records:
        from tqdm.auto import tqdm

        if self.places is not None and self.files.log:
            self.log = Log(self.places.log, ["step", "loss", "grad_norm", "lr", "samples_per_s"], self.done)
            if self.expected:
                self.numbers = Log(self.places.metrics, ["step", "name", "value"], self.done)
        if self.places is not None and self.files.tensorboard:
            self.board = _board(self.places.board, self.done)
        total, done, hidden = self.total * self.size, self.done * self.size, not self.progress
        self.bar = tqdm(total=total, initial=done, unit=" samples", unit_scale=True, disable=hidden, desc="fit")
        self.clock = time.perf_counter()
        return self

    def step(self, step: int, outcome: Outcome) -> None:
        """Log the result of a step, and move the progress bar."""
        now = time.perf_counter()
        rate, self.clock = self.size / (now - self.clock), now
        row: dict[str, Any] = {"step": step, "loss": outcome.loss, "grad_norm": outcome.norm, "lr": outcome.lr}
        if self.log is not None:
            self.log.write({**row, "samples_per_s": f"{rate:.5g}"})
        if self.board is not None:
            for name in ("loss", "grad_norm", "lr"):
                self.board.add_scalar(name, row[name], step)
        if math.isfinite(outcome.loss):
            self.smooth = outcome.loss if math.isnan(self.smooth) else 0.98 * self.smooth + 0.02 * outcome.loss
        self.bar.set_postfix_str(f"step {step}/{self.total}, loss {self.smooth:.4f}", refresh=False)
        self.bar.update(self.size)

    def metrics(self, step: int, found: Mapping[str, float]) -> None:
        """Log the numbers that a monitor returned."""
        for name, value in found.items():
            if self.numbers is not None:
                self.numbers.write({"step": step, "name": name, "value": value})
            if self.board is not None:
                self.board.add_scalar(name, value, step)

    def __exit__(self, *error: object) -> None:
        for open_ in (self.bar, self.log, self.numbers, self.board):
            if open_ is not None:
                open_.close()


def _board(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "got tensorboard=True, which needs the package tensorboard; install it: pip install 'scoresde[train]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1)
