"""Optimizers: built by name or by a function, described in a text, with their state as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scoresde.base.names import Table, check_names
from scoresde.base.settings import parse
from scoresde.training.files.checkpoint import Checkpoint, CheckpointError

__all__ = ["OPTIMIZERS", "MakeOptimizer", "build", "describe", "fill", "ratios", "state"]

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
"""A function of the parameters that returns an optimizer: ``functools.partial(torch.optim.AdamW, betas=(0.9, 0.99))``."""

_NAMES = "Adadelta Adafactor Adagrad Adam Adamax AdamW ASGD NAdam RAdam RMSprop Rprop SGD"

OPTIMIZERS: Table[Callable[..., Optimizer]] = Table(
    "optimizer",
    "scoresde.training.optimization.optimizers.OPTIMIZERS",
    {name.lower(): getattr(torch.optim, name) for name in _NAMES.split()},
    also="a function of the parameters that returns an optimizer",
    check=callable,
    expects="a class or a function of the parameters and lr",
)
"""The optimizers by name: the classes of ``torch.optim`` whose step needs only gradients of any shape."""

_UNFIT = {
    "lbfgs": "evaluates the loss several times in a step",
    "sparseadam": "takes only sparse gradients",
    "muon": "takes only matrices, and a network has other parameters",
}
_HOW = ("foreach", "fused", "capturable", "differentiable")  # arguments that change the computation, not the result


def build(given: str | MakeOptimizer, parameters: Sequence[nn.Parameter], lr: float) -> Optimizer:
    """Build the optimizer that ``given`` names with its settings, or that the function ``given`` returns.

    Args:
        given: a name and settings, ``"adamw: weight_decay=0.01"``, or a function of the parameters.
        parameters: the parameters to optimize.
        lr: the learning rate of a named optimizer.

    Raises:
        ValueError: for an unknown name, or an optimizer whose step needs more than dense gradients.
        TypeError: if ``given`` is not a function, or does not return an optimizer.

    Example:
        >>> build("sgd: momentum=0.9", [nn.Parameter(torch.ones(1))], lr=0.1).defaults["momentum"]
        0.9
    """
    if isinstance(given, str):
        given, settings = parse(given)
        _check_fit(given)
        make = OPTIMIZERS[given]
        check_names(f"the optimizer {given!r}", settings, make)
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return make(parameters, lr=lr, **settings)
    if isinstance(given, Optimizer) or not callable(given):
        raise TypeError(
            f"got optimizer={given!r:.60}; expected a name or a function of the parameters, such as "
            "functools.partial(torch.optim.AdamW, weight_decay=0.01)"
        )
    made = given(list(parameters))
    if not isinstance(made, Optimizer):
        raise TypeError(
            f"got a function that returns a {type(made).__name__} for the optimizer; expected a torch.optim.Optimizer: pass "
            "functools.partial(torch.optim.AdamW, weight_decay=0.01)"
        )
    if type(made).__name__ != "Muon":  # a function can give it the matrices alone
        _check_fit(type(made).__name__)
    return made


def _check_fit(name: str) -> None:
    if name.lower() in _UNFIT:
        raise ValueError(
            f"got the optimizer {name}, which {_UNFIT[name.lower()]}; expected an optimizer whose "
            "step needs only gradients: take another, such as 'adamw'"
        )


def ratios(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each parameter group divided by the learning rate of the optimizer.

    The ratio is 1 for groups without a learning rate of their own.

    Example:
        >>> weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
        >>> ratios(torch.optim.SGD([{"params": weights[:1], "lr": 0.05}, {"params": weights[1:]}], lr=0.1))
        [0.5, 1.0]
    """
    usual = optimizer.defaults.get("lr")
    return [float(group["lr"]) / float(usual) if usual else 1.0 for group in optimizer.param_groups]


def describe(optimizer: Optimizer) -> str:
    """Describe an optimizer by its class and its arguments other than the defaults, for each group if groups differ.

    Example:
        >>> weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
        >>> describe(torch.optim.AdamW(weights, betas=(0.9, 0.99)))
        'AdamW(betas=(0.9, 0.99))'
        >>> describe(torch.optim.SGD([{"params": weights[:1], "lr": 0.01}, {"params": weights[1:]}], lr=0.1))
        'SGD(1 of lr*0.1 | 1 of -)'
    """
    usual = {name: p.default for name, p in inspect.signature(type(optimizer)).parameters.items()}
    texts = []
    for group, ratio in zip(optimizer.param_groups, ratios(optimizer), strict=True):
        own = [f"{k}={v!r}" for k, v in sorted(group.items()) if k in usual and k not in (*_HOW, "lr", "params")]
        same = [f"{k}={v!r}" for k, v in usual.items()]
        own = [text for text in own if text not in same] + ([f"lr*{ratio:g}"] if ratio != 1 else [])
        texts.append(", ".join(own))
    if len(set(texts)) == 1:
        return type(optimizer).__name__ + (f"({texts[0]})" if texts[0] else "")
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    groups = [f"{size} of {text or '-'}" for size, text in zip(sizes, texts, strict=True)]
    return f"{type(optimizer).__name__}({' | '.join(groups)})"


# State ---------------------------------------------------------------------------------------------------------------


def _entries(optimizer: Optimizer) -> Iterator[tuple[str, Any]]:
    """Yield the changing state of an optimizer by name: the state of each parameter and the numbers of each group."""
    whole = optimizer.state_dict()
    for i, of_parameter in whole["state"].items():
        yield from ((f"optimizer.{i}.{name}", value) for name, value in of_parameter.items() if value is not None)
    for i, group in enumerate(whole["param_groups"]):
        for name, value in group.items():
            if name not in ("params", "lr") and isinstance(value, int | float | Tensor) and not isinstance(value, bool):
                yield f"optimizer_group.{i}.{name}", value


def state(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors by name.

    A number becomes a tensor of float64, int64 or bool with a name ``number.*``.

    Raises:
        CheckpointError: if the state contains anything but tensors and numbers.

    Example:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], momentum=0.9)
        >>> weight.sum().backward()
        >>> optimizer.step()
        >>> state(optimizer)["optimizer.0.momentum_buffer"]
        tensor([1.])
    """
    found = {}
    for name, value in _entries(optimizer):
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, int | float):
            found[f"number.{name}"] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        else:
            raise CheckpointError(
                f"the state of {type(optimizer).__name__} holds {name.split('.')[2]} of type {type(value).__name__}; "
                "expected tensors and numbers, which alone can be saved: take another optimizer"
            )
    return found


def fill(optimizer: Optimizer, stored: Checkpoint) -> None:
    """Load the state of an optimizer from a checkpoint."""
    own = optimizer.state_dict()
    rows: dict[str, dict[int, dict[str, Any]]] = {"optimizer": {}, "optimizer_group": dict(enumerate(own["param_groups"]))}
    for name, value in stored.tensors.items():
        kind, _, rest = name.removeprefix("number.").partition(".")
        if kind in rows:
            i, _, key = rest.partition(".")
            rows[kind].setdefault(int(i), {})[key] = value.item() if name.startswith("number.") else value
    optimizer.load_state_dict({"state": rows["optimizer"], "param_groups": list(rows["optimizer_group"].values())})
