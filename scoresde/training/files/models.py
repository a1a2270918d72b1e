"""Score models in files: saved, and built again."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoresde import weights as weights_of_others
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.sde.chain import Chain
from scoresde.training.files import checkpoint
from scoresde.training.files.checkpoint import Checkpoint, CheckpointError, average_group, companion_of, fill, read
from scoresde.training.files.description import build_net, build_process, check_marginals, describe, differences

__all__ = ["CHECKPOINT", "check_name", "in_run", "load", "load_companion", "save"]

CHECKPOINT = "model.safetensors"
"""The name of the checkpoint in a run folder."""


def in_run(where: str | os.PathLike[str]) -> Path:
    """Return the checkpoint of a run folder, or ``where`` itself if it is none."""
    path = Path(where)
    return path / CHECKPOINT if (path / CHECKPOINT).is_file() else path


def check_name(path: str | os.PathLike[str]) -> Path:
    """Return ``path``, if its ending does not promise a pickle.

    Raises:
        ValueError: for ``.pt``, ``.pth``, ``.ckpt`` and the like.
    """
    path = Path(path)
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"):
        raise ValueError(
            f"got {str(path)!r} for a checkpoint, the name of a pickle, which scoresde does not write; expected a name such "
            f"as {str(path.with_suffix('.safetensors'))!r}"
        )
    return path


def save(model: ScoreModel, path: str | os.PathLike[str], *, event: Sequence[int] = (), classes: Sequence[str] = ()) -> None:
    """Write a score model to one file, from which :func:`load` builds it again.

    Args:
        model: of this package's networks and SDEs, or with parts of your own: then :func:`load` is given like ones.
        path: of the file, such as ``"model.safetensors"``.
        event: the shape of a sample, for ``scoresde sample``.
        classes: the names of the labels.

    Raises:
        ValueError: for a path that ends in ``.pt`` or the like, and arguments in the other order.
        CheckpointError: for a model without weights.

    Example:
        >>> import tempfile
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> model = ScoreModel(MLP(2), VP(), predicts="v")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(model, f"{folder}/model.safetensors")
        ...     load(f"{folder}/model.safetensors")
        ScoreModel(MLP of 157,570 parameters, sde=VP(beta_min=0.1, beta_max=20.0, t_min=0.001, t_max=1.0), predicts='v')
    """
    if not isinstance(model, ScoreModel):
        raise ValueError(f"got a {type(model).__name__} to save; expected a score model and then a path: save(model, path)")
    path = check_name(path)
    if type(model) is ScoreModel and not isinstance(model.net, nn.Module):
        raise CheckpointError(
            f"got a network of type {type(model.net).__name__}; only a torch.nn.Module has weights to save"
        )
    tensors = {f"model.{name}": value for name, value in checkpoint.weights(model).items()}
    checkpoint.write(path, {**describe(model), **about_samples(event, classes)}, tensors)


def about_samples(event: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """What sampling needs and no weights tell, as it stands in a description; what is not known is left out."""
    told = {"event": [int(n) for n in event], "classes": [str(name) for name in classes]}
    return {name: value for name, value in told.items() if value}


def load(
    path: str | os.PathLike[str],
    net: nn.Module | None = None,
    *,
    model: ScoreModel | None = None,
    ema: bool | str = True,
    sde: GaussianSDE | Chain | None = None,
    time: Callable[[Tensor], Tensor] | None = None,
) -> ScoreModel:
    """Build the score model that a checkpoint holds.

    Args:
        path: a file written by :func:`save` or :func:`~scoresde.training.fit`, a run folder with one, or weights that
            :func:`scoresde.weights.load` reads.
        net: a network for the weights, which are copied into it; needed for one that scoresde did not make.
        model: a whole model to fill; needed for one of a subclass of :class:`~scoresde.ScoreModel`.
        ema: take the averaged weights, where there are any, instead of the last ones; or the name of one of several
            averages, such as ``"power-0.1"``.
        sde: the SDE or chain; needed for one of your own.
        time: what the network gets for ``t``; needed where the model was given such a function.

    Returns:
        The model in evaluation mode, on the CPU where the network is built here.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, foreign or of another architecture or SDE, or one of
            the above is needed.
    """
    path = in_run(path)
    if net is None and sde is None and time is None and model is None and weights_of_others.recognizes(path):
        return weights_of_others.load(path, ema=bool(ema))
    group = average_group(read(path, ()).description, ema, path)
    stored = read(path, (group,))
    tensors = stored.group(group)
    own = {k: v for k, v in stored.description.items() if k in ("net", "process", "predicts", "sigma_data", "time", "model")}
    own["learned_variance"] = bool(stored.description.get("learned_variance"))
    if model is not None:
        filled = _filled(model, own, tensors, path)
        filled.dropped = stored.description.get("dropped")
        return filled
    if "model" in own:
        name = own["model"]["type"]
        raise CheckpointError(
            f"{path} holds a {name}, a class of your own, whose code is in no file; make one as it was before its training "
            f"and pass it: load(.., model={name.rpartition('.')[2]}(..))"
        )
    if "net" not in own:
        raise CheckpointError(f"{path} does not describe a score model: it has no network")
    if own["time"] == "custom" and time is None:
        raise CheckpointError(f"{path} holds a model with a function of its own for the time; pass it as time=..")
    made = _rebuilt(own, stored, tensors, path, net, sde, time)
    fill(made, tensors, path, assign=net is None)
    made.dropped = stored.description.get("dropped")
    return made.eval()


def _filled(model: ScoreModel, own: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> ScoreModel:
    """``model`` with the tensors of a file, which must be of its kind."""
    given = describe(model)
    check_marginals(own["process"].get("marginals", []), model.sde, Path(path))
    differ = differences(_fixed(own), _fixed(given))
    if differ:
        raise CheckpointError(f"{path} holds another model than the one given: {', '.join(differ.values())}")
    for part in ("model", "net"):
        if own.get(part, {}).get("identity") != given.get(part, {}).get("identity"):
            warnings.warn(f"{path} holds a {own[part]['type']} of other code or settings than the one given", stacklevel=3)
    fill(model, tensors, path)
    return model.eval()


def _fixed(described: dict[str, Any]) -> dict[str, Any]:
    """A description without what may differ between a model and the one that it is loaded into: code and training."""
    held = "marginals" in described["process"]
    kept = {k: v for k, v in described.items() if k != "dropped" and not (held and k == "process")}
    return {k: {n: e for n, e in v.items() if n != "identity"} if isinstance(v, dict) else v for k, v in kept.items()}


def _rebuilt(
    own: dict[str, Any],
    stored: Checkpoint,
    tensors: dict[str, Tensor],
    path: str | os.PathLike[str],
    net: nn.Module | None,
    sde: GaussianSDE | Chain | None,
    time: Callable[[Tensor], Tensor] | None,
) -> ScoreModel:
    """The model that is described, with the parts that were given and weights yet to be filled."""
    of_net = {name.removeprefix("net."): value for name, value in tensors.items()}
    process = build_process(own["process"], own["time"], Path(path)) if sde is None else sde
    check_marginals(own["process"].get("marginals", []), process, Path(path))
    built = build_net(own["net"], of_net, Path(path)) if net is None else net
    try:
        made = ScoreModel(
            built,
            process,
            own["predicts"],
            sigma_data=own["sigma_data"],
            learned_variance=own["learned_variance"],
            time=time,
        )
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} describes a score model that cannot be built: {error}") from error
    if differ := differences(_fixed(own), _fixed(describe(made))):
        raise CheckpointError(f"{path} holds another model than the one asked for: {', '.join(differ.values())}")
    return made


def load_companion(path: str | os.PathLike[str], companion: nn.Module, *, ema: bool | str = True) -> nn.Module:
    """Fill a module that was trained along with the network, such as the noise of a learned dequantization; returned.

    Args:
        path: a checkpoint of a training whose objective had it as its ``companion``.
        companion: one like it.
        ema: as of :func:`load`.

    Raises:
        CheckpointError: if the file holds no companion, or that of another architecture.
    """
    group = companion_of(average_group(read(path, ()).description, ema, path))
    fill(companion, read(path, (group,)).group(group), path)
    return companion.eval()
