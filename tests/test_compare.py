"""The comparison: budgets are kept, everything shared is shared, results are kept, resumed and reproduced."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SDES, finite_start, mixture
from torch import Tensor, nn

import scoresde
from scoresde import VP, ScoreModel, problems, sample, solvers
from scoresde.comparison import MEASURES, PEERS, Case, Comparison, Foreign, Levels, Record, StoreError, budgets, compare
from scoresde.comparison.cases import gather
from scoresde.comparison.peers.modules import missing
from scoresde.comparison.store import FILE, Result, Store
from scoresde.sampling import Samples
from scoresde.sampling.reference import flow_end
from scoresde.score import Calls
from scoresde.solvers import SOLVERS, Description, Solver, make_path

quick = partial(compare, progress=False, n=16)


def spread(samples: Tensor) -> Tensor:
    """How wide the samples lie."""
    return samples.std()


def gap(samples: Tensor, truth: Tensor) -> float:
    """How far apart the means lie."""
    return float((samples.mean(0) - truth.mean(0)).norm())


def values(found: Comparison) -> list[tuple[Any, ...]]:
    """All that is computed but times."""
    return [dataclasses.astuple(r) for r in found.records if r.metric != "time"]


# Budgets --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SOLVERS if not budgets.adaptive(solvers.get(n))])
def test_a_budget_is_kept_and_one_more_step_would_not_keep_it(name: str) -> None:
    solver, model = solvers.get(name), mixture().model(VP())
    path = partial(make_path, VP(), "lam", end="flow")
    for budget, (steps, calls) in budgets.largest(solver, [4, 9, 14], path).items():
        made = [sample(model, (1, 2), solver, path=path(n), progress=False).evaluations for n in (max(steps, 1), steps + 1)]
        assert made[0] == calls
        assert (made[0] if steps else 0) <= budget < made[1]


@pytest.mark.parametrize("name", ["dpm-12", "dpm-23", "bs3", "rk45"])
def test_an_adaptive_solver_keeps_to_the_budgets_and_uses_them(name: str) -> None:
    found = quick("gaussian", [name], [30, 60, 120], metrics=["rms"]).records
    assert all(0 < r.evaluations <= r.budget and r.path == "own" for r in found)
    assert [r.evaluations for r in found] == sorted({r.evaluations for r in found})
    assert found[-1].value < found[0].value


def test_a_budget_that_one_solver_cannot_keep_is_a_record_and_one_that_none_can_is_refused() -> None:
    found = quick("ring", ["rk4", "ddim"], [3], metrics=["rms"])
    rk4, ddim = found.records
    assert rk4.error == "" and rk4.evaluations == 1 and ddim.evaluations == 3
    three = quick("ring", ["annealed-langevin", "ddim"], [1], metrics=["energy"]).records
    assert math.isnan(three[0].value) and "one step takes" in three[0].error and not three[1].error
    with pytest.raises(ValueError, match=r"budget of 1 evaluations, within which no solver here .* expected at least"):
        quick("ring", ["annealed-langevin"], [1])


# What is shared -------------------------------------------------------------------------------------------------------


def spying(seen: list[Any], name: str, stochastic: bool = False) -> Foreign:
    """A solver that notes its start, or its draws."""

    def sampler(levels: Levels, y: Tensor) -> Tensor:
        if stochastic:
            whole, parts = levels.rho[[0, -1]], levels.rho
            draws = [levels.noise(a, b) * (a / b).log().sqrt() for a, b in pairwise(parts)]
            seen.append((levels.noise(*whole) * (whole[0] / whole[1]).log().sqrt(), sum(draws)))
        else:
            seen.append(y.clone())
        return y

    claims = {"weak_order": 1} if stochastic else {"order": 1}
    return Foreign(Description(name, "test", "", stochastic=stochastic, **claims), sampler)


def test_all_solvers_start_from_the_same_noise() -> None:
    seen: list[Tensor] = []
    quick(
        {"a": problems.ring(), "b": problems.grid()}, [spying(seen, "one"), spying(seen, "two")], [4, 7], metrics=["energy"]
    )
    starts = [y for y in seen if y.shape == (16, 2)]  # not the trial runs
    assert len(starts) == 8 and all(torch.equal(y, starts[0]) for y in starts)
    assert abs(float(starts[0].mul(float(VP().alpha(1.0))).std()) - 1) < 0.5


def test_stochastic_solvers_share_one_brownian_path_whatever_their_steps() -> None:
    seen: list[Any] = []
    quick("ring", [spying(seen, "one", stochastic=True)], [4, 9], metrics=["energy"])
    (whole, parts), (again, finer) = [pair for pair in seen if pair[0].shape == (16, 2)]
    assert float(whole.std()) > 1
    for other in (parts, again, finer):
        torch.testing.assert_close(other, whole, rtol=0, atol=1e-9)


def test_strong_errors_fall_with_the_steps() -> None:
    found = quick("gaussian", ["sde-dpmpp-2m"], [10, 40, 160], metrics=["strong"], n=64).records
    assert found[0].value > 2 * found[1].value > 4 * found[2].value > 0


@pytest.mark.parametrize("end", ["flow", "denoise", "stop"])
def test_errors_go_to_zero_with_the_steps_at_every_end(end: str) -> None:
    found = quick({"smooth": mixture()}, ["dpm-3"], [60, 120], metrics=["rms"], end=end).records
    assert found[1].value < found[0].value / 5 and found[1].value < 1e-4


# Reproducible, kept, resumed -----------------------------------------------------------------------------------------

ARGUMENTS: dict[str, Any] = {
    "problem": {"ring": problems.ring(3), "gaussian": problems.gaussian(3)},
    "solvers": ["ddim", "heun", "sde-dpmpp-2m", "euler-a", "dpm-12"],
    "evaluations": [6, 21],
    "paths": ["lam", "karras"],
    "metrics": ["rms", "q95", "energy"],
}


def test_twice_the_same_and_the_same_after_an_interruption_and_with_a_folder(tmp_path: Path) -> None:
    first = quick(**ARGUMENTS, out=tmp_path / "whole")
    assert values(quick(**ARGUMENTS)) == values(first)
    lines = (tmp_path / "whole" / FILE).read_text().splitlines(keepends=True)
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / FILE).write_text("".join(lines[:8]) + lines[8][: len(lines[8]) // 2])  # a torn line
    assert values(quick(**ARGUMENTS, out=cut)) == values(first)
    resumed = (cut / FILE).read_text().splitlines()
    assert resumed[:8] == [line.rstrip("\n") for line in lines[:8]] and len(resumed) == len(lines)
    assert values(quick(**{**ARGUMENTS, "solvers": ["euler-a"]})) == [v for v in values(first) if v[1] == "euler-a"]


def test_ctrl_c_leaves_the_records_and_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sampler(levels: Levels, y: Tensor) -> Tensor:  # no closure, whose change would make it another solver
        if len(levels.rho) == 10 and os.environ.pop("SCORESDE_TEST_PRESSED", ""):
            raise KeyboardInterrupt
        return y

    solver = Foreign(Description("mine", "test", "", order=1), sampler)
    arguments: Any = {"problem": "ring", "solvers": [solver], "evaluations": [5, 10, 20], "metrics": ["energy"]}
    monkeypatch.setenv("SCORESDE_TEST_PRESSED", "yes")
    with pytest.raises(KeyboardInterrupt, match=r"1 runs are in .*records.jsonl; the same comparison continues there"):
        quick(**arguments, out=tmp_path)
    found = quick(**arguments, out=tmp_path)
    assert [r.budget for r in found.records] == [5, 10, 20]


def test_a_folder_of_another_comparison_is_refused_with_what_differs(tmp_path: Path) -> None:
    quick("ring", ["ddim"], [5], metrics=["rms"], out=tmp_path)
    for change, says in (
        ({"seed": 1}, r"seed: 0 there, 1 now"),
        ({"evaluations": [6]}, r"evaluations: \[5\] there, \[6\] now"),
        ({"problem": {"ring": problems.ring(7)}}, r"problems.ring on VP"),
        ({"problem": {"ring": problems.ring(std=0.2)}}, r"problems.ring on VP.model"),
        ({"sde": "ve"}, r"problems.ring on VP"),
        ({"sde": "vp: beta_max=19.0"}, r"problems.ring on VP"),
        ({"metrics": ["rms", spread]}, r"metrics.spread"),
        ({"solvers": {"ddim": solvers.dpmpp_2m()}}, r"solvers.ddim"),
    ):
        arguments: Any = {"problem": "ring", "solvers": ["ddim"], "evaluations": [5], "metrics": ["rms"], **change}
        with pytest.raises(ValueError, match=f"other arguments .*{says}.*give another folder"):
            quick(**arguments, out=tmp_path)
    (tmp_path / FILE).write_text('{"key": 1}\n')
    with pytest.raises(ValueError, match="does not start with the arguments"):
        quick("ring", ["ddim"], [5], metrics=["rms"], out=tmp_path)


def test_a_full_disk_keeps_what_was_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes, real = iter(range(10**6)), os.fsync

    def full(descriptor: int) -> None:
        if next(writes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; make room or give another folder") as caught:
        quick("ring", ["ddim"], [5, 10, 20], metrics=["energy"], out=tmp_path, references=tmp_path / "r")
    assert [r.evaluations for r in caught.value.comparison.records] == [5, 10, 20][: len(caught.value.comparison.records)]
    assert len(caught.value.comparison.records) >= 2
    monkeypatch.undo()
    again = quick("ring", ["ddim"], [5, 10, 20], metrics=["energy"], out=tmp_path, references=tmp_path / "r")
    assert values(again)[:2] == values(caught.value.comparison)[:2] and len(again.records) == 3


def result(i: int) -> Result:
    return Result(
        i, 2 * i, values={"rms": (i / 7, -math.inf, math.nan), "mmd": "none"}, times=[1.0], states=[[(0.5, i / 3)]]
    )


@settings(max_examples=20)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5, unique=True), st.integers(0, 200))
def test_whatever_is_cut_off_a_store_the_rest_is_read(keys: list[str], cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, lambda: {"a": [1, 2], "b": math.inf})
        for i, key in enumerate(keys):
            store.add(key, result(i))
        file = Path(folder) / FILE
        whole = file.read_bytes()
        file.write_bytes(whole[: max(len(whole) - cut, 0)])
        read = Store(folder, lambda: {"a": [1, 2], "b": math.inf})
        kept = [key for key in keys if key in read]
        assert kept == keys[: len(kept)] and all(repr(read[k]) == repr(result(keys.index(k))) for k in kept)
        assert (len(kept) == len(keys)) == (cut == 0)
        for key in keys:
            if key not in read:
                read.add(key, result(keys.index(key)))
        assert file.read_bytes() == whole


# What goes wrong ------------------------------------------------------------------------------------------------------


def failing(error: Exception | None) -> Foreign:
    def sampler(levels: Levels, y: Tensor) -> Tensor:
        if error is not None and len(y) > 1:
            raise error
        return y * math.nan

    return Foreign(Description("failing", "test", "", order=1), sampler)


@pytest.mark.parametrize("error", [None, RuntimeError("it broke"), ValueError("it broke")], ids=repr)
def test_a_solver_that_fails_is_a_record_that_says_why(error: Exception | None) -> None:
    found = quick("ring", [failing(error), "ddim"], [5, 10], metrics=["rms", "energy"])
    broken = found.select(solver="failing")
    assert len(broken) == 4 and all(math.isnan(r.value) for r in broken)
    assert all(("it broke" if error else "non-finite") in r.error for r in broken)
    assert all(math.isfinite(r.value) and not r.error for r in found.select(solver="ddim"))


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda x, t: x[:, :1], "the network returned shape"),
        (lambda x, t: x * math.nan, "not finite at t=1, for a state of shape"),
    ],
)
def test_a_model_that_is_wrong_is_refused_before_any_solver_runs(net: Callable[..., Tensor], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        quick(ScoreModel(net, VP()), ["ddim"], [5], shape=(2,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"solvers": []}, "got no solvers; expected names"),
        ({"solvers": ["ddmi"]}, "got solver 'ddmi'; expected .* did you mean"),
        ({"solvers": [solvers.ddim(), "ddim"]}, "two solvers called 'ddim'; expected a mapping"),
        ({"evaluations": []}, "whole numbers of at least 1"),
        ({"evaluations": [5, 0]}, "whole numbers of at least 1"),
        ({"paths": []}, "got no paths"),
        ({"paths": ["karas"]}, "did you mean 'karras'"),
        ({"metrics": []}, "got no metrics"),
        ({"metrics": ["rmse"]}, "did you mean 'rms'"),
        ({"problem": "rign"}, "did you mean 'ring'"),
        ({"problem": []}, "got no problem"),
        ({"problem": mixture().model(VP())}, "without the shape of its samples"),
        ({"problem": mixture().model(VP()), "sde": scoresde.EDM()}, "expected the same, or no sde"),
        ({"n": 1}, "n=1; expected a whole number of at least 2"),
        ({"seed": -1}, "seed=-1; expected"),
        ({"end": "there"}, "end='there'; expected one of"),
    ],
)
def test_bad_arguments_are_refused(change: dict[str, Any], says: str) -> None:
    arguments: Any = {"problem": "ring", "solvers": ["ddim"], "evaluations": [5], **change}
    with pytest.raises(ValueError, match=says):
        quick(**arguments)


@pytest.mark.parametrize("change", [{"solvers": [3]}, {"problem": 3}])
def test_what_is_no_solver_or_problem_is_refused(change: dict[str, Any]) -> None:
    arguments: Any = {"problem": "ring", "solvers": ["ddim"], "evaluations": [5], **change}
    with pytest.raises(TypeError, match="expected"):
        quick(**arguments)


# Cases ----------------------------------------------------------------------------------------------------------------


class Affine(nn.Linear):
    """A network that predicts v, the same at all times."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) / 3


