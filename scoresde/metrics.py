r"""Distances between two sets of samples, and a classifier of images in whose features they mean more than in pixels.

Every distance takes two tensors, ``(n, *event)`` and ``(m, *event)``, computes in float64 on the device of its inputs
and returns a tensor without dimensions. The distance of two independent sets of real data is the floor that a distance
of generated data is to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde._shape import check_batch

__all__ = [
    "Classifier",
    "energy_distance",
    "frechet_distance",
    "gaussian_frechet_distance",
    "sliced_wasserstein",
    "train_classifier",
]

_CHUNK = 2**22  # numbers of a temporary matrix: 32 MiB in float64


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if check_batch(x).shape[1:] != check_batch(y).shape[1:] or min(len(x), len(y)) < 2:
        raise ValueError(
            f"got samples of shapes {tuple(x.shape)} and {tuple(y.shape)}; expected (n, *event) and (m, *event) with "
            "the same event and at least two samples each"
        )
    return x.flatten(1).to(torch.float64), y.flatten(1).to(torch.float64)


def _sum_of_distances(x: Tensor, y: Tensor) -> Tensor:
    rows = max(1, _CHUNK // len(y))
    # By differences, not by inner products, which cancel where two samples are close.
    parts = [torch.cdist(c, y, compute_mode="donot_use_mm_for_euclid_dist").sum() for c in torch.split(x, rows)]
    return torch.stack(parts).sum()


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""The energy distance :math:`2 E\|X - Y\| - E\|X - X'\| - E\|Y - Y'\|`, zero only for equal distributions.

    This is the unbiased estimate (a U-statistic: no sample is compared with itself), so its mean does not depend on
    the sizes of the sets, and it is about zero, of either sign, for two sets from one distribution. Memory is bounded;
    time grows as (n + m)^2.

    Source: Székely and Rizzo, "Energy statistics: A class of statistics based on distances", 2013,
    https://doi.org/10.1016/j.jspi.2013.03.018. In one dimension it is twice the squared L2 distance of the
    distribution functions; ``scipy.stats.energy_distance`` is the square root of the biased estimate.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [3.0]])
        >>> energy_distance(x, y)  # 2 (0 + 3 + 1 + 2) / 4 - 1 - 3
        tensor(-1., dtype=torch.float64)
    """
    x, y = _pair(x, y)
    n, m = len(x), len(y)
    between = _sum_of_distances(x, y) / (n * m)
    return 2 * between - _sum_of_distances(x, x) / (n * (n - 1)) - _sum_of_distances(y, y) / (m * (m - 1))


