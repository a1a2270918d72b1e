"""The error of every deterministic solver against its evaluations, on a mixture of Gaussians whose score is known.

python examples/compare_solvers.py [--quick] [--out runs/compare_solvers]
"""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

import scoresde
from scoresde import plots, problems, solvers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_solvers"))
    arguments = parser.parse_args()

    mixture = problems.GaussianMixture([[-1.0, 0.3], [0.8, -0.5], [0.2, 0.9]], [0.15, 0.1, 0.2])
    model = mixture.model(scoresde.VP())
    start = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def solve(solver: str | solvers.Solver, steps: int) -> scoresde.Samples:
        # Without the last denoising all solvers end at the same time, t_min, of the same probability flow.
        return scoresde.sample(model, start, solver, steps, "lam", t_min=0.01, end="stop", progress=False)

    reference = solve(solvers.rk45(rtol=1e-11, atol=1e-11), 1).x
    counts = [8, 16, 32] if arguments.quick else [8, 16, 32, 64, 128, 256, 512]
    names = ["euler", "heun", "rk4", "ddim", "dpm-2", "dpm-3", "dpmpp-2m", "dpmpp-3m", "unipc-3", "ipndm"]

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    print(f"{'solver':<10} {'order':>5}   root mean square error at {counts} steps")
    for i, name in enumerate(names):
        runs = [solve(name, n) for n in counts]
        errors = [float((run.x - reference).square().mean().sqrt()) for run in runs]
        order = solvers.SOLVERS[name]().description.order
        print(f"{name:<10} {order:>5}   " + " ".join(f"{error:8.1e}" for error in errors))
        style = {"color": plots.PALETTE[i % 7], "marker": "osD^vPX*"[i % 8], "linestyle": "-" if i < 4 else "--"}
        axes.loglog([run.evaluations for run in runs], errors, label=f"{name} (order {order})", markersize=4, **style)
    axes.set(xlabel="network evaluations", ylabel="root mean square error", title="Probability flow of VP, three Gaussians")
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    plots.save(figure, arguments.out / "errors.png")
    print(f"figure: {arguments.out / 'errors.png'}")


if __name__ == "__main__":
    main()
