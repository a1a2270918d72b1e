"""Label dropout, which trains one network with and without labels, as classifier-free guidance needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.base.shape import expand
from scoresde.objectives.matching import Around, Objective
from scoresde.score import ScoreModel

__all__ = ["LabelDropout"]


@dataclass(frozen=True)
class LabelDropout(Around):
    """An objective that drops the conditions of some samples, so that the network also learns the unconditional score.

    A dropped condition is replaced by a null value. The networks of :mod:`scoresde.models` take the number of classes for
    "no label", as in the example.

    Args:
        inner: the objective, or its name in :data:`~scoresde.objectives.OBJECTIVES`.
        null: the null value of each condition to drop, by name: a number, or a tensor of the condition's shape without the
            batch dimension.
        probability: the probability that a sample loses its conditions; it loses all of them together.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598.

    Example:
        >>> from scoresde import EDM
        >>> seen = []
        >>> model = ScoreModel(lambda x, t, label: seen.append(label) or x, EDM(), "edm")
        >>> drop = LabelDropout("edm", {"label": 10}, 0.1)  # for labels 0 to 9; Trainer and fit take it as objective=
        >>> x0, label = torch.zeros(1000, 2), torch.arange(1000) % 10
        >>> loss, t = drop(model, x0, torch.Generator().manual_seed(0), label=label)
        >>> 50 < int((seen[0] == 10).sum()) < 150
        True
    """

    inner: str | Objective = "ddpm"
    null: Mapping[str, Any] = field(default_factory=dict)
    probability: float = 0.1

    def __post_init__(self) -> None:
        if not self.null or not 0 <= self.probability <= 1:
            raise ValueError(
                f"got null={dict(self.null)!r} and probability={self.probability}; expected what stands for the absence of "
                "at least one condition, as {'label': 10}, and a number between 0 and 1"
            )
        super().__post_init__()

    @property
    def dropped(self) -> Mapping[str, Any]:
        """The null values, also those of an inner objective; none where the probability is 0."""
        return {**self.wrapped.dropped, **(self.null if self.probability else {})}

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of the inner objective, and ``dropped``: which samples lose their conditions."""
        inner = super().draws(x0, generator)
        u = torch.rand(len(x0), generator=generator, device=generator.device)
        return {**inner, "dropped": (u < self.probability).to(x0.device)}

    def at(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        dropped: Tensor | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Return the loss of the inner objective with the conditions of some samples dropped, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and noise, shape ``(batch, *event)``.
            t: times of shape ``(batch,)``.
            dropped: which samples lose their conditions, shape ``(batch,)``; with ``None`` none do.
            conditions: passed to the network.
        """
        missing = sorted(set(self.null) - set(conditions))
        if missing:
            raise ValueError(f"got no condition {', '.join(missing)}, which label dropout is to replace; pass it by name")
        if dropped is not None:
            for name, absent in self.null.items():
                given = conditions[name]
                absent = torch.as_tensor(absent, dtype=given.dtype, device=given.device)
                conditions[name] = torch.where(expand(dropped, given), absent, given)
        return self.wrapped.at(model, x0, t, eps, **conditions)
