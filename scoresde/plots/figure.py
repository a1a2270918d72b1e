"""Matplotlib figures without pyplot, which a notebook shows when they are returned."""

from __future__ import annotations

import functools
import io
import os
from typing import TYPE_CHECKING

from scoresde.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "new_figure", "save_figure"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, the most distinct first."""

_DPI = 130


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = _DPI) -> None:
    """Write ``figure`` atomically to ``path``, whose suffix is the format: PNG, SVG or PDF, whose text stays text.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(1, 1), f"{folder}/empty.png", dpi=20)
        ...     os.listdir(folder)
        ['empty.png']
    """
    from matplotlib import rc_context

    dated = {"CreationDate": None} if os.fspath(path).endswith(".pdf") else None  # equal figures make equal files
    with replacing(path) as temporary, rc_context({"pdf.fonttype": 42}):
        figure.savefig(temporary, dpi=dpi, facecolor="white", metadata=dated)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, which a notebook shows as an image.

    Example:
        >>> new_figure(1, 1)._repr_png_()[1:4]
        b'PNG'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    # IPython looks up this method to show an object; pyplot would add it to its own figures only.
    figure._repr_png_ = functools.partial(_png, figure)  # type: ignore[attr-defined]
    return figure


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DPI, facecolor="white")
    return content.getvalue()
