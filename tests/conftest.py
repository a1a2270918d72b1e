"""What every test shares: settings of Hypothesis and torch, seeds, generators, and real data where they are at hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, is_hypothesis_test, settings

# A first call may compile or import, so that a deadline measures the machine; a failure in CI must come back by itself. The
# default run draws the same examples every time, on every machine; fresh ones are drawn on demand: see --fresh.
_COMMON = {"deadline": None, "max_examples": 30, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", derandomize=True, **_COMMON)
settings.register_profile("fresh", derandomize=False, print_blob=True, **_COMMON)
settings.load_profile("default")

# The tensors here are small: more threads cost more than they bring, and one makes results the same on every machine.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fresh",
        type=int,
        default=0,
        metavar="N",
        help="draw fresh examples, N times as many as each test usually has; only the tests that draw any are run",
    )
    parser.addoption(
        "--site", metavar="FOLDER", help="test the documentation built in this folder in a browser: test_site.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--fresh"):
        settings.load_profile("fresh")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``--fresh`` multiplies examples; ``sweep(n)`` leaves all but every n-th case to ``-m slow``; tests marked ``gpu``
    skip, with the reason, where there is no device for them."""
    cases: dict[str, int] = {}
    for item in items:
        if (sweep := item.get_closest_marker("sweep")) and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            cases[test] = cases.get(test, -1) + 1
            if cases[test] % sweep.args[0]:
                item.add_marker(pytest.mark.slow)
    if times := config.getoption("--fresh"):
        drawing = [item for item in items if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj)]
        config.hook.pytest_deselected(items=[item for item in items if item not in drawing])
        items[:] = drawing
        for test in {item.function for item in drawing}:  # type: ignore[attr-defined]
            own = test._hypothesis_internal_use_settings
            test._hypothesis_internal_use_settings = settings(own, max_examples=times * own.max_examples)
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
