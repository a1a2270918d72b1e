"""What several tests share: every SDE, a smooth problem, and exact propagation through a solver on Gaussian data."""

from __future__ import annotations

import itertools
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import EDM, VE, VP, CosineVP, FunctionSDE, RectifiedFlow, ScoreModel, SubVP, solvers
from scoresde.analysis import moments
from scoresde.problems import GaussianMixture
from scoresde.sde import GaussianSDE
from scoresde.solvers import FreshNoise, Path, Point
from scoresde.training import Files, Method

SDES: dict[str, GaussianSDE] = {
    "VP": VP(),
    "CosineVP": CosineVP(),
    "SubVP": SubVP(),
    "VE": VE(),
    "EDM": EDM(),
    "RectifiedFlow": RectifiedFlow(),
    "FunctionSDE": FunctionSDE(lambda t: -0.5 * t**2, lambda t: torch.log(t) + 0.3 * t, t_min=1e-3, t_max=2.0),
}
"""Every SDE; a new one is tested by being added here."""


def mostly_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """The values of a parameter, of which all but ``quick`` are run with ``-m slow`` alone."""
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def covering(firsts: Iterable[Any], seconds: Iterable[Any], each: int = 1) -> list[Any]:
    """All pairs; by default every first is run with ``each`` of the seconds in turn, and with the others by ``-m slow``."""
    columns = list(seconds)
    return [
        pytest.param(a, b, marks=[] if (j - i) % len(columns) < each else pytest.mark.slow)
        for i, a in enumerate(firsts)
        for j, b in enumerate(columns)
    ]


def finite_start(sde: GaussianSDE) -> float:
    """The end of the span, or a little before where alpha = 0 there, which not every solver can carry."""
    t = sde.span[1]
    return t if math.isfinite(float(sde.lam(t))) else 0.9 * t


def mixture() -> GaussianMixture:
    """Three smooth modes in the plane."""
    means = torch.tensor([[-1.0, 0.3], [0.8, -0.5], [0.2, 0.9]], dtype=torch.float64)
    covariances = torch.tensor([0.15, 0.1, 0.2], dtype=torch.float64)
    return GaussianMixture(means, covariances, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def amid_the_modes(sde: GaussianSDE, n: int = 6) -> tuple[Tensor, float]:
    """States of :func:`mixture` at lam = 0, where the modes part, and their time: the first step errs as much as any other.

    From the prior on, where the flow is nearly linear, a first step of order one hides behind the rest for very long.
    """
    t = float(sde.time(0.0))
    eps = torch.randn(n, 2, generator=generator(5), dtype=torch.float64)
    return sde.perturb(mixture().sample(n, generator(7), dtype=torch.float64), t, eps), t


def slopes(errors: Sequence[float], factor: float = 2.0) -> list[float]:
    """The observed orders between successive refinements."""
    return [math.log(a / b) / math.log(factor) for a, b in itertools.pairwise(errors)]


class LinearModel:
    """E[x_0 | x_t] for data N(mean, std^2), acting on affine forms: row vectors of coefficients, the first of 1."""

    def __init__(self, sde: GaussianSDE, mean: float, std: float) -> None:
        self.sde, self.mean, self.std = sde, mean, std

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        one = torch.zeros_like(x)
        one[:, 0] = 1
        return gain * x + self.mean * (1 - gain * alpha) * one

    def at(self, times: Tensor, *, device: torch.device, dtype: torch.dtype) -> list[Callable[[Tensor], Tensor]]:
        return [lambda x, t=t: self(x, t) for t in times]


class BasisNoise(FreshNoise):
    """Noise that is the next unit vector instead of a number."""

    def __init__(self) -> None:
        self.used = 1

    def __call__(self, start: Point, to: Point, out: Tensor, kernel: float = 0.0) -> Tensor:
        self.used += 1
        out.zero_()[:, self.used] = 1
        return out


def propagate(solver: solvers.RowSolver, path: Path, mean: float, std: float) -> tuple[float, float]:
    """Exact mean and variance of a solver's output on data N(mean, std^2), from the exact marginal: no Monte Carlo."""
    found = moments(solver, path, [mean], std**2)
    return float(found.mean), float(found.covariance)


def rms(x: Tensor | np.ndarray) -> float:
    return float(torch.as_tensor(x).pow(2).mean().sqrt())


def model_on(sde: GaussianSDE) -> ScoreModel:
    return mixture().model(sde)


def divided(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a trainer from flat ones: settings of its method, of its files (``out`` is their path), and others.

    ``averages`` are all of them, the first one to sample from.
    """
    arguments = dict(arguments)
    if "averages" in arguments:
        first, *more = arguments["averages"] or [None]
        arguments |= {"ema": first, "averages": more}
    if "out" in arguments:
        arguments["path"] = arguments.pop("out")
    method, files = ({f.name: arguments.pop(f.name) for f in fields(c) if f.name in arguments} for c in (Method, Files))
    return {"method": Method(**method), "files": Files(**files), **arguments}


def tiny_bert(place: pathlib.Path) -> pathlib.Path:
    """Write a random BERT of 8 features with a tokenizer of five words to a folder; skip without transformers."""
    transformers = pytest.importorskip("transformers")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "apple", "steam", "locomotive"]
    (place / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(place / "vocab.txt")).save_pretrained(place)
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=12,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(place)
    return place
