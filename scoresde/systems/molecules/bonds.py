"""Bonds from distances, by a table of the lengths that bonds have, and whether all valences are right."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch

from scoresde.systems.molecules.molecule import VALENCES, Molecule

__all__ = ["BONDS", "Bond", "connected", "find_bonds", "graph_of"]

BONDS: dict[tuple[int, int], tuple[tuple[float, float], ...]] = {
    (1, 1): ((0.68, 0.82),),
    (1, 6): ((0.98, 1.20),),
    (1, 7): ((0.92, 1.12),),
    (1, 8): ((0.88, 1.08),),
    (1, 9): ((0.84, 1.02),),
    (6, 6): ((1.32, 1.66), (1.27, 1.46), (1.14, 1.26)),
    (6, 7): ((1.27, 1.57), (1.22, 1.41), (1.10, 1.21)),
    (6, 8): ((1.28, 1.52), (1.15, 1.29)),
    (6, 9): ((1.28, 1.44),),
    (7, 7): ((1.26, 1.57), (1.19, 1.41)),
    (7, 8): ((1.33, 1.54), (1.17, 1.31)),
    (7, 9): ((1.31, 1.47),),
    (8, 8): ((1.38, 1.54),),
    (8, 9): ((1.36, 1.48),),
    (9, 9): ((1.36, 1.48),),
}
"""The shortest and the longest single, double and triple bond between two elements, in angstrom.

The intervals of C, N, O, F and H hold all bonds of 1,473 conformers by MMFF94, aromatic ones included, with 0.04 angstrom or
more to spare at either end. Single and double bonds overlap: in aromatic rings and amides only the valences tell them apart.
"""


class Bond(NamedTuple):
    """A bond between the atoms ``first`` and ``second`` of a molecule, single, double or triple by its ``order``.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.16, 0, 0]])
        >>> hydrogen_cyanide = Molecule(torch.tensor([6, 7]), x, torch.tensor([1, 0]))
        >>> find_bonds(hydrogen_cyanide)[0].order
        3
    """

    first: int
    second: int
    order: int


def find_bonds(molecule: Molecule) -> list[Bond] | None:
    """Return bonds that give every atom its valence, or ``None`` where there are none.

    Two atoms are bonded if their distance is at most that of their longest bond in :data:`BONDS`. The order of each bond
    must be one whose interval holds its length, and the orders at each atom must sum to its valence, with the hydrogens
    that are counted there. Where several choices do so, as in aromatic rings, the first is returned.

    Args:
        molecule: the molecule.

    Returns:
        The bonds, or ``None`` if two atoms are closer than any bond, or no choice of orders gives all valences.

    Example:
        >>> ethylene = Molecule(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [1.33, 0, 0]]), torch.tensor([2, 2]))
        >>> find_bonds(ethylene)
        [Bond(first=0, second=1, order=2)]
        >>> find_bonds(Molecule(ethylene.elements, 1.15 * ethylene.positions, ethylene.hydrogens)) is None
        True
    """
    elements = molecule.elements.tolist()
    distances = torch.cdist(molecule.positions.double(), molecule.positions.double()).tolist()
    pairs: list[tuple[int, int, list[int]]] = []
    for i, j in itertools.combinations(range(len(elements)), 2):
        low, high = min(elements[i], elements[j]), max(elements[i], elements[j])
        spans, d = BONDS[low, high], distances[i][j]
        if d > max(longest for _, longest in spans):
            continue
        orders = [order for order, (shortest, longest) in enumerate(spans, 1) if shortest <= d <= longest]
        if not orders:
            return None
        pairs.append((i, j, orders))
    free = [VALENCES[z] - h for z, h in zip(elements, molecule.hydrogens.tolist(), strict=True)]
    return _assigned(pairs, free)


def _assigned(pairs: list[tuple[int, int, list[int]]], free: list[int]) -> list[Bond] | None:
    """Choose an order for each pair so that they sum to ``free`` at each atom, by a search that gives up early."""
    last = {atom: k for k, (i, j, _) in enumerate(pairs) for atom in (i, j)}
    if any(n < 0 or (n and atom not in last) for atom, n in enumerate(free)):
        return None
    least = [0] * len(free)  # what the pairs that are left take at each atom, if all are single
    for i, j, orders in pairs:
        least[i] += orders[0]
        least[j] += orders[0]
    chosen: list[Bond] = []

    def search(k: int) -> bool:
        if k == len(pairs):
            return all(n == 0 for n in free)
        i, j, orders = pairs[k]
        for order in orders:
            for atom in (i, j):
                free[atom] -= order
                least[atom] -= orders[0]
            chosen.append(Bond(i, j, order))
            fits = all(free[a] >= least[a] and (free[a] == 0 or last[a] > k) for a in (i, j))
            if fits and search(k + 1):
                return True
            chosen.pop()
            for atom in (i, j):
                free[atom] += order
                least[atom] += orders[0]
        return False

    return chosen if search(0) else None


def connected(molecule: Molecule, bonds: list[Bond]) -> bool:
    """Return whether the bonds hold all atoms together in one piece.

    Example:
        >>> far = Molecule(torch.tensor([9, 9, 9, 9]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0], [9, 0, 0], [9, 1.42, 0]]))
        >>> connected(far, find_bonds(far))
        False
    """
    piece = list(range(len(molecule)))
    for i, j, _ in bonds:
        old, new = piece[i], piece[j]
        piece = [new if p == old else p for p in piece]
    return len(set(piece)) == 1


def graph_of(molecule: Molecule, bonds: list[Bond]) -> str:
    """Return a text that is the same for two molecules with the same atoms and neighbours, whatever their order and shape.

    It is the hash of Weisfeiler and Lehman (1968) of the graph of atoms, counted hydrogens and bonds. The orders of bonds
    are left out, which the valences determine up to the choice in aromatic rings. Mirror images have the same text.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.5, 0, 0], [1.9, 1.35, 0]])
        >>> ethanol = Molecule(torch.tensor([6, 6, 8]), x, torch.tensor([3, 2, 1]))
        >>> turned = Molecule(torch.tensor([8, 6, 6]), x.flip(0), torch.tensor([1, 2, 3]))
        >>> graph_of(ethanol, find_bonds(ethanol)) == graph_of(turned, find_bonds(turned))
        True
    """
    import hashlib

    neighbours: list[list[int]] = [[] for _ in range(len(molecule))]
    for i, j, _ in bonds:
        neighbours[i].append(j)
        neighbours[j].append(i)
    colours = [f"{z} {h}" for z, h in zip(molecule.elements.tolist(), molecule.hydrogens.tolist(), strict=True)]
    for _ in range(len(molecule)):
        told = [f"{colours[i]}({','.join(sorted(colours[j] for j in near))})" for i, near in enumerate(neighbours)]
        colours = [hashlib.blake2b(text.encode(), digest_size=12).hexdigest() for text in told]
    return hashlib.blake2b(" ".join(sorted(colours)).encode(), digest_size=12).hexdigest()
