"""Molecules: diffusion of positions and atom types, drawn by size and property, and checked by a table of bonds."""

from scoresde.systems.molecules.bonds import BONDS, Bond, connected, find_bonds, graph_of
from scoresde.systems.molecules.chemistry import smiles_of, to_rdkit, with_hydrogens
from scoresde.systems.molecules.dataset import Encoding, Molecules, read_molecules, united
from scoresde.systems.molecules.diffusion import DrawnMolecules, MoleculeDiffusion, molecule_model, train_molecules
from scoresde.systems.molecules.drawing import molecule_figure
from scoresde.systems.molecules.molecule import SYMBOLS, VALENCES, Molecule, radius_of_gyration
from scoresde.systems.molecules.quality import Quality, bond_lengths, quality

__all__ = [
    "BONDS",
    "SYMBOLS",
    "VALENCES",
    "Bond",
    "DrawnMolecules",
    "Encoding",
    "Molecule",
    "MoleculeDiffusion",
    "Molecules",
    "Quality",
    "bond_lengths",
    "connected",
    "find_bonds",
    "graph_of",
    "molecule_figure",
    "molecule_model",
    "quality",
    "radius_of_gyration",
    "read_molecules",
    "smiles_of",
    "to_rdkit",
    "train_molecules",
    "united",
    "with_hydrogens",
]