def test_a_network_is_compared_in_float64_and_left_as_it_is() -> None:
    net, generator = Affine(2, 2), torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    model = ScoreModel(net, VP(), "v")
    found = quick(model, ["ddim", "dpmpp-2m"], [10, 100], metrics=["rms", "energy"], shape=(2,)).records
    assert {r.metric for r in found} == {"rms"} and all(r.value > 0 for r in found)  # no data, no energy distance
    assert 0 < found[3].value < 0.02 * found[0].value
    assert {p.dtype for p in net.parameters()} == {torch.float32} and net.training
    truth = problems.ring().sample(32, torch.Generator().manual_seed(0))
    assert quick(model, ["ddim"], [5], metrics=["energy"], truth=truth).records[0].value > 0


@pytest.mark.parametrize("name", SDES)
def test_every_sde_is_compared(name: str) -> None:
    sde = SDES[name]
    case = gather({"smooth": mixture()}, sde)["smooth", type(sde).__name__]
    assert math.isfinite(float(sde.lam(case.t_max))) and case.t_max <= sde.span[1]
    if case.t_max < sde.span[1]:
        assert finite_start(sde) < sde.span[1]
    found = quick({"smooth": case}, ["dpmpp-2m"], [20, 80], metrics=["rms"], n=2).records
    assert found[1].value < found[0].value / 4


