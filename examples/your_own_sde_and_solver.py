"""An SDE and a solver of your own, in ten lines, and a check that the solver has the order it claims.

python examples/your_own_sde_and_solver.py [--quick] [--out runs/your_own]
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure

import scoresde
from scoresde import plots, problems, solvers

# An SDE is log alpha(t) and log sigma(t), whatever else is needed follows from them: here alpha = exp(-t^2), sigma = t.
sde = scoresde.FunctionSDE(lambda t: -(t**2), lambda t: torch.log(t), t_min=1e-3, t_max=2.0)

# A solver is a prediction (which quantity, in which clock) and a stencil (where it is sampled): here the data prediction,
# interpolated by a parabola through this step's start and the two before it.
mine = solvers.RowSolver(
    solvers.Description("mine", "exponential", "this page", order=3),
    lambda path: solvers.stencil_rows(solvers.Data(), solvers.multistep(3), path),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/your_own"))
    arguments = parser.parse_args()

    problem = problems.gaussian()
    model = problem.model(sde)
    start = sde.prior((32, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    # On Gaussian data the probability flow only stretches: each principal axis by the ratio of its deviations.
    variances, axes = torch.linalg.eigh(problem.covariance)
    before, after = ((sde.alpha(t) ** 2 * variances + sde.sigma(t) ** 2).sqrt() for t in (2.0, 0.1))
    exact = (start @ axes * after / before) @ axes.T

    def solve(steps: int) -> torch.Tensor:
        return scoresde.sample(model, start, mine, steps, t_min=0.1, end="stop", progress=False).x

    counts = [32, 64, 128] if arguments.quick else [32, 64, 128, 256, 512]
    errors = [float((solve(n) - exact).abs().max()) for n in counts]
    order = math.log2(errors[-2] / errors[-1])
    print("\n".join(f"{n:5} steps: largest error {error:.2e}" for n, error in zip(counts, errors, strict=True)))
    print(f"measured order {order:.2f}, claimed {mine.description.order}")

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    plot = figure.subplots()
    plot.loglog(counts, errors, "o-", color=plots.PALETTE[0], label="measured")
    guide = [errors[-1] * (counts[-1] / n) ** 3 for n in counts]
    plot.loglog(counts, guide, "--", color="0.5", label="slope of order 3")
    plot.set(xlabel="steps", ylabel="largest error", title=f"A solver of order {order:.2f}")
    plot.set_xticks(counts, map(str, counts))
    plot.minorticks_off()
    plot.legend(frameon=False)
    plots.save_figure(figure, arguments.out / "order.png")
    print(f"figure: {arguments.out / 'order.png'}")


if __name__ == "__main__":
    main()
