"""SDEs with matrix coefficients: their marginals against quadrature and the equation, states, and what is refused."""

import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoresde import EDM, VE, VP, CosineVP, SubVP
from scoresde.sde import (
    CLD,
    Anisotropic,
    Blurring,
    Cosines,
    LinearSDE,
    MatrixSDE,
    Pixels,
    Subspace,
    ThirdOrderLangevin,
    Vectors,
)
from scoresde.sde.linear import exponential, van_loan
from tests.support import generator

COVARIANCE = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
FREE = LinearSDE([[-1.0, 2.0], [-0.5, -1.5]], [[0.3, 0.0], [0.2, 1.1]], [[0.0, 0.0], [0.0, 0.5]], beta_max=4.0)
SDES: dict[str, MatrixSDE] = {
    "CLD": CLD(),
    "CLD, rising rate": CLD(mass=0.5, gamma=0.0, beta_min=1.0, beta_max=8.0),
    "ThirdOrderLangevin": ThirdOrderLangevin(),
    "LinearSDE": FREE,
    "Anisotropic": Anisotropic(COVARIANCE),
    "Subspace": Subspace(torch.tensor([[0.6, 0.8]])),
    "Blurring": Blurring((2,), blur=1.5),
    "Blurring EDM": Blurring((2,), blur=0.5, base=EDM(sigma_max=10.0)),
}
"""SDEs of data with two numbers; a new one is tested by being added here."""
every = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
constant = pytest.mark.parametrize("sde", [s for s in SDES.values() if s.modes == 0], ids=lambda s: type(s).__name__)


def times(sde, n=5):
    low, high = sde.span
    return torch.tensor(np.geomspace(max(low, 1e-3 * high), high, n))


# Marginals -----------------------------------------------------------------------------------------------------------


@constant
def test_the_covariance_is_the_integral_of_the_noise_relative_to_every_entry(sde):
    # By Gauss-Legendre quadrature of positive terms, with SciPy's exponential in place of Van Loan's.
    drift, noise = sde.drift_matrix.numpy(), (sde.noise_matrix @ sde.noise_matrix.mT).numpy()
    nodes, weights = np.polynomial.legendre.leggauss(60)
    for t in times(sde):
        tau = float(sde.elapsed(t))
        factors = [scipy.linalg.expm(drift * x) for x in 0.5 * tau * (nodes + 1)]
        integral = sum(0.5 * tau * w * f @ noise @ f.T for w, f in zip(weights, factors, strict=True))
        whole = scipy.linalg.expm(drift * tau)
        expected = whole @ sde.initial_covariance.numpy() @ whole.T + integral
        found = sde.covariance(t).numpy()
        size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
        assert np.abs(found - expected).max() < 2e-13 * size.max()
        assert (np.abs(found - expected) / size).max() < 1e-12


@every
def test_marginals_solve_their_equations(sde):
    # psi' = F psi and S' = F S + S F^T + G G^T, by central differences with Richardson's extrapolation.
    for t in times(sde)[1:-1]:
        drift, noise = sde.rates(t)

        def slope(f, h, t=t):
            return (8 * (f(t + h) - f(t - h)) - (f(t + 2 * h) - f(t - 2 * h))) / (12 * h)

        psi, covariance = sde.mean_factor(t), sde.covariance(t)
        moved = drift @ covariance
        for f, expected in ((sde.mean_factor, drift @ psi), (sde.covariance, moved + moved.mT + noise)):
            rounding = 1e-10 * float(f(t).abs().max() / t)
            torch.testing.assert_close(slope(f, 1e-3 * t), expected, rtol=1e-8, atol=rounding)


@every
def test_transitions_compose_and_carry_the_mean(sde):
    t = times(sde)
    s, u = t.roll(1), t.roll(2)
    composed = sde.transition(s, u) @ sde.transition(u, t)
    torch.testing.assert_close(composed, sde.transition(s, t), rtol=1e-11, atol=1e-11 * float(composed.abs().max()))
    carried = sde.transition(s, t) @ sde.mean_factor(t)
    torch.testing.assert_close(carried, sde.mean_factor(s), rtol=1e-11, atol=1e-10)


@every
def test_lam_falls_and_has_an_inverse(sde):
    t = torch.linspace(*sde.span, 41, dtype=torch.float64)
    lam = sde.lam(t)
    assert bool((lam.diff() < 0).all())
    torch.testing.assert_close(sde.lam(sde.time(lam)), lam, rtol=0, atol=1e-9)
    assert sde.time(lam[20]).shape == ()


