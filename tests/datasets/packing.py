"""The same images packed as every kind of data set: files are `class/name` -> content, in the order of these paths."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

Files = Mapping[str, bytes]


def class_of(path: str) -> str:
    return path.partition("/")[0]


def classes_of(files: Files) -> list[str]:
    """The names of the classes in the order of their numbers."""
    return sorted({class_of(path) for path in files})


def in_folder(place: Path, files: Files) -> str:
    for path, data in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(data)
    return str(place)


def in_tar(place: Path, files: Files) -> str:
    place.mkdir()
    with tarfile.open(place / "set.tar", "w") as archive:
        archive.add(in_folder(place / "set", files), arcname=".")
    return str(place / "set.tar")


def in_zip(place: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> str:
    """Members in disorder, since a zip may have them so."""
    place.mkdir()
    with zipfile.ZipFile(place / "set.zip", "w", compression) as archive:
        for path, data in random.Random(0).sample(sorted(files.items()), len(files)):
            archive.writestr(f"set/{path}", data)
    return str(place / "set.zip")


def in_shards(place: Path, files: Files, size: int = 5, label: str = "cls") -> str:
    """webdataset's layout, `size` samples to a tar."""
    place.mkdir()
    classes, rows = classes_of(files), list(enumerate(files.items()))
    for start in range(0, len(files), size):
        with tarfile.open(place / f"set-{start // size}.tar", "w") as shard:
            for k, (path, data) in rows[start : start + size]:
                number = classes.index(class_of(path))
                text = f"{number}\n" if label == "cls" else json.dumps({"label": number, "filename": path, "width": 3})
                for name, content in ((f"{k:06}.jpg", data), (f"{k:06}.{label}", text.encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
    return str(place)


def in_parquet(place: Path, files: Files, rows: int = 30, described: bool = True, **options: Any) -> str:
    """Hugging Face's layout, with or without its description, `rows` to a table."""
    place.mkdir()
    classes, kind = classes_of(files), pa.struct({"bytes": pa.binary(), "path": pa.string()})
    about = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": about}})} if described else None
    schema = pa.schema({"image": kind, "label": pa.int64()}, metadata)
    content = [
        {"image": {"bytes": data, "path": path.replace("/", "_")}, "label": classes.index(class_of(path))}
        for path, data in files.items()
    ]
    parts = range(0, len(content), rows)
    for part, start in enumerate(parts):
        table = pa.Table.from_pylist(content[start : start + rows], schema)
        name = f"set-{part:05}-of-{len(parts):05}.parquet"
        parquet.write_table(table, place / name, **{"row_group_size": 7, **options})
    return str(place)


PACKINGS: dict[str, Callable[..., str]] = {
    "folder": in_folder, "tar": in_tar, "zip": in_zip, "shards": in_shards, "parquet": in_parquet,
}  # fmt: skip
"""From a place that is not there yet and files to what `open_dataset` is given."""
