r"""A network on point sets that commutes with rotations, reflections, translations and permutations.

Each layer computes a message between each two points from their features and their distance, and moves each point along the
differences to the others:

.. math:: m_{ij} = \phi_e(h_i, h_j, |r_i - r_j|), \qquad
          r_i \leftarrow r_i + \frac{1}{\sqrt M} \sum_{j \ne i} \frac{r_i - r_j}{|r_i - r_j| + 1}\, \phi_r(m_{ij}), \qquad
          h_i \leftarrow h_i + \phi_h\Big(h_i, \frac{1}{\sqrt M} \sum_{j \ne i} \phi_a(m_{ij})\, m_{ij}\Big) .
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.base.shape import centred, check_points, present
from scoresde.models.embedding import NoiseEmbedding, TimeFeatures
from scoresde.models.layers import zero

__all__ = ["EGNN"]


class _Layer(nn.Module):
    """A message between each two points, and the update of positions and features."""

    def __init__(self, width: int, radial: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.receiver, self.sender = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(radial, width, bias=False)
        self.message, self.gate = nn.Linear(width, width), nn.Linear(width, 1)
        self.move = zero(nn.Linear(width, 1, bias=False))
        self.update1, self.update2 = nn.Linear(2 * width, width), zero(nn.Linear(width, width))

    def forward(self, r: Tensor, h: Tensor, embedding: Tensor, centres: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return new positions ``(batch, points, dims)`` and features; ``pairs`` weighs the sums over other points."""
        away = r[:, :, None] - r[:, None]  # (batch, points, points, dims)
        d = (away.square().sum(3, keepdim=True) + 1e-12).sqrt()  # differentiable where a point meets itself
        waves = 1 / (1 + ((torch.exp(-d) - centres) * len(centres)).square())  # (batch, points, points, radial)
        scale, shift = self.modulation(embedding)[:, None].chunk(2, dim=2)
        g = self.norm(h) * (1 + scale) + shift
        m = F.silu(self.receiver(g)[:, :, None] + self.sender(g)[:, None] + self.distance(waves))
        m = F.silu(self.message(m))  # (batch, points, points, width)
        r = r + (pairs * away / (d + 1) * self.move(m)).sum(2)
        heard = (pairs * torch.sigmoid(self.gate(m)) * m).sum(2)
        return r, h + self.update2(F.silu(self.update1(torch.cat([g, heard], dim=2))))


class EGNN(nn.Module):
    """An E(n)-equivariant graph network on point sets of any size, for molecules and particles.

    A point set has the shape ``(batch, points, dims + features)``: positions, then features that rotations leave alone, such
    as encoded atom types. Smaller sets are padded, and a mask tells the points from the padding. The output has the same
    shape. Its positions turn with those of the input and have zero centre of mass; its features do not change. A permutation
    of the points permutes both. Padding is zero in the output and has no effect.

    Args:
        features: number of features of a point.
        dims: number of coordinates of a position, n.
        width: number of hidden features of a point and of a message.
        depth: number of layers.
        radial: number K of radial functions of a distance d, the bumps 1 / (1 + K^2 (exp(-d) - c_k)^2) with centres c_k
            in [0, 1].
        time_features: number of :class:`~scoresde.models.embedding.TimeFeatures`.
        time_scale: about the length of the interval of the times.
        properties: number of properties of a whole point set that the network may be conditioned on.

    The output is zero at initialisation. :attr:`config` holds the arguments as plain values.

    Raises:
        ValueError: for sizes that are not positive.

    Source: Satorras, Hoogeboom and Welling, "E(n) Equivariant Graph Neural Networks", 2021,
    https://arxiv.org/abs/2102.09844. Radial functions of exp(-d), finer at small distances, are from Unke and Meuwly,
    "PhysNet", 2019, https://arxiv.org/abs/1902.08408, where they are Gaussian; these are cheaper and never underflow.

    Example:
        >>> net = EGNN(features=2, width=16, depth=1)
        >>> net(torch.randn(5, 7, 3 + 2), torch.rand(5)).shape
        torch.Size([5, 7, 5])
    """

    centres: Tensor

    def __init__(
        self,
        features: int = 0,
        *,
        dims: int = 3,
        width: int = 64,
        depth: int = 4,
        radial: int = 16,
        time_features: int = 32,
        time_scale: float = 1.0,
        properties: int = 0,
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if min(dims, width, depth, radial) < 1 or min(features, properties) < 0:
            raise ValueError(
                f"got features={features}, dims={dims}, width={width}, depth={depth}, radial={radial}, "
                f"properties={properties}; expected positive sizes, and at least 0 features and properties"
            )
        self.config: dict[str, Any] = config
        self.dims, self.features, self.properties = dims, features, properties
        pooled = properties + 1 if properties else 0  # with whether they are known
        self.embedding = NoiseEmbedding(TimeFeatures(time_features, time_scale=time_scale), width, pooled=pooled)
        self.stem = nn.Linear(features + 1, width)
        self.layers = nn.ModuleList([_Layer(width, radial) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.output = zero(nn.Linear(width, features)) if features else None
        self.register_buffer("centres", torch.linspace(0, 1, radial), persistent=False)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        mask: Tensor | None = None,
        property: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Return the output at point sets ``x``, of the same shape.

        Args:
            x: shape ``(batch, points, dims + features)``.
            t: times of shape ``(batch,)``.
            mask: booleans of shape ``(batch, points)``, true for the points; by default all are.
            property: properties of each set, shape ``(batch, properties)``, or ``(batch,)`` where there is one; by default
                unknown.
            known: booleans of shape ``(batch,)``, whether the properties are given; by default they are.

        Raises:
            ValueError: for another shape of the point sets, the mask or the properties, and for fewer than two points.
        """
        check_points(x, self.dims, self.features)
        mask = present(x, mask)
        embedding = self.embedding(t, pooled=self._told(x, property, known))
        here = mask[:, :, None].to(x.dtype)  # (batch, points, 1)
        others = mask[:, :, None] & mask[:, None] & ~torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        pairs = others[..., None].to(x.dtype) / here.sum(1)[:, :, None, None].clamp(min=1).sqrt()
        start = x[..., : self.dims]
        size = here.sum(1, keepdim=True).log().expand(-1, x.shape[1], 1)  # (batch, points, 1)
        r, h = start, self.stem(torch.cat([x[..., self.dims :], size], dim=2))
        for layer in self.layers:
            r, h = layer(r, h, embedding, self.centres.to(x.dtype), pairs)
        out = r - start
        if self.output is not None:
            out = torch.cat([out, self.output(self.norm(h))], dim=2)
        return centred(out, self.dims, mask)

    def _told(self, x: Tensor, given: Tensor | None, known: Tensor | None) -> Tensor | None:
        """Return the properties with whether they are known, shape ``(batch, properties + 1)``."""
        if not self.properties:
            if given is not None or known is not None:
                raise ValueError("got properties for a network without; expected one built with EGNN(.., properties=1)")
            return None
        if given is None:
            return x.new_zeros(len(x), self.properties + 1)
        given = given[:, None] if given.ndim == 1 else given
        if given.shape != (len(x), self.properties):
            raise ValueError(
                f"got properties of shape {tuple(given.shape)}; expected {(len(x), self.properties)}, a row for each sample"
            )
        told = torch.ones(len(x), device=x.device) if known is None else known
        told = told.to(x.dtype).reshape(len(x), 1)
        return torch.cat([told * given.to(x.dtype), told], dim=1)
