"""The output of a network: one tensor of the shape of the state, extracted from what the network returns and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.score.conditions import Shared

__all__ = ["evaluate", "evaluate_bound", "halves", "unwrapped"]


def evaluate(
    net: Callable[..., Any], x: Tensor, t: Tensor, conditions: Mapping[str, Any], *, doubled: bool = False
) -> Tensor:
    """Call ``net(x, t, **conditions)`` and return its prediction, of the shape and dtype of ``x``.

    The output may be a tensor, a tuple or list whose first entry is one, or a mapping or an object with ``sample``, as
    the networks of diffusers return. A floating-point output of lower precision than ``x``, as under autocast, is converted.

    Args:
        net: the network.
        x: the state, shape ``(batch, *event)``.
        t: the time inputs, shape ``(batch,)``.
        conditions: the further arguments of the network, by name; of a :class:`~scoresde.score.Shared` one, its value.
        doubled: whether the network returns twice the channels, as for a learned variance.

    Raises:
        TypeError: if no tensor is found in the output.
        ValueError: for another shape, an integer, complex or more precise output, and a network that wrote into ``x``.

    Example:
        >>> x, t = torch.ones(2, 3), torch.zeros(2)
        >>> evaluate(lambda x, t: {"sample": 2 * x}, x, t, {}).sum().item()
        12.0
    """
    return evaluate_bound(net, x, t, unwrapped(conditions), doubled)


def unwrapped(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conditions as the network takes them, with the value of each :class:`~scoresde.score.Shared` one."""
    return {name: value.value if isinstance(value, Shared) else value for name, value in conditions.items()}


def evaluate_bound(
    net: Callable[..., Any],
    x: Tensor,
    t: Tensor,
    given: Mapping[str, Any],
    doubled: bool,
    expected: torch.Size | None = None,
) -> Tensor:
    """Call the network like :func:`evaluate`, with conditions that are unwrapped already.

    ``expected`` is the shape of its output where that is not the shape of ``x``.
    """
    version = None if x.is_inference() else x._version
    output = net(x, t, **given)
    if not isinstance(output, Tensor):
        output = _tensor(output)
    if version is not None and x._version != version:
        raise ValueError(
            "the network wrote into its input, which is the state of the sampler; expected it to leave x as it is: take "
            "x = x.clone() first, or operations that are not in place (no +=, relu_, nn.ReLU(inplace=True))"
        )
    shape = torch.Size((x.shape[0], 2 * x.shape[1], *x.shape[2:])) if doubled else expected or x.shape
    if output.shape != shape:
        more = "; a learned variance needs twice the channels" if doubled else ""
        raise ValueError(
            f"the network returned shape {tuple(output.shape)} for x of shape {tuple(x.shape)}; expected "
            f"{tuple(shape)}{more}"
        )
    if output.dtype == x.dtype:
        return output
    if not output.is_floating_point() or torch.promote_types(output.dtype, x.dtype) != x.dtype:
        raise ValueError(
            f"the network returned {output.dtype} for x of {x.dtype}; expected the same: convert the network "
            "(net.to(x.dtype)) or its output"
        )
    return output.to(x.dtype)


def _tensor(output: Any) -> Tensor:
    found = output
    if isinstance(found, Mapping):
        found = found.get("sample")
    elif isinstance(found, tuple | list):
        found = found[0] if found else None
    elif not isinstance(found, Tensor):
        found = getattr(found, "sample", None)
    if isinstance(found, Tensor):
        return found
    raise TypeError(
        f"the network returned a {type(output).__name__}; expected a tensor of the shape of x, a tuple whose first entry is "
        "one, or a mapping or object with 'sample'"
    )


def halves(output: Tensor) -> tuple[Tensor, Tensor]:
    """Split an output of twice the channels into the prediction and the learned variance, scaled from [-1, 1] to [0, 1]."""
    prediction, second = output.chunk(2, dim=1)
    return prediction, 0.5 * (second + 1)
