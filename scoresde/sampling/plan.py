"""The plan of a run, its path and rows, kept for the next call with the same arguments."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from scoresde.sde import GaussianSDE
from scoresde.sde.names import SDES
from scoresde.solvers.path import Path, PathLike, make_path
from scoresde.solvers.solver import RowSolver, Solver
from scoresde.solvers.spacings import PATHS
from scoresde.solvers.table import SOLVERS
from scoresde.solvers.updates import Update

__all__ = ["plan"]

Plan = tuple[Path, Sequence[Update] | None]

_KEPT: OrderedDict[Any, Plan] = OrderedDict()
_MOST = 64
_LOCK = threading.Lock()


def plan(
    given: str | Solver,
    method: Solver,
    sde: GaussianSDE,
    path: PathLike | None,
    steps: int,
    t_max: float | None,
    t_min: float | None,
    end: str | None,
) -> Plan:
    """Return the path, and the rows if the solver makes rows.

    They are kept for the next call if the solver is given by name, the path by name or in plain numbers, and the SDE is a
    published one. A solver object, a function or a user's SDE may compute something else next time.

    Args:
        given: the solver as the user gave it; ``method``: the solver object.
        sde: the SDE of the model.
        path, steps, t_max, t_min, end: the same as in :func:`scoresde.sample`.
    """
    key = _key(given, sde, path, (steps, t_max, t_min, end))
    with _LOCK:
        if key is not None and key in _KEPT:
            _KEPT.move_to_end(key)
            return _KEPT[key]
    if path is None:
        where = method.own_path(sde, steps, t_max=t_max, t_min=t_min, end=end)
    else:
        where = make_path(sde, path, steps, t_max=t_max, t_min=t_min, end=end or method.own_end)
    where = method.followed(where)
    made = where, tuple(method.rows(where)) if isinstance(method, RowSolver) else None
    with _LOCK:
        if key is not None:
            _KEPT[key] = made
            while len(_KEPT) > _MOST:
                _KEPT.popitem(last=False)
    return made


def _key(given: str | Solver, sde: GaussianSDE, path: PathLike | None, rest: tuple[Any, ...]) -> Any:
    if not isinstance(given, str) or type(sde) not in _PUBLISHED or given.partition(":")[0] not in SOLVERS:
        return None
    if isinstance(path, Path):
        plain = type(path.sde) in _PUBLISHED and all(type(value) is float for point in path.points for value in point)
        spacing: Any = (path.points, path.end, type(path.sde), tuple(vars(path.sde).values())) if plain else None
    elif path is None:
        spacing = "own"
    elif isinstance(path, str):
        spacing = PATHS.get(path)
    else:
        plain = isinstance(path, list | tuple) and all(type(t) is float for t in path)
        spacing = tuple(path) if plain else None  # type: ignore[arg-type]
    if spacing is None:
        return None
    name = given.partition(":")[0]
    # The makers themselves, since a name may be registered anew.
    key = given, SOLVERS[name], spacing, type(sde), tuple(vars(sde).values()), type(rest[0]), *rest
    try:
        hash(key)
    except TypeError:  # a tensor for a number, say
        return None
    return key


_PUBLISHED = frozenset(make for make in SDES.values() if isinstance(make, type))
