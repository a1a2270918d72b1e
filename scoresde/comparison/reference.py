r"""References: where the probability flow ends, to 1e-10, and where along a path a solver leaves it.

What a solver is compared with must be what it tends to as its steps grow in number, or its error stops falling at a floor
that is not its own. All solvers make the last move to sigma = 0 alike, from the last time before it, and follow the flow
only up to there. So the reference follows the flow from the start to that time and then makes the same move:

=============  ==============================================================================================
the path ends  the reference
=============  ==============================================================================================
``"stop"``     the flow at the last time
``"denoise"``  the data prediction at the flow's state at the last time before sigma = 0
``"flow"``     the flow's last move from there, (x / alpha + D) / 2
=============  ==============================================================================================

With ``to="data"`` it is instead the end of the flow of the data themselves: the flow is followed on to sigma / alpha = 1e-6
and ends there with the data prediction. For a smooth density that is off by sigma^2 / 2 times the score, 1e-12 for a score
of 2, and for data that lie on points it is the point. A solver's error against it includes what stopping early costs, which
no number of steps removes, and a network is asked about noise that it may never have seen.

**The clock.** The flow is integrated in the angle of signal and noise,

.. math:: \varphi = \arctan(\sigma / \alpha), \qquad z = x / \sqrt{\alpha^2 + \sigma^2}, \qquad
          \frac{dz}{d\varphi} = \frac{z \cos\varphi - D}{\sin\varphi},

which is regular at both ends and the same for every SDE: a schedule that has a kink at each of a thousand steps, as that of
a chain, leaves none in it. In time an integrator of high order would stop at each of them.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.shape import check_batch
from scoresde.sampling.counted import evaluation_mode
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.path import CLEAN, Path, PathLike, Point, make_path, points
from scoresde.solvers.rows import last_move

__all__ = ["Reference", "flow_end", "follow"]

TIGHTEST = 1e-13  # of SciPy's tolerances, which stop at 100 times the rounding of float64
RATIO = 30  # between the tolerances of two solves
CLOSE = 1e-6  # sigma / alpha where the flow of the data ends
MOST = 20_000
"""The evaluations of one solve, unless another limit is given: about thirty times those that a smooth flow takes."""


@dataclass(frozen=True)
class Reference:
    """The end of a flow.

    Attributes:
        x: the states, ``(n, *event)``, float64.
        error: of each sample, root mean square over its coordinates, shape ``(n,)``, estimated from a second solve.
    """

    x: Tensor
    error: Tensor


def flow_end(
    model: ScoreModel,
    start: Tensor,
    path: PathLike,
    *,
    tolerance: float = 1e-10,
    to: str = "path",
    cache: str | os.PathLike[str] | None = None,
    conditions: Mapping[str, Any] | None = None,
    limit: int = MOST,
) -> Reference:
    """The end of the probability flow from ``start``, by SciPy's Dormand-Prince method of order 8 in float64.

    It is solved twice, the second time with a thirtieth of the tolerance of the first. The second is returned, and half of
    their distance is its error: a safe one, since SciPy meets a tolerance for the batch as a whole, which a sample may miss.
    Where that is above ``tolerance`` for any sample both are tightened, as far as float64 goes: read the error, since a flow
    may spread rounding errors apart further than was asked for.

    Args:
        model: exact or a network, which is copied to float64 if it has other parameters.
        start: shape ``(n, *event)``, noised to the first time of the path.
        path: as for :func:`scoresde.sample`, with its convention for the end. Only its first time, its last one before
            sigma = 0 and its end count, so that one reference serves all numbers of steps; of a path that goes to sigma = 0
            in one move, the smallest time of the SDE.
        tolerance: of the error.
        to: ``"path"``, the end that solvers on this path tend to; ``"data"``, that of the flow of the data: see the module.
        cache: a folder in which ends are kept by their content: the model's class, code and parameters, the SDE, the start,
            the conditions, the times and the tolerance. A file that is damaged is computed again; one that cannot be
            written is a warning.
        conditions: what the network is told beside x and t, as for :func:`scoresde.sample`.
        limit: the evaluations of one solve, after which it is given up.

    Raises:
        ValueError: for a path that goes back towards the noise, a network that computes in less than float64, or one that
            cannot be told from others by its content, where there is a cache.
        ArithmeticError: if the network is not finite, or the flow not smooth enough for the tolerance within the limit.

    Example:
        >>> from scoresde import VP, problems
        >>> problem = problems.Gaussian([0.0, 0.0], 1.0)  # whose flow stands still
        >>> start = torch.ones(3, 2, dtype=torch.float64)
        >>> end = flow_end(problem.model(VP()), start, make_path(VP(), end="stop"))
        >>> bool(torch.allclose(end.x, start, rtol=0, atol=1e-10)), bool(end.error.max() < 1e-10)
        (True, True)
    """
    if not tolerance > 0:
        raise ValueError(f"got tolerance={tolerance}; expected a positive number")
    where = truth_of(make_path(model.sde, path), to)
    start = check_batch(start).detach()
    told = Conditions.of(conditions, len(start), device=start.device, dtype=torch.float64).values
    if cache is None:
        return _solve(model, start, where, tolerance, told, limit)
    file = File(cache) / f"{digest('reference 2', model, start, where, tolerance, dict(told))}.safetensors"
    found = _read(file, start)
    if found is None:
        found = _solve(model, start, where, tolerance, told, limit)
        _write(file, found)
    return found


def check_falls(path: Path) -> Path:
    """``path``, if it never goes back towards the noise."""
    if any(v.lam < u.lam for u, v in path.moves):
        raise ValueError(
            "got a path that goes back towards the noise, which no flow follows; expected times that fall: the path without "
            "its detours"
        )
    return path


def truth_of(path: Path, to: str = "path") -> Path:
    """The path of one solve of the flow: its first point, its last one before sigma = 0, and its end."""
    if to not in ("path", "data"):
        raise ValueError(f"got to={to!r}; expected 'path' or 'data'")
    first, last = check_falls(path).points[0], path.points[-1]
    if to == "data":
        (close,) = points(path.sde, path.sde.time(torch.tensor([-math.log(CLOSE)], dtype=torch.float64)))
        return Path(path.sde, (first, close, CLEAN), "denoise")
    if not path.ends_clean:
        return Path(path.sde, (first, last), path.end)
    before = path.points[-2]
    if len(path) == 1:
        (before,) = points(path.sde, torch.tensor([path.sde.span[0]], dtype=torch.float64))
    return Path(path.sde, (first, before, last), path.end)


def _solve(
    model: ScoreModel, start: Tensor, path: Path, tolerance: float, conditions: Mapping[str, Any], limit: int
) -> Reference:
    model, x = in_double(model, start, conditions), start.double()
    local = max(tolerance / 3, TIGHTEST)
    loose = follow(model, x, path, local, conditions, limit)
    while True:
        local = max(local / RATIO, TIGHTEST)
        tight = follow(model, x, path, local, conditions, limit)
        error = 0.5 * (tight - loose).flatten(1).square().mean(1).sqrt()
        if local <= TIGHTEST or float(error.max()) <= tolerance:
            return Reference(tight, error)
        loose = tight


def in_double(model: ScoreModel, start: Tensor, conditions: Mapping[str, Any] | None = None) -> ScoreModel:
    """The model, or a copy of it, in float64."""
    if any(p.is_floating_point() and p.dtype != torch.float64 for p in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).double()
    with torch.no_grad(), evaluation_mode(model):
        t = torch.full((len(start),), model.sde.span[1], dtype=torch.float64, device=start.device)
        # States that are no shorter numbers: an output that is one all the same, and no constant, was rounded.
        found, other = (model(scale * start.double(), t, **(conditions or {})) for scale in (1 + 1e-9 / 3, 2.0))
    if torch.equal(found, found.float().double()) and not torch.equal(found, other):
        raise ValueError(
            "got a network that computes in float32 or less for states in float64, too coarse for a reference; expected one "
            "that computes in the dtype of its input"
        )
    return model


def follow(
    model: ScoreModel,
    x: Tensor,
    path: Path,
    tolerance: float,
    conditions: Mapping[str, Any] | None = None,
    limit: int = MOST,
) -> Tensor:
    """The end of the flow from ``x`` along ``path``, by one solve with ``tolerance``, in float64.

    Raises:
        ArithmeticError: if the network is not finite, or the limit of evaluations is reached.
    """
    flow = _Flow(model, x, conditions or {}, tolerance, limit)
    inner = path.points[:-1] if path.ends_clean else path.points
    with torch.no_grad(), evaluation_mode(model):
        x = flow.between(inner[0], inner[-1])
        if path.ends_clean:
            last = last_move(path)
            x = torch.add(last.a * x, flow.predicted(x, torch.tensor(inner[-1].t, dtype=torch.float64)), alpha=last.w[0])
    return x


class _Flow:
    """The probability flow from ``x`` in the clock of the module, with its evaluations counted."""

    def __init__(self, model: ScoreModel, x: Tensor, conditions: Mapping[str, Any], tolerance: float, limit: int) -> None:
        self.model, self.x, self.conditions, self.tolerance, self.limit = model, x, conditions, tolerance, limit
        self.calls = 0

    def predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """The data prediction, or why the flow has no end."""
        self.calls += 1
        if self.calls > self.limit:
            raise ArithmeticError(
                f"the flow took more than {self.limit} evaluations at a tolerance of {self.tolerance:.1g}, at "
                f"t={float(t):.6g}; check that the network is smooth and computes in float64 throughout, or give a larger "
                "tolerance or limit"
            )
        m = self.model.x0(x, t, **self.conditions)
        if not bool(torch.isfinite(m).all()):  # SciPy would go on and on
            raise ArithmeticError(f"the network is not finite at t={float(t):.6g}, so its flow has no end; check it there")
        return m

    def between(self, start: Point, end: Point) -> Tensor:
        """The state at ``end`` of the flow that is at ``x`` at ``start``."""
        from scipy.integrate import solve_ivp

        if start == end:
            return self.x
        sde, shape = self.model.sde, self.x.shape

        def slope(angle: float, flat: Any) -> Any:
            z = torch.from_numpy(flat).to(self.x).reshape(shape)
            t = sde.time(torch.tensor(-math.log(math.tan(angle)), dtype=torch.float64)).clamp(end.t, start.t)
            m = self.predicted(float(torch.hypot(sde.alpha(t), sde.sigma(t))) * z, t)
            return ((math.cos(angle) * z - m) / math.sin(angle)).cpu().numpy().ravel()

        angles = [math.atan2(p.sigma, p.alpha) for p in (start, end)]
        z = (self.x / math.hypot(start.alpha, start.sigma)).cpu().numpy().ravel()
        found = solve_ivp(slope, angles, z, "DOP853", t_eval=angles[1:], rtol=self.tolerance, atol=self.tolerance)
        if not found.success:
            raise ArithmeticError(f"the flow has no end at a tolerance of {self.tolerance:.1g}: {found.message}")
        return math.hypot(end.alpha, end.sigma) * torch.from_numpy(found.y[:, -1]).to(self.x).reshape(shape)


# The cache -----------------------------------------------------------------------------------------------------------


def _checksum(found: Reference) -> str:
    return hashlib.sha256(found.x.numpy().tobytes() + found.error.numpy().tobytes()).hexdigest()


def _read(file: File, start: Tensor) -> Reference | None:
    """What ``file`` holds, or None where it is absent or not what was written."""
    from safetensors import SafetensorError, safe_open

    wanted = {"x": list(start.shape), "error": [len(start)]}
    try:
        with safe_open(file, framework="pt") as content:
            names = set(content.keys())
            parts = {name: content.get_slice(name) for name in names}
            if {name: part.get_shape() for name, part in parts.items()} != wanted:
                return None
            if {part.get_dtype() for part in parts.values()} != {"F64"}:
                return None
            found = Reference(content.get_tensor("x"), content.get_tensor("error"))
            whole = (content.metadata() or {}).get("sha256") == _checksum(found)
    except (OSError, SafetensorError):
        return None
    return Reference(found.x.to(start.device), found.error.to(start.device)) if whole else None


def _write(file: File, found: Reference) -> None:
    from safetensors.torch import save_file

    kept = replace(found, x=found.x.cpu().contiguous(), error=found.error.cpu().contiguous())
    try:
        with replacing(file) as temporary:
            save_file({"x": kept.x, "error": kept.error}, temporary, {"sha256": _checksum(kept)})
    except OSError as error:
        warnings.warn(
            f"cannot keep the reference in {file.parent}: {error}; it is computed again next time: make room, or give "
            "another folder",
            stacklevel=4,
        )
