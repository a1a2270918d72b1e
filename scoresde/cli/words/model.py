"""What the commands train and sample do with words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from scoresde.base.files import replacing
from scoresde.cli.words.alphabet import ALPHABET, read_words
from scoresde.discrete import Absorbing, DenoisingModel
from scoresde.models import TokenTransformer
from scoresde.sampling import sample as draw
from scoresde.solvers import sample_seeds
from scoresde.training import Files, Method, fit, load
from scoresde.training.files import runs

__all__ = ["draw_words", "train_words"]


def train_words(
    path: Path,
    out: Path,
    steps: int,
    objective: str,
    width: int,
    method: Method,
    files: Files,
    *,
    limit: int | None,
    device: str | None,
    progress: bool,
) -> bool:
    """Train a masked diffusion model of words, and print what is trained and how to sample it."""
    x, alphabet = read_words(path, limit)
    torch.manual_seed(method.seed)  # of the initial weights
    net = TokenTransformer(len(alphabet) + 1, x.shape[1], outputs=len(alphabet), width=4 * width, depth=3)
    model = DenoisingModel(net, Absorbing(len(alphabet)))
    parameters = sum(p.numel() for p in model.parameters())
    typer.echo(f"data: {len(x)} words of {x.shape[1]} characters from {alphabet!r}")
    typer.echo(f"model: TokenTransformer of {parameters} parameters on {model.process!r}")
    out.mkdir(parents=True, exist_ok=True)
    known = out / ALPHABET
    if known.is_file() and known.read_text(encoding="utf-8") != alphabet:
        raise ValueError(
            f"got words with the characters {alphabet!r}, and a run folder {str(out)!r} of words with "
            f"{known.read_text(encoding='utf-8')!r}; expected the same words, or another --out"
        )
    where = replace(files, path=out / runs.CHECKPOINT)
    found = fit(model, x, objective, steps=steps, method=method, files=where, device=device, progress=progress)
    with replacing(known) as temporary:
        temporary.write_text(alphabet, encoding="utf-8")
    typer.echo(f"\nloss by time after {len(found.history)} steps:\n{found.report}\n")
    typer.echo(f"checkpoint: {out / runs.CHECKPOINT}\nnow: scoresde sample {out}")
    return True


def draw_words(
    run: Path,
    n: int,
    solver: str,
    steps: int,
    path: Any,
    seed: int,
    out: Path | None,
    *,
    batch_size: int,
    device: torch.device,
    progress: bool,
) -> None:
    """Draw words from the model in a run folder, print the first of them, and write all to a text file."""
    out = run / "samples.txt" if out is None else out
    if out.suffix != ".txt":
        raise ValueError(f"got --out {str(out)!r} for words; expected a name that ends in .txt")
    alphabet = (run / ALPHABET).read_text(encoding="utf-8")
    model: Any = load(run)
    model.to(device)
    seeds, words, calls = sample_seeds(seed, n), [], 0
    for start in range(0, n, batch_size):
        part = seeds[start : start + batch_size]
        found = draw(model, (len(part), model.net.length), solver, steps, path, seed=part, device=device, progress=progress)
        words += ["".join(alphabet[token] for token in row) for row in found.x.tolist()]
        solver_name, calls = found.solver, found.evaluations
    with replacing(out) as temporary:
        temporary.write_text("\n".join(words) + "\n", encoding="utf-8")
    typer.echo(" ".join(words[:8]))
    typer.echo(f"{n} words by {solver_name}, {calls} evaluations each: {out}")
