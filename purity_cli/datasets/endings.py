"""Which files are images, which are plainly none, and which belong to the system; by their names alone."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterable

from PIL import Image

LEFT_OUT = {
    **dict.fromkeys(("EPS", "WMF"), "PIL starts another program for it"),
    **dict.fromkeys(("BUFR", "GRIB", "HDF5", "MPEG", "IPTC"), "PIL does not decode it"),
    **dict.fromkeys(("ICO", "CUR", "ICNS"), "an icon of a folder"),
}
"""PIL's formats that are no images of a data set, and why."""

Image.init()
FORMATS = tuple(
    kind
    for kind in ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "QOI")
    if kind in Image.OPEN
)
"""What any image file may hold, whatever its ending says: these begin in ways that nothing else does."""
ENDINGS: dict[str, str] = {
    ending: kind
    for ending, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in LEFT_OUT
}
"""How the names of images end, in lower case -> PIL's format: all that this PIL decodes."""

PLAIN = (
    ".bib", ".cls", ".csv", ".db", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".lnk", ".log", ".mat", ".md",
    ".md5", ".pdf", ".pkl", ".py", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".torrent", ".tsv", ".txt", ".url",
    ".xlsx", ".xml", ".yaml", ".yml",
)  # fmt: skip
"""Endings of what lies beside images and is plainly none."""
WORDS = (
    "changelog", "checksums", "licence", "license", "makefile", "md5sums", "readme", "sha256sums",
    "meta.bin", "ilsvrc2012_devkit_t12.tar.gz",
)  # fmt: skip
"""Whole names of what is plainly no image, in lower case."""
SYSTEM = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems leave behind, in lower case."""


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does, in upper or lower case."""
    return ending(name) in ENDINGS


def formats(name: str) -> tuple[str, ...]:
    """PIL's formats to try on a file of this name: those that nothing is mistaken for, and the one that it claims."""
    claimed = ENDINGS.get(ending(name))
    return FORMATS if claimed is None or claimed in FORMATS else (*FORMATS, claimed)


def ending(name: str) -> str:
    """`.jpg` of `a/B.JPG`; empty where a name has none."""
    return posixpath.splitext(name)[1].lower()


def is_systems(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM


def strange(names: Iterable[str]) -> Counter[str]:
    """Of files that are not read, those that may be images: how many there are of each ending, or hidden ones.

    Text and the like is not counted, nor what macOS keeps of a file beside it (`._x.jpg`).
    """
    counted: Counter[str] = Counter()
    for name in names:
        if name.startswith("."):
            if is_image(name) and not name.startswith("._"):
                counted["hidden"] += 1
        elif ending(name) not in PLAIN and name.lower() not in WORDS:
            counted[ending(name) or "without ending"] += 1
    return counted
