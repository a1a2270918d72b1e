r"""The objective of networks that complete images: a part of each sample is known, the rest is erased."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.objectives.matching import Around
from scoresde.score import ScoreModel

__all__ = ["Inpainted"]


@dataclass(frozen=True)
class Inpainted(Around):
    """An objective whose network is also given a part of the sample, the condition ``known``, and its mask.

    A box at a random place and of a random size is erased, and for a share of samples everything. The network gets the
    conditions ``known`` and ``mask``, :class:`~scoresde.models.Inpainting`. In a report, which draws nothing, nothing is
    known.

    Args:
        inner: the objective of the score model.
        everything: the probability that nothing is known.

    Raises:
        ValueError: for a probability outside [0, 1].

    Source: Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models",
    2022, https://arxiv.org/abs/2112.10741, section 2.4.

    Example:
        >>> import scoresde
        >>> model = ScoreModel(scoresde.models.Inpainting(1, {"width": 8, "multipliers": [1, 2]}), scoresde.VP(), "v")
        >>> loss, t = Inpainted("v")(model, torch.zeros(3, 1, 8, 8), torch.Generator().manual_seed(0))
        >>> loss.shape
        torch.Size([3])
    """

    everything: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.everything <= 1:
            raise ValueError(f"got everything={self.everything}; expected a probability between 0 and 1")

    def draws(self, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the random numbers of the inner objective, and the mask: 1 where a sample is known."""
        inner = super().draws(x0, generator)
        n, axes, device = len(x0), x0.shape[2:], generator.device
        u = torch.rand((n, 1 + 2 * len(axes)), generator=generator, device=device)
        erased = torch.ones((n, 1, *axes), dtype=torch.bool, device=device)
        for i, size in enumerate(axes):
            extent = (u[:, 1 + 2 * i] * size).ceil()
            first = (u[:, 2 + 2 * i] * (size - extent + 1)).floor()
            place = torch.arange(size, device=device)
            inside = (place >= first[:, None]) & (place < (first + extent)[:, None])  # (batch, size)
            erased = erased & inside.reshape(n, 1, *(size if j == i else 1 for j in range(len(axes))))
        nothing = (u[:, 0] < self.everything).reshape(n, *[1] * (x0.ndim - 1))
        return {**inner, "mask": (~(erased | nothing)).to(x0)}

    def at(
        self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, mask: Tensor | None = None, **conditions: Any
    ) -> Tensor:
        """Return the loss of the inner objective with the known part as a condition, shape ``(batch,)``.

        Args:
            model: the score model.
            x0, eps: data and noise, shape ``(batch, channels, *axes)``.
            t: times of shape ``(batch,)``.
            mask: 1 where a sample is known, shape ``(batch, 1, *axes)``; with ``None`` nothing is.
            conditions: passed to the network.
        """
        seen = torch.zeros_like(x0[:, :1]) if mask is None else mask
        return self.wrapped.at(model, x0, t, eps, known=x0 * seen, mask=seen, **conditions)
