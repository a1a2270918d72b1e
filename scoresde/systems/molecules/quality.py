"""How good drawn molecules are: valences, connectedness, uniqueness, and the lengths of their bonds beside the data's."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from scoresde.systems.molecules.bonds import Bond, connected, find_bonds, graph_of
from scoresde.systems.molecules.molecule import SYMBOLS, Molecule

__all__ = ["Quality", "bond_lengths", "quality"]


@dataclass(frozen=True)
class Quality:
    """The result of :func:`quality`.

    Attributes:
        right: the share of molecules with bonds by :data:`BONDS` that give every atom its valence.
        whole: the share that is right and in one piece.
        unique: the share of different molecules among those that are right and in one piece.
        novel: the share of the different molecules that are not in the data.
        lengths: for each kind of bond, such as ``"C-N"``, the Wasserstein distance of its lengths from those of the data, in
            angstrom.

    Example:
        >>> import torch
        >>> ethane = Molecule(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [1.5, 0, 0]]), torch.tensor([3, 3]))
        >>> quality([ethane, ethane], [ethane])
        Quality(right=1.0, whole=1.0, unique=0.5, novel=0.0, lengths={'C-C': 0.0})
    """

    right: float
    whole: float
    unique: float
    novel: float
    lengths: dict[str, float]


def bond_lengths(molecules: Sequence[Molecule]) -> dict[str, list[float]]:
    """Return the lengths of all bonds in angstrom by the elements that they join, ``"C-N"``; wrong molecules are left out.

    Example:
        >>> import torch
        >>> ethane = Molecule(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [1.5, 0, 0]]), torch.tensor([3, 3]))
        >>> bond_lengths([ethane])
        {'C-C': [1.5]}
    """
    found: dict[str, list[float]] = collections.defaultdict(list)
    for molecule in molecules:
        for i, j, _ in find_bonds(molecule) or ():
            ends = sorted((int(molecule.elements[i]), int(molecule.elements[j])))
            length = float((molecule.positions[i] - molecule.positions[j]).norm())
            found["-".join(SYMBOLS[z] for z in ends)].append(length)
    return dict(found)


def quality(molecules: Sequence[Molecule], data: Sequence[Molecule]) -> Quality:
    """Compare drawn molecules with those of a dataset.

    Args:
        molecules: the drawn molecules.
        data: the molecules of the dataset.

    Raises:
        ValueError: for no molecules.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0, 0], [1.5, 0, 0]])
        >>> ethane = Molecule(torch.tensor([6, 6]), x, torch.tensor([3, 3]))
        >>> broken = Molecule(torch.tensor([6, 6]), 2 * x, torch.tensor([3, 3]))
        >>> found = quality([ethane, ethane, broken, broken], [ethane])
        >>> found.right, found.unique, found.novel, found.lengths
        (0.5, 0.5, 0.0, {'C-C': 0.0})
    """
    from scipy.stats import wasserstein_distance

    if not molecules or not data:
        raise ValueError(f"got {len(molecules)} molecules and {len(data)} of data; expected at least one of each")
    bonds = [find_bonds(molecule) for molecule in molecules]
    right = [(m, found) for m, found in zip(molecules, bonds, strict=True) if found is not None]
    kept: list[tuple[Molecule, list[Bond]]] = [pair for pair in right if connected(*pair)]
    graphs = {graph_of(*pair) for pair in kept}
    known = {graph_of(m, found) for m in data if (found := find_bonds(m)) is not None}
    of_data, own = bond_lengths(data), bond_lengths([m for m, _ in kept])
    return Quality(
        right=len(right) / len(molecules),
        whole=len(kept) / len(molecules),
        unique=len(graphs) / max(len(kept), 1),
        novel=len(graphs - known) / max(len(graphs), 1),
        lengths={k: float(wasserstein_distance(v, of_data[k])) for k, v in sorted(own.items()) if k in of_data},
    )