@every
def test_lam_is_the_information_of_the_state_on_the_data(sde):
    if sde.modes:
        pytest.skip("the modes have different ones")
    for t in times(sde):
        psi, covariance = sde.mean_factor(t), sde.covariance(t)
        information = float((psi.mT @ torch.linalg.solve(covariance, psi)).squeeze())
        assert abs(float(sde.lam(t)) - 0.5 * math.log(information)) < 1e-8


def test_the_stationary_law_of_critically_damped_langevin_is_diag_one_mass():
    for mass in (0.1, 0.25, 1.0, 4.0):
        sde = CLD(mass=mass, t_max=20.0)
        expected = torch.diag(torch.tensor([1.0, mass], dtype=torch.float64))
        torch.testing.assert_close(sde.stationary_covariance, expected, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(sde.covariance(20.0), expected, rtol=1e-12, atol=1e-12)
        assert float(sde.mean_factor(20.0).abs().max()) < 1e-12
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(ThirdOrderLangevin().stationary_covariance, eye, rtol=1e-12, atol=1e-13)


def test_langevin_diffusions_are_critically_damped():
    # All eigenvalues agree; of a defective matrix they are known to the root of rounding.
    for mass in (0.1, 0.25, 4.0):
        values = torch.linalg.eigvals(CLD(mass=mass).drift_matrix)
        assert float((values + mass**-0.5).abs().max()) < 1e-6 / mass
    assert float((torch.linalg.eigvals(ThirdOrderLangevin().drift_matrix) + 3**0.5).abs().max()) < 1e-4


def test_critically_damped_langevin_has_the_published_mean():
    # Dockhorn et al., appendix B.1, with Gamma = 2 sqrt(M) and B = beta t.
    sde = CLD()
    for t in (0.01, 0.3, 1.0):
        b, gamma = 4 * t, 2 * 0.25**0.5
        factor = math.exp(-2 * b / gamma)
        expected = [factor * (1 + 2 * b / gamma), -factor * b]
        np.testing.assert_allclose(sde.mean_factor(t)[:, 0], expected, rtol=1e-12)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.05, 3), st.floats(0.05, 3), st.floats(1e-6, 5))
def test_van_loan_agrees_with_the_lyapunov_equation(a, b, damping, g, tau):
    f = torch.tensor([[-damping, a], [b if a * b < damping**2 / 2 else -a, -damping]], dtype=torch.float64)
    q = torch.diag(torch.tensor([g, 1.0], dtype=torch.float64))
    transition, covariance = van_loan(f, q, torch.tensor(tau, dtype=torch.float64))
    np.testing.assert_allclose(transition, scipy.linalg.expm(f.numpy() * tau), rtol=1e-11, atol=1e-11)
    # F C + C F^T + Q is the derivative of C, e^{F tau} Q e^{F^T tau}.
    moved = f @ covariance
    torch.testing.assert_close(moved + moved.mT + q, transition @ q @ transition.mT, rtol=1e-10, atol=1e-10)


