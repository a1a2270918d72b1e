r"""The objective of autoencoders: reconstruction, features, a discriminator, and the penalty of the latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoresde.models import Autoencoder
from scoresde.objectives.matching import Objective
from scoresde.objectives.times import TIMES, Times
from scoresde.objectives.weightings import Weighting
from scoresde.score import ScoreModel

__all__ = ["Autoencoding"]

DISTANCES = ("l1", "l2")
"""The distances of a reconstruction from the data; :class:`Autoencoding` explains them."""


class _Companion(nn.Module):
    """What is trained beside an autoencoder: the logarithm of the scale of residuals, and the discriminator."""

    def __init__(self, learns_scale: bool, discriminator: nn.Module | None) -> None:
        super().__init__()
        self.log_scale: Tensor | None = nn.Parameter(torch.zeros(())) if learns_scale else None
        self.discriminator = discriminator


@dataclass(frozen=True)
class Autoencoding(Objective):
    r"""The loss of an autoencoder, per number of a sample.

    .. math:: L = \frac1d \left( -\log p(x \mid \hat x) \right) + w_f\, \rho(x, \hat x) + w_p\, \mathrm{penalty}
              - w_a\, \overline{D(\hat x)} + \tfrac12\, \overline{[1 - D(x)]_+ + [1 + D(\hat x)]_+}

    The density p is Laplace's for ``"l1"`` and the Gaussian for ``"l2"``, with a scale s common to all numbers: the constant
    aside, its negative logarithm is :math:`\sum_i |x_i - \hat x_i| / s + \log s` or
    :math:`\sum_i (x_i - \hat x_i)^2 / 2 s^2 + \log s`. With ``"l2"``, a learned scale and a penalty weight of 1, L is the
    negative evidence lower bound of a variational autoencoder.

    The autoencoder stands in the place of the network of a score model, so that the trainer trains it like a network;
    :func:`scoresde.training.fit_autoencoder` does this. Of the last two terms the first trains the autoencoder only, and the
    second the discriminator only; the trainer trains both in one step. To let the discriminator start later, as published,
    train without it first, and then go on with it.

    Args:
        penalty: w_p, the weight of the penalty of the latents: 1e-6 for the divergence of Gaussian latents and 1 for a
            codebook, as published.
        distance: ``"l1"`` or ``"l2"``.
        scale: s, or ``None`` to learn it.
        features: a function of data whose value, a tensor or several of shape ``(batch, ..)``, is compared by its mean
            squared difference: a perceptual distance. A module is neither trained nor stored; freeze it.
        of_features: w_f.
        discriminator: a module that returns logits of shape ``(batch, ..)``, such as
            :class:`~scoresde.models.PatchDiscriminator`. It is trained and stored with the autoencoder.
        adversarial: w_a.
        adaptive: multiply the term of the autoencoder by the ratio of the gradients of the reconstruction and of this term
            at the last layer, as published.

    Raises:
        ValueError: for weights that are negative, and an unknown distance; when called, for latents of more numbers than the
            data, whose noise there is not.
        TypeError: when called, for a network that is no :class:`~scoresde.models.Autoencoder`.

    Sources: Esser et al., "Taming Transformers for High-Resolution Image Synthesis", 2021,
    https://arxiv.org/abs/2012.09841; Rombach et al., 2022, https://arxiv.org/abs/2112.10752.

    Example:
        >>> import scoresde
        >>> net = scoresde.models.KLAutoencoder(1, 2, 8, (1, 2), groups=4)
        >>> model, generator = ScoreModel(net, scoresde.VP()), torch.Generator().manual_seed(0)
        >>> loss, _ = Autoencoding()(model, torch.rand(3, 1, 8, 8), generator)
        >>> loss.shape
        torch.Size([3])
    """

    penalty: float = 1e-6
    distance: str = "l1"
    scale: float | None = 1.0
    features: Callable[[Tensor], Tensor | Sequence[Tensor]] | None = None
    of_features: float = 1.0
    discriminator: nn.Module | None = None
    adversarial: float = 0.5
    adaptive: bool = True
    _companion: nn.Module = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise ValueError(f"got distance={self.distance!r}; expected one of {', '.join(map(repr, DISTANCES))}")
        weights = {"penalty": self.penalty, "of_features": self.of_features, "adversarial": self.adversarial}
        if bad := [name for name, value in weights.items() if not value >= 0]:
            raise ValueError(f"got {bad[0]}={weights[bad[0]]}; expected a weight of at least 0")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"got scale={self.scale}; expected a positive number, or None to learn it")
        if self.discriminator is not None and not isinstance(self.discriminator, nn.Module):
            raise TypeError(
                f"got a discriminator of type {type(self.discriminator).__name__}; expected a module, such as "
                "models.PatchDiscriminator(3)"
            )
        object.__setattr__(self, "_companion", _Companion(self.scale is None, self.discriminator))

    @property
    def weight(self) -> Weighting:
        """Refused: an autoencoder has no error of a score to weight."""
        raise ValueError(
            "got the weighting of an autoencoder, which has no error of a score; expected an objective that has"
        )

    @property
    def distribution(self) -> Times:
        """The distribution of times, of which no use is made."""
        return TIMES["uniform"]

    @property
    def companion(self) -> nn.Module:
        """The learned scale and the discriminator, trained together with the autoencoder."""
        return self._companion

    def at(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, **conditions: Any) -> Tensor:
        """Return the loss of each sample, shape ``(batch,)``.

        Args:
            model: the score model whose network is the autoencoder.
            x0: data, shape ``(batch, *event)``.
            t: times, of which no use is made.
            eps: standard normal noise of the shape of the data, whose first numbers are the noise of the latents.
            conditions: none are used, so that the labels of a dataset do no harm.
        """
        net = cast(Autoencoder, model.net)
        if not isinstance(getattr(net, "_orig_mod", net), Autoencoder):
            raise TypeError(f"got a {type(net).__name__} to train as an autoencoder; expected a models.Autoencoder")
        # The adaptive weight is a ratio of gradients, whatever the caller's mode is.
        with torch.inference_mode(False), torch.enable_grad():
            x0, eps = (v.clone() if v.is_inference() else v for v in (x0, eps))
            found, penalty = net(x0, _noise(net.latent_event(x0.shape[1:]), eps))
            loss = self._reconstruction(x0, found)
            if self.discriminator is not None:
                loss = loss + self._adversarial(net, x0, found, loss)
            loss = loss + self.penalty * penalty
        return cast(Tensor, loss if torch.is_grad_enabled() else loss.detach())

    def _reconstruction(self, x0: Tensor, found: Tensor) -> Tensor:
        """Return the negative log-density of the data per number, and the distance of features, shape ``(batch,)``."""
        log_scale = cast(_Companion, self._companion).log_scale
        if log_scale is None:
            log_scale = torch.tensor(math.log(cast(float, self.scale)), dtype=torch.float64)
        log_scale = log_scale.to(x0)
        residual = (x0 - found) / log_scale.exp()
        loss = (residual.abs() if self.distance == "l1" else 0.5 * residual**2).flatten(1).mean(1) + log_scale
        if self.features is not None:
            pairs = zip(_listed(self.features(x0)), _listed(self.features(found)), strict=True)
            loss = loss + self.of_features * sum(((a - b) ** 2).flatten(1).mean(1) for a, b in pairs)
        return loss

    def _adversarial(self, net: Autoencoder, x0: Tensor, found: Tensor, loss: Tensor) -> Tensor:
        """Return the terms of the discriminator for each sample, shape ``(batch,)``."""
        judge = cast(nn.Module, self.discriminator)
        fixed = {name: p.detach() for name, p in judge.named_parameters()}
        fooled = -torch.func.functional_call(judge, fixed, (found,)).flatten(1).mean(1)
        factor = _ratio(loss, fooled, net.last_layer) if self.adaptive else 1.0
        real, fake = judge(x0), judge(found.detach())
        judged = 0.5 * (F.relu(1 - real).flatten(1).mean(1) + F.relu(1 + fake).flatten(1).mean(1))
        return cast(Tensor, self.adversarial * factor * fooled + judged)


def _noise(latent: Sequence[int], eps: Tensor) -> Tensor:
    n = torch.Size(latent).numel()
    if n > eps[0].numel():
        raise ValueError(
            f"got latents of {n} numbers for data of {eps[0].numel()}; expected no more numbers than the data have: take "
            "fewer latent channels or more levels"
        )
    return eps.flatten(1)[:, :n].reshape(-1, *latent)


def _ratio(loss: Tensor, fooled: Tensor, weight: Tensor) -> Tensor:
    r"""Return the ratio of the norms of the gradients of two losses in ``weight``, at most 1e4, without a gradient."""
    of_loss, of_fooled = (torch.autograd.grad(v.mean(), weight, retain_graph=True)[0].norm() for v in (loss, fooled))
    return cast(Tensor, of_loss / (of_fooled + 1e-4)).clamp(0.0, 1e4).detach()


def _listed(found: Tensor | Sequence[Tensor]) -> Iterator[Tensor]:
    yield from [found] if isinstance(found, Tensor) else found
