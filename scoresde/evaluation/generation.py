"""Generation of tens of thousands of samples: in files by ranges of seeds, by several processes, resumed after a stop."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.devices import as_device
from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.processes import share, workers
from scoresde.base.reading import open_regular
from scoresde.data import Dataset
from scoresde.data.arrays import npy_header
from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.solvers import get, sample_seeds

__all__ = ["Generated", "generate"]


_HEADER = 16384  # bytes, more than any header takes


@dataclass(frozen=True)
class _Request:
    """All arguments but the model on which a sample depends: equal requests to one model give equal samples."""

    event: tuple[int, ...]
    solver: str
    steps: int
    path: str | None
    end: str | None
    seed: int
    shard: int
    labels: tuple[int, ...] | None
    model: str

    @property
    def name(self) -> str:
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=6).hexdigest()


@dataclass(eq=False)
class Generated(Dataset):
    """A dataset of the samples in the files of a folder, which are read on demand.

    Args:
        folder: the folder that :func:`generate` made.
        event: the shape of a sample.
        n: the number of samples.
        shard: the number of samples in a file; the last file may have fewer.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/00000000-00000002.npy", np.array([[1.0], [2.0]], dtype=np.float32))
        ...     np.save(f"{folder}/00000002-00000003.npy", np.array([[3.0]], dtype=np.float32))
        ...     Generated(Path(folder), (1,), 3, shard=2).samples([2, 0]).tolist()
        [[3.0], [1.0]]
    """

    folder: Path
    event: tuple[int, ...]
    n: int
    shard: int

    def __len__(self) -> int:
        return self.n

    def file(self, start: int) -> Path:
        """Return the file of the samples from number ``start`` on."""
        return self.folder / f"{start:08}-{min(start + self.shard, self.n):08}.npy"

    def starts(self) -> list[int]:
        """Return the numbers of the first samples of all files."""
        return list(range(0, self.n, self.shard))

    def samples(self, indices: Tensor | Any) -> Tensor:
        """Return the samples at these indices: see :meth:`scoresde.data.Dataset.samples`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        x = torch.empty(len(chosen), *self.event)
        for k in torch.unique(chosen // self.shard).tolist():
            here, start = chosen // self.shard == k, k * self.shard
            x[here] = torch.from_numpy(self._shard(start)[(chosen[here] - start).numpy()])
        return x

    def _shard(self, start: int) -> np.ndarray[Any, Any]:
        """Return the samples of a file, mapped into memory and read on demand."""
        path, shape = self.file(start), (min(self.shard, self.n - start), *self.event)
        try:
            with open_regular(path) as file:
                dtype, found, fortran, begin = npy_header(file.read(_HEADER))
                size = file.seek(0, 2)
            if dtype != np.float32 or found != shape or fortran or size != begin + 4 * math.prod(shape):
                raise ValueError(f"it has {size} bytes, {dtype} of shape {found}; expected float32 of shape {shape}")
            return np.memmap(path, np.float32, "r", begin, shape)
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the samples in {str(path)!r}: {error}; remove the file and run again") from error

    def fingerprint(self) -> str:
        """Return the name of the folder, a digest of all that the samples depend on, and their number."""
        return f"{self.n} of {self.folder.name}"


def generate(
    model: ScoreModel,
    event: tuple[int, ...],
    folder: Path,
    n: int,
    *,
    solver: str = "auto",
    steps: int = 20,
    path: str | None = None,
    end: str | None = None,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    shard: int = 512,
    processes: int = 1,
    device: str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Generated:
    """Draw ``n`` samples into files below ``folder``, each a range of seeds, or return those that exist.

    A file is written whole or not at all. After an interruption of any kind, the same call continues. A call for more
    samples adds to those that exist. Several processes that make one call at the same time, on one machine or on several
    that see the folder, share the files, and each returns when all are there. A sample depends on its seed, and neither on
    the number of processes nor on interruptions. (Its last bits may change with the number of threads of a process.)

    Args:
        model: the score model to sample from.
        event: the shape of a sample.
        folder: the folder in which the samples get a subfolder, named by a digest of the model and the arguments below.
        n: the number of samples.
        solver, steps, path, end, seed: the arguments of :func:`scoresde.sample`; the seed is one integer.
        labels: the labels for a network with classes; samples take them in turn: sample i gets label i modulo their number.
        shard: the number of samples in a file, which are drawn as one batch.
        processes: the number of processes that draw at the same time; on several GPUs they take turns among them. Above 1,
            the model must be picklable, and a script needs its ``if __name__ == "__main__":``.
        device: the device of the model: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        progress: a function called with the number of new samples; existing ones are counted in one call.

    Raises:
        ValueError: for numbers below 1, an unknown solver, a device that does not exist, a model that cannot be identified
            by its content, and a model that cannot be sent to other processes.

    Example:
        >>> import scoresde, tempfile
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate(model, (2,), Path(folder), 10, steps=5, shard=4).tensor().shape
        torch.Size([10, 2])
    """
    counts = {"n": n, "shard": shard, "processes": processes, "labels": 1 if labels is None else len(labels)}
    if wrong := [f"{key}={value}" for key, value in counts.items() if value < 1]:
        raise ValueError(f"got {', '.join(wrong)}; expected at least 1")
    get(solver)
    as_device(device)
    taken = None if labels is None else tuple(int(label) for label in labels)
    request = _Request(tuple(event), solver, steps, path, end, seed, shard, taken, digest(model))
    found = Generated(folder / request.name, event, n, shard)
    description = found.folder / "request.json"
    if not description.exists():
        with replacing(description) as temporary:
            temporary.write_text(json.dumps(asdict(request), indent=2) + "\n")
    left = [start for start in found.starts() if not found.file(start).exists()]
    count = progress or (lambda new: None)
    count(n - sum(min(shard, n - start) for start in left))
    if processes == 1 or len(left) < 2:
        _draw(model, request, found, left, _device(device, int(os.environ.get("LOCAL_RANK", "0"))), count)
    else:
        _spread(model, request, found, left, min(processes, len(left)), device, count)
    return found


def _device(device: str, rank: int) -> str:
    """Return the device of process number ``rank`` on this machine, which take turns among its GPUs."""
    return f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" and torch.cuda.is_available() else device


def _draw(
    model: ScoreModel,
    request: _Request,
    found: Generated,
    starts: list[int],
    device: str,
    count: Callable[[int], object],
) -> None:
    """Draw and write the files that begin at ``starts``, together with all processes that draw the same samples."""
    model = model.to(device)
    named = {found.file(start).name: start for start in starts}
    counted: set[str] = set()

    def done(name: str) -> bool:
        there = (found.folder / name).exists()
        if there and name not in counted:
            counted.add(name)
            count(min(found.shard, found.n - named[name]))
        return there

    def draw(name: str) -> None:
        start = named[name]
        stop = min(start + found.shard, found.n)
        labels = request.labels
        conditions = {} if labels is None else {"label": [labels[i % len(labels)] for i in range(start, stop)]}
        drawn = sample(
            model,
            (stop - start, *request.event),
            request.solver,
            request.steps,
            request.path,
            conditions=conditions,
            end=request.end,
            seed=sample_seeds(request.seed, stop)[start:],
            progress=False,
            device=device,
        )
        with replacing(found.file(start)) as temporary:
            np.save(temporary, drawn.x.float().cpu().numpy())

    share(list(named), found.folder, done, draw)


def _in_process(
    threads: int, model: ScoreModel, request: _Request, found: Generated, starts: list[int], device: str
) -> None:
    torch.set_num_threads(threads)
    _draw(model, request, found, starts, device, lambda new: None)


def _spread(
    model: ScoreModel,
    request: _Request,
    found: Generated,
    left: list[int],
    processes: int,
    device: str,
    count: Callable[[int], object],
) -> None:
    """Draw the files by several processes; finished files are counted in the folder."""
    threads = max(1, torch.get_num_threads() // processes)
    try:
        pickle.dumps(model.cpu())
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"got processes={processes} for a model that cannot be sent to other processes ({error}); expected processes=1, "
            "or a network whose class stands at the top level of a module"
        ) from error
    before = processes * int(os.environ.get("LOCAL_RANK", "0"))
    with workers(processes) as pool:
        pending = set()
        for rank in range(processes):
            first = len(left) * rank // processes  # so that they do not all begin at one file
            turned = [*left[first:], *left[:first]]
            pending.add(pool.submit(_in_process, threads, model, request, found, turned, _device(device, before + rank)))
        waiting = set(left)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            written = {start for start in waiting if found.file(start).exists()}
            waiting -= written
            count(sum(min(found.shard, found.n - start) for start in written))
