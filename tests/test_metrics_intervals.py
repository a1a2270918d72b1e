"""Confidence intervals by how often they hold what they should; the errors and costs that they are made for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.nn.functional import one_hot

from scoresde.metrics import (
    Estimate,
    covariance_error,
    energy_distance,
    energy_estimate,
    error_quantile,
    frechet_distance,
    frechet_estimate,
    jackknife,
    kernel_distance_estimate,
    mean_error,
    mean_estimate,
    mmd,
    mmd_estimate,
    mode_weight_error,
    negative_log_likelihood,
    peak_memory,
    quantile_estimate,
    rms_error,
    seconds_per_evaluation,
    sliced_wasserstein,
    sliced_wasserstein_estimate,
    wasserstein_estimate,
)

SEEDS = st.integers(0, 2**31)
RUNS = 300


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# Coverage -------------------------------------------------------------------------------------------------------------

DEVIATIONS = torch.tensor([1.0, 2.0], dtype=torch.float64)
TRUE = torch.zeros(2, dtype=torch.float64), torch.diag(DEVIATIONS**2)
MODES = 4


def modes(g, weights):
    k = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 200, replacement=True, generator=g)
    return mode_weight_error(one_hot(k, MODES), torch.full((MODES,), 1 / MODES))


def two_sets(estimate):
    """The estimate between N(shift, I) and N(0, I), in the plane."""
    return lambda g, shift: estimate(draw(g, 60, 2) + shift, draw(g, 80, 2))


# What is drawn, and the true value; None for the mean over many draws, where the statistic is biased, or has no closed form.
COVERAGE = {
    "mean": (lambda g: mean_estimate(draw(g, 20)), 0.0),
    "jackknife": (lambda g: jackknife(torch.mean, draw(g, 50)), 0.0),
    "rms": (lambda g: rms_error(draw(g, 100, 2), torch.zeros(100, 2)), 1.0),
    "median": (lambda g: error_quantile(draw(g, 100, 1), torch.zeros(100, 1)), stats.norm.ppf(0.75)),
    "q95": (lambda g: error_quantile(draw(g, 200, 1), torch.zeros(200, 1), 0.95), stats.norm.ppf(0.975)),
    "mean, right": (lambda g: mean_error(draw(g, 100, 2) * DEVIATIONS, *TRUE), 0.0),
    "mean, close": (lambda g: mean_error(draw(g, 100, 2) * DEVIATIONS + 0.1, *TRUE), math.sqrt(0.02 / 5)),
    "mean, far": (lambda g: mean_error(draw(g, 100, 2) * DEVIATIONS + 1, *TRUE), math.sqrt(2 / 5)),
    "covariance, right": (lambda g: covariance_error(draw(g, 100, 2) * DEVIATIONS, *TRUE), 0.0),
    "covariance, far": (lambda g: covariance_error(draw(g, 100, 2) * DEVIATIONS * 1.5, *TRUE), 1.25),
    "modes, right": (lambda g: modes(g, [0.25] * 4), None),
    "modes, far": (lambda g: modes(g, [0.4, 0.3, 0.2, 0.1]), None),
    "nll": (
        lambda g: negative_log_likelihood(lambda x: -0.5 * x.square().sum(1), 1.3 * draw(g, 50, 2), draw(g, 70, 2)),
        0.5 * (1.3**2 - 1),
    ),
    "time": (lambda g: seconds_per_evaluation((1 + draw(g, 30).abs()).tolist(), 10), 0.1 * (1 + stats.norm.ppf(0.75))),
}
DISTANCES = {
    "energy": energy_estimate,
    "mmd": lambda x, y: mmd_estimate(x, y, widths=[1.0]),
    "kid": lambda x, y: mmd_estimate(x, y, "polynomial"),
    "frechet": frechet_estimate,
}
for name, distance in DISTANCES.items():
    for shift in (0.0, 1.5) if name == "frechet" else (0.0, 0.3, 1.5):
        unbiased = shift == 0 and name != "frechet"
        COVERAGE[f"{name} {shift}"] = (lambda g, d=distance, s=shift: two_sets(d)(g, s), 0.0 if unbiased else None)


@pytest.mark.parametrize("case", COVERAGE)
@pytest.mark.slow
def test_intervals_of_95_percent_hold_the_true_value_95_times_in_a_hundred(case):
    estimate, true = COVERAGE[case]
    g = seeded(1)
    found = [estimate(g) for _ in range(RUNS)]
    true = math.fsum(e.value for e in found) / RUNS if true is None else true
    held = sum(e.low <= true <= e.high for e in found)
    assert all(e.low <= e.value <= e.high for e in found)
    # Three standard deviations of a binomial count around the bounds that are good enough.
    margin = 3 * math.sqrt(RUNS * 0.95 * 0.05)
    assert 0.925 * RUNS - margin < held < 0.985 * RUNS + 0.5 * margin, held / RUNS


def test_the_interval_of_the_sliced_distance_holds_its_mean_over_samples_and_directions():
    for shift in (0.0, 1.5):
        g = seeded(2)
        found = [
            sliced_wasserstein_estimate(draw(g, 40, 2) + shift, draw(g, 50, 2), 16, generator=g) for _ in range(RUNS // 2)
        ]
        true = math.fsum(e.value for e in found) / len(found)
        assert 0.89 < sum(e.low <= true <= e.high for e in found) / len(found) < 0.995


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_the_interval_of_the_wasserstein_distance_holds_its_mean_over_samples(shift):
    g = seeded(2)
    found = [wasserstein_estimate(draw(g, 60, 2), 1.5 * draw(g, 60, 2) + shift) for _ in range(150)]
    true = math.sqrt(math.fsum(e.value**2 for e in found) / len(found))
    assert all(e.low <= e.value <= e.high for e in found)
    # Exact intervals hold it 142.5 times, with a standard deviation of 2.7; potentials of few samples vary a little less.
    assert 0.85 < sum(e.low <= true <= e.high for e in found) / len(found) < 0.995


@pytest.mark.parametrize("case", ["mean", "rms", "median", "energy 0.3", "covariance, far", "frechet 1.5"])
def test_intervals_of_more_confidence_are_longer_and_of_more_samples_shorter(case):
    x, y = draw(seeded(3), 400, 2), draw(seeded(4), 400, 2) + 0.5
    estimates = {
        "mean": lambda x, y, c: mean_estimate(x[:, 0], c),
        "rms": lambda x, y, c: rms_error(x, y, c),
        "median": lambda x, y, c: error_quantile(x, y, 0.5, c),
        "energy 0.3": lambda x, y, c: energy_estimate(x, y, c),
        "covariance, far": lambda x, y, c: covariance_error(1.5 * x, torch.zeros(2), torch.eye(2), c),
        "frechet 1.5": lambda x, y, c: frechet_estimate(x, y, c),
    }
    few, usual, sure = (estimates[case](x[:n], y[:n], c) for n, c in ((100, 0.95), (400, 0.95), (400, 0.999)))
    lengths = [e.high - e.low for e in (usual, few, sure)]
    assert lengths[1] > 1.4 * lengths[0] and lengths[2] > 1.2 * lengths[0] > 0


# Closed forms ---------------------------------------------------------------------------------------------------------


@given(st.integers(2, 60), SEEDS, st.floats(0.5, 0.999))
def test_the_interval_of_a_mean_is_that_of_scipy(n, seed, confidence):
    x = draw(seeded(seed), n)
    found = mean_estimate(x, confidence)
    expected = stats.ttest_1samp(x.numpy(), 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-9)


@given(st.integers(10, 200), SEEDS, st.floats(0.2, 0.8))
def test_the_interval_of_a_quantile_is_that_of_scipy(n, seed, q):
    x = draw(seeded(seed), n)
    found = quantile_estimate(x, q)
    expected = stats.quantile_test(x.numpy(), p=q).confidence_interval(0.95)
    for ours, theirs in ((found.low, expected.low), (found.high, expected.high)):
        # SciPy says NaN where there is no end.
        assert ours == pytest.approx(theirs) or (math.isinf(ours) and math.isnan(theirs))
    assert found.value == pytest.approx(np.quantile(x.numpy(), q))


@given(st.integers(2, 30), st.integers(1, 4), SEEDS)
def test_rms_and_quantiles_are_their_definitions_and_zero_only_for_equal_states(n, d, seed):
    x, y = draw(seeded(seed), n, d, 2), draw(seeded(seed + 1), n, d, 2)
    errors = np.sqrt(((x - y).numpy() ** 2).mean((1, 2)))
    assert rms_error(x, y).value == pytest.approx(np.sqrt((errors**2).mean()))
    assert error_quantile(x, y, 0.3).value == pytest.approx(np.quantile(errors, 0.3))
    assert rms_error(3 * x, 3 * y).high == pytest.approx(3 * rms_error(x, y).high)
    assert rms_error(x, x) == Estimate.exact(0.0)


@given(st.integers(4, 30), st.integers(1, 4), SEEDS)
def test_moment_errors_are_unbiased_sums_over_pairs(n, d, seed):
    g = seeded(seed)
    x, mean, a = draw(g, n, d) * 3, draw(g, d), draw(g, d, d)
    c = a @ a.T
    z = (x - mean).numpy()
    outer = z[:, :, None] * z[:, None, :] - c.numpy()
    for estimate, features, scale in (
        (mean_error, z, np.sqrt(np.trace(c))),
        (covariance_error, outer.reshape(n, -1), np.linalg.norm(c)),
    ):
        pairs = [features[i] @ features[j] for i in range(n) for j in range(n) if i != j]
        expected = np.sqrt(max(np.mean(pairs), 0)) / scale
        assert estimate(x, mean, c).value == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.integers(4, 20), st.integers(4, 20), SEEDS)
def test_the_estimates_hold_the_values_of_the_distances(n, m, seed):
    g = seeded(seed)
    x, y = draw(g, n, 2), draw(g, m, 2) + 0.5
    pairs = {
        energy_distance(x, y): energy_estimate(x, y),
        mmd(x, y): mmd_estimate(x, y),
        frechet_distance(x, y): frechet_estimate(x, y),
        sliced_wasserstein(x, y, 8, generator=seeded(0)): sliced_wasserstein_estimate(x, y, 8, generator=seeded(0)),
    }
    for value, found in pairs.items():
        assert found.value == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_the_variance_of_pairs_is_that_of_many_draws(shift):
    g = seeded(5)
    found = [energy_estimate(draw(g, 30, 2) + shift, draw(g, 40, 2)) for _ in range(2 * RUNS)]
    spread = torch.tensor([e.value for e in found]).std().item()
    # The product of the two arms of an interval is z^2 times the variance that the estimate itself would have.
    arms = math.fsum(math.sqrt((e.value - e.low) * (e.high - e.value)) for e in found) / len(found)
    assert arms / (stats.norm.ppf(0.975) * spread) == pytest.approx(1, abs=0.12)


def test_mode_weights_count_what_is_missing():
    responsibilities = one_hot(torch.tensor([0, 0, 1, 1]), 3)
    assert mode_weight_error(responsibilities, torch.tensor([0.5, 0.5, 0.0])).value == 0
    assert mode_weight_error(responsibilities, torch.tensor([0.0, 0.0, 1.0])).value == 1
    assert mode_weight_error(responsibilities, torch.tensor([0.25, 0.5, 0.25])).value == 0.25


# Cost -----------------------------------------------------------------------------------------------------------------


def test_peak_memory_counts_what_is_held_at_once_and_nothing_twice():
    before = torch.zeros(5000)
    with peak_memory() as peak:
        x = torch.zeros(1000, dtype=torch.float64)
        x.add_(1).view(10, 100).T.mul_(2)  # in place, and views
        y = x + 1
        del x
        before.add_(1)
        z = y[:10] * y[10:20]
    assert peak.bytes == 8 * 2000
    assert z.sum() == 90
    with peak_memory() as other:
        _ = torch.zeros(7, dtype=torch.float32)
    assert (other.bytes, peak.bytes) == (28, 16000)


def test_peak_memory_is_kept_where_the_block_fails():
    with pytest.raises(RuntimeError, match="on purpose"), peak_memory() as peak:
        _ = torch.zeros(10, dtype=torch.float64)
        raise RuntimeError("on purpose")
    assert peak.bytes == 80


def test_few_times_span_their_interval_and_one_has_none():
    assert seconds_per_evaluation([2.0], 4) == Estimate.exact(0.5)
    assert seconds_per_evaluation([3.0, 1.0, 2.0], 1) == Estimate(2.0, 1.0, 3.0)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_refused():
    x = torch.zeros(5, 2)
    with pytest.raises(ValueError, match=r"got samples of shape \(5, 2\) and their references of shape \(4, 2\)"):
        rms_error(x, x[:4])
    with pytest.raises(ValueError, match=r"expected \(n, \*event\) with n >= 2, event and \(2, 2\)"):
        mean_error(x, torch.zeros(3), torch.eye(3))
    with pytest.raises(ValueError, match=r"got responsibilities of shape \(5, 2\) and weights of shape \(3,\)"):
        mode_weight_error(x, torch.ones(3))
    with pytest.raises(ValueError, match="got q=1; expected a number between 0 and 1"):
        error_quantile(x, x, 1)
    with pytest.raises(ValueError, match=r"got confidence=95; expected a number between 0 and 1"):
        rms_error(x + 1, x, 95)
    with pytest.raises(ValueError, match=r"got values of shape \(1,\); expected \(n,\), one for each of at least two"):
        mean_estimate(torch.zeros(1))
    with pytest.raises(ValueError, match="got 1 groups; expected at least 2"):
        jackknife(torch.mean, torch.zeros(1))
    with pytest.raises(ValueError, match="got 0 times of 5 evaluations; expected at least one of each"):
        seconds_per_evaluation([], 5)
    assert kernel_distance_estimate(x, lambda a, b: a @ b.T) == Estimate.exact(0.0)
