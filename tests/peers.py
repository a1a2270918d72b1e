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
