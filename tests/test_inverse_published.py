"""Methods for inverse problems against the authors' update rules, written out with matrices on a common linear case.

The common case: a chain of 20 steps, a network of 3 numbers, two measurements of them by a matrix without orthonormal rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_inverse_methods import F64, MIXED, QUIET, Small, Y, start
from torch import Tensor

import scoresde
from scoresde import ScoreModel, inverse, sample, solvers
from scoresde.inverse import DDNM, DPS, MMPS, Channels, DiffPIR, Mask, Matrix, Observation, PiGDM
from scoresde.solvers import FreshNoise, Path, sample_seeds

STEPS = 20
CHAIN = scoresde.DDPM.linear(STEPS, 1e-3, 0.4)
TIMES = [i / STEPS for i in range(STEPS, -1, -1)]
"""From noise to data; the last is the data themselves."""
ALPHA_BAR = [1.0, *CHAIN.sde().alpha(torch.tensor(TIMES[-2::-1], dtype=F64)).square().tolist()]
"""The papers' alpha bar, by the index of the step, 0 for the data."""
PINV = torch.linalg.pinv(MIXED)

Step = Callable[[Tensor, Tensor, Tensor, int, Callable[[], Tensor]], Tensor]
"""``step(x, m, gradient of m, i, draw)``: the state at i - 1."""


class Scaled(Small):
    """The network told the index of the step."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t / STEPS)


MODEL = ScoreModel(Scaled(), CHAIN, "x0")


def published(step: Step, seed: int = 3) -> Tensor:
    """The authors' loop: from i = 20 to 1, with the data prediction and the products of its Jacobian."""
    noise = FreshNoise(sample_seeds(seed, 4), "cpu")
    x = start(4)
    for i in range(STEPS, 0, -1):
        x = x.detach().requires_grad_()
        m = MODEL.x0(x, i / STEPS)

        def pull(v: Tensor, m: Tensor = m, x: Tensor = x) -> Tensor:
            return torch.autograd.grad(m, x, v, retain_graph=True)[0]

        x = step(x.detach(), m.detach(), pull, i, lambda: noise.normal(torch.empty(4, 3, dtype=F64)))  # type: ignore[arg-type]
    return x


def ours(model: ScoreModel, solver: Any, seed: int = 3) -> Tensor:
    return sample(model, start(4), solver, path=TIMES, seed=seed, **QUIET).x


