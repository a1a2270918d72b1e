"""Figures of densities on the line, as they change with time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.base.numbers import whole
from scoresde.plots.figure import PALETTE, new_figure
from scoresde.sampling import sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from scoresde.problems import Problem
    from scoresde.sde import GaussianSDE

__all__ = ["ribbon"]

_SOLVERS = {"probability-flow ODE": "ddim", "reverse SDE": "ddpm"}


def ribbon(
    problem: Problem[Any], sde: GaussianSDE, *, n: int = 8, steps: int = 200, seed: int = 0, title: str = ""
) -> Figure:
    r"""Draw the density of noised data on the line against time, under trajectories of the ODE and of the reverse SDE.

    Both panels have the same density :math:`p_t(x)`, at each time relative to its largest value, and trajectories from the
    same starts. The probability-flow ODE and the reverse SDE differ in their trajectories and agree in this density.

    Args:
        problem: a distribution of one number, such as ``GaussianMixture([[-1.0], [1.5]], [[[0.04]], [[0.09]]])``.
        sde: the SDE.
        n: the number of trajectories in a panel.
        steps: the number of steps of the solvers, ddim and ddpm, even in time.
        seed: the seed of the starts and of the noise.
        title: the title of the figure.

    Raises:
        ValueError: for a problem of more than one number, and no trajectory or step.

    Source: the two processes and their common marginals are in Song et al., "Score-based generative modeling through
    stochastic differential equations" (2021), https://arxiv.org/abs/2011.13456.

    Example:
        >>> import scoresde
        >>> figure = ribbon(scoresde.problems.gaussian(1), scoresde.VP(), n=3, steps=10)
        >>> [ax.get_title() for ax in figure.axes]
        ['probability-flow ODE', 'reverse SDE']
    """
    if tuple(problem.event) != (1,):
        raise ValueError(f"got a problem with samples of shape {tuple(problem.event)}; expected (1,), a single number")
    whole("n", n, 1), whole("steps", steps, 2)
    generator = torch.Generator().manual_seed(seed)
    low, high = sde.span
    start = float(sde.sigma(high)) * torch.randn(n, 1, generator=generator, dtype=torch.float64)
    start = start + float(sde.alpha(high)) * problem.mean.double()
    ways = {name: _trajectories(problem, sde, start, solver, steps, seed) for name, solver in _SOLVERS.items()}
    times = torch.linspace(max(low, 1e-3 * high), high, 240, dtype=torch.float64)
    data = problem.sample(2000, generator).double()
    spread = torch.cat([data.flatten(), *(x.flatten() for _, x in ways.values())])
    bottom, top = float(spread.min()), float(spread.max())
    pad = 0.08 * (top - bottom)
    x = torch.linspace(bottom - pad, top + pad, 400, dtype=torch.float64)
    density = torch.stack([problem.log_prob(x[:, None], sde, float(t)) for t in times], dim=1)
    density = (density - density.amax(0)).exp()

    figure = new_figure(8.4, 3.4 + (0.3 if title else 0.0))
    axes = figure.subplots(1, 2, sharey=True)
    for ax, colour, (name, (at, states)) in zip(axes, PALETTE[1::-1], ways.items(), strict=True):
        ax.pcolormesh(times.numpy(), x.numpy(), density.numpy(), cmap="Greys", vmin=0, vmax=1.8, shading="gouraud", zorder=0)
        ax.plot(at, states[:, :, 0].numpy(), color=colour, linewidth=1.0)
        ax.set(xlabel="time t", xlim=(high, 0.0))
        ax.set_title(name, fontsize=10)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("x")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _trajectories(
    problem: Problem[Any], sde: GaussianSDE, start: Tensor, solver: str, steps: int, seed: int
) -> tuple[list[float], Tensor]:
    """Return the times of a run and its states, shape ``(times, n, 1)``, the start and the end included."""
    times, states = [float(sde.span[1])], [start]

    def keep(state: Any) -> None:
        times.append(float(state.point.t))
        states.append(state.x.detach().clone())

    with torch.no_grad():
        sample(problem.model(sde), start, solver, steps, "t", seed=seed, callback=keep, progress=False)
    return times, torch.stack(states).cpu()
