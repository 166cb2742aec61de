"""The only code that touches a results folder: `write` and `read` one Result, every file atomically.

`counts.safetensors` alone holds all of a Result; `run.json`, `purity.csv` and `purity.md` are views of it for people
and other programs.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import safetensors
import safetensors.numpy

from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Layer, Result
from purity_cli.views import layers

COUNTS, RUN, CSV, MARKDOWN = "counts.safetensors", "run.json", "purity.csv", "purity.md"
LOCK = ".lock"
LEFTOVERS = ".*.[0-9]*.tmp"
"""What `write_bytes` leaves where it is killed; a folder that users name may hold temporary files of others."""
FORMAT = "purity counts 1"
"""Changes when files of before can no longer be read."""

UNSIGNED = (np.uint8, np.uint16, np.uint32)


def prepare(folder: Path) -> Path:
    """Make sure that results can be written into `folder` before hours are spent on them; PurityError otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PurityError(f"Cannot write results into {folder} ({error.strerror}): choose another --output.") from None
    return folder


def claim(folder: Path, command: str) -> TextIO:
    """Let no second process of `command` write into `folder`, until the file returned is closed or this process ends.

    What a killed process was just writing there is cleared away. PurityError where another one holds the folder.
    """
    handle = (prepare(folder) / LOCK).open("a+")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise PurityError(f"Another `{command}` is writing into {folder}: wait for it, or give --output.") from None
    except (ImportError, OSError):
        pass  # a system or a file system without locks
    for leftover in folder.glob(LEFTOVERS):
        leftover.unlink(missing_ok=True)
    return handle


def occupant(folder: Path) -> Job | None:
    """The Job whose results a folder holds, None where it holds none that can be read."""
    try:
        return read(folder).job
    except PurityError:
        return None


def write(result: Result, folder: Path, threshold: float = 0.5) -> None:
    """Write the four files; the tables in `purity.md` are those at `threshold`.

    Each file appears whole or not at all, the counts last, so that a folder with counts is complete.
    """
    prepare(folder)
    record = {"key": result.job.key(), **result.provenance, "job": result.job.model_dump(mode="json")}
    write_text(folder / RUN, json.dumps(_finite(record), indent=2, allow_nan=False) + "\n")
    rows, page = layers.stored(result, threshold)
    write_text(folder / CSV, FORMATS["csv"](rows))
    write_text(folder / MARKDOWN, FORMATS["md"](page))
    write_bytes(folder / COUNTS, _pack(result))


def read(folder: Path) -> Result:
    """The Result in a folder that `write` filled; PurityError where there is none, or one of another version."""
    path = folder / COUNTS if folder.name != COUNTS else folder
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise PurityError(
                    f"{path} holds {metadata.get('format', 'no counts of this tool')}, and this version reads "
                    f"{FORMAT!r}: score these images again."
                )
            described = json.loads(metadata["result"])
            arrays = {layer["module"]: file.get_tensor(layer["module"]) for layer in described["layers"]}
    except FileNotFoundError:
        raise PurityError(
            f"{folder} holds no results: give a folder that `purity score` has written, with {COUNTS} in it."
        ) from None
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise PurityError(f"{path} is damaged ({error}): score these images again.") from None
    found = tuple(_layer(layer, arrays[layer["module"]]) for layer in described.pop("layers"))
    job = Job.of(**described.pop("job"))
    return Result(**{**described, "thresholds": tuple(described["thresholds"])}, job=job, layers=found)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, flush to the disk, rename; PurityError where it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PurityError(
            f"Cannot write {path} ({error.strerror}): free some space or choose another --output."
        ) from None


def _pack(result: Result) -> bytes:
    described = {
        **{name: value for name, value in vars(result).items() if name not in ("job", "layers")},
        "job": result.job.model_dump(mode="json"),
        "layers": [{name: value for name, value in vars(layer).items() if name != "counts"} for layer in result.layers],
    }
    arrays = {layer.module: _smallest(layer.counts) for layer in result.layers}
    metadata = {"format": FORMAT, "result": json.dumps(_finite(described), allow_nan=False)}
    return safetensors.numpy.save(arrays, metadata)


def _layer(described: dict[str, Any], counts: np.ndarray[Any, Any]) -> Layer:
    named = {**described.pop("peers", {}), **described.pop("measures", {})}  # peers: as they were called before
    measures = {name: math.nan if value is None else value for name, value in named.items()}
    return Layer(**described, counts=counts.astype(np.int64), measures=measures)


def _smallest(counts: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    """Counts are small numbers in large arrays: the narrowest type that holds them is an eighth of the size."""
    largest = counts.max(initial=0)
    kind = next((kind for kind in UNSIGNED if largest <= np.iinfo(kind).max), np.int64)
    return np.ascontiguousarray(counts, dtype=kind)


def _finite(value: Any) -> Any:
    """JSON knows no NaN: null stands for it."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
