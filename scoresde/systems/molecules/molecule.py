"""A molecule: its atoms with their positions, and the hydrogens that are counted instead of placed."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["SYMBOLS", "VALENCES", "Molecule", "radius_of_gyration"]

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
"""The symbols of the known elements by atomic number."""

VALENCES = {1: 1, 6: 4, 7: 3, 8: 2, 9: 1}
"""The valences of the known elements in neutral molecules, by atomic number."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """The atoms of a neutral molecule.

    Hydrogens may be atoms of their own, or counted at the atom to which they are bonded: a "united atom", such as CH3.

    Args:
        elements: atomic numbers, shape ``(atoms,)``.
        positions: positions in angstrom, shape ``(atoms, 3)``.
        hydrogens: the number of hydrogens counted at each atom, shape ``(atoms,)``; by default none.

    Raises:
        ValueError: for one atom, an unknown element, another shape, and positions that are not finite.

    Example:
        >>> methanol = Molecule(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0]]), torch.tensor([3, 1]))
        >>> methanol.formula
        'CH4O'
    """

    elements: Tensor
    positions: Tensor
    hydrogens: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        elements, positions = torch.as_tensor(self.elements), torch.as_tensor(self.positions)
        hydrogens = torch.as_tensor(self.hydrogens)
        if not hydrogens.numel():
            hydrogens = torch.zeros_like(elements)
        if elements.ndim != 1 or positions.shape != (len(elements), 3) or hydrogens.shape != elements.shape:
            raise ValueError(
                f"got elements, positions and hydrogens of shapes {tuple(elements.shape)}, {tuple(positions.shape)} and "
                f"{tuple(hydrogens.shape)}; expected (atoms,), (atoms, 3) and (atoms,)"
            )
        if len(elements) < 2:
            raise ValueError(
                f"got a molecule of {len(elements)} atom{'s' * (len(elements) != 1)}; expected at least two, because one "
                "atom has no positions relative to others: leave it out"
            )
        if unknown := sorted(set(elements.tolist()) - SYMBOLS.keys()):
            raise ValueError(
                f"got an atom of atomic number {unknown[0]}; expected one of "
                f"{', '.join(f'{z} ({s})' for z, s in SYMBOLS.items())}: leave molecules with other elements out"
            )
        if not bool(torch.isfinite(positions).all()) or not bool((hydrogens >= 0).all()):
            raise ValueError("got positions that are not finite, or fewer than 0 hydrogens; expected finite positions")
        for name, value in (("elements", elements), ("positions", positions), ("hydrogens", hydrogens)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.elements)

    @property
    def formula(self) -> str:
        """The molecular formula in Hill's order: carbon, hydrogen, then the others by the alphabet."""
        counts = collections.Counter(SYMBOLS[z] for z in self.elements.tolist())
        counts["H"] += int(self.hydrogens.sum())
        first = ["C", "H"] if counts["C"] else []
        order = first + sorted(symbol for symbol in counts if symbol not in first)
        return "".join(symbol + (str(counts[symbol]) if counts[symbol] > 1 else "") for symbol in order if counts[symbol])

    def __repr__(self) -> str:
        return f"Molecule({self.formula}, {len(self)} atoms)"


def radius_of_gyration(molecule: Molecule) -> float:
    """Return the root mean square distance of the atoms from their centre, in angstrom: large for long molecules.

    Example:
        >>> radius_of_gyration(Molecule(torch.tensor([6, 6]), torch.tensor([[0.0, 0, 0], [1.5, 0, 0]])))
        0.75
    """
    away = molecule.positions.double() - molecule.positions.double().mean(0)
    return float(away.square().sum(1).mean().sqrt())
