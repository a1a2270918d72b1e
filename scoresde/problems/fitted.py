"""Mixtures fitted to a dataset, which are smooth and have a density, with the modes and correlations of real data."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.problems.base import parameter
from scoresde.problems.low_rank import LowRankMixture

__all__ = ["ppca_mixture"]


def ppca_mixture(data: Tensor, modes: int = 10, rank: int = 8, *, iterations: int = 20, seed: int = 0) -> LowRankMixture:
    r"""Fit a mixture of probabilistic PCAs to ``data`` by expectation-maximisation, started from k-means.

    Let :math:`r_{ik}` be the responsibilities and :math:`S_k` the covariance of the data weighted by them, with eigenvalues
    :math:`\lambda_1 \ge \lambda_2 \ge \dots`. The maximisation step gives

    .. math:: \psi_k = \frac{1}{d - r} \sum_{j > r} \lambda_j, \qquad
              F_k = [v_1 \sqrt{\lambda_1 - \psi_k}, \dots, v_r \sqrt{\lambda_r - \psi_k}].

    The likelihood never decreases. With one mode the first step is exact, and is PCA.

    Args:
        data: shape ``(n, *event)`` with n at least ``modes``.
        modes: the number of components.
        rank: the number of principal components of each mode, 1 <= ``rank`` < d.
        iterations: the number of steps of expectation-maximisation after the start; with 0 the result is a PCA of each
            cluster.
        seed: the seed of k-means.

    An iteration costs O(modes (n d^2 + d^3)). The noise is at least 1e-6 of the mean variance, so that the mixture has a
    density even where samples are repeated.

    Raises:
        ValueError: for data, modes, a rank or iterations outside these bounds, and for data that are all the same.

    Source: Tipping and Bishop, "Mixtures of Probabilistic Principal Component Analysers", Neural Computation 11, 1999,
    https://doi.org/10.1162/089976699300016728.

    Example:
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 1.0, 1.0])
        >>> fitted = ppca_mixture(x, modes=1, rank=1)
        >>> fitted.factors[0, :, 0].abs().argmax().item()  # the direction of largest variance
        0
    """
    x = parameter(data, "data")
    event, x = x.shape[1:], x.flatten(1) if x.ndim > 1 else x[:, None]
    n, d = x.shape
    modes, rank, iterations = whole("modes", modes, 1), whole("rank", rank, 1), whole("iterations", iterations, 0)
    if not (len(event) and modes <= n and rank < d):
        raise ValueError(
            f"got data of shape {tuple(data.shape)}, modes={modes} and rank={rank}; expected (n, *event), at most n modes "
            f"and a rank from 1 to {d - 1}"
        )
    floor = 1e-6 * float(x.var(0, correction=0).mean())
    if not floor > 0:
        raise ValueError("got data that are all the same; expected some that vary")
    problem = _maximise(x, _clusters(x, modes, seed), rank, floor, event)
    for _ in range(iterations):
        problem = _maximise(x, problem.responsibilities(x.reshape(n, *event)), rank, floor, event)
    return problem


def _clusters(x: Tensor, modes: int, seed: int) -> Tensor:
    """Return the one-hot cluster of each sample by k-means, shape ``(n, modes)``."""
    from sklearn.cluster import KMeans

    labels = torch.from_numpy(KMeans(modes, n_init=4, random_state=seed).fit(x.numpy()).labels_).long()
    return torch.nn.functional.one_hot(labels, modes).to(x)


def _maximise(x: Tensor, responsibility: Tensor, rank: int, floor: float, event: torch.Size) -> LowRankMixture:
    # A component that has lost all its samples keeps a weight of zero, at the mean of all.
    counts = responsibility.sum(0)
    share = torch.where(counts > 0, responsibility / counts, 1 / len(x))  # (n, K), each column sums to one
    means, factors, noise = share.T @ x, [], []
    for k in range(len(counts)):
        spread = share[:, k, None].sqrt() * (x - means[k])
        eigenvalues, vectors = torch.linalg.eigh(spread.T @ spread)
        noise.append(eigenvalues[:-rank].mean().clamp(min=floor))
        factors.append(vectors[:, -rank:] * (eigenvalues[-rank:] - noise[-1]).clamp(min=0).sqrt())
    return LowRankMixture(means.reshape(-1, *event), torch.stack(factors), torch.stack(noise), counts)
