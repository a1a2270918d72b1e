r"""References: the end of the probability flow to 1e-10, against which the error of a solver is measured.

The reference must be the limit of the solver as its number of steps grows. Otherwise the error stops falling at a floor
that is not the solver's own. All solvers follow the flow up to the last time before sigma = 0 and make the same last move
from there. So the reference follows the flow from the start to that time and then makes the same move:

=================  ==========================================================================================
the path ends      the reference
=================  ==========================================================================================
``"stop"``         the flow at the last time
``"denoise"``      the data prediction at the flow's state at the last time before sigma = 0
``"flow"``         the flow's last move from there, (x / alpha + D) / 2
``"extrapolate"``  the end of the flow of the data, as with ``to="data"``
=================  ==========================================================================================

With ``to="data"`` the reference is the end of the flow of the data instead. The flow is followed on to sigma / alpha = 1e-6
and ends there with the data prediction. For a smooth density the error of this end is sigma^2 / 2 times the score, and for
data that lie on points it is zero. A solver's error against this reference includes the cost of stopping early, which no
number of steps removes. A network is then evaluated at levels of noise on which it may never have been trained.

**Time variable.** The flow is integrated in the angle of signal and noise,

.. math:: \varphi = \arctan(\sigma / \alpha), \qquad z = x / \sqrt{\alpha^2 + \sigma^2}, \qquad
          \frac{dz}{d\varphi} = \frac{z \cos\varphi - D}{\sin\varphi},

which is regular at both ends and the same for every SDE. The schedule of a chain has a kink at each of its thousand steps.
The angle has none, whereas in time an integrator of high order would stop at each kink.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from scoresde.base.files import replacing
from scoresde.base.identity import digest
from scoresde.base.lock import Lock
from scoresde.base.shape import check_batch
from scoresde.sampling.counted import evaluation_mode
from scoresde.score import Conditions, ScoreModel
from scoresde.solvers.path import CLEAN, Path, PathLike, Point, make_path, points
from scoresde.solvers.rows import last_move

__all__ = ["Reference", "flow_end", "follow"]

TIGHTEST = 1e-13  # tolerance of SciPy, which accepts none below 100 times the rounding of float64
RATIO = 30  # ratio between the tolerances of two solves
CLOSE = 1e-6  # sigma / alpha where the flow of the data ends
MOST = 20_000
"""The limit of evaluations of one solve, unless another is given: about thirty times the cost of a smooth flow."""


@dataclass(frozen=True)
class Reference:
    """The end of a flow, with its estimated error.

    Attributes:
        x: the states, ``(n, *event)``, float64.
        error: the root mean square error of each sample over its coordinates, shape ``(n,)``, estimated from a second solve.

    Example:
        >>> found = Reference(torch.zeros(3, 2, dtype=torch.float64), torch.tensor([1e-12, 1e-11, 1e-12]))
        >>> bool((found.error < 1e-10).all())
        True
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
    """Solve for the end of the probability flow from ``start``, by SciPy's Dormand-Prince method of order 8 in float64.

    The flow is solved twice, the second time with a thirtieth of the tolerance. The second solution is returned, and half
    the distance between the two is its error. The estimate is conservative, since SciPy meets a tolerance for the batch as
    a whole, which a sample may miss. Where the error of any sample exceeds ``tolerance``, both solves are repeated with
    smaller tolerances, as far as float64 allows. Read the returned error: a flow may amplify rounding errors beyond the
    tolerance.

    Args:
        model: an exact model or a network; a network in another precision is copied to float64.
        start: the states at the first time of the path, shape ``(n, *event)``.
        path: the path, as for :func:`scoresde.sample`, with its convention for the end. Only three points count: the first,
            the last before sigma = 0, and the end. So one reference serves all numbers of steps. On a path that goes to
            sigma = 0 in one move, the smallest time of the SDE takes the place of the last point before sigma = 0.
        tolerance: the largest error of a sample.
        to: ``"path"``, the limit of solvers on this path, or ``"data"``, the end of the flow of the data: see the module.
        cache: a folder in which ends are kept. Their key is the content of the model (class, code and parameters), the SDE,
            the start, the conditions, the times and the tolerance. The end of a damaged file is computed again. A file that
            cannot be written is a warning.
        conditions: the values on which the network is conditioned, as for :func:`scoresde.sample`.
        limit: the largest number of evaluations of one solve.

    Raises:
        ValueError: for a path that goes back towards the noise, a network that computes in less than float64, or, with a
            cache, a network that cannot be identified by its content.
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
    if (found := _read(file, start)) is not None:
        return found
    with _alone(file):
        found = _read(file, start)  # another process may have written it meanwhile
        if found is None:
            found = _solve(model, start, where, tolerance, told, limit)
            _write(file, found)
    return found


def check_falls(path: Path) -> Path:
    """Return ``path`` if it never goes back towards the noise; raise ValueError otherwise."""
    if any(v.lam < u.lam for u, v in path.moves):
        raise ValueError(
            "got a path that goes back towards the noise, which no flow follows; expected times that fall: the path without "
            "its detours"
        )
    return path


def truth_of(path: Path, to: str = "path") -> Path:
    """Return the path of one solve of the flow: its first point, its last one before sigma = 0, and its end."""
    if to not in ("path", "data"):
        raise ValueError(f"got to={to!r}; expected 'path' or 'data'")
    first, last = check_falls(path).points[0], path.points[-1]
    if to == "data" or (path.end == "extrapolate" and path.ends_clean):
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
    """Return the model, or a copy of it, in float64."""
    if any(p.is_floating_point() and p.dtype != torch.float64 for p in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).double()
    with torch.no_grad(), evaluation_mode(model):
        t = torch.full((len(start),), model.sde.span[1], dtype=torch.float64, device=start.device)
        # The inputs need all digits of float64. An output that fits a shorter format and is no constant was rounded.
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
    """Solve for the end of the flow from ``x`` along ``path``, once, with ``tolerance``, in float64.

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
    """The probability flow from ``x`` in the angle of the module, with its evaluations counted."""

    def __init__(self, model: ScoreModel, x: Tensor, conditions: Mapping[str, Any], tolerance: float, limit: int) -> None:
        self.model, self.x, self.conditions, self.tolerance, self.limit = model, x, conditions, tolerance, limit
        self.calls = 0

    def predicted(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the data prediction; raise ArithmeticError where it is not finite or the limit is reached."""
        self.calls += 1
        if self.calls > self.limit:
            raise ArithmeticError(
                f"the flow took more than {self.limit} evaluations at a tolerance of {self.tolerance:.1g}, at "
                f"t={float(t):.6g}; check that the network is smooth and computes in float64 throughout, or give a larger "
                "tolerance or limit"
            )
        m = self.model.x0(x, t, **self.conditions)
        if not bool(torch.isfinite(m).all()):  # SciPy would never stop
            raise ArithmeticError(f"the network is not finite at t={float(t):.6g}, so its flow has no end; check it there")
        return m

    def between(self, start: Point, end: Point) -> Tensor:
        """Return the state at ``end`` of the flow that is at ``x`` at ``start``."""
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
    """Read the reference in ``file``; return None where the file is absent or damaged."""
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


@contextlib.contextmanager
def _alone(file: File) -> Iterator[None]:
    """Wait until no other process computes the reference of ``file``; do not wait in a folder that cannot be written."""
    lock = Lock(file)
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(wait=True)
    try:
        yield
    finally:
        lock.release()


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
