r"""Encoding: from data to noise along the probability flow, and back.

The flow is a map between the data at ``t_min`` and the latents at ``t_max``, which the prior describes. Encoding follows it
upwards by any deterministic solver, with the solver's own order; decoding is sampling from a given latent. The way back is
exact up to the errors of the steps or, with an invertible method (:mod:`scoresde.sampling.editing.invertible`), up to
rounding. Encoding with DDIM is DDIM inversion.

Sources: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
https://arxiv.org/abs/2011.13456, section 4.3; Song, Meng and Ermon, "Denoising Diffusion Implicit Models", 2020,
https://arxiv.org/abs/2010.02502, section 4.3.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from scoresde.sampling.counted import Counted, evaluation_mode
from scoresde.sampling.editing.invertible import Invertible, Pair
from scoresde.sampling.editing.matrix import matrix_flow
from scoresde.sampling.editing.mirror import Mirrored, MirroredSDE, mirrored_path
from scoresde.sampling.kept import Times, kept_points, same, with_kept
from scoresde.sampling.run import NonFiniteError, finite
from scoresde.sampling.samples import Samples, sample
from scoresde.sampling.start import check_data
from scoresde.score import Conditions, ScoreModel
from scoresde.sde import MatrixSDE
from scoresde.solvers.drivers import Driver
from scoresde.solvers.path import Path, PathLike, Point, make_path
from scoresde.solvers.solver import Solver
from scoresde.solvers.table import SOLVERS, get

__all__ = ["decode", "encode"]


def encode(
    model: ScoreModel,
    x: Tensor,
    solver: str | Solver | Invertible = "auto",
    steps: int = 50,
    path: PathLike = "lam",
    *,
    partner: Tensor | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    keep: Times | None = None,
    progress: bool = False,
    driver: str | Driver = "auto",
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Follow the probability flow from data at ``t_min`` to their latents at ``t_max``.

    The flow :math:`dx = m\, d\alpha + \epsilon\, d\sigma` treats data and noise alike. The solver runs on the mirrored
    process, in which they have changed places, so that each keeps its order on the way up. A latent of the data is a draw
    of the prior, N(0, prior_std^2 I), if the model is exact.

    Args:
        model: the score model.
        x: data of shape ``(batch, *event)``, taken for states at ``t_min``; they are not changed. On an SDE with several
            variables they are states with all of them, ``sde.perturb(data, t_min, eps)``.
        solver: a name of ``scoresde.solvers.SOLVERS`` or a solver object, deterministic; or an invertible method,
            :class:`~scoresde.sampling.Coupled` or :class:`~scoresde.sampling.Bidirectional`. ``"auto"`` is "rk4". On an SDE
            with matrix coefficients it is a solver of ``scoresde.solvers.MATRIX_SOLVERS``, and ``"auto"`` is of order three.
        steps, path: the same as in :func:`scoresde.sample`; times fall from noise to data there and here, and are visited in
            reverse.
        partner: the second state of an invertible method, ``info["partner"]`` of a decoding; by default a new run.
        t_min, t_max: the ends of the path, by default those of the SDE.
        keep: times whose states are returned in ``states``, as in :func:`scoresde.sample`.
        progress, driver, conditions: the same as in :func:`scoresde.sample`.

    Returns:
        The latents ``x``, shape ``(batch, *event)``, and how they were computed; ``times`` rise. An invertible method keeps
        its second state in ``info["partner"]``, which :func:`decode` takes.

    Raises:
        TypeError: if ``model`` is not a score model.
        ValueError: for a stochastic solver, data that are empty, of a wrong shape or not finite, a path that goes back and
            forth or has a point without noise, and whatever :func:`scoresde.sample` refuses.
        NonFiniteError: if a state becomes infinite or NaN.

    Example:
        >>> import scoresde
        >>> problem = scoresde.problems.ring()
        >>> model, x = problem.model(scoresde.VP()), problem.sample(4, torch.Generator().manual_seed(0), torch.float64)
        >>> latent = encode(model, x, "rk4", steps=100).x
        >>> bool((decode(model, latent, "rk4", steps=100).x - x).abs().max() < 1e-4)
        True
    """
    if isinstance(model, ScoreModel) and isinstance(cast(Any, model.sde), MatrixSDE):
        options: dict[str, Any] = {"partner": partner, "t_min": t_min, "t_max": t_max, "end": "stop", "keep": keep}
        options |= {"progress": progress, "driver": driver, "conditions": conditions}
        return matrix_flow(model, x, solver, steps, path, up=True, **options)
    method, where = _checked(model, x, solver, steps, path, t_min, t_max)
    if isinstance(method, Invertible):
        return _invertible(model, Pair(x, partner), method, where, True, keep, conditions)
    _refuse_partner(partner, method)
    mirrored, reverse = Mirrored(model), mirrored_path(where)
    sde = mirrored.sde
    assert isinstance(sde, MirroredSDE)
    kept = {} if keep is None else _opposite(sde, keep, where)
    corrects = reverse.ends_clean and method.description.order != 1
    before = reverse.points[-2].t
    wanted = list(dict.fromkeys([*kept, *([before] if corrects else [])]))
    try:
        found = sample(
            mirrored,
            x,
            method,
            path=reverse,
            keep=wanted or None,
            progress=progress,
            driver=driver,
            conditions=conditions,
        )
    except NonFiniteError as error:
        t = float(sde.opposite(error.t))
        raise NonFiniteError(error.solver, error.step, t, error.last_finite) from None
    times = tuple(reversed(where.times))
    if corrects:
        end = _corrected(model, where, found.states[before], found.x, conditions, found.x.requires_grad)
        found.states.update({t: end for t in kept if t == reverse.points[-1].t})
        calls = model.calls
        found = replace(
            found, x=end, evaluations=found.evaluations + calls.forward, backward=found.backward + calls.backward
        )
    states = {t: found.states[mirrored_t] for mirrored_t, t in kept.items() if mirrored_t in found.states}
    return replace(found, times=times, states=states)


