"""The identity of an object: a hash of its kind, its parameters, its tensors and its code.

One question, "is it the same?", is asked by the resumption of a training, by caches and stores of results, and by the
equality of SDEs. One function answers it, :func:`digest`. The answer holds in every process: it never depends on addresses,
on the order of a set, or on whether a cached property was read.

What is read of an object depends on whose code it is:

=====================================  =================================================================================
code of                                what counts
=====================================  =================================================================================
the user                               bytecode, default arguments, closures, attributes of classes, and, in the same way,
                                       every global that the code reads: functions, classes, numbers, tensors
scoresde and other installed packages  bytecode of the methods and of the functions themselves; with ``libraries=False``
                                       the name alone, so that the answer survives another version of the package
Python, torch, NumPy and SciPy         the name alone
=====================================  =================================================================================

Docstrings, comments, line numbers and the names of variables do not count. Bytecode differs between versions of Python.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import math
import re
import sys
import types
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Identified", "digest", "label", "tell"]


def digest(*values: Any, libraries: bool = True, weights: bool = True) -> str:
    """Return a hash that is equal, in every process, for objects of the same kind and code which hold the same values.

    Args:
        values: anything made of plain values, tensors, arrays, containers, dataclasses, modules, functions and classes.
        libraries: read the code of installed packages; ``False`` takes their names, for what is kept for years.
        weights: read the tensors that are parameters, buffers or other attributes of an object; ``False`` takes their
            shapes, for what a training changes.

    Returns:
        64 hexadecimal digits. Training mode, hooks and gradients do not count, and ``1`` is ``1.0``.

    Raises:
        ValueError: for a value whose content cannot be read, by name.

    Example:
        >>> digest(torch.nn.Linear(2, 2).requires_grad_(False)) == digest(torch.nn.Linear(2, 2))  # other weights
        False
        >>> digest(torch.zeros(2), [1, "a"]) == digest(torch.zeros(2), [1, "a"])
        True
    """
    return _Reader(libraries, weights).read(values)[0].hex()


def label(value: Any) -> str:
    """Return ``repr(value)`` without addresses, which is the same in every process but may fit several objects.

    Example:
        >>> label(lambda x: x)
        '<function <lambda>>'
    """
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def tell(value: Any) -> str:
    """Return :func:`label` with the first digits of what tells it from others that look alike.

    It describes settings in files: tensors that objects hold and the code of installed packages do not count.

    Example:
        >>> tell(print), tell(lambda x: 2 * x)[:20]  # doctest: +ELLIPSIS
        ('<built-in function print> [...]', '<function <lambda>> ')
    """
    return f"{label(value)} [{digest(value, libraries=False, weights=False)[:12]}]"


class Identified:
    """A base class whose instances are equal where :func:`digest` says so, those of subclasses included.

    It holds as well for dataclasses, whose own comparison sees their fields alone: a number that a subclass keeps in an
    attribute, in a closure or in the code of a method counts.

    Example:
        >>> class Noise(Identified):
        ...     def __init__(self, level):
        ...         self.level = level
        >>> Noise(1.0) == Noise(1.0), Noise(1.0) == Noise(2.0), len({Noise(1.0), Noise(1.0)})
        (True, False, 1)
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "__eq__" not in vars(cls):  # before @dataclass, which leaves alone what a class defines itself
            cls.__eq__ = Identified.__eq__  # type: ignore[method-assign]
            cls.__hash__ = Identified.__hash__  # type: ignore[method-assign]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Identified) or type(self).__qualname__ != type(other).__qualname__:
            return NotImplemented
        if type(self) is type(other):  # the same class has the same code
            return digest(_state(self)) == digest(_state(other))
        return digest(self) == digest(other)

    def __hash__(self) -> int:
        return hash((type(self).__qualname__, digest(_state(self))))


# Whose code it is ----------------------------------------------------------------------------------------------------

_BY_NAME = frozenset((sys.stdlib_module_names | {"torch", "numpy", "scipy"}) - {"__main__"})


@functools.lru_cache(maxsize=1024)
def _owner(module: str) -> str:
    """``"python"``, ``"package"`` or ``"user"``."""
    top = module.partition(".")[0]
    if top in _BY_NAME:
        return "python"
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return "package" if top == "scoresde" or re.search(r"[/\\](site|dist)-packages[/\\]", file) else "user"


def _owner_of(value: types.FunctionType | type) -> str:
    """The owner of a function or class; those made by a call of ``exec``, ``type`` or the like are the user's."""
    module = value.__module__
    if isinstance(value, types.FunctionType):
        return "user" if module in (None, "builtins") else _owner(module)
    if module in ("abc", "types", "typing") and getattr(sys.modules[module], value.__name__, None) is not value:
        return "user"
    return _owner(module)


