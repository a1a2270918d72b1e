"""Density, coverage and the Vendi score, against sums written out, exact expectations and the definitions of the papers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde.metrics import density_coverage, vendi_score
from scoresde.metrics import diversity as module


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_loops(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float]:
    """Density and coverage, ball by ball."""
    counts = []
    for j, datum in enumerate(y):
        others = sorted(math.dist(datum, other) for i, other in enumerate(y) if i != j)
        counts.append(sum(math.dist(datum, sample) < others[k - 1] for sample in x))
    return sum(counts) / (k * len(x)), sum(c > 0 for c in counts) / len(y)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(5, 12), st.integers(1, 4), st.integers(1, 3))
def test_density_and_coverage_are_those_of_the_balls(seed, n, m, k, d):
    x, y = 1.5 * draw(seed, n, d), draw(seed + 1, m, d)
    assert tuple(v.item() for v in density_coverage(x, y, k)) == pytest.approx(by_loops(x.numpy(), y.numpy(), k))


def test_they_do_not_depend_on_the_size_of_the_temporary_matrix(monkeypatch):
    x, y = draw(0, 40, 3), draw(1, 30, 3)
    whole = density_coverage(x, y)
    monkeypatch.setattr(module, "_CHUNK", 100)
    assert density_coverage(x, y) == whole


@pytest.mark.parametrize(("m", "k", "d"), [(20, 1, 1), (20, 5, 2), (40, 3, 8)])
def test_samples_of_the_data_have_density_one_and_the_coverage_of_the_paper(m, k, d):
    """Both expectations hold for every continuous distribution; here by 1000 draws of both samples."""
    repeats = 1000
    found = torch.tensor([density_coverage(draw(2 * i, m, d).exp(), draw(2 * i + 1, m, d).exp(), k) for i in range(repeats)])
    covered = 1 - math.prod((m - i) / (2 * m - i) for i in range(1, k + 1))
    error = found.std(0) / math.sqrt(repeats)
    assert ((found.mean(0) - torch.tensor([1.0, covered])).abs() < 4 * error).all()


def test_what_each_of_them_sees():
    y = torch.cat([draw(0, 100, 2) - 10, draw(1, 100, 2) + 10])
    one_mode = draw(2, 200, 2) + 10
    density, coverage = density_coverage(one_mode, y)
    assert 0.8 < density < 1.3 and coverage <= 0.5
    outlier = torch.cat([y, torch.full((1, 2), 1e3, dtype=torch.float64)])  # it makes one huge ball, where recall counts all
    assert density_coverage(draw(3, 200, 2) * 100, outlier)[1] < 0.2


def spectrum(gram: np.ndarray) -> np.ndarray:
    values = np.linalg.eigvalsh(gram / len(gram))
    return values[values > 1e-12]


@pytest.mark.parametrize(("n", "d"), [(4, 9), (9, 4), (6, 6)])
@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
def test_the_vendi_score_is_that_of_the_eigenvalues(n, d, q):
    x = draw(n, n, d)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    values = spectrum(unit @ unit.T)
    orders = {1.0: lambda v: np.exp(-(v * np.log(v)).sum()), math.inf: lambda v: 1 / v.max()}
    expected = orders.get(q, lambda v: (v**q).sum() ** (1 / (1 - q)))(values)
    assert vendi_score(x, q).item() == pytest.approx(expected, rel=1e-6)
    squares = ((x[:, None] - x[None]) ** 2).sum(2).numpy()
    values = spectrum(np.exp(-squares / (2 * 0.7**2)))
    expected = orders.get(q, lambda v: (v**q).sum() ** (1 / (1 - q)))(values)
    assert vendi_score(x, q, "gaussian", 0.7).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0, math.inf])
@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_kinds_that_have_nothing_in_common_are_counted(q, counts):
    """The paper's first property: n / m each of m kinds score m; and unequal counts score their Renyi entropy."""
    p = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    expected = (
        {1.0: (-(p * p.log()).sum()).exp(), math.inf: 1 / p.max()}.get(q)
        if q in (1.0, math.inf)
        else ((p**q).sum() ** (1 / (1 - q)))
    )
    x = torch.eye(6, dtype=torch.float64)[: len(counts)].repeat_interleave(torch.tensor(counts), 0)
    assert vendi_score(x, q).item() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("q", [0.01, 0.1, 3.0])
def test_copies_do_not_count_whatever_the_order(q):
    """Copies leave eigenvalues of zero, of which rounding must make nothing, not even to the power of 0.01."""
    x = 3 * draw(0, 6, 40)
    assert vendi_score(x.repeat(5, 1), q).item() == pytest.approx(vendi_score(x, q).item(), rel=1e-9)
    both = (vendi_score(y, q, "gaussian", 5.0).item() for y in (x.repeat(20, 1), x))
    assert next(both) == pytest.approx(next(both), rel=1e-9)


def test_the_score_falls_with_the_order_and_lies_between_one_and_n():
    x = draw(3, 30, 5) + 1
    scores = [vendi_score(x, q).item() for q in (0.1, 0.5, 1.0, 1.0001, 2.0, 10.0, math.inf)]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 1 and scores[0] < 30
    assert scores[2] == pytest.approx(scores[3], rel=1e-3)


def test_events_of_any_shape_are_vectors():
    x, y = draw(0, 8, 1, 2, 3), draw(1, 9, 1, 2, 3)
    assert density_coverage(x, y, 2) == density_coverage(x.flatten(1), y.flatten(1), 2)
    assert vendi_score(x) == vendi_score(x.flatten(1))


def test_what_has_no_score_is_refused():
    x = draw(0, 5, 2)
    with pytest.raises(ValueError, match=r"got samples of 2 numbers, and 5 data of 2; .* more data than neighbours=5"):
        density_coverage(x, x)
    with pytest.raises(ValueError, match="got samples of 2 numbers, and 9 data of 3"):
        density_coverage(x, draw(0, 9, 3))
    with pytest.raises(ValueError, match=r"neighbours=0"):
        density_coverage(x, x, 0)
    for call in (lambda v: density_coverage(v, x, 1), lambda v: density_coverage(x, v, 1), vendi_score):
        with pytest.raises(ValueError, match="expected finite numbers"):
            call(x * math.nan)
        with pytest.raises(ValueError, match="expected finite numbers"):
            call(x[:0])
    for q in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a positive order"):
            vendi_score(x, q)
    with pytest.raises(ValueError, match="length zero"):
        vendi_score(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="expected 'cosine' or 'gaussian'"):
        vendi_score(x, kernel="linear")
    for scale in (None, 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="expected a positive number"):
            vendi_score(x, kernel="gaussian", scale=scale)
