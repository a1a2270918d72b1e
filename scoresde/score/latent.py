"""Score models of the latents of an autoencoder, from which sampling returns data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from scoresde.score.model import Calls, ScoreModel
from scoresde.score.wrapper import Wrapper
from scoresde.sde import Time

__all__ = ["Coder", "LatentModel"]


@runtime_checkable
class Coder(Protocol):
    """An autoencoder as a :class:`LatentModel` uses it; :class:`scoresde.models.Autoencoder` is one."""

    latent_channels: int

    def standardized(self, x: Tensor) -> Tensor:
        """Return the latents of data, of mean 0 and standard deviation 1."""
        ...

    def restored(self, z: Tensor) -> Tensor:
        """Return the data of such latents."""
        ...

    def latent_event(self, event: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the latent of a sample."""
        ...


class LatentModel(Wrapper):
    """A score model of the standardised latents of an autoencoder: latent diffusion.

    Solvers, guidance and training see the inner model on latents. :func:`scoresde.sample` starts from the shape of a latent,
    ``latent.event((3, 64, 64))``, and returns data: it decodes the end of the run, and keeps the latents in
    ``Samples.latent``. The autoencoder is frozen, here and for all who use it, and always in evaluation mode.

    Everything else is about latents. :func:`scoresde.log_likelihood` gives the density of a latent, not of the data, which
    have none under a decoder without noise. Functions that start from data, such as :func:`scoresde.sampling.sdedit`, start
    from ``latent.encode(x)``.

    Args:
        model: any score model of the latents.
        autoencoder: an autoencoder, such as :class:`scoresde.models.KLAutoencoder`, with its latents measured.

    Raises:
        TypeError: for another module.

    Source: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022,
    https://arxiv.org/abs/2112.10752.

    Example:
        >>> import scoresde
        >>> autoencoder = scoresde.models.KLAutoencoder(1, 2, 8, (1, 2), groups=4)
        >>> latent = LatentModel(ScoreModel(scoresde.models.UNet(2, 8, (1, 2)), scoresde.VP(), "v"), autoencoder)
        >>> samples = scoresde.sample(latent, (5, *latent.event((1, 8, 8))), steps=4, progress=False)
        >>> samples.x.shape, samples.latent.shape
        (torch.Size([5, 1, 8, 8]), torch.Size([5, 2, 4, 4]))
    """

    def __init__(self, model: ScoreModel, autoencoder: nn.Module) -> None:
        super().__init__(model)
        if not isinstance(autoencoder, nn.Module) or not isinstance(autoencoder, Coder):
            raise TypeError(
                f"got {type(autoencoder).__name__} for the autoencoder of a latent model; expected a models.Autoencoder, "
                "such as models.KLAutoencoder(3, 4)"
            )
        self.autoencoder: Any = autoencoder.requires_grad_(False).eval()
        self.predicts, self.learned_variance, self.dropped = model.predicts, model.learned_variance, model.dropped

    def encode(self, x: Tensor) -> Tensor:
        """Return the standardised latents of data, before any quantisation."""
        return cast(Tensor, self.autoencoder.standardized(x))

    def decode(self, z: Tensor) -> Tensor:
        """Return the data of standardised latents."""
        return cast(Tensor, self.autoencoder.restored(z))

    def event(self, event: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the latent of a sample of shape ``event``."""
        return cast(tuple[int, ...], self.autoencoder.latent_event(event))

    def to_data(self, x: Tensor) -> Tensor:
        """Return the data of the latents at the end of sampling."""
        return self.model.to_data(self.decode(x))

    def check_start(self, x: Tensor, **conditions: Any) -> None:
        """Refuse a start that has not the channels of a latent, such as data."""
        channels = self.autoencoder.latent_channels
        if x.shape[1] != channels:
            raise ValueError(
                f"got a start of shape {tuple(x.shape)} for latents of {channels} channels; expected the shape of latents, "
                "(batch, *model.event(event_of_data)), or model.encode(x)"
            )
        super().check_start(x, **conditions)

    def train(self, mode: bool = True) -> LatentModel:
        """Set the mode of the inner model; the autoencoder stays in evaluation mode."""
        super().train(mode)
        self.autoencoder.eval()
        return self

    # The predictions of the inner model, by its own and most accurate conversions -----------------------------------------

    @property
    def calls_with_variance(self) -> Calls:
        """The network calls of a data prediction of the inner model with its variance."""
        return self.model.calls_with_variance

    def eps(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the noise prediction of the inner model, shape of ``x``."""
        return self.model.eps(x, t, **conditions)

    def score(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the score of the inner model, shape of ``x``."""
        return self.model.score(x, t, **conditions)

    def v(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return the v-prediction of the inner model, shape of ``x``."""
        return self.model.v(x, t, **conditions)

    def forward(self, x: Tensor, t: Time, **conditions: Any) -> Tensor:
        """Return what the inner model predicts, shape of ``x``."""
        return cast(Tensor, self.net(x, t, **conditions))

    def outputs(self, x: Tensor, t: Time, **conditions: Any) -> tuple[Tensor, Tensor]:
        """Return the output of the inner model and the fraction of its learned variance."""
        return self.model.outputs(x, t, **conditions)

    def at(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], Tensor]]:
        """Return the data predictions of the inner model at ``times``."""
        return self.model.at(times, device=device, dtype=dtype, **conditions)

    def at_with_variance(
        self, times: Tensor, *, device: torch.device, dtype: torch.dtype, **conditions: Any
    ) -> Sequence[Callable[[Tensor], tuple[Tensor, Tensor]]]:
        """Return the data predictions of the inner model with the fractions of its learned variance."""
        return self.model.at_with_variance(times, device=device, dtype=dtype, **conditions)
