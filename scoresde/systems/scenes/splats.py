r"""A scene of Gaussians in space, rendered by splatting: projected to the image, and composited from the front to the back.

A Gaussian with the centre :math:`\mu`, the covariance :math:`\Sigma = R\, \mathrm{diag}(s^2)\, R^T`, the opacity o and the
colour c is seen at a pixel u as

.. math:: \alpha(u) = o\, \exp \Big( -\tfrac12 (u - \mu')^T \Sigma'^{-1} (u - \mu') \Big), \qquad
          \Sigma' = J \Sigma J^T + \delta^2 I,

with the projection :math:`\mu'` of the centre, the Jacobian J of the projection there, and a blur :math:`\delta` of a part
of a pixel. For parallel rays the projection is linear and :math:`\Sigma'` exact. In the order of the distances of their
centres from the camera,

.. math:: C = \sum_k c_k \alpha_k \prod_{j < k} (1 - \alpha_j) + b \prod_k (1 - \alpha_k) .

Sources: Zwicker et al., "EWA Volume Splatting", 2001, https://doi.org/10.1109/VISUAL.2001.964490; Kerbl et al., "3D Gaussian
Splatting for Real-Time Radiance Field Rendering", 2023, https://arxiv.org/abs/2308.04079.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scoresde.base.numbers import whole
from scoresde.systems.scenes.cameras import Cameras

__all__ = ["Splats", "rotations"]


def rotations(quaternions: Tensor) -> Tensor:
    """Return the rotation matrices of quaternions (w, x, y, z) of any length but zero.

    Args:
        quaternions: shape ``(n, 4)``.

    Returns:
        Shape ``(n, 3, 3)``.

    Example:
        >>> rotations(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).round()  # by 90 degrees around the z axis
        tensor([[[ 0., -1.,  0.],
                 [ 1.,  0.,  0.],
                 [ 0.,  0.,  1.]]])
    """
    w, x, y, z = (quaternions / quaternions.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


class Splats(nn.Module):
    """A scene of Gaussians in the cube [-1, 1]^3, a renderer for :func:`distill`.

    The parameters are ``centres``, ``log_scales`` (log s), ``quaternions``, ``opacities`` (o is their sigmoid) and
    ``colours`` (c is their hyperbolic tangent, between -1 and 1 as in images).

    Args:
        count: the number of Gaussians.
        channels: the number of channels of the images.
        background: b, the colour behind the scene.
        scale: the initial standard deviations.
        opacity: the initial opacity, between 0 and 1.
        blur: the standard deviation of the blur, in pixels; published code has 0.55, the root of 0.3.
        seed: the seed of the initial centres, uniform in the cube [-1/2, 1/2]^3.

    Raises:
        ValueError: for sizes below 1, a scale that is not positive, an opacity outside (0, 1), a negative blur, and a
            background that is not finite.

    Example:
        >>> Splats(20)(Cameras([0.0, 30.0]), 8).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        count: int,
        channels: int = 1,
        *,
        background: float = -1.0,
        scale: float = 0.15,
        opacity: float = 0.5,
        blur: float = 0.55,
        seed: int = 0,
    ) -> None:
        super().__init__()
        count, channels = whole("count", count, 1), whole("channels", channels, 1)
        if not 0 < scale < math.inf or not 0 < opacity < 1 or not 0 <= blur < math.inf or not math.isfinite(background):
            raise ValueError(
                f"got scale={scale}, opacity={opacity}, blur={blur} and background={background}; expected a positive scale, "
                "an opacity between 0 and 1, a blur of at least 0 and a finite background"
            )
        self.background, self.blur = float(background), float(blur)
        draws = torch.Generator().manual_seed(whole("seed", seed))
        self.centres = nn.Parameter(torch.rand(count, 3, generator=draws) - 0.5)
        self.log_scales = nn.Parameter(torch.full((count, 3), math.log(scale)))
        self.quaternions = nn.Parameter(torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(count, 1))
        self.opacities = nn.Parameter(torch.full((count,), math.log(opacity / (1 - opacity))))
        self.colours = nn.Parameter(torch.zeros(count, channels))

    def forward(self, cameras: Cameras, size: int) -> Tensor:
        """Return what the cameras see, shape ``(cameras, channels, size, size)``, the upper row first.

        Args:
            cameras: the cameras.
            size: the number of pixels along each side of an image.
        """
        size, p = whole("size", size, 1), self.centres
        axes = torch.stack([cameras.right, cameras.up], 1).to(p)  # (cameras, 2, 3)
        near = cameras.directions.to(p) @ p.mT  # (cameras, count)
        flat, jacobian = axes @ p.mT, axes[:, None].expand(-1, len(p), -1, -1)  # (cameras, 2, count), (.., count, 2, 3)
        hidden = torch.zeros_like(near, dtype=torch.bool)
        if cameras.distance is not None:
            hidden = near > cameras.distance - 0.1
            zoom = cameras.distance / (cameras.distance - near).clamp(min=0.1)  # (cameras, count)
            toward = cameras.directions.to(p)[:, None, None]  # (cameras, 1, 1, 3)
            jacobian = zoom[..., None, None] * (jacobian + (flat * zoom[:, None] / cameras.distance).mT[..., None] * toward)
            flat = flat * zoom[:, None]
        root = rotations(self.quaternions) * self.log_scales.exp()[:, None]  # (count, 3, 3)
        spread = jacobian @ root  # (cameras, count, 2, 3)
        pixel = cameras.width / size
        covariance = spread @ spread.mT + (self.blur * pixel) ** 2 * torch.eye(2).to(p)
        across = pixel * (torch.arange(size, dtype=p.dtype, device=p.device) + 0.5) - cameras.width / 2
        x = across - flat[:, 0, :, None]  # (cameras, count, columns)
        y = -across - flat[:, 1, :, None]  # (cameras, count, rows), from the top
        a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
        x, y = x[:, :, None], y[..., None]
        square = (c[..., None, None] * x**2 - 2 * b[..., None, None] * x * y + a[..., None, None] * y**2) / (a * c - b * b)[
            ..., None, None
        ]
        seen = torch.sigmoid(self.opacities)[:, None, None] * torch.exp(-0.5 * square)  # (cameras, count, rows, columns)
        seen = seen.masked_fill(hidden[..., None, None], 0.0)
        order = near.argsort(1, descending=True)  # the nearest first
        seen = seen.gather(1, order[..., None, None].expand_as(seen))
        passed = (1 - seen).cumprod(1)
        before = torch.cat([torch.ones_like(passed[:, :1]), passed[:, :-1]], 1)
        colours = self.colours.tanh()[order]  # (cameras, count, channels)
        return torch.einsum("nkij,nkc->ncij", before * seen, colours) + self.background * passed[:, -1:]
