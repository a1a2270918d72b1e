"""Classes: their names in natural order, the labels that number them, and the checks of labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_labels", "natural", "numbered"]


def natural(name: str) -> tuple[Any, ...]:
    """Return a key that sorts names with their numbers in order: 2 comes before 10.

    Example:
        >>> sorted(["10", "2", "b1", "a10", "a9", "01"], key=natural)
        ['01', '2', '10', 'a9', 'a10', 'b1']
    """
    # Text and digits alternate, text first; numbers compare by the number of their digits, and then as text.
    parts = re.split("([0-9]+)", name)
    numbers = [(len(digits.lstrip("0")), digits.lstrip("0")) for digits in parts[1::2]]
    key = [item for pair in zip(parts[::2], [*numbers, (0, "")], strict=True) for item in pair]
    return tuple(key), name


def numbered(values: Sequence[str], among: Iterable[str] = ()) -> tuple[Tensor, tuple[str, ...]]:
    """Return the label of each sample, int64, and the names of the classes in natural order.

    Args:
        values: the name of the class of each sample.
        among: further names of classes, such as those of another part of the dataset.

    Example:
        >>> numbered(["cat", "owl", "cat"], among=["dog"])
        (tensor([0, 2, 0]), ('cat', 'dog', 'owl'))
    """
    classes = tuple(sorted({*values, *among}, key=natural))
    number = {name: k for k, name in enumerate(classes)}
    return torch.tensor([number[value] for value in values], dtype=torch.int64), classes


def check_labels(labels: Any, n: int, classes: Sequence[str] | None) -> Tensor:
    """Check the labels of ``n`` samples and return them as int64, shape ``(n,)``.

    Args:
        labels: whole numbers from 0, in a tensor, an array or a list.
        n: the number of samples.
        classes: the names of the classes in the order of their labels, or ``None``.

    Raises:
        ValueError: for labels that are not whole numbers, negative, of another length, or without a name in ``classes``.

    Example:
        >>> check_labels([0, 2], 2, ("cat", "dog", "owl"))
        tensor([0, 2])
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"got labels that are not an array of whole numbers ({error}); expected {n} whole numbers"
        ) from error
    if found.shape != (n,):
        raise ValueError(f"got labels of shape {tuple(found.shape)} for {n} samples; expected one label for each sample")
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ValueError(f"got labels of dtype {found.dtype}; expected whole numbers from 0, one for each sample")
    found = found.to(torch.int64)
    if n and int(found.min()) < 0:
        raise ValueError(f"got the label {int(found.min())}; expected whole numbers from 0")
    if classes is not None and n and int(found.max()) >= len(classes):
        raise ValueError(
            f"got the label {int(found.max())} and {len(classes)} names of classes; expected a name for each label from 0"
        )
    return found