def gaussian_frechet_distance(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> Tensor:
    r"""The Fréchet (squared 2-Wasserstein) distance of two Gaussians, for means ``(d,)`` and covariances ``(d, d)``.

    .. math:: \|\mu_x - \mu_y\|^2 + \operatorname{tr} \left( C_x + C_y - 2 (C_x C_y)^{1/2} \right)

    The trace of the root is the sum of the singular values of :math:`C_x^{1/2} C_y^{1/2}`, which needs no product of
    covariances and stays accurate where they are singular.

    Source: Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982,
    https://doi.org/10.1016/0047-259X(82)90077-X.

    Example:
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> round(gaussian_frechet_distance(zero, one, zero + 1, 4 * one).item(), 12)  # 2 + 2 (2 - 1)^2
        4.0
    """
    mean_x, covariance_x, mean_y, covariance_y = (v.to(torch.float64) for v in (mean_x, covariance_x, mean_y, covariance_y))
    cross: Tensor = torch.linalg.svdvals(_half(covariance_x).mT @ _half(covariance_y)).sum()
    return ((mean_x - mean_y) ** 2).sum() + covariance_x.trace() + covariance_y.trace() - 2 * cross


def _half(covariance: Tensor) -> Tensor:
    """A matrix A with A A^T = C."""
    values, vectors = torch.linalg.eigh(covariance)
    half: Tensor = vectors * values.clamp(min=0).sqrt()
    return half


def frechet_distance(x: Tensor, y: Tensor) -> Tensor:
    """The Fréchet distance of Gaussians with the means and (unbiased) covariances of ``x`` and ``y``.

    In the features of a classifier it is the family of scores to which FID belongs. It is biased upwards, by an amount
    that falls with the number of samples: compare sets of the same size.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017,
    https://arxiv.org/abs/1706.08500, equation (6), in any features.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> round(frechet_distance(x, x + 3).item(), 12)
        9.0
    """
    x, y = _pair(x, y)
    # The covariance of vectors of one number is a number, which the reshape makes a matrix again.
    moments = [(z.mean(0), z.T.cov().reshape(z.shape[1], z.shape[1])) for z in (x, y)]
    return gaussian_frechet_distance(*moments[0], *moments[1])


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, *, generator: torch.Generator) -> Tensor:
    r"""The sliced Wasserstein distance of order 1: the mean of :math:`W_1` over random directions.

    On a line :math:`W_1 = \int |F_x - F_y|`, here exact for sets of any two sizes. Not unbiased: compare sets of the
    same size.

    Source: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015,
    https://doi.org/10.1007/s10851-014-0506-3.

    Args:
        x, y: samples ``(n, *event)`` and ``(m, *event)``.
        projections: the number of directions, uniform on the sphere.
        generator: the only source of the directions.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> sliced_wasserstein(x, x + 3, generator=torch.Generator().manual_seed(0))
        tensor(3., dtype=torch.float64)
    """
    if projections < 1:
        raise ValueError(f"got projections={projections}; expected at least 1")
    x, y = _pair(x, y)
    direction = torch.randn(projections, x.shape[1], generator=generator, dtype=torch.float64, device=generator.device)
    direction = (direction / direction.norm(dim=1, keepdim=True)).to(x.device)
    rows = max(1, _CHUNK // (len(x) + len(y)))
    return torch.cat([_wasserstein(d @ x.T, d @ y.T) for d in torch.split(direction, rows)]).mean()


def _wasserstein(x: Tensor, y: Tensor) -> Tensor:
    """W_1 of each row of ``x``, shape ``(rows, n)``, from that of ``y``, shape ``(rows, m)``."""
    x, y = x.sort(1).values, y.sort(1).values
    points = torch.cat([x, y], 1).sort(1).values
    left = points[:, :-1].contiguous()
    # The distribution functions on each interval between neighbouring points, where they are constant.
    f_x, f_y = (torch.searchsorted(z, left, right=True).to(z.dtype) / z.shape[1] for z in (x, y))
    return ((f_x - f_y).abs() * points.diff(dim=1)).sum(1)


class Classifier(nn.Module):
    """A small convolutional classifier of images, whose last hidden layer serves as features.

    Args:
        channels: of the images, which may have any height and width of at least 2.
        classes: the number of labels.
        width: of the first convolution; ``dim``: the number of features.
        generator: the only source of the initial weights.
    """

    def __init__(self, channels: int, classes: int, *, width: int = 32, dim: int = 32, generator: torch.Generator) -> None:
        super().__init__()
        # The default initialisation would draw from the global generator.
        skip = cast(Callable[..., nn.Module], nn.utils.skip_init)
        self.body = nn.Sequential(
            skip(nn.Conv2d, channels, width, 3, padding=1),
            nn.SiLU(),
            skip(nn.Conv2d, width, 2 * width, 3, padding=1, stride=2),
            nn.SiLU(),
            skip(nn.Conv2d, 2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            skip(nn.Linear, 8 * width, dim),
            nn.SiLU(),
        )
        self.head = skip(nn.Linear, dim, classes)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)

    def features(self, images: Tensor) -> Tensor:
        """The last hidden layer, shape ``(batch, dim)``."""
        out: Tensor = self.body(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape ``(batch, classes)``."""
        out: Tensor = self.head(self.features(images))
        return out


def train_classifier(images: Tensor, labels: Tensor, *, seed: int = 0, epochs: int = 12, batch: int = 64) -> Classifier:
    """Train a :class:`Classifier` on the spot, by Adam with a learning rate that falls to zero.

    The result depends on the arguments alone, not on the global random state, and lies on the device of ``images``.

    Args:
        images: shape ``(n, c, h, w)``, float32, in [-1, 1].
        labels: shape ``(n,)``, whole numbers from 0.
        seed: of the initial weights and the order of the images.
        epochs, batch: passes over the images, and images a step.

    Raises:
        ValueError: for shapes that do not fit, labels that are not whole numbers from 0, or ``epochs`` below 1.

    Example:
        >>> from scoresde.data import digits
        >>> images, labels = digits()
        >>> train_classifier(images[:64], labels[:64], epochs=1).features(images[:5]).shape
        torch.Size([5, 32])
    """
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"got images of shape {tuple(images.shape)} and labels of shape {tuple(labels.shape)}; expected "
            "(n, c, h, w) and (n,)"
        )
    if labels.dtype != torch.int64 or bool((labels < 0).any()):
        raise ValueError(f"got labels of dtype {labels.dtype} from {labels.min().item()}; expected int64 from 0")
    if epochs < 1 or batch < 1:
        raise ValueError(f"got epochs={epochs} and batch={batch}; expected at least 1 of each")
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(images.shape[1], int(labels.max()) + 1, generator=generator).to(images)
    optimizer = torch.optim.Adam(model.parameters())
    steps = epochs * -(-len(images) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        for index in torch.split(order, batch):
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(model(images[index]), labels[index]))
            optimizer.step()
            schedule.step()
    return model.requires_grad_(False).eval()
