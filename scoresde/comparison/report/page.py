"""A comparison as one page of HTML: data, script and style in one file that needs no network.

The reader can switch solvers, problems, paths and metrics on and off, and read the numbers under the pointer or with the
arrow keys. The address of the page keeps the selection. Lines look as in :mod:`scoresde.comparison.report.figures`.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from scoresde.comparison.records import Records
from scoresde.comparison.report.series import COSTS, DASHES, FEW, MARKERS, MOST, better, labels, styles, titles, twins
from scoresde.plots import PALETTE

__all__ = ["page"]

DESCRIBED = ("problems", "solvers", "metrics")


def page(comparison: Records, title: str = "Records of solvers", *, highlight: Collection[str] = ()) -> str:
    """Return the page as HTML that refers to no other file.

    Args:
        comparison: the comparison to show; labels may hold any characters.
        title: the title of the page.
        highlight: the solvers to draw in colour, whether on the front or not.

    Raises:
        ValueError: for a comparison without records, or a solver to highlight that is unknown or one too many, see
            :func:`~scoresde.comparison.report.series.styles`.

    Example:
        >>> from scoresde.comparison.records import Record
        >>> one = Record("ring", "</script>", "lam", 5, 5, 5, "rms", 0.1, 0.1, 0.1)
        >>> text = page(Records((one,)))
        >>> text.count("</script>"), "http" in text.replace("http-equiv", "")
        (2, False)
    """
    if not comparison.records:
        raise ValueError("got a comparison without records; expected at least one")
    template = resources.files("scoresde.comparison.report").joinpath("page.html").read_text(encoding="utf-8")
    # Only "<" can end a script element; JSON may write it as an escape.
    data = json.dumps(_data(comparison, highlight), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    colours = " ".join(f"--c{i}: {colour};" for i, colour in enumerate(PALETTE))
    parts = {"title": html.escape(title), "colours": colours, "data": data}
    return re.sub("@@([a-z]+)@@", lambda found: parts[found[1]], template)


def _data(comparison: Records, highlight: Collection[str]) -> dict[str, Any]:
    style, names, first = styles(comparison, highlight), labels(comparison), twins(comparison)
    packages = {(r.solver, r.path): r.package for r in comparison.records}
    metrics, panels = comparison.named("metric"), titles(comparison)
    place = {panel: i for i, panel in enumerate(panels)}
    described = comparison.about.get("metrics", {})
    errors = list(dict.fromkeys(["", *(r.error for r in comparison.records)]))
    places = {
        "metric": {name: i for i, name in enumerate(metrics)},
        "error": {text: i for i, text in enumerate(errors)},
    }
    columns: dict[str, list[Any]] = {k: [at[getattr(r, k)] for r in comparison.records] for k, at in places.items()}
    columns |= {k: [getattr(r, k) for r in comparison.records] for k in ("budget", "steps", "evaluations")}
    columns |= {k: [_rounded(getattr(r, k)) for r in comparison.records] for k in ("value", "low", "high")}
    columns["panel"] = [place[r.problem, r.sde] for r in comparison.records]
    columns["line"] = [style[r.solver, r.path].rank for r in comparison.records]
    return {
        "settings": _settings(comparison),
        "about": [[k, _text(v)] for k, v in comparison.about.items() if k not in DESCRIBED],
        "problems": comparison.named("problem"),
        "sdes": comparison.named("sde"),
        "panels": [{"problem": problem, "sde": sde, "title": title} for (problem, sde), title in panels.items()],
        "metrics": [
            {**_words(described.get(m, {})), "name": m, "better": better(comparison, m), "cost": m in COSTS} for m in metrics
        ],
        "paths": comparison.named("path"),
        "solvers": comparison.named("solver"),
        "lines": [
            {
                "solver": key[0],
                "path": key[1],
                "label": names[key],
                "package": packages.get(key, "scoresde"),
                "filled": s.filled,
                "chosen": s.chosen,
                "same": style[first[key]].rank,
            }
            for key, s in style.items()
        ],
        "errors": errors,
        "records": columns,
        "colours": len(PALETTE),
        "markers": [_outline(m) for m in MARKERS],
        "dashes": DASHES,
        "most": MOST,
        "few": FEW,
    }


def _settings(comparison: Records) -> str:
    """Return what a reader must know to judge the numbers: SDEs, samples, seed, end of the path, and versions."""
    about = comparison.about
    told = [p for p in _mapping(about.get("problems")).values() if isinstance(p, dict)]
    sdes = [str(sde) for p in told for sde in _mapping(p.get("sdes")).values()] or [s for s in comparison.named("sde") if s]
    counts = [f"{p['n']} samples" for p in [*told, about] if "n" in p]
    versions = _mapping(about.get("versions"))
    found = [*dict.fromkeys([*sdes, *counts]), *(f"{name} {about[name]}" for name in ("seed", "end") if name in about)]
    found += [f"{name} {versions[name]}" for name in ("scoresde", "torch") if name in versions]
    return "; ".join(found)


def _mapping(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _rounded(value: float) -> float | None:
    """Round a number to as many digits as anyone reads; digits make most of the page's size."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _words(described: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(described.get(k, "")) for k in ("unit", "doc")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def _outline(marker: str) -> str:
    """Return Matplotlib's marker as the path of an SVG, about two units across."""
    from matplotlib.markers import MarkerStyle

    shape = MarkerStyle(marker)
    polygons: Any = shape.get_path().transformed(shape.get_transform()).to_polygons()
    size = 2.0 if marker != "*" else 2.4
    return "".join("M" + "L".join(f"{size * x:.2f} {-size * y:.2f}" for x, y in polygon) + "Z" for polygon in polygons)
