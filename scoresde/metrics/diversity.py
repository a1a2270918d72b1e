r"""Scores of coverage and diversity: density and coverage of data by samples, and the Vendi score of samples alone."""

from __future__ import annotations

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch

__all__ = ["density_coverage", "vendi_score"]

_CHUNK = 2**22  # the size of a temporary matrix: 32 MiB in float64


def density_coverage(x: Tensor, y: Tensor, neighbours: int = 5) -> tuple[Tensor, Tensor]:
    r"""Return the density and the coverage of samples ``x`` against data ``y``, two tensors without dimensions.

    With the ball :math:`B_j` around each datum that reaches to its k-th nearest other datum,

    .. math:: \mathrm{density} = \frac{1}{k n} \sum_i \sum_j 1[x_i \in B_j], \qquad
              \mathrm{coverage} = \frac1m \sum_j 1[\exists i: x_i \in B_j] .

    Density says whether samples lie where data are many. Its mean is 1 for independent samples of one distribution, and it
    may be larger. Coverage is the share of data near which there is a sample. It is at most 1, and for independent samples
    of one distribution, n = m, its mean is

    .. math:: 1 - \frac{(m - 1) \cdots (m - k)}{(2 m - 1) \cdots (2 m - k)} ,

    whatever the distribution. In contrast to precision and recall, one far datum cannot make either of them large.

    Args:
        x: samples, shape ``(n, *event)``; mostly features of them.
        y: data, shape ``(m, *event)``, m > ``neighbours``.
        neighbours: k, the number of nearest data that set the size of a ball.

    Raises:
        ValueError: for shapes that do not fit, fewer data than neighbours, and numbers that are not finite.

    Source: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020,
    https://arxiv.org/abs/2002.09797.

    Example:
        >>> y = torch.arange(4.0)[:, None]
        >>> density, coverage = density_coverage(torch.tensor([[0.1], [0.2]]), y, neighbours=1)
        >>> density.item(), coverage.item()  # both are in the balls of 0 and 1
        (2.0, 0.5)
    """
    x, y = _flat(x), _flat(y)
    k = whole("neighbours", neighbours, 1)
    if x.shape[1] != y.shape[1] or len(y) <= k:
        raise ValueError(
            f"got samples of {x.shape[1]} numbers, and {len(y)} data of {y.shape[1]}; expected numbers of one shape, and "
            f"more data than neighbours={k}"
        )
    rows = max(1, _CHUNK // max(len(x), len(y)))
    inside = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for start in range(0, len(y), rows):
        block = y[start : start + rows]
        # k + 1, since a datum is the nearest of itself.
        radius = _distances(block, y).kthvalue(k + 1, dim=1, keepdim=True).values
        inside[start : start + rows] = (_distances(block, x) < radius).sum(1).double()
    return inside.sum() / (k * len(x)), (inside > 0).double().mean()


def vendi_score(x: Tensor, q: float = 1.0, kernel: str = "cosine", scale: float | None = None) -> Tensor:
    r"""Return the Vendi score of samples: an effective number of different ones among n, without dimensions.

    The eigenvalues :math:`\lambda_i` of :math:`K / n`, for a kernel matrix with ones on its diagonal, are a distribution.
    The score is the exponential of its Rényi entropy of order q,

    .. math:: \Big( \sum_i \lambda_i^q \Big)^{1 / (1 - q)}, \qquad
              q = 1: \; \exp\Big( -\sum_i \lambda_i \log \lambda_i \Big) .

    It is 1 if all samples are alike, and n if no two are similar. It knows no data: noise has a high score. The largest
    possible score is n, so compare samples of equal sizes.

    Args:
        x: samples, shape ``(n, *event)``; mostly features of them.
        q: the order: 1 is Shannon's, 2 weights frequent kinds more, ``float("inf")`` counts by the most frequent alone.
        kernel: ``"cosine"``, the cosine of the angle between two samples, as published for features, or ``"gaussian"``,
            :math:`\exp(-\|x - y\|^2 / (2 s^2))`.
        scale: s of the Gaussian kernel.

    Raises:
        ValueError: for another kernel, a Gaussian kernel without a positive scale, an order that is not positive, samples of
            length zero under the cosine, and numbers that are not finite.

    Sources: Friedman and Dieng, "The Vendi Score: A Diversity Evaluation Metric for Machine Learning", 2023,
    https://arxiv.org/abs/2210.02410; for other orders Pasarkar and Dieng, "Cousins of the Vendi Score", 2023,
    https://arxiv.org/abs/2310.12952.

    Example:
        >>> x = torch.eye(3).repeat(4, 1)  # three kinds, four of each
        >>> round(vendi_score(x).item(), 6), round(vendi_score(x, q=2.0).item(), 6)
        (3.0, 3.0)
    """
    x = _flat(x)
    if not q > 0:
        raise ValueError(f"got q={q} for the Vendi score; expected a positive order, such as 1")
    eigenvalues = _spectrum(x, kernel, scale)
    if q == 1:
        entropy: Tensor = torch.special.entr(eigenvalues).sum()
        return entropy.exp()
    if q == float("inf"):
        return eigenvalues.max().reciprocal()
    logs = eigenvalues[eigenvalues > 0].log()
    entropy = torch.logsumexp(q * logs, 0) / (1 - q)
    return entropy.exp()


def _spectrum(x: Tensor, kernel: str, scale: float | None) -> Tensor:
    """Return the eigenvalues of K / n that may differ from zero, not negative, with the sum 1."""
    if kernel == "cosine":
        length = x.norm(dim=1, keepdim=True)
        if bool((length == 0).any()):
            raise ValueError("got a sample of length zero, which has no angle to others; expected kernel='gaussian' for it")
        unit = x / length
        gram = unit @ unit.T if len(x) <= x.shape[1] else unit.T @ unit  # both have the same eigenvalues but for zeros
    elif kernel == "gaussian":
        if scale is None or not 0 < scale < float("inf"):
            raise ValueError(
                f"got scale={scale} for kernel='gaussian'; expected a positive number, such as a median distance"
            )
        gram = torch.exp(-0.5 * (_distances(x, x) / scale) ** 2)
    else:
        raise ValueError(f"got kernel={kernel!r}; expected 'cosine' or 'gaussian'")
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram / len(x))
    # Rounding errors of zeros, which a small power would make large.
    rounding = len(gram) * torch.finfo(gram.dtype).eps * eigenvalues.max()
    eigenvalues = torch.where(eigenvalues > rounding, eigenvalues, 0.0)
    return eigenvalues / eigenvalues.sum()


def _flat(x: Tensor) -> Tensor:
    flat = check_batch(x).double().flatten(1)
    if not len(flat) or not bool(flat.isfinite().all()):
        raise ValueError(f"got samples of shape {tuple(x.shape)}, none or not all finite; expected finite numbers")
    return flat


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # Not by a matrix product, whose rounding would move a datum away from itself.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
