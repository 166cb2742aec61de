"""Decode once: pixels after resize and crop, kept on disk, one array per data set and preprocessing.

A row is an image's place in the whole data set, so that every selection of it shares them, and rows are filled in any
order, by any number of threads, processes and ranks at once. Each row has a mark: the CRC-32 of its place, of the time
at which its file last changed, and of its pixels. A row is used only where its mark fits, and so nothing depends on
the order in which a disk writes, and no lock is needed. Rows that a kill or a power cut left half-written, rows of an
image that was replaced, rows of anything else (all but one in 2^32 of them) are absent ones, and are decoded again.
Two processes that fill the same row write the same bytes. Unreadable images are not kept: every run tries them anew,
because they may have been mended.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from purity_cli.cache.shelf import Rows, Shape, create, identify, key, open_rows
from purity_cli.datasets import ImageDataset, UnreadableImage
from purity_cli.errors import PurityError, log
from purity_cli.files import expanded, shown
from purity_cli.pixels import Pixels, size_of
from purity_cli.plan import Preprocessing

LEFT_FREE = 2**28
"""Bytes of a disk that caches leave to others: the results are often on the same one."""

NOWHERE = "there is no home folder to keep it in: set PURITY_CACHE or give --cache DIR"
"""Why there is no default place."""


def default_root() -> Path | None:
    """`$PURITY_CACHE`, else `purity` in the user's folder of caches; None where the user has no home."""
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = expanded(os.environ.get("PURITY_CACHE") or os.path.join(caches, "purity"))
    return None if root.parts[:1] == ("~",) else root


def chosen_root(given: Path | None) -> Path:
    """The folder that was given, or else the default one; PurityError where there is none."""
    root = given or default_root()
    if root is None:
        raise PurityError(f"There is no cache, for {NOWHERE}.")
    return root


class Cache:
    """The cached pixels of one data set after one resize and crop, in a folder of `root`.

    The folder is made for the first row that is put, and it is said how much `selection` will add. Whatever goes
    wrong is warned of in one sentence, and then nothing more is put; what can be read is used all the same. Any
    number of threads may use this.
    """

    def __init__(
        self,
        root: Path,
        source: ImageDataset,
        preprocessing: Preprocessing,
        selection: Sequence[int],
    ) -> None:
        self.root, self.source, self.selection = root, source, selection
        self.identity = identify(source, preprocessing)
        self._lock = Lock()
        self.filling = True
        """Whether rows are put; False once that has failed."""
        self._announced = False
        self._rows: Rows | None = None
        try:
            self._rows = open_rows(root, self.identity)
        except OSError as error:
            self._stop(error)

    @property
    def folder(self) -> Path:
        """Where it is, or will be."""
        return self.root / key(self.identity)

    @property
    def shape(self) -> Shape | None:
        """Of one image (h, w, 3); None where nothing is here yet."""
        return self._rows.shape if self._rows else None

    def get(self, i: int) -> NDArray[np.uint8] | None:
        """Image i's pixels (h, w, 3), None where they are not here."""
        try:
            return self._rows.get(i, self.source.changed(i)) if self._rows else None
        except OSError as error:
            self._stop(error)
            return None

    def put(self, i: int, pixels: NDArray[np.uint8]) -> None:
        """Keep image i's pixels (h, w, 3), unless they are of another size than those here."""
        if not self.filling:
            return
        try:
            with self._lock:
                if self._rows is None:
                    self._rows = create(self.root, self.identity, self.source.name, pixels.shape)
                rows = self._rows
                if not self._announced:
                    self._announce(rows)
            if self.filling and pixels.shape == rows.shape:
                rows.put(i, self.source.changed(i), pixels, LEFT_FREE)
        except OSError as error:
            self._stop(error)

    def missing(self, shape: Shape) -> int:
        """Bytes that the selection will add, if one image is of this shape."""
        absent = len(self.selection) if self._rows is None else self._rows.absent(self.selection)
        return absent * int(np.prod(shape))

    def _announce(self, rows: Rows) -> None:
        """Say what will be added, or that there is no room for it."""
        self._announced = True
        need, free = self.missing(rows.shape), shutil.disk_usage(self.root).free
        if need and need + LEFT_FREE > free:
            self.filling = False
            log.warning(
                f"The pixels of {self.source.name} are not cached, for they take {size_text(need)}, {self.root} has "
                f"{size_text(free)} free, and {size_text(LEFT_FREE)} are left to other files: give --cache another "
                "folder, or none."
            )
        elif need:
            log.info(f"Caching {self.source.name} in {rows.folder}: {size_text(need)}, with {size_text(free)} free.")

    def _stop(self, error: OSError) -> None:
        with self._lock:
            first, self.filling = self.filling, False
        if first:
            read_only = self._rows is not None and self._rows.refused is not None
            what, why = (
                ("that are new are not", "only be read") if read_only else ("are no longer", "no longer be used")
            )
            log.warning(
                f"The pixels of {self.source.name} {what} cached, for {shown(str(self.root))} can {why} "
                f"({error.strerror or error}); the run goes on without: give --cache another folder, or none."
            )


class CachedPixels(Pixels):
    """As `Pixels`, but decodes only what the cache in `root` does not have, and keeps what it decodes."""

    def __init__(
        self,
        source: ImageDataset,
        selection: Sequence[int],
        preprocessing: Preprocessing,
        *,
        root: Path,
        **options: Any,
    ) -> None:
        super().__init__(source, selection, preprocessing, **options)
        self.cache = Cache(root, source, preprocessing, selection)

    def _load(self, position: int) -> NDArray[np.uint8] | UnreadableImage:
        i = self.selection[position]
        cached = self.cache.get(i)
        if cached is not None:
            return cached
        decoded = super()._load(position)
        if isinstance(decoded, np.ndarray):
            self.cache.put(i, decoded)
        return decoded


def estimate(root: Path, source: ImageDataset, preprocessing: Preprocessing, selection: Sequence[int]) -> int:
    """Bytes that a run over these images would add to the cache; decodes an image where only that tells its size."""
    here = Cache(root, source, preprocessing, selection)
    return here.missing(here.shape or (*(size_of(source, selection, preprocessing) or (0, 0)), 3))


def size_text(count: float) -> str:
    """A number of bytes as `150 MB`."""
    units = ["bytes", "KB", "MB", "GB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        del units[0]
    return f"{count:.3g} {units[0]}"
