"""Which files are images, and how their bytes become pixels."""

from __future__ import annotations

import io
import posixpath
from collections import Counter
from collections.abc import Iterable

from PIL import Image, UnidentifiedImageError

from purity_cli.errors import PurityError

Image.init()
FORMATS = tuple(
    kind
    for kind in ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000", "QOI")
    if kind in Image.OPEN
)
"""What any image file may hold, whatever its ending says: these begin in ways that nothing else does."""
# PIL starts another program for the first two, does not decode the next five, and the last three are icons.
NO_IMAGES = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "IPTC", "ICO", "CUR", "ICNS")
ENDINGS: dict[str, str] = {
    ending: kind
    for ending, kind in Image.registered_extensions().items()
    if kind in Image.OPEN and kind not in NO_IMAGES
}
"""How the names of images end, in lower case -> PIL's format: all that this PIL decodes."""
PLAIN = {
    ".bib", ".cls", ".csv", ".db", ".htm", ".html", ".ini", ".ipynb", ".json", ".jsonl", ".lnk", ".log", ".mat", ".md",
    ".md5", ".pdf", ".pkl", ".py", ".rst", ".rtf", ".sh", ".sha1", ".sha256", ".torrent", ".tsv", ".txt", ".url",
    ".xlsx", ".xml", ".yaml", ".yml",
}  # fmt: skip
"""Endings of what lies beside images and is plainly none."""
PLAIN_NAMES = {
    "changelog", "checksums", "licence", "license", "makefile", "md5sums", "readme", "sha256sums",
    "meta.bin", "ilsvrc2012_devkit_t12.tar.gz",
}  # fmt: skip
"""Whole names of what is plainly no image, in lower case."""
SYSTEM = {"__macosx", "__pycache__", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
"""Folders that systems leave behind, in lower case."""
CLIPPED = ("I", "F")
"""How the modes of images begin that PIL cuts off at 255 without a word when it converts to RGB."""


class UnreadableImage(PurityError):
    """One image that cannot be decoded; the text is the reason, in a few words, without its path."""


def ending(name: str) -> str:
    """`.jpg` of `a/B.JPG`; empty where a name has none."""
    return posixpath.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file's name ends as an image's does, in upper or lower case."""
    return ending(name) in ENDINGS


def is_systems(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM


def maybe_images(names: Iterable[str]) -> Counter[str]:
    """Of files that are not read, those that may be images: how many there are of each ending, or hidden ones.

    Text and the like is not counted, nor what macOS keeps of a file beside it (`._x.jpg`).
    """
    counted: Counter[str] = Counter()
    for name in names:
        if name.startswith("."):
            if is_image(name) and not name.startswith("._"):
                counted["hidden"] += 1
        elif ending(name) not in PLAIN and name.lower() not in PLAIN_NAMES:
            counted[ending(name) or "without ending"] += 1
    return counted


def decode(data: bytes, name: str = "") -> Image.Image:
    """The image in a file's bytes as torchvision's `pil_loader` gives it; UnreadableImage says what is wrong.

    That is PIL's conversion to RGB: alpha is dropped, a palette looked up, the orientation in EXIF not applied, and
    the first frame taken. Pixels of 16 or 32 bits, grey only, are refused, because PIL would clip them. A file may
    hold any of `FORMATS`, or the one that its name claims.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=(*FORMATS, ENDINGS.get(ending(name), "JPEG")))
        if image.mode.startswith(CLIPPED):
            raise UnreadableImage(f"16-bit or floating-point pixels (mode {image.mode}), which 8 bits would clip")
        image.load()
        # RGB has no use for it, and PIL would warn that it is lost.
        image.info.pop("transparency", None)
        return image if image.mode == "RGB" else image.convert("RGB")
    except (UnreadableImage, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(f"not an image of a known kind ({', '.join(FORMATS)}), or damaged at its start") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage("so many pixels that PIL takes it for a decompression bomb") from None
    except Exception as error:  # PIL's decoders raise anything on damaged files: OSError, SyntaxError, struct.error
        text = str(error).strip()
        reason = "truncated" if "truncated" in text.lower() else f"damaged ({text[:80] or type(error).__name__})"
        raise UnreadableImage(reason) from None
