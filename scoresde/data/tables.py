"""Tables: parquet files, and the sets of Hugging Face, which are tables of the same form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.data.arrays import as_labels, as_samples
from scoresde.data.dataset import Arrays, Dataset
from scoresde.data.images import Cells, Images

__all__ = ["open_hugging_face", "open_parquet"]

_LABELS = ("label", "labels", "class", "y", "fine_label")
_REMEDY = "install the extra: pip install 'scoresde[train]'"


def open_parquet(files: list[Path], **options: Any) -> Dataset:
    """The rows of parquet files: images, encoded as in files, or numbers, a vector of each row.

    The first column of images counts, if there is any, else all columns of numbers; a column named ``label``, ``labels``,
    ``class``, ``y`` or ``fine_label`` holds the classes, as whole numbers or as text. Images stay encoded in memory, and are
    decoded when they are asked for.

    Args:
        files: their rows follow one another.
        **options: of :class:`Images`.

    Raises:
        ValueError: without pyarrow, for files that cannot be read, and rows that are neither.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot read {str(files[0])!r} without pyarrow; {_REMEDY}") from error
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"cannot read {str(file)!r}, which may be truncated: {error}") from error
    where = str(files[0]) if len(files) == 1 else str(files[0].parent)
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(f"the parquet files in {where!r} have different columns: {error}; expected the same") from error
    return _from_table(table, where, **options)


def open_hugging_face(name: str, split: str, **options: Any) -> Dataset:
    """A set of Hugging Face by its name on the hub, or one in a local folder, as written by ``save_to_disk``.

    Args:
        name: such as ``ylecun/mnist``, or a folder.
        split: which part of it.
        **options: of :class:`Images`.

    Raises:
        ValueError: without the library ``datasets``, or where it finds no such set or part.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot open the set {name!r} of Hugging Face without the library datasets; {_REMEDY}") from error
    try:
        saved = Path(name).is_dir() and any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json"))
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise ValueError(f"its parts are {', '.join(found)}")
            found = found[split]
    except (OSError, ValueError) as error:  # ConnectionError and DatasetNotFoundError are OSErrors
        raise ValueError(f"cannot open part {split!r} of {name!r} by the library datasets: {error}") from error
    if found._indices is not None:  # rows that were selected or shuffled, which the table does not show
        found = found.flatten_indices()
    return _from_table(found.data.table, f"hf:{name}, {split}", **options)


def _from_table(table: Any, where: str, **options: Any) -> Dataset:
    import pyarrow.types as is_

    columns = {field.name: field.type for field in table.schema}
    if not table.num_rows:
        raise ValueError(f"{where!r} has no rows; expected at least one")
    label = next((name for name in _LABELS if name in columns), None)
    labels, classes = (None, ()) if label is None else _labels(table, label, where)
    for name, kind in columns.items():
        encoded = is_.is_binary(kind) or is_.is_large_binary(kind)
        if encoded or (is_.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            return Images(Cells(table[name], f"{where}, column {name}"), where, labels, classes, **options)
    parts = [_numbers(table[name], where) for name, kind in columns.items() if name != label and _is_numeric(kind)]
    if not parts:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise ValueError(f"{where!r} has the columns {kinds}; expected one of images, as bytes, or columns of numbers")
    x = as_samples(np.concatenate(parts, 1), where)
    return Arrays(x, labels, classes)


def _is_numeric(kind: Any) -> bool:
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(is_.is_floating(kind) or is_.is_integer(kind))


def _numbers(column: Any, where: str) -> np.ndarray[Any, Any]:
    """A column of numbers, or of lists of equally many, as ``(n, d)``; what is missing becomes NaN."""
    try:
        values = np.array(column.to_pylist(), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where!r} has a column of lists of different lengths; expected one length") from error
    return values.reshape(len(column), -1)


def _labels(table: Any, label: str, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """The classes of the rows, and their names: those of the text, or those that Hugging Face notes in the schema."""
    values = table[label].to_pylist()
    if all(isinstance(value, str) for value in values):
        classes = sorted(set(values))
        number = {name: k for k, name in enumerate(classes)}
        return torch.tensor([number[value] for value in values]), tuple(classes)
    notes = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = notes.get("info", {}).get("features", {}).get(label, {}).get("names") or ()
    return as_labels(np.array(values), len(values), f"{where}, column {label}"), tuple(names)
