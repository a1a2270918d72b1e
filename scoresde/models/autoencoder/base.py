"""The interface of autoencoders, and the measured mean and scale of their latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch

__all__ = ["Autoencoder", "Reconstructed"]


class Reconstructed(NamedTuple):
    """The reconstruction of a batch in training, and the penalty of its latents.

    Example:
        >>> import scoresde
        >>> net, x = scoresde.models.KLAutoencoder(1, 2, 4, (1, 2), groups=2), torch.zeros(3, 1, 8, 8)
        >>> found = net(x, torch.zeros(3, 2, 4, 4))
        >>> found.x.shape, found.penalty.shape
        (torch.Size([3, 1, 8, 8]), torch.Size([3]))
    """

    x: Tensor
    """The reconstructed data, shape of the data."""
    penalty: Tensor
    """The regularization of the latents of each sample, shape ``(batch,)``; the loss adds it with a weight."""


class Autoencoder(nn.Module, ABC):
    r"""Interface of the autoencoders on whose latents a diffusion runs.

    A subclass implements :meth:`encode`, :meth:`decode` and :meth:`forward`. Diffusion sees the latents standardised by
    channel, :math:`(z - \mu) / s`. The mean and scale are measured on data, :meth:`measure`, and stored with the weights;
    a new autoencoder has 0 and 1.

    Args:
        latent_channels: number of channels of the latents, dimension 1 of them.
        factor: the factor by which each axis of a sample is longer than that of its latent, where it is one factor.

    Attributes:
        latent_mean, latent_std: the mean and the standard deviation of the latents, shape ``(latent_channels,)``.

    Example:
        >>> class Halves(Autoencoder):
        ...     def encode(self, x):
        ...         return x[:, :1]
        ...     def decode(self, z):
        ...         return torch.cat([z, z], 1)
        ...     def forward(self, x, noise):
        ...         return Reconstructed(self.decode(self.encode(x)), torch.zeros(len(x)))
        >>> halves, x = Halves(1), torch.tensor([[1.0, 1.0], [5.0, 5.0]])
        >>> halves.measure(x)
        >>> halves.standardized(x).flatten().tolist(), halves.restored(halves.standardized(x)).equal(x)
        ([-1.0, 1.0], True)
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, latent_channels: int, factor: int | None = None) -> None:
        super().__init__()
        self.factor = factor
        self.latent_channels = whole("latent_channels", latent_channels, 1)
        self.register_buffer("latent_mean", torch.zeros(latent_channels))
        self.register_buffer("latent_std", torch.ones(latent_channels))

    # What an autoencoder implements ----------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the latents of data, before any quantisation; shape ``(batch, latent_channels, *axes)``."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Return the data of latents, which are quantised first where the autoencoder does so; shape of the data."""

    @abstractmethod
    def forward(self, x: Tensor, noise: Tensor) -> Reconstructed:
        """Return the reconstruction of ``x`` in training, with the penalty of its latents.

        Args:
            x: data, shape ``(batch, *event)``.
            noise: standard normal draws of the shape of the latents, for those that are drawn.
        """

    def latent_event(self, event: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of the latent of a sample of shape ``event``; found by encoding zeros where there is no factor.

        Raises:
            ValueError: for axes that are no multiples of the factor.
        """
        if self.factor is not None:
            if len(event) < 2 or any(n % self.factor for n in event[1:]):
                raise ValueError(
                    f"got samples of shape {tuple(event)} for an autoencoder that divides each axis by {self.factor}; "
                    f"expected (channels, ..) with axes that are multiples of {self.factor}: pad or resize them"
                )
            return (self.latent_channels, *(n // self.factor for n in event[1:]))
        device, dtype = self.latent_mean.device, self.latent_mean.dtype
        training = self.training
        self.eval()
        with torch.no_grad():
            z = self.encode(torch.zeros(1, *event, device=device, dtype=dtype))
        self.train(training)
        return tuple(z.shape[1:])

    def check(self, x: Tensor) -> None:
        """Refuse data of other channels than the autoencoder's, and of axes that it cannot divide.

        Raises:
            ValueError: for such data.
        """
        config = getattr(self, "config", {})
        if x.ndim != config.get("dims", 2) + 2 or x.shape[1] != config["channels"]:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} for an autoencoder of {config['channels']} channels and "
                f"{config.get('dims', 2)} axes; expected (batch, {config['channels']}, ..)"
            )
        if self.factor is not None:
            self.latent_event(x.shape[1:])

    @property
    def last_layer(self) -> Tensor:
        """The weight of the last layer, at which the gradients of two terms of a loss are compared."""
        found = [p for p in self.parameters() if p.requires_grad and p.ndim > 1]
        if not found:
            raise ValueError(f"got {type(self).__name__}, which has no weights to train; expected a matrix or a filter")
        return found[-1]

    # Standardised latents --------------------------------------------------------------------------------------------

    def standardized(self, x: Tensor) -> Tensor:
        """Return the latents of data with mean 0 and standard deviation 1, on which diffusion runs."""
        z = self.encode(x)
        return (z - self._by_channel(self.latent_mean, z)) / self._by_channel(self.latent_std, z)

    def restored(self, z: Tensor) -> Tensor:
        """Return the data of standardised latents; the inverse of :meth:`standardized` but for the autoencoder's error."""
        return self.decode(z * self._by_channel(self.latent_std, z) + self._by_channel(self.latent_mean, z))

    def _by_channel(self, values: Tensor, z: Tensor) -> Tensor:
        if z.ndim < 2 or z.shape[1] != self.latent_channels:
            raise ValueError(
                f"got latents of shape {tuple(z.shape)} for an autoencoder whose latents have {self.latent_channels} "
                f"channels; expected (batch, {self.latent_channels}, ..)"
            )
        return values.to(z).reshape(-1, *[1] * (z.ndim - 2))

    @torch.no_grad()
    def measure(self, data: Tensor | Iterable[Tensor], batch_size: int = 256) -> None:
        """Measure the mean and the standard deviation of the latents of data, by channel, and store them.

        Args:
            data: samples of shape ``(n, *event)``, or batches of them.
            batch_size: the number of samples that are encoded together.

        Raises:
            ValueError: for no data, and for a channel that has the same value everywhere.
        """
        batches = torch.split(check_batch(data), batch_size) if isinstance(data, Tensor) else data
        training, first = self.training, self.latent_mean
        self.eval()
        counts, means, squares = [], [], []
        for x in batches:
            z = self.encode(x.to(device=first.device, dtype=first.dtype)).double().transpose(0, 1).flatten(1)
            self._by_channel(self.latent_mean, z.T)
            if not z.numel():
                continue
            counts.append(z.shape[1])
            means.append(z.mean(1))
            squares.append(z.var(1, correction=0))
        self.train(training)
        if not sum(counts):
            raise ValueError("got no data to measure latents on; expected samples of shape (n, *event)")
        share = torch.tensor(counts, dtype=torch.float64, device=first.device) / sum(counts)
        of_batch = torch.stack(means)
        mean = share @ of_batch
        variance = share @ (torch.stack(squares) + (of_batch - mean) ** 2)
        if bad := (~(variance > 0)).nonzero().flatten().tolist():
            raise ValueError(
                f"got latents whose channel {bad[0]} does not vary over {len(share)} batches, so that it has no scale; "
                "expected a trained autoencoder, or fewer latent channels"
            )
        self.latent_mean.copy_(mean)
        self.latent_std.copy_(variance.sqrt())
