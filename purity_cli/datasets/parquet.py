"""`parquet:PATH`: tables in Hugging Face's image layout, `image: {bytes, path}` and `label`, read where they are."""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from purity_cli.datasets.base import DatasetKind, File, FileImages, ImageDataset
from purity_cli.datasets.data_files import DataFiles
from purity_cli.datasets.decoding import UnreadableImage
from purity_cli.datasets.labels import COLUMNS, number
from purity_cli.errors import PurityError, first_line
from purity_cli.files import shown

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".parquet",)
IMAGES = ("image", "img", "jpg", "png", "webp", "picture", "photo")
"""Names of columns of images, the preferred first, where Hugging Face's description does not tell."""
WINDOW, LARGE = 32, 2**22
"""Rows that are taken from a table at once, or as many as take so many bytes."""
HELD, FEW = 2**25, 64
"""Bytes that rows may take which were passed on the way to others, and rows that are held whatever they take: threads
ask for images nearly in order, but not quite.
"""


class Columns(NamedTuple):
    """What is read of a table."""

    bytes: str
    """The column of the images' files, `image.bytes` where they are in a struct."""
    path: str | None
    label: str | None
    names: list[str] | None
    """Of the classes, where Hugging Face's description has them."""
    said: tuple[str, ...]
    """Which columns were taken of several."""


class Tables:
    """Reads rows of parquet files, some at a time; the place of each is its table, row group and row in that.

    A row group is read from its start on and only forwards, for it may be larger than memory, of which one of its pages
    takes up to twice its size; going back in it begins anew. A row is let go as soon as it was asked for, as an image
    is needed only once in a pass over them. What a row group cannot be read from on is remembered.
    """

    def __init__(self, column: str) -> None:
        self._column, self._lock = column, Lock()
        self._held: dict[tuple[str, int, int], bytes | None] = {}
        """Rows that were read and not asked for, by their places, in the order in which they were read."""
        self._bytes = 0
        self._group: tuple[str, int] | None = None
        self._cursor: Iterator[Any] = iter(())
        self._next = 0
        """The row of the group that the cursor gives next."""
        self._broken: dict[tuple[str, int], tuple[int, str]] = {}

    def read(self, file: File) -> bytes:
        with self._lock:
            if file.place not in self._held:
                self._read_to(*file.place)
            data = self._held.pop(file.place)
            self._bytes -= len(data or b"")
        if data is None:
            raise UnreadableImage("its row holds no bytes")
        return data

    def _read_to(self, table: str, group: int, row: int) -> None:
        first, reason = self._broken.get((table, group), (row + 1, ""))
        if row >= first:
            raise UnreadableImage(reason)
        try:
            if self._group != (table, group) or row < self._next:
                self._cursor = _rows(_opened(table), group, self._column)
                self._group, self._next = (table, group), 0
            while self._next <= row:
                for data in _bytes_of(next(self._cursor), self._column):
                    self._hold((table, group, self._next), data)
                    self._next += 1
        except MemoryError:
            self._group = None
            raise
        except PurityError:
            raise UnreadableImage("its table cannot be opened any more") from None
        except Exception as error:  # pyarrow has its own for damage, and OSError, StopIteration for what is cut short
            reason = f"row group {group} of its table is damaged ({first_line(error)[:80]})"
            self._broken[table, group] = self._next, reason
            self._group = None
            raise UnreadableImage(reason) from None

    def _hold(self, place: tuple[str, int, int], data: bytes | None) -> None:
        before = self._held.pop(place, None)
        self._held[place] = data
        self._bytes += len(data or b"") - len(before or b"")
        while self._bytes > HELD and len(self._held) > FEW:
            self._bytes -= len(self._held.pop(next(iter(self._held))) or b"")


def open_parquet(path: str | None, split: str | None, _: bool) -> ImageDataset:
    """The images of all tables behind `path`, table by table in the order of their rows."""
    data = DataFiles(path or "", SUFFIXES)
    name, tables = data.chosen(split)
    columns = _columns(tables[0], _opened(tables[0]).schema_arrow)
    files, stored = list[File](), list[str | None]()
    for table in tables:
        opened, inner, status = _opened(table), data.inner(table), os.stat(table)
        there = {field.name for field in opened.schema_arrow}
        lacking = [c for c in (columns.bytes, columns.label) if c and c.partition(".")[0] not in there]
        if lacking:
            raise PurityError(f"{shown(inner)} has no column {lacking[0]}, which {shown(tables[0])} has: take it away.")
        inside, labels = _small(opened, table, columns)
        stored += labels
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        places = ((table, group, k) for group, size in enumerate(sizes) for k in range(size))
        for row, place in enumerate(places):
            path = posixpath.join(inner, f"row {row}", posixpath.basename(inside[row] or ""))
            files.append(File(path.rstrip("/"), status.st_size, status.st_ctime_ns, None, place))
    if not files:
        raise PurityError(f"The tables in {shown(data.path)} have no rows: give others.")
    lacks = f"no label in column {columns.label}" if columns.label else "no column of labels"
    numbers, names, order, note, said = number(stored, shown(name), lacks)
    if columns.names and numbers is not None and max(numbers) < len(columns.names):
        names, order = columns.names, "classes by the numbers and names that are stored"
    return FileImages(
        name=shown(name),
        paths=[shown(file.path) for file in files],
        labels=numbers,
        label_note=note,
        class_names=names,
        kind=f"{len(tables):,} parquet table{'s' if len(tables) != 1 else ''}",
        order=order,
        notes=(*columns.said, *said),
        reader=Tables(columns.bytes),
        files=files,
        root=os.path.realpath(data.root),
    )


