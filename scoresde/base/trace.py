"""The trace of a Jacobian, from products with directions: exact along the unit vectors, an estimate along random ones."""

import torch
from torch import Tensor

__all__ = ["quadratic_forms", "unit_vectors"]


def unit_vectors(x: Tensor) -> Tensor:
    """Those of an event, shape ``(d, 1, *event)``: over them, :func:`quadratic_forms` sum to the trace."""
    d = x[0].numel()
    return torch.eye(d, dtype=x.dtype, device=x.device).reshape(d, 1, *x.shape[1:])


def quadratic_forms(y: Tensor, x: Tensor, directions: Tensor, *, create_graph: bool) -> Tensor:
    """v^T (dy / dx) v for each direction v and sample, shape ``(directions, batch)``; zero where y does not depend on x."""
    if not y.requires_grad:
        return x.new_zeros(len(directions), len(x))

    def form(v: Tensor) -> Tensor:
        v = v.expand_as(y)
        (product,) = torch.autograd.grad(y, x, v, retain_graph=True, create_graph=create_graph, materialize_grads=True)
        return (v * product).flatten(1).sum(1)

    return torch.stack([form(v) for v in directions])
