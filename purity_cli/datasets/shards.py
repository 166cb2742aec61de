"""`shards:PATH`: tars in webdataset's layout, `000123.jpg` beside `000123.cls` or `.json`, read where they are."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from purity_cli.datasets.archive import DAMAGE, inner_name, members, open_file, opener_of, problem_of, read_at
from purity_cli.datasets.base import Family, ImageDataset, UnreadableImage
from purity_cli.datasets.classes import number
from purity_cli.datasets.endings import is_image, is_systems
from purity_cli.datasets.pieces import DataFiles
from purity_cli.datasets.trees import File, FileSource
from purity_cli.errors import PurityError
from purity_cli.files import shown, to_text

SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABELS = ("cls", "json")
"""What of a sample says its class, the first preferred."""
KEYS = ("label", "cls", "class", "class_id", "target")
"""What of a sample's JSON says its class, the first preferred; timm's shards have `label`."""
FIRST = ("jpg", "jpeg", "png", "webp")
"""Which image is taken of several in a sample; otherwise the one whose ending is first by text."""
LOOKED_AT = 8
"""Files at the start of a tar that tell its layout."""


class Sample(NamedTuple):
    """What a shard has of one sample: image files and labels, each where it lies."""

    images: dict[str, tarfile.TarInfo]
    labels: dict[str, tarfile.TarInfo]


class Shards:
    """Reads files of shards by their paths, `shard.tar/000123.jpg`.

    A shard is opened for each reading, as there may be more of them than a process may have open.
    """

    def __init__(self, places: dict[str, tuple[str, int]]) -> None:
        self._places = places
        """The shard and the offset of each."""

    def read(self, file: File) -> bytes:
        shard, offset = self._places[file.path]
        try:
            descriptor = os.open(shard, os.O_RDONLY)
        except OSError as error:
            raise UnreadableImage(error.strerror or "unreadable") from None
        try:
            return read_at(descriptor, file.size, offset)
        finally:
            os.close(descriptor)


def open_shards(path: str | None, split: str | None, _: bool) -> ImageDataset:
    """The images of all shards behind `path`, shard by shard in the order in which these hold them.

    The fingerprint covers, as a folder's does, each image's path, size in bytes and label.
    """
    pieces = DataFiles(path or "", SUFFIXES)
    if not pieces.files:
        raise PurityError(f"{shown(path or 'shards:')} stands for no tars: give a folder of shards, or a pattern.")
    name, shards = pieces.chosen(split)
    places: dict[str, tuple[str, int]] = {}
    files, labels, more = list[File](), list[str | None](), 0
    for shard in shards:
        inner = pieces.inner(shard)
        with open_file(shard) as opened:
            if opener_of(opened):
                raise PurityError(f"{shown(inner)} is compressed, and shards are read in place: decompress it.")
            changed = os.fstat(opened.fileno()).st_ctime_ns
            for sample in _samples(members(opened, shard), shard).values():
                if not sample.images:
                    continue
                ending = min(sample.images, key=lambda e: (FIRST.index(e) if e in FIRST else len(FIRST), e))
                image, more = sample.images[ending], more + len(sample.images) - 1
                inside = f"{inner}/{inner_name(image.name, shard)}"
                files.append(File(inside, image.size, problem_of(image), changed))
                places[inside] = shard, image.offset_data
                labels.append(_label(sample, opened.fileno()))
    if not files:
        raise PurityError(f"The tars in {shown(pieces.path)} hold no images: give a folder of shards, or a pattern.")
    numbers, names, order, note, said = number(labels, shown(name), "neither .cls nor .json with a label")
    if more:
        said = (*said, f"Left out of {shown(name)}: {more:,} images of samples that have another one already.")
    return FileSource(
        name=shown(name),
        paths=[shown(file.path) for file in files],
        labels=numbers,
        label_note=note,
        class_names=names,
        kind=f"{len(shards):,} shard{'s' if len(shards) != 1 else ''} in webdataset's layout",
        order=order,
        notes=said,
        tree=Shards(places),
        files=files,
        base="",
        place=os.path.realpath(pieces.root),
    )


def _samples(found: Iterable[tarfile.TarInfo], shard: str) -> dict[str, Sample]:
    """Samples by their key, all of a name up to the first dot behind its folder, as webdataset takes it."""
    samples: dict[str, Sample] = {}
    for member in found:
        folder, name = posixpath.split(inner_name(member.name, shard))
        stem, _, ending = name.partition(".")
        if member.isdir() or is_systems(name) or any(map(is_systems, filter(None, folder.split("/")))):
            continue
        sample = samples.setdefault(posixpath.join(folder, stem), Sample({}, {}))
        if is_image(name):
            sample.images[ending.lower()] = member
        elif ending.lower() in LABELS:
            sample.labels[ending.lower()] = member
    return samples


def _label(sample: Sample, descriptor: int) -> str | None:
    """A sample's class as it is stored; None where nothing says it, or nothing that can be read."""
    for ending in LABELS:
        if ending in sample.labels:
            member = sample.labels[ending]
            with suppress(UnreadableImage, PurityError, ValueError, RecursionError):
                text = to_text(read_at(descriptor, member.size, member.offset_data), member.name).strip()
                label = text if ending == "cls" else _of_json(json.loads(text))
                if label:
                    return label
    return None


def _of_json(content: object) -> str | None:
    if not isinstance(content, dict):
        return None
    found = next((content[key] for key in KEYS if isinstance(content.get(key), int | str)), None)
    return None if found is None or isinstance(found, bool) else str(found)


def _fits(path: str) -> bool:
    """Whether the first of the tars behind a path has labels beside its images."""
    pieces = DataFiles(path, SUFFIXES)
    if not pieces.files:
        return False
    with suppress(*DAMAGE, PurityError), open_file(pieces.files[0]) as file:
        tar = tarfile.open(fileobj=file, mode="r:*")  # noqa: SIM115
        regular = list(islice((member for member in tar if member.isreg()), LOOKED_AT))
        samples = _samples(regular, pieces.files[0])
        return any(sample.images and _is_labelled(sample, tar) for sample in samples.values())
    return False


def _is_labelled(sample: Sample, tar: tarfile.TarFile) -> bool:
    if "json" not in sample.labels:
        return "cls" in sample.labels
    # Annotations lie beside images in many folders, too.
    content = tar.extractfile(sample.labels["json"])
    return content is not None and _of_json(json.loads(content.read())) is not None


FAMILY = Family(
    name="shards:PATH",
    open=open_shards,
    about="tars in webdataset's layout, as timm's imagenet-1k-wds: 000123.jpg beside 000123.cls or 000123.json",
    classes=None,
    splits=(),
    needs="the path of a folder of such tars, or a pattern ('val-*.tar', 'val-{00..63}.tar'); shards: may be left out",
    fits=_fits,
)
