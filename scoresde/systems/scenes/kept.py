"""The state of a distillation in a file, from which it continues as if it had not been interrupted."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scoresde.score import ScoreModel
from scoresde.systems.scenes.distillation import Distillation, Trained
from scoresde.training.files import checkpoint
from scoresde.training.files.checkpoint import Checkpoint, CheckpointError
from scoresde.training.files.description import describe, differences
from scoresde.training.files.models import check_name
from scoresde.training.optimization import optimizers

__all__ = ["Kept"]


@dataclass
class Kept:
    """What changes in a distillation, and the file that keeps it.

    Args:
        path: the file.
        model: the score model, of which the description is kept and compared.
        method: the gradient on images.
        parameters: the tensors that are fitted.
        optimizer: their optimizer.
        learn: what the method trains beside the scene.
        generator: the source of cameras, times and noise.
        settings: the other settings of the call, by name.

    Example:
        >>> import scoresde, tempfile
        >>> from scoresde.systems.scenes import Pixels, distill
        >>> model = scoresde.problems.Gaussian([1.0, -2.0], 0.5).model(scoresde.VP())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     how = {"out": f"{folder}/scene.safetensors", "progress": False}
        ...     _ = distill(model, Pixels(torch.zeros(1, 2)), steps=2, **how)
        ...     found = distill(model, Pixels(torch.zeros(1, 2)), steps=3, **how)  # one step more
        >>> [step for step, _ in found.history]
        [1, 2, 3]
    """

    path: str | os.PathLike[str]
    model: ScoreModel
    method: Distillation
    parameters: Sequence[Tensor]
    optimizer: Optimizer
    learn: Any
    generator: torch.Generator
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.path = check_name(self.path)

    def save(self, step: int, sizes: Sequence[Tensor]) -> None:
        """Write the state after ``step`` steps, of which ``sizes`` are the sizes of their gradients."""
        tensors = {f"parameter.{i}": p for i, p in enumerate(self.parameters)} | optimizers.state(self.optimizer)
        tensors |= {"generator": self.generator.get_state(), "history": torch.stack(list(sizes)).double().cpu()}
        if isinstance(self.learn, Trained):
            tensors |= {f"companion.{name}": value for name, value in checkpoint.weights(self.learn.companion).items()}
            tensors |= {f"beside.{name}": value for name, value in optimizers.state(self.learn.optimizer).items()}
        described = describe(self.model)
        about = {"process": described["process"], "training": self._told(described), "step": step}
        checkpoint.write(self.path, about, tensors)

    def resume(self) -> tuple[int, list[Tensor]]:
        """Fill all that changes from the file, and return the step and the sizes; zero and none where there is no file.

        Raises:
            CheckpointError: for the file of another distillation; names what differs.
        """
        path = Path(self.path)
        if not path.exists():
            return 0, []
        stored = checkpoint.read(path)
        told = self._told(describe(self.model))
        if differ := differences(stored.description.get("training", {}), told):
            raise CheckpointError(
                f"{path} holds another distillation than this one: {', '.join(differ.values())}; pass the settings of the "
                "file, or another out"
            )
        with torch.no_grad():
            for i, p in enumerate(self.parameters):
                p.copy_(stored.tensors[f"parameter.{i}"])
        optimizers.fill(self.optimizer, stored)
        if isinstance(self.learn, Trained):
            checkpoint.fill(self.learn.companion, stored.group("companion"), path)
            optimizers.fill(self.learn.optimizer, Checkpoint(stored.description, stored.group("beside")))
        self.generator.set_state(stored.tensors["generator"])
        return stored.description["step"], list(stored.tensors["history"])

    def _told(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return what must be the same for a distillation to continue."""
        fields = {k: v for k, v in vars(self.method).items() if isinstance(v, bool | int | float | str)}
        kept = {name: value for name, value in described.items() if name != "dropped"}
        return {
            **self.settings,
            "model": kept,
            "method": {"type": type(self.method).__name__, **fields},
            "parameters": [list(p.shape) for p in self.parameters],
            "optimizer": optimizers.describe(self.optimizer),
        }