# Reading -------------------------------------------------------------------------------------------------------------

_PLAIN = (str, bytes, torch.dtype, torch.device, torch.Size, range, slice)
_OF_A_CLASS = {"_abc_impl", "_is_protocol", "_is_runtime_protocol"}  # what Python itself keeps there
_UNSEEN = {"__eq__", "__hash__", "__repr__", "__reduce__", "__reduce_ex__"}  # methods that change nothing computed


class _Reader:
    """Hashes of objects by hashes of their parts, each object once.

    An object that holds itself is read as "so many levels up" where it comes again. Such an answer holds inside the cycle
    only, and is kept for no object but the outermost of the cycle.
    """

    def __init__(self, libraries: bool, weights: bool) -> None:
        self.libraries, self.weights = libraries, weights
        self.known: dict[int, tuple[Any, bytes]] = {}  # with the object, so that no other takes its address
        self.level: dict[int, int] = {}

    def read(self, value: Any) -> tuple[bytes, float]:
        """The hash of ``value``, and the outermost level that it refers back to; infinite where to none."""
        if isinstance(value, _Try):
            try:
                return self.read(value.value)
            except ValueError:
                return self.read(type(value.value))
        leaf = self._leaf(value)
        if leaf is not None:
            return hashlib.sha256(leaf).digest(), math.inf
        if id(value) in self.known:
            return self.known[id(value)][1], math.inf
        level = len(self.level)
        if id(value) in self.level:
            back = self.level[id(value)]
            return hashlib.sha256(f"up {level - back}".encode()).digest(), back
        self.level[id(value)] = level
        try:
            found = [self.read(part) for part in self._parts(value)]
        finally:
            del self.level[id(value)]
        outermost = min((back for _, back in found), default=math.inf)
        sha, hashes = hashlib.sha256(f"{type(value).__qualname__}:".encode()), [part for part, _ in found]
        for part in sorted(hashes) if isinstance(value, set | frozenset) else hashes:
            sha.update(part)
        if outermost < level:
            return sha.digest(), outermost
        self.known[id(value)] = (value, sha.digest())
        return sha.digest(), math.inf

    def _leaf(self, value: Any) -> bytes | None:
        """What is read at once; ``None`` for what has parts."""
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or value is Ellipsis or value is NotImplemented or isinstance(value, bool):
            return repr(value).encode()
        if type(value) in (int, float):
            return f"number {int(value) if math.isfinite(value) and value == int(value) else value!r}".encode()
        if isinstance(value, complex) or type(value) in _PLAIN or isinstance(value, torch.dtype | torch.device):
            return f"{type(value).__name__} {value!r}".encode()
        if isinstance(value, Tensor):
            head = f"tensor {value.dtype} {tuple(value.shape)} ".encode()
            return head + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return f"array {value.dtype.str} {value.shape} ".encode() + np.ascontiguousarray(value).tobytes()
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}".encode()
        if isinstance(value, types.FunctionType | type) and not self._read_code(value):
            return f"named {value.__module__}.{value.__qualname__}".encode()
        return None

    def _read_code(self, value: types.FunctionType | type) -> bool:
        owner = _owner_of(value)
        return owner == "user" or (owner == "package" and self.libraries)

    def _parts(self, value: Any) -> Iterable[Any]:
        """What an object consists of, in an order of its own; sets are put in order afterwards."""
        if isinstance(value, types.CodeType):
            return _code(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.MethodType):
            return value.__func__, value.__self__
        if isinstance(value, types.BuiltinFunctionType):
            owner = value.__self__ if not isinstance(value.__self__, types.ModuleType | None) else None
            return f"{value.__module__}.{value.__qualname__}", owner
        if isinstance(value, staticmethod | classmethod):
            return (value.__func__,)
        if isinstance(value, property):
            return value.fget, value.fset
        if isinstance(value, functools.cached_property):
            return (value.func,)
        if isinstance(value, types.GenericAlias) or type(value).__module__ == "typing":
            return (repr(value),)
        if type(value) in (list, tuple, set, frozenset):
            return value  # type: ignore[no-any-return]
        if type(value) in (dict, OrderedDict, types.MappingProxyType):
            return [part for item in value.items() for part in item]
        if isinstance(value, np.ndarray):
            return value.shape, value.tolist()
        if isinstance(value, functools._lru_cache_wrapper):
            return (value.__wrapped__,)
        return type(value), _state(value) if self.weights else _without_tensors(_state(value))

    def _function(self, function: types.FunctionType) -> Iterator[Any]:
        yield function.__code__
        yield function.__defaults__
        yield function.__kwdefaults__
        for cell in function.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not assigned yet
                yield "empty"
        yield {name: value for name, value in sorted(vars(function).items()) if name != "__wrapped__"}
        if _owner_of(function) == "user":
            yield from self._globals(function)

    def _globals(self, function: types.FunctionType) -> Iterator[Any]:
        """The globals that a function reads, by name, those of the functions inside it included."""
        for name in sorted(_global_names(function.__code__)):
            first, *rest = name.split(".")
            if first not in function.__globals__:
                continue  # of builtins, or not yet there
            found = function.__globals__[first]
            for attribute in rest:
                owner = _owner(found.__name__) if isinstance(found, types.ModuleType) else ""
                found = getattr(found, attribute, None) if owner == "user" else found
            if isinstance(found, types.ModuleType):
                continue  # its name stands in the code, and what is read of it comes by itself
            yield name
            yield _Try(found)

    def _class(self, cls: type) -> Iterator[Any]:
        """The name, and the members of the class and of those that it inherits from."""
        yield cls.__qualname__
        for base in cls.__mro__:
            if not self._read_code(base):
                yield f"{base.__module__}.{base.__qualname__}"
                continue
            ours = _owner_of(base) == "user"
            for name, member in sorted(vars(base).items()):
                function = isinstance(
                    member, types.FunctionType | property | classmethod | staticmethod | functools.cached_property
                )
                special = name.startswith("__") and name.endswith("__")
                if name in _UNSEEN or name in _OF_A_CLASS or (special and not function):
                    continue
                if function or (ours and not isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType)):
                    yield name
                    yield _Try(member)


