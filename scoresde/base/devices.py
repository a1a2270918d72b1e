"""Devices by name, and whether this machine has them."""

from __future__ import annotations

import torch

__all__ = ["as_device"]


def as_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``, on which tensors can be made here.

    Raises:
        ValueError: for a name that is none, and a device that this machine, or this build of torch, does not have.

    Example:
        >>> as_device("cpu")
        device(type='cpu')
        >>> as_device("cuda:99")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: got the device 'cuda:99', which is not there: ... expected cpu...
    """
    has = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise ValueError("meta tensors hold no values")
        if device.type == "cuda":  # without starting CUDA, which processes that are made later could not use then
            if not torch.cuda.is_available():
                raise ValueError("torch finds no CUDA device")
            if (device.index or 0) >= torch.cuda.device_count():
                raise ValueError(f"there are {torch.cuda.device_count()} CUDA devices")
        else:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"got the device {str(name)!r}, which is not there: {reason}; expected {' or '.join(has)}"
        ) from error
    return device
