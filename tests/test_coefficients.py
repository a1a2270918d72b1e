"""The coefficient routine against mpmath's quadrature, and the rows of predictions against the equation they come from."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from support import SDES, finite_start

from scoresde import VP, solvers
from scoresde.solvers import (
    Data,
    Drift,
    Noise,
    Path,
    Prediction,
    Rho,
    Velocity,
    exponential_moments,
    lagrange_integrals,
    points,
)

F64 = torch.float64
PREDICTIONS: list[Prediction] = [
    *(kind(eta) for kind in (Data, Noise, Rho, Drift) for eta in (0.0, 0.4, 1.0)),
    Velocity(),
]


@given(z=st.floats(-80, 80))
def test_moments_agree_with_mpmath_to_full_precision(z: float) -> None:
    got = exponential_moments(z, 5)
    with mpmath.workdps(40):
        for k in range(5):
            # M_k = k! e^-z / z^(k+1) (series): Kummer's function 1F1(1; k+2; -z) / (k+1) is an independent closed form.
            wanted = mpmath.hyp1f1(1, k + 2, -mpmath.mpf(z)) / (k + 1)
            assert abs(got[k] - wanted) <= 2e-15 * abs(wanted) * (1 + abs(z) * 0.05)


@given(z=st.floats(-6, 6), nodes=st.lists(st.integers(-8, 4), min_size=1, max_size=4, unique=True), seed=st.integers(0, 9))
def test_weights_are_exact_on_the_polynomials_they_claim(z: float, nodes: list[int], seed: int) -> None:
    """sum_j I_j P(theta_j) is the integral of e^{-z (1 - theta)} P for every polynomial of lower degree than the nodes."""
    theta = [n / 4 for n in nodes]
    coefficients = torch.randn(len(nodes), generator=torch.Generator().manual_seed(seed), dtype=F64).tolist()

    def polynomial(x: mpmath.mpf) -> mpmath.mpf:
        return sum(c * x**i for i, c in enumerate(coefficients))

    got = sum(w * polynomial(x) for w, x in zip(lagrange_integrals(theta, z), theta, strict=True))
    with mpmath.workdps(30):
        wanted = mpmath.quad(lambda x: mpmath.exp(-z * (1 - x)) * polynomial(x), [0, 1])
    assert float(got) == pytest.approx(float(wanted), rel=1e-8, abs=1e-9)


def test_repeated_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected them distinct"):
        lagrange_integrals([0.0, 0.0], 1.0)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=repr)
def test_each_prediction_rewrites_the_one_equation(name: str, prediction: Prediction) -> None:
    """Differentiate the exact step at v = u: x' = (carry)' x + gain (clock)' N must be the drift of (*), for any x and m.

    (*) in time: x' = [sigma'/sigma - eta lam'] x + (1 + eta) alpha lam' m, with noise sqrt(eta g^2 dt).
    """
    sde = SDES[name]
    eta = getattr(prediction, "eta", 0.0)
    for t in torch.linspace(0.15, 0.85, 5, dtype=F64).tolist():
        t = t * finite_start(sde)
        dt = 1e-5 * t
        late, here, early = points(sde, torch.tensor([t + dt, t, t - dt], dtype=F64))
        carry = (prediction.carry(here, early) - prediction.carry(here, late)) / (2 * dt)
        clock = (prediction.clock(early) - prediction.clock(late)) / (2 * dt) * prediction.gain(here)
        p, q = prediction.mix(here)
        lam_rate = here.diffusion_squared / (2 * here.sigma**2)  # -lam', towards the data
        wanted_x = -here.d_log_sigma - eta * lam_rate
        wanted_m = (1 + eta) * here.alpha * lam_rate
        scale = abs(wanted_x) + abs(wanted_m)
        # `towards the data` is -d/dt, hence the signs
        assert carry + clock * p == pytest.approx(wanted_x, abs=2e-5 * scale)
        assert clock * q == pytest.approx(wanted_m, abs=2e-5 * scale)
        noise = prediction.noise(here, early)
        assert noise**2 == pytest.approx(eta * here.diffusion_squared * dt, rel=2e-3, abs=1e-15)
        assert prediction.carry(here, here) == pytest.approx(1)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_finite_step_is_the_variation_of_constants(eta: float) -> None:
    """For a prediction that is constant in time the finite step is exact: compare with SciPy's quadrature of (*)."""
    sde = VP()
    u, v = points(sde, torch.tensor([0.8, 0.3], dtype=F64))
    integral = quad(lambda lam: (1 + eta) * math.exp((1 + eta) * lam), u.lam, v.lam, epsabs=1e-13)[0]
    wanted = v.sigma * math.exp(-eta * v.lam) * integral
    row = solvers.stencil_rows(Data(eta), solvers.multistep(1), Path(sde, (u, v)))[0]
    assert row.w[0] == pytest.approx(wanted, rel=1e-12)
    # The noise is an Ito integral: its variance is the integral of the squared kernel.
    variance = quad(lambda lam: 2 * eta * math.exp(2 * eta * (lam - v.lam)), u.lam, v.lam)[0]
    assert sum(row.s) ** 2 == pytest.approx(v.sigma**2 * variance, rel=1e-10, abs=1e-15)
