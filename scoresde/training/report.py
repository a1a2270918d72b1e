"""The loss of a score model per time bin, and its excess over the loss of the exact score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.objectives import Objective
from scoresde.score import ScoreModel
from scoresde.sde import GaussianSDE
from scoresde.training.aims import objective_of
from scoresde.training.batches import Batches, Indexed, Samplable, seeded

__all__ = ["Report", "report"]


@dataclass(frozen=True, eq=False)
class Report:
    """The loss per time bin and, where the true score is known, the excess loss and the relative error of the score.

    Args:
        edges: edges of the time bins, ascending, shape ``(bins + 1,)``.
        loss: the objective in each bin, shape ``(bins,)``; its mean is the objective itself.
        excess: the loss minus the loss of the exact score, which is the least possible, shape ``(bins,)``.
        error: root mean square error of the score, relative to the root mean square of the score, shape ``(bins,)``.

    Example:
        >>> print(Report(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.5, 0.25])))
                          t        loss
               0 -      0.5         0.5
             0.5 -        1        0.25
                       mean       0.375
    """

    edges: Tensor
    loss: Tensor
    excess: Tensor | None = None
    error: Tensor | None = None

    def __str__(self) -> str:
        columns = {"loss": self.loss, "excess": self.excess, "score error": self.error}
        known = {name: values for name, values in columns.items() if values is not None}
        lines = [f"{'t':>19} " + " ".join(f"{name:>11}" for name in known)]
        for i, (low, high) in enumerate(zip(self.edges[:-1].tolist(), self.edges[1:].tolist(), strict=True)):
            lines.append(f"{low:8.4g} - {high:8.4g} " + " ".join(f"{values[i].item():11.4g}" for values in known.values()))
        means = [f"{'':>11}" if name == "score error" else f"{v.mean().item():11.4g}" for name, v in known.items()]
        return "\n".join([*lines, f"{'mean':>19} " + " ".join(means).rstrip()])


def _check_same_process(model: ScoreModel, truth: ScoreModel, t: Tensor) -> None:
    if not isinstance(model.sde, GaussianSDE):  # on tokens, or with matrix coefficients
        if model.sde != truth.sde:
            raise ValueError(
                f"got a truth under {truth.sde!r} for a model under {model.sde!r}; expected both under the same process"
            )
        return
    for name in ("log_alpha", "log_sigma"):
        if not torch.allclose(getattr(model.sde, name)(t), getattr(truth.sde, name)(t), rtol=1e-9, atol=1e-9):
            raise ValueError(
                f"got a truth under {truth.sde!r} for a model under {model.sde!r}; expected both under the same SDE: make "
                "the truth with the SDE of the model"
            )


def _like(model: ScoreModel) -> tuple[torch.device, torch.dtype]:
    first = next(model.parameters(), torch.empty(0))
    return first.device, first.dtype


@torch.no_grad()
def report(
    model: ScoreModel,
    data: Tensor | Samplable | Indexed,
    truth: ScoreModel | None = None,
    *,
    objective: str | Objective | None = None,
    bins: int = 10,
    samples: int = 4096,
    batch_size: int = 512,
    conditions: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Report:
    r"""Measure the loss of a score model in time bins that are equally probable under its objective.

    With the exact noise prediction :math:`\epsilon^*`, the loss is an irreducible part, the variance of the noise given
    :math:`x_t`, plus the excess:

    .. math:: E\, w \lVert \hat\epsilon - \epsilon \rVert^2 = E\, w \lVert \epsilon^* - \epsilon \rVert^2
              + E\, w \lVert \hat\epsilon - \epsilon^* \rVert^2.

    The excess, the last term, is computed directly on the same :math:`x_t`, not as a difference of two noisy losses.

    Args:
        model: the score model.
        data: samples of shape ``(n, *event)``, or a distribution with ``sample(n, generator)``.
        truth: the exact score model of the data distribution under the same SDE, where it is known.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES`, by default "ddpm", or any
            :class:`~scoresde.objectives.Objective`; for a model on tokens one of ``scoresde.discrete.TOKEN_OBJECTIVES``.
        bins: number of time bins.
        samples: least number of evaluated samples, over all bins.
        batch_size: samples per evaluation of the network.
        conditions: an entry for each sample of a tensor, ``{"label": labels}``, given to the network.
        seed: seed of the batches, times and noise.

    Raises:
        ValueError: if ``bins`` or ``samples`` is less than 1, or ``truth`` is under another SDE than ``model``.

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP())  # exact for standard normal data
        >>> data = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> report(model, data, truth=model, bins=2).excess
        tensor([0., 0.], dtype=torch.float64)
    """
    if bins < 1 or samples < 1:
        raise ValueError(f"got bins={bins} and samples={samples}; expected at least 1 of each")
    dsm = objective_of(model, objective)
    edges, _ = dsm.distribution.at(torch.linspace(0, 1, bins + 1, dtype=torch.float64), model.sde)
    if truth is not None:
        _check_same_process(model, truth, 0.5 * (edges[1:] + edges[:-1]))
    device, dtype = _like(model)
    rounds = -(-samples // (bins * batch_size))
    size = min(batch_size, -(-samples // (bins * rounds)))
    batches = Batches(data, size, seed, conditions or {}, check=model.check_data)
    rows = torch.zeros(4, bins, dtype=torch.float64)  # loss, excess, squared error and squared size of eps
    was_training = model.training
    model.eval()
    for index in range(bins * rounds):
        bin_ = index % bins
        generator = seeded(seed, "report", index)
        x0, given = batches.at(index, device, dtype)
        u = (torch.arange(size) + torch.rand(size, generator=generator, dtype=torch.float64)) / size
        t, importance = dsm.distribution.at((bin_ + u) / bins, model.sde)
        t, importance = t.to(device), importance.to(device)
        eps = dsm.draw_noise(model, x0.double() if x0.is_floating_point() else x0, generator)
        eps = eps.to(x0) if x0.is_floating_point() else eps.to(device)
        rows[0, bin_] += _mean(importance * dsm.at(model, x0, t, eps, **given))
        if truth is not None:
            excess, *errors = dsm.compared(model, truth, x0, t, eps, **given)
            rows[1, bin_] += _mean(importance * excess)
            for row, error in zip(rows[2:], errors, strict=True):
                row[bin_] += torch.nan if error is None else _mean(error)
    model.train(was_training)
    loss, excess, wrong, size_of_eps = rows / rounds
    if truth is None:
        return Report(edges, loss)
    error = (wrong / size_of_eps).sqrt()
    return Report(edges, loss, excess, None if bool(error.isnan().all()) else error)


def _mean(values: Tensor) -> Tensor:
    return values.double().mean().cpu()
