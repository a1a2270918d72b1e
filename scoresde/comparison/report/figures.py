"""Figures of a comparison: work and precision, orders, and trajectories.

Each function returns a figure of Matplotlib, which :func:`scoresde.plots.save_figure` writes as PNG, SVG or PDF. A line has
the same colour, marker and dash in all figures of a comparison. Its name stands beside it, so colours are not needed.
"""

from scoresde.comparison.report.order_plots import orders
from scoresde.comparison.report.trajectory_plots import trajectories
from scoresde.comparison.report.work_precision import work_precision

__all__ = ["orders", "trajectories", "work_precision"]
