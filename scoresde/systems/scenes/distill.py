"""Fitting the parameters of any differentiable renderer to a score model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.base.identity import digest
from scoresde.base.numbers import whole
from scoresde.base.shape import check_batch
from scoresde.score import Conditions, ScoreModel
from scoresde.systems.scenes.distillation import Distillation, ScoreDistillation
from scoresde.systems.scenes.kept import Kept
from scoresde.training.optimization.optimizers import MakeOptimizer, build
from scoresde.training.optimization.schedules import Schedule, schedule

__all__ = ["Distilled", "Render", "distill"]

Render = Callable[[torch.Generator], Tensor | tuple[Tensor, Mapping[str, Any]]]
"""A renderer: a function of a generator that returns images ``(batch, *event)``, or these and the conditions of each."""


class Distilled(NamedTuple):
    """The result of :func:`distill`, which changed the parameters in place.

    Example:
        >>> import scoresde
        >>> from scoresde.systems.scenes import Pixels
        >>> model = scoresde.problems.Gaussian([1.0, -2.0], 0.5).model(scoresde.VP())
        >>> found = distill(model, Pixels(torch.zeros(1, 2)), steps=3, progress=False)
        >>> found.images.shape, [step for step, _ in found.history]
        (torch.Size([1, 2]), [1, 2, 3])
    """

    images: Tensor
    """The last images that were rendered, after the last step; shape ``(batch, *event)``, without a graph."""
    history: tuple[tuple[int, float], ...]
    """Pairs of a step, from 1, and the root mean square of the gradient on its images."""


def distill(
    model: ScoreModel,
    render: Render | nn.Module,
    parameters: Iterable[Tensor] | None = None,
    method: Distillation | None = None,
    *,
    steps: int,
    lr: float = 1e-2,
    optimizer: str | MakeOptimizer = "adam",
    lr_schedule: str | Schedule = "constant",
    penalty: Callable[[], Tensor] | None = None,
    conditions: Mapping[str, Any] | None = None,
    seed: int = 0,
    monitor: Callable[[int, Tensor], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    save_every: int = 500,
    progress: bool = True,
) -> Distilled:
    r"""Fit the parameters of a renderer, in place, so that what it renders is likely under a score model.

    Each step renders a batch x of images, takes the gradient of ``method`` on them, and gives the optimizer

    .. math:: \frac1n \sum_{i=1}^{n} \Big( \frac{\partial x_i}{\partial\theta} \Big)^T w(t_i)
              \big( \hat\epsilon(\alpha x_i + \sigma \epsilon_i, t_i) - b_i \big)
              + \frac{\partial\, penalty}{\partial\theta}.

    The mean is over the images. Where the images have no parameter in common, as the particles of
    :class:`VariationalDistillation`, an optimizer without normalization, such as ``"sgd"``, needs n times the learning rate.

    For a renderer that is linear, :math:`x_i = A_i \theta`, and data :math:`N(\mu_i, S_i)` the result is the weighted least
    squares estimate that minimises
    :math:`\sum_i (A_i\theta - \mu_i)^T M_i (A_i\theta - \mu_i)` with
    :math:`M_i = E_t\, w \alpha \sigma (\alpha^2 S_i + \sigma^2)^{-1}`.

    Args:
        model: the score model of the images, guided or not: ``ClassifierFree(model, 7.5, {"label": 10})``.
        render: a function of a generator, from which it draws cameras if it does, that returns images ``(batch, *event)`` as
            the model knows them, or a pair of these and a mapping of conditions with an entry for each image.
        parameters: the tensors to fit, leaves that require gradients. By default those of ``render``, a module.
        method: the gradient on images, by default ``ScoreDistillation()``.
        steps: the number of steps.
        lr: the learning rate.
        optimizer: a name of ``torch.optim`` with settings, ``"sgd: momentum=0.9"``, or a function of the parameters.
        lr_schedule: a schedule of the learning rate, such as ``"linear-1000"``.
        penalty: a function without arguments that returns a number to add to the objective, such as a total variation.
        conditions: conditions of the model for the batch, as for :func:`scoresde.sample`. Those that ``render`` returns are
            added, and take precedence.
        seed: the seed of cameras, times and noise.
        monitor: a function of the step, from 1, and the images it rendered.
        out: a file, ``"scene.safetensors"``, that keeps the parameters, the optimizers, a companion and the state of the
            generator. The same call continues from it, bit for bit, and returns its result where it is complete.
        save_every: the number of steps between two writings of the file, which is written at the end as well.
        progress: show a progress bar.

    Returns:
        The images after the last step, and the size of the gradient in each step.

    Raises:
        TypeError: for a model or a method of another kind, parameters that are no tensors, and a renderer that returns none.
        ValueError: for no parameters or such that require no gradient, rendered images that do not depend on them, or
            conditions that do not fit the images.
        CheckpointError: if ``out`` holds another distillation; names what differs.
        FloatingPointError: if a gradient is not finite; names the step. The parameters keep their last finite values.

    Example:
        >>> import scoresde
        >>> from scoresde.systems.scenes import Pixels
        >>> model = scoresde.problems.Gaussian([1.0, -2.0], 0.5).model(scoresde.VP())
        >>> found = distill(model, Pixels(torch.zeros(1, 2)), steps=300, lr_schedule="linear-300", lr=0.1, progress=False)
        >>> (found.images - torch.tensor([[1.0, -2.0]])).abs().max() < 0.1  # the mean
        tensor(True)
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"got {type(model).__name__} for the model; expected a ScoreModel: ScoreModel(net, sde)")
    method = ScoreDistillation() if method is None else method
    if not isinstance(method, Distillation):
        raise TypeError(
            f"got method={method!r:.60}; expected ScoreDistillation(), VariationalDistillation(companion) or "
            "DeltaDenoising(images)"
        )
    steps, fitted = whole("steps", steps, 1), _leaves(render, parameters)
    save_every = whole("save_every", save_every, 1)
    if not lr > 0:
        raise ValueError(f"got lr={lr}; expected a positive learning rate")
    factor, learn = schedule(lr_schedule), method.start(model)
    generator = torch.Generator(fitted[0].device).manual_seed(whole("seed", seed))
    from tqdm.auto import tqdm

    sizes: list[Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        moved = build(optimizer, fitted, lr)  # type: ignore[arg-type]  # any leaf will do
        rates = [group["lr"] for group in moved.param_groups]
        kept, done = None, 0
        if out is not None:
            named = lr_schedule if isinstance(lr_schedule, str) else digest(lr_schedule, libraries=False)
            settings = {"lr": lr, "lr_schedule": named, "seed": seed}
            kept = Kept(out, model, method, fitted, moved, learn, generator, settings)
            done, sizes = kept.resume()
        for step in tqdm(range(done + 1, steps + 1), desc="distill", unit="step", disable=not progress):
            x, told = _rendered(render, generator, conditions)
            learn(x, generator, told)
            gradient = method.gradient(model, x, generator, **told)
            moved.zero_grad()
            torch.autograd.backward([x], [gradient / len(x)])
            if penalty is not None:
                torch.autograd.backward([penalty()])
            _check_finite(fitted, step)
            for group, rate in zip(moved.param_groups, rates, strict=True):
                group["lr"] = rate * factor.factor(step - 1)
            moved.step()
            sizes.append(gradient.square().mean().sqrt())
            if kept is not None and (step == steps or step % save_every == 0):
                kept.save(step, sizes)
            if monitor is not None:
                monitor(step, x.detach())
        last = _rendered(render, generator, conditions)[0].detach()
    return Distilled(last, tuple((step, float(size)) for step, size in enumerate(sizes, 1)))


def _leaves(render: Any, parameters: Iterable[Tensor] | None) -> list[Tensor]:
    """Return the tensors to fit, which are checked."""
    if parameters is None:
        if not isinstance(render, nn.Module):
            raise ValueError(
                f"got no parameters, and a renderer of type {type(render).__name__}; expected the tensors to fit: "
                "distill(model, render, [theta], ..), or a renderer that is a torch.nn.Module"
            )
        parameters = [p for p in render.parameters() if p.requires_grad]
    found = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    if not callable(render):
        raise TypeError(f"got a renderer of type {type(render).__name__}; expected a function of a generator")
    if others := [type(p).__name__ for p in found if not isinstance(p, Tensor)]:
        raise TypeError(f"got a parameter of type {others[0]}; expected tensors: [theta]")
    if not found or not all(p.requires_grad and p.is_leaf for p in found):
        raise ValueError(
            f"got {'parameters that cannot be fitted' if found else 'no parameters'}; expected leaves that require "
            "gradients: theta = torch.zeros(..).requires_grad_(), or torch.nn.Parameter"
        )
    if any(p.is_inference() for p in found):
        raise ValueError(
            "got parameters that were made in inference mode, which no gradient reaches; expected some that were made "
            "outside torch.inference_mode()"
        )
    return found


def _rendered(
    render: Any, generator: torch.Generator, conditions: Mapping[str, Any] | None
) -> tuple[Tensor, Mapping[str, Any]]:
    """Return the images of a renderer and the conditions of all, which are checked."""
    found = render(generator)
    x, own = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
    if not isinstance(x, Tensor):
        raise TypeError(
            f"got a {type(x).__name__} from the renderer; expected images of shape (batch, *event), or a pair of these and "
            "a mapping of conditions"
        )
    if not check_batch(x).requires_grad:
        raise ValueError(
            "got rendered images that do not depend on the parameters; expected a renderer without no_grad() or detach() "
            "inside, of parameters that require gradients"
        )
    return x, Conditions.of({**(conditions or {}), **own}, len(x), device=x.device, dtype=x.dtype).values


def _check_finite(fitted: list[Tensor], step: int) -> None:
    if not all(bool(torch.isfinite(p.grad).all()) for p in fitted if p.grad is not None):
        raise FloatingPointError(
            f"the gradient in step {step} is not finite; the parameters keep the values of step {step - 1}. Try a smaller "
            "lr, less guidance, or times at lower noise"
        )