@given(st.floats(1e-9, 3.0))
def test_the_exponential_is_accurate_in_entries_of_high_order(tau):
    # Of a nilpotent matrix it is a polynomial, with entries tau^k / k!.
    chain = torch.diag(torch.ones(3, dtype=torch.float64), 1)
    found = exponential(chain, torch.tensor(tau, dtype=torch.float64))
    expected = [[tau ** (j - i) / math.factorial(j - i) if j >= i else 0.0 for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_one_variable_gives_the_scalar_sde():
    made, sde = LinearSDE([[-0.5]], [[1.0]], beta_min=0.1, beta_max=20.0), VP()
    t = torch.linspace(1e-3, 1, 21, dtype=torch.float64)
    torch.testing.assert_close(made.lam(t), sde.lam(t), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.mean_factor(t)[:, 0, 0], sde.alpha(t), rtol=1e-12, atol=0)
    torch.testing.assert_close(made.covariance(t)[:, 0, 0], sde.sigma(t) ** 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "base", [VP(), SubVP(), VE(), EDM(sigma_max=20.0), CosineVP(t_max=0.99)], ids=lambda b: type(b).__name__
)
def test_modes_without_differences_give_the_base(base):
    t = torch.tensor([0.3, 0.9], dtype=torch.float64) * base.span[1]
    for sde in (Blurring((3,), blur=0.0, base=base), Anisotropic(torch.eye(3), base), Subspace(torch.eye(3), base)):
        drift, noise = (m[:, 1, 0, 0] for m in sde.rates(t))
        torch.testing.assert_close(drift, base.d_log_alpha(t), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(noise, base.diffusion_squared(t), rtol=1e-9, atol=0)
        x = torch.randn(2, 3, generator=generator(), dtype=torch.float64)
        eps = torch.randn(2, 3, generator=generator(1), dtype=torch.float64)
        torch.testing.assert_close(sde.perturb(x, t, eps), base.perturb(x, t, eps), rtol=1e-12, atol=1e-12)


def test_blurring_solves_the_heat_equation():
    # The published damping of a frequency, and the Laplacian of a reflected image as the heat equation's generator.
    sde, n = Blurring((6,), blur=2.0, floor=1e-9), 6
    t = torch.tensor(0.4, dtype=torch.float64)
    width = 2.0 * math.sin(0.5 * math.pi * 0.4) ** 2
    expected = np.exp(-0.5 * width**2 * (np.pi * np.arange(n) / n) ** 2)
    np.testing.assert_allclose(sde.log_damping(t).exp(), (1 - 1e-9) * expected + 1e-9, rtol=1e-12)


# States --------------------------------------------------------------------------------------------------------------


@every
def test_perturbed_states_have_the_mean_and_the_covariance(sde):
    # The noise is a linear map: push the unit vectors through it.
    t = 0.5 * sde.span[1]
    x0 = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    shape = sde.state_shape((1, 2))
    units = torch.eye(shape[1:].numel(), dtype=torch.float64).reshape(-1, *shape[1:])
    noise = sde.perturb(torch.zeros(len(units), 2, dtype=torch.float64), t, units).flatten(1)
    one = torch.eye(2, dtype=torch.float64)
    # rows of `means` are the states of the unit data
    means = sde.perturb(one, t, torch.zeros(sde.state_shape((2, 2)), dtype=torch.float64))
    u = sde.basis.forward(means if sde.variables > 1 else means[:, None])
    direct = sde.map(sde.mean_factor(t), of_state=False) * one
    torch.testing.assert_close(means, direct)
    covariance = noise.mT @ noise
    whole = torch.linalg.matrix_rank(covariance)
    assert int(whole) == u[0].numel()  # as many directions as coordinates: all of them, or the subspace
    assert sde.perturb(x0, t, torch.zeros(shape, dtype=torch.float64)).shape == shape


@every
def test_the_prior_has_the_covariance_at_the_end_and_its_density(sde):
    z = sde.prior(sde.state_shape((40_000, 2)), generator=generator(), dtype=torch.float64)
    basis = sde.basis
    u = basis.forward(z if sde.variables > 1 else z[:, None])  # (n, b, coordinates)
    expected = sde.covariance(sde.span[1])
    for j in range(u.shape[2]):
        found = u[:, :, j].mT @ u[:, :, j] / len(u)
        mode = expected[j] if sde.modes else expected
        spread = mode.diagonal().sqrt()
        assert float(((found - mode) / torch.outer(spread, spread)).abs().max()) < 5 * (2 / len(u)) ** 0.5
    one = u[:3].movedim(1, 2)  # (3, coordinates, b)
    law = torch.distributions.MultivariateNormal(torch.zeros(sde.variables, dtype=torch.float64), expected)
    torch.testing.assert_close(sde.prior_log_prob(z[:3]), law.log_prob(one).sum(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 6)])
def test_cosines_are_orthonormal_and_diagonalise_the_laplacian_of_reflected_images(shape):
    basis = Cosines(len(shape))
    x = torch.randn(2, 1, *shape, generator=generator(), dtype=torch.float64)
    u = basis.forward(x)
    torch.testing.assert_close(basis.inverse(u, x.shape[2:]), x, rtol=1e-12, atol=1e-12)
    scipy_u = scipy.fft.dctn(x[0, 0].numpy(), norm="ortho")
    np.testing.assert_allclose(u[0, 0], scipy_u, rtol=1e-11, atol=1e-12)


def test_one_sample_does_not_depend_on_its_batch_in_perturbations_at_several_times():
    for sde in SDES.values():
        x = torch.randn(3, 2, generator=generator(), dtype=torch.float64)
        eps = torch.randn(sde.state_shape((3, 2)), generator=generator(1), dtype=torch.float64)
        t = times(sde, 3)
        whole = sde.perturb(x, t, eps)
        for i in range(3):
            torch.testing.assert_close(
                whole[i : i + 1], sde.perturb(x[i : i + 1], t[i], eps[i : i + 1]), rtol=1e-12, atol=1e-12
            )


def test_a_subspace_keeps_the_data_in_it():
    vectors = torch.linalg.qr(torch.randn(5, 2, generator=generator(), dtype=torch.float64)).Q.mT
    sde = Subspace(vectors)
    x = torch.randn(4, 5, generator=generator(1), dtype=torch.float64)
    z = sde.perturb(x, 0.3, torch.randn(4, 5, generator=generator(2), dtype=torch.float64))
    torch.testing.assert_close(z @ vectors.mT @ vectors, z)
    inside = x @ vectors.mT @ vectors
    torch.testing.assert_close(sde.perturb(x, 0.3, 0 * x), VP().alpha(0.3) * inside)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: LinearSDE([[1.0, 0.0]], [[1.0]]), r"got F of shape \(1, 2\); expected a square matrix"),
        (lambda: LinearSDE([[-1.0]], [[1.0], [1.0]]), r"got G of shape \(2, 1\) for F"),
        (lambda: LinearSDE([[0.1]], [[1.0]]), "an F that is not stable: an eigenvalue has the real part 0.1"),
        (lambda: LinearSDE([[0.0, 1.0], [-1.0, 0.0]], [[0.0], [1.0]]), "not stable"),
        (lambda: LinearSDE([[math.nan]], [[1.0]]), "not finite"),
        (lambda: LinearSDE([[-1.0, 0.0], [0.5, -1.0]], [[0.0], [1.0]]), r"never reaches the direction \(1, -?0\)"),
        (lambda: LinearSDE([[-1.0, 0.0], [0.0, -1.0]], [[1.0], [1.0]]), "never reaches the direction"),
        (lambda: LinearSDE([[-1.0]], [[0.0]]), "never reaches the direction"),
        (lambda: LinearSDE([[-1.0]], [[1.0]], [[-1.0]]), "no covariance of 1 variables"),
        (lambda: LinearSDE([[-1.0]], [[1.0]], t_min=0.0), "expected 0 < beta_min <= beta_max and 0 < t_min"),
        (lambda: CLD(mass=0.0), "expected mass > 0"),
        (lambda: CLD(beta_min=-1.0), "expected 0 < beta_min"),
        (lambda: ThirdOrderLangevin(variance=-1.0), "got variance=-1"),
        (lambda: Anisotropic([[1.0, 0.5]]), "expected a symmetric matrix"),
        (lambda: Anisotropic([[1.0, 1.0], [1.0, 1.0]]), "never reaches a direction of the data"),
        (lambda: Anisotropic([[1.0, 0.0], [0.0, -1.0]]), "never reaches a direction of the data"),
        (lambda: Subspace([[1.0, 1.0]]), "expected orthonormal rows"),
        (lambda: Subspace(torch.eye(3)[:, :2]), "at most as many as their d components"),
        (lambda: Blurring((8, 0)), "expected the lengths of the last axes"),
        (lambda: Blurring((8, 8), blur=-1.0), "expected blur >= 0"),
        (lambda: Blurring((8, 8), floor=0.0), "0 < floor <= 1"),
        (lambda: Blurring((8, 8), base=CosineVP()), "alpha or sigma is zero at an end"),
        (lambda: Blurring((8, 8), base=CLD()), "expected a scalar SDE with Gaussian marginals"),
        (lambda: Cosines(0), "at least one axis"),
        (lambda: Vectors(torch.ones(3)), "expected \\(r, d\\)"),
    ],
)
def test_bad_matrices_are_refused_in_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: CLD().perturb(torch.zeros(1, 2), 0.5, torch.zeros(1, 2)),
            r"expected the shape of a state of CLD, \(1, 2, 2\)",
        ),
        (lambda: CLD().perturb(torch.zeros(1, 2), 0.0, torch.zeros(1, 2, 2)), "has a density for 0 < t"),
        (lambda: CLD().perturb(torch.zeros(1, 2), 1.1, torch.zeros(1, 2, 2)), "has a density for 0 < t <= 1"),
        (lambda: CLD().drift(torch.zeros(1, 3, 2), 0.5), r"expected \(batch, 2, \*event\)"),
        (lambda: CLD().drift(torch.zeros(1, 2), 0.5), r"expected \(batch, 2, \*event\)"),
        (lambda: ThirdOrderLangevin().factors(1e-9), "singular in float64; expected times from t_min=0.01 on"),
        (lambda: CLD().prior_std, "no single standard deviation"),
        (lambda: CLD().diffusion(torch.zeros(1, 2, 2), 0.5), "expected sde.rates"),
        (lambda: CLD().reverse(lambda x, t: x), "expected sample"),
        (lambda: Blurring((4, 4)).drift(torch.zeros(1, 4), 0.5), "cosine transform over 2 axes"),
        (lambda: Anisotropic(torch.eye(3)).drift(torch.zeros(1, 2), 0.5), "expected events of that size"),
    ],
)
def test_states_of_a_wrong_shape_and_uses_without_a_meaning_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_equal_sdes_are_equal_and_others_are_not():
    assert CLD() == CLD() != CLD(mass=0.3) and hash(CLD()) == hash(CLD())
    assert Anisotropic(COVARIANCE) == Anisotropic(COVARIANCE.clone()) != Anisotropic(2 * COVARIANCE)
    assert LinearSDE([[-1.0]], [[1.0]]) != LinearSDE([[-1.0]], [[2.0]])
    assert Pixels() == Pixels()