def test_what_a_comparison_says_of_itself(tmp_path: Path) -> None:
    found = quick("ring", {"mine": "ddim"}, [5], metrics=["rms"], seed=3)
    assert found.about["versions"]["scoresde"] == scoresde.__version__ and found.about["seed"] == 3
    assert found.about["solvers"]["mine"]["name"] == "ddim" and found.about["solvers"]["mine"]["order"] == 1
    assert found.about["problems"]["ring"]["n"] == 16 and found.about["metrics"]["rms"]["doc"]
    assert json.loads(json.dumps(found.about)) == found.about
    assert Comparison.load(found.save(tmp_path)).records == found.records
    assert "| mine |" in found.table()


def test_traces_are_of_problems_in_the_plane_and_follow_the_path() -> None:
    found = quick({"a": problems.ring(), "b": problems.gaussian(3)}, ["ddim"], [5, 20], metrics=["rms"], paths=["lam", "t"])
    (trace,) = found.traces
    assert (trace.problem, trace.path, trace.budget) == ("a", "lam", 20)
    assert trace.x.shape == (21, 16, 2) and trace.times == make_path(VP(), "lam", 20).times


# Metrics, SDEs and conditions of the reader's own ---------------------------------------------------------------------


def test_a_function_is_a_metric_by_its_name_or_by_a_label() -> None:
    found = quick("ring", ["ddim", "ddpm"], [10], metrics=["energy", spread, gap])
    assert [(r.solver, r.metric) for r in found.records] == [
        (s, m) for s in ("ddim", "ddpm") for m in ("energy", "spread", "gap")
    ]
    assert all(0 < r.value < 3 and r.low == r.value == r.high for r in found.select(metric=["spread", "gap"]))
    assert found.about["metrics"]["spread"]["doc"] == "How wide the samples lie"
    labelled = quick("ring", ["ddim"], [10], metrics={"wide": lambda x: x.std(), "rms": MEASURES["rms"], "near": "rms"})
    wide, rms, near = labelled.records
    assert (wide.metric, wide.value) == ("wide", found.select(solver="ddim", metric="spread")[0].value)
    assert dataclasses.replace(near, metric="rms") == rms
    with_truth = quick(mixture().model(VP()), ["ddim"], [10], metrics=[spread, gap], shape=(2,))
    assert {r.metric for r in with_truth.records} == {"spread"}  # there is no truth


