r"""Linear maps of states that are small: a matrix for each mode of an orthonormal basis.

A state of a :class:`~scoresde.sde.MatrixSDE` has the shape ``(batch, b, *event)`` with b variables such as position and
velocity, or ``(batch, *event)`` where b = 1. An orthonormal basis of the event takes it to coordinates, its modes. A linear
map is then one b x b matrix for each mode, or one for all. Two cases are enough for the published SDEs: one matrix for all
(Langevin diffusions), and b = 1 with a number for each mode (blurring).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from scoresde.base.identity import Identified

__all__ = ["Basis", "Cosines", "ModalMap", "Pixels", "Vectors"]


@dataclass(frozen=True)
class Basis(Identified, ABC):
    """Interface of an orthonormal basis of the event, whose coordinates are the modes."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the coordinates of ``x``, whose first two dimensions ``(batch, b)`` are kept."""

    @abstractmethod
    def inverse(self, coordinates: Tensor, event: torch.Size) -> Tensor:
        """Return the events of shape ``event`` with these coordinates."""


@dataclass(frozen=True)
class Pixels(Basis):
    """The standard basis: the coordinates are the numbers of the event themselves.

    Example:
        >>> x = torch.ones(2, 3)
        >>> bool(torch.equal(Pixels().inverse(Pixels().forward(x), x[0].shape), x))
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, coordinates: Tensor, event: torch.Size) -> Tensor:
        return coordinates


@dataclass(frozen=True)
class Cosines(Basis):
    r"""The orthonormal cosine transform (DCT-II) over the last ``dims`` axes, the Fourier basis of reflected images.

    .. math:: u_k = \sqrt{(2 - \delta_{k0}) / n}\; \sum_{i=0}^{n-1} x_i \cos\frac{\pi k (2 i + 1)}{2 n}

    Args:
        dims: the number of axes, 1 for series, 2 for images, 3 for videos.

    Raises:
        ValueError: for ``dims`` below 1.

    Example:
        >>> x = torch.randn(1, 1, 3, 8, 8, dtype=torch.float64)
        >>> u = Cosines().forward(x)
        >>> bool(torch.allclose(Cosines().inverse(u, x.shape[2:]), x)), bool(torch.allclose(u.norm(), x.norm()))
        (True, True)
    """

    dims: int = 2

    def __post_init__(self) -> None:
        if self.dims < 1:
            raise ValueError(f"got dims={self.dims} for the cosine transform; expected at least one axis")

    def forward(self, x: Tensor) -> Tensor:
        return self._along(x, inverse=False)

    def inverse(self, coordinates: Tensor, event: torch.Size) -> Tensor:
        return self._along(coordinates, inverse=True)

    def _along(self, x: Tensor, *, inverse: bool) -> Tensor:
        if x.ndim < 2 + self.dims:
            raise ValueError(
                f"got events of shape {tuple(x.shape[2:])} for a cosine transform over {self.dims} axes; expected at least "
                f"{self.dims} dimensions, or a smaller dims"
            )
        for axis in range(-self.dims, 0):
            matrix = cosine_matrix(x.shape[axis]).to(x)
            x = torch.tensordot(x, matrix if inverse else matrix.mT, dims=([axis], [0])).movedim(-1, axis)
        return x


@cache
def cosine_matrix(n: int) -> Tensor:
    """Return the matrix of the orthonormal cosine transform of ``n`` numbers, float64, shape ``(n, n)``."""
    with torch.inference_mode(False):
        k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
        matrix = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
        matrix[0] = 1 / math.sqrt(n)
        return matrix


@dataclass(frozen=True)
class Vectors(Basis):
    """A basis of given orthonormal vectors; fewer than the dimensions of the event span a subspace.

    Args:
        vectors: shape ``(r, d)``, with r at most d, the size of the event.

    Raises:
        ValueError: for another shape, and for vectors that are not orthonormal.

    Example:
        >>> plane = Vectors(torch.eye(3)[:2])
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> plane.inverse(plane.forward(x), x.shape[2:])
        tensor([[[1., 2., 0.]]])
    """

    vectors: Tensor

    def __post_init__(self) -> None:
        with torch.inference_mode(False):
            matrix = torch.as_tensor(self.vectors, dtype=torch.float64, device="cpu").detach().clone()
        if matrix.ndim != 2 or not 1 <= len(matrix) <= matrix.shape[1]:
            raise ValueError(
                f"got vectors of shape {tuple(matrix.shape)}; expected (r, d), at most as many as their d components"
            )
        off = float((matrix @ matrix.mT - torch.eye(len(matrix), dtype=torch.float64)).abs().max())
        if not off < 1e-5:  # loose enough for vectors in float32
            raise ValueError(
                f"got vectors whose inner products differ from those of an orthonormal basis by {off:.3g}; expected "
                "orthonormal rows: torch.linalg.qr(vectors.mT).Q.mT makes them"
            )
        if (
            off > 1e-14 * matrix.shape[1]
        ):  # others are kept, so that vectors that are saved are the same when they are loaded
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            matrix = left @ right  # the nearest that are orthonormal in float64
        object.__setattr__(self, "vectors", matrix)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        if flat.shape[2] != self.vectors.shape[1]:
            raise ValueError(
                f"got events of shape {tuple(x.shape[2:])}, {flat.shape[2]} numbers, for basis vectors of "
                f"{self.vectors.shape[1]}; expected events of that size"
            )
        return flat @ self.vectors.mT.to(x)

    def inverse(self, coordinates: Tensor, event: torch.Size) -> Tensor:
        return (coordinates @ self.vectors.to(coordinates)).reshape(*coordinates.shape[:2], *event)


class ModalMap:
    """A linear map of states or data: a small matrix for each mode of a basis.

    It multiplies a tensor, ``map * x``, as a number would, so that it can stand where an update has a number.

    Args:
        matrix: float64, shape ``(*modes, o, i)``, or ``(batch, *modes, o, i)`` where each sample has its own. ``modes``
            broadcasts against the coordinates of the basis, and is empty where all modes share a matrix.
        basis: the basis.
        stacked: whether the input and the output have an axis of variables, ``(batch, b, *event)``.
        each: whether there is a matrix for each sample.

    Example:
        >>> swap = ModalMap(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), Pixels(), (True, True))
        >>> swap * torch.tensor([[[1.0], [2.0]]])  # a position of 1 and a velocity of 2
        tensor([[[2.],
                 [1.]]])
    """

    def __init__(
        self, matrix: Tensor, basis: Basis, stacked: tuple[bool, bool] = (False, False), *, each: bool = False
    ) -> None:
        self.matrix, self.basis, self.stacked, self.each = matrix, basis, stacked, each

    def __mul__(self, x: Tensor) -> Tensor:
        split = x if self.stacked[0] else x.unsqueeze(1)  # (batch, i, *event)
        if split.ndim < 3 or split.shape[1] != self.matrix.shape[-1]:
            raise ValueError(
                f"got a state of shape {tuple(x.shape)}; expected (batch, {self.matrix.shape[-1]}, *event), one entry of "
                "dimension 1 for each variable of the SDE"
            )
        coordinates = self.basis.forward(split)
        m = self.matrix.to(device=x.device, dtype=x.dtype)
        lead = m.shape[:1] if self.each else m.shape[:0]
        modes = m.shape[len(lead) : -2]
        m = m.movedim((-2, -1), (len(lead), len(lead) + 1))  # (*lead, o, i, *modes)
        filler = [1] * (coordinates.ndim - 2 - len(modes))
        m = m.reshape(*(lead or (1,)), *m.shape[len(lead) : len(lead) + 2], *filler, *modes)
        out = (m * coordinates[:, None]).sum(2)  # (batch, o, *coordinates)
        found = self.basis.inverse(out, split.shape[2:])
        return found if self.stacked[1] else found.squeeze(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({tuple(self.matrix.shape)}, {self.basis!r})"
