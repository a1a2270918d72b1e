"""Molecules as RDKit knows them, for a second opinion on valences, for SMILES, and for the places of counted hydrogens.

RDKit is an extra: ``pip install scoresde[molecules]``.
"""

from __future__ import annotations

from typing import Any

import torch

from scoresde.systems.molecules.bonds import find_bonds
from scoresde.systems.molecules.molecule import Molecule

__all__ = ["smiles_of", "to_rdkit", "with_hydrogens"]


def _rdkit() -> Any:
    try:
        from rdkit import Chem
    except ImportError as error:
        raise ImportError(
            "got no RDKit, which checks molecules here; expected it to be installed: pip install 'scoresde[molecules]'"
        ) from error
    return Chem


def to_rdkit(molecule: Molecule) -> Any | None:
    """Return an RDKit molecule with a conformer, or ``None`` where the bonds or RDKit's own check find wrong valences.

    Raises:
        ImportError: where RDKit is not installed.

    Example:
        >>> methanol = Molecule(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0]]), torch.tensor([3, 1]))
        >>> to_rdkit(methanol).GetNumAtoms()  # doctest: +SKIP
        2
    """
    chem, bonds = _rdkit(), find_bonds(molecule)
    if bonds is None:
        return None
    made = chem.RWMol()
    for z, hydrogens in zip(molecule.elements.tolist(), molecule.hydrogens.tolist(), strict=True):
        atom = chem.Atom(z)
        atom.SetNoImplicit(True)
        atom.SetNumExplicitHs(hydrogens)
        made.AddAtom(atom)
    orders = {1: chem.BondType.SINGLE, 2: chem.BondType.DOUBLE, 3: chem.BondType.TRIPLE}
    for i, j, order in bonds:
        made.AddBond(i, j, orders[order])
    conformer = chem.Conformer(len(molecule))
    for i, place in enumerate(molecule.positions.double().tolist()):
        conformer.SetAtomPosition(i, place)
    made.AddConformer(conformer)
    found = made.GetMol()
    if chem.SanitizeMol(found, catchErrors=True) != chem.SanitizeFlags.SANITIZE_NONE:
        return None
    return found


def smiles_of(molecule: Molecule) -> str | None:
    """Return the canonical SMILES without stereochemistry, or ``None`` for wrong valences.

    Raises:
        ImportError: where RDKit is not installed.

    Example:
        >>> methanol = Molecule(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0]]), torch.tensor([3, 1]))
        >>> smiles_of(methanol)  # doctest: +SKIP
        'CO'
    """
    chem, found = _rdkit(), to_rdkit(molecule)
    if found is None:
        return None
    text: str = chem.MolToSmiles(chem.RemoveHs(found), isomericSmiles=False)
    return text


def with_hydrogens(molecule: Molecule) -> Molecule | None:
    """Return the molecule with its counted hydrogens placed by RDKit, or ``None`` for wrong valences.

    Raises:
        ImportError: where RDKit is not installed.

    Example:
        >>> methanol = Molecule(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0]]), torch.tensor([3, 1]))
        >>> with_hydrogens(methanol)  # doctest: +SKIP
        Molecule(CH4O, 6 atoms)
    """
    chem, found = _rdkit(), to_rdkit(molecule)
    if found is None:
        return None
    whole = chem.AddHs(found, addCoords=True)
    elements = torch.tensor([atom.GetAtomicNum() for atom in whole.GetAtoms()])
    return Molecule(elements, torch.as_tensor(whole.GetConformer().GetPositions()).to(molecule.positions))
