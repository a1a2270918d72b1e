"""Saving of score models to files, and loading."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from scoresde import weights as weights_of_others
from scoresde.discrete import DenoisingModel
from scoresde.score import DataMoments, Departure, LatentModel, MatrixModel, PointModel, ScoreModel
from scoresde.sde import GaussianSDE, MatrixSDE
from scoresde.sde.chain import Chain
from scoresde.solvers.fitted import Chosen, Midpoints, Tuned
from scoresde.solvers.table import fitted_solver
from scoresde.training.files import checkpoint
from scoresde.training.files.checkpoint import Checkpoint, CheckpointError, average_group, companion_of, fill, read
from scoresde.training.files.description import (
    build_net,
    build_process,
    build_token_model,
    check_marginals,
    describe,
    differences,
    on_tokens,
)

__all__ = ["CHECKPOINT", "check_name", "in_run", "load", "load_companion", "moments_of", "save", "save_tuned"]

_OF_MODEL = ("net", "process", "predicts", "sigma_data", "time", "model", "autoencoder", "points")
CHECKPOINT = "model.safetensors"
"""The file name of the checkpoint in a run folder."""


def in_run(where: str | os.PathLike[str]) -> Path:
    """Return the path of the checkpoint in a run folder, or ``where`` itself if it is not a run folder.

    Example:
        >>> str(in_run("mine.safetensors"))
        'mine.safetensors'
    """
    path = Path(where)
    return path / CHECKPOINT if (path / CHECKPOINT).is_file() else path


def check_name(path: str | os.PathLike[str]) -> Path:
    """Check that the extension of ``path`` is not one of pickles, and return the path.

    Raises:
        ValueError: for ``.pt``, ``.pth``, ``.ckpt``, ``.pkl``, ``.pickle`` and ``.bin``.

    Example:
        >>> str(check_name("model.safetensors"))
        'model.safetensors'
    """
    path = Path(path)
    if path.suffix.lower() in (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin"):
        raise ValueError(
            f"got {str(path)!r} for a checkpoint, the name of a pickle, which scoresde does not write; expected a "
            f"safetensors file: pass {str(path.with_suffix('.safetensors'))!r}"
        )
    return path


def save(
    model: ScoreModel | DenoisingModel,
    path: str | os.PathLike[str],
    *,
    event: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> None:
    """Save a score model, or a model on tokens, to a file, from which :func:`load` builds it again.

    Args:
        model: the score model. A network, SDE or subclass of your own must be passed to :func:`load` again.
        path: the path of the file, such as ``"model.safetensors"``.
        event: the shape of a sample, which ``scoresde sample`` uses.
        classes: the names of the classes, in the order of their labels.

    Raises:
        ValueError: for a path with the extension of a pickle, ``.pt`` or the like, and for swapped arguments.
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
    if not isinstance(model, ScoreModel | DenoisingModel):
        raise ValueError(f"got a {type(model).__name__} to save; expected a score model and then a path: save(model, path)")
    path = check_name(path)
    model = cast(ScoreModel, model)
    if type(model) in (ScoreModel, DenoisingModel) and not isinstance(model.net, nn.Module):
        raise CheckpointError(
            f"got a network of type {type(model.net).__name__}; expected a torch.nn.Module, which has weights to save: "
            "write the function as the forward method of one"
        )
    tensors = {f"model.{name}": value for name, value in checkpoint.weights(model).items()}
    tensors |= moments_of(model)
    solver = getattr(model, "tuned", None)  # a model of tokens cannot have one
    tuned = {} if solver is None else {"tuned": solver.to_json()}
    checkpoint.write(path, {**describe(model), **about_samples(event, classes), **tuned}, tensors)


def moments_of(model: ScoreModel | DenoisingModel) -> dict[str, Tensor]:
    """Return the moments of a model's data and its departure from them as tensors of a checkpoint; empty without moments.

    Example:
        >>> from scoresde import VP
        >>> moments_of(ScoreModel(lambda x, t: x, VP()))
        {}
    """
    moments, departure = (vars(model).get(name) for name in ("moments", "departure"))
    if not isinstance(moments, DataMoments):
        return {}
    found = {f"moments.{k}": v for k, v in moments.to_tensors().items()}
    return found | {f"departure.{k}": v for k, v in (departure.to_tensors() if departure else {}).items()}


def _with_moments(model: ScoreModel, stored: Checkpoint, path: str | os.PathLike[str]) -> ScoreModel:
    """Set the moments in a checkpoint and the departure from them, if there are any, on the model."""
    if tensors := stored.group("moments"):
        try:
            model.moments = DataMoments.from_tensors(tensors)
            if departure := stored.group("departure"):
                model.departure = Departure.from_tensors(departure)
        except ValueError as error:
            raise CheckpointError(f"{path} holds damaged moments: {error}; take an older checkpoint") from error
    return model


