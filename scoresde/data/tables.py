"""Tables: parquet files, and datasets of Hugging Face, which are tables too."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scoresde.base.reading import check_regular, decode_json
from scoresde.data.arrays import as_labels, as_samples
from scoresde.data.classes import check_labels, numbered
from scoresde.data.dataset import Arrays, Dataset
from scoresde.data.images import Cells, Images

__all__ = ["open_hugging_face", "open_parquet"]

_LABELS = ("label", "labels", "class", "y", "fine_label")
_REMEDY = "install the extra: pip install 'scoresde[train]'"


def open_parquet(files: list[Path], folder: Path, limit: int | None = None, **options: Any) -> Dataset:
    """Open parquet files as a dataset of encoded images or of vectors.

    The samples are the images in the first column of images or, if there is none, vectors of the numbers in all columns. A
    column named ``label``, ``labels``, ``class``, ``y`` or ``fine_label`` holds the classes as whole numbers or as text.
    Images stay encoded in memory, and are decoded on access.

    Args:
        files: the parquet files, whose rows are concatenated.
        folder: the folder of the image files, for tables of paths.
        limit: largest size in bytes of a file after decompression, and of a decoded image. ``None`` is 2**30, or eight times
            the size of the file, and the default of :class:`Images`.
        **options: further arguments of :class:`Images`.

    Raises:
        ValueError: without pyarrow; for files that cannot be read or are larger than ``limit`` after decompression; for
            tables without images and without numbers.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot read {str(files[0])!r} without pyarrow; {_REMEDY}") from error
    tables = []
    for file in files:
        try:
            check_regular(file)
            tables.append(_read(pq.ParquetFile(file), max(2**30, 8 * file.stat().st_size) if limit is None else limit))
        except Exception as error:  # a damaged table can fail in any way
            raise ValueError(f"cannot read {str(file)!r}, which may be truncated or damaged: {error}") from error
    where = str(files[0]) if len(files) == 1 else str(files[0].parent)
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise ValueError(
            f"the parquet files in {where!r} have different columns: {error}; expected the same columns"
        ) from error
    return _from_table(table, where, folder, limit=limit, **options)


def _read(file: Any, most: int) -> Any:
    """Read all rows of a parquet file part by part, up to ``most`` bytes."""
    import pyarrow as pa

    parts, size = [], 0
    for part in file.iter_batches(1024):
        parts.append(part)
        size += part.nbytes
        if size > most:
            raise ValueError(
                f"it unpacks to more than {most} bytes, and may be made to exhaust the memory; if you trust the file, allow "
                "more: limit=.. (--limit ..)"
            )
    return pa.Table.from_batches(parts, file.schema_arrow)


def open_hugging_face(name: str, split: str, **options: Any) -> Dataset:
    """Open a dataset of Hugging Face, from the hub or from a local folder written by ``save_to_disk``.

    Args:
        name: the name on the hub, such as ``ylecun/mnist``, or a folder.
        split: the name of the part.
        **options: further arguments of :class:`Images`.

    Raises:
        ValueError: without the library ``datasets``, or if it finds no such dataset or part.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ValueError(
            f"cannot open the dataset {name!r} of Hugging Face without the library datasets; {_REMEDY}"
        ) from error
    try:
        saved = Path(name).is_dir() and any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json"))
        found = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split)
        if isinstance(found, datasets.DatasetDict):
            if split not in found:
                raise ValueError(f"its parts are {', '.join(found)}; expected the name of one")
            found = found[split]
    except (OSError, ValueError) as error:  # ConnectionError and DatasetNotFoundError are OSErrors
        raise ValueError(f"cannot open part {split!r} of {name!r} by the library datasets: {error}") from error
    if found._indices is not None:  # a selection or shuffling of rows, which the table does not contain
        found = found.flatten_indices()
    folder = Path(name) if saved else Path(datasets.config.HF_CACHE_HOME)
    return _from_table(found.data.table, f"hf:{name}, {split}", folder, **options)


def _from_table(table: Any, where: str, folder: Path, **options: Any) -> Dataset:
    import pyarrow.types as is_

    columns = {field.name: field.type for field in table.schema}
    if not table.num_rows:
        raise ValueError(f"{where!r} has no rows; expected at least one row")
    label = next((name for name in _LABELS if name in columns), None)
    labels, classes = (None, None) if label is None else _labels(table, label, where)
    for name, kind in columns.items():
        inside = kind.field("bytes").type if is_.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        if is_.is_binary(inside) or is_.is_large_binary(inside):
            return Images(Cells(table[name], f"{where}, column {name}", folder), where, labels, classes, **options)
    parts = [_numbers(table[name], where) for name, kind in columns.items() if name != label and _is_numeric(kind)]
    if not parts:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise ValueError(f"{where!r} has the columns {kinds}; expected a column of images, as bytes, or columns of numbers")
    x = as_samples(np.concatenate(parts, 1), where)
    return Arrays(x, labels, classes)


def _is_numeric(kind: Any) -> bool:
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(is_.is_floating(kind) or is_.is_integer(kind))


def _numbers(column: Any, where: str) -> np.ndarray[Any, Any]:
    """Return a column of numbers, or of lists of equal lengths, as an array ``(n, d)``; missing values become NaN."""
    try:
        values = np.array(column.to_pylist(), dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{where!r} has a column of lists of different lengths, or with missing lists; expected lists of one length"
        ) from error
    return values.reshape(len(column), -1)


@dataclass(frozen=True)
class _Feature:
    """The metadata of Hugging Face for a column: the names of the classes, for a column of labels."""

    names: list[str] | None = None


@dataclass(frozen=True)
class _Info:
    features: dict[str, _Feature | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Notes:
    info: _Info = field(default_factory=_Info)


def _labels(table: Any, label: str, where: str) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return the labels of the rows and the names of the classes, from text or from Hugging Face's metadata."""
    place, values = f"{where}, column {label}", table[label].to_pylist()
    if all(isinstance(value, str) for value in values):
        return numbered(values)
    try:
        notes = decode_json((table.schema.metadata or {}).get(b"huggingface", b"{}"), _Notes)
    except ValueError as error:
        raise ValueError(f"the metadata of Hugging Face in the schema of {where!r} cannot be read: {error}") from error
    feature = notes.info.features.get(label)
    names = tuple(feature.names) if feature is not None and feature.names else None
    found = as_labels(np.array(values), len(values), place)
    try:
        return check_labels(found, len(values), names), names
    except ValueError as error:
        raise ValueError(f"{place!r}: {error}") from error
