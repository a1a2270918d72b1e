r"""A codebook: vectors quantised to the nearest of K codes, which are learned."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from scoresde.base.numbers import whole

__all__ = ["Codebook"]

UPDATES = ("gradient", "ema")
"""The ways in which codes are learned; :class:`Codebook` explains them."""


class Codebook(nn.Module):
    r"""K codes, and the quantisation of vectors to the nearest of them.

    The gradient passes the quantisation as if it were the identity. The penalty is, with :math:`\mathrm{sg}` for a constant,
    the mean over a vector of

    .. math:: \beta\, (z - \mathrm{sg}[e])^2 + (\mathrm{sg}[z] - e)^2 ,

    where the commitment weight :math:`\beta` is on the term of the encoder. With ``update="ema"`` the second term is left
    out, and each code is the moving average of the vectors that it stands for, the online form of k-means.

    A code that stands for fewer than ``revive`` times its share 1/K of all vectors, as a moving average, is dead: it becomes
    one of the vectors of the batch. In training mode the codes change with every call. With several processes the vectors of
    all of them count.

    Args:
        size: K, the number of codes.
        features: the number of features of a code.
        commitment: :math:`\beta`.
        update: ``"gradient"``, by the loss, or ``"ema"``, by moving averages.
        decay: decay of the moving averages per call.
        revive: the part of its share below which a code is dead; 0 keeps all.

    Raises:
        ValueError: for numbers out of range, and an unknown ``update``.

    Sources: van den Oord et al., "Neural Discrete Representation Learning", 2017, https://arxiv.org/abs/1711.00937, with the
    moving averages in appendix A.1; Dhariwal et al., "Jukebox", 2020, https://arxiv.org/abs/2005.00341, for the revival.

    Example:
        >>> codes = Codebook(2, 1)
        >>> _ = codes.weight.data.copy_(torch.tensor([[-1.0], [1.0]]))
        >>> quantised, penalty = codes.eval()(torch.tensor([[0.5], [-3.0]]))
        >>> quantised.flatten().tolist(), penalty.tolist()
        ([1.0, -1.0], [0.3125, 5.0])
    """

    weight: Tensor
    shares: Tensor
    sums: Tensor
    calls: Tensor

    def __init__(
        self,
        size: int,
        features: int,
        *,
        commitment: float = 0.25,
        update: str = "gradient",
        decay: float = 0.99,
        revive: float = 0.03,
    ) -> None:
        super().__init__()
        self.size, self.features = whole("size", size, 1), whole("features", features, 1)
        if update not in UPDATES:
            raise ValueError(f"got update={update!r}; expected one of {', '.join(map(repr, UPDATES))}")
        if not (commitment >= 0 and 0 <= decay < 1 and 0 <= revive < 1):
            raise ValueError(
                f"got commitment={commitment}, decay={decay} and revive={revive}; expected a number of at least 0, and two "
                "from 0 to less than 1"
            )
        self.commitment, self.update, self.decay, self.revive = commitment, update, decay, revive
        start = torch.empty(size, features).uniform_(-1 / size, 1 / size)
        if update == "gradient":
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start)
            self.register_buffer("sums", start / size)
        self.register_buffer("shares", torch.full((size,), 1 / size))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def indices(self, z: Tensor) -> Tensor:
        """Return the numbers of the codes nearest to ``z``, ``(batch, features, *axes)``; shape ``(batch, *axes)``."""
        vectors = z.detach().movedim(1, -1)  # (batch, *axes, features)
        return torch.cdist(vectors.flatten(0, -2)[None], self.weight.detach()[None])[0].argmin(1).reshape(vectors.shape[:-1])

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of numbers ``(batch, *axes)``, shape ``(batch, features, *axes)``."""
        return F.embedding(indices, self.weight).movedim(-1, 1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quantised vectors, of the shape of ``z``, and the penalty of each sample, ``(batch,)``.

        Args:
            z: vectors, shape ``(batch, features, *axes)``.
        """
        if z.ndim < 2 or z.shape[1] != self.features:
            raise ValueError(
                f"got vectors of shape {tuple(z.shape)} for codes of {self.features} features; expected "
                f"(batch, {self.features}, ..)"
            )
        indices = self.indices(z)
        codes = self.lookup(indices)
        penalty = self.commitment * ((z - codes.detach()) ** 2).flatten(1).mean(1)
        if self.update == "gradient":
            penalty = penalty + ((z.detach() - codes) ** 2).flatten(1).mean(1)
        quantised = z + (codes - z).detach()
        if self.training:
            self._learn(z.detach().movedim(1, -1).flatten(0, -2), indices.flatten())
        return quantised, penalty

    @torch.no_grad()
    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        """Move the averages by one batch of vectors ``(n, features)``, and revive dead codes."""
        vectors = vectors.to(self.weight)
        counts = torch.zeros_like(self.shares).index_add_(0, indices, torch.ones_like(vectors[:, 0]))
        sums = torch.zeros_like(self.weight).index_add_(0, indices, vectors)
        many = distributed.is_available() and distributed.is_initialized()
        if many:
            distributed.all_reduce(counts)
            distributed.all_reduce(sums)
        n = counts.sum()
        sound = torch.isfinite(sums).all()  # a batch whose loss is not finite is skipped, here too
        move = torch.where(sound, 1 - self.decay, 0.0).to(self.shares)
        sums = torch.where(sound, sums, 0.0)
        self.shares.lerp_(counts / n, move)
        if self.update == "ema":
            self.sums.lerp_(sums / n, move)
            self.weight.copy_(self.sums / self.shares.clamp(min=torch.finfo(self.shares.dtype).tiny)[:, None])
        self.calls += 1
        if self.revive:
            self._revive(vectors, many, sound)

    def _revive(self, vectors: Tensor, many: bool, sound: Tensor) -> None:
        """Replace dead codes by vectors spread evenly over the batch, with a share of their own."""
        dead = (self.shares < self.revive / self.size) & sound
        stride = max(1, len(vectors) // self.size)
        chosen = vectors[(torch.arange(self.size, device=vectors.device) * stride + self.calls) % len(vectors)]
        if many:
            distributed.broadcast(chosen, 0)
        self.weight.copy_(torch.where(dead[:, None], chosen, self.weight))
        self.shares.copy_(torch.where(dead, 1 / self.size, self.shares))
        if self.update == "ema":
            self.sums.copy_(torch.where(dead[:, None], chosen / self.size, self.sums))

    def extra_repr(self) -> str:
        return f"{self.size}, {self.features}, commitment={self.commitment}, update={self.update!r}"