def decode(
    model: ScoreModel,
    latent: Tensor,
    solver: str | Solver | Invertible = "auto",
    steps: int = 50,
    path: PathLike = "lam",
    *,
    partner: Tensor | None = None,
    t_min: float | None = None,
    t_max: float | None = None,
    end: str = "stop",
    keep: Times | None = None,
    progress: bool = False,
    driver: str | Driver = "auto",
    conditions: Mapping[str, Any] | None = None,
) -> Samples:
    r"""Follow the probability flow from latents at ``t_max`` to data at ``t_min``, the inverse of :func:`encode`.

    Args:
        model: the score model.
        latent: shape ``(batch, *event)``, at ``t_max``; not changed.
        solver, steps, path, t_min, t_max, keep, progress, driver, conditions: the same as in :func:`encode`.
        partner: the second state of an invertible method, ``info["partner"]`` of the encoding; by default the latent
            starts a new run, as from a draw of the prior.
        end: ``"stop"`` ends at ``t_min``, where :func:`encode` starts; ``"denoise"`` and ``"flow"`` remove the noise that is
            left there, as in :func:`scoresde.sample`.

    Returns:
        The data ``x``, shape ``(batch, *event)``, and how they were computed, see :class:`~scoresde.Samples`.

    Raises:
        TypeError, ValueError, NonFiniteError: as :func:`encode`.

    Example:
        >>> import scoresde
        >>> from scoresde.sampling import Bidirectional
        >>> problem = scoresde.problems.ring()
        >>> model, x = problem.model(scoresde.VP()), problem.sample(4, torch.Generator().manual_seed(0), torch.float64)
        >>> found = encode(model, x, Bidirectional(), steps=20)
        >>> back = decode(model, found.x, Bidirectional(), steps=20, partner=found.info["partner"])
        >>> bool((back.x - x).abs().max() < 1e-12)
        True
    """
    if isinstance(model, ScoreModel) and isinstance(cast(Any, model.sde), MatrixSDE):
        options: dict[str, Any] = {"partner": partner, "t_min": t_min, "t_max": t_max, "end": end, "keep": keep}
        options |= {"progress": progress, "driver": driver, "conditions": conditions}
        return matrix_flow(model, latent, solver, steps, path, up=False, **options)
    method, where = _checked(model, latent, solver, steps, path, t_min, t_max, end)
    if isinstance(method, Invertible):
        if end != "stop":
            raise ValueError(f"got end={end!r} for an invertible method; expected 'stop', where its encoding starts")
        found = _invertible(model, Pair(latent, partner), method, where, False, keep, conditions)
        data = model.to_data(found.x)
        return found if data is found.x else replace(found, x=data, latent=found.x)
    _refuse_partner(partner, method)
    return sample(model, latent, method, path=where, keep=keep, progress=progress, driver=driver, conditions=conditions)


