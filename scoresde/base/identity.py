"""A hash of what an object computes: its class, the code of its methods, its parameters."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest"]


def digest(*values: Any) -> str:
    """A hash that is equal, in every process, for objects of the same classes and code which hold the same values.

    Of a class it reads the code of its methods, so that another ``forward`` is another network, and of a function its code
    and what it closes over; of what these call by name, the name alone. Training mode, hooks and gradients do not count.

    Raises:
        ValueError: for a value whose content cannot be told, by name.

    Example:
        >>> digest(torch.nn.Linear(2, 2).requires_grad_(False)) == digest(torch.nn.Linear(2, 2))  # other weights
        False
        >>> digest(torch.zeros(2), [1, "a"]) == digest(torch.zeros(2), [1, "a"])
        True
    """
    sha = hashlib.sha256()
    for piece in _pieces(values):
        sha.update(len(piece).to_bytes(8, "little") + piece)
    return sha.hexdigest()


_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def _pieces(value: Any, within: tuple[int, ...] = ()) -> Iterator[bytes]:
    """The content of ``value`` as bytes; ``within``: the objects that hold it, so that a cycle ends."""
    if value is None or isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    if id(value) in within:
        yield f"within {within.index(id(value))}".encode()
        return
    if isinstance(value, Tensor):
        yield f"tensor {value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return
    within = (*within, id(value))
    yield type(value).__qualname__.encode()
    if isinstance(value, types.CodeType):
        yield value.co_code
    elif isinstance(value, types.BuiltinFunctionType | types.ModuleType | types.FunctionType | type):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}".encode()
    if isinstance(value, set | frozenset):
        yield from sorted(digest(item).encode() for item in value)
        return
    for part in _parts(value):
        yield from _pieces(part, within)


def _parts(value: Any) -> Iterable[Any]:
    """What an object consists of."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, dict):
        return [part for item in value.items() for part in item]
    if isinstance(value, types.CodeType):
        return value.co_names, value.co_consts
    if isinstance(value, types.FunctionType):
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        return value.__code__, value.__defaults__, value.__kwdefaults__, closure
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, types.BuiltinFunctionType | types.ModuleType):
        return ()
    return _methods(value) if isinstance(value, type) else [type(value), *_state(value)]


def _state(value: Any) -> list[Any]:
    """What a copy of an object is made from, less what changes nothing that it computes."""
    try:
        arguments, *rest = value.__reduce_ex__(4)[1:]
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"cannot tell what a {type(value).__qualname__} holds ({error}), and so not whether a kept result is of the "
            "same object; expected modules, tensors, dataclasses and functions: keep it out of the model, or give no cache"
        ) from error
    state = rest[0] if rest else None
    if isinstance(state, dict):
        state = {k: v for k, v in state.items() if k not in ("training", "_cache") and not str(k).endswith("_hooks")}
    return [arguments, state, *(list(more) for more in rest[1:] if more is not None)]


def _methods(cls: type) -> Iterator[Any]:
    """The functions of a class and of those it inherits from, by name, but for those of Python and torch."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] in ("builtins", "torch", "abc", "typing"):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, types.FunctionType):
                yield from (name, function.__code__)
