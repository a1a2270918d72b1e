"""Diffusion of molecules: training, and drawing of molecules of given sizes and properties."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde import guidance as steering
from scoresde.base.numbers import whole
from scoresde.models import EGNN
from scoresde.objectives import LabelDropout, Objective
from scoresde.sampling import Samples, sample
from scoresde.score import PointModel, ScoreModel
from scoresde.sde import EDM, GaussianSDE
from scoresde.solvers.noise.fresh import FreshNoise, sample_seeds
from scoresde.systems.molecules.dataset import Molecules
from scoresde.systems.molecules.molecule import Molecule
from scoresde.training import Files, Method, fit

__all__ = ["DrawnMolecules", "MoleculeDiffusion", "molecule_model", "train_molecules"]


class DrawnMolecules(NamedTuple):
    """Drawn molecules.

    Args:
        molecules: the molecules.
        samples: the point sets that they were decoded from, and how these were drawn.
        mask: which rows of the point sets are atoms, shape ``(n, points)``.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.42, 0, 0]])
        >>> data = Molecules([Molecule(torch.tensor([6, 8]), x, torch.tensor([3, 1]))] * 4)
        >>> drawn = MoleculeDiffusion(molecule_model(data, width=8, depth=1), data).draw(3, steps=1)
        >>> len(drawn.molecules), drawn.mask.sum(1).tolist()
        (3, [2, 2, 2])
    """

    molecules: list[Molecule]
    samples: Samples
    mask: Tensor


@dataclass(frozen=True, eq=False)
class MoleculeDiffusion:
    """A score model of molecules, with the data that it was trained on, whose sizes and properties are drawn again.

    Args:
        model: the score model of the encoded molecules.
        data: the molecules of the training.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.42, 0, 0], [2.84, 0, 0]])
        >>> propane = Molecule(torch.tensor([6, 6, 6]), x, torch.tensor([3, 2, 3]))
        >>> data = Molecules([propane, Molecule(torch.tensor([6, 6]), x[:2], torch.tensor([3, 3]))])
        >>> system = MoleculeDiffusion(molecule_model(data, width=8, depth=1), data)
        >>> [len(molecule) for molecule in system.draw(3, atoms=[2, 3, 2], property=0.9, guidance=2.0, steps=1).molecules]
        [2, 3, 2]
    """

    model: ScoreModel
    data: Molecules

    def draw(
        self,
        n: int,
        *,
        atoms: int | Sequence[int] | None = None,
        property: float | Sequence[float] | None = None,
        guidance: float = 1.0,
        solver: Any = "heun",
        steps: int = 25,
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> DrawnMolecules:
        """Draw molecules.

        Args:
            n: the number of molecules.
            atoms: the number of atoms of each molecule, or one for all; by default drawn from the data.
            property: the property that each molecule is asked to have, or one value for all, in the unit of
                ``data.values``; by default none is asked for.
            guidance: the scale of classifier-free guidance, where a property is asked for.
            solver, steps: as for :func:`scoresde.sample`.
            seed: one seed, or a seed for each molecule, on which its size and its sample depend.
            options: further arguments of :func:`scoresde.sample`.

        Raises:
            ValueError: for a number of atoms that is below two or above the largest of the data, or not one for each
                molecule; for a property that is not finite; and for guidance without a property.
        """
        n = whole("n", n, 1)
        seeds = sample_seeds(seed, n)
        counts = self._counts(n, atoms, seeds)
        mask = counts[:, None] > torch.arange(self.data.event[0])
        known = torch.full((n,), property is not None)
        asked = torch.as_tensor(0.0 if property is None else property, dtype=torch.float32)
        if asked.shape not in ((), (n,)) or not bool(torch.isfinite(asked).all()):
            raise ValueError(f"got property={property!r:.60} for {n} molecules; expected a finite number, or one for each")
        if property is None and guidance != 1.0:
            raise ValueError(f"got guidance={guidance} without a property; expected property=.., which guidance strengthens")
        value = self.data.standardised(asked).expand(n).clone()
        model = self.model
        if guidance != 1.0:
            model = steering.ClassifierFree(model, guidance, {"known": False})
        told = {"mask": mask, "property": value, "known": known}
        options.setdefault("progress", False)
        drawn = sample(model, (n, *self.data.event), solver, steps, seed=seeds, conditions=told, **options)
        return DrawnMolecules(self.data.encoding.decode(drawn.x, mask), drawn, mask)

    def _counts(self, n: int, atoms: int | Sequence[int] | None, seeds: list[int]) -> Tensor:
        sizes = self.data.mask.sum(1)
        if atoms is None:
            own = FreshNoise([seed ^ 0x5EED for seed in seeds], "cpu").uniform((n, 1))[:, 0]
            return sizes[(own * len(sizes)).long()]
        counts = torch.as_tensor(atoms)
        most = self.data.event[0]
        if counts.is_floating_point() or counts.shape not in ((), (n,)):
            raise ValueError(f"got atoms={atoms!r:.60} for {n} molecules; expected a whole number, or one for each")
        if not bool(((counts >= 2) & (counts <= most)).all()):
            raise ValueError(
                f"got atoms={atoms!r:.60}; expected from 2 to {most} atoms, the largest number in the data: one atom has no "
                "positions relative to others"
            )
        return counts.expand(n)


def molecule_model(
    data: Molecules, *, width: int = 64, depth: int = 4, sde: GaussianSDE | None = None, seed: int = 0
) -> PointModel:
    """Return an untrained score model of encoded molecules, with EDM's preconditioning.

    Args:
        data: the molecules.
        width, depth: arguments of :class:`scoresde.models.EGNN`.
        sde: the SDE; by default :class:`~scoresde.EDM`.
        seed: the seed of the initial weights. The state of the global generator is restored.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.42, 0, 0]])
        >>> data = Molecules([Molecule(torch.tensor([6, 8]), x, torch.tensor([3, 1]))])
        >>> model = molecule_model(data, width=8, depth=1)
        >>> model.sde, model.predicts, data.event
        (EDM(sigma_min=0.002, sigma_max=80.0), 'edm', (2, 5))
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EGNN(len(data.encoding.kinds), width=width, depth=depth, properties=1)
    return PointModel(ScoreModel(net, sde or EDM(), "edm", sigma_data=1.0))


