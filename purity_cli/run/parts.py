"""Parts of a job: the counts of some of its blocks, which add, and the files in which an unfinished job keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from purity_cli import store

if TYPE_CHECKING:
    from purity_cli.engine import Engine

Ints = NDArray[np.int64]
FORMAT = "purity part 1"
"""Changes when files of before can no longer be read."""

FIRST, ALL = "partial.safetensors", "partial*.safetensors"


@dataclass(frozen=True)
class Part:
    """What some blocks of a job gave; parts of different blocks add to the part of them all."""

    batch_size: int
    """Images to a pass in the end: fewer than a block holds where memory ran out."""
    blocks: frozenset[int] = frozenset()
    shapes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    """(c, h, w) of each layer; empty where no image could be read."""
    counts: Mapping[str, Ints] = field(default_factory=dict)
    """(G, T, c) of each layer."""
    tally: Ints = field(default_factory=lambda: np.zeros(4, np.int64))
    """Images scored, images with a label, hits among the first 1 and 5 classes."""
    skipped: Mapping[int, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    """(path, reason) of each unreadable image, by block."""
    seconds: float = 0.0
    started: str = ""
    """ISO 8601."""

    @classmethod
    def of(cls, engine: Engine, blocks: Iterable[int], skipped: Mapping[int, tuple[tuple[str, str], ...]]) -> Self:
        """What an engine holds after these blocks. On CUDA this waits for the device."""
        return cls(
            batch_size=engine.batch_size,
            blocks=frozenset(blocks),
            shapes=dict(engine.shapes),
            counts={name: engine.counts(name).numpy() for name in engine.shapes},
            tally=engine.tally.cpu().numpy(),
            skipped=dict(skipped),
        )

    def __add__(self, other: Part) -> Part:
        """Both; ValueError where they have a block in common. Times add."""
        if self.blocks & other.blocks:
            raise ValueError(f"block {min(self.blocks & other.blocks)} would count twice")
        counts = dict(self.counts)
        for name, array in other.counts.items():
            counts[name] = counts[name] + array if name in counts else array
        return Part(
            batch_size=min(self.batch_size, other.batch_size),
            blocks=self.blocks | other.blocks,
            shapes={**self.shapes, **other.shapes},
            counts=counts,
            tally=self.tally + other.tally,
            skipped={**self.skipped, **other.skipped},
            seconds=self.seconds + other.seconds,
            started=min(filter(None, (self.started, other.started)), default=""),
        )

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(path, reason) of each unreadable image, in the order of the images."""
        return [image for number in sorted(self.skipped) for image in self.skipped[number]]

    def copy(self) -> Part:
        """With arrays of its own, which no engine goes on writing into."""
        counts = {name: array.copy() for name, array in self.counts.items()}
        return replace(self, counts=counts, tally=self.tally.copy())

    def heading(self) -> Part:
        """All but the arrays, which are large."""
        return replace(self, counts={}, tally=np.zeros(4, np.int64))


class Checkpoint:
    """An unfinished job's parts in its folder: one file of each process, each written whole or not at all.

    `inputs` is everything that decides the counts; parts of anything else are not gone on from. A process saves at
    most every `every` seconds. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, inputs: Mapping[str, Any], *, rank: int = 0, every: float = 60.0) -> None:
        self.folder, self.every = folder, every
        self.inputs = json.loads(json.dumps(inputs))
        self.name = FIRST if rank == 0 else f"partial-{rank}.safetensors"
        self._saved = monotonic()

    def restore(self, empty: Part, warn: Callable[[str], None]) -> Part:
        """What the processes of earlier runs left, in one part and one file; `empty` if nothing. For rank 0 alone.

        What cannot be gone on from is removed, after a warning.
        """
        if self.folder is None:
            return empty
        files = sorted(self.folder.glob(ALL))
        parts = [part for part in (self._read(file, warn) for file in files) if part]
        total = empty
        # The whole of some parts may lie beside them: a kill can come before they are removed.
        for part in sorted(parts, key=lambda part: -len(part.blocks)):
            if not part.blocks <= total.blocks:
                total += part
        if [file.name for file in files] != [FIRST] or not parts:
            if total.blocks:
                self.save(total)
            for file in files:
                if file.name != FIRST or not total.blocks:
                    file.unlink(missing_ok=True)
        return total

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and monotonic() - self._saved >= self.every

    def save(self, part: Part) -> None:
        """Replace what this process has saved."""
        if self.folder is None:
            return
        arrays = {f"counts/{name}": np.ascontiguousarray(array) for name, array in part.counts.items()}
        arrays |= {"tally": part.tally, "blocks": np.array(sorted(part.blocks), np.int64)}
        about = {name: getattr(part, name) for name in ("batch_size", "shapes", "skipped", "seconds", "started")}
        metadata = {"format": FORMAT, "inputs": json.dumps(self.inputs), "about": json.dumps(about)}
        store.write_bytes(self.folder / self.name, safetensors.numpy.save(arrays, metadata))
        self._saved = monotonic()

    def _read(self, path: Path, warn: Callable[[str], None]) -> Part | None:
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata["format"] != FORMAT:
                    raise ValueError("another version wrote it")
                inputs, about = json.loads(metadata["inputs"]), json.loads(metadata["about"])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
            warn(f"{path} cannot be read ({error}), so this job starts from its first image.")
            return None
        changed = [name for name in {**inputs, **self.inputs} if inputs.get(name) != self.inputs.get(name)]
        if changed:
            warn(f"{path} is of another {changed[0].replace('_', ' ')}, so this job starts from its first image.")
            return None
        return Part(
            batch_size=about["batch_size"],
            blocks=frozenset(arrays.pop("blocks").tolist()),
            tally=arrays.pop("tally"),
            counts={name.removeprefix("counts/"): array for name, array in arrays.items()},
            shapes={name: tuple(shape) for name, shape in about["shapes"].items()},
            skipped={
                int(n): tuple((path, reason) for path, reason in images) for n, images in about["skipped"].items()
            },
            seconds=about["seconds"],
            started=about["started"],
        )


def clear(folder: Path) -> None:
    """Remove what an unfinished job left, once its result is there."""
    for file in folder.glob(ALL):
        file.unlink(missing_ok=True)
