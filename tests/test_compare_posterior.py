"""Comparisons of methods for inverse problems on posteriors that are known exactly."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from scoresde import VP, problems, sample, solvers
from scoresde.cli.application import app
from scoresde.comparison import compare
from scoresde.inverse import METHODS, SAMPLERS, Observation, Steered, steered
from scoresde.inverse.operators import phase_retrieval
from scoresde.problems import Empirical
from scoresde.solvers import RowSolver

quick = partial(compare, progress=False, n=16)
GAUSSIAN = problems.gaussian(3).posterior([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [0.4, -0.3], 0.1)
RING = problems.ring().posterior([[1.0, 0.3]], [0.9], 0.3)
EVERY = [*(f"{name} + ddim" for name in METHODS), *SAMPLERS]


@pytest.mark.parametrize("method", EVERY)
def test_every_method_is_compared_within_its_budget(method):
    metrics = ["wasserstein", "mode-weights", "mean", "covariance"]
    found = quick(RING, [method], [30], metrics=metrics).records
    assert [r.metric for r in found] == metrics
    assert all(not r.error and math.isfinite(r.value) and 0 < r.evaluations <= 30 for r in found)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dps"])
def test_evaluations_are_forward_and_backward_calls(method):
    model, solver = steered(f"{method}+heun").on(GAUSSIAN, VP())
    samples = sample(model, (2, 3), solver, 5, progress=False)
    (found,) = quick(GAUSSIAN, [f"{method} + heun"], [60], metrics=["energy"]).records
    assert found.evaluations == sum(model.calls) * (2 * found.steps - 1)
    assert samples.evaluations + samples.backward == sum(model.calls) * 9


@pytest.mark.parametrize("method", ["tmpd", "mmps"])
def test_methods_that_are_exact_for_gaussians_end_where_the_exact_model_does(method):
    captured = []

    def end(samples):
        captured.append(samples)
        return samples.std()

    calls = sum(steered(f"{method} + ddim").on(GAUSSIAN, VP())[0].calls)
    quick(GAUSSIAN, [f"{method} + dpmpp-2m"], [20 * calls], metrics={"end": end})
    quick(GAUSSIAN, ["dpmpp-2m"], [20], metrics={"end": end})
    assert torch.allclose(*captured, atol=1e-6)


def test_a_posterior_is_compared_by_the_distance_from_its_flow():
    found = quick(GAUSSIAN, ["tmpd + dpmpp-2m", "ddnm + dpmpp-2m", "dpmpp-2m"], [100], metrics=["rms"], n=4)
    assert {r.problem for r in found.records} == {"posterior of Gaussian"}
    tmpd, ddnm, exact = (r.value for r in found.records)
    assert exact < tmpd < 2e-2 < ddnm


def test_results_are_kept_by_method_and_measurement(tmp_path):
    first = quick(RING, ["pigdm + ddim", "ddrm"], [20], metrics=["energy"], out=tmp_path)
    again = quick(RING, ["pigdm + ddim", "ddrm"], [20], metrics=["energy"], out=tmp_path)
    assert [r.value for r in again.records] == [r.value for r in first.records]
    other = problems.ring().posterior([[1.0, 0.3]], [0.9], 0.2)
    with pytest.raises(ValueError, match="other arguments"):
        quick(other, ["pigdm + ddim", "ddrm"], [20], metrics=["energy"], out=tmp_path)


def test_what_a_method_cannot_carry_is_a_record_that_says_why():
    data = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    operator = phase_retrieval((1, 4, 4))
    posterior = Empirical(data).posterior(operator, operator(data[:1])[0], 0.1)
    found = {r.solver: r for r in quick(posterior, ["tmpd + ddim", "dps + ddim"], [20], metrics=["energy"]).records}
    assert "nonlinear operator" in found["tmpd + ddim"].error and not found["dps + ddim"].error


def test_names_and_objects():
    assert (
        steered("DDRM").name == "ddrm"
        and steered("ddnm+").name == "ddnm+"
        and steered("ddnm+DPM++_2M").solver.name == "dpmpp-2m"
    )
    assert steered("dpmpp-2m") is steered("DPM++_2M") is None and steered("TMPD+ddim: eta=0.5").solver.stochastic
    with pytest.raises(ValueError, match="expected 'tmpd \\+ dpmpp-2m'"):
        steered("tmpd")
    with pytest.raises(ValueError, match="got solver 'hune'"):
        steered("tmpd + hune")
    mine = Steered(solvers.Description("mine", "inverse", "here"), METHODS["tmpd"], solvers.get("heun"))
    assert quick(RING, {"mine": mine}, [30], metrics=["energy"]).records[0].solver == "mine"
    with pytest.raises(ValueError, match="without a measurement"):
        sample(problems.ring().model(VP()), (2, 2), mine, progress=False)
    assert isinstance(steered("ddrm").on(RING, VP())[1], RowSolver)
    assert Observation.of(RING).sigma == 0.3


@pytest.mark.parametrize("solver", ["tmpd + ddim", "ddrm"])
def test_methods_without_a_measurement_are_refused(solver):
    with pytest.raises(ValueError, match=r"which is no posterior; expected problem.posterior"):
        quick("ring", ["ddim", solver], [20])


def test_the_command_line_compares_methods():
    arguments = [
        "compare",
        "measured: prior='gaussian', sigma=0.2",
        "--solver",
        "tmpd + ddim, ddrm, ddim",
        "--evaluations",
        "20",
    ]
    found = CliRunner().invoke(app, [*arguments, "--metric", "wasserstein", "--n", "16", "--no-progress"])
    assert found.exit_code == 0, found.output
    assert all(name in found.output for name in ("tmpd + ddim", "ddrm"))
