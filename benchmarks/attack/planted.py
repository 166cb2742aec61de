"""Faults to be planted, each of another kind: an attack is worth what it finds of them.

`make attack ARGS='--plant FAULT --only KIND'` attacks with one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


def truncated_images_count() -> None:
    """Half a picture is scored as if it were whole."""
    from PIL import ImageFile

    ImageFile.LOAD_TRUNCATED_IMAGES = True


def cache_believed() -> None:
    """A row of the cache is used without a look at its record."""
    from purity_cli.cache import PIXELS, CacheFiles
    from purity_cli.pixels import Decoded

    def believed(self: CacheFiles, i: int, stamp: bytes) -> Any:
        height, width, _ = self.shape
        return Decoded(np.fromfile(self.folder / PIXELS, np.uint8).reshape(-1, height, width, 3)[i], "")

    CacheFiles.get = believed  # type: ignore[method-assign]


def no_boundary() -> None:
    """Whatever isn't a PurityError ends in a traceback."""
    from purity_cli import cli
    from purity_cli.errors import PurityError

    sentence = cli.sentence

    def raises(error: BaseException) -> str:
        if not isinstance(error, PurityError):
            raise error
        return sentence(error)

    cli.sentence = raises


@dataclass(frozen=True)
class Fault:
    """Something that is planted, and the kinds of attack that should find it."""

    plant: Callable[[], None]
    found_by: tuple[str, ...]


PLANTED: dict[str, Fault] = {
    "truncated-images-count": Fault(truncated_images_count, ("image",)),
    "cache-believed": Fault(cache_believed, ("cache",)),
    "no-boundary": Fault(no_boundary, ("options", "user-file")),
}
