"""Molecules as point sets: positions, and encoded types of atoms, in the units in which a model is trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.base.identity import digest
from scoresde.data import Dataset
from scoresde.systems.molecules.molecule import SYMBOLS, Molecule, radius_of_gyration

__all__ = ["Encoding", "Molecules", "read_molecules", "united"]

TYPE_SCALE = 0.3
"""The length of an encoded type. Below 1, types are decided at lower noise than positions."""


class Encoding:
    """The encoding of molecules as point sets, ``(points, 3 + kinds)``, and back.

    The positions are divided by a length. A type of atom is a unit vector, scaled down: the decoded type is the largest
    entry. A type is an element with the number of hydrogens counted there.

    Args:
        kinds: the types of atoms, pairs of an atomic number and a number of hydrogens.
        length: the length in angstrom that is 1 in the encoding.
        points: the number of rows of a point set, padding included.

    Raises:
        ValueError: for no kinds, and sizes that are not positive.

    Example:
        >>> encoding = Encoding([(6, 3), (8, 1)], length=1.5, points=3)
        >>> methanol = Molecule(torch.tensor([6, 8]), torch.tensor([[0.0, 0, 0], [1.42, 0, 0]]), torch.tensor([3, 1]))
        >>> x, mask = encoding.encode([methanol])
        >>> x.shape, mask.tolist(), encoding.decode(x, mask)
        (torch.Size([1, 3, 5]), [[True, True, False]], [Molecule(CH4O, 2 atoms)])
    """

    def __init__(self, kinds: Sequence[tuple[int, int]], length: float, points: int) -> None:
        self.kinds = tuple((int(z), int(h)) for z, h in kinds)
        if not self.kinds or not length > 0 or points < 2:
            raise ValueError(
                f"got {len(self.kinds)} kinds of atoms, length={length} and points={points}; expected at least one kind, a "
                "positive length, and two points or more"
            )
        self.length, self.points = float(length), int(points)

    @property
    def event(self) -> tuple[int, int]:
        """The shape of a point set."""
        return self.points, 3 + len(self.kinds)

    def encode(self, molecules: Sequence[Molecule]) -> tuple[Tensor, Tensor]:
        """Return the point sets, shape ``(n, points, 3 + kinds)``, centred, and their masks, ``(n, points)``.

        Raises:
            ValueError: for a molecule of more atoms than there are points, and a kind of atom that is unknown.
        """
        x = torch.zeros(len(molecules), *self.event)
        mask = torch.zeros(len(molecules), self.points, dtype=torch.bool)
        place = {kind: i for i, kind in enumerate(self.kinds)}
        for row, seen, molecule in zip(x, mask, molecules, strict=True):
            if len(molecule) > self.points:
                raise ValueError(f"got {molecule!r} for point sets of {self.points}; expected at most {self.points} atoms")
            told = list(zip(molecule.elements.tolist(), molecule.hydrogens.tolist(), strict=True))
            if unknown := [kind for kind in told if kind not in place]:
                known = ", ".join(map(name_of, self.kinds))
                raise ValueError(f"got an atom {name_of(unknown[0])} in {molecule!r}; expected the kinds {known}")
            positions = molecule.positions.double()
            row[: len(molecule), :3] = ((positions - positions.mean(0)) / self.length).float()
            row[torch.arange(len(molecule)), torch.tensor([3 + place[kind] for kind in told])] = TYPE_SCALE
            seen[: len(molecule)] = True
        return x, mask

    def decode(self, x: Tensor, mask: Tensor) -> list[Molecule]:
        """Return the molecules of point sets ``x``, with the kind of the largest entry for each atom."""
        kinds = torch.tensor(self.kinds)
        found = []
        for row, seen in zip(x.detach().cpu(), mask.cpu(), strict=True):
            elements, hydrogens = kinds[row[seen, 3:].argmax(1)].T
            found.append(Molecule(elements, self.length * row[seen, :3], hydrogens))
        return found


def name_of(kind: tuple[int, int]) -> str:
    """Return the name of a kind of atom, such as CH3."""
    z, hydrogens = kind
    return SYMBOLS.get(z, f"element {z}") + ("H" if hydrogens else "") + (str(hydrogens) if hydrogens > 1 else "")


class Molecules(Dataset):
    """A dataset of molecules as point sets, with their masks and a property of each as conditions.

    A batch has the conditions ``mask``, ``property``, standardised, and ``known``, which is true.

    Args:
        molecules: the molecules.
        property: a function of a molecule, such as :func:`radius_of_gyration`.

    Raises:
        ValueError: for no molecules.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.42, 0, 0]])
        >>> methanol = Molecule(torch.tensor([6, 8]), x, torch.tensor([3, 1]))
        >>> ethane = Molecule(torch.tensor([6, 6]), 1.08 * x, torch.tensor([3, 3]))
        >>> data = Molecules([methanol, ethane])
        >>> x, conditions = data.batch([0])
        >>> x.shape, conditions["mask"]
        (torch.Size([1, 2, 5]), tensor([[True, True]]))
    """

    def __init__(self, molecules: Sequence[Molecule], property: Callable[[Molecule], float] = radius_of_gyration) -> None:
        self.molecules = list(molecules)
        if not self.molecules:
            raise ValueError("got no molecules; expected at least one")
        kinds = {(z, h) for m in self.molecules for z, h in zip(m.elements.tolist(), m.hydrogens.tolist(), strict=True)}
        away = torch.cat([m.positions.double() - m.positions.double().mean(0) for m in self.molecules])
        length = max(float(away.square().mean().sqrt()), 1e-3)
        self.encoding = Encoding(sorted(kinds), length, max(map(len, self.molecules)))
        self.event = self.encoding.event
        self._x, self.mask = self.encoding.encode(self.molecules)
        self.property = property
        self.values = torch.tensor([property(m) for m in self.molecules], dtype=torch.float32)
        """The property of each molecule, in its own unit, shape ``(n,)``."""

    def __len__(self) -> int:
        return len(self.molecules)

    def samples(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the point sets at ``indices``, shape ``(batch, points, 3 + kinds)``."""
        return self._x[torch.as_tensor(indices)]

    def standardised(self, values: Tensor) -> Tensor:
        """Return values of the property with mean 0 and standard deviation 1 over the dataset, as the model takes them."""
        spread = self.values.std() if len(self) > 1 else torch.tensor(0.0)
        return (torch.as_tensor(values, dtype=torch.float32) - self.values.mean()) / (spread if spread > 0 else 1.0)

    def batch(self, indices: Tensor | Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the point sets at ``indices`` with their ``mask``, ``property`` and ``known``."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        known = torch.ones(len(chosen), dtype=torch.bool)
        return self._x[chosen], {
            "mask": self.mask[chosen],
            "property": self.standardised(self.values[chosen]),
            "known": known,
        }

    def fingerprint(self) -> str:
        """Return a digest of all molecules and their properties."""
        return f"molecules {digest(self._x, self.mask, self.values, self.encoding.length)[:16]}"


def read_molecules(path: str | os.PathLike[str], *, hydrogens: bool = False) -> list[Molecule]:
    """Read the molecules in an ``.npz`` file.

    Args:
        path: a file with ``positions``, shape ``(n, atoms, 3)`` in angstrom, and ``z``, atomic numbers, shape
            ``(n, atoms)``, 0 for padding.
        hydrogens: whether hydrogens are atoms of their own; if not, they are counted at the nearest atom, see
            :func:`united`.

    Raises:
        ValueError: for a file without these arrays or with other shapes, an unknown element, and a molecule of one atom.

    Example:
        >>> import tempfile
        >>> x = np.array([[[0.0, 0, 0], [1.42, 0, 0], [-1.0, 0, 0]]], dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(Path(folder, "some.npz"), positions=x, z=np.array([[6, 8, 1]]))
        ...     read_molecules(Path(folder, "some.npz")), read_molecules(Path(folder, "some.npz"), hydrogens=True)
        ([Molecule(CHO, 2 atoms)], [Molecule(CHO, 3 atoms)])
    """
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            positions, z = torch.from_numpy(file["positions"]), torch.from_numpy(file["z"].astype(np.int64))
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"cannot read molecules in {str(path)!r}: {error}; expected an .npz file with positions and z"
        ) from error
    if positions.ndim != 3 or positions.shape[2] != 3 or z.shape != positions.shape[:2]:
        raise ValueError(
            f"{str(path)!r} has positions of shape {tuple(positions.shape)} and z of shape {tuple(z.shape)}; expected "
            "(n, atoms, 3) and (n, atoms)"
        )
    found = [Molecule(elements[elements > 0], row[elements > 0]) for row, elements in zip(positions, z, strict=True)]
    return found if hydrogens else [united(molecule) for molecule in found]


def united(molecule: Molecule) -> Molecule:
    """Return a molecule with its hydrogens counted at the nearest other atom, instead of placed.

    Raises:
        ValueError: where one atom or none is left.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [0.97, 0, 0], [-1.4, 0, 0]])
        >>> united(Molecule(torch.tensor([8, 1, 8]), x)).hydrogens
        tensor([1, 0])
    """
    light = molecule.elements == 1
    heavy = ~light
    counts = molecule.hydrogens[heavy].clone()
    if bool(light.any()) and bool(heavy.any()):
        nearest = torch.cdist(molecule.positions[light].double(), molecule.positions[heavy].double()).argmin(1)
        counts += torch.bincount(nearest, minlength=len(counts))
    return Molecule(molecule.elements[heavy], molecule.positions[heavy], counts)
