"""Cascades: a score model of small samples, and models that enlarge them, each conditioned on the stage before.

A stage sees errors of the stage before that were not in its data. Conditioning augmentation makes it robust: in training the
smaller sample is augmented at a random level, by noise or blur, and the network is told the level. In sampling it is
augmented at a level of choice as well. A network that is told a level above 0 and is fed a clean sample expects noise where
there is none, shrinks what it sees, and the samples vary too little; the page on cascades derives by how much.

Where the augmentation is the noise of the SDE of the stage before, that stage may be stopped at this level instead:
truncated sampling, which has the same law and fewer steps.

Source: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021, https://arxiv.org/abs/2106.15282.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import guidance as steering
from scoresde.base.numbers import whole
from scoresde.models import Contrastive
from scoresde.objectives import LowAugmentation, NoisedLow, Objective, SuperResolved
from scoresde.objectives import objective as named
from scoresde.sampling import Samples, sample
from scoresde.score import ScoreModel
from scoresde.solvers import FreshNoise, Solver, sample_seeds
from scoresde.systems.conditioning import guided, nulls_of
from scoresde.systems.resized import Resized
from scoresde.systems.system import System
from scoresde.training import FitResult, fit

__all__ = ["Cascade", "CascadeStage", "train_stage"]


@dataclass(frozen=True, eq=False)
class CascadeStage(System):
    """A stage of a cascade.

    Args:
        model: the score model; of all stages but the first one that takes the conditions ``low`` and ``level``.
        event: the shape of a sample.
        augmentation: the augmentation of ``low``; ``None`` for none.
        solver, steps, path: how the stage is sampled; see :func:`scoresde.sample`.
        guidance: the scale of classifier-free guidance away from the absence of its conditions; 1 for none.
        threshold: the quantile of dynamic thresholding, :class:`~scoresde.guidance.DynamicThreshold`; ``None`` for none.
        contrast: a contrastive model, of clean or of noised images, that guides towards a text, whose embedding is the
            condition ``pooled``.
        towards: the scale of its guidance.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.UNet(1, 8, (1, 2), num_classes=3), scoresde.VP(), "v")
        >>> stage = CascadeStage(model, (1, 4, 4), guidance=2.0)
        >>> stage.steered({"label": [0]}).null, stage.steered({}) is stage.model
        ({'label': 3}, True)
    """

    model: ScoreModel
    event: Sequence[int]
    augmentation: LowAugmentation | None = None
    solver: str | Solver = "dpmpp-2m"
    steps: int = 20
    path: Any = "lam"
    guidance: float = 1.0
    threshold: float | None = None
    contrast: Contrastive | None = None
    towards: float = 0.0

    def steered(self, conditions: Mapping[str, Any]) -> ScoreModel:
        """Return the model with the guidance and the threshold of the stage, for given conditions."""
        model = guided(self.model, self.guidance, conditions)
        if self.contrast is not None and self.towards:
            role = "shares" if "pooled" in nulls_of(self.model.network) else "takes"
            noised = self.contrast.noised
            energy, of = (self.contrast.noised_energy, "x") if noised else (self.contrast.energy, "x0")
            model = steering.Energy(model, energy, self.towards, of=of, **{role: "pooled"})
        return model if self.threshold is None else steering.DynamicThreshold(model, self.threshold)


@dataclass(frozen=True, eq=False)
class Cascade(System):
    """A cascade of any number of stages, each with an SDE, a solver and a guidance of its own.

    Args:
        stages: the stages, the smallest samples first.

    Raises:
        ValueError: for no stages.

    Example:
        >>> import scoresde
        >>> from scoresde.models import SuperResolution, UNet
        >>> sde, small = scoresde.VP(), {"width": 8, "multipliers": [1, 2]}
        >>> base = CascadeStage(ScoreModel(UNet(1, **small), sde, "v"), (1, 4, 4), steps=3)
        >>> above = CascadeStage(ScoreModel(SuperResolution(1, small), sde, "v"), (1, 8, 8), NoisedLow(0.5, sde), steps=3)
        >>> [found.x.shape[-1] for found in Cascade([base, above]).draw(2, levels=[0.1], progress=False)]
        [4, 8]
    """

    stages: Sequence[CascadeStage]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("got a cascade of no stages; expected at least one")

    def draw(
        self,
        n: int,
        *,
        levels: float | Sequence[float] = 0.0,
        truncated: bool = False,
        seed: int | Sequence[int] | None = 0,
        conditions: Mapping[str, Any] | None = None,
        own: Sequence[Mapping[str, Any] | None] = (),
        **options: Any,
    ) -> tuple[Samples, ...]:
        """Draw samples, and return those of every stage.

        Args:
            n: the number of samples.
            levels: the level of the augmentation before each stage but the first, or one for all; a sweep over it shows
                which is best.
            truncated: stop each stage at the level of the next one's noise, in place of adding noise to its samples.
            seed: see :func:`scoresde.sample`. A sample depends on its own seed.
            conditions: conditions of every stage, such as those of a text.
            own: conditions of each stage alone, which take precedence.
            options: further arguments of :func:`scoresde.sample`.

        Raises:
            ValueError: for levels that do not fit the stages or their augmentations.
        """
        whole("n", n, 1)
        wanted = [levels] * (len(self.stages) - 1) if isinstance(levels, int | float) else list(levels)
        self._check(wanted, truncated)
        seeds = [sample_seeds(s, 2 * len(self.stages)) for s in sample_seeds(seed, n)]
        found: list[Samples] = []
        for k, stage in enumerate(self.stages):
            told = {**(conditions or {}), **((own[k] or {}) if k < len(own) else {})}
            if k:
                told |= self._low(k, found[-1].x, wanted[k - 1], truncated, [s[2 * k] for s in seeds])
            stop = {"t_min": wanted[k], "end": "stop"} if truncated and k < len(wanted) and wanted[k] > 0 else {}
            how: dict[str, Any] = {"seed": [s[2 * k + 1] for s in seeds], "conditions": told, **stop, **options}
            found.append(sample(stage.steered(told), (n, *stage.event), stage.solver, stage.steps, stage.path, **how))
        return tuple(found)

    def _low(self, k: int, x: Tensor, level: float, truncated: bool, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Return the conditions of stage ``k`` by the samples of the one before."""
        told = torch.full((len(x),), level, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        augmentation = self.stages[k].augmentation
        if level > 0 and augmentation is not None and not truncated:
            x = augmentation.apply(x, told, FreshNoise(seeds, x.device).normal(torch.empty_like(x)))
        return {"low": x, "level": told}

    def _check(self, levels: Sequence[float], truncated: bool) -> None:
        if len(levels) != len(self.stages) - 1:
            raise ValueError(
                f"got {len(levels)} levels for a cascade of {len(self.stages)} stages; expected one for each but the first"
            )
        for k, level in enumerate(levels):
            before, stage = self.stages[k], self.stages[k + 1]
            highest = 0.0 if stage.augmentation is None else stage.augmentation.highest
            if not 0 <= level <= highest:
                raise ValueError(
                    f"got level {level:g} before stage {k + 1}, which was trained on levels from 0 to {highest:g}; expected "
                    "one of these"
                )
            same = isinstance(stage.augmentation, NoisedLow) and stage.augmentation.sde == before.model.sde
            if truncated and level > 0 and not same:
                raise ValueError(
                    f"got truncated=True before stage {k + 1}, whose augmentation is not the noise of the SDE of the stage "
                    f"before; expected NoisedLow(.., sde={before.model.sde!r:.60}), or truncated=False"
                )


# Training ------------------------------------------------------------------------------------------------------------


def train_stage(
    model: ScoreModel,
    data: Any,
    factor: int | Sequence[int] = 1,
    above: int | Sequence[int] | None = None,
    augmentation: LowAugmentation | None = None,
    objective: str | Objective = "v",
    *,
    conditions: Mapping[str, Tensor] | None = None,
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> FitResult:
    """Train a stage of a cascade by :func:`scoresde.fit`.

    Args:
        model: the score model of the stage.
        data: samples of the last stage, or a dataset of them.
        factor: the factor by which samples of this stage are smaller than the data, or one for each axis.
        above: the factor by which samples of the stage before are smaller than those of this one; ``None`` for the first.
            Of videos, ``(2, 1, 1)`` is a stage of temporal and ``(1, 2, 2)`` one of spatial super-resolution.
        augmentation: the augmentation of the samples of the stage before.
        objective: the objective of the score model.
        conditions: an entry for each sample.
        out, options: see :func:`scoresde.fit`.

    Example:
        >>> import scoresde
        >>> class Net(torch.nn.Conv2d):
        ...     def forward(self, x, t):
        ...         return super().forward(x)
        >>> model = ScoreModel(Net(1, 1, 3, padding=1), scoresde.VP(), "v")
        >>> found = train_stage(model, torch.rand(8, 1, 8, 8), 2, steps=2, batch_size=4, progress=False)  # on 4 x 4
        >>> len(found.history)
        2
    """
    resized = Resized(data, factor, conditions or {})
    loss = named(objective) if above is None else SuperResolved(objective, above, augmentation)
    return fit(model, resized, loss, out=None if out is None else Path(out), **options)
