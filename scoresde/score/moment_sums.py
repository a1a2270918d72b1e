r"""Running sums over batches of data, from which their moments follow in one pass.

In few dimensions the sums are those of the mean and of the full covariance. In many, the covariance C is known by its trace
and by its product with a fixed matrix of random orthonormal columns, :math:`Y = C \Omega`, of which the approximation of
Nystrom is computed,

.. math:: C \approx Y\, (\Omega^T Y)^{+}\, Y^T ,

whose leading eigenvectors are kept. It is exact where C has no larger rank than Omega. What is missing of the trace is the
variance in all other directions. Source: Tropp et al., "Fixed-Rank Approximation of a Positive-Semidefinite Matrix from
Streaming Data", 2017, https://arxiv.org/abs/1706.05736.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from scoresde.base.shape import check_batch
from scoresde.score.moments import DataMoments

__all__ = ["MomentSums"]

FULL = 256
"""The largest number of dimensions for which the sums are those of the full covariance."""

RANK, BESIDE = 64, 16
"""The number of eigenvectors that are kept, and of columns of Omega beside them, which make the first more accurate."""

MOST = 1 << 20
"""The largest number of entries of the eigenvectors together, by which their number falls in very many dimensions."""


class MomentSums:
    """The sums over samples of an event's shape from which their moments follow: see the module.

    Args:
        event: the shape of a sample.

    Example:
        >>> data = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> sums = MomentSums((3,))
        >>> sums.add(data[:40])
        >>> sums.add(data[40:])
        >>> bool(torch.allclose(sums.moments().mean, data.mean(0))), sums.count
        (True, 100)
    """

    def __init__(self, event: Sequence[int]) -> None:
        self.event, self.count = tuple(event), 0
        self.size = math.prod(self.event)
        self.rank = self.size if self.size <= FULL else min(RANK, max(1, MOST // self.size))
        self.columns = min(self.size, self.rank + min(self.rank, BESIDE))
        self._sums: dict[str, Tensor] = {}
        self._omega: Tensor | None = None  # of the full covariance, whose product is itself

    def add(self, x: Tensor, over: Callable[[list[Tensor]], object] = list) -> None:
        """Add a batch of samples, shape ``(n, *event)``.

        Args:
            x: the samples.
            over: a function that replaces tensors by their sums over several processes, each with a part of the batch.

        Raises:
            ValueError: for samples of another shape.
        """
        if tuple(check_batch(x).shape[1:]) != self.event:
            raise ValueError(f"got samples of shape {tuple(x.shape[1:])}; expected {self.event}")
        flat = x.detach().to(torch.float64).flatten(1)
        if not self._sums:  # sums about a mean do not cancel
            begun = torch.cat([flat.sum(0), flat.new_tensor([len(flat)])])
            over([begun])
            shape = (self.size, self.columns)
            zeros = {"total": flat.new_zeros(self.size), "products": flat.new_zeros(shape), "square": flat.new_zeros(1)}
            self._sums = {"shift": begun[:-1] / begun[-1], **zeros}
        self._sums = {name: value.to(flat.device) for name, value in self._sums.items()}
        flat = flat - self._sums["shift"]
        projected = flat if self.columns == self.size else flat @ self._directions(flat.device)
        found = [flat.sum(0), flat.T @ projected, flat.square().sum()[None], flat.new_tensor([len(flat)])]
        over(found)
        for name, value in zip(("total", "products", "square"), found, strict=False):
            self._sums[name] = self._sums[name] + value
        self.count += int(found[-1])

    def _directions(self, device: torch.device) -> Tensor:
        """Return Omega, the same for all sums over events of this size."""
        if self._omega is None:
            generator = torch.Generator().manual_seed(self.size)
            drawn = torch.randn(self.size, self.columns, generator=generator, dtype=torch.float64)
            self._omega = torch.linalg.qr(drawn)[0]
        self._omega = self._omega.to(device)
        return self._omega

    def moments(self) -> DataMoments:
        """Return the moments of the samples so far.

        Raises:
            ValueError: for fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"got the sums over {self.count} samples; expected at least two")
        shift, total, products, square = (self._sums[name].cpu() for name in ("shift", "total", "products", "square"))
        n, away = self.count, total / self.count
        mean = (shift + away).reshape(self.event)
        if self.columns == self.size:
            covariance = (products - n * torch.outer(away, away)) / (n - 1)
            return DataMoments.from_covariance(mean, (covariance + covariance.T) / 2)
        omega = self._directions(away.device)
        sketch = (products - n * torch.outer(away, away @ omega)) / (n - 1)
        core = omega.T @ sketch
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        good = values > SMALL * values.max().clamp(min=1e-300)
        root = sketch @ (vectors[:, good] / values[good].sqrt())
        basis, lengths, _ = torch.linalg.svd(root, full_matrices=False)
        rank = min(self.rank, len(lengths))
        variances = lengths[:rank].square()
        missing = float((square - n * away.square().sum()) / (n - 1) - variances.sum())
        rest = max(missing, 0.0) / (self.size - rank) if rank < self.size else 0.0
        return DataMoments(mean, variances, basis[:, :rank].contiguous(), rest)

    def to_tensors(self) -> dict[str, Tensor]:
        """Return the sums as tensors by name, for a file; empty where nothing was added."""
        return {**self._sums, "count": torch.tensor([self.count])} if self.count else {}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from the sums that :meth:`to_tensors` returned.

        Raises:
            ValueError: for the sums over other events.
        """
        shapes = {"shift": (self.size,), "total": (self.size,), "products": (self.size, self.columns), "square": (1,)}
        if not tensors:
            return
        found = {name: tuple(value.shape) for name, value in tensors.items()}
        if found != {**shapes, "count": (1,)}:
            raise ValueError(f"got sums of the shapes {found}; expected those over samples of shape {self.event}")
        self._sums = {name: tensors[name] for name in shapes}
        self.count = int(tensors["count"])


SMALL = 1e-10
"""The eigenvalue of Omega^T Y, relative to the largest, below which it is rounding."""
