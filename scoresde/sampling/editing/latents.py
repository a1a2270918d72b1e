r"""Latents: starts of the probability flow, drawn from the prior at a temperature, mixed, and interpolated.

The prior N(0, s^2 I) is the law of the latents of data. What is decoded should look like a draw of it, in its norm above
all: in d dimensions nearly all draws lie at the distance :math:`s \sqrt d` from the origin, their plain average nearer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scoresde.base.shape import check_batch, expand
from scoresde.sampling.start import start
from scoresde.score import ScoreModel

__all__ = ["combine", "latents", "slerp"]


def latents(
    model: ScoreModel,
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] | None = 0,
    temperature: float = 1.0,
    truncation: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw latents from the prior of a model, narrower or wider than it is.

    A latent is :math:`\sqrt\tau\, s\, z` with the standard deviation s of the prior. The numbers of z are standard normal
    or, with a truncation b, normal given that they lie between -b and b. At temperature 1 and without truncation these are
    the starts that :func:`scoresde.sample` draws for the same seeds. The flow of Gaussian data with covariance C turns them
    into data with covariance tau C; their mean is that of the data, up to the signal that is left at ``t_max``.

    Args:
        model: the score model.
        shape: ``(batch, *event)``.
        seed: the seed or seeds, as in :func:`scoresde.sample`.
        temperature: the factor tau of the variance, at least 0; below 1 for samples near the modes.
        truncation: the bound b in standard deviations, such as 2; by default none.
        device, dtype: as in :func:`scoresde.sample`.

    Returns:
        A tensor of ``shape``, at ``t_max``.

    Raises:
        ValueError: for a negative temperature, a truncation that is not positive, and a wrong shape.

    Source of the truncation: Brock, Donahue and Simonyan, "Large Scale GAN Training for High Fidelity Natural Image
    Synthesis", 2018, https://arxiv.org/abs/1809.11096.

    Example:
        >>> import scoresde
        >>> model = scoresde.problems.ring().model(scoresde.VP())
        >>> bool(latents(model, (1000, 2), truncation=1.5).abs().max() <= 1.5)
        True
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"got temperature={temperature}; expected a number of at least 0, and 1 for the prior itself")
    if truncation is not None and not truncation > 0:
        raise ValueError(f"got truncation={truncation}; expected a positive number of standard deviations, such as 2")
    if isinstance(shape, Tensor):
        raise ValueError("got a tensor for the shape of latents; expected (batch, *event)")
    z = start(shape, model, seed, 1.0, device, dtype)[0]
    if truncation is not None and truncation < math.inf:
        # The quantile of the truncated law at the level of z: one latent for one seed, whatever the bound.
        bound = torch.tensor(truncation, dtype=torch.float64, device=z.device)
        low, level = torch.special.ndtr(-bound), torch.special.ndtr(z.double())
        inner = torch.special.ndtri(low + (1 - 2 * low) * level)
        z = torch.where(inner.isfinite(), inner, z.double()).clamp(-truncation, truncation).to(z)
    return z * (math.sqrt(temperature) * model.sde.prior_std)


def slerp(a: Tensor, b: Tensor, weight: float | Tensor) -> Tensor:
    r"""Interpolate spherically between latents, along the geodesic of the sphere on which the prior lies.

    With the angle :math:`\theta` between a and b,

    .. math:: \mathrm{slerp}(a, b, w) = \frac{\sin (1 - w) \theta}{\sin \theta}\, a + \frac{\sin w \theta}{\sin \theta}\, b

    where a and b have one norm; norms that differ are interpolated geometrically beside the directions. Between
    independent draws of the prior, whose angle is about 90 degrees, each state is again about a draw of the prior.

    Args:
        a, b: latents of shape ``(batch, *event)``, not zero.
        weight: w, a number or shape ``(batch,)``; 0 is a and 1 is b.

    Raises:
        ValueError: for shapes that differ, and latents that are zero or point in opposite directions.

    Source: Shoemake, "Animating Rotation with Quaternion Curves", 1985, https://doi.org/10.1145/325165.325242.

    Example:
        >>> slerp(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]]), 0.5)
        tensor([[1.4142, 1.4142]])
    """
    if check_batch(a).shape != check_batch(b).shape:
        raise ValueError(f"got latents of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected the same")
    w = expand(torch.as_tensor(weight, dtype=torch.float64, device=a.device), a)
    u, v = a.double(), b.double()
    dims = tuple(range(1, a.ndim))
    norms = [torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (u, v)]
    if not all(bool((n > 0).all()) for n in norms):
        raise ValueError("got a latent that is zero, which has no direction; expected latents such as encode returns")
    u, v = u / norms[0], v / norms[1]
    # The angle from both chords is accurate at any size, where the arc cosine of the product is not.
    chords = [torch.linalg.vector_norm(x, dim=dims, keepdim=True) for x in (u - v, u + v)]
    if bool((chords[1] < 1e-12).any()):
        raise ValueError("got latents that point in opposite directions, between which there is no shortest way")
    theta = 2 * torch.atan2(*chords)
    # sin(w theta) / sin(theta), which is w for a vanishing angle.
    factors = [torch.where(theta < 1e-8, s, torch.sin(s * theta) / torch.sin(theta)) for s in (1 - w, w)]
    norm: Tensor = norms[0] ** (1 - w) * norms[1] ** w
    mixed: Tensor = norm * (factors[0] * u + factors[1] * v)
    return mixed.to(a)


def combine(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    r"""Add latents with weights so that draws of the prior give a draw of the prior: latent arithmetic.

    .. math:: z = \frac{\sum_i w_i z_i}{\sqrt{\sum_i w_i^2}}

    For independent draws of the prior this has the prior's law, whatever the weights: an average with weights 1/n, or an
    attribute added and another one taken away, with weights 1, 1 and -1. With the weights cos and sin of an angle it is
    the geodesic between two draws of the prior. Latents that are not independent come out too large: take their plain sum.

    Args:
        parts: latents of one shape ``(batch, *event)``.
        weights: a number for each, not all zero.

    Raises:
        ValueError: for no latents, another number of weights, shapes that differ, and weights that are all zero.

    Source: Bodin et al., "Linear combinations of latents in generative models: subspaces and beyond", 2024,
    https://arxiv.org/abs/2408.08558.

    Example:
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> combine([a, b], [0.5, 0.5])
        tensor([[1.4142, 1.4142]])
    """
    parts, shapes = list(parts), {tuple(check_batch(z).shape) for z in parts}
    total = math.hypot(*weights)
    if not parts or len(parts) != len(weights) or len(shapes) > 1 or not 0 < total < math.inf:
        raise ValueError(
            f"got {len(parts)} latents of shapes {sorted(shapes)} with weights {list(weights)}; expected latents of one "
            "shape with a finite weight for each, not all zero"
        )
    mixed: Tensor = weights[0] / total * parts[0]
    for w, z in zip(weights[1:], parts[1:], strict=True):
        mixed = mixed + w / total * z
    return mixed