@pytest.mark.parametrize(
    ("metrics", "error", "says"),
    [
        ([lambda x: 0.0], ValueError, r"without a name; expected a mapping, such as metrics=\{'spread': function\}"),
        ({"a": lambda x, y, z: 0.0}, TypeError, "needs x, y, z; expected a function of samples"),
        ({"a": 3}, TypeError, "got 3 for a metric; expected a name, a Measure, or a function"),
        ([spread, scoresde.metrics.energy_distance, "rmse"], ValueError, "did you mean 'rms'"),
        ([spread, {"spread": gap}["spread"], partial(spread)], ValueError, "without a name"),
    ],
)
def test_what_is_no_metric_is_refused(metrics: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        quick("ring", ["ddim"], [5], metrics=metrics)


@pytest.mark.parametrize("wrong", [lambda x: x[3, 7], lambda x: {}["a"], lambda x: "no number", lambda x: x])
def test_a_metric_that_fails_is_a_record_that_says_why(wrong: Any) -> None:
    found = quick("ring", ["ddim"], [5], metrics={"wrong": wrong, "rms": "rms"}).records
    assert math.isnan(found[0].value) and "Error" in found[0].error and not found[1].error


def test_metrics_that_no_solver_can_have_are_refused_before_any_run() -> None:
    with pytest.raises(ValueError, match=r"no metric that applies .*rms needs reference"):
        quick("ring", ["ddpm"], [5], metrics=["rms"])
    with pytest.raises(ValueError, match=r"energy needs truth"):
        quick(mixture().model(VP()), ["ddpm"], [5], metrics=["energy"], shape=(2,))


@pytest.mark.slow
def test_a_comparison_on_several_sdes_is_that_on_each() -> None:
    names = ["vp", "ve: sigma_max=20.0", "ddpm"]
    found = quick(["ring", "grid"], ["ddim", "ddpm"], [5], metrics=["rms", "energy"], sde=names)
    assert found.named("sde") == ["VP", "ve: sigma_max=20.0", "DDPM"]
    assert len(found.records) == 3 * 2 * (1 + 2)
    for name, label in list(zip(names, found.named("sde"), strict=True))[1:]:
        alone = quick("ring", ["ddim", "ddpm"], [5], metrics=["rms", "energy"], sde=name)
        assert alone.records == found.select(sde=label, problem="ring")
    assert "### ring, ve: sigma_max=20.0: rms" in found.table("ring") and "### grid" not in found.table("ring")
    assert set(found.about["problems"]["grid"]["sdes"]) == set(found.named("sde"))
    assert quick("ring", ["ddim"], [5], metrics=["rms"], sde={"a": VP(), "b": VP()}).named("sde") == ["a", "b"]


@pytest.mark.parametrize(
    ("sde", "error", "says"),
    [
        ("vpp", ValueError, "did you mean 'vp'"),
        (["vp", VP()], ValueError, "two SDEs called 'VP'; expected a mapping"),
        ([], ValueError, "got no SDE"),
        (3, TypeError, "'int' object is not iterable|got int for an SDE"),
        ([3], TypeError, "got int for an SDE; expected a name"),
    ],
)
def test_what_is_no_sde_is_refused(sde: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        quick("ring", ["ddim"], [5], sde=sde)


class Labelled(nn.Module):
    """Exact for Gaussian data around (label, label)."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return label.to(x).reshape(-1, 1).expand_as(x) + 0 * x


def test_a_conditional_model_is_compared_under_its_conditions() -> None:
    model, labels = ScoreModel(Labelled(), VP(), "x0"), torch.arange(16)
    for end in ("flow", "denoise"):
        found = quick(model, ["ddim", "dpm-3m"], [10], metrics=["rms"], shape=(2,), conditions={"label": labels}, end=end)
        assert all(r.value < 1e-9 and not r.error for r in found.records)  # the flow to a point is followed exactly
    mean = {"mean": lambda x: x[:, 0].mean()}
    first = quick(model, ["ddim"], [10], metrics=mean, shape=(2,), conditions={"label": labels}, end="denoise")
    assert first.records[0].value == pytest.approx(7.5)
    with pytest.raises(TypeError, match="label"):
        quick(model, ["ddim"], [10], metrics=["rms"], shape=(2,))


def test_conditions_tell_comparisons_and_references_apart(tmp_path: Path) -> None:
    model = ScoreModel(Labelled(), VP(), "x0")
    ask = partial(quick, model, ["ddim"], [10], metrics=["rms"], shape=(2,), references=tmp_path / "references")
    for label in (torch.zeros(16), torch.ones(16)):
        assert ask(conditions={"label": label}).records[0].value < 1e-9
    assert len(list((tmp_path / "references").iterdir())) == 2
    ask(conditions={"label": torch.zeros(16)}, out=tmp_path / "out")
    with pytest.raises(ValueError, match=r"problems.ScoreModel on VP.conditions"):
        ask(conditions={"label": torch.ones(16)}, out=tmp_path / "out")


class Twice(ScoreModel):
    """A model that calls its network twice for a prediction."""

    calls = Calls(2)  # type: ignore[assignment]

    def x0(self, x: Tensor, t: Any, **conditions: Any) -> Tensor:
        return 0.5 * (super().x0(x, t, **conditions) + super().x0(x, t, **conditions))


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp-2m"])
def test_budgets_count_calls_of_the_network(name: str) -> None:
    once, twice = ScoreModel(Affine(2, 2), VP(), "v"), Twice(Affine(2, 2), VP(), "v")
    for budget in (20, 21, 40):
        (a,) = quick(once, [name], [budget // 2], metrics=[spread], shape=(2,)).records
        (b,) = quick(twice, [name], [budget], metrics=[spread], shape=(2,)).records
        assert a.steps == b.steps > 0


# In a second process, in a notebook, at any length --------------------------------------------------------------------

PROGRAMME = """
import math, torch
from scoresde import FunctionSDE, compare, problems
from scoresde.comparison import Case
from scoresde.solvers import Description, RowSolver, Data, multistep, stencil_rows
scale = 2.0
sde = FunctionSDE(lambda t: -scale * t**2, lambda t: torch.log(t) + 0.5 * math.log(scale))
mine = RowSolver(Description("mine", "exponential", "", order=2), lambda path: stencil_rows(Data(), multistep(2), path))
def wide(samples):
    return samples.std() * scale
found = compare("ring", [mine, "unipc-3", "sde-dpmpp-2m", "dopri5"], [5, 9], metrics=["rms", wide, "energy"],
                sde=sde, n=8, out="OUT", progress=False)
print(len(found.records))
"""


@pytest.mark.slow
def test_a_comparison_of_functions_continues_in_a_second_process(tmp_path: Path) -> None:
    programme, sizes = PROGRAMME.replace("OUT", str(tmp_path)), []
    for _ in range(2):
        run = subprocess.run([sys.executable, "-c", programme], capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        sizes.append((tmp_path / FILE).stat().st_size)
    assert sizes[0] == sizes[1]
    for before, after, named in (
        ("samples.std()", "samples.mean()", "metrics.wide"),
        ("scale = 2.0", "scale = 3.0", "problems.ring on FunctionSDE.model"),
    ):
        changed = programme.replace(before, after)
        other = subprocess.run([sys.executable, "-c", changed], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "holds a comparison with other arguments" in other.stderr and named in other.stderr


def test_a_comparison_shows_a_little_of_itself_in_a_notebook() -> None:
    records = [
        Record(p, s, "lam", n, n, n, m, 0.1, 0.1, 0.1, sde="VP")
        for p in "abcdefghij" for s in ("ddim", "heun") for n in range(5, 50) for m in ("rms", "energy")
    ]  # fmt: skip
    found = Comparison(tuple(records))
    assert len(repr(found)) < 300 and "2 solvers on 10 problems (a, b, c, d, ..)" in repr(found)
    assert found._repr_markdown_().count("### ") == 4 and "16 more tables" in found._repr_markdown_()
    assert repr(Comparison(())) == "<Comparison: 0 numbers of 0 solvers on 0 problems (none), by none>"


def test_a_comparison_on_a_chain_of_a_thousand_steps_comes_back() -> None:
    """Its schedule has a kink at each step, at which an integrator in time stops."""
    case = gather("ring", "ddpm")["ring", "DDPM"]
    arguments = {"conditions": None, "limit": 2000}
    start = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    on_chain = flow_end(case.model, start, make_path(case.sde, "lam", 5), **arguments)  # type: ignore[arg-type]
    assert float(on_chain.error.max()) < 1e-10
    found = quick("ring", ["dpm-3"], [60, 120], metrics=["rms"], sde="ddpm", n=4).records
    assert found[1].value < found[0].value / 5


# Peers ----------------------------------------------------------------------------------------------------------------

TWINS: dict[str, Solver] = {
    "k-diffusion/euler": solvers.ddim(),
    "k-diffusion/heun": solvers.heun("rho"),
    "k-diffusion/dpm-2": solvers.dpm_solver(2),
    "k-diffusion/lms": solvers.lms(),
    "k-diffusion/dpmpp-2m": solvers.dpmpp_2m(finish="same"),
    "k-diffusion/dpmpp-2s": solvers.dpmpp_2s(),
    "k-diffusion/dpmpp-3m": solvers.dpmpp_3m("k-diffusion"),
    "diffusers/ddim": solvers.ddim(),
    "diffusers/euler": solvers.ddim(),
    "diffusers/heun": solvers.heun("rho"),
    "diffusers/ipndm": solvers.ipndm(),
    "diffusers/plms": solvers.plms(),
    "diffusers/lms": solvers.lms(),
    "diffusers/dpmpp-2m": solvers.dpmpp_2m(finish="same"),  # its last move is the only one that is lowered
    "diffusers/dpmpp-2m-same": solvers.dpmpp_2m(finish="same"),
    "diffusers/dpmpp-3m-same": solvers.dpmpp_3m(finish="same"),
    "diffusers/dpm-2m": solvers.dpm_multistep(2),  # ours with the same 9 steps; theirs with fewer than 15
    "diffusers/dpm-2m-same": solvers.dpm_multistep(2, finish="same"),
    "diffusers/dpm-3m": solvers.dpm_multistep(3),
    "diffusers/dpm-3m-same": solvers.dpm_multistep(3, finish="same"),
    "diffusers/deis-2": solvers.deis(2, finish="lower-order"),
    "diffusers/deis-2-same": solvers.deis(2),
    "diffusers/deis-3": solvers.deis(3, finish="lower-order"),
    "diffusers/deis-3-same": solvers.deis(3),
    **{f"diffusers/unipc-{p}-{b}-same": solvers.unipc(p, b, finish="same") for p in (2, 3) for b in ("bh1", "bh2")},
}
"""Peers that are the same method as one of ours."""


def peer(name: str) -> Foreign:
    found = PEERS[name]
    if found.package in missing():
        pytest.skip(missing()[found.package])
    return found


def run(solver: Solver, sde: str, steps: int = 9, end: str = "flow") -> Samples:
    case = Case.of(mixture(), SDES[sde])
    x = float(case.sde.sigma(case.t_max)) * torch.randn(
        8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    path = make_path(case.sde, "karras", steps, t_max=case.t_max, end=end)
    return sample(case.model, x, solver, path=path, seed=range(8), progress=False)


@pytest.mark.parametrize("sde", ["VP", "EDM", "RectifiedFlow"])
@pytest.mark.parametrize("name", TWINS)
def test_a_peer_equals_our_solver_of_the_same_method(name: str, sde: str) -> None:
    theirs, ours = run(peer(name), sde), run(TWINS[name], sde)
    assert theirs.evaluations == ours.evaluations
    # diffusers computes in float32 where it says so
    torch.testing.assert_close(theirs.x, ours.x, rtol=0, atol=1e-9 if name.startswith("k-") else 2e-4)


LOWERED = [name.removesuffix("-same") for name in PEERS if name.endswith("-same")]


@pytest.mark.parametrize("end", ["denoise", "stop"])
@pytest.mark.parametrize("name", LOWERED)
def test_a_peer_at_its_defaults_lowers_its_last_steps_where_its_code_says_so(name: str, end: str) -> None:
    """DPM-Solver and DEIS with fewer than fifteen steps, UniPC with any; the step to zero, lowered first, is ours."""
    default, same = (partial(run, peer(n), "VP", end=end) for n in (name, f"{name}-same"))
    unipc, by_two = "unipc" in name, name in ("diffusers/dpmpp-2m", "diffusers/unipc-2-bh1", "diffusers/unipc-2-bh2")
    for steps in (9, 40):
        equal = torch.equal(default(steps=steps).x, same(steps=steps).x)
        assert equal == ((steps == 40 and not unipc) or (by_two and end == "denoise"))


@pytest.mark.parametrize("name", ["diffusers/deis-3", "diffusers/dpm-2m", "diffusers/dpm-3m"])
def test_the_last_step_of_a_peer_at_its_defaults_is_of_first_order_where_the_path_stops(name: str) -> None:
    case, path = Case.of(mixture()), make_path(VP(), "karras", 9, end="stop")
    seen: list[Tensor] = []
    x = run(peer(name), "VP", end="stop").x

    def note(m: Tensor, t: Any) -> Tensor:
        seen.append(m.clone())
        return m

    start = float(case.sde.sigma(case.t_max)) * torch.randn(
        8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sample(case.model, start, peer(name), path=path, seed=range(8), progress=False, transform=note)
    u, v = path.points[-2:]
    # DDIM's step from the state before, which is read off the prediction there: x_v = a x_u + w D, so x_u = (x_v - w D) / a.
    a, w = v.sigma / u.sigma, v.alpha - u.alpha * v.sigma / u.sigma
    before = (x - w * seen[-1]) / a
    torch.testing.assert_close(case.model.x0(before, u.t), seen[-1], rtol=0, atol=2e-4)


@cache
def exact_end() -> Tensor:
    return run(solvers.rk45(1e-10, 1e-10, "DOP853"), "VP").x


@pytest.mark.parametrize("name", [n for n, p in PEERS.items() if not p.stochastic and p.rtol is None])
def test_a_peer_converges_to_the_flow(name: str) -> None:
    method = peer(name)
    errors = [float((run(method, "VP", n).x - exact_end()).norm()) for n in (20, 80)]
    assert errors[1] < errors[0] / 3.5 and errors[1] < 0.2


@pytest.mark.parametrize("name", [n for n, p in PEERS.items() if p.stochastic])
def test_a_stochastic_peer_draws_from_the_seeds_it_is_given(name: str) -> None:
    method = peer(name)
    first, again = run(method, "VP"), run(method, "VP")
    torch.testing.assert_close(first.x, again.x, rtol=0, atol=0)
    model, x = Case.of(mixture()).model, torch.ones(2, 2, dtype=torch.float64)
    other = sample(model, x, method, 9, seed=[5, 6], progress=False).x
    assert not torch.allclose(other, sample(model, x, method, 9, seed=[7, 8], progress=False).x)


def test_peers_are_drawn_beside_ours_and_absent_ones_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "diffusers" else real(name, *a))
    peer("k-diffusion/euler")
    found = quick("gaussian", ["ddim"], [5], metrics=["energy"], peers=True)
    assert {r.package for r in found.records} == {"scoresde", "k-diffusion", "torchsde"}
    assert any("pip install --no-deps diffusers" in note for note in found.about["notes"])


def test_a_foreign_solver_refuses_to_start_where_it_cannot() -> None:
    path = make_path(SDES["RectifiedFlow"], "lam", 5)
    with pytest.raises(ValueError, match=r"cannot start at alpha = 0 .* take a smaller t_max"):
        sample(Case.of(mixture(), SDES["RectifiedFlow"]).model, (2, 2), spying([], "a"), path=path, progress=False)
