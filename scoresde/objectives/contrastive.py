r"""The objective of contrastive models of images and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.models import Contrastive
from scoresde.objectives.matching import Objective, noised
from scoresde.objectives.times import TIMES, Times
from scoresde.objectives.weightings import Weighting
from scoresde.score import ScoreModel

__all__ = ["ContrastiveLearning"]


@dataclass(frozen=True)
class ContrastiveLearning(Objective):
    r"""The loss by which a contrastive model learns to find the text of an image, and the image of a text, in a batch.

    .. math:: L_i = -\tfrac12 \log \frac{e^{l_{ii}}}{\sum_j e^{l_{ij}}} - \tfrac12 \log \frac{e^{l_{ii}}}{\sum_j e^{l_{ji}}}

    Texts that occur twice in a batch are not held against each other. The model stands in the place of the network of a
    score model, so that :func:`scoresde.fit` trains it. The other texts are those of a process and of a part of a batch,
    so the loss depends on the number of processes and on ``accumulate``.

    A model of noised images, ``Contrastive(.., noised=True)``, is given the images as the SDE noises them, with the time.
    One of clean images is given the data.

    Args:
        name: the condition with the embeddings of the texts, shape ``(batch, features)``.
        times: the distribution of the times of noised images, a name in :data:`TIMES` or any :class:`Times`.

    Raises:
        ValueError: when called, for missing embeddings.
        TypeError: when called, for another network.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
    https://arxiv.org/abs/2103.00020.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.Contrastive(torch.nn.Linear(4, 2), torch.nn.Linear(3, 2))
        >>> x, pooled = torch.randn(64, 4), torch.randn(64, 3)
        >>> found = scoresde.fit(
        ...     ScoreModel(net, scoresde.VP()), x, ContrastiveLearning(), steps=5, batch_size=16,
        ...     conditions={"pooled": pooled}, progress=False,
        ... )
        >>> len(found.history)
        5
    """

    name: str = "pooled"
    times: str | Times = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.times, str):
            object.__setattr__(self, "times", TIMES.name(self.times))

    @property
    def weight(self) -> Weighting:
        """Refused: a contrastive model has no error of a score to weight."""
        raise ValueError(
            "got the weighting of contrastive learning, which has no squared error of a score; expected one that has"
        )

    @property
    def distribution(self) -> Times:
        """The distribution of times, as an object."""
        return TIMES[self.times] if isinstance(self.times, str) else self.times

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the loss of each pair, shape ``(batch,)``."""
        embedding = conditions.get(self.name)
        if embedding is None:
            raise ValueError(
                f"got no condition {self.name!r}, the embeddings of the texts; pass it: conditions={{{self.name!r}: ..}}"
            )
        net = cast(Contrastive, model.net)
        inner = getattr(net, "_orig_mod", net)
        if not isinstance(inner, Contrastive):
            raise TypeError(f"got a {type(net).__name__} for contrastive learning; expected a models.Contrastive")
        if inner.noised:
            x = noised(model.sde, x0, t, eps)
            logits = net(x, embedding, t.to(torch.promote_types(x.dtype, torch.float32)))
        else:
            logits = net(x0, embedding)
        same = (embedding[:, None] == embedding[None]).flatten(2).all(2)
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        own = torch.arange(len(x0), device=logits.device)
        found = [F.cross_entropy(rows, own, reduction="none") for rows in (logits, logits.mT)]
        return 0.5 * (found[0] + found[1])
