"""Peers' samplers, as the package loads them; a test skips where one is not installed."""

from __future__ import annotations

from typing import Any

import pytest

from scoresde.comparison.peers import modules


def k_diffusion_sampling() -> Any:
    """The module ``k_diffusion.sampling``; skips the test where k-diffusion is not installed."""
    try:
        return modules.k_diffusion_sampling()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def diffusers_scheduler(module: str, name: str) -> Any:
    """The class ``name`` of ``diffusers.schedulers.<module>``; skips the test where diffusers is not installed."""
    try:
        return modules.diffusers_scheduler(module, name)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def diffusers_class(name: str) -> Any:
    """The class ``diffusers.<name>``; skips the test where diffusers cannot be imported."""
    try:
        import diffusers

        return getattr(diffusers, name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"diffusers' {name} cannot be imported: {error}")