def train_molecules(
    data: Molecules,
    *,
    steps: int,
    model: ScoreModel | None = None,
    objective: str | Objective = "edm",
    dropout: float = 0.3,
    out: str | os.PathLike[str] | None = None,
    method: Method | None = None,
    progress: bool = True,
) -> MoleculeDiffusion:
    """Train a score model of molecules on their positions and types, conditioned on a property that is dropped at times.

    The same call with ``out`` continues a training, and returns its result where it is complete.

    Args:
        data: the molecules.
        steps: the number of steps.
        model: the score model; by default that of :func:`molecule_model`.
        objective: the objective, or its name.
        dropout: the probability that a molecule is trained on without its property.
        out: the file of the checkpoint.
        method: the settings of the training; by default batches of 64 and a learning rate that falls from 2e-3 to zero.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for bad settings, before the first step.
        CheckpointError: if ``out`` holds another training.

    Example:
        >>> x = torch.tensor([[0.0, 0, 0], [1.42, 0, 0]])
        >>> data = Molecules([Molecule(torch.tensor([6, 8]), x, torch.tensor([3, 1]))] * 4)
        >>> system = train_molecules(data, steps=2, model=molecule_model(data, width=8, depth=1), progress=False)
        >>> system.model.dropped
        {'known': False}
    """
    method = method or Method(batch_size=64, lr=2e-3, schedule=f"cosine-{steps}")
    model = model or molecule_model(data, seed=method.seed)
    aim = LabelDropout(objective, {"known": False}, dropout)
    files = Files(log=False) if out is None else replace(Files(log=False), path=out)
    found = fit(model, data, aim, steps=steps, method=method, files=files, progress=progress)
    return MoleculeDiffusion(found.model, data)
