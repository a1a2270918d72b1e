r"""Gradients of a log-density through the steps of the flow, in a memory that grows with the logarithm of their number.

The backward pass needs the states of all steps in reverse order. A piece of the course of at most 16 steps is followed again
from its beginning, with the states of its steps kept. A longer piece is halved: the course to its middle is followed again,
the second half is done first, and then the first half. Of a course of n steps at most :math:`16 + \log_2 (n / 16)` places
are kept at a time, and each evaluation is made :math:`\tfrac12 \log_2 (n / 16)` times more than once.

Source: Griewank and Walther, "Algorithm 799: Revolve", 2000, https://doi.org/10.1145/347837.347846, which chooses the places
a little better than in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from scoresde.sampling.counted import evaluation_mode
from scoresde.sampling.likelihood.adams import Course, Solved
from scoresde.sampling.likelihood.clock import Where
from scoresde.sampling.likelihood.flow import Flow

__all__ = ["differentiable"]

PIECE = 16
"""The largest number of steps whose states are kept at once."""


def differentiable(flow: Flow, w: Tensor, nodes: Sequence[Where], found: Solved) -> Solved:
    """Return ``found``, the end of a flow from ``w`` along ``nodes``, with the gradients of its state and its density.

    Args:
        flow: the rates of the model.
        w: the state at the first node, shape ``(batch, *event)``.
        nodes: the points that are visited, the first one included.
        found: the end, which was found along these nodes.
    """
    end, gained = _Through.apply(flow, nodes, found, w, *flow.leaves)  # type: ignore[no-untyped-call]
    return found._replace(w=end, gained=gained)


class _Through(torch.autograd.Function):
    """The end of a flow as a function of its beginning, of parameters and of conditions."""

    @staticmethod
    def forward(
        ctx: Any, flow: Flow, nodes: Sequence[Where], found: Solved, w: Tensor, *leaves: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.flow, ctx.nodes, ctx.leaves = flow, nodes, leaves
        ctx.save_for_backward(w)
        return found.w.clone(), found.gained.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_w: Tensor, of_gained: Tensor) -> tuple[Tensor | None, ...]:
        (w,) = ctx.saved_tensors
        back = _Back(ctx.flow, ctx.leaves)
        with torch.enable_grad(), evaluation_mode(ctx.flow.model):
            start = Course.start(ctx.flow, w.detach(), ctx.nodes[0])
            grads = [of_w, *(torch.zeros_like(v) for v in _numbers(start)[1:-1]), of_gained]
            grads = back.through(start, ctx.nodes[1:], grads)
            w = w.detach().requires_grad_()
            (of_w,) = back.pull(_numbers(Course.start(ctx.flow.recorded, w, ctx.nodes[0])), [w], grads)
        return None, None, None, of_w, *back.of_leaves


def _numbers(course: Course) -> list[Tensor]:
    """Return the parts of a course through which gradients flow."""
    return [course.w, course.history.slopes, course.history.densities, course.gained]


class _Back:
    """The way back along a course, with the gradients of the leaves so far."""

    def __init__(self, flow: Flow, leaves: Sequence[Tensor]) -> None:
        self.flow, self.leaves = flow, leaves
        self.of_leaves = [torch.zeros_like(leaf) for leaf in leaves]

    def through(self, course: Course, nodes: Sequence[Where], grads: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the numbers of ``course`` from those of its numbers after steps to ``nodes``."""
        if len(nodes) > PIECE:
            half = len(nodes) // 2
            grads = self.through(course.along(self.flow, nodes[:half]), nodes[half:], grads)
            return self.through(course, nodes[:half], grads)
        w, slopes, densities, gained = numbers = [v.detach().requires_grad_() for v in _numbers(course)]
        history = course.history._replace(slopes=slopes, densities=densities)
        course = course._replace(w=w, history=history, gained=gained)
        return self.pull(_numbers(course.along(self.flow.recorded, nodes)), numbers, grads)

    def pull(self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of ``inputs``, and add to those of the leaves."""
        pairs = [(value, grad) for value, grad in zip(outputs, grads, strict=True) if value.requires_grad]
        found = torch.autograd.grad(
            [value for value, _ in pairs],
            [*inputs, *self.leaves],
            [grad for _, grad in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
        self.of_leaves = [a + b for a, b in zip(self.of_leaves, found[len(inputs) :], strict=True)]
        return list(found[: len(inputs)])
