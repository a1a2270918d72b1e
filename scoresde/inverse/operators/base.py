"""The interface of measurement operators, their composition, and their singular value decomposition.

An operator A maps a batch of states to a batch of measurements. Methods that condition on a measurement use it through this
interface alone: ``A(x)``, its adjoint, ``A A^T``, the Moore-Penrose inverse and the singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.base.shape import check_batch
from scoresde.inverse.operators.least_squares import least_squares

__all__ = ["Composed", "Operator", "Singular"]

DENSE = 2048
"""The most numbers of a state or a measurement for which a singular value decomposition is computed from the matrix."""


@dataclass(frozen=True)
class Singular:
    r"""The singular value decomposition :math:`A = U S V^T` of an operator on states of d numbers.

    There is one coefficient for each number of a state, so V is a full orthonormal basis and ``to_x(from_x(x)) = x``. Where
    a
    singular value is zero, A does not see the coefficient, and U has no column: ``to_y`` ignores it and ``from_y`` returns
    zero there. Hence ``A(x) = to_y(values * from_x(x))`` and ``adjoint(y) = to_x(values * from_y(y))``.

    Attributes:
        values: the singular values, shape ``(d,)``, float64, not sorted; rounding errors are set to zero.
        from_x: V^T, ``(batch, *event) -> (batch, d)``; ``to_x``: V, ``(batch, d) -> (batch, *event)``.
        from_y: U^T, ``(batch, *measured) -> (batch, d)``; ``to_y``: U, ``(batch, d) -> (batch, *measured)``.

    Example:
        >>> from scoresde.inverse.operators import Mask
        >>> svd = Mask([True, False, True]).singular()
        >>> svd.values.tolist()
        [1.0, 0.0, 1.0]
    """

    values: Tensor
    from_x: Callable[[Tensor], Tensor]
    to_x: Callable[[Tensor], Tensor]
    from_y: Callable[[Tensor], Tensor]
    to_y: Callable[[Tensor], Tensor]


class _Tested(type):
    """The type of operators, which tests each one after it was built."""

    def __call__(cls, *args: Any, **options: Any) -> Any:
        made = super().__call__(*args, **options)
        made._test()
        return made


class Operator(nn.Module, metaclass=_Tested):
    r"""The interface of measurement operators.

    A subclass calls ``super().__init__(event, measured)`` and implements :meth:`forward`. The adjoint follows by automatic
    differentiation where it is not overridden. A new operator is tested: on random float64 vectors its forward map must be
    linear, independent of the batch, of the stated shape, and satisfy :math:`\langle A x, y \rangle = \langle x, A^T y
    \rangle`. Two operators compose, ``A @ B`` applies B first.

    Args:
        event: the shape of one state.
        measured: the shape of one measurement.
        linear: whether the map is linear. One that is not has neither adjoint nor inverse.

    Attributes:
        event, measured, linear: see above.

    Raises:
        ValueError: for an operator that fails its test.

    Example:
        >>> class Differences(Operator):
        ...     def forward(self, x):
        ...         return x[:, 1:] - x[:, :-1]
        >>> A = Differences((3,), (2,))
        >>> A.adjoint(torch.tensor([[1.0, 0.0]]))
        tensor([[-1.,  1.,  0.]])
        >>> class Wrong(Differences):
        ...     def adjoint(self, y):
        ...         return torch.cat([y, y[:, :1]], 1)
        >>> Wrong((3,), (2,))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: got an operator Wrong whose adjoint is wrong: on random vectors <A x, y> = ...
    """

    def __init__(self, event: Sequence[int], measured: Sequence[int], linear: bool = True) -> None:
        super().__init__()
        self.event, self.measured, self.linear = torch.Size(event), torch.Size(measured), linear
        for name, shape in (("event", self.event), ("measured", self.measured)):
            if not shape or min(shape) < 1:
                raise ValueError(
                    f"got {name}={tuple(shape)} for an operator; expected at least one dimension, each of at least one "
                    "number"
                )
        self._cache: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}  # copies for devices and a decomposition are computed again

    # What an operator implements -------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Return A x, shape ``(batch, *measured)``, for states of shape ``(batch, *event)``."""
        raise NotImplementedError(f"{type(self).__name__} does not implement forward, the map from states to measurements")

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, shape ``(batch, *event)``, for measurements of shape ``(batch, *measured)``."""
        self.check_linear("an adjoint")
        y = self.check_y(y)
        return _vjp(self.forward, torch.zeros(len(y), *self.event, dtype=y.dtype, device=y.device), y)

    def singular(self) -> Singular:
        """Return the singular value decomposition; by default that of the matrix, for small states.

        Raises:
            ValueError: for an operator that is not linear, or too large to decompose its matrix.
        """
        self.check_linear("a singular value decomposition")
        if max(self.event.numel(), self.measured.numel()) > DENSE:
            raise ValueError(
                f"got {self!r}, whose singular value decomposition has no closed form, for a state of "
                f"{self.event.numel():,} numbers and a measurement of {self.measured.numel():,}; expected at most "
                f"{DENSE:,}, or one of Mask, Channels, Grayscale, Downsample, Separable, Fourier, or Blur with "
                "boundary='circular' or a separable kernel"
            )
        if "singular" not in self._cache:
            self._cache["singular"] = decomposed(self.matrix(), self.event, self.measured)
        found: Singular = self._cache["singular"]
        return found

    # What follows ----------------------------------------------------------------------------------------------------

    def gram(self, y: Tensor) -> Tensor:
        """Return A A^T y, shape ``(batch, *measured)``."""
        made: Tensor = self(self.adjoint(y))
        return made

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        """Return J(x)^T y with the Jacobian J of the operator at ``x``, shape of ``x``; A^T y for a linear operator.

        Example:
            >>> from scoresde.inverse.operators import Function
            >>> Function(lambda x: x**2, (1,)).vjp(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
            tensor([[6.]])
        """
        return self.adjoint(y) if self.linear else _vjp(self.forward, self.check_x(x), self.check_y(y))

    def pinv(self, y: Tensor) -> Tensor:
        """Return the Moore-Penrose inverse of A times y, the shortest least-squares solution; shape ``(batch, *event)``.

        It is computed from the singular value decomposition or, for an operator without one, by conjugate gradients in
        float64 at least, where each sample stops by itself. Conjugate gradients need many iterations for an ill-conditioned
        operator.
        """
        y = self.check_y(y)
        try:
            of = self.singular()
        except ValueError:
            self.check_linear("an inverse")
            steps = 4 * min(self.event.numel(), self.measured.numel())
            return least_squares(self.forward, self.adjoint, y.double(), steps).to(y.dtype)
        values = of.values.to(device=y.device)
        inverse = torch.where(values > 0, 1 / values, 0.0).to(y.dtype)
        return of.to_x(inverse * of.from_y(y))

    def matrix(self) -> Tensor:
        """Return A as a matrix, shape ``(measured.numel(), event.numel())``, float64, for small states.

        Raises:
            ValueError: for an operator that is not linear, or a matrix of more than 2^26 entries.
        """
        self.check_linear("a matrix")
        m, d = self.measured.numel(), self.event.numel()
        if m * d > 2**26:
            raise ValueError(
                f"got {self!r}, whose matrix is {m:,} x {d:,}; expected at most 2^26 entries: use the operator and its "
                "adjoint"
            )
        unit = torch.eye(min(m, d), dtype=torch.float64)
        if d <= m:
            made: Tensor = self(unit.reshape(d, *self.event)).flatten(1).T
        else:
            made = self.adjoint(unit.reshape(m, *self.measured)).flatten(1)
        return made.contiguous()

    def __matmul__(self, other: Operator) -> Composed:
        """Return the operator that applies ``other`` first, then this one."""
        if not isinstance(other, Operator):
            return NotImplemented
        return Composed(self, other)

    # Checks ----------------------------------------------------------------------------------------------------------

    def check_x(self, x: Tensor) -> Tensor:
        """Return ``x`` if it is a batch of states.

        Raises:
            ValueError: for another shape.
        """
        if check_batch(x).shape[1:] != self.event:
            raise ValueError(
                f"got x of shape {tuple(x.shape)} for {self!r}; expected states of shape {('batch', *self.event)}"
            )
        return x

    def check_y(self, y: Tensor) -> Tensor:
        """Return ``y`` if it is a batch of measurements.

        Raises:
            ValueError: for another shape.
        """
        if check_batch(y).shape[1:] != self.measured:
            raise ValueError(
                f"got y of shape {tuple(y.shape)} for {self!r}; expected measurements of shape {('batch', *self.measured)}"
            )
        return y

    def check_linear(self, wanted: str) -> None:
        """Refuse a nonlinear operator, which does not have what is ``wanted``.

        Raises:
            ValueError: if the operator is not linear.
        """
        if not self.linear:
            raise ValueError(
                f"got {self!r}, which is not linear and has not {wanted}; expected a linear operator, such as Mask, Matrix, "
                "Downsample, Blur, Grayscale, Channels, Fourier or Radon, or a method for nonlinear ones: DPS or smc"
            )

    # Parts -----------------------------------------------------------------------------------------------------------

    def _like(self, name: str, x: Tensor) -> Tensor:
        """Return the constant ``name`` on the device of ``x`` and, if it holds floats, in its dtype, float32 at least."""
        value: Tensor = getattr(self, name)
        dtype = value.dtype
        if dtype.is_floating_point or dtype.is_complex:
            dtype = torch.promote_types(x.dtype, torch.float32)
            dtype = dtype.to_complex() if value.is_complex() else dtype
        if value.dtype == dtype and value.device == x.device:
            return value
        if name not in self._cache:
            self._cache[name] = Copies(value)
        found: Tensor = self._cache[name](x.device, dtype)
        return found

    def _test(self) -> None:
        draws = torch.Generator().manual_seed(0)
        parameter = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0, dtype=torch.float64))

        def normal(shape: Sequence[int]) -> Tensor:
            return torch.randn(2, *shape, generator=draws, dtype=torch.float64).to(parameter)

        x, other, y = normal(self.event), normal(self.event), normal(self.measured)
        of_x: Tensor = self(x)
        name = type(self).__name__
        if of_x.shape != y.shape:
            raise ValueError(
                f"got an operator {name} that maps states of shape {tuple(x.shape)} to shape {tuple(of_x.shape)}; expected "
                f"{tuple(y.shape)}, as its argument measured={tuple(self.measured)} says"
            )
        tolerance = 1e4 * torch.finfo(of_x.dtype).eps if of_x.is_floating_point() else 1e-9
        size = float(of_x.detach().double().norm())
        if not float((self(x[:1]) - of_x[:1]).detach().norm()) <= tolerance * size:
            raise ValueError(
                f"got an operator {name} whose measurement of one state depends on the others of its batch; expected "
                "(batch, *event) -> (batch, *measured) with each state by itself"
            )
        if not self.linear:
            return
        apart = of_x + 2 * self(other)
        if not float((self(x + 2 * other) - apart).detach().norm()) <= tolerance * (size + float(apart.detach().norm())):
            raise ValueError(
                f"got an operator {name} that is not linear: A (u + 2 v) is not A u + 2 A v on random vectors; expected a "
                "linear one, or linear=False: Function(f, event) is the operator of any function"
            )
        back = self.adjoint(y)
        if back.shape != x.shape:
            raise ValueError(
                f"got an operator {name} whose adjoint maps measurements of shape {tuple(y.shape)} to shape "
                f"{tuple(back.shape)}; expected {tuple(x.shape)}, the shape of the states"
            )
        left, right = float((of_x * y).detach().sum()), float((x * back).detach().sum())
        if not abs(left - right) <= tolerance * (size * float(y.norm()) + float(x.norm()) * float(back.detach().norm())):
            raise ValueError(
                f"got an operator {name} whose adjoint is wrong: on random vectors <A x, y> = {left:.3g} and <x, A^T y> = "
                f"{right:.3g}; expected equal numbers: correct adjoint, or leave it out, and it is derived from forward"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(event={tuple(self.event)}, measured={tuple(self.measured)})"


class Composed(Operator):
    """The composition of two operators, ``outer @ inner``, which applies ``inner`` first.

    Raises:
        ValueError: if the measurements of ``inner`` are no states of ``outer``.

    Example:
        >>> from scoresde.inverse.operators import Downsample, Grayscale
        >>> A = Downsample(2, (1, 8, 8)) @ Grayscale((3, 8, 8))
        >>> tuple(A.event), tuple(A.measured)
        ((3, 8, 8), (1, 4, 4))
    """

    def __init__(self, outer: Operator, inner: Operator) -> None:
        if inner.measured != outer.event:
            raise ValueError(
                f"got {outer!r} @ {inner!r}; expected an inner operator whose measurements, of shape "
                f"{tuple(inner.measured)}, are the states of the outer one, of shape {tuple(outer.event)}"
            )
        super().__init__(inner.event, outer.measured, outer.linear and inner.linear)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        """Return the outer operator's measurement of the inner one's, shape ``(batch, *measured)``."""
        made: Tensor = self.outer(self.inner(x))
        return made

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^T y, the inner adjoint of the outer one; shape ``(batch, *event)``."""
        self.check_linear("an adjoint")
        return self.inner.adjoint(self.outer.adjoint(y))

    def __repr__(self) -> str:
        return f"{self.outer!r} @ {self.inner!r}"


class Copies:
    """Copies of a constant, one for each device and dtype that asked for it, so that nothing is transferred twice."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.made: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self.made:
            with torch.inference_mode(False):
                self.made[device, dtype] = self.value.to(device=device, dtype=dtype)
        return self.made[device, dtype]


def constant(values: Any, name: str) -> Tensor:
    """Return a float64 copy of ``values`` on the host, and refuse values that are not finite."""
    with torch.inference_mode(False):
        made = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach().clone()
    if not bool(torch.isfinite(made).all()):
        raise ValueError(f"got {name} with values that are not finite; expected finite numbers")
    return made


def images(event: Sequence[int]) -> torch.Size:
    """Return ``event`` if its last two dimensions can be the height and the width of an image."""
    event = torch.Size(event)
    if len(event) < 2:
        raise ValueError(
            f"got event={tuple(event)} for an operator on images; expected the height and the width last: (3, 32, 32)"
        )
    return event


def from_basis(
    operator: Operator, values: Tensor, from_x: Callable[[Tensor], Tensor], to_x: Callable[[Tensor], Tensor]
) -> Singular:
    """Return the decomposition with the right basis V: U = A V / S, so U^T y = V^T A^T y / S."""
    inverse = Copies(torch.where(values > 0, 1 / values, 0.0))

    def scaled(c: Tensor) -> Tensor:
        return c * inverse(c.device, c.dtype)

    return Singular(
        values,
        from_x,
        to_x,
        from_y=lambda y: scaled(from_x(operator.adjoint(y))),
        to_y=lambda c: operator(to_x(scaled(c))),
    )


def decomposed(matrix: Tensor, event: torch.Size, measured: torch.Size) -> Singular:
    """Return the singular value decomposition of a dense matrix, shape ``(m, d)``."""
    m, d = matrix.shape
    u, s, vh = torch.linalg.svd(matrix, full_matrices=True)
    values, left = torch.zeros(d, dtype=torch.float64), torch.zeros(m, d, dtype=torch.float64)
    s = torch.where(s > max(m, d) * torch.finfo(torch.float64).eps * s.max(), s, 0.0)
    values[: len(s)] = s
    left[:, : len(s)] = torch.where(s > 0, u[:, : len(s)], 0.0)

    def times(w: Tensor, shape: Sequence[int]) -> Callable[[Tensor], Tensor]:
        copies = Copies(w)
        return lambda v: (v.flatten(1) @ copies(v.device, v.dtype)).reshape(len(v), *shape)

    return Singular(values, times(vh.T, (d,)), times(vh, event), times(left, (d,)), times(left.T, measured))


def _vjp(f: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Return J_f(x)^T y, also where autograd is off; differentiable in ``y`` and ``x`` where it is on."""
    create = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    with torch.inference_mode(False), torch.enable_grad():
        if not create or x.is_inference() or y.is_inference():
            x, y = x.detach().clone(), y.detach().clone()  # a tensor of inference mode cannot be differentiated through
        x = x if x.requires_grad else x.detach().requires_grad_()
        value = f(x)
        if not value.requires_grad:
            raise ValueError(
                "got an operator whose measurement is no differentiable function of the state; expected torch operations"
            )
        return torch.autograd.grad(value, x, y.to(value.dtype), create_graph=create)[0]
