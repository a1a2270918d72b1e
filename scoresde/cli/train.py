"""The command ``scoresde train``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from scoresde import data, metrics, plots
from scoresde.cli import options
from scoresde.cli.errors import reported
from scoresde.cli.sample import write
from scoresde.cli.source import Limit, open_data
from scoresde.cli.words import train_words
from scoresde.models import KLAutoencoder, TextEncoder, UNet
from scoresde.objectives import OBJECTIVES, LabelDropout, Objective
from scoresde.objectives import objective as named
from scoresde.sampling import sample as draw
from scoresde.score import ScoreModel
from scoresde.sde import names
from scoresde.sde.chain import Chain, ChainSDE
from scoresde.systems import train_latent
from scoresde.training import Files, FitResult, Method, Trainer, networks, result_of
from scoresde.training.files import runs
from scoresde.training.sources import is_inside

__all__ = ["train"]


@reported()
@options.derived(batch_size=64, lr=2e-3, monitor_every=0)
def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            callback=options.from_file, is_eager=True, help="TOML file of these options; options of the command line win."
        ),
    ] = None,
    *,
    preset: Annotated[
        str | None,
        typer.Option(
            callback=options.from_preset,
            is_eager=True,
            help="Published training whose options to take: scoresde presets lists them.",
        ),
    ] = None,
    data_name: Annotated[
        str,
        typer.Option(
            "--data",
            help="Data: digits, cifar10:FOLDER, mnist:.., a file (.npy, .npz, IDX, parquet), a folder, hf:NAME, or words of "
            "one length in a .txt file.",
        ),
    ],
    out: options.Out,
    size: Annotated[int | None, typer.Option(help="Height and width to which image files are scaled and cropped.")] = None,
    unreadable: options.Unreadable = "raise",
    limit: Limit = None,
    flips: Annotated[
        bool, typer.Option("--flips/--no-flips", help="Add the mirror image of each image to the data.")
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Condition the network on the labels of the data.")
    ] = False,
    label_dropout: Annotated[float, typer.Option(help="Probability of dropping a label, for guidance.")] = 0.1,
    sde: options.Process = "vp",
    predicts: Annotated[
        str | None,
        typer.Option(help="Output of the network: eps, x0, v, velocity, score or edm; by default one that suits the SDE."),
    ] = None,
    sigma_data: Annotated[
        float | None, typer.Option(help="Standard deviation of the data, for edm; by default measured.")
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help=f"Objective: {', '.join(OBJECTIVES)}; by default one that suits the SDE.")
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="Name in scoresde.models.NETWORKS, with settings: 'ddpmpp-cifar10: dropout=0.2'; else a small one."
        ),
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the small U-Net; the MLP is four times as wide.")] = 32,
    system: Annotated[
        str | None,
        typer.Option(help="System to train in place of one model: latent, an autoencoder and a model of its latents."),
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(help="Folder of a transformers text encoder, for --system latent and an .npz file with captions."),
    ] = None,
    autoencoder_steps: Annotated[
        int | None, typer.Option(help="Training steps of the autoencoder of --system latent; by default those of --steps.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Total number of training steps, including those before a resume.")] = 5000,
    method: Method,
    files: Files,
    device: Annotated[str | None, typer.Option(help="Device: cpu, cuda, ..")] = None,
    progress: options.Progress = True,
) -> bool:
    """Train a U-Net on images, an MLP on vectors, or a transformer on words, and write the checkpoint and the log.

    On several GPUs or machines: accelerate launch -m scoresde.cli train .., or torchrun.
    """
    if steps < 1:
        raise ValueError(f"got steps={steps}; expected a whole number of at least 1")
    folder = Path(data_name.rpartition(":")[2])
    if folder.is_dir() and is_inside(out, folder):
        raise ValueError(
            f"got out={str(out)!r}, inside the folder {str(folder)!r} of the data; expected a place outside of it: what is "
            "written there would be taken for data the next time"
        )
    if Path(data_name).suffix == ".txt":
        if labels or flips or size or network or system or text_encoder or predicts or sigma_data or sde != "vp":
            raise ValueError(
                "got options of images and vectors for the words of a .txt file; expected none of "
                " --labels, --flips, --size, --network, --system, --text-encoder, --predicts, --sigma-data and --sde"
            )
        return train_words(
            Path(data_name),
            out,
            steps,
            objective or "mdlm",
            width,
            method,
            files,
            limit=limit,
            device=device,
            progress=progress,
        )
    how: dict[str, Any] = {"size": size, "flips": flips, "unreadable": unreadable, "limit": limit}
    if system is not None:
        if network is not None or files.monitor_every:
            raise ValueError("got --network or --monitor-every with --system; expected one without the other")
        latent = _Latent(
            system, text_encoder, steps if autoencoder_steps is None else autoencoder_steps, width, label_dropout
        )
        return latent.train(
            data_name,
            labels,
            out,
            steps,
            sde,
            predicts or "v",
            objective or "v",
            method,
            files,
            **how,
            device=device,
            progress=progress,
        )
    if text_encoder is not None or autoencoder_steps is not None:
        raise ValueError("got --text-encoder or --autoencoder-steps without --system; expected them with --system latent")
    source, x, classes = _opened(data_name, labels, **how)
    model = _model(x, sde, predicts, network, width, classes, method.augmentation is not None, sigma_data, method.seed)
    trainer = Trainer(
        model,
        source,
        _objective(objective or networks.choice(sde).objective, classes, label_dropout),
        method=method,
        files=replace(files, path=out / runs.CHECKPOINT),
        monitor=_watch(out, x, classes) if files.monitor_every else None,
        device=device,
        progress=progress,
    )
    if trainer.processes.main:
        _describe(model, x, len(source) if isinstance(source, Tensor | data.Dataset) else 0)
    trainer.run(steps)
    if trainer.processes.main:
        _finish(result_of(trainer), out)
    return trainer.processes.main


# A system -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Latent:
    """The options of ``--system latent``."""

    system: str
    folder: Path | None
    steps: int
    width: int
    dropout: float

    def __post_init__(self) -> None:
        if self.system != "latent":
            raise ValueError(f"got --system {self.system!r}; expected latent")
        if self.steps < 0:
            raise ValueError(f"got --autoencoder-steps {self.steps}; expected a whole number of at least 0")

    def train(
        self,
        name: str,
        labels: bool,
        out: Path,
        steps: int,
        sde: str,
        predicts: str,
        objective: str,
        method: Method,
        files: Files,
        *,
        device: str | None,
        progress: bool,
        **how: Any,
    ) -> bool:
        """Train an autoencoder and a model of its latents, and print what is trained and how to sample it."""
        found = open_data(name, **how)
        texts = data.captions(name, how["limit"]) if self.folder is not None else None
        x = data.on_white(found.samples(range(len(found))))
        self._check(x, found, texts, labels)
        source = data.Arrays(x, found.labels if labels else None, found.classes if labels else None)
        encoder = None if self.folder is None else TextEncoder(self.folder, cache=out / "embeddings")
        torch.manual_seed(method.seed)  # of the initial weights
        autoencoder = KLAutoencoder(x.shape[1], 4, self.width, (1, 2, 4), blocks=1, groups=8, middle_attention=False)
        told: dict[str, Any] = {} if encoder is None else {"context": encoder.features, "pooled": encoder.features}
        classes = source.num_classes if labels else None
        net = UNet(4, 2 * self.width, (1, 2), lean=True, num_classes=classes, **told)
        process = names.process(sde)
        process = process.sde() if isinstance(process, Chain) else process
        typer.echo(f"data: {len(x)} samples of shape {tuple(x.shape[1:])}{'' if texts is None else ' with captions'}")
        train_latent(
            source,
            out,
            autoencoder,
            net,
            steps=(self.steps, steps),
            texts=texts,
            encoder=encoder,
            sde=process,
            predicts=predicts,
            objective=objective,
            dropout=self.dropout,
            methods=(method, method),
            files=files,
            device=device,
            progress=progress,
        )
        asked = " --prompt .. --guidance 4" if encoder is not None else " --label all" if labels else ""
        typer.echo(f"checkpoint: {out / runs.CHECKPOINT}\nnow: scoresde sample {out}{asked}")
        return True

    def _check(self, x: Tensor, found: data.Dataset, texts: list[str] | None, labels: bool) -> None:
        if x.ndim != 4 or any(n % 8 for n in x.shape[2:]):
            raise ValueError(
                f"got samples of shape {tuple(x.shape[1:])} for --system latent; expected images, "
                "whose sizes are multiples of 8"
            )
        if labels and found.labels is None:
            raise ValueError("got --labels for data without; expected sub-folders, an array y or a column of labels")
        if self.folder is not None and (texts is None or len(texts) != len(x)):
            raise ValueError(
                f"got --text-encoder for data with {len(texts or [])} captions for {len(x)} samples; expected an .npz "
                "file with "
                f"one for each, in an array called {', '.join(data.CAPTIONS)}"
            )


# What is trained -----------------------------------------------------------------------------------------------------


def _opened(name: str, labels: bool, **how: Any) -> tuple[Tensor | data.Dataset, Tensor, int]:
    """Return the data, some of their samples, and the number of their classes, which is 0 without labels."""
    found = open_data(name, **how)
    x = found.samples(range(min(len(found), 4096)))
    if not labels:
        found.labels = None
        return found.tensor() if isinstance(found, data.Arrays) else found, x, 0
    if found.labels is None:
        raise ValueError(
            f"got --labels for {name!r}, which has none; expected sub-folders, an array y or a column of labels"
        )
    return found, x, found.num_classes


def _model(
    x: Tensor,
    sde: str,
    predicts: str | None,
    network: str | None,
    width: int,
    classes: int,
    augmented: bool,
    sigma_data: float | None,
    seed: int,
) -> ScoreModel:
    """Return the untrained score model of a published network or of a small one."""
    process, predicts = names.process(sde), predicts or networks.choice(sde).predicts
    net: Callable[..., Tensor]
    if network is not None:
        size = data.Augmentation.size if augmented else 0
        net = networks.network(network, x.shape[1:], process, predicts, classes=classes, augment=size, seed=seed)
    elif augmented:
        raise ValueError("got --augment without --network; expected one that is told of it, such as edm-ddpmpp-cifar10")
    else:
        process = process.sde() if isinstance(process, Chain) else process
        net = networks.build(x, process, predicts, width=width, classes=classes, seed=seed).net
    return ScoreModel(net, process, predicts, sigma_data=float(x.std()) if sigma_data is None else sigma_data)


def _objective(name: str, classes: int, dropout: float) -> Objective:
    objective = named(name)
    return LabelDropout(objective, {"label": classes}, dropout) if classes and dropout else objective


# What is seen of it --------------------------------------------------------------------------------------------------


def _describe(model: ScoreModel, x: Tensor, n: int) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    typer.echo(f"data: {n} samples of shape {tuple(x.shape[1:])}, deviation {float(x.std()):.3g}")
    chain = model.sde.chain if isinstance(model.sde, ChainSDE) else None
    process = repr(model.sde) if chain is None else f"{type(chain).__name__} in {len(chain)} steps"  # without its numbers
    typer.echo(f"model: {type(model.net).__name__} of {parameters} parameters, predicts {model.predicts} on {process}")


def _watch(out: Path, x: Tensor, classes: int) -> Callable[[int, ScoreModel], dict[str, float]]:
    """Return a function that draws samples during a training, as a picture where possible, and their energy distance."""
    real = x[:256]

    def watch(step: int, model: ScoreModel) -> dict[str, float]:
        first = next(model.parameters())
        given: dict[str, Any] = {"label": (torch.arange(len(real)) % classes).to(first.device)} if classes else {}
        drawn = draw(model, real.shape, seed=0, progress=False, conditions=given).x.cpu()
        drawable = drawn.shape[1:] == (2,) or (drawn.ndim == 4 and drawn.shape[1] in (1, 3))
        if drawable:
            write(drawn[:64], [], out / "samples" / f"{step:09d}.png", f"step {step}")
        return {"energy_distance": float(metrics.energy_distance(drawn.flatten(1), real.flatten(1)))}

    return watch


def _finish(result: FitResult, out: Path) -> None:
    """Write the loss curve of a training and print its report and where its files are."""
    report = result.report
    plots.save_figure(plots.losses(result.history, report.edges, report.loss, report.excess), out / "loss.png")
    typer.echo(f"\nloss by time after {len(result.history)} steps:\n{report}\n")
    typer.echo(f"checkpoint: {out / runs.CHECKPOINT}\nlog: {(out / runs.CHECKPOINT).with_suffix('.csv')}")
    typer.echo(f"loss curve: {out / 'loss.png'}\nnow: scoresde sample {out}")
