"""Draws of tokens from their laws, in float64, from uniform numbers that depend on the seed of a sample alone."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_tokens"]


def draw_tokens(p: Tensor, u: Tensor) -> Tensor:
    r"""Return tokens with the laws ``p``: the first whose cumulative probability exceeds ``u``.

    In float64 each token is drawn with its probability to :math:`2^{-53}`. The largest of many Gumbel variables in float32,
    as samplers often draw, is never far above the others, so that unlikely tokens come too seldom, as at a lower
    temperature: Zheng et al., "Masked Diffusion Models are Secretly Time-Agnostic Masked Models and Exploit Inaccurate
    Categorical Sampling", 2024, https://arxiv.org/abs/2409.02908.

    Args:
        p: laws, or weights that need not sum to one, float64, shape ``(*x, states)``.
        u: uniform numbers in [0, 1), float64, shape ``x``.

    Raises:
        FloatingPointError: for a law that is not finite or has no positive entry.

    Example:
        >>> p = torch.tensor([0.25, 0.0, 0.75], dtype=torch.float64).expand(4, 3)
        >>> draw_tokens(p, torch.tensor([0.0, 0.2, 0.25, 0.99], dtype=torch.float64))
        tensor([0, 0, 2, 2])
    """
    cumulative = p.to(torch.float64).cumsum(-1)
    total = cumulative[..., -1]
    if not bool((torch.isfinite(total) & (total > 0)).all()):
        raise FloatingPointError(
            "got a law of tokens that is not finite or has no positive entry; expected probabilities: check the network's "
            "logits, or take more steps"
        )
    # Below the total, so that rounding never leads past the last token with a positive probability.
    target = torch.minimum(u.to(cumulative) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative.contiguous(), target[..., None], right=True)[..., 0]
