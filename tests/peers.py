"""Peers' samplers, loaded by themselves, without what else their packages import (torchvision, ...)."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor


def k_diffusion_sampling() -> Any:
    """The module ``k_diffusion.sampling``; skips the test where k-diffusion is not installed."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("k-diffusion is not installed: pip install --no-deps k-diffusion")
    folder = Path(spec.submodule_search_locations[0])

    def append_dims(x: Tensor, ndim: int) -> Tensor:
        return x[(...,) + (None,) * (ndim - x.ndim)]

    package, utils, odeint = (types.ModuleType(n) for n in ("k_diffusion", "k_diffusion.utils", "torchdiffeq"))
    package.__path__ = [str(folder)]
    utils.append_dims = append_dims  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    odeint.odeint = None  # type: ignore[attr-defined]  # for its log-likelihood, which nothing here uses
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    sys.modules.setdefault("torchdiffeq", odeint)
    loader = importlib.util.spec_from_file_location("k_diffusion.sampling", folder / "sampling.py")
    assert loader is not None and loader.loader is not None
    module = importlib.util.module_from_spec(loader)
    sys.modules["k_diffusion.sampling"] = module
    loader.loader.exec_module(module)
    return module


def diffusers_scheduler(module: str, name: str) -> Any:
    """The class ``name`` of ``diffusers.schedulers.<module>``; skips the test where diffusers is not installed.

    The module is loaded by itself too: what it takes from the rest of its package are configuration and downloads.
    """
    spec = importlib.util.find_spec("diffusers")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("diffusers is not installed: pip install diffusers")
    root = "peer_diffusers"  # under another name, so that the real package can be imported beside it

    def register_to_config(init: Any) -> Any:
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
            bound = inspect.signature(init).bind(self, *args, **kwargs)
            bound.apply_defaults()
            self.config = types.SimpleNamespace(**{k: v for k, v in bound.arguments.items() if k != "self"})
            init(self, *args, **kwargs)

        return wrapped

    contents: dict[str, dict[str, Any]] = {
        "": {},
        ".schedulers": {},
        ".configuration_utils": {"ConfigMixin": type("ConfigMixin", (), {}), "register_to_config": register_to_config},
        ".utils": {"deprecate": lambda *_, **__: None, "is_scipy_available": lambda: True},
        ".utils.torch_utils": {"randn_tensor": None},
        ".schedulers.scheduling_utils": {
            "KarrasDiffusionSchedulers": (),
            "SchedulerMixin": type("SchedulerMixin", (), {}),
            "SchedulerOutput": types.SimpleNamespace,
        },
    }
    for suffix, names in contents.items():
        stub = types.ModuleType(root + suffix)
        stub.__path__ = []
        vars(stub).update(names)
        sys.modules.setdefault(root + suffix, stub)
    full = f"{root}.schedulers.{module}"
    if full not in sys.modules:
        file = Path(spec.submodule_search_locations[0]) / "schedulers" / f"{module}.py"
        loader = importlib.util.spec_from_file_location(full, file)
        assert loader is not None and loader.loader is not None
        sys.modules[full] = importlib.util.module_from_spec(loader)
        loader.loader.exec_module(sys.modules[full])
    return getattr(sys.modules[full], name)
