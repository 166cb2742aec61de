"""`shards:PATH`: tars in webdataset's layout, `000123.jpg` beside `000123.cls` or `.json`, read where they are."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import Any

from purity_cli.datasets.base import DatasetKind, File, FileImages, ImageDataset
from purity_cli.datasets.data_files import DataFiles
from purity_cli.datasets.decoding import UnreadableImage, is_image, is_systems
from purity_cli.datasets.labels import COLUMNS, number
from purity_cli.datasets.readers import DAMAGE, inner_name, members, open_file, opener_of, read_at
from purity_cli.errors import PurityError
from purity_cli.files import shown, to_text

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "json")
"""What of a sample says its class, the first preferred."""
FIRST = ("jpg", "jpeg", "png", "webp")
"""Which image is taken of several in a sample; otherwise the one whose ending is first by text."""
LOOKED_AT = 8
"""Files at the start of a tar that tell its layout."""


class Shards:
    """Reads files whose place is a shard and an offset in it.

    A shard is opened for each reading, as there may be more of them than a process may have open.
    """

    def read(self, file: File) -> bytes:
        shard, offset = file.place
        try:
            descriptor = os.open(shard, os.O_RDONLY)
        except OSError as error:
            raise UnreadableImage(error.strerror or "unreadable") from None
        try:
            return read_at(descriptor, file._replace(place=offset))
        finally:
            os.close(descriptor)


def open_shards(path: str | None, split: str | None, _: bool) -> ImageDataset:
    """The images of all shards behind `path`, shard by shard in the order in which these hold them."""
    data = DataFiles(path or "", SUFFIXES)
    name, shards = data.chosen(split)
    files, labels, more = list[File](), list[str | None](), 0
    for shard in shards:
        inner = shown(data.inner(shard))
        with open_file(shard) as opened:
            if opener_of(opened):
                raise PurityError(f"{inner} is compressed, and shards are read in place: decompress it.")
            found = (member for member, is_folder in members(opened, shard) if not is_folder)
            for sample in _samples((member.path, member) for member in found).values():
                images = [ending for ending in sample if is_image(f"x.{ending}")]
                if images:
                    taken = min(images, key=lambda e: (FIRST.index(e) if e in FIRST else len(FIRST), e))
                    member, more = sample[taken], more + len(images) - 1
                    place = shard, member.place
                    files.append(member._replace(path=f"{data.inner(shard)}/{member.path}", place=place))
                    labels.append(_label(sample, opened.fileno()))
    if not files:
        raise PurityError(f"The tars in {shown(data.path)} hold no images: give a folder of shards, or a pattern.")
    numbered = number(labels, shown(name), "neither .cls nor .json with a label")
    several = f"Left out of {shown(name)}: {more:,} images of samples that have another one already."
    return FileImages(
        name=shown(name),
        paths=[shown(file.path) for file in files],
        labels=numbered.labels,
        label_note=numbered.note,
        class_names=numbered.names,
        kind=f"{len(shards):,} shard{'s' if len(shards) != 1 else ''} in webdataset's layout",
        order=numbered.order,
        notes=(*numbered.said, several) if more else numbered.said,
        reader=Shards(),
        files=files,
        root=os.path.realpath(data.root),
    )


def _samples(found: Iterable[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
    """Samples by their key, all of a name up to the first dot behind its folder, as webdataset takes it; each has what
    lies in the tar by its ending, in lower case.
    """
    samples: dict[str, dict[str, Any]] = {}
    for path, member in found:
        folder, name = posixpath.split(path)
        stem, _, ending = name.partition(".")
        wanted = is_image(name) or ending.lower() in LABELS
        if wanted and not any(map(is_systems, path.split("/"))):
            samples.setdefault(posixpath.join(folder, stem), {})[ending.lower()] = member
    return samples


def _label(sample: dict[str, File], descriptor: int) -> str | None:
    """A sample's class as it is stored; None where nothing says it, or nothing that can be read."""
    for ending in LABELS:
        if ending in sample and not sample[ending].problem:
            with suppress(UnreadableImage, PurityError, ValueError, RecursionError):
                text = to_text(read_at(descriptor, sample[ending]), sample[ending].path).strip()
                if label := text if ending == "cls" else _of_json(json.loads(text)):
                    return label
    return None


def _of_json(content: Any) -> str | None:
    found = [content[key] for key in COLUMNS if key in content] if isinstance(content, dict) else []
    found = [label for label in found if isinstance(label, int | str) and not isinstance(label, bool)]
    return str(found[0]) if found else None


def _fits(path: str) -> bool:
    """Whether the first of the tars behind a path has labels beside its images."""
    data = DataFiles(path, SUFFIXES)
    if not data.files:
        return False
    with suppress(*DAMAGE, PurityError), open_file(data.files[0]) as file:
        tar = tarfile.open(fileobj=file, mode="r:*")  # noqa: SIM115
        regular = islice((member for member in tar if member.isreg()), LOOKED_AT)
        for sample in _samples([(inner_name(member.name, path), member) for member in regular]).values():
            if any(is_image(f"x.{ending}") for ending in sample):
                # Annotations in JSON lie beside images in many folders, too.
                described = tar.extractfile(sample["json"]) if "json" in sample else None
                if _of_json(json.loads(described.read())) if described else "cls" in sample:
                    return True
    return False


KIND = DatasetKind(
    name="shards:PATH",
    open=open_shards,
    about="tars in webdataset's layout, as timm's imagenet-1k-wds: 000123.jpg beside 000123.cls or 000123.json",
    classes=None,
    splits=(),
    needs="the path of a folder of such tars, or a pattern ('val-*.tar', 'val-{00..63}.tar'); shards: may be left out",
    fits=_fits,
)
