"""What some blocks of a job gave, in memory and in a file: a part of a job, a process's share of it, or all of it.

States of different blocks add to those of them all. A file holds the arrays, and in its metadata, as JSON, what else
there is: what decided the numbers (`identity`), what the states are of, and of a finished job what its names stood for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from purity_cli.errors import PurityError
from purity_cli.files import finite

T = TypeVar("T")
Array = NDArray[Any]
FORMAT = "purity states 1"
"""Changes when files of before can no longer be read."""
UNSIGNED = (np.uint8, np.uint16, np.uint32)
HEADING = ("batch_size", "block_size", "shapes", "skipped", "images", "seconds", "started")


class Counting(Protocol):
    """What is needed of an `engine.Engine`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, int, int]]: ...
    @property
    def tally(self) -> Any: ...
    def arrays(self) -> Mapping[str, Array]: ...


class Unusable(PurityError):
    """A file that holds no states of this version; the text says why, without its path."""


@dataclass(frozen=True)
class States:
    """What some blocks of a job gave."""

    batch_size: int
    """Images to a pass in the end: fewer than a block holds where memory ran out."""
    block_size: int = 0
    """Images of a block, the last one aside; 0 in files of before."""
    blocks: frozenset[int] = frozenset()
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """(c, h, w) of each tapped module; empty where no image could be read."""
    arrays: Mapping[str, Array] = field(default_factory=dict)
    """The states of every accumulator, as `module/accumulator/state`, integer or float64."""
    tally: NDArray[np.int64] = field(default_factory=lambda: np.zeros(4, np.int64))
    """Images scored, images with a label, hits among the first 1 and 5 classes."""
    skipped: Mapping[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """(path, reason) of each unreadable image, by block."""
    images: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    """What lay behind the images of each block: the stamp of the files, and the digest of their content."""
    seconds: float = 0.0
    started: str = ""
    """ISO 8601."""

    @classmethod
    def of(
        cls,
        engine: Counting,
        blocks: Iterable[int],
        skipped: Mapping[int, tuple[tuple[str, str], ...]],
        images: Mapping[int, tuple[str, str]],
        block_size: int,
    ) -> Self:
        """What an engine holds after these blocks. On CUDA this waits for the device."""
        return cls(
            batch_size=engine.batch_size,
            block_size=block_size,
            blocks=frozenset(blocks),
            shapes=dict(engine.shapes),
            arrays=engine.arrays(),
            tally=engine.tally.cpu().numpy(),
            skipped=dict(skipped),
            images=dict(images),
        )

    def __add__(self, other: States) -> States:
        """Both; ValueError where they have a block in common. Times add."""
        if self.blocks & other.blocks:
            raise ValueError(f"block {min(self.blocks & other.blocks)} would count twice")
        arrays = dict(self.arrays)
        for name, array in other.arrays.items():
            arrays[name] = arrays[name] + array if name in arrays else array
        return States(
            batch_size=min(self.batch_size, other.batch_size),
            block_size=self.block_size or other.block_size,
            blocks=self.blocks | other.blocks,
            shapes={**self.shapes, **other.shapes},
            arrays=arrays,
            tally=self.tally + other.tally,
            skipped={**self.skipped, **other.skipped},
            images={**self.images, **other.images},
            seconds=self.seconds + other.seconds,
            started=min(filter(None, (self.started, other.started)), default=""),
        )

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(path, reason) of each unreadable image, in the order of the images."""
        return [image for number in sorted(self.skipped) for image in self.skipped[number]]

    def heading(self) -> States:
        """All but the arrays, which are large."""
        return replace(self, arrays={}, tally=np.zeros(4, np.int64))

    def of_accumulator(self, module: str, accumulator: str) -> dict[str, Array] | None:
        """The arrays of one accumulator of one tapped module; None where it has none."""
        prefix = f"{module}/{accumulator}/"
        found = {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}
        return found or None

    def pack(self, **about: Any) -> bytes:
        """The file's content; `about` is what else stands in its metadata."""
        arrays = {name: _smallest(array) for name, array in self.arrays.items()}
        arrays |= {"tally": self.tally, "blocks": np.array(sorted(self.blocks), np.int64)}
        told = {"states": {name: getattr(self, name) for name in HEADING}, **about}
        told["digests"] = {name: _digest(array.tobytes()) for name, array in arrays.items()}
        metadata = {name: json.dumps(finite(value), allow_nan=False) for name, value in told.items()}
        return safetensors.numpy.save(arrays, {"format": FORMAT, "digest": _digest_of(metadata), **metadata})


def describe(path: Path) -> dict[str, Any]:
    """What a file's metadata says; FileNotFoundError, or Unusable where there are no states of this version in it."""
    return _open(path, lambda file, about: about)


def unpack(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> tuple[States, dict[str, Any]]:
    """States and what else `pack` was given, of those arrays that are `wanted`; raises as `describe`."""

    def read(file: Any, about: dict[str, Any]) -> tuple[States, dict[str, Any]]:
        digests = about.pop("digests")
        arrays = {name: file.get_tensor(name) for name in digests if name in ("tally", "blocks") or wanted(name)}
        changed = [name for name, array in arrays.items() if _digest(array.tobytes()) != digests[name]]
        if changed:
            raise Unusable(f"it is damaged ({changed[0]} is not what was written)")
        arrays = {name: _widest(array) for name, array in arrays.items()}
        heading = about.pop("states")
        blocks, tally = arrays.pop("blocks"), arrays.pop("tally")
        return States(
            **{
                **heading,
                "shapes": {name: tuple(shape) for name, shape in heading["shapes"].items()},
                "skipped": {int(n): tuple(map(tuple, images)) for n, images in heading["skipped"].items()},
                "images": {int(n): tuple(marks) for n, marks in heading.get("images", {}).items()},
            },
            blocks=frozenset(blocks.tolist()),
            arrays=arrays,
            tally=tally,
        ), about

    return _open(path, read)


def _open(path: Path, read: Callable[[Any, dict[str, Any]], T]) -> T:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            written = metadata.pop("format", "no states of this tool")
            if written != FORMAT:
                raise Unusable(f"it holds {written}, and this version reads {FORMAT!r}")
            if metadata.pop("digest", None) != _digest_of(metadata):
                raise Unusable("it is damaged (what it says of itself is not what was written)")
            return read(file, {name: json.loads(text) for name, text in metadata.items()})
    except FileNotFoundError:
        raise
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Unusable(f"it is damaged ({error})") from None


def _digest(content: bytes) -> str:
    """Short, against accidents: a flipped bit must not become another number."""
    return hashlib.sha256(content).hexdigest()[:16]


def _digest_of(metadata: Mapping[str, str]) -> str:
    return _digest("\0".join(part for item in sorted(metadata.items()) for part in item).encode())


def _smallest(array: Array) -> Array:
    """Counts are small numbers in large arrays: the narrowest type that holds them is an eighth of the size."""
    if array.dtype != np.int64 or array.min(initial=0) < 0:
        return np.asarray(array, order="C")  # ascontiguousarray would make a vector of a number
    largest = array.max(initial=0)
    kind = next((kind for kind in UNSIGNED if largest <= np.iinfo(kind).max), np.int64)
    return np.asarray(array, dtype=kind, order="C")


def _widest(array: Array) -> Array:
    return array.astype(np.int64) if array.dtype.kind in "iu" else array
