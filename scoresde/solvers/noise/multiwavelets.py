r"""Orthonormal bases of exponentials on intervals, and the relation between the bases of an interval and of its parts.

For finitely many kernels k the integrals :math:`\int e^{k s}\, dW_s` are inner products of dW with a space E of functions,
spanned by the :math:`e^{k s}`. On a cell, an interval of lam, dW enters through its coefficients in the orthonormal basis of
E there, which are independent standard normal numbers. A function of E, restricted to half a cell, is a function of E again.
So the coefficients of a cell are an exact linear function of the coefficients of its two halves. The coefficients of the
halves are an orthogonal matrix times the coefficients of the cell and as many fresh numbers. With one constant function this
is the Brownian bridge; with polynomials it would give the multiwavelets of Alpert ("A class of bases in L^2 for the sparse
representation of integral operators", 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import cast

import numpy as np

from scoresde.solvers.coefficients import gauss_legendre

__all__ = ["Kernels", "cell_weights", "split_matrix"]

Kernels = tuple[float, ...]
"""The rates k of the exponentials that span E."""

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _values(kernels: Kernels, lengths: Sequence[float]) -> list[Matrix]:
    """Return e^{k s} on adjacent cells, s from their common middle, at Gauss's nodes, times the roots of the weights."""
    theta, weights = (g.numpy() for g in gauss_legendre())
    out, low = [], -0.5 * sum(lengths)
    for length in lengths:
        out.append(np.exp(np.outer(low + length * theta, kernels)) * np.sqrt(length * weights)[:, None])
        low += length
    return out


def _orthonormal(columns: Matrix) -> Matrix:
    """Return the Gram-Schmidt orthonormalisation, which is unique: the same for a cell alone and as part of another."""
    q, r = np.linalg.qr(columns)
    return cast(Matrix, q * np.where(np.diag(r) < 0, -1.0, 1.0))


@lru_cache(maxsize=4096)
def cell_weights(kernels: Kernels, kernel: float, length: float) -> list[float]:
    """Return the inner products of e^{kernel s}, s from the middle of a cell, with the basis there."""
    basis = _orthonormal(_values(kernels, [length])[0])
    return cast(list[float], (_values((kernel,), [length])[0][:, 0] @ basis).tolist())


@lru_cache(maxsize=4096)
def split_matrix(kernels: Kernels, left: float, right: float) -> list[list[float]]:
    """Return the orthogonal matrix from fresh numbers and a cell's coefficients to the coefficients of its two parts."""
    n = len(kernels)
    parts = _values(kernels, [left, right])
    whole = np.split(_orthonormal(np.concatenate(parts)), 2)
    down = np.concatenate([_orthonormal(part).T @ values for part, values in zip(parts, whole, strict=True)])
    # The rotation of the fresh numbers is chosen so that their factors in the left part form a triangle, which is unique.
    # The factors of the cell's own coefficients form triangles too, since the first functions of a basis span the same
    # space on a cell and on its parts.
    new = np.linalg.qr(down, mode="complete")[0][:, n:]
    matrix = np.hstack([new @ _orthonormal(new[:n].T), _orthonormal(down)])
    return cast(list[list[float]], np.where(np.abs(matrix) < 1e-15, 0.0, matrix).tolist())
