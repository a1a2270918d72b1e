r"""The objective of contrastive models of images and texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoresde.models import Contrastive
from scoresde.objectives.matching import Objective
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

    Args:
        name: the condition with the embeddings of the texts, shape ``(batch, features)``.

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

    @property
    def weight(self) -> Weighting:
        """Refused: a contrastive model has no error of a score to weight."""
        raise ValueError(
            "got the weighting of contrastive learning, which has no squared error of a score; expected one that has"
        )

    @property
    def distribution(self) -> Times:
        """The distribution of times, of which no use is made."""
        return TIMES["uniform"]

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the loss of each pair, shape ``(batch,)``; times and noise are not used."""
        embedding = conditions.get(self.name)
        if embedding is None:
            raise ValueError(
                f"got no condition {self.name!r}, the embeddings of the texts; pass it: conditions={{{self.name!r}: ..}}"
            )
        net = cast(Contrastive, model.net)
        if not isinstance(getattr(net, "_orig_mod", net), Contrastive):
            raise TypeError(f"got a {type(net).__name__} for contrastive learning; expected a models.Contrastive")
        logits = net(x0, embedding)
        same = (embedding[:, None] == embedding[None]).flatten(2).all(2)
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, -torch.inf)
        own = torch.arange(len(x0), device=logits.device)
        found = [F.cross_entropy(rows, own, reduction="none") for rows in (logits, logits.mT)]
        return 0.5 * (found[0] + found[1])
