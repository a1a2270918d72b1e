r"""Non-leaking augmentation: images are transformed, and the network is conditioned on the transformation.

A network memorises a dataset that is too small for it. Augmentation enlarges the dataset, but without further measures it
leaks: samples look transformed as well. Here a description of the transformation is a condition of the network, and sampling
uses zeros, the description of an image that is not transformed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    r"""The geometric augmentation of EDM.

    The transformations are, in this order: flips left to right and upside down; scaling by :math:`s^{a_2}`; rotation by
    :math:`-a_3`; stretching by :math:`s^{a_5}` along the direction :math:`a_4` and by the inverse factor across it; a shift
    by :math:`(a_6 w, a_7 h) / 8` to the right and down. Here :math:`s = 2^{0.2}`. Angles are measured from right to down.
    Flips and angles are uniform, the other numbers normal. One bicubic interpolation of the image, reflected at its edges,
    makes all of them. An image without a transformation is unchanged, bit for bit.

    Source: Karras, Aittala, Aila and Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
    https://arxiv.org/abs/2206.00364, appendix F.2 and table 6.

    Args:
        p: the probability of each transformation except the flip left to right; 0.12 for CIFAR-10 in the paper.
        mirror: the probability that the flip left to right is drawn at all. Half of these images are flipped.

    Raises:
        ValueError: for a ``p`` or ``mirror`` that is not between 0 and 1.

    Example:
        >>> augmentation = Augmentation(p=0.12)
        >>> x, conditions = augmentation(torch.zeros(4, 3, 32, 32), torch.Generator().manual_seed(0))
        >>> x.shape, conditions["augment"].shape
        (torch.Size([4, 3, 32, 32]), torch.Size([4, 9]))
    """

    p: float = 0.12
    mirror: float = 1.0

    size = 9
    """The length of a description, the argument ``augment`` of the published networks."""

    def __post_init__(self) -> None:
        if not (0 <= self.p <= 1 and 0 <= self.mirror <= 1):
            raise ValueError(f"got p={self.p} and mirror={self.mirror}; expected probabilities between 0 and 1")

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the numbers :math:`a_0 .. a_7` of ``n`` transformations, shape ``(n, 8)``, float64.

        Zeros leave an image unchanged. Processes that share a batch draw the numbers of the whole batch and take their rows.
        """
        coins = torch.randint(2, (n, 2), generator=generator, dtype=torch.float64)
        normal = torch.randn(n, 4, generator=generator, dtype=torch.float64)
        angles = (2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1) * math.pi
        done = torch.rand(n, 6, generator=generator, dtype=torch.float64)
        done = (done < torch.tensor([self.mirror, *[self.p] * 5], dtype=torch.float64)).double()
        columns = [coins, normal[:, :1], angles, normal[:, 1:]]
        return torch.cat(columns, 1) * done[:, [0, 1, 2, 3, 4, 4, 5, 5]]

    @staticmethod
    def describe(a: Tensor) -> Tensor:
        """Return the descriptions of transformations, shape ``(n, 9)``, float32, continuous in the angles.

        An image that is not transformed has the description zero.
        """
        flips, scale, (turn, along, stretch), shift = a[:, :2], a[:, 2], a[:, 3:6].unbind(1), a[:, 6:]
        parts = [scale, turn.cos() - 1, turn.sin(), stretch * along.cos(), stretch * along.sin()]
        return torch.cat([flips, torch.stack(parts, 1), shift], 1).float()

    def apply(self, x: Tensor, a: Tensor) -> Tensor:
        """Transform images ``x``, shape ``(n, c, h, w)``, by the numbers :math:`a_0 .. a_7`, shape ``(n, 8)``.

        Raises:
            ValueError: for other shapes.
        """
        if x.ndim != 4 or a.shape != (len(x), 8):
            raise ValueError(
                f"got samples of shape {tuple(x.shape)} and numbers of shape {tuple(a.shape)}; expected images "
                "of shape (n, c, h, w), and numbers of shape (n, 8) from draw(n, generator)"
            )
        height, width = x.shape[2:]
        pixels = torch.tensor([width / 2, height / 2, 1.0], dtype=a.dtype, device=a.device).diag()
        # grid_sample takes the origin of each pixel of the result, in units of half the image.
        back = pixels.inverse() @ _matrix(a, height, width).inverse() @ pixels
        grid = F.affine_grid(back[:, :2].to(x), list(x.shape), align_corners=False)
        moved = F.grid_sample(x, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
        return torch.where((a != 0).any(1).to(x.device)[:, None, None, None], moved.clamp(-1, 1), x)

    def __call__(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Transform images at random; return them with the condition ``augment``, descriptions of shape ``(n, 9)``."""
        a = self.draw(len(x), generator)
        return self.apply(x, a), {"augment": self.describe(a).to(x)}


def _matrix(a: Tensor, height: int, width: int) -> Tensor:
    """Return the matrices that transform points (x, y, 1), shape ``(n, 3, 3)``.

    Coordinates are in pixels from the centre of the image, with y downwards.
    """
    flips, (scale, turn, along, stretch) = 1 - 2 * a[:, :2], a[:, 2:6].unbind(1)
    shift = a[:, 6:] * torch.tensor([width / 8, height / 8], dtype=a.dtype, device=a.device)
    first = flips * (2 ** (0.2 * scale))[:, None]
    longer = torch.stack([2 ** (0.2 * stretch), 2 ** (-0.2 * stretch)], 1)
    linear = _rotation(along) @ longer.diag_embed() @ _rotation(-along) @ _rotation(-turn) @ first.diag_embed()
    matrix = torch.eye(3, dtype=a.dtype, device=a.device).repeat(len(a), 1, 1)
    matrix[:, :2, :2], matrix[:, :2, 2] = linear, shift
    return matrix


def _rotation(angle: Tensor) -> Tensor:
    """Return the matrices of rotations from x towards y, which is clockwise with y downwards; shape ``(n, 2, 2)``."""
    rows = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1)
    return rows.reshape(-1, 2, 2)