def _checked(
    model: ScoreModel,
    x: Tensor,
    solver: str | Solver | Invertible,
    steps: int,
    path: PathLike,
    t_min: float | None,
    t_max: float | None,
    end: str = "stop",
) -> tuple[Solver | Invertible, Path]:
    """Return the method and the path, after the checks that both directions share."""
    check_data(model, x)
    method = get("rk4" if solver == "auto" else solver) if isinstance(solver, str) else solver
    if not isinstance(method, Solver | Invertible):
        raise TypeError(f"got solver {solver!r}; expected a name, a solver object, Coupled() or Bidirectional()")
    if isinstance(method, Solver) and method.stochastic:
        known = [name for name in ("ddim", "dpmpp-2m", "heun", "rk4", "dopri5") if name in SOLVERS]
        raise ValueError(
            f"got solver {method.name!r}, which draws noise, so that no latent leads back to the data; expected a "
            f"deterministic one, such as {', '.join(known)}"
        )
    where = make_path(model.sde, path, steps, t_min=t_min, t_max=t_max, end=end)
    if any(v.lam < u.lam for u, v in where.moves):
        raise ValueError("got a path that goes back towards the noise; expected times that fall from noise to data")
    if where.ends_clean and end == "stop":
        raise ValueError(
            "got a path that ends at sigma = 0, where the flow from data has no slope; expected a last time with some "
            f"noise, such as t_min={model.sde.span[0] or 1e-3 * model.sde.span[1]:g}"
        )
    model.check_convertible(where.points[0].t)
    return method, where


def _corrected(
    model: ScoreModel, path: Path, x: Tensor, end: Tensor, conditions: Mapping[str, Any] | None, grads: bool
) -> Tensor:
    r"""Return the latent where alpha = 0, one order better than DDIM's.

    Every solver makes its last move, to alpha = 0, by DDIM. From it and one evaluation at the end follows the trapezoidal
    rule in the variables :math:`x / (\alpha + \sigma)` and :math:`\sigma / (\alpha + \sigma)`, in which the flow has the
    slope :math:`\epsilon - m`.

    Args:
        path: the path, which starts at alpha = 0.
        x: the state at the second point.
        end: the latent by DDIM from there.
        grads: whether to keep the graph.
    """
    last, u = path.points[:2]
    values = Conditions.of(conditions, len(x), device=x.device, dtype=x.dtype).values
    with torch.set_grad_enabled(grads), evaluation_mode(model):
        m_end = model.x0(end, torch.tensor(last.t, dtype=torch.float64), **values)
    eps = end / last.sigma  # at u, from which DDIM took it
    m = (x - u.sigma * eps) / u.alpha
    clock = u.alpha / (u.alpha + u.sigma)  # what is left of it
    return last.sigma * (x / (u.alpha + u.sigma) + 0.5 * clock * (eps - m + end / last.sigma - m_end))


def _refuse_partner(partner: Tensor | None, method: Solver) -> None:
    if partner is not None:
        raise ValueError(f"got a partner for solver {method.name!r}, which has one state; leave it out")


def _opposite(sde: MirroredSDE, keep: Times, path: Path) -> dict[float, float]:
    """Return the times to keep by those of the mirrored process, after a check on the path as the caller knows it."""
    return {float(sde.opposite(t)): t for t in kept_points(keep, path)}


# Invertible methods ---------------------------------------------------------------------------------------------------


def _invertible(
    model: ScoreModel,
    start: Pair,
    method: Invertible,
    path: Path,
    upwards: bool,
    keep: Times | None,
    conditions: Mapping[str, Any] | None,
) -> Samples:
    """Run an invertible method along ``path``, whose times fall, in either direction."""
    if start.partner is not None and start.partner.shape != start.x.shape:
        raise ValueError(
            f"got a partner of shape {tuple(start.partner.shape)} for states of shape {tuple(start.x.shape)}; expected "
            "info['partner'] of the run before"
        )
    if path.points[0].log_alpha == -math.inf:
        raise ValueError(
            f"got a path from t={path.points[0].t:.6g}, where alpha = 0, for the invertible method {method.name!r}, whose "
            f"steps are not defined there; expected a smaller t_max, such as {0.999 * path.points[0].t:.6g}"
        )
    kept = {} if keep is None else kept_points(keep, path)
    path = with_kept(path, kept, method.name, dense=False, determined=False)
    points = path.points[::-1] if upwards else path.points
    counted = Counted(model, Conditions.of(conditions, len(start.x), device=start.x.device, dtype=start.x.dtype))

    def eps(x: Tensor, u: Point) -> Tensor:
        return (x - u.alpha * counted(x, torch.tensor(u.t, dtype=torch.float64))) / u.sigma

    begin, pair, states = time.perf_counter(), start, dict[float, Tensor]()
    with torch.no_grad(), evaluation_mode(model):
        moves = (method.up if upwards else method.down)(eps, points, start)
        for i, (point, found) in enumerate(zip(points, itertools.chain([start], moves), strict=True)):
            if not finite(found.x):
                raise NonFiniteError(method.name, i, point.t, pair.x)
            pair = found
            states |= {t: pair.x.clone() for t, p in kept.items() if same(p, point)}
    seconds = time.perf_counter() - begin
    info, times = {"partner": pair.partner}, tuple(p.t for p in points)
    return Samples(pair.x, counted.forward, seconds, [], method.name, times, info, counted.backward, states)
