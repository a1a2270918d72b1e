r"""Distances between samples by kernels: the energy distance and the maximum mean discrepancy (MMD).

For a kernel k and independent :math:`X, X' \sim P` and :math:`Y, Y' \sim Q` these distances are

.. math:: E\,k(X, X') + E\,k(Y, Y') - 2\, E\,k(X, Y),

where :math:`k(x, y) = -\|x - y\|` for the energy distance. The estimates are unbiased U-statistics, in which no sample is
compared with itself. They are near zero, of either sign, for two samples of one distribution. Hoeffding's decomposition
gives their variance exactly,

.. math:: \frac{4 \zeta_x}{n} + \frac{4 \zeta_y}{m} + \frac{2 \tau_{xx}}{n (n - 1)} + \frac{2 \tau_{yy}}{m (m - 1)}
          + \frac{4 \tau_{xy}}{n m},

where :math:`\zeta_x` is the variance of :math:`E\,k(x, X') - E\,k(x, Y)` and :math:`\tau` the mean square of the kernel
minus its means over either argument. All are estimated from row sums of the kernel matrices, which are computed once, in
chunks.

As the distributions approach each other, :math:`\zeta` falls in proportion to the distance :math:`\theta`, and the other
terms remain. The interval therefore consists of all :math:`\theta` from which the estimate is at most z standard deviations
away, with :math:`\zeta` proportional to :math:`\theta`. It has the right coverage far from zero and at zero, where an
interval about the estimate would be much too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from scoresde.metrics._samples import check_pair, rows_at_once
from scoresde.metrics.intervals import Estimate, normal_quantile

__all__ = ["energy_distance", "energy_estimate", "kernel_distance_estimate", "median_distance", "mmd", "mmd_estimate"]

Kernel = Callable[[Tensor, Tensor], Tensor]


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Return the energy distance :math:`2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|`, zero only for equal distributions.

    This is the unbiased estimate (a U-statistic, in which no sample is compared with itself). Its mean does not depend on
    the sample sizes, and it is near zero, of either sign, for two samples of one distribution. Memory is bounded; time grows
    as (n + m)^2.

    Source: Székely and Rizzo, "Energy statistics: A class of statistics based on distances", 2013,
    https://doi.org/10.1016/j.jspi.2013.03.018. In one dimension it is twice the squared L2 distance of the
    distribution functions; ``scipy.stats.energy_distance`` is the square root of the biased estimate.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> energy_distance(x, y)  # 2 (0 + 3 + 1 + 2) / 4 - 1 - 3
        tensor(-1., dtype=torch.float64)
    """
    return _Pairs.of(*check_pair(x, y), _minus_distance).value


def energy_estimate(x: Tensor, y: Tensor, confidence: float = 0.95) -> Estimate:
    """Return :func:`energy_distance` with its confidence interval, which :mod:`scoresde.metrics.kernels` explains.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = energy_estimate(x[:50], x[50:] + 1)
        >>> 0 < found.low < energy_distance(x[:50], x[50:] + 1) < found.high
        tensor(True)
    """
    return _Pairs.of(*check_pair(x, y), _minus_distance).estimate(confidence)


def mmd(x: Tensor, y: Tensor, kernel: str = "gaussian", widths: Sequence[float] | None = None) -> Tensor:
    r"""Return the unbiased estimate of the squared maximum mean discrepancy of two samples.

    ``kernel="gaussian"`` is :math:`\sum_h \exp(-\|x - y\|^2 / 2 h^2)` over the ``widths`` h. The default is one width, the
    median distance within ``y``, which does not depend on ``x``. ``kernel="polynomial"`` is :math:`(x \cdot y / d + 1)^3`;
    on Inception features this is KID, the kernel distance.

    Source: Gretton et al., "A Kernel Two-Sample Test", 2012, https://jmlr.org/papers/v13/gretton12a.html, and Bińkowski et
    al., "Demystifying MMD GANs", 2018, https://arxiv.org/abs/1801.01401, for the polynomial kernel.

    Args:
        x, y: samples ``(n, *event)`` and ``(m, *event)``.
        kernel: "gaussian" or "polynomial".
        widths: the widths of the Gaussian kernel.

    Raises:
        ValueError: for an unknown kernel, for widths that are not positive, and for widths of a polynomial kernel.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]])
        >>> mmd(x, y, widths=[1.0])  # 1 + 1 - 2 exp(-1 / 2)
        tensor(0.7869, dtype=torch.float64)
    """
    x, y = check_pair(x, y)
    return _Pairs.of(x, y, _kernel(y, kernel, widths)).value


def mmd_estimate(
    x: Tensor, y: Tensor, kernel: str = "gaussian", widths: Sequence[float] | None = None, confidence: float = 0.95
) -> Estimate:
    """Return :func:`mmd` with its confidence interval, which :mod:`scoresde.metrics.kernels` explains.

    Example:
        >>> x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> found = mmd_estimate(x[:50], x[50:], "polynomial")
        >>> found.low < 0 < found.high
        True
    """
    x, y = check_pair(x, y)
    return _Pairs.of(x, y, _kernel(y, kernel, widths)).estimate(confidence)


