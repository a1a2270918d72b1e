"""Class labels of a batch, given as numbers, lists, arrays or tensors, and their embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Label", "LabelTable", "label_tensor"]

Label = Tensor | np.ndarray[Any, Any] | Sequence[int] | int
"""A class label for each sample, as a tensor, an array or a list of whole numbers, or one number for all samples."""


def label_tensor(label: Label, batch: int) -> Tensor:
    """Return labels as an int64 tensor of shape ``(batch,)``, on the device they come from.

    Args:
        label: whole numbers of any integer type; a single number is used for the whole batch.
        batch: the number of samples.

    Raises:
        ValueError: for labels that are not whole numbers, or whose number is not that of the samples.

    Example:
        >>> label_tensor(7, 3), label_tensor(np.array([1, 2], dtype=np.uint8), 2)
        (tensor([7, 7, 7]), tensor([1, 2]))
    """
    if isinstance(label, Tensor):
        found = label
    else:
        try:
            found = torch.as_tensor(label)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"got label={_short(label)}, which is no array of whole numbers ({error}); expected label=.. to be "
                f"{batch} integers, one for each sample; names of classes are translated by their place in the dataset's "
                "classes"
            ) from error
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(
            f"got labels of dtype {found.dtype}; expected integers of shape ({batch},), one for each sample: label.long()"
        )
    if found.shape not in ((), (batch,)):
        raise ValueError(
            f"got labels of shape {tuple(found.shape)} and dtype {found.dtype}; expected integers of shape ({batch},), one "
            "for each sample, or a single number for all of them"
        )
    return found.to(torch.int64).expand(batch)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class LabelTable(nn.Module):
    """The embedding of class labels, whose last row stands for "no label" if the network is unconditional as well.

    To learn that row, train with :class:`~scoresde.objectives.LabelDropout`, which replaces some labels by ``num_classes``.

    Labels on the CPU are checked against the number of classes. Labels on a GPU are not, because the check would make the
    CPU wait for the GPU; a label out of range there raises an error of CUDA.

    Args:
        num_classes: number of class labels.
        width: number of features of the embedding.
        unconditional: whether there is a row for "no label", index ``num_classes``. If not, every call needs a label.

    Example:
        >>> LabelTable(10, 4).weight.shape, LabelTable(10, 4, unconditional=False).weight.shape
        (torch.Size([11, 4]), torch.Size([10, 4]))
        >>> LabelTable(10, 4)([3, 10], torch.rand(2)).shape
        torch.Size([2, 4])
    """

    def __init__(self, num_classes: int, width: int, *, unconditional: bool = True) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"got num_classes={num_classes}; expected at least 1, or None for a network without labels")
        self.num_classes, self.unconditional = num_classes, unconditional
        self.weight = nn.Parameter(torch.empty(num_classes + unconditional, width))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, label: Label | None, t: Tensor) -> Tensor:
        """Embed labels, one for each time of ``t``, shape ``(batch,)``, or ``None``: shape ``(batch, width)``.

        Raises:
            ValueError: for labels that are missing, out of range or not whole numbers, or whose number is not that of the
                samples.
        """
        if label is None:
            if not self.unconditional:
                raise ValueError(
                    f"got no label for a network that needs one; pass label=.., integers from 0 to {self.num_classes - 1}, "
                    "or build it with unconditional=True"
                )
            chosen = torch.full(t.shape, self.num_classes, device=self.weight.device)
        else:
            chosen = label_tensor(label, len(t))
            if chosen.device.type == "cpu" and self.weight.device.type != "cpu":
                self._check_range(chosen)
            chosen = chosen.to(self.weight.device)
        try:
            return F.embedding(chosen, self.weight)
        except IndexError:  # the lookup on the CPU checks each label anyway: looking again costs only where it fails
            self._check_range(chosen)
            raise

    def _check_range(self, label: Tensor) -> None:
        bad = label[(label < 0) | (label >= len(self.weight))]
        if bad.numel():
            none = f", or {self.num_classes} for no label" if self.unconditional else ""
            raise ValueError(
                f"got label {int(bad[0])} for a network of {self.num_classes} classes; expected labels from 0 to "
                f"{self.num_classes - 1}{none}"
            )
