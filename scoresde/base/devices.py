"""Devices by name, whether this machine has them, and the dtypes that a state can have."""

from __future__ import annotations

import os

import torch

__all__ = ["as_device", "as_dtype"]


def as_device(name: str | torch.device) -> torch.device:
    """Return the device called ``name``, on which tensors can be made here.

    Processes that a launcher started on one machine take turns among its GPUs where ``name`` is ``"cuda"``.

    Raises:
        ValueError: for a name that is none, and a device that this machine, or this build of torch, does not have.

    Example:
        >>> as_device("cpu")
        device(type='cpu')
        >>> as_device("cuda:99")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: got the device 'cuda:99', which is not there: ... expected cpu...
    """
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
    except (TypeError, RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        has = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ValueError(
            f"got the device {str(name)!r}, which is not there: {reason}; expected {' or '.join(has)}"
        ) from error
    local = os.environ.get("LOCAL_RANK") if device.type == "cuda" and device.index is None else None
    return device if local is None else torch.device("cuda", int(local) % torch.cuda.device_count())


def as_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return ``dtype``, which states can have: real floating-point numbers.

    Raises:
        ValueError: for what is no dtype, and one of other numbers.

    Example:
        >>> as_dtype(torch.float64)
        torch.float64
        >>> as_dtype(torch.int64)
        Traceback (most recent call last):
        ValueError: got dtype=torch.int64; expected a dtype of floating-point numbers, such as torch.float32
    """
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        known = getattr(torch, dtype, None) if isinstance(dtype, str) else None
        wanted = f"{known}" if isinstance(known, torch.dtype) and known.is_floating_point else "torch.float32"
        raise ValueError(f"got dtype={dtype!r}; expected a dtype of floating-point numbers, such as {wanted}")
    return dtype