def median_distance(x: Tensor, most: int = 1000) -> float:
    """Return the median distance between pairs of ``x``, shape ``(n, d)``, or of at most ``most`` evenly chosen samples.

    Example:
        >>> median_distance(torch.tensor([[0.0], [1.0], [3.0]]))
        2.0
    """
    chosen = x[:: -(-len(x) // most)].flatten(1).double()
    return float(torch.nn.functional.pdist(chosen).median())


def kernel_distance_estimate(x: Tensor, kernel: Kernel, confidence: float = 0.95) -> Estimate:
    r"""Return the squared norm of the mean feature of ``x``, from inner products of features, with its interval.

    If the features :math:`\phi` have mean zero under the truth, :math:`\|E \phi(X)\|^2` is a squared distance of the samples
    from the truth. It is the MMD with exact expectations in place of the second sample. The estimate is unbiased.

    Args:
        x: samples ``(n, d)``.
        kernel: ``kernel(a, b)`` returns the inner products of the features of ``a``, ``(i, d)``, and ``b``, ``(j, d)``.
        confidence: the level of the interval.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])  # the true mean is zero
        >>> round(kernel_distance_estimate(x, lambda a, b: a @ b.T).value, 12)  # (1 2 + 1 3 + 2 3) / 3
        3.666666666667
    """
    within = _Within.of(x.double(), kernel)
    n = within.n
    biased = float(within.biased.mean())
    slope = 4 * float(within.biased.var()) / n / biased if biased > 0 else 0.0
    return _interval(float(within.value), slope, within.floor, confidence)


def _interval(value: float, slope: float, floor: float, confidence: float) -> Estimate:
    """Return all distances t with (value - t)^2 <= z^2 (slope t + floor); slope t + floor is the variance at distance t."""
    z2 = normal_quantile(confidence) ** 2
    centre = value + 0.5 * z2 * slope
    half = math.sqrt(max(z2 * (slope * value + floor) + (0.5 * z2 * slope) ** 2, 0.0))
    return Estimate(value, min(centre - half, value), max(centre + half, value))


def _minus_distance(a: Tensor, b: Tensor) -> Tensor:
    # By differences, not by inner products, which cancel where two samples are close.
    return -torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _gaussians(widths: Sequence[float], a: Tensor, b: Tensor) -> Tensor:
    squared = _minus_distance(a, b).square()
    return torch.stack([torch.exp(squared / (-2 * h * h)) for h in widths]).sum(0)


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _kernel(y: Tensor, kernel: str, widths: Sequence[float] | None) -> Kernel:
    if kernel not in ("gaussian", "polynomial"):
        raise ValueError(f"got kernel={kernel!r}; expected 'gaussian' or 'polynomial'")
    if kernel == "polynomial":
        if widths is not None:
            raise ValueError(f"got widths={widths} for the polynomial kernel; expected none: it has no width")
        return _cubic
    widths = [median_distance(y)] if widths is None else list(widths)
    if not widths or not all(0 < h < math.inf for h in widths):
        raise ValueError(f"got widths={widths}; expected positive numbers: give widths=[1.0], or samples that differ")
    return partial(_gaussians, widths)


@dataclass(frozen=True)
class _Within:
    """Statistics of the kernel within one sample: row means without and with the diagonal, and tau."""

    n: int
    means: Tensor
    biased: Tensor
    tau: float

    @classmethod
    def of(cls, x: Tensor, kernel: Kernel) -> _Within:
        n, rows = len(x), rows_at_once(len(x))
        sums, own, squares = [], [], []
        for start in range(0, n, rows):
            k = kernel(x[start : start + rows], x)
            own.append(k.diagonal(start).clone())
            k.diagonal(start).zero_()
            sums.append(k.sum(1))
            squares.append(k.square().sum())
        r, total = torch.cat(sums), torch.stack(squares).sum()
        if n < 4:  # too few to tell the variance of a pair from that of its samples
            tau = total / (n * (n - 1))
        else:  # the unbiased square of the distance covariance, by U-centred sums (Székely and Rizzo, 2014)
            tau = (total - 2 * r.square().sum() / (n - 2) + r.sum() ** 2 / ((n - 1) * (n - 2))) / (n * (n - 3))
        return cls(n, r / (n - 1), (r + torch.cat(own)) / n, max(float(tau), 0.0))

    @property
    def value(self) -> Tensor:
        return self.means.mean()

    @property
    def floor(self) -> float:
        """The part of the variance that comes from the pairs, 2 tau / (n (n - 1))."""
        return 2 * self.tau / (self.n * (self.n - 1))


@dataclass(frozen=True)
class _Pairs:
    """Statistics of the kernel within two samples and between them."""

    x: _Within
    y: _Within
    rows: Tensor
    columns: Tensor
    tau: float

    @classmethod
    def of(cls, x: Tensor, y: Tensor, kernel: Kernel) -> _Pairs:
        n, m = len(x), len(y)
        rows, columns, squares = [], torch.zeros_like(y[:, 0]), torch.zeros_like(y[0, 0])
        for part in torch.split(x, rows_at_once(m)):
            k = kernel(part, y)
            rows.append(k.sum(1))
            columns, squares = columns + k.sum(0), squares + k.square().sum()
        r = torch.cat(rows)
        tau = squares - r.square().sum() / m - columns.square().sum() / n + r.sum() ** 2 / (n * m)
        tau = tau / ((n - 1) * (m - 1))
        return cls(_Within.of(x, kernel), _Within.of(y, kernel), r / m, columns / n, max(float(tau), 0.0))

    @property
    def value(self) -> Tensor:
        return self.x.value + self.y.value - 2 * self.rows.mean()

    def estimate(self, confidence: float) -> Estimate:
        n, m = self.x.n, self.y.n
        # The biased sums give the distance of the two empirical distributions, which is not negative.
        of_x, of_y = self.x.biased - self.rows, self.y.biased - self.columns
        biased = float(of_x.mean() + of_y.mean())
        slope = 4 * float(of_x.var() / n + of_y.var() / m) / biased if biased > 0 else 0.0
        floor = self.x.floor + self.y.floor + 4 * self.tau / (n * m)
        return _interval(float(self.value), slope, floor, confidence)
