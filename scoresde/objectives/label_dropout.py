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
        probability: the probability that a sample loses its conditions, all of them together; or a mapping with the
            probability of each, which then are lost independently: ``{"context": 0.1, "pooled": 0.1}``.

    Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, https://arxiv.org/abs/2207.12598.

    Raises:
        ValueError: for no null value, a probability that is not between 0 and 1, or probabilities of other names than
            ``null`` has.

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
    probability: float | Mapping[str, float] = 0.1

    def __post_init__(self) -> None:
        if isinstance(self.probability, Mapping) and self.probability.keys() != self.null.keys():
            raise ValueError(
                f"got probabilities of {sorted(self.probability)} for the null values of {sorted(self.null)}; expected one "
                "for each of these, or one number for all together"
            )
        if not self.null or not all(0 <= p <= 1 for p in self._probabilities()):
            raise ValueError(
                f"got null={dict(self.null)!r} and probability={self.probability}; expected what stands for the absence of "
                "at least one condition, as {'label': 10}, and a number between 0 and 1"
            )
        super().__post_init__()

    @property
    def dropped(self) -> Mapping[str, Any]:
        """The null values, also those of an inner objective; none where the probability is 0."""
        kept = self._probabilities()
        own = zip(self.null.items(), kept if len(kept) > 1 else kept * len(self.null), strict=True)
        return {**self.wrapped.dropped, **{name: null for (name, null), p in own if p}}

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of the inner objective, and ``dropped``: which samples lose their conditions."""
        inner = super().draws(x0, generator)
        kept = self._probabilities()
        u = torch.rand((len(x0), len(kept)), generator=generator, device=generator.device)
        own = (u < torch.tensor(kept, device=u.device)).to(x0.device)
        if "dropped" in inner:  # of another label dropout inside
            own = torch.cat([own, inner["dropped"].reshape(len(x0), -1)], 1)
        return {**inner, "dropped": own[:, 0] if own.shape[1] == 1 else own}

    def _probabilities(self) -> list[float]:
        """Return the probability of each group of conditions that are lost together."""
        if isinstance(self.probability, Mapping):
            return [float(self.probability[name]) for name in self.null]
        return [self.probability]

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
            dropped: which samples lose their conditions, shape ``(batch,)``; with ``None`` none do. Where conditions
                are lost independently, a column for each in the order of ``null``, then those of a label dropout inside.
            conditions: passed to the network.
        """
        missing = sorted(set(self.null) - set(conditions))
        if missing:
            raise ValueError(f"got no condition {', '.join(missing)}, which label dropout is to replace; pass it by name")
        if dropped is not None:
            columns, own = dropped.reshape(len(x0), -1), len(self._probabilities())
            for i, (name, absent) in enumerate(self.null.items()):
                given = conditions[name]
                absent = torch.as_tensor(absent, dtype=given.dtype, device=given.device)
                conditions[name] = torch.where(expand(columns[:, min(i, own - 1)], given), absent, given)
            if columns.shape[1] > own:
                conditions["dropped"] = columns[:, own:]
        return self.wrapped.at(model, x0, t, eps, **conditions)