def _opened(table: str) -> ParquetFile:
    try:
        from pyarrow import parquet
    except ImportError:
        raise PurityError(
            f"{shown(table)} is read with pyarrow, which is not installed: run pip install 'purity-cli[parquet]'."
        ) from None
    try:
        return parquet.ParquetFile(table, pre_buffer=False, buffer_size=1 << 20)
    except OSError as error:
        if error.strerror:
            raise PurityError(f"Cannot read {shown(table)} ({error.strerror}): make it readable.") from None
        raise PurityError(f"{shown(table)} is damaged or truncated ({first_line(error)}): fetch it again.") from None
    except Exception as error:  # pyarrow's own, of which some are ValueErrors
        raise PurityError(f"{shown(table)} is no parquet, or damaged ({first_line(error)}): fetch it again.") from None


def _columns(table: str, schema: pa.Schema) -> Columns:
    """The columns of images and labels, as Hugging Face describes them, or else by their names and types."""
    from pyarrow import types

    features = _features(schema)
    described = [name for name, about in features.items() if about.get("_type") == "Image" and name in schema.names]
    images = described or [field.name for field in schema if _holds_files(field.type)]
    if not images:
        raise PurityError(
            f"{shown(table)} has no column of images (bytes, or bytes and path): it has {', '.join(schema.names)}."
        )
    image = next((name for name in IMAGES if name in images), images[0])
    struct = types.is_struct(schema.field(image).type)
    inside = [field.name for field in schema.field(image).type] if struct else []
    classes = [name for name, about in features.items() if about.get("_type") == "ClassLabel" and name in schema.names]
    labels = classes or [name for name in COLUMNS if name in schema.names and _is_label(schema.field(name).type)]
    label = next((name for name in COLUMNS if name in labels), labels[0] if labels else None)
    said = tuple(
        f"{shown(table)} has the columns {', '.join(several)} for {what}: {taken} is taken."
        for what, several, taken in (("images", images, image), ("labels", labels, label))
        if len(several) > 1
    )
    names = features.get(label, {}).get("names") if label else None
    return Columns(
        bytes=f"{image}.bytes" if struct else image,
        path=f"{image}.path" if "path" in inside else None,
        label=label,
        names=[str(name) for name in names] if isinstance(names, list) else None,
        said=said,
    )


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's `datasets` says of the columns; empty where it wrote nothing."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _holds_files(kind: pa.DataType) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_files(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_label(kind: pa.DataType) -> bool:
    from pyarrow import types

    inner = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(inner) or types.is_string(inner) or types.is_large_string(inner))


def _small(opened: ParquetFile, table: str, columns: Columns) -> tuple[list[str | None], list[str | None]]:
    """The path and the label of every row, as text; None where there is none."""
    wanted = [column for column in (columns.path, columns.label) if column]
    rows = opened.metadata.num_rows
    if not wanted:
        return [None] * rows, [None] * rows
    try:
        read = opened.read(columns=wanted, use_threads=False)
    except Exception as error:  # pyarrow's own
        raise PurityError(f"{shown(table)} is damaged ({first_line(error)}): fetch it again.") from None
    labels = read.column(columns.label).to_pylist() if columns.label else [None] * rows
    image = read.column(columns.path.partition(".")[0]).to_pylist() if columns.path else [None] * rows
    return [row and row["path"] for row in image], [None if label is None else str(label) for label in labels]


def _rows(opened: ParquetFile, group: int, column: str) -> Iterator[Any]:
    """A row group's images, some at a time."""
    about = opened.metadata.row_group(group)
    parts = (about.column(k) for k in range(about.num_columns))
    size = next(part.total_uncompressed_size for part in parts if part.path_in_schema == column)
    some = min(WINDOW, max(1, LARGE * about.num_rows // max(1, size)))
    yield from opened.iter_batches(some, [group], [column], use_threads=False)


def _bytes_of(batch: Any, column: str) -> list[bytes | None]:
    values = batch.column(0).to_pylist()
    return [value and value["bytes"] for value in values] if column.endswith(".bytes") else values


KIND = DatasetKind(
    name="parquet:PATH",
    open=open_parquet,
    about="tables in Hugging Face's image layout, as ILSVRC/imagenet-1k: image {bytes, path} and label",
    classes=None,
    splits=(),
    needs="pip install 'purity-cli[parquet]', and the path of a table, a folder of them or a pattern; parquet: may be "
    "left out",
    fits=lambda path: bool(DataFiles(path, SUFFIXES).files),
)