def about_samples(event: Sequence[int], classes: Sequence[str]) -> dict[str, Any]:
    """Return the entries of a description for sampling: the shape of a sample and the names of classes, where known.

    Example:
        >>> about_samples((1, 28, 28), ())
        {'event': [1, 28, 28]}
    """
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
    """Load the score model of a checkpoint.

    Args:
        path: a file written by :func:`save` or :func:`~scoresde.training.fit`, a run folder with one, or published weights
            that :func:`scoresde.weights.load_published` reads.
        net: a network, into which the weights are copied; needed for a network of your own.
        model: a score model, into which the weights are copied; needed for a subclass of :class:`~scoresde.ScoreModel`.
        ema: load the averaged weights, where the file has them, instead of the last ones; or the name of one of several
            averages, such as ``"power-0.1"``.
        sde: the SDE or chain; needed for an SDE or chain of your own.
        time: the function of ``t`` whose value the network gets; needed if the model was made with one.

    Returns:
        The model in evaluation mode; on the CPU, unless ``net`` or ``model`` is given.

    Raises:
        CheckpointError: if the file is missing, truncated, damaged, foreign or of another architecture or SDE, or if one of
            ``net``, ``model``, ``sde``, ``time`` is needed and not given.

    Example:
        >>> import tempfile
        >>> from scoresde import VP
        >>> from scoresde.models import MLP
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(ScoreModel(MLP(2), VP(), "v"), f"{folder}/model.safetensors")
        ...     load(f"{folder}/model.safetensors").predicts
        'v'
    """
    path = in_run(path)
    if net is None and sde is None and time is None and model is None and weights_of_others.recognizes(path):
        return weights_of_others.load_published(path, ema=bool(ema))
    group = average_group(read(path, ()).description, ema, path)
    stored = read(path, (group, "moments", "departure"))
    tensors = stored.group(group)
    own = {k: v for k, v in stored.description.items() if k in _OF_MODEL}
    own["learned_variance"] = bool(stored.description.get("learned_variance"))
    if model is not None:
        filled = _filled(model, own, tensors, path)
        filled.dropped, filled.tuned = stored.description.get("dropped"), _tuned(stored, path)
        return _with_moments(filled, stored, path)
    if "model" in own:
        name = own["model"]["type"]
        raise CheckpointError(
            f"{path} holds a {name}, a class of your own; a checkpoint contains no code: make the model as before its "
            f"training and pass it: load(.., model={name.rpartition('.')[2]}(..))"
        )
    if "net" not in own:
        raise CheckpointError(
            f"{path} has no network in its description; expected a score model: write it with save(model, path)"
        )
    if on_tokens(own):
        of_net = {name.removeprefix("net."): value for name, value in tensors.items()}
        on = build_token_model(own, build_net(own["net"], of_net, Path(path)) if net is None else net, Path(path))
        fill(cast(ScoreModel, on), tensors, path, assign=net is None)
        on.dropped = stored.description.get("dropped")
        return cast(ScoreModel, on.eval())
    if own["time"] == "custom" and time is None:
        raise CheckpointError(
            f"{path} holds a model whose network gets a function of t of your own; pass it: load(.., time=..)"
        )
    made = _rebuilt(own, stored, tensors, path, net, sde, time)
    fill(made, tensors, path, assign=net is None)
    made.dropped, made.tuned = stored.description.get("dropped"), _tuned(stored, path)
    return _with_moments(made, stored, path).eval()


def save_tuned(solver: Tuned | Chosen | Midpoints, path: str | os.PathLike[str]) -> Path:
    """Save a solver in the checkpoint of the model that it was tuned for, and return the path of the checkpoint.

    :func:`load` then returns the model with the solver, ``model.tuned``. All else in the file stays as it is.

    Args:
        solver: the result of :func:`scoresde.tuning.tune`, :func:`~scoresde.tuning.choose` or
            :func:`~scoresde.tuning.midpoints`.
        path: the checkpoint or the run folder.

    Raises:
        CheckpointError: if the file is missing, damaged, or no checkpoint of this package.

    Example:
        >>> import scoresde, tempfile
        >>> model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), scoresde.VP())
        >>> solver = scoresde.tuning.tune(model, 2, shape=(2,), starts=8, iterations=1, tolerance=1e-3, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save(model, f"{folder}/model.safetensors", event=(2,))
        ...     _ = save_tuned(solver, folder)
        ...     load(folder).tuned == solver
        True
    """
    where = in_run(path)
    stored = read(where)
    checkpoint.write(where, {**stored.description, "tuned": solver.to_json()}, stored.tensors)
    return where


