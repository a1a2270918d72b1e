"""A small classifier of images, whose features give distances that mean more than distances between pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ImageClassifier", "train_classifier"]


class ImageClassifier(nn.Module):
    """A small convolutional classifier of images, whose last hidden layer serves as features.

    Args:
        channels: the number of channels of the images, which may have any height and width of at least 2.
        classes: the number of labels.
        width: the number of channels of the first convolution.
        dim: the number of features.
        generator: the only source of the initial weights.

    Example:
        >>> net = ImageClassifier(1, 10, width=4, dim=6, generator=torch.Generator().manual_seed(0))
        >>> net(torch.zeros(2, 1, 8, 8)).shape, net.features(torch.zeros(2, 1, 8, 8)).shape
        (torch.Size([2, 10]), torch.Size([2, 6]))
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
        """Return the last hidden layer, shape ``(batch, dim)``."""
        out: Tensor = self.body(images)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, shape ``(batch, classes)``."""
        out: Tensor = self.head(self.features(images))
        return out


def train_classifier(images: Tensor, labels: Tensor, *, seed: int = 0, epochs: int = 12, batch: int = 64) -> ImageClassifier:
    """Train a :class:`ImageClassifier` by Adam with a learning rate that falls to zero.

    The result depends on the arguments only, not on the global random state, and is on the device of ``images``.

    Args:
        images: shape ``(n, c, h, w)``, float32, in [-1, 1].
        labels: shape ``(n,)``, whole numbers from 0.
        seed: the seed of the initial weights and of the order of the images.
        epochs: the number of passes over the images.
        batch: the number of images in a step.

    Raises:
        ValueError: for shapes that do not fit, labels that are not whole numbers from 0, or ``epochs`` below 1.

    Example:
        >>> from scoresde.data import load_digits
        >>> images, labels = load_digits()
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
    model = ImageClassifier(images.shape[1], int(labels.max()) + 1, generator=generator).to(images)
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
