"""Loaders for the modules of k-diffusion and diffusers that hold samplers.

Each module is loaded without the rest of its package, with stubs for imports that sampling does not need. So neither
package needs torchvision.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import sys
import types
from pathlib import Path
from typing import Any

from torch import Tensor

__all__ = ["diffusers_scheduler", "k_diffusion_sampling", "missing"]


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"{package.replace('_', '-')} is not installed: pip install --no-deps {package.replace('_', '-')}"
        )
    return Path(spec.submodule_search_locations[0])


def _load(name: str, file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _stub(name: str, **contents: Any) -> types.ModuleType:
    """Return the module of that name; where there is none, make it a package with these contents."""
    if name not in sys.modules:
        stub = types.ModuleType(name)
        stub.__path__ = []
        vars(stub).update(contents)
        sys.modules[name] = stub
    return sys.modules[name]


@functools.cache
def k_diffusion_sampling() -> Any:
    """Load ``k_diffusion.sampling`` under another name, so that the package itself can be imported beside it.

    Raises:
        ModuleNotFoundError: if k-diffusion is not installed.
    """
    folder = _folder("k_diffusion")

    def append_dims(x: Tensor, ndim: int) -> Tensor:
        return x[(...,) + (None,) * (ndim - x.ndim)]

    utils = _stub("peer_k_diffusion.utils", append_dims=append_dims)
    _stub("peer_k_diffusion", utils=utils)
    absent = importlib.util.find_spec("torchdiffeq") is None
    if absent:  # the module needs it only for its log-likelihood, unused here
        _stub("torchdiffeq", odeint=None)
    try:
        return _load("peer_k_diffusion.sampling", folder / "sampling.py")
    finally:
        if absent:
            del sys.modules["torchdiffeq"]


def _register_to_config(init: Any) -> Any:
    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        bound = inspect.signature(init).bind(self, *args, **kwargs)
        bound.apply_defaults()
        self.config = types.SimpleNamespace(**{k: v for k, v in bound.arguments.items() if k != "self"})
        init(self, *args, **kwargs)

    return wrapped


@functools.cache
def diffusers_scheduler(module: str, name: str) -> Any:
    """Load the class ``name`` of ``diffusers.schedulers.<module>``.

    The rest of its package provides configuration and downloads only.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
    """
    folder, root = _folder("diffusers"), "peer_diffusers"
    output = type("BaseOutput", (), {})
    _stub(root)
    _stub(f"{root}.schedulers")
    _stub(
        f"{root}.configuration_utils",
        ConfigMixin=type("ConfigMixin", (), {}),
        register_to_config=_register_to_config,
    )
    _stub(
        f"{root}.utils",
        deprecate=lambda *_, **__: None,
        is_scipy_available=lambda: True,
        BaseOutput=output,
        logging=types.SimpleNamespace(get_logger=logging.getLogger),
    )
    _stub(f"{root}.utils.torch_utils", randn_tensor=None)
    _stub(
        f"{root}.schedulers.scheduling_utils",
        KarrasDiffusionSchedulers=(),
        SchedulerMixin=type("SchedulerMixin", (), {}),
        SchedulerOutput=types.SimpleNamespace,
    )
    full = f"{root}.schedulers.{module}"
    return getattr(sys.modules.get(full) or _load(full, folder / "schedulers" / f"{module}.py"), name)


def missing() -> dict[str, str]:
    """Return the packages that are not installed, each with the remedy."""
    absent = {}
    for package, folder in (("k-diffusion", "k_diffusion"), ("diffusers", "diffusers")):
        try:
            _folder(folder)
        except ModuleNotFoundError as error:
            absent[package] = str(error)
    return absent
