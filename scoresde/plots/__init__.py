"""Figures: losses, images in time, grids of samples. Each function returns a figure of Matplotlib, :func:`save` writes it.

They are drawn without pyplot: no display is needed and no global state is touched. A notebook shows a figure that is the
value of a cell. Colours are those of Okabe and Ito ("Color Universal Design", 2008), which the colour-blind can tell apart.
"""

from scoresde.plots.curves import losses, scatter
from scoresde.plots.figure import PALETTE, new_figure, save
from scoresde.plots.images import overview, panels, strips, tile

__all__ = ["PALETTE", "losses", "new_figure", "overview", "panels", "save", "scatter", "strips", "tile"]
