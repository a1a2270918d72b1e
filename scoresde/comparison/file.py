"""The file of a comparison: JSON, written in one piece and checked against the schema of the dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from scoresde.base.reading import decode_json, open_regular
from scoresde.comparison.records import Record, Records, Trace

__all__ = ["checked", "from_json", "parsed", "plain", "read", "to_json"]

FORMAT = 2
COLUMNS = tuple(field.name for field in dataclasses.fields(Record))
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Values:
    """A tensor as plain values: its data type, its shape and its numbers."""

    dtype: str
    shape: list[int]
    values: list[float]

    @classmethod
    def of(cls, x: Tensor) -> _Values:
        return cls(str(x.dtype).removeprefix("torch."), list(x.shape), x.detach().flatten().tolist())

    def tensor(self) -> Tensor:
        if self.dtype not in DTYPES or min(self.shape, default=0) < 0 or math.prod(self.shape) != len(self.values):
            raise ValueError(
                f"got a tensor of dtype {self.dtype!r} and shape {self.shape} with {len(self.values)} values; expected as "
                f"many as its shape says, in one of {', '.join(DTYPES)}"
            )
        return torch.tensor(self.values, dtype=torch.float64).to(DTYPES[self.dtype]).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class _Trace:
    """A :class:`~scoresde.comparison.Trace` as plain values."""

    problem: str
    solver: str
    path: str
    budget: int
    times: list[float]
    x: _Values
    sde: str

    def trace(self) -> Trace:
        x = self.x.tensor()
        if x.ndim < 2 or len(x) != len(self.times):
            raise ValueError(
                f"got {len(self.times)} times for states of shape {tuple(x.shape)}; expected one for each state"
            )
        return Trace(self.problem, self.solver, self.path, self.budget, tuple(self.times), x, self.sde)


@dataclasses.dataclass(frozen=True)
class _Whole:
    format: int
    about: dict[str, Any]
    columns: list[str]
    records: list[list[Any]]
    traces: list[_Trace]


def to_json(comparison: Records) -> str:
    """Return the comparison as JSON; NaN and infinities, which JSON lacks, become ``{"float": "nan"}``.

    Example:
        >>> one = Records((Record("ring", "ddim", "lam", 5, 5, 5, "rms", 0.1, 0.09, 0.2),), {"seed": 0})
        >>> from_json(to_json(one)) == one
        True
    """
    whole = {
        "format": FORMAT,
        "about": comparison.about,
        "columns": COLUMNS,
        "records": [[getattr(r, name) for name in COLUMNS] for r in comparison.records],
        "traces": [{**vars(trace), "x": vars(_Values.of(trace.x))} for trace in comparison.traces],
    }
    return json.dumps(plain(whole), allow_nan=False, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return ``value`` as lists and mappings, with NaN and infinities written as in :func:`to_json`."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {k: _restored(v) for k, v in value.items()}
    return [_restored(v) for v in value] if isinstance(value, list) else value


def parsed(content: bytes, what: str) -> Any:
    """Parse JSON in which NaN and infinities are written as in :func:`to_json`.

    Raises:
        ValueError: for content that is not JSON, or is nested deeper than any file of a comparison.
    """
    try:
        return _restored(decode_json(content, Any))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {what}, which is not JSON ({error}); is it cut short?") from None


def checked(value: Any, kind: type[T], what: str) -> T:
    """Return plain values as ``kind``, a dataclass or a type of lists and mappings.

    Raises:
        ValueError: for values of another form; the message names the place and quotes the value.
    """
    import msgspec

    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"cannot read {what}: {error}; expected what this version of scoresde writes") from None


def read(path: Path) -> bytes:
    """Read a regular file; refuse a pipe, which might never end."""
    with open_regular(path) as file:
        return file.read()


def from_json(text: str | bytes, what: str = "the text") -> Records:
    """Return the comparison that :func:`to_json` wrote as ``text``; lists in its ``about`` stay lists.

    Raises:
        ValueError: for a text that is cut short, or holds no comparison; the message calls the text ``what``.
    """
    whole = parsed(text.encode(errors="surrogatepass") if isinstance(text, str) else text, what)
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise ValueError(
            f"cannot read {what}: it is JSON of another format than {FORMAT}; expected a comparison written by this version"
        )
    found = checked(whole, _Whole, what)
    if tuple(found.columns) != COLUMNS or any(len(row) != len(COLUMNS) for row in found.records):
        raise ValueError(f"cannot read {what}: got columns {found.columns}; expected those of a record: {list(COLUMNS)}")
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found.records]
    try:
        traces = tuple(trace.trace() for trace in found.traces)
    except ValueError as error:
        raise ValueError(f"cannot read {what}: {error}") from None
    return Records(tuple(checked(rows, list[Record], what)), found.about, traces)
