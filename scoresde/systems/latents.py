"""The latents of a dataset, computed as they are read or once for all, to train a score model of latents on."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.data import Arrays
from scoresde.models import Autoencoder

__all__ = ["Latents"]


@dataclass(frozen=True, eq=False)
class Latents:
    """The standardised latents of data, before any quantisation, as a dataset.

    They are computed when they are read, or once for all by :meth:`cached`. They are those of the autoencoder in evaluation
    mode: the means, where latents are Gaussian.

    Args:
        autoencoder: the autoencoder, its latents measured.
        of: the data: samples of shape ``(n, *event)``, or a :class:`scoresde.data.Dataset`, whose labels are kept.
        conditions: further conditions, an entry for each sample.
        known: all latents, where they were computed before.

    Raises:
        ValueError: for conditions of another length than the data.

    Example:
        >>> from scoresde.models import KLAutoencoder
        >>> x, label = torch.rand(10, 1, 8, 8), torch.arange(10)
        >>> latents = Latents(KLAutoencoder(1, 2, 8, (1, 2), groups=4), x, {"label": label})
        >>> z, conditions = latents.batch(torch.tensor([7, 3]))
        >>> z.shape, conditions["label"], torch.equal(latents.cached().batch(torch.tensor([7]))[0], z[:1])
        (torch.Size([2, 2, 4, 4]), tensor([7, 3]), True)
    """

    autoencoder: Autoencoder
    of: Any
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    known: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.of, Tensor):
            object.__setattr__(self, "of", Arrays(self.of))
        if wrong := [name for name, values in self.conditions.items() if len(values) != len(self)]:
            raise ValueError(
                f"got condition {wrong[0]!r} with {len(self.conditions[wrong[0]])} entries for {len(self)} samples; "
                "expected one entry for each sample"
            )

    def __len__(self) -> int:
        return len(self.of)

    @functools.cached_property
    def event(self) -> tuple[int, ...]:
        """The shape of a latent."""
        return self.autoencoder.latent_event(self.of.event)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of the data, empty where they have none."""
        return tuple(getattr(self.of, "classes", None) or ())

    @torch.no_grad()
    def batch(self, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the latents at ``indices``, and their conditions."""
        own = {name: values[indices.to(values.device)] for name, values in self.conditions.items()}
        labels = getattr(self.of, "labels", None)
        if self.known is not None and labels is not None:
            return self.known[indices], {"label": labels[indices], **own}
        if self.known is not None:
            return self.known[indices], own
        x, told = self.of.batch(indices)
        return self.autoencoder.eval().standardized(x.to(self.autoencoder.latent_mean)), {**told, **own}

    @functools.cached_property
    def _identity(self) -> str:
        weights = {name: value.cpu() for name, value in self.autoencoder.state_dict().items()}
        return f"latents {digest(weights, dict(self.conditions))[:16]} of {self.of.fingerprint()}"

    def fingerprint(self) -> str:
        """Return a text that identifies the data, the conditions and the autoencoder."""
        return self._identity

    def cached(self, path: str | os.PathLike[str] | None = None, batch_size: int = 256) -> Latents:
        """Compute all latents once, or read them from a file that holds the same ones.

        Args:
            path: a safetensors file, written if it holds other latents or none.
            batch_size: the number of samples that are encoded together.
        """
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import save_file

        if path is not None and Path(path).is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    if (file.metadata() or {}).get("latents") == self._identity:
                        return replace(self, known=file.get_tensor("z"))
            except (SafetensorError, OSError):
                pass  # damaged, and written anew
        parts = torch.split(torch.arange(len(self)), batch_size)
        z = torch.cat([self.batch(part)[0].cpu() for part in parts])
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            with replacing(Path(path)) as temporary:
                save_file({"z": z.contiguous()}, temporary, metadata={"latents": self._identity})
        return replace(self, known=z)
