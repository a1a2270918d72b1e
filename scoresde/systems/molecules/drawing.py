"""Figures of molecules: balls and sticks, seen from the side from which they look widest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scoresde.plots import new_figure
from scoresde.systems.molecules.bonds import find_bonds
from scoresde.systems.molecules.molecule import Molecule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["molecule_figure"]

COLOURS = {1: "#f2f2f2", 6: "#555555", 7: "#0072B2", 8: "#D55E00", 9: "#009E73"}
RADII = {1: 0.26, 6: 0.40, 7: 0.40, 8: 0.40, 9: 0.38}


def molecule_figure(
    molecules: Sequence[Molecule], titles: Sequence[str] = (), *, columns: int = 4, size: float = 2.1
) -> Figure:
    """Draw molecules as balls and sticks, with carbon grey, nitrogen blue, oxygen orange, fluorine green, hydrogen white.

    Each is turned so that the plane of the figure holds its two longest axes. Double and triple bonds have two and three
    lines. Hydrogens that are counted are written at their atom, as in CH3. A molecule with wrong valences has no bonds, and
    a frame.

    Args:
        molecules: the molecules.
        titles: a title for each.
        columns: the number of molecules in a row.
        size: the width of each in inches.

    Raises:
        ValueError: for no molecules, or another number of titles.

    Example:
        >>> import torch
        >>> ethane = Molecule(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [1.5, 0, 0]]), torch.tensor([3, 3]))
        >>> len(molecule_figure([ethane, ethane]).axes)
        2
    """
    if not molecules or (titles and len(titles) != len(molecules)):
        raise ValueError(f"got {len(molecules)} molecules and {len(titles)} titles; expected a title for each, or none")
    columns = min(columns, len(molecules))
    rows = math.ceil(len(molecules) / columns)
    figure = new_figure(size * columns, (size + 0.15 * bool(titles)) * rows)
    for k, molecule in enumerate(molecules):
        ax = figure.add_subplot(rows, columns, k + 1)
        _draw(ax, molecule)
        if titles:
            ax.set_title(titles[k], fontsize=8)
    return figure


def _draw(ax: Any, molecule: Molecule) -> None:
    x = molecule.positions.double().cpu().numpy()
    x = x - x.mean(0)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    x = x @ axes.T  # the longest axis first, the shortest towards the reader
    x = np.pad(x, ((0, 0), (0, 3 - x.shape[1])))
    elements, hydrogens = molecule.elements.tolist(), molecule.hydrogens.tolist()
    bonds = find_bonds(molecule)
    for i, j, order in bonds or ():
        along = x[j, :2] - x[i, :2]
        across = np.array([-along[1], along[0]]) / max(float(np.linalg.norm(along)), 1e-9)
        for shift in np.linspace(-0.09, 0.09, order) * (order - 1) if order > 1 else (0.0,):
            ends = np.stack([x[i, :2], x[j, :2]]) + shift * across
            ax.plot(*ends.T, color="#888888", lw=1.6, zorder=x[[i, j], 2].mean())
    for (a, b, depth), z, count in zip(x, elements, hydrogens, strict=True):
        ax.scatter([a], [b], s=(RADII[z] * 44) ** 2 / 2.2, color=COLOURS[z], edgecolor="#222222", lw=0.6, zorder=depth + 0.5)
        if count:
            text = "H" + (f"$_{count}$" if count > 1 else "")
            ax.text(a, b, text, color="white", fontsize=6, ha="center", va="center", zorder=depth + 0.6)
    reach = max(float(np.abs(x[:, :2]).max()) + 0.7, 2.6)
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set(visible=bonds is None, color="#CC79A7")