def _tuned(stored: Checkpoint, path: str | os.PathLike[str]) -> Tuned | Chosen | Midpoints | None:
    """Return the tuned or chosen solver in a checkpoint, or ``None``."""
    value = stored.description.get("tuned")
    try:
        return None if value is None else fitted_solver(value)
    except ValueError as error:
        raise CheckpointError(f"{path} holds a damaged solver: {error}; tune again, or take an older checkpoint") from error


def _filled(model: ScoreModel, own: dict[str, Any], tensors: dict[str, Tensor], path: str | os.PathLike[str]) -> ScoreModel:
    """Load the tensors of a file into ``model``, after the two descriptions are compared."""
    given = describe(model)
    check_marginals(own["process"].get("marginals", []), model.sde, Path(path))
    differ = differences(_fixed(own), _fixed(given))
    if differ:
        raise CheckpointError(
            f"{path} holds another model than the one given: {', '.join(differ.values())}; pass a model with the "
            "settings of the file"
        )
    for part in ("model", "net", "autoencoder"):
        if own.get(part, {}).get("identity") != given.get(part, {}).get("identity"):
            warnings.warn(
                f"{path} holds a {own[part]['type']} whose code or settings differ from the one given", stacklevel=3
            )
    fill(model, tensors, path)
    return model.eval()


def _fixed(described: dict[str, Any]) -> dict[str, Any]:
    """Return a description without the entries that may differ between a saved and a loaded model: code and training."""
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
    """Build the model of a description from its arguments or the given parts, with weights that are not loaded yet."""
    prefix = "net.net." if "autoencoder" in own or "points" in own else "net."
    of_net = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    process = build_process(own["process"], own["time"], Path(path)) if sde is None else sde
    if not isinstance(process, MatrixSDE):
        check_marginals(own["process"].get("marginals", []), process, Path(path))
    built = build_net(own["net"], of_net, Path(path)) if net is None else net
    try:
        made: ScoreModel
        if isinstance(process, MatrixSDE):
            made = MatrixModel(built, process, own["predicts"], sigma_data=own["sigma_data"], time=time)
        else:
            made = ScoreModel(
                built,
                process,
                own["predicts"],
                sigma_data=own["sigma_data"],
                learned_variance=own["learned_variance"],
                time=time,
            )
        if "points" in own:
            made = PointModel(made, own["points"])
        if "autoencoder" in own:
            of_coder = {n.removeprefix("autoencoder."): v for n, v in tensors.items() if n.startswith("autoencoder.")}
            made = LatentModel(made, build_net(own["autoencoder"], of_coder, Path(path)))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} describes a score model that cannot be built: {error}") from error
    if differ := differences(_fixed(own), _fixed(describe(made))):
        raise CheckpointError(
            f"{path} holds another model than the given parts make: {', '.join(differ.values())}; pass the parts that "
            "it was saved with"
        )
    return made


def load_companion(path: str | os.PathLike[str], companion: nn.Module, *, ema: bool | str = True) -> nn.Module:
    """Load the weights of an objective's companion, such as the noise of a learned dequantization.

    Args:
        path: a checkpoint of a training whose objective had a ``companion``.
        companion: a module of the same architecture, into which the weights are copied.
        ema: load the averaged weights, where the file has them, instead of the last ones; or the name of an average.

    Returns:
        ``companion``, in evaluation mode.

    Raises:
        CheckpointError: if the file holds no companion, or a companion of another architecture.

    Example:
        >>> import scoresde, tempfile, torch
        >>> from scoresde.objectives import DSM, LearnedDequantization, LogisticNoise
        >>> model = ScoreModel(scoresde.models.MLP(2, hidden=(8,)), scoresde.VP(t_min=1e-5))
        >>> objective = LearnedDequantization(DSM("likelihood", "likelihood"), LogisticNoise(nn.Linear(2, 4)), width=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     how = {"steps": 1, "batch_size": 4, "out": f"{folder}/model.safetensors", "progress": False}
        ...     _ = scoresde.fit(model, torch.zeros(8, 2), objective, **how)
        ...     q = load_companion(how["out"], LogisticNoise(nn.Linear(2, 4)), ema=False)
        >>> torch.equal(q.net.weight, objective.noise.net.weight)
        True
    """
    group = companion_of(average_group(read(path, ()).description, ema, path))
    fill(companion, read(path, (group,)).group(group), path)
    return companion.eval()
