"""Series: imputation, forecasts and their score, beside a Gaussian process whose conditionals are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scoresde
from scoresde import VP, CosineVP, ScoreModel, plots, problems, systems
from scoresde.metrics import crps, gaussian_crps
from scoresde.models import UNet

QUIET: dict[str, Any] = {"progress": False}
PROCESS = problems.gaussian_process((2, 6), (1.5, 3.0))
NAN = math.nan
SERIES = torch.tensor([[0.5, NAN, 1.0, NAN, NAN, -0.3], [NAN, NAN, 0.2, 0.1, NAN, NAN]], dtype=torch.float64)


# The score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std", "y"), [(0.0, 1.0, 0.0), (0.3, 2.0, -1.5), (1.0, 0.01, 5.0), (-2.0, 1e3, 4.0)])
def test_the_closed_form_is_the_integral(mean: float, std: float, y: float) -> None:
    """CRPS = integral of (F(x) - 1[x >= y])^2."""
    law = scipy.stats.norm(mean, std)
    low, peak = mean - 12 * std, [mean]
    below = scipy.integrate.quad(lambda x: law.cdf(x) ** 2, low, y, points=peak if mean < y else None, limit=500)
    high = max(y, mean) + 12 * std
    above = scipy.integrate.quad(lambda x: law.sf(x) ** 2, y, high, points=peak if mean > y else None, limit=500)
    found = gaussian_crps(torch.tensor(mean), torch.tensor(std, dtype=torch.float64), torch.tensor(y)).item()
    assert found == pytest.approx(below[0] + above[0], rel=1e-5)


@given(n=st.integers(2, 7), seed=st.integers(0, 999), fair=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_score_of_samples_is_its_definition(n: int, seed: int, fair: bool) -> None:
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = torch.tensor([0.0, 0.5, -3.0], dtype=torch.float64)
    pairs = (x[:, None] - x).abs().sum((0, 1)) / (n * (n - 1 if fair else n))
    torch.testing.assert_close(crps(x, y, fair=fair), (x - y).abs().mean(0) - pairs / 2)


def test_the_fair_score_is_unbiased_and_the_other_is_not() -> None:
    """Of three samples of the law of y itself: s / sqrt(pi), and s / sqrt(pi) (1 + 1/3) for the empirical distribution."""
    g = torch.Generator().manual_seed(0)
    x, y = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((3, 200_000), (200_000,)))
    for fair, wanted in ((True, 1.0), (False, 4 / 3)):
        values = crps(x, y, fair=fair)
        error = 5 * float(values.std()) / math.sqrt(len(values))
        assert float(values.mean()) == pytest.approx(wanted / math.sqrt(math.pi), abs=error)
    closed = gaussian_crps(torch.zeros(1), torch.ones(1), y)
    assert float(closed.mean()) == pytest.approx(1 / math.sqrt(math.pi), abs=5 * float(closed.std()) / math.sqrt(len(y)))


# Imputation and forecasts --------------------------------------------------------------------------------------------


def conditional(series: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of the missing values, by Schur's complement."""
    flat, cov = series.flatten(), PROCESS.covariance
    known = ~flat.isnan()
    gain = cov[~known][:, known] @ torch.linalg.inv(cov[known][:, known])
    return gain @ flat[known], cov[~known][:, ~known] - gain @ cov[known][:, ~known]


def test_imputation_has_the_conditional_law_of_the_missing_values() -> None:
    n = 2000
    x = systems.impute(PROCESS.model(CosineVP()), SERIES, draws=n, by="tmpd", steps=30, dtype=torch.float64, **QUIET)
    mean, cov = conditional(SERIES)
    missing = SERIES.flatten().isnan()
    found = x.flatten(1)[:, missing]
    assert float((x.flatten(1)[:, ~missing] - SERIES.flatten()[~missing]).abs().max()) < 1e-2
    std = cov.diagonal().sqrt()
    assert float(((found.mean(0) - mean) / std).abs().max()) < 5 / math.sqrt(n) + 0.02  # and the error of 30 steps
    assert float((found.T.cov() - cov).abs().max()) < 5 * math.sqrt(2 / n)


@pytest.mark.slow
def test_the_score_of_an_exact_forecast_is_its_expectation() -> None:
    """The mean over truths of the CRPS is s / sqrt(pi), s the standard deviation given the history."""
    process, n = problems.gaussian_process((1, 4), (0, 3.0)), 40
    truth = process.sample(n, torch.Generator().manual_seed(1), torch.float64)
    x = systems.forecast(process.model(CosineVP()), truth[..., :3], 4, 30, by="tmpd", steps=12, dtype=torch.float64, **QUIET)
    scores = crps(x, truth)[:, 0, 3]
    s = math.sqrt(1 - math.exp(-2 / 3))  # a Markov chain with correlation exp(-1/3)
    assert float(scores.mean()) == pytest.approx(s / math.sqrt(math.pi), abs=5 * float(scores.std()) / math.sqrt(n))
    assert float(scores.std()) > 0


