"""What is installed, and whether the numerics are right on this machine: ``scoresde doctor``."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import scoresde
from scoresde.analysis import convergence
from scoresde.problems import Gaussian
from scoresde.sampling import log_likelihood, sample
from scoresde.sde import VP
from scoresde.solvers import Path, Row, dpmpp_2m, make_path

__all__ = ["Check", "devices", "examine", "numerics", "requirements"]


@dataclass(frozen=True)
class Check:
    """One check of the numerics: a number that was measured, and the bound that it keeps on a sound machine.

    Example:
        >>> Check("the sum of two and two", 0.0, 1e-12).passed
        True
    """

    name: str
    measured: float
    bound: float

    @property
    def passed(self) -> bool:
        """Whether the number keeps its bound; NaN does not."""
        return self.measured <= self.bound

    def __str__(self) -> str:
        return f"{'ok  ' if self.passed else 'FAIL'}  {self.name}: {self.measured:.1e}, at most {self.bound:.2g}"


def requirements() -> dict[str, dict[str, str | None]]:
    """Return the versions of the required packages, and of each extra, by name; ``None`` for a package that is missing.

    The key of what is always required is ``""``. Empty where scoresde was not installed, but found on the path.

    Example:
        >>> all(version is None or version[0].isdigit() for group in requirements().values() for version in group.values())
        True
    """
    try:
        lines = importlib.metadata.requires("scoresde") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, dict[str, str | None]] = {}
    for line in lines:
        if name := re.match(r"[A-Za-z0-9._-]+", line):
            extra = re.search(r"extra == ['\"]([^'\"]+)", line)
            found.setdefault(extra[1] if extra else "", {})[name[0]] = _version(name[0])
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def numerics(device: str = "cpu") -> Iterator[Check]:
    """Run the checks of the numerics on a device, one after another, against closed forms.

    Args:
        device: the name of a device of torch.

    Raises:
        RuntimeError: from torch, for a device that is not there.

    Example:
        >>> next(numerics()).passed
        True
    """
    sde = VP()
    path = make_path(sde, "lam", 10, end="stop")
    yield Check("coefficients of a two-step rule against its integral", _coefficients(path), 1e-12)
    variance, mean = 0.3, 0.5
    model = Gaussian([mean] * 4, variance).model(sde)
    for dtype, bound in ((torch.float64, 1e-6), (torch.float32, 1e-3)):
        start = torch.linspace(-2, 2, 32, device=device, dtype=dtype).reshape(8, 4)
        found = sample(model, start, "rk4", path=make_path(sde, "lam", 100, end="stop"), progress=False).x
        before, after = ((float(sde.alpha(t)), float(sde.sigma(t))) for t in (1.0, sde.t_min))
        stretch = math.sqrt((after[0] ** 2 * variance + after[1] ** 2) / (before[0] ** 2 * variance + before[1] ** 2))
        exact = after[0] * mean + stretch * (start - before[0] * mean)
        yield Check(f"the flow of Gaussian data in {str(dtype)[6:]}", float((found - exact).abs().max()), bound)
    shape = {"steps": 20, "device": device, "progress": False}
    batch = sample(model, (5, 4), "sde-dpmpp-2m", seed=3, **shape)  # type: ignore[arg-type]
    alone = sample(model, (1, 4), "sde-dpmpp-2m", seed=batch.seeds[3:4], **shape)  # type: ignore[arg-type]
    yield Check("a sample alone and in a batch", float((batch.x[3] - alone.x[0]).abs().max()), 1e-5)
    x = torch.linspace(-1, 1, 12, device=device, dtype=torch.float64).reshape(3, 4)
    noised = float(sde.alpha(sde.t_min)), float(sde.alpha(sde.t_min)) ** 2 * variance + float(sde.sigma(sde.t_min)) ** 2
    exact = -0.5 * ((x - noised[0] * mean) ** 2 / noised[1] + math.log(2 * math.pi * noised[1])).sum(1)
    error = log_likelihood(model, x, 1e-5).log_prob.cpu() - exact.cpu()
    yield Check("the likelihood by the flow, through autograd", float(error.abs().max()), 1e-3)
    if device == "cpu":
        yield Check("the order of dpmpp-2m, its distance from 2", abs(convergence("dpmpp-2m").order - 2), 0.15)


def _coefficients(path: Path) -> float:
    """Return the largest relative error of the weights of a two-step rule against the integral of a line."""
    worst = 0.0
    points = path.points
    rows = [row for row in dpmpp_2m(variant="exact").rows(path) if isinstance(row, Row)][1:]
    for row, before, u, v in zip(rows, points, points[1:], points[2:], strict=False):
        h, back = v.lam - u.lam, u.lam - before.lam
        slope = v.alpha * (h + math.expm1(-h)) / back
        exact = -v.alpha * math.expm1(-h) + slope, -slope
        worst = max(worst, *(abs(a - b) / abs(b) for a, b in zip(row.w, exact, strict=True)))
    return worst


def devices() -> dict[str, str]:
    """Return the devices of torch by name, with a description.

    Example:
        >>> "cpu" in devices()
        True
    """
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads of torch"}
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "Apple GPU, without float64"
    return found


def examine(check: bool = True, echo: Callable[[str], object] = print) -> bool:
    """Say what a report of a fault should contain, and return whether all checks passed on all devices.

    Args:
        check: whether to check the numerics, which takes about ten seconds.
        echo: a function that is given each line.

    Example:
        >>> lines = []
        >>> examine(check=False, echo=lines.append), lines[0].startswith("scoresde")
        (True, True)
    """
    echo(f"scoresde {scoresde.__version__}, Python {platform.python_version()}, {platform.platform()}")
    echo(f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    for extra, packages in requirements().items():
        have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
        lack = ", ".join(name for name, version in packages.items() if not version)
        echo(f"{extra or 'required'}: {have or 'none'}{f'; missing: {lack}' if lack else ''}")
    present = devices()
    for name, description in present.items():
        echo(f"device {name}: {description}")
    echo(
        f"precision: default {str(torch.get_default_dtype())[6:]}, matmul {torch.get_float32_matmul_precision()}, "
        f"TF32 in convolutions {'on' if torch.backends.cudnn.allow_tf32 else 'off'}"
    )
    if not check:
        return True
    passed = True
    for name in present:
        if name == "mps":  # no float64, in which the checks are made
            continue
        started = time.perf_counter()
        for one in _reported(numerics, name):
            passed &= one.passed
            echo(f"{name}: {one}")
        echo(f"{name}: checked in {time.perf_counter() - started:.1f} s")
    return passed


def _reported(checks: Callable[[str], Iterator[Check]], device: str) -> Iterator[Check]:
    """Run the checks on a device; an error there is a check that fails."""
    try:
        yield from checks(device)
    except Exception as error:  # whatever goes wrong is a finding, and the other devices are still to be checked
        yield Check(f"{type(error).__name__}: {error}".partition("\n")[0], math.nan, 0.0)
