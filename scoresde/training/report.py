"""How far a score model is from perfect, by time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.objectives import Objective, noised
from scoresde.objectives import objective as named
from scoresde.score import ScoreModel
from scoresde.training.batches import Batches, Indexed, Samplable, seeded

__all__ = ["Report", "report"]


@dataclass(frozen=True, eq=False)
class Report:
    """The loss per time bin and, where the truth is known, what of it could be avoided.

    Args:
        edges: times between the bins, ascending, shape ``(bins + 1,)``.
        loss: the objective in each bin, shape ``(bins,)``; its mean is the objective itself.
        excess: loss minus that of the exact score, which no model can do without, shape ``(bins,)``.
        error: root mean square error of the score relative to the score's own, shape ``(bins,)``.
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
    for name in ("log_alpha", "log_sigma"):
        if not torch.allclose(getattr(model.sde, name)(t), getattr(truth.sde, name)(t), rtol=1e-9, atol=1e-9):
            raise ValueError(
                f"got a truth under {truth.sde!r} for a model under {model.sde!r}; expected both under the same SDE"
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
    objective: str | Objective = "ddpm",
    bins: int = 10,
    samples: int = 4096,
    batch_size: int = 512,
    conditions: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> Report:
    r"""Measure a score model in bins of time that are equally probable under its objective.

    The irreducible part of the loss is the variance of the noise given x_t, so that with the exact score

    .. math:: E\, w \lVert \hat\epsilon - \epsilon \rVert^2 = E\, w \lVert \epsilon^* - \epsilon \rVert^2
              + E\, w \lVert \hat\epsilon - \epsilon^* \rVert^2.

    The last term, the excess, is measured as it stands, on the same x_t, and not as a difference of two noisy losses.

    Args:
        model: the score model.
        data: samples of shape ``(n, *event)`` or anything with ``sample(n, generator)``.
        truth: the exact model of the distribution of the data under the same SDE, where that is known.
        objective: a name in :data:`scoresde.objectives.OBJECTIVES` or any :class:`~scoresde.objectives.Objective`.
        bins: how many.
        samples: at least so many evaluations, over all bins.
        batch_size: samples per evaluation.
        conditions: what belongs to each sample, for data that are a tensor.
        seed: of the draws.

    Example:
        >>> from scoresde import VP
        >>> model = ScoreModel(lambda x, t: x * VP().sigma(t)[:, None].to(x), VP())  # exact for standard normal data
        >>> data = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> report(model, data, truth=model, bins=2).excess
        tensor([0., 0.], dtype=torch.float64)
    """
    if bins < 1 or samples < 1:
        raise ValueError(f"got bins={bins} and samples={samples}; expected at least 1 of each")
    dsm = named(objective)
    edges, _ = dsm.distribution.at(torch.linspace(0, 1, bins + 1, dtype=torch.float64), model.sde)
    if truth is not None:
        _check_same_process(model, truth, 0.5 * (edges[1:] + edges[:-1]))
    device, dtype = _like(model)
    rounds = -(-samples // (bins * batch_size))
    size = min(batch_size, -(-samples // (bins * rounds)))
    batches = Batches(data, size, seed, conditions or {})
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
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0)
        rows[0, bin_] += _mean(importance * dsm.at(model, x0, t, eps, **given))
        if truth is not None:
            x = noised(model.sde, x0, t, eps)
            weight = importance * dsm.weight.function(model.sde, t, model.sigma_data)
            eps_true, eps_model = truth.eps(x, t, **given), model.eps(x, t, **given)
            excess = eps_model - eps_true if dsm.weight.on == "eps" else model.x0(x, t, **given) - truth.x0(x, t, **given)
            rows[1, bin_] += _mean(weight * _square(excess))
            rows[2, bin_] += _mean(_square(eps_model - eps_true))
            rows[3, bin_] += _mean(_square(eps_true))
    model.train(was_training)
    loss, excess, wrong, size_of_eps = rows / rounds
    if truth is None:
        return Report(edges, loss)
    return Report(edges, loss, excess, (wrong / size_of_eps).sqrt())


def _square(x: Tensor) -> Tensor:
    return x.double().square().flatten(1).mean(1)


def _mean(values: Tensor) -> Tensor:
    return values.double().mean().cpu()
