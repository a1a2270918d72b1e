"""Figures of losses, of points, densities and scores, of images along a trajectory, of series; and animations.

Each function makes one picture. Those whose names begin with save write a file, :func:`posterior_table` returns a table, and
all others return a Matplotlib figure, which :func:`save_figure` writes as PNG, SVG or PDF. The figures are drawn without
pyplot, so no display is needed and no global state changes. A notebook shows a figure that is the value of a cell. The
colours are those of Okabe and Ito ("Color Universal Design", 2008), which colour-blind readers can tell apart.
"""

from scoresde.plots.animations import save_animation
from scoresde.plots.curves import losses, scatter
from scoresde.plots.densities import ribbon
from scoresde.plots.fields import score_field
from scoresde.plots.figure import PALETTE, new_figure, save_figure
from scoresde.plots.images import overview, panels, strips, tile
from scoresde.plots.pairs import pairs, posterior_table
from scoresde.plots.series import quantile_bands
from scoresde.plots.videos import log_video, save_video

__all__ = [
    "PALETTE",
    "log_video",
    "losses",
    "new_figure",
    "overview",
    "pairs",
    "panels",
    "posterior_table",
    "quantile_bands",
    "ribbon",
    "save_animation",
    "save_figure",
    "save_video",
    "scatter",
    "score_field",
    "strips",
    "tile",
]
