"""Transformer blocks on sequences of tokens: attention to themselves or to a context, and a perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models.layers import zero

__all__ = ["TokenAttention", "TokenBlock", "TokenPerceptron", "attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    r"""Return the attention :math:`\mathrm{softmax}(q k^T / \sqrt{c})\, v` in ``heads`` heads of c features each.

    Args:
        q: queries, shape ``(batch, tokens, heads * c)``.
        k, v: keys and values, shape ``(batch, sources, heads * c)``.
        heads: number of heads.
        mask: true where a token attends to a source, shape ``(batch, sources)`` or ``(batch, tokens, sources)``.

    Returns:
        The attended values, shape ``(batch, tokens, heads * c)``.

    Example:
        >>> import torch
        >>> v = torch.arange(6.0).reshape(1, 3, 2)
        >>> attend(torch.zeros(1, 1, 2), torch.zeros(1, 3, 2), v, 1, torch.tensor([[True, True, False]]))
        tensor([[[1., 2.]]])
    """
    if mask is not None:
        mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]  # (batch, 1, 1 or tokens, sources)
    q, k, v = (h.reshape(*h.shape[:2], heads, -1).transpose(1, 2) for h in (q, k, v))  # (batch, heads, tokens, c)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class TokenAttention(nn.Module):
    """Attention after a layer normalization, h + linear(attention(norm(h), source)).

    Args:
        width: number of features of a token.
        heads: number of heads, which divides ``width``.
        context: number of features of the sequence that is attended to; ``None`` for attention to the tokens themselves.
        bias: whether queries, keys and values have a bias.
    """

    def __init__(self, width: int, heads: int, *, context: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias)
        self.kv = nn.Linear(width if context is None else context, 2 * width, bias)
        self.output = nn.Linear(width, width)

    def forward(self, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Apply the layer to ``h``, shape ``(batch, tokens, width)``; see :func:`attend` for ``mask``."""
        inner = self.norm(h)
        k, v = self.kv(inner if self.context is None else context).chunk(2, dim=2)  # (batch, sources, width) each
        return cast(Tensor, h + self.output(attend(self.q(inner), k, v, self.heads, mask)))


class TokenPerceptron(nn.Module):
    """A perceptron after a layer normalization, h + linear(gelu(linear(norm(h)))).

    With ``gated`` the linear function of the hidden layer is multiplied by the gelu of another one (Shazeer, "GLU Variants
    Improve Transformer", 2020, https://arxiv.org/abs/2002.05202).
    """

    def __init__(self, width: int, *, ratio: int = 4, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, (1 + gated) * ratio * width)
        self.back = nn.Linear(ratio * width, width)

    def forward(self, h: Tensor) -> Tensor:
        """Apply the layer to ``h``, shape ``(batch, tokens, width)``."""
        inner = self.hidden(self.norm(h))  # (batch, tokens, ratio * width), or twice as many
        if self.gated:
            inner, gate = inner.chunk(2, dim=2)
            inner = inner * F.gelu(gate)
        else:
            inner = F.gelu(inner)
        return cast(Tensor, h + self.back(inner))


class TokenBlock(nn.Module):
    """Several attentions and a perceptron, each a residual branch after a layer normalization.

    Args:
        width: number of features of a token.
        heads: number of attention heads.
        contexts: one entry for each attention, the number of features of the sequence it attends to, or ``None`` for the
            tokens themselves.
        bias: whether queries, keys and values have a bias.
        gated: whether the perceptron is gated.

    Example:
        >>> import torch
        >>> block = TokenBlock(8, 2, contexts=(None, 5))
        >>> block(torch.randn(3, 6, 8), torch.randn(3, 4, 5)).shape
        torch.Size([3, 6, 8])
    """

    def __init__(
        self, width: int, heads: int, *, contexts: Sequence[int | None] = (None,), bias: bool = False, gated: bool = True
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"got {heads} heads for tokens of {width} features; expected heads of equal size")
        self.attentions = nn.ModuleList([TokenAttention(width, heads, context=c, bias=bias) for c in contexts])
        self.perceptron = TokenPerceptron(width, gated=gated)

    def forward(
        self, h: Tensor, context: Tensor | None = None, mask: Tensor | None = None, own_mask: Tensor | None = None
    ) -> Tensor:
        """Apply the block to ``h``, shape ``(batch, tokens, width)``.

        ``mask`` belongs to the context and ``own_mask`` to the tokens themselves; see :func:`attend`.
        """
        for attention in cast(list[TokenAttention], self.attentions):
            own = attention.context is None
            h = attention(h, None if own else context, own_mask if own else mask)
        return cast(Tensor, self.perceptron(h))

    def silence(self) -> TokenBlock:
        """Set the last layers of all branches to zero and return the block, which is then the identity."""
        for attention in cast(list[TokenAttention], self.attentions):
            zero(attention.output)
        zero(self.perceptron.back)
        return self
