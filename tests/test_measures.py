"""The table of measures: what each needs, that it sees what it is for, and what it says of exact samples."""

import math
from dataclasses import replace

import pytest
import torch
from support import SDES, mixture

from scoresde import VP, metrics, problems
from scoresde.comparison.measures import MEASURES, Run
from scoresde.problems import Gaussian, GaussianMixture

N = 200


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def a_run(problem=None, sde=None, t=0.0, **changes):
    """A run of exact samples: all distances are those of two sets from one distribution."""
    problem, sde = mixture() if problem is None else problem, VP() if sde is None else sde
    end, truth = (problem.sample(N, generator(s), torch.float64) for s in (1, 2))
    if t > 0:
        end, truth = (sde.perturb(x, t, torch.randn(x.shape, generator=generator(3), dtype=x.dtype)) for x in (end, truth))
    run = Run(
        problem=problem,
        model=problem.model(sde),
        sde=sde,
        start=torch.zeros_like(end),
        end=end,
        reference=end.clone(),
        truth=truth,
        strong=end.clone(),
        evaluations=10,
        seconds=0.5,
        stochastic=False,
        generator=generator(4),
        t=t,
        memory=2**20,
    )
    return replace(run, **changes)


def values(run):
    return {name: run.estimate(m).value for name, m in MEASURES.items() if m.needs <= run.has}


def test_every_measure_has_a_row_that_says_what_it_is():
    for name, measure in MEASURES.items():
        assert measure.name == name
        assert measure.better in ("lower", "zero")
        assert measure.doc and not measure.doc.endswith(".")


def test_a_full_run_has_all_that_any_measure_needs():
    assert a_run().has == frozenset().union(*(m.needs for m in MEASURES.values()))
    assert set(values(a_run())) == set(MEASURES)


@pytest.mark.parametrize("need", ["reference", "strong", "truth", "memory"])
def test_a_run_without_something_cannot_be_measured_by_it(need):
    run = a_run(**{need: None})
    assert need not in run.has
    for measure in (m for m in MEASURES.values() if need in m.needs):
        with pytest.raises(ValueError, match=rf"needs .*{need}.*the run has no {need}; take another measure"):
            run.estimate(measure)


def test_what_a_problem_cannot_tell_is_not_there():
    points = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], 0.0)  # no density
    assert a_run(points).has & {"log_prob", "modes", "moments"} == {"moments"}
    assert a_run(points, t=0.1).has & {"log_prob", "modes", "moments"} == {"log_prob", "modes", "moments"}
    assert "modes" not in a_run(Gaussian([0.0, 0.0], 1.0)).has
    assert not a_run(problem=None).has - a_run().has
    unknown = replace(a_run(), problem=None)
    assert unknown.has == {"reference", "strong", "truth", "memory"}


@pytest.mark.parametrize("t", [0.0, 0.3])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_exact_samples_are_at_zero_distance_wherever_the_run_ends(sde, t):
    run = a_run(sde=sde, t=t * sde.span[1])
    for name in ("energy", "mmd", "kid", "mean", "covariance", "nll"):
        found = run.estimate(MEASURES[name])
        half = 0.5 * (found.high - found.low)  # 95 % of many are not all: one is doubled
        assert found.low - half <= 0 <= found.high + half, name
    assert run.estimate(MEASURES["mode-weights"]).value < 0.1
    # One floor for all: the square root of what a coordinate's mean varies by.
    size = math.sqrt(run.end.var(0).sum() / N)
    assert run.estimate(MEASURES["sliced-wasserstein"]).value < 3 * size


SEES = {
    "shifted": (lambda x: x + 0.5, {"rms", "median", "q95", "strong", "mean", "covariance", "nll"}),
    "shrunk": (lambda x: 0.5 * x, {"rms", "median", "q95", "strong", "covariance"}),
    "one mode": (lambda x: x[:1] + 0.1 * (x - x[:1]), {"mode-weights", "covariance", "mean"}),
}
DISTANCES = {"sliced-wasserstein", "energy", "mmd", "frechet"}


@pytest.mark.parametrize("damage", SEES)
def test_measures_see_the_damage_that_they_are_for(damage):
    spoil, seen = SEES[damage]
    run = a_run()
    before, after = run, replace(run, end=spoil(run.end))
    for name in seen | DISTANCES:
        low, high = after.estimate(MEASURES[name]).low, before.estimate(MEASURES[name]).high
        assert low > high, name


def test_values_are_those_of_the_metrics():
    run = a_run()
    run = replace(run, end=1.3 * run.end)
    found = values(run)
    assert found["rms"] == pytest.approx(0.3 / 1.3 * run.end.square().mean().sqrt().item())
    assert found["energy"] == pytest.approx(metrics.energy_distance(run.end, run.truth).item())
    assert found["frechet"] == pytest.approx(metrics.frechet_distance(run.end, run.truth).item())
    assert found["nll"] == pytest.approx(
        0.5 * (run.problem.log_prob(run.truth).mean() - run.problem.log_prob(run.end).mean()).item()
    )
    assert (found["time"], found["memory"]) == (0.05, 1.0)
    timed = replace(run, repeats=(0.7, 0.6)).estimate(MEASURES["time"])
    assert (timed.value, timed.low, timed.high) == pytest.approx((0.06, 0.05, 0.07))


def test_distances_are_taken_among_features_where_there_are_any():
    run = a_run()
    seen = replace(run, features=lambda x: x.flatten(1)[:, :1], end=run.end + torch.tensor([0.0, 5.0]))
    for name in ("energy", "mmd", "kid", "frechet"):
        found = seen.estimate(MEASURES[name])
        assert found.value < 0.1  # blind to the second coordinate
        assert replace(seen, features=None).estimate(MEASURES[name]).value > 10 * abs(found.value)


@pytest.mark.parametrize("name", ["grid", "moons"])
def test_the_probabilities_of_modes_are_those_of_bayes(name):
    problem = problems.PROBLEMS[name]()
    run = a_run(problem)
    # From samples with labels: each mode's share of the draws.
    assert run.estimate(MEASURES["mode-weights"]).value < 3 * math.sqrt(len(problem.means) / N)
    missing = replace(run, end=run.end[run.end[:, 0] > 0])
    assert missing.estimate(MEASURES["mode-weights"]).value == pytest.approx(0.5 if name == "moons" else 0.45, abs=0.1)
