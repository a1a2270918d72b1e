"""The conditions of a network: what stands for their absence, their dropout in training, and those of given texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scoresde import guidance as steering
from scoresde.models import ImageEmbedded, TextEncoder
from scoresde.objectives import LabelDropout, Objective
from scoresde.objectives import objective as named
from scoresde.score import ScoreModel

__all__ = ["conditions_of", "guided", "nulls_of", "with_dropout"]

_GROUPS = {
    "context": ("context", "context_mask"),
    "pooled": ("pooled",),
    "embedding": ("embedding",),
    "label": ("label",),
}
"""The conditions by the argument of a network that makes room for them; those of one group are absent together."""


def _told(net: Any) -> Mapping[str, Any]:
    """Return the arguments of a network that make room for conditions."""
    inner = getattr(net, "unet", net)  # of a SuperResolution, whose own conditions are never absent
    found: Mapping[str, Any] = getattr(inner, "config", {})
    if isinstance(net, ImageEmbedded):  # whose U-Net sees the embedding as tokens and as a vector
        return {**found, "context": net.config["text"], "pooled": 0, "embedding": net.config["embedding"]}
    return found


def nulls_of(net: Any) -> dict[str, Any]:
    """Return the values that stand for the absence of each condition of a network, by name.

    An absent text has tokens of zeros, all of them visible, and a vector of zeros; the absent embedding of an image is a
    vector of zeros; an absent label is the number of classes.

    Args:
        net: a network whose ``config`` has ``context``, ``pooled`` or ``num_classes``, such as
            :class:`~scoresde.models.UNet`.

    Example:
        >>> from scoresde.models import UNet
        >>> nulls_of(UNet(1, 8, (1, 2), context=5, num_classes=3))
        {'context': 0.0, 'context_mask': True, 'label': 3}
    """
    config = _told(net)
    found: dict[str, Any] = {}
    if config.get("context"):
        found |= {"context": 0.0, "context_mask": True}
    if config.get("pooled"):
        found["pooled"] = 0.0
    if config.get("embedding"):
        found["embedding"] = 0.0
    if config.get("num_classes") and config.get("unconditional", True):
        found["label"] = int(config["num_classes"])
    return found


def guided(model: ScoreModel, scale: float, conditions: Mapping[str, Any]) -> ScoreModel:
    """Return the model under classifier-free guidance away from the absence of those conditions that may be absent.

    Args:
        model: the model.
        scale: the scale of guidance; 1 is the model itself.
        conditions: the conditions that the model will be given.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.UNet(1, 8, (1, 2), num_classes=3), scoresde.VP(), "v")
        >>> guided(model, 2.0, {"label": [0, 1]}).null, guided(model, 1.0, {"label": [0, 1]}) is model
        ({'label': 3}, True)
    """
    null = {name: value for name, value in nulls_of(model.network).items() if name in conditions}
    return model if scale == 1.0 or not null else steering.ClassifierFree(model, scale, null)


def with_dropout(objective: str | Objective, net: Any, probability: float | Mapping[str, float] = 0.1) -> Objective:
    """Return the objective with label dropout for each kind of condition of a network apart.

    Args:
        objective: a name in :data:`scoresde.objectives.OBJECTIVES`, or an objective.
        net: the network.
        probability: the probability that a sample loses a kind of condition, or a mapping with that of ``"context"``,
            ``"pooled"``, ``"embedding"`` and ``"label"``; kinds that are left out keep their condition.

    Raises:
        ValueError: for a kind of condition that the network does not take.

    Example:
        >>> from scoresde.models import UNet
        >>> net = UNet(1, 8, (1, 2), context=5, num_classes=3)
        >>> with_dropout("v", net, {"context": 0.1, "label": 0.5}).dropped
        {'context': 0.0, 'context_mask': True, 'label': 3}
    """
    nulls = nulls_of(net)
    kinds = [kind for kind, names in _GROUPS.items() if names[0] in nulls]
    wanted = dict(probability) if isinstance(probability, Mapping) else dict.fromkeys(kinds, probability)
    if unknown := sorted(wanted.keys() - kinds):
        raise ValueError(
            f"got a dropout of {unknown[0]!r} for a {type(net).__name__} that takes {', '.join(kinds) or 'no conditions'}; "
            "expected the probabilities of these"
        )
    found = named(objective)
    for kind in kinds:
        if wanted.get(kind):
            found = LabelDropout(found, {name: nulls[name] for name in _GROUPS[kind]}, wanted[kind])
    return found


def conditions_of(net: Any, encoder: TextEncoder, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the conditions of texts that a network takes: tokens and their mask, the pooled vector, or both.

    An empty text stands for no text, and has the values of :func:`nulls_of`.

    Raises:
        ValueError: for a network that takes neither, and embeddings of another size than it takes.

    Example:
        >>> from scoresde.models import Text, UNet
        >>> class Lengths:  # in place of TextEncoder(folder)
        ...     features, device = 1, torch.device("cpu")
        ...     def __call__(self, texts):
        ...         pooled = torch.tensor([[float(len(text))] for text in texts])
        ...         return Text(pooled, pooled[:, None], torch.ones(len(texts), 1) > 0)
        >>> conditions_of(UNet(1, 8, (1, 2), pooled=1), Lengths(), ["plum", ""])
        {'pooled': tensor([[4.],
                [0.]])}
    """
    config = _told(net)
    sizes = {name: config.get(name) for name in ("context", "pooled") if config.get(name)}
    if not sizes or any(size != encoder.features for size in sizes.values()):
        raise ValueError(
            f"got a {type(net).__name__} that takes {sizes or 'no text'} for embeddings of {encoder.features} features; "
            f"expected a network such as UNet(.., context={encoder.features}, pooled={encoder.features})"
        )
    told = encoder(texts).conditions()
    found = {name: told[name] for kind in sizes for name in _GROUPS[kind]}
    empty = torch.tensor([not text for text in texts], device=encoder.device)
    for name, value in found.items():
        value[empty] = torch.as_tensor(nulls_of(net)[name], dtype=value.dtype, device=value.device)
    return found
