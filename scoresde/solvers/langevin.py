"""Langevin dynamics: as a corrector after any solver, and annealed by itself.

Notation of the formulas: a step goes from u to v, towards the data; h = lam_v - lam_u > 0; m is the data prediction and
eps the noise prediction at u; xi is standard normal.
"""

from __future__ import annotations

from scoresde.solvers import scalar
from scoresde.solvers.path import Path
from scoresde.solvers.prediction import Noise
from scoresde.solvers.rows import Langevin, Op, Row, forward_move, last_move, one_step
from scoresde.solvers.solver import Description, RowSolver
from scoresde.solvers.stochastic import reverse_diffusion

__all__ = ["annealed_langevin", "predictor_corrector"]

NCSN_2019 = "Song & Ermon 2019, arXiv:1907.05600"
SONG_2021 = "Song et al. 2021, arXiv:2011.13456"


def predictor_corrector(
    predictor: RowSolver | None = None, corrections: int = 1, snr: float = 0.16, norm: str = "sample"
) -> RowSolver:
    r"""Any solver, followed at each point by Langevin corrections of the marginal there.

    .. math:: x \leftarrow x + \epsilon\, s(x) + \sqrt{2 \epsilon}\, \xi, \qquad
              \epsilon = 2 a^2 \left( \mathrm{snr}\, \frac{\|\xi\|}{\|s(x)\|} \right)^2

    with a the factor of the forward transition into that point (1 for variance-exploding SDEs).

    Args:
        predictor: a solver that makes rows; by default :func:`reverse_diffusion`.
        corrections: number of Langevin steps at each point but the clean end.
        snr: the signal-to-noise ratio of a Langevin step.
        norm: ``"sample"`` takes the two norms of each sample, so that a sample does not depend on its batch;
            ``"batch"`` their averages over the batch, as in the authors' code.

    Source: Song et al., 2021, algorithms 2 to 5.
    """
    base = reverse_diffusion() if predictor is None else predictor
    if not isinstance(base, RowSolver):
        raise ValueError(f"got predictor {base!r}; expected a solver that makes rows (an adaptive or outside one does not)")
    if not isinstance(corrections, int) or corrections < 1:
        raise ValueError(f"got corrections={corrections!r}; expected a whole number of at least 1 (or no corrector at all)")
    if not snr > 0:
        raise ValueError(f"got snr={snr}; expected a positive number")
    if norm not in ("sample", "batch"):
        raise ValueError(f"got norm={norm!r}; expected 'sample' or 'batch'")

    def rows(path: Path) -> list[Op]:
        below = dict(path.moves)
        out: list[Op] = []
        for row in base.rows(path):
            out.append(row)
            if isinstance(row, Row) and row.ends_step and row.to.sigma > 0:
                towards_data = below.get(row.to, row.to)
                scale = scalar.exp(2 * (row.to.log_alpha - towards_data.log_alpha))
                out += [Langevin(row.to, snr, scale, norm)] * corrections
        return out

    evaluations = None if base.description.evaluations is None else base.description.evaluations + corrections
    return RowSolver(Description("pc", "langevin", SONG_2021, evaluations=evaluations, stochastic=True), rows)


def annealed_langevin(steps_per_level: int = 5, step: float = 0.2) -> RowSolver:
    r"""Langevin dynamics at each noise level of the path in turn, with the step proportional to the level's variance.

    .. math:: x \leftarrow x + \tfrac12 r \sigma^2 s(x) + \sqrt{r}\, \sigma\, \xi

    repeated ``steps_per_level`` times, with r = ``step``; x / alpha is kept from level to level. The authors' epsilon is
    r times the square of the smallest level: 2e-5 at 0.01 is r = 0.2. Source: Song and Ermon, 2019, algorithm 1.
    """
    if not isinstance(steps_per_level, int) or steps_per_level < 1:
        raise ValueError(f"got steps_per_level={steps_per_level!r}; expected a whole number of at least 1")
    if not 0 < step < 4:
        raise ValueError(f"got step={step}; expected a number between 0 and 4, beyond which Langevin dynamics diverge")

    def rows(path: Path) -> list[Op]:
        Noise().check(path.points[0])
        out: list[Op] = []
        for u, v in path.moves:
            correction = one_step(
                u,
                u,
                a=1.0,
                w=0.5 * step * u.sigma**2,
                s=scalar.sqrt(step) * u.sigma,
                p=-1 / u.sigma**2,
                q=u.alpha / u.sigma**2,
            )
            out += [correction] * steps_per_level
            if v.sigma == 0:
                out.append(last_move(path))
            elif v.lam < u.lam:
                out.append(forward_move(u, v))
            elif v.log_alpha != u.log_alpha:
                out.append(Row(to=v, at=None, a=scalar.exp(v.log_alpha - u.log_alpha)))
        return out

    return RowSolver(
        Description("annealed-langevin", "langevin", NCSN_2019, evaluations=steps_per_level, stochastic=True), rows
    )
