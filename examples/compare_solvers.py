"""The error of solvers against their evaluations, on a mixture of Gaussians and on the digits of scikit-learn themselves.

python examples/compare_solvers.py [--quick] [--out runs/compare_solvers]
"""

import argparse
from pathlib import Path

import scoresde
from scoresde import problems, solvers
from scoresde.comparison import evaluations_to_reach, ranking
from scoresde.comparison.report.statistics import Curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/compare_solvers"))
    arguments = parser.parse_args()

    mixture = problems.GaussianMixture([[-1.0, 0.3], [0.8, -0.5], [0.2, 0.9]], [0.15, 0.1, 0.2])
    asked = {"three Gaussians": mixture, "digits": problems.digits()}  # the second is the data, smoothed a little
    budgets = [8, 16, 32] if arguments.quick else [8, 16, 32, 64, 128, 256]
    ours = ["heun", "rk4", "ddim", "dpm-2", "dpm-3", "dpmpp-2m", "dpmpp-3m", "unipc-3", "ipndm"]
    # A solver object stands beside those of the table: here the interpolation that the published third order lacks.
    compared = {**{name: name for name in ours}, "dpmpp-3m exact": solvers.dpmpp_3m(variant="exact")}

    # Interrupted, it continues from what the folder holds.
    found = scoresde.compare(asked, compared, budgets, metrics=["rms"], n=16, out=arguments.out)
    print(found.table())

    calls = evaluations_to_reach(found, 0.02)
    print(f"{'solver':<16} mean rank   evaluations to an error of 0.02 on three Gaussians")
    for rank in ranking(found):
        curve = Curve("three Gaussians", rank.solver, rank.path, "VP")
        print(f"{rank.solver:<16} {rank.mean:9.1f}   {calls[curve]:.0f}")
    for path in found.report(arguments.out):
        print(path)


if __name__ == "__main__":
    main()
