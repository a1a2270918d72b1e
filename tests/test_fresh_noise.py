"""Fresh noise: normal, independent between samples and draws, and a sample's own."""

import numpy as np
import pytest
import torch
from scipy import stats

from scoresde.solvers import FreshNoise, sample_seeds
from scoresde.solvers.noise.fresh import SMALL, counted_normal

F64 = torch.float64
CPU = torch.device("cpu")
EVENTS = [(1,), (2,), (3,), (SMALL,), (SMALL + 1,), (3, 8, 8)]


def draws(seeds: list[int], event: tuple[int, ...], n: int, dtype: torch.dtype = F64) -> torch.Tensor:
    """``n`` draws after one another, shape ``(n, batch, *event)``."""
    noise = FreshNoise(seeds, CPU)
    return torch.stack([noise.normal(torch.empty(len(seeds), *event, dtype=dtype)) for _ in range(n)])


@pytest.mark.parametrize("event", EVENTS, ids=str)
def test_a_sample_has_its_own_numbers_whatever_its_batch(event: tuple[int, ...]) -> None:
    seeds = [3, 2**63 - 1, 0, 17]
    together = draws(seeds, event, 3)
    for i, seed in enumerate(seeds):
        assert torch.equal(draws([seed], event, 3)[:, 0], together[:, i])
    assert torch.equal(draws(seeds[::-1], event, 3), together.flip(1))


@pytest.mark.parametrize("event", EVENTS, ids=str)
@pytest.mark.parametrize("seeds", ["derived", "consecutive", "high bits"])
def test_the_numbers_are_normal(event: tuple[int, ...], seeds: str) -> None:
    n = max(2, 20_000 // int(np.prod(event)))
    listed = {"derived": sample_seeds(0, n), "consecutive": list(range(n)), "high bits": [i << 40 for i in range(n)]}[seeds]
    x = draws(listed, event, 2).flatten().numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert abs(x.mean()) < 4.5 / np.sqrt(x.size) and abs(x.var() - 1) < 4.5 * np.sqrt(2 / x.size)
    assert abs((x**3).mean()) < 4.5 * np.sqrt(15 / x.size) and abs((x**4).mean() - 3) < 4.5 * np.sqrt(96 / x.size)


@pytest.mark.parametrize("seeds", ["derived", "consecutive", "high bits"])
def test_numbers_are_independent_of_each_other(seeds: str) -> None:
    """Within an event, between draws, and between samples: correlations of values and of squares, and runs."""
    n, d = 4000, 4
    listed = {"derived": sample_seeds(1, n), "consecutive": list(range(n)), "high bits": [i << 40 for i in range(n)]}[seeds]
    x = draws(listed, (d,), 3).permute(1, 0, 2).reshape(n, 3 * d).numpy()  # a row for each sample
    for values in (x, x**2, np.sign(x)):
        between = np.corrcoef(values.T) - np.eye(3 * d)
        assert np.abs(between).max() < 4.5 / np.sqrt(n)
        following = np.corrcoef(values[:-1].T, values[1:].T)[: 3 * d, 3 * d :]  # a sample and the one after it
        assert np.abs(following).max() < 4.5 / np.sqrt(n)
    signs = (x.flatten() > 0).astype(int)
    runs, ones = 1 + int((np.diff(signs) != 0).sum()), int(signs.sum())
    mean = 2 * ones * (signs.size - ones) / signs.size + 1  # Wald and Wolfowitz
    assert abs(runs - mean) < 4.5 * np.sqrt((mean - 1) * (mean - 2) / (signs.size - 1))


def test_pairs_fill_the_square_evenly() -> None:
    """The serial test: pairs of consecutive uniform numbers in cells of a grid."""
    x = counted_normal(np.arange(1, 65, dtype=np.uint64) * np.uint64(0x2545F4914F6CDD1D), 0, 4096, np.float64)
    u = stats.norm.cdf(x)
    for a, b in ((u[:, :-1:2], u[:, 1::2]), (u[:-1], u[1:]), (u[:, :2048], u[:, 2048:])):
        counts = np.histogram2d(a.ravel(), b.ravel(), bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_tails_reach_as_far_as_32_bits_allow() -> None:
    x = np.abs(counted_normal(np.arange(1, 1025, dtype=np.uint64), 0, 2048, np.float64)).ravel()
    for level in (3.0, 4.0, 4.5):
        expected = 2 * stats.norm.sf(level) * x.size
        assert abs((x > level).sum() - expected) < 4.5 * np.sqrt(expected) + 1
    assert x.max() < np.sqrt(2 * 33 * np.log(2))


@pytest.mark.parametrize("event", [(1,), (2,), (SMALL,)], ids=str)
def test_both_precisions_see_the_same_noise(event: tuple[int, ...]) -> None:
    single, double = (draws(list(range(50)), event, 2, dtype) for dtype in (torch.float32, F64))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)


def test_generators_are_made_when_they_are_needed() -> None:
    noise = FreshNoise([1, 2], CPU)
    noise.normal(torch.empty(2, 3))
    assert "generators" not in vars(noise)
    noise.normal(torch.empty(2, SMALL + 1))
    assert "generators" in vars(noise)


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3)])
def test_integers_of_any_kind_are_seeds(seed: int) -> None:
    assert sample_seeds(seed, 4) == sample_seeds(3, 4)
    assert sample_seeds([seed, seed], 2) == [3, 3]


def test_derived_seeds_differ_in_their_low_words() -> None:
    seeds = sample_seeds(5, 50_000)
    assert len({s & 0xFFFFFFFF for s in seeds}) == len(seeds) and max(seeds) < 2**63
