"""The moments of data, against the Gaussian that has them."""

import pytest
import torch
from support import SDES, generator, mixture

from scoresde import VP, problems
from scoresde.problems import Gaussian
from scoresde.score import DataMoments, Wrapper

F64 = torch.float64
MEAN = torch.tensor([0.4, -0.3, 1.2], dtype=F64)
FULL = torch.tensor([[1.0, 0.6, 0.2], [0.6, 0.8, -0.1], [0.2, -0.1, 0.5]], dtype=F64)
LOW = torch.tensor([2.0, -1.0, 0.5], dtype=F64)
KINDS = {
    "full": (DataMoments.from_covariance(MEAN, FULL), FULL),
    "diagonal": (DataMoments(MEAN, FULL.diagonal()), torch.diag(FULL.diagonal())),
    "low-rank": (
        DataMoments(MEAN, LOW.square().sum()[None] + 0.3, (LOW / LOW.norm())[:, None], 0.3),
        torch.outer(LOW, LOW) + 0.3 * torch.eye(3, dtype=F64),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SDES)
def test_the_gaussian_with_the_moments_is_the_problem(kind: str, name: str) -> None:
    (moments, covariance), sde = KINDS[kind], SDES[name]
    problem = Gaussian(MEAN, covariance)
    x = torch.randn(4, 3, dtype=F64, generator=generator())
    low, high = sde.span
    for t in (low, high, torch.linspace(low, high, 4, dtype=F64)):
        torch.testing.assert_close(moments.log_prob(x, sde, t), problem.log_prob(x, sde, t), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moments.x0(x, sde, t), problem.x0(x, sde, t), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SDES)
def test_the_flow_keeps_the_density_up_to_its_volume(kind: str, name: str) -> None:
    """It is a semigroup, goes back to where it came from, and its Jacobian is what the densities differ by."""
    (moments, _), sde = KINDS[kind], SDES[name]
    x = torch.randn(4, 3, dtype=F64, generator=generator())
    low, high = sde.span
    middle = 0.5 * (low + high)
    there = moments.flow(x, sde, low, high)
    torch.testing.assert_close(moments.flow(moments.flow(x, sde, low, middle), sde, middle, high), there)
    torch.testing.assert_close(moments.flow(there, sde, high, low), x)
    jacobian = torch.func.jacrev(lambda y: moments.flow(y[None], sde, low, high)[0])(x[0])
    change = moments.log_prob(x, sde, low) - moments.log_prob(there, sde, high)
    torch.testing.assert_close(change, torch.linalg.slogdet(jacobian).logabsdet.expand(4))


@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_the_covariance_are_those_of_the_matrix(kind: str) -> None:
    moments, covariance = KINDS[kind]
    y = torch.randn(4, 3, dtype=F64, generator=generator())
    inverse = torch.linalg.inv(covariance)
    torch.testing.assert_close(moments.apply(lambda e: 1 / e, y), y @ inverse)
    torch.testing.assert_close(moments.quadratic(lambda e: 1 / e, y), (y @ inverse * y).sum(1))
    torch.testing.assert_close(moments.trace(lambda e: 1 / e), inverse.trace())


def test_moments_are_measured_in_every_kind() -> None:
    problem = Gaussian(MEAN, FULL)
    data = problem.sample(4000, generator(), F64)
    measured = torch.cov(data.T)
    full, diagonal = (DataMoments.of(data, kind) for kind in ("full", "diagonal"))
    identity = torch.eye(3, dtype=F64)
    torch.testing.assert_close(full.apply(lambda e: e, identity), measured)
    torch.testing.assert_close(diagonal.variances, measured.diagonal())
    torch.testing.assert_close(full.mean, data.mean(0))
    low = DataMoments.of(data, "low-rank", rank=1)
    torch.testing.assert_close(low.variances[0], torch.linalg.eigvalsh(measured)[-1])
    torch.testing.assert_close(low.trace(lambda e: e), measured.trace())  # the rest keeps the total variance
    few = DataMoments.of(data[:4], "auto")  # fewer than twice as many samples as dimensions
    torch.testing.assert_close(few.apply(lambda e: e, identity), torch.cov(data[:4].T))


def test_the_fourier_basis_is_exact_for_textures_that_do_not_change_under_shifts() -> None:
    data = torch.randn(300, 2, 4, 6, dtype=F64, generator=generator())
    data = data + data.roll(1, 3) + data.roll(1, 2)
    everywhere = torch.cat([data.roll((i, j), (2, 3)) for i in range(4) for j in range(6)])
    everywhere = everywhere * torch.tensor([1.0, 2.0], dtype=F64)[:, None, None]
    one, other = DataMoments.of(everywhere, "fourier"), DataMoments.of(everywhere, "full")
    x = everywhere[:5]
    for channel in (0, 1):  # the channels are independent here, up to the sample
        pixels = other.apply(lambda e: e, torch.zeros_like(x[:1]).index_fill_(1, torch.tensor([channel]), 1.0))
        waves = one.apply(lambda e: e, torch.zeros_like(x[:1]).index_fill_(1, torch.tensor([channel]), 1.0))
        torch.testing.assert_close(waves[:, channel], pixels[:, channel])
    torch.testing.assert_close(one.trace(lambda e: e), other.trace(lambda e: e))
    torch.testing.assert_close(one.quadratic(torch.sqrt, x), (one.apply(torch.sqrt, x) * x).flatten(1).sum(1))
    torch.testing.assert_close(one.flow(one.flow(x, VP(), 0.1, 0.9), VP(), 0.9, 0.1), x)


def test_exact_models_know_their_moments_and_wrappers_do_not() -> None:
    model = mixture().model(VP())
    assert model.moments is not None
    torch.testing.assert_close(model.moments.apply(lambda e: e, torch.eye(2, dtype=F64)), mixture().covariance)
    assert Wrapper(model).moments is None
    assert problems.student_t(2, 1.5).model(VP()).moments is None  # has no variance


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DataMoments(MEAN, torch.ones(2, dtype=F64)), "expected 3 variances along the axes"),
        (lambda: DataMoments(MEAN, -torch.ones(3, dtype=F64)), "expected none below 0"),
        (lambda: DataMoments(MEAN, torch.ones(3, dtype=F64), "fourier"), "basis='fourier' with the"),
        (lambda: DataMoments(MEAN, torch.ones(3, dtype=F64) / 0), "not finite"),
        (lambda: DataMoments.of(torch.ones(1, 3)), "at least two samples"),
        (lambda: DataMoments.of(torch.ones(5, 3), "fourier"), "channels"),
        (lambda: DataMoments.of(torch.ones(5, 3), "sparse"), "'low-rank', 'diagonal' or 'fourier'"),
        (lambda: KINDS["full"][0].log_prob(torch.ones(2, 4), VP(), 0.5), r"got x of shape \(2, 4\)"),
    ],
)
def test_what_cannot_be_is_refused(make, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()