@dataclass(frozen=True)
class _Try:
    """A value that counts by its class where its content cannot be read, as that of a lock or a logger."""

    value: Any


def _code(code: types.CodeType) -> Iterator[Any]:
    """What the code computes: neither where it stands, nor its documentation, nor how it calls its variables."""
    arguments = code.co_argcount + code.co_kwonlyargcount
    yield code.co_code
    yield code.co_names
    yield code.co_varnames[:arguments]
    yield (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0xFF)
    yield code.co_exceptiontable
    documented = sys.version_info < (3, 14) or code.co_flags & 0x4000000
    for i, constant in enumerate(code.co_consts):
        if isinstance(constant, str) and i == 0 and documented:
            yield None
        elif isinstance(constant, types.CodeType | frozenset):
            yield constant
        else:
            yield repr(constant)  # 2 and 2.0 are other constants


def _global_names(code: types.CodeType) -> set[str]:
    """The globals that the code reads, with the attributes that it reads of them at once: ``module.function``."""
    found, chain = set(), ""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            chain = str(instruction.argval)
        elif chain and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain += f".{instruction.argval}"
        elif instruction.opname not in ("CACHE", "PRECALL", "PUSH_NULL", "EXTENDED_ARG"):
            chain = ""
        if chain:
            found.add(chain)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _global_names(constant)
    return found


def _state(value: Any) -> Any:
    """What a copy of an object is made from, less what changes nothing that it computes."""
    try:
        made = value.__reduce_ex__(4)
    except (TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot tell what a {type(value).__qualname__} holds ({error}), and so not whether a kept result is of the "
            "same object; expected modules, tensors, dataclasses and functions: keep it out of the model, or give no cache"
        ) from error
    if isinstance(made, str):  # the name of a global
        return made
    arguments, *rest = made[1:]
    state = (rest[0] if rest else None) or {}
    if isinstance(state, dict):
        cached = {name for cls in type(value).__mro__ for name, m in vars(cls).items() if _is_cached(m)}
        unseen = {"training", "_cache"} | cached
        state = {k: v for k, v in state.items() if k not in unseen and not str(k).endswith("_hooks")}
        state = dict(sorted(state.items(), key=lambda item: str(item[0])))  # whichever was set first
    return [arguments, state, *(list(more) for more in rest[1:] if more is not None)]


def _is_cached(member: Any) -> bool:
    return isinstance(member, functools.cached_property)


def _without_tensors(state: Any) -> Any:
    """The state of an object with the types and shapes of its tensors in their places."""
    if isinstance(state, str) or not isinstance(state[1], dict):
        return state

    def shapes(attributes: dict[str, Any]) -> dict[str, Any]:
        return {name: (v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v for name, v in attributes.items()}

    arguments, own, *rest = state
    own = {k: shapes(v) if k in ("_parameters", "_buffers") else v for k, v in own.items()}
    return [arguments, shapes(own), *rest]
