"""Samples by the ten thousand: in files by ranges of seeds, over several processes, continued where it stopped."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.base.files import replacing
from scoresde.base.processes import workers
from scoresde.data import Dataset
from scoresde.sampling import sample
from scoresde.score import ScoreModel
from scoresde.sde.chain import ChainSDE
from scoresde.solvers import get, sample_seeds

__all__ = ["Generated", "generate"]


@dataclass(frozen=True)
class _Request:
    """All that a sample depends on but the model: two equal ones of one model give equal samples."""

    event: tuple[int, ...]
    solver: str
    steps: int
    path: str
    end: str
    seed: int
    shard: int
    classes: int | None
    model: str = ""

    @property
    def name(self) -> str:
        return hashlib.blake2b(json.dumps(asdict(self)).encode(), digest_size=6).hexdigest()


def _digest(model: ScoreModel, name: str) -> str:
    weights = model.state_dict()
    if not weights and not name:
        raise ValueError("got a model without weights; expected name=.., to tell its samples from those of another")
    kind = type(model.net).__name__
    process = model.sde.config() if isinstance(model.sde, ChainSDE) else model.sde  # whose repr abbreviates long tables
    digest = hashlib.blake2b(f"{name} {kind} {process!r} {model.predicts} {model.sigma_data}".encode(), digest_size=12)
    for key, value in weights.items():
        digest.update(key.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(eq=False)
class Generated(Dataset):
    """The samples in the files of a folder, which are read as they are asked for.

    Args:
        folder: of :func:`generate`.
        event: the shape of a sample.
        n: how many samples.
        shard: samples of a file; the last may have fewer.
    """

    folder: Path
    event: tuple[int, ...]
    n: int
    shard: int

    def __len__(self) -> int:
        return self.n

    def file(self, start: int) -> Path:
        """The file of the samples from number ``start`` on."""
        return self.folder / f"{start:08}-{min(start + self.shard, self.n):08}.npy"

    def starts(self) -> list[int]:
        """The numbers of the first samples of all files."""
        return list(range(0, self.n, self.shard))

    def samples(self, indices: Tensor | Any) -> Tensor:
        """See :meth:`scoresde.data.Dataset.samples`."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        x = torch.empty(len(chosen), *self.event)
        for k in torch.unique(chosen // self.shard).tolist():
            here, path = chosen // self.shard == k, self.file(k * self.shard)
            try:
                values = np.load(path, mmap_mode="r", allow_pickle=False)[(chosen[here] - k * self.shard).numpy()]
            except (OSError, EOFError, ValueError) as error:
                raise ValueError(
                    f"cannot read the samples in {str(path)!r}: {error}; remove the file and run again"
                ) from error
            x[here] = torch.from_numpy(values)
        return x

    def fingerprint(self) -> str:
        """The name of the folder, which is a digest of all that the samples depend on, and their number."""
        return f"{self.n} of {self.folder.name}"


def generate(
    model: ScoreModel,
    event: tuple[int, ...],
    folder: Path,
    n: int,
    *,
    solver: str = "dpmpp-2m",
    steps: int = 20,
    path: str = "lam",
    end: str = "denoise",
    seed: int = 0,
    classes: int | None = None,
    name: str = "",
    shard: int = 512,
    processes: int = 1,
    device: str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Generated:
    """Draw ``n`` samples into files below ``folder``, each a range of seeds, or find them there.

    A file is written whole or not at all, so that a call that was stopped, by whatever, is continued by the same call; one
    for more samples adds to what there is. A sample depends on its seed, and so neither on the number of processes nor on
    interruptions (its last bits may, where processes have other numbers of threads).

    Args:
        model: what to sample from.
        event: the shape of a sample.
        folder: a folder of its own, named by a digest of the model and the arguments below, is made in it.
        n: how many.
        solver, steps, path, end, seed: of :func:`scoresde.sample`; the seed is one integer.
        classes: of a network with labels: sample i gets the label i modulo this.
        name: of a model without weights, such as an analytic one: tells it from others.
        shard: samples of a file, drawn as one batch.
        processes: how many draw at the same time; on several GPUs they take turns among them. Above 1 the model must be
            picklable, and a script needs its ``if __name__ == "__main__":``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        progress: called with the number of new samples, those found at once.

    Raises:
        ValueError: for numbers below 1, an unknown solver, a model without weights or name, or one that cannot be sent
            to the other processes.

    Example:
        >>> import scoresde, tempfile
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate(model, (2,), Path(folder), 10, steps=5, shard=4, name="ring").tensor().shape
        torch.Size([10, 2])
    """
    counts = {"n": n, "shard": shard, "processes": processes, "classes": 1 if classes is None else classes}
    if wrong := [f"{key}={value}" for key, value in counts.items() if value < 1]:
        raise ValueError(f"got {', '.join(wrong)}; expected at least 1")
    get(solver)
    request = _Request(event, solver, steps, path, end, seed, shard, classes)
    request = replace(request, model=_digest(model, name))
    found = Generated(folder / request.name, event, n, shard)
    description = found.folder / "request.json"
    if not description.exists():
        with replacing(description) as temporary:
            temporary.write_text(json.dumps(asdict(request), indent=2) + "\n")
    left = [start for start in found.starts() if not found.file(start).exists()]
    count = progress or (lambda new: None)
    count(n - sum(min(shard, n - start) for start in left))
    if processes == 1 or len(left) < 2:
        _draw(model, request, found, left, _device(device, 0), count)
    else:
        _spread(model, request, found, left, min(processes, len(left)), device, count)
    return found


def _device(device: str, rank: int) -> str:
    return f"cuda:{rank % torch.cuda.device_count()}" if device == "cuda" and torch.cuda.is_available() else device


def _draw(
    model: ScoreModel,
    request: _Request,
    found: Generated,
    starts: list[int],
    device: str,
    count: Callable[[int], object],
) -> None:
    """Draw and write the files that begin at ``starts``."""
    model = model.to(device)
    for start in starts:
        stop = min(start + found.shard, found.n)
        given: dict[str, Any] = (
            {} if request.classes is None else {"label": torch.arange(start, stop, device=device) % request.classes}
        )
        drawn = sample(
            model,
            (stop - start, *request.event),
            request.solver,
            request.steps,
            request.path,
            end=request.end,
            seed=sample_seeds(request.seed, stop)[start:],
            progress=False,
            device=device,
            conditions=given,
        )
        with replacing(found.file(start)) as temporary:
            np.save(temporary, drawn.x.float().cpu().numpy())
        count(stop - start)


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
    """The same by several processes, each with every so manieth file; what they finish is seen in the folder."""
    threads = max(1, torch.get_num_threads() // processes)
    try:
        pickle.dumps(model.cpu())
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            f"got processes={processes} for a model that cannot be sent to other processes ({error}); expected processes=1, "
            "or a network whose class stands at the top level of a module"
        ) from error
    with workers(processes) as pool:
        pending = {
            pool.submit(_in_process, threads, model, request, found, left[rank::processes], _device(device, rank))
            for rank in range(processes)
        }
        waiting = set(left)
        while pending:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            written = {start for start in waiting if found.file(start).exists()}
            waiting -= written
            count(sum(min(found.shard, found.n - start) for start in written))
