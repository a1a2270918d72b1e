"""Peers' samplers, loaded by themselves: k-diffusion's sampling module without its package's imports (torchvision, ...)."""

from __future__ import annotations

import importlib.util
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
