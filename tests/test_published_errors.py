"""What the page on errors in published formulas says of installed packages."""

import pytest
import torch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of NumPy, in diffusers
def test_the_third_order_sde_update_of_diffusers_is_as_the_page_tells() -> None:
    """The conditional mean after one step of the scheduler, from predictions quadratic in lam: minus, or mended since."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3)
    scheduler.set_timesteps(20)
    sigmas = scheduler.sigmas.double()
    alpha, sigma = 1 / (1 + sigmas**2).sqrt(), sigmas / (1 + sigmas**2).sqrt()
    lam = (alpha / sigma).log()
    scheduler._step_index = i = 9
    h, x = float(lam[i + 1] - lam[i]), torch.full((1,), 0.3, dtype=torch.float64)
    outputs = [torch.full((1,), float((lam[j] - lam[i]) ** 2), dtype=torch.float64) for j in (i - 2, i - 1, i)]
    found = scheduler.multistep_dpm_solver_third_order_update(outputs, sample=x, noise=torch.zeros_like(x))
    k = torch.tensor(2 * h, dtype=torch.float64)
    common = (1 - torch.exp(-k) - k) / k**2
    carried = sigma[i + 1] / sigma[i] * torch.exp(-k / 2) * x  # the prediction and its slope are 0 at the start of the step
    factor = (found - carried) / (alpha[i + 1] * h**2)
    written, mended = common - 0.5, {float(common + 0.5), float(2 * common + 1)}
    assert abs(factor - written) < 1e-4 or any(abs(factor - one) < 1e-4 for one in mended)
