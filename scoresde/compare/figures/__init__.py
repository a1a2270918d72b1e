"""Figures of a comparison: work and precision, orders, trajectories, and where errors come from.

Each function returns a figure of Matplotlib; :func:`scoresde.plots.save` writes it as PNG, SVG or PDF. A line has the same
colour, marker and dash in all figures of a comparison, and its name beside it: either tells it apart without colours.
"""

from scoresde.compare.figures.slopes import orders
from scoresde.compare.figures.sources import attribution, decomposition
from scoresde.compare.figures.ways import trajectories
from scoresde.compare.figures.work import work_precision

__all__ = ["attribution", "decomposition", "orders", "trajectories", "work_precision"]