def test_each_series_has_a_mask_and_seeds_of_its_own() -> None:
    model, other = PROCESS.model(VP()), SERIES.flip(1)
    both = systems.impute(model, torch.stack([SERIES, other]), draws=4, steps=5, dtype=torch.float64, **QUIET)
    assert both.shape == (4, 2, 2, 6)
    seeds = scoresde.solvers.sample_seeds(0, 2)
    alone = systems.impute(model, other[None], draws=3, steps=5, dtype=torch.float64, seed=seeds[1:], **QUIET)
    torch.testing.assert_close(alone[:, 0], both[:3, 1])
    masked = systems.impute(model, SERIES.nan_to_num(7.0), ~SERIES.isnan(), 4, steps=5, dtype=torch.float64, **QUIET)
    torch.testing.assert_close(masked, both[:, 0])


def test_a_network_of_series_is_trained_and_fills() -> None:
    model = ScoreModel(UNet(2, 8, (1, 2), dims=1, lean=True, blocks=1), VP(), "v")
    fitted = scoresde.fit(model, PROCESS.sample(16, torch.Generator().manual_seed(0)), steps=2, batch_size=8, **QUIET)
    x = systems.forecast(fitted.model, torch.zeros(2, 4), 6, 3, steps=3, **QUIET)
    assert x.shape == (3, 2, 6) and float(x[..., :4].abs().max()) < 1e-5 and bool(torch.isfinite(x).all())


def test_bands_hold_their_share_of_the_draws() -> None:
    x = torch.arange(101.0).reshape(101, 1, 1).expand(101, 2, 5)
    figure = plots.quantile_bands(x, torch.full((2, 5), 50.0), torch.eye(5)[:2] > 0, levels=(0.5, 0.9), title="bands")
    assert len(figure.axes) == 2
    wide, narrow = (c.get_paths()[0].get_extents() for c in figure.axes[0].collections)
    assert (wide.y0, wide.y1) == pytest.approx((5, 95), abs=1e-3)
    assert (narrow.y0, narrow.y1) == pytest.approx((25, 75), abs=1e-3)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50.0] * 5


MODEL = PROCESS.model(VP())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: systems.impute(MODEL, torch.zeros(6)), r"series of shape \(6,\)"),
        (lambda: systems.impute(MODEL, torch.zeros(2, 6).long()), "dtype torch.int64"),
        (lambda: systems.impute(MODEL, torch.full((2, 6), NAN)), "series 0 with 0 known values"),
        (lambda: systems.impute(MODEL, torch.full((2, 6), math.inf)), "of which 0 are finite"),
        (lambda: systems.impute(MODEL, SERIES, torch.ones(2, 5)), r"mask of shape \(2, 5\)"),
        (lambda: systems.impute(MODEL, SERIES, draws=0), "draws"),
        (lambda: systems.forecast(MODEL, torch.zeros(2, 6), 6), "history of 6 values to continue to 6"),
        (lambda: systems.forecast(MODEL, torch.zeros(2, 0), 6), "history of 0 values"),
        (lambda: systems.forecast(MODEL, torch.zeros(2, 3), 7, 2, progress=False), "shape"),
        (lambda: crps(torch.zeros(1, 3), torch.zeros(3)), "one sample for a fair score"),
        (lambda: crps(torch.zeros(4, 3), torch.zeros(2)), r"y of shape \(2,\)"),
        (lambda: crps(torch.zeros(0, 3), torch.zeros(3)), r"samples of shape \(0, 3\)"),
        (lambda: crps(torch.full((4, 3), NAN), torch.zeros(3)), "expected finite numbers"),
        (lambda: gaussian_crps(torch.zeros(1), torch.zeros(1), torch.zeros(1)), "standard deviation of 0.0"),
        (lambda: plots.quantile_bands(torch.zeros(4, 3)), r"draws of shape \(4, 3\)"),
        (lambda: plots.quantile_bands(torch.zeros(4, 1, 3), truth=torch.zeros(3)), r"truth of shape \(3,\)"),
        (lambda: plots.quantile_bands(torch.zeros(4, 1, 3), levels=(1.5,)), "shares between 0 and 1"),
    ],
)
def test_refusals(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
