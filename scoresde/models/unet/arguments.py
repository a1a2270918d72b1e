"""The arguments of the U-Net: what they may be, and the embedding of time, labels and augmentation that they describe."""

from __future__ import annotations

from typing import Any

from scoresde.models.embedding import NoiseEmbedding, time_features
from scoresde.models.layers import widths
from scoresde.models.pyramids import PYRAMIDS

__all__ = ["BY_LEVEL", "check_arguments", "embedding_of"]

BY_LEVEL = ("blocks", "heads", "transformer")
"""The arguments that may be one number for each level."""
_CHOICES = {
    "resample": ("conv", "block", "outer"),
    "input_pyramid": PYRAMIDS,
    "output_pyramid": PYRAMIDS,
    "temporal": ("none", "attention", "transformer"),
}


def check_arguments(config: dict[str, Any]) -> None:
    """Refuse arguments from which no network can be built.

    Args:
        config: the arguments of :class:`~scoresde.models.UNet` by name.

    Raises:
        ValueError: with what was expected.
    """
    multipliers, width = config["multipliers"], config["width"]
    levels = len(multipliers)
    for name in BY_LEVEL:
        if isinstance(config[name], list) and len(config[name]) != levels:
            raise ValueError(
                f"got {name}={config[name]} for {levels} multipliers; expected one number for each, or one for all"
            )
    sizes = [config[name] for name in ("channels", "width", "groups", "group_size")]
    by_level = {name: v if isinstance(v := config[name], list) else [v] for name in BY_LEVEL}
    sizes += by_level["blocks"] + by_level["heads"]
    if not multipliers or min(*sizes, *widths(width, multipliers)) < 1:
        raise ValueError(
            f"got channels={config['channels']}, width={width}, multipliers={tuple(multipliers)}, "
            f"blocks={config['blocks']}, heads={config['heads']}, groups={config['groups']}, "
            f"group_size={config['group_size']}; expected positive sizes and at least one level"
        )
    if config["dims"] not in (1, 2, 3):
        raise ValueError(f"got dims={config['dims']}; expected 1 for series, 2 for images or 3 for videos")
    if bad := sorted(set(config["attention"]) - set(range(-levels, levels))):
        raise ValueError(
            f"got attention at levels {bad}; expected levels from 0, the full resolution, to {levels - 1}, or, counted from "
            f"the lowest, from -1 to {-levels}"
        )
    for name, allowed in _CHOICES.items():
        if config[name] not in allowed:
            raise ValueError(f"got {name}={config[name]!r}; expected one of {', '.join(map(repr, allowed))}")
    if config["temporal"] != "none" and config["dims"] != 3:
        raise ValueError(
            f"got temporal={config['temporal']!r} with dims={config['dims']}; expected dims=3, the frames, the height and "
            "the width of videos"
        )
    if min(by_level["transformer"]) < 0 or min(config["augment"], config["pooled"]) < 0:
        raise ValueError(
            f"got transformer={config['transformer']}, augment={config['augment']}, pooled={config['pooled']}; expected "
            "whole numbers of at least 0"
        )
    outer = config["resample"] == "outer" and not config["lean"]
    if outer and (config["input_pyramid"], config["output_pyramid"]) != ("none", "none"):
        raise ValueError("got resample='outer' with pyramids; expected 'none' for both, or resample='conv' or 'block'")
    if config["append_context"] and (config["context"] is None or max(by_level["transformer"]) > 0):
        raise ValueError(
            f"got append_context=True with context={config['context']} and transformer={config['transformer']}; expected "
            "the number of features of a context, and attention alone: transformer=0"
        )
    if (config["lean"] or outer) and config["context"] is not None and not config["attention"]:
        raise ValueError("got a context for a network without attention, which has no place for it; pass attention=..")


def embedding_of(config: dict[str, Any]) -> NoiseEmbedding:
    """Return the embedding of time, label and augmentation of a network with these arguments."""
    n = config["width"] * (2 if config["time"] == "fourier" else 1)
    of_time = {name: config[name] for name in ("endpoint", "time_scale", "time_shift")}
    rest = {name: config[name] for name in ("num_classes", "unconditional", "early_label", "augment", "pooled", "guidance")}
    return NoiseEmbedding(time_features(config["time"], n, **of_time), 4 * config["width"], **rest)
