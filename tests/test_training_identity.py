"""A training, a comparison and a reference belong to one SDE, one distribution and one objective, whatever process asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_identity import Decorated, Hidden, functions
from torch import Tensor, nn

from scoresde import VP, FunctionSDE, ScoreModel, analysis, problems
from scoresde.models import MLP
from scoresde.objectives import DSM
from scoresde.sampling.reference import flow_end
from scoresde.solvers import make_path
from scoresde.training import CheckpointError, fit, load, save

ROOT = Path(__file__).resolve().parents[1]
POINTS = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
USUAL: dict[str, Any] = {"batch_size": 16, "progress": False}


def small(sde: Any) -> ScoreModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ScoreModel(MLP(2, hidden=(8,), time_features=8), sde, "v")


def by_default(a: float) -> FunctionSDE:
    def log_alpha(t: Tensor, rate: float = a) -> Tensor:
        return -rate * t

    return FunctionSDE(log_alpha, torch.log)


MAKERS = [functions, Hidden, Decorated, by_default]


@pytest.mark.parametrize("make", MAKERS)
def test_a_training_resumes_under_its_own_sde_alone(make: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(small(make(1.0)), POINTS, steps=1, out=out, **USUAL)
    assert len(fit(small(make(1.0)), POINTS, steps=2, out=out, **USUAL).history) == 2
    before = out.read_bytes()
    with pytest.raises(CheckpointError, match=r"another training: the code or the settings of process"):
        fit(small(make(1.5)), POINTS, steps=3, out=out, **USUAL)
    with pytest.raises(CheckpointError, match=r"belongs to another training"):
        fit(small(VP()), POINTS, steps=3, out=out, **USUAL)
    assert out.read_bytes() == before


def test_a_training_resumes_in_another_process_under_the_same_functions_alone(tmp_path: Path) -> None:
    programme = """
import sys, torch
from scoresde import FunctionSDE, ScoreModel, fit
from scoresde.models import MLP
out, filler = sys.argv[1], [object() for _ in range(1000 * len(sys.argv))]  # the addresses differ
points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
def training(a, steps):
    sde = FunctionSDE(lambda t: -a * t, torch.log)
    fit(ScoreModel(MLP(2, hidden=(8,)), sde, "v"), points, steps=steps, out=out, batch_size=16, progress=False)
    print(steps, "steps")
for arguments in sys.argv[2:]:
    training(*(int(n) for n in arguments.split(",")))
"""

    def run(*calls: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", programme, str(tmp_path / "run"), *calls]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    assert run("1,1").returncode == 0
    resumed = run("1,2", "2,3")
    assert resumed.stdout.split() == ["2", "steps"], resumed.stderr
    assert "belongs to another training: the code or the settings of process" in resumed.stderr


def test_a_training_resumes_on_its_own_distribution_and_objective_alone(tmp_path: Path) -> None:
    class Data:
        def __init__(self, std: float) -> None:
            self.std = std

        def sample(self, n: int, generator: torch.Generator) -> Tensor:
            return self.std * torch.randn(n, 2, generator=generator)

    def objective(power: float) -> DSM:
        return DSM("ddpm", weigh(power))

    def weigh(power: float) -> Any:
        from scoresde.objectives import Times, UniformTimes

        class Leaning(Times):
            def at(self, u: Tensor, sde: Any) -> tuple[Tensor, Tensor]:
                return UniformTimes().at(u**power, sde)

        return Leaning()

    out = tmp_path / "run"
    fit(small(VP()), Data(1.0), steps=1, out=out, objective=objective(1.0), **USUAL)
    fit(small(VP()), Data(1.0), steps=2, out=out, objective=objective(1.0), **USUAL)
    with pytest.raises(CheckpointError, match=r"training\.data="):
        fit(small(VP()), Data(2.0), steps=3, out=out, objective=objective(1.0), **USUAL)
    with pytest.raises(CheckpointError, match=r"training\.objective="):
        fit(small(VP()), Data(1.0), steps=3, out=out, objective=objective(2.0), **USUAL)


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.linear = scale, nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.linear(self.scale * x)
        return y


def test_a_training_resumes_with_its_own_network_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    for steps in (1, 2):
        fit(ScoreModel(Scaled(1.0), VP()), POINTS, steps=steps, out=out, **USUAL)
    with pytest.raises(CheckpointError, match=r"another training: the code or the settings of net"):
        fit(ScoreModel(Scaled(2.0), VP()), POINTS, steps=3, out=out, **USUAL)


@pytest.mark.parametrize("make", MAKERS)
def test_a_model_under_an_sde_of_ones_own_is_loaded_with_it_alone(make: Any, tmp_path: Path) -> None:
    model = small(make(1.0))
    save(model, tmp_path / "model")
    name = type(model.sde).__name__
    with pytest.raises(CheckpointError, match=rf"under {name}, an SDE of your own; .*pass the SDE.*sde={name}\("):
        load(tmp_path / "model")
    loaded, x = load(tmp_path / "model", sde=make(1.0)), torch.ones(3, 2)
    assert torch.equal(loaded.score(x, 0.5), model.eval().score(x, 0.5))
    with pytest.raises(CheckpointError, match=r"under another SDE than the one given: at t=.* log alpha is"):
        load(tmp_path / "model", sde=make(1.5))
    written_otherwise = FunctionSDE(make(1.0).log_alpha, make(1.0).log_sigma)
    assert load(tmp_path / "model", sde=written_otherwise).sde is written_otherwise


def test_a_reference_is_that_of_its_own_sde(tmp_path: Path) -> None:
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    problem = problems.Gaussian([0.7, 0.7], 0.36)
    for make in (functions, Decorated):
        for a in (1.0, 2.0):
            sde = make(a)
            arguments: Any = (problem.model(sde), start, make_path(sde, "lam", 5, end="stop"))
            kept = flow_end(*arguments, cache=tmp_path, tolerance=1e-6).x
            again = flow_end(*arguments, cache=tmp_path, tolerance=1e-6).x
            torch.testing.assert_close(kept, flow_end(*arguments, tolerance=1e-6).x, rtol=0, atol=0)
            assert torch.equal(kept, again)


def test_convergence_finds_the_order_on_an_sde_that_looks_like_another() -> None:
    for rate in (1.0, 3.0):  # with the end of the flow of the other rate the error would not fall
        found = analysis.convergence("midpoint", sde=Hidden(rate), steps=(20, 40, 80), few=(5,))
        assert abs(found.order - found.declared) < 0.3
