"""Figures of losses, of images along a trajectory, of grids of samples, of series, and videos that play.

Each function returns a Matplotlib figure, and :func:`save` writes it to a file. The figures are drawn without pyplot, so no
display is needed and no global state changes. A notebook shows a figure that is the value of a cell. The colours are those
of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart.
"""

from scoresde.plots.curves import losses, scatter
from scoresde.plots.figure import PALETTE, new_figure, save_figure
from scoresde.plots.images import overview, panels, strips, tile
from scoresde.plots.series import quantile_bands
from scoresde.plots.videos import log_video, save_video

__all__ = [
    "PALETTE",
    "log_video",
    "losses",
    "new_figure",
    "overview",
    "panels",
    "quantile_bands",
    "save_figure",
    "save_video",
    "scatter",
    "strips",
    "tile",
]