def ddpm_step(x: Tensor, m: Tensor, i: int, draw: Callable[[], Tensor]) -> Tensor:
    """Ho et al., equations (6) and (7)."""
    a, b = ALPHA_BAR[i], ALPHA_BAR[i - 1]
    beta = 1 - a / b
    mean = b**0.5 * beta / (1 - a) * m + (1 - beta) ** 0.5 * (1 - b) / (1 - a) * x
    return mean + ((1 - b) / (1 - a) * beta) ** 0.5 * draw() if i > 1 else mean


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_dps(sigma: float) -> None:
    """Chung et al., 2023, algorithm 1 as the authors' code has it: the gradient of the norm, after the ancestral step."""
    zeta = 0.4

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        residual = Y - m @ MIXED.T
        gradient = pull(-(residual @ MIXED) / residual.norm(dim=1, keepdim=True))
        return ddpm_step(x, m, i, draw) - zeta * gradient

    model = DPS(MODEL, Observation(Matrix(MIXED), Y, sigma), zeta, steps=STEPS)
    torch.testing.assert_close(ours(model, solvers.ddpm("lower")), published(step), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_pigdm(sigma: float, eta: float) -> None:
    """Song et al., 2023, algorithm 1, with the noise prediction of the corrected data prediction as in the authors' code."""

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        a, b = ALPHA_BAR[i], ALPHA_BAR[i - 1]
        c1 = eta * ((1 - a / b) * (1 - b) / (1 - a)) ** 0.5
        c2 = (1 - b - c1**2) ** 0.5
        r2 = 1 - a
        weight = torch.linalg.inv(MIXED @ MIXED.T + sigma**2 / r2 * torch.eye(2, dtype=F64))
        g = pull((Y - m @ MIXED.T) @ weight @ MIXED)
        eps = (x - a**0.5 * m) / (1 - a) ** 0.5
        x = b**0.5 * m + c2 * eps + (b**0.5 - c2 * a**0.5 / (1 - a) ** 0.5) * a**0.5 * g
        return x + c1 * draw() if eta and i > 1 else x

    model = PiGDM(MODEL, Observation(Matrix(MIXED), Y, sigma), variant="published")
    torch.testing.assert_close(ours(model, solvers.ddim(eta)), published(step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_guidance_of_pigdm_is_the_score_of_its_paper(sigma: float) -> None:
    """Equations (7) and (8): the score of y given x, for data given x with covariance r^2."""
    x, t = start(4).requires_grad_(), 0.4
    model = PiGDM(MODEL, Observation(Matrix(MIXED), Y, sigma))
    m = MODEL.x0(x, t)
    sde = MODEL.sde
    r2 = sde.sigma(t) ** 2 / (sde.sigma(t) ** 2 + sde.alpha(t) ** 2)
    inverse_covariance = torch.linalg.inv(r2 * MIXED @ MIXED.T + sigma**2 * torch.eye(2, dtype=F64))
    (score,) = torch.autograd.grad(m, x, (Y - m.detach() @ MIXED.T) @ inverse_covariance @ MIXED)
    torch.testing.assert_close(model.score(x, t), MODEL.score(x, t) + score, rtol=1e-9, atol=1e-9)


def test_ddnm() -> None:
    """Wang et al., 2022, algorithm 1."""

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        return ddpm_step(x, Y @ PINV.T + m - m @ MIXED.T @ PINV.T, i, draw)

    model = DDNM(MODEL, Observation(Matrix(MIXED), Y, 0.3))
    torch.testing.assert_close(ours(model, solvers.ddpm("lower")), published(step), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("zeta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.0, 0.05, 0.5])
def test_diffpir(sigma: float, zeta: float) -> None:
    """Zhu et al., 2023, algorithm 1: the proximal problem as its normal equations in the data."""
    scale = 3.0

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        a, b = ALPHA_BAR[i], ALPHA_BAR[i - 1]
        if sigma:
            rho = scale * sigma**2 * a / (1 - a)
            system = MIXED.T @ MIXED + rho * torch.eye(3, dtype=F64)
            m = torch.linalg.solve(system, (Y @ MIXED + rho * m).T).T
        else:  # the limit
            m = m + (Y - m @ MIXED.T) @ PINV.T
        eps = (x - a**0.5 * m) / (1 - a) ** 0.5
        xi = draw() if zeta and i > 1 else 0.0
        return b**0.5 * m + (1 - b) ** 0.5 * ((1 - zeta) ** 0.5 * eps + zeta**0.5 * xi)

    model = DiffPIR(MODEL, Observation(Matrix(MIXED), Y, sigma), scale)
    torch.testing.assert_close(ours(model, inverse.renoised(zeta)), published(step), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("eta", "eta_b"), [(0.85, 1.0), (1.0, 0.5), (0.0, 0.0)])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 2.0])
def test_ddrm(sigma: float, eta: float, eta_b: float) -> None:
    """Kawar et al., 2022, equations (7) and (8), in the variance-exploding form of the authors' code."""
    u, s, vh = torch.linalg.svd(MIXED, full_matrices=True)
    ybar = (Y @ u) / s

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        a, b = ALPHA_BAR[i], ALPHA_BAR[i - 1]
        now, after = ((1 - a) / a) ** 0.5, ((1 - b) / b) ** 0.5
        xbar, mbar, xi = x / a**0.5 @ vh.T, m @ vh.T, (draw() if i > 1 else torch.zeros_like(x)) @ vh.T
        kept = (1 - eta**2) ** 0.5 * after
        new = mbar + kept * (xbar - mbar) / now + eta * after * xi
        for k in range(2):
            if s[k] * after < sigma:
                new[:, k] = mbar[:, k] + kept * (ybar[k] - mbar[:, k]) / (sigma / s[k]) + eta * after * xi[:, k]
            elif s[k] * after > sigma:
                spread = (after**2 - (sigma / s[k] * eta_b) ** 2) ** 0.5
                new[:, k] = (1 - eta_b) * mbar[:, k] + eta_b * ybar[k] + spread * xi[:, k]
        if i == 1:
            return m  # the code ends with the data prediction
        return b**0.5 * new @ vh

    found = ours(MODEL, inverse.ddrm(Observation(Matrix(MIXED), Y, sigma), eta, eta_b))
    torch.testing.assert_close(found, published(step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_ddnm_plus(sigma: float) -> None:
    """Wang et al., 2022, appendix I: the scaled correction and its noise, for each singular value."""
    eta = 0.85
    _, s, vh = torch.linalg.svd(MIXED, full_matrices=True)
    s = torch.cat([s, torch.zeros(1, dtype=F64)])

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        a, b = ALPHA_BAR[i], ALPHA_BAR[i - 1]
        spread = (1 - b) ** 0.5
        eps = (x - a**0.5 * m) / (1 - a) ** 0.5 @ vh.T
        if i == 1:
            return m
        xi = draw() @ vh.T
        level = b**0.5 * sigma / s  # infinite where s = 0
        less = spread < level
        share = torch.where(less, s * spread * (1 - eta**2) ** 0.5 / (b**0.5 * sigma), 1.0)
        corrected = m - (((m @ MIXED.T - Y) @ PINV.T @ vh.T) * share) @ vh
        fresh = torch.where(less, spread * eta, (spread**2 - level**2).clamp(min=0.0).sqrt())
        old = torch.where(s == 0, spread * (1 - eta**2) ** 0.5, 0.0)
        return b**0.5 * corrected + (fresh * xi + old * eps) @ vh

    found = ours(MODEL, inverse.ddnm_plus(Observation(Matrix(MIXED), Y, sigma), eta))
    torch.testing.assert_close(found, published(step), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.3, 0.0])
def test_mmps_and_tmpd_solve_the_system_of_their_papers(sigma: float) -> None:
    """Rozet et al., 2024, equation (16), Boys et al., 2023, equation (9): with a dense Jacobian."""
    x, t = start(4), 0.6
    sde, m = MODEL.sde, MODEL.x0(x, t).detach()
    jacobian = torch.autograd.functional.jacobian(lambda x: MODEL.x0(x, t).sum(0), x).permute(1, 0, 2)
    v = sde.sigma(t) ** 2 / sde.alpha(t) * jacobian
    system = MIXED @ v @ MIXED.T + sigma**2 * torch.eye(2, dtype=F64)
    weight = torch.linalg.solve(system, Y - m @ MIXED.T)
    wanted = m + torch.einsum("bji,bj->bi", v, weight @ MIXED)
    seen = Observation(Matrix(MIXED), Y, sigma)
    for model in (MMPS(MODEL, seen, 2), MMPS(MODEL, seen, 5), inverse.TMPD(MODEL, seen)):
        torch.testing.assert_close(model.x0(x, t).detach(), wanted, rtol=1e-7, atol=1e-7)
    diagonal = (MIXED @ v @ MIXED.T).sum(2) + sigma**2
    wanted = m + torch.einsum("bji,bj->bi", v, (Y - m @ MIXED.T) / diagonal @ MIXED)
    found = inverse.TMPD(MODEL, seen, "diagonal").x0(x, t).detach()
    kept = (diagonal > sigma**2).all(1)  # where the row sums are variances
    assert bool(kept.any())
    torch.testing.assert_close(found[kept], wanted[kept], rtol=1e-7, atol=1e-7)


# Replacement and RePaint ------------------------------------------------------------------------------------------------


def test_replacement_is_conditional_inpainting() -> None:
    """Song et al., 2021, appendix I: an ancestral step, and the known pixels of a noised measurement put over it."""
    mask = torch.tensor([True, False, True])
    y = torch.tensor([0.7, -0.2], dtype=F64)
    full = torch.tensor([0.7, 0.0, -0.2], dtype=F64)

    def step(x: Tensor, m: Tensor, pull: Any, i: int, draw: Any) -> Tensor:
        b = ALPHA_BAR[i - 1]
        x = ddpm_step(x, m, i, draw)
        known = b**0.5 * full + ((1 - b) ** 0.5 * draw() if i > 1 else 0.0)
        return torch.where(mask, known, x)

    found = ours(MODEL, inverse.replacement(Observation(Mask(mask), y, 0.0), solvers.ddpm("lower")))
    torch.testing.assert_close(found, published(step), rtol=1e-9, atol=1e-9)


def test_colorization_is_inpainting_after_a_rotation_of_the_channels() -> None:
    """Both ways: the operator of the rotated channel on the images, and a mask on rotated images by a rotated model."""
    event, sde = (3, 2, 2), scoresde.VP()
    rotation, _ = torch.linalg.qr(
        torch.tensor([[0.577, -0.816, 0.0], [0.577, 0.408, 0.707], [0.577, 0.408, -0.707]], dtype=F64)
    )
    rotation = rotation.T * torch.sign(rotation[:, 0].sum())  # its first row is the mean of the channels times root 3
    draws = torch.Generator().manual_seed(0)
    mean, factor = torch.randn(12, generator=draws, dtype=F64), torch.randn(12, 12, generator=draws, dtype=F64) / 4
    covariance = factor @ factor.T + 0.1 * torch.eye(12, dtype=F64)
    full = torch.kron(rotation, torch.eye(4, dtype=F64))  # the rotation of flattened images
    gray = torch.randn(4, generator=draws, dtype=F64)
    first = torch.zeros(event, dtype=torch.bool)
    first[0] = True

    class Turned(FreshNoise):
        """The same noise, seen by rotated images."""

        def normal(self, out: Tensor) -> Tensor:
            return out.copy_(torch.einsum("ij,bjhw->bihw", rotation, super().normal(out)))

    data = scoresde.problems.Gaussian(mean.reshape(event), covariance).model(sde)
    turned = scoresde.problems.Gaussian((full @ mean).reshape(event), full @ covariance @ full.T).model(sde)
    colorized = Observation(Mask(first) @ Channels(rotation, event), gray, 0.1)
    inpainted = Observation(Mask(first), gray, 0.1)
    x = torch.randn(2, *event, generator=draws, dtype=F64)
    rotated = torch.einsum("ij,bjhw->bihw", rotation, x)
    for make in (inverse.replacement, lambda seen: inverse.repaint(seen, resamplings=2, jump=2)):
        one = sample(data, x, make(colorized), 8, noise=FreshNoise([1, 2], "cpu"), **QUIET).x
        other = sample(turned, rotated, make(inpainted), 8, noise=Turned([1, 2], "cpu"), **QUIET).x
        torch.testing.assert_close(torch.einsum("ij,bjhw->bihw", rotation, one), other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("n", "jump", "times"), [(20, 5, 3), (20, 1, 2), (21, 4, 2), (10, 10, 4), (10, 12, 4), (7, 3, 1)])
def test_the_path_of_repaint_is_the_published_schedule(n: int, jump: int, times: int) -> None:
    """Lugmayr et al., 2022, appendix B: step by step, where ours goes back at once."""
    left = dict.fromkeys(range(0, n - jump, jump), times - 1)
    wanted, t = [], n
    while t >= 1:
        t -= 1
        wanted.append(t)
        if left.get(t, 0) > 0:
            left[t] -= 1
            t += jump
            wanted.append(t)
    path = Path.from_times(scoresde.VP(), [*((i + 1) / n for i in reversed(range(n))), 0.0])
    index = {p.t: i for i, p in zip(reversed(range(n)), path.points, strict=False)}
    found = inverse.resampled(path, times, jump).points
    assert [index[p.t] for p in found[:-1]] == wanted and found[-1].sigma == 0
