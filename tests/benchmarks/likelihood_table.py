"""Write the tables and the figure of docs/likelihood.md: the cost and the error bars of likelihoods, where they are known.

    python tests/benchmarks/likelihood_table.py [cost] [cover] [ring] [--samples 32]

``cost`` compares ``log_likelihood`` with dopri5 in t on the state and the log-density together, one step for the whole batch
and an equal absolute and relative tolerance, as in the published code of Song et al. (2021): torchdiffeq's if it is
installed, and SciPy's RK45, the same pair, otherwise. Both have the exact trace and the prior of the moments of the data.
``cover`` counts how often the true error is within the reported one. ``ring`` takes the default on a grid of points. Each
result is kept in docs/tables/likelihood.json; a part that is named is measured again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde import EDM, VP, RectifiedFlow, ScoreModel, log_likelihood, problems
from scoresde.base.trace import quadratic_forms, unit_vectors

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEPT = DOCS / "tables" / "likelihood.json"
F64 = torch.float64


def dopri5(model: ScoreModel, x: Tensor, tolerance: float) -> tuple[Tensor, int]:
    """Return the log-density by Dormand and Prince's pair in t, and its number of evaluations."""
    sde, d, calls = model.sde, x[0].numel(), 0
    start, end = sde.span

    def rates(t: Tensor, state: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        with torch.enable_grad():
            y = state[:, :d].detach().requires_grad_()
            t = torch.as_tensor(t, dtype=F64)
            slope = sde.drift(y, t) - 0.5 * sde.diffusion_squared(t) * model.score(y, t)
            trace = quadratic_forms(slope, y, unit_vectors(y), create_graph=False).sum(0)
        return torch.cat([slope.detach(), trace[:, None]], 1)

    state = torch.cat([x, torch.zeros_like(x[:, :1])], 1)
    try:
        from torchdiffeq import odeint
    except ImportError:
        from scipy.integrate import solve_ivp

        def flat(t: float, y: Any) -> Any:
            return rates(torch.tensor(t), torch.from_numpy(y).reshape(state.shape)).numpy().ravel()

        found = solve_ivp(flat, (start, end), state.numpy().ravel(), rtol=tolerance, atol=tolerance).y[:, -1]
        last = torch.from_numpy(found).reshape(state.shape)
    else:
        times = torch.tensor([start, end], dtype=F64)
        last = odeint(rates, state, times, rtol=tolerance, atol=tolerance, method="dopri5")[-1]
    assert model.moments is not None
    return model.moments.log_prob(last[:, :d], sde, end) + last[:, d], calls


def cost(samples: int) -> list[dict[str, Any]]:
    problem, sde = problems.random_mixture(64), VP()
    model, x = problem.model(sde), problem.sample(samples, torch.Generator().manual_seed(10), F64)
    true, found = problem.log_prob(x, sde, sde.span[0]), []

    def add(name: str, tolerance: float, value: Tensor, evaluations: int) -> None:
        error = float((value - true).square().mean().sqrt()) / 64
        found.append({"method": name, "tolerance": tolerance, "evaluations": evaluations, "error": error})
        print(found[-1], flush=True)

    for tolerance in (1e-2, 3e-3, 1e-3, 5e-4, 1e-4, 1e-5):
        got = log_likelihood(model, x, tolerance, trace="exact")
        add("log_likelihood", tolerance, got.log_prob, got.evaluations)
    for steps in (30, 40, 60, 100):
        got = log_likelihood(model, x, steps=steps, trace="exact")
        add("even steps in lam", steps, got.log_prob, got.evaluations)
    for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6):
        add("dopri5 in t", tolerance, *dopri5(model, x, tolerance))
    return found


# The number of dimensions, the trace, and the number of samples in units of --samples.
CASES = [(2, "exact", 8), (64, "exact", 1), (64, "rademacher", 8), (64, "hutch++", 4), (1024, "rademacher", 8)]


def cover(samples: int) -> list[dict[str, Any]]:
    found = []
    for d, trace, more in CASES:
        for sde in (VP(), EDM(), RectifiedFlow()) if d == 2 else (VP(),):
            for tolerance in (1e-2, 1e-4) if trace == "exact" else (1e-2,):
                problem, n = problems.random_mixture(d), more * samples
                x = problem.sample(n, torch.Generator().manual_seed(11), F64)
                got = [
                    log_likelihood(problem.model(sde), x[i : i + 64], tolerance, trace=trace, seed=range(i, min(i + 64, n)))
                    for i in range(0, n, 64)
                ]
                off = torch.cat([g.log_prob for g in got]) - problem.log_prob(x, sde, sde.span[0])
                error = torch.cat([g.error for g in got])
                share = float((off.abs() <= error).double().mean())
                rms = float(off.square().mean().sqrt()) / d
                found.append({"d": d, "sde": type(sde).__name__, "trace": trace, "tolerance": tolerance, "samples": n})
                found[-1] |= {"covered": share, "rms": rms, "reported": float(error.mean()) / d}
                print(found[-1], flush=True)
    return found


def ring(samples: int) -> dict[str, float]:
    """Return the largest error of the default on a grid that reaches far beyond the data."""
    problem, side = problems.ring(), torch.linspace(-3, 3, 2 * round(samples**0.5) + 1, dtype=F64)
    x, sde = torch.cartesian_prod(side, side), VP()
    got = log_likelihood(problem.model(sde), x)
    off = (got.log_prob - problem.log_prob(x, sde, sde.span[0])).abs()
    return {"points": len(x), "largest": float(off.max()), "evaluations": got.evaluations}


def draw(found: list[dict[str, Any]]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name, marker in (("log_likelihood", "o"), ("even steps in lam", "s"), ("dopri5 in t", "^")):
        rows = [r for r in found if r["method"] == name]
        label = "log_likelihood, by tolerance" if marker == "o" else name
        axes.loglog([r["evaluations"] for r in rows], [r["error"] for r in rows], marker + "-", label=label)
    axes.axhline(2e-4, color="grey", linewidth=0.8, linestyle="--")
    axes.set_xlabel("evaluations, each with a divergence")
    axes.set_ylabel("rms error, nats per dimension")
    axes.set_xticks([30, 50, 70, 100, 150], ["30", "50", "70", "100", "150"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(DOCS / "images" / "likelihood.png", dpi=130)


def table(columns: list[str], rows: list[list[Any]]) -> str:
    head = "| " + " | ".join(columns) + " |\n|---" + "|--:" * (len(columns) - 1) + "|\n"
    return head + "".join("| " + " | ".join(str(v) for v in row) + " |\n" for row in rows)


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="cost, cover, ring; all by default")
    parser.add_argument("--samples", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name, measure in (("ring", ring), ("cost", cost), ("cover", cover)):
        if name in (arguments.parts or ("ring", "cost", "cover")):
            kept[name] = measure(arguments.samples)
            KEPT.write_text(json.dumps(kept, indent=1) + "\n")
    print(kept.get("ring"))
    if "cost" in kept:
        draw(kept["cost"])
        rows = [[r["method"], f"{r['tolerance']:g}", r["evaluations"], f"{r['error']:.1e}"] for r in kept["cost"]]
        print(table(["method", "tolerance or steps", "evaluations", "rms error"], rows))
    if "cover" in kept:
        columns = ["d", "SDE", "trace", "tolerance", "samples", "covered", "rms error", "reported"]
        print(table(columns, [list(map(shown, r.values())) for r in kept["cover"]]))


if __name__ == "__main__":
    main()
