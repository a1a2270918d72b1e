"""Classification of noised data, which trains the classifier that guidance takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.objectives.matching import Objective, noised
from scoresde.objectives.times import TIMES, Times
from scoresde.objectives.weightings import Weighting
from scoresde.score import ScoreModel

__all__ = ["Classification"]


@dataclass(frozen=True)
class Classification(Objective):
    r"""The cross-entropy of a classifier of noised data, :math:`-\log p(y \mid x_t, t)`.

    The classifier stands in the place of the network of a score model, whose SDE says how data are noised, so that
    :func:`scoresde.fit` trains it as it trains a network: ``fit(ScoreModel(net, sde), data, Classification(), ..)``. Its
    report is the cross-entropy per time bin. ``guidance.Classifier(model, guidance.ClassLogProb(found.model.net),
    takes="label")`` then guides by it.

    Args:
        times: the distribution of times, a name in :data:`TIMES` or any :class:`Times`; ``"lognormal"`` suits an SDE whose
            time is the noise level, such as EDM.
        name: the name of the condition that holds the labels, whole numbers from 0.

    ``net(x, t)`` returns logits of shape ``(batch, classes)``; t is the time itself, shape ``(batch,)``.

    Raises:
        ValueError: when called, for missing labels, and logits of another shape.

    Source: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, https://arxiv.org/abs/2105.05233.

    Example:
        >>> import scoresde
        >>> class Logits(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.body = torch.nn.Linear(2, 3)
        ...     def forward(self, x, t):
        ...         return self.body(x) * (1 - t[:, None])
        >>> x, label = torch.randn(64, 2), torch.arange(64) % 3
        >>> found = scoresde.fit(
        ...     ScoreModel(Logits(), scoresde.VP()), x, Classification(), steps=5, batch_size=16,
        ...     conditions={"label": label}, progress=False,
        ... )
        >>> len(found.history)
        5
    """

    times: str | Times = "auto"
    name: str = "label"

    def __post_init__(self) -> None:
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))

    @property
    def weight(self) -> Weighting:
        """Refused: a classifier has no error of a score to weight."""
        raise ValueError(
            "got the weighting of a classification, which has no squared error of a score; expected one that has"
        )

    @property
    def distribution(self) -> Times:
        """The distribution of times, as an object."""
        return TIMES[self.times] if isinstance(self.times, str) else self.times

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the cross-entropy of each sample's label, shape ``(batch,)``."""
        label = conditions.get(self.name)
        if label is None:
            raise ValueError(
                f"got no condition {self.name!r}, the labels to learn; pass it: conditions={{{self.name!r}: labels}}"
            )
        x = noised(model.sde, x0, t, eps)
        net = cast(Callable[[Tensor, Tensor], Tensor], model.net)
        logits = net(x, t.to(torch.promote_types(x.dtype, torch.float32)))
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
            found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise ValueError(f"the classifier returned {found} for {len(x)} samples; expected logits, ({len(x)}, classes)")
        return F.cross_entropy(logits, label.long(), reduction="none")
