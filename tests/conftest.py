"""What every test shares: settings of Hypothesis and torch, seeds, generators, and real data where they are at hand."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# A first call may compile or import, so that a deadline measures the machine; a failure in CI must come back by itself.
settings.register_profile("default", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=50, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# The tensors here are small: more threads cost more than they bring, and one makes results the same on every machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` skip, with the reason, where there is no device to run them on."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded_globally() -> None:
    """Weights that a test leaves to chance are the same in every run and every order of the tests.

    No code under test takes this seed: one that seeds the global generator itself still leaves another state than it found.
    """
    torch.manual_seed(0x7E57)


MakeGenerator = Callable[..., torch.Generator]


@pytest.fixture
def generator() -> MakeGenerator:
    """``generator(seed, device="cpu")``: a new generator with that seed."""

    def make(seed: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    return make


@pytest.fixture
def rng(generator: MakeGenerator) -> torch.Generator:
    """The generator with seed 0."""
    return generator(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test skips where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data: the folder ../shared/data beside the checkout is absent")
    return folder
