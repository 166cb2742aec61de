"""Kinds of data sets: one set of images as a folder, tar, zip, shards and parquet gives the same pixels in the same
order; each kind's own layouts, its damage, and its memory.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner
from PIL import Image
from pyarrow import parquet

from purity_cli import cli, run, store
from purity_cli.cli.datasets import command
from purity_cli.datasets import KINDS, DatasetKind, ImageDataset, UnreadableImage, open_dataset, select
from purity_cli.datasets.base import ArrayImages
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Result
from tests.datasets.packing import PACKINGS, in_folder, in_parquet, in_shards, in_zip
from tests.datasets.test_datasets import labelled, member, pack, picture, png
from tests.memory import PEAK
from tests.run.test_ranks import torchrun

COLOURS = ("blue", "green", "red", "white")
SIZE = 36


def images() -> dict[str, bytes]:
    """Paths and files of 44 small images in four classes: as many as no window, batch or shard holds."""
    rng, found = np.random.default_rng(5), {}
    for colour in COLOURS:
        for k in range(11):
            data = io.BytesIO()
            pixels = rng.integers(0, 256, (SIZE, SIZE + k, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data, "jpeg", quality=90)
            found[f"{colour}/{k:02}.jpg"] = data.getvalue()
    return found


def pixels_of(source: ImageDataset, chosen: Sequence[int]) -> list[bytes]:
    return [source.load(i).tobytes() for i in chosen]


@pytest.mark.parametrize("kind", PACKINGS)
def test_every_kind_has_the_same_images_in_the_same_order(kind: str, tmp_path: Path) -> None:
    files = images()
    source = open_dataset(PACKINGS[kind](tmp_path / "set", files))
    assert source.labels == [COLOURS.index(path.split("/")[0]) for path in files]
    expected = [Image.open(io.BytesIO(data)).tobytes() for data in files.values()]
    assert pixels_of(source, range(len(files))) == expected
    assert (source.name, source.notes, source.label_note) == ("set", (), None)
    assert source.class_names == (None if kind == "shards" else list(COLOURS))
    assert len(set(source.paths)) == len(files)
    for per_class, limit in ((3, None), (None, 17), (2, 5)):
        chosen = select(source, per_class, limit)
        first = select(open_dataset(in_folder(tmp_path / "plain", files)), per_class, limit)
        assert list(chosen) == list(first)
    again = open_dataset(str(tmp_path / "set" / "set.zip") if kind == "zip" else source_path(tmp_path, kind))
    assert again.fingerprint == source.fingerprint
    with ThreadPoolExecutor(8) as pool:
        order = [k for _ in range(3) for k in np.random.default_rng(0).permutation(len(files)).tolist()]
        assert list(pool.map(lambda k: source.load(k).tobytes(), order)) == [expected[k] for k in order]


def source_path(tmp_path: Path, kind: str) -> str:
    return str(tmp_path / "set" / "set.tar" if kind == "tar" else tmp_path / "set")


@pytest.mark.parametrize("kind", PACKINGS)
def test_one_damaged_image_is_named_and_the_others_are_read(kind: str, tmp_path: Path) -> None:
    files = images()
    files["green/04.jpg"] = files["green/04.jpg"][:300]
    source = open_dataset(PACKINGS[kind](tmp_path / "set", files))
    unreadable = {}
    for i, path in enumerate(source.paths):
        try:
            source.load(i)
        except UnreadableImage as error:
            unreadable[path] = str(error)
    assert list(unreadable.values()) == ["truncated"]
    name = {"shards": "set-3.tar/000015.jpg", "parquet": "row 15/green_04.jpg"}.get(kind, "green/04.jpg")
    assert next(iter(unreadable)).endswith(name)


@pytest.mark.parametrize("kind", PACKINGS)
def test_scores_are_the_same_to_the_bit(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    plain = in_folder(tmp_path / "plain", images())
    place = PACKINGS[kind](tmp_path / "set", images())
    found: list[list[dict[str, str]]] = []
    for path, cache in ((plain, "none"), (place, "none"), (place, "auto"), (place, "auto")):
        out = tmp_path / f"out{len(found)}"
        arguments = ["score", "-m", "tiny_vgg_10", "-d", path, "--resize", "32", "--crop", "32", "--cache", cache]
        assert cli.run([*arguments, "--per-class", "9", "--limit", "30", "--device", "cpu", "-o", str(out)]) == 0
        with (out / "purity.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) > 20
        # The names differ, and numbers without names are compared with the network's classes where names are not.
        found.append([{k: v for k, v in row.items() if k not in ("dataset", "top1", "top5")} for row in rows])
    assert found[0] == found[1] == found[2] == found[3]


SUITE = """
defaults: {model: tiny_vgg_10, resize: 32, crop: 32, batch_size: 4, device: cpu}
settings: [{per_class: 9, limit: 30}]
models: [tiny_vgg_10]
datasets:
"""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Every kind of the same images, one of which is cut off."""
    tmp_path = tmp_path_factory.mktemp("kinds")
    files = images()
    files["blue/04.jpg"] = files["blue/04.jpg"][:300]
    return {kind: make(tmp_path / kind, files) for kind, make in PACKINGS.items()}


@pytest.fixture(scope="module")
def whole(damaged: dict[str, str]) -> Result:
    return run.score(run.resolve(job_of(damaged["folder"])), workers=1)


def test_two_processes_give_every_kind_the_counts_of_one(damaged: dict[str, str], tmp_path: Path) -> None:
    # The tar and the zip are of one name and content, so that a suite would score them once.
    places = {**damaged, "zip": str(shutil.copy(damaged["zip"], tmp_path / "zipped.zip"))}
    (tmp_path / "suite.yaml").write_text(SUITE + "".join(f"  - '{place}'\n" for place in places.values()))
    ran = torchrun(2, "bench", "suite.yaml", "--output", "two", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = [store.read(path.parent) for path in sorted((tmp_path / "two").glob("*/states.safetensors"))]
    assert len(found) == len(PACKINGS)
    alone = run.score(run.resolve(job_of(damaged["folder"], per_class=9, limit=30)), workers=1)
    for result in found:
        assert_same(result, alone, places)


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_run_that_was_cut_short_goes_on_to_the_same_counts(
    kind: str, damaged: dict[str, str], whole: Result, tmp_path: Path
) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 12:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run.score(run.resolve(job_of(damaged[kind])), workers=1, folder=out, progress=stop)
    steps: list[int] = []
    resumed = run.score(
        run.resolve(job_of(damaged[kind])), workers=1, folder=out, progress=lambda done, _: steps.append(done)
    )
    assert steps[0] == 16, "it went on behind the first three blocks"
    assert_same(resumed, whole, damaged)


def job_of(place: str, **more: int) -> Job:
    return Job.of(model="tiny_vgg_10", dataset=place, resize=32, crop=32, batch_size=4, device="cpu", **more)


def assert_same(ours: Result, theirs: Result, damaged: dict[str, str]) -> None:
    assert ours.n_images == theirs.n_images == (29 if ours.job.limit else 43)
    assert len(ours.layers) == len(theirs.layers) > 1
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert np.array_equal(a.counts, b.counts)
    (skipped,) = ours.provenance["images_skipped"]
    kind = next(kind for kind, place in damaged.items() if place == ours.job.dataset)
    assert skipped["path"].endswith(
        {"shards": "set-0.tar/000004.jpg", "parquet": "blue_04.jpg"}.get(kind, "blue/04.jpg")
    )
    assert skipped["reason"] == "truncated"


# Zip


def test_zips_as_other_systems_pack_them(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("set\\b\\1.png", "set/a/2.png", "__MACOSX/set/a/._2.png", "set/a/.DS_Store", "set/a/Thumbs.db"):
            archive.writestr(zipfile.ZipInfo(name), png())
        link = zipfile.ZipInfo("set/a/3.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../b/1.png")
        archive.writestr("set/c/", "")
    source = open_dataset(str(tmp_path / "x.zip"))
    assert labelled(source) == {"set/a/2.png": 0, "set/a/3.png": 0, "set/b/1.png": 1}
    assert source.class_names == ["a", "b", "c"]
    assert source.notes == ("c in x holds no image that is read.",)
    with pytest.raises(UnreadableImage, match="a link or a special file"):
        source.load(list(source.paths).index("set/a/3.png"))


def test_damage_in_a_zip(tmp_path: Path) -> None:
    whole = Path(in_zip(tmp_path / "set", images())).read_bytes()
    cut = tmp_path / "cut.zip"
    for size in range(10, len(whole) - 30, len(whole) // 12):
        cut.write_bytes(whole[:size])
        with pytest.raises(PurityError, match=r"cut\.zip is damaged or truncated"):
            open_dataset(str(cut))
    broken = bytearray(whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        one = archive.getinfo("set/red/03.jpg")
    broken[one.header_offset + 60 : one.header_offset + 90] = bytes(30)
    cut.write_bytes(broken)
    source = open_dataset(str(cut))
    reasons = []
    for i, path in enumerate(source.paths):
        try:
            source.load(i)
        except UnreadableImage as error:
            reasons.append((path, str(error)))
    assert [path for path, _ in reasons] == ["set/red/03.jpg"]
    assert reasons[0][1].startswith("damaged in the zip")
    assert len(reasons[0][1]) < 150


def test_an_encrypted_zip_and_one_that_leads_out(tmp_path: Path) -> None:
    path = Path(in_zip(tmp_path / "set", {"a/1.jpg": png(), "b/2.jpg": png()}))
    data = bytearray(path.read_bytes())
    for start in (m.start() for m in re.finditer(b"PK\x01\x02", data)):
        data[start + 8] |= 1
    path.write_bytes(data)
    source = open_dataset(str(path))
    with pytest.raises(UnreadableImage, match="encrypted in the zip"):
        source.load(0)
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../1.png", png())
    with pytest.raises(PurityError, match="outside of its own folder"):
        open_dataset(str(tmp_path / "out.zip"))


# Shards


def test_a_slip_of_the_pen_names_no_endless_files() -> None:
    for pattern in ("val-{0..9999999999}.tar", "val-{0..9999}-{0..9999}.parquet"):
        with pytest.raises(PurityError, match=r"val-\{0.* names [\d,]+ files: give a smaller range\."):
            open_dataset(pattern)


@pytest.mark.parametrize("label", ["cls", "json"])
def test_shards_by_folder_pattern_and_braces(label: str, tmp_path: Path) -> None:
    path = in_shards(tmp_path / "set", images(), label=label)
    expected = open_dataset(path)
    assert [p.split("/")[0] for p in expected.paths[::5]] == [f"set-{k}.tar" for k in range(9)]  # 10 would be behind 1
    for name in (f"{path}/*.tar", f"{path}/set-{{0..8}}.tar", f"shards:{path}"):
        source = open_dataset(name)
        assert (source.labels, source.fingerprint, source.name) == (expected.labels, expected.fingerprint, "set")
    (tmp_path / "set" / "set-4.tar").unlink()
    with pytest.raises(PurityError, match=r"set-4\.tar is not there"):
        open_dataset(f"{path}/set-{{0..8}}.tar")
    one = open_dataset(f"{path}/set-3.tar")
    assert (one.name, one.labels) == ("set-3", expected.labels[15:20] if expected.labels else None)


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    path = in_shards(tmp_path / "set", images(), size=4)
    assert [p.split("/")[0] for p in open_dataset(path).paths[::4]] == [f"set-{k}.tar" for k in range(11)]


def test_shards_of_several_splits(tmp_path: Path) -> None:
    path = in_shards(tmp_path / "set", images(), size=40)
    os.rename(f"{path}/set-0.tar", f"{path}/imagenet1k-train-0000.tar")
    os.rename(f"{path}/set-1.tar", f"{path}/imagenet1k-validation-00.tar")
    assert (len(open_dataset(path)), open_dataset(path).name) == (4, "set")
    assert (len(open_dataset(path, split="train")), open_dataset(path, split="train").name) == (40, "set-train")
    assert len(open_dataset(f"{path}/imagenet1k-train-{{0000..0000}}.tar")) == 40
    with pytest.raises(PurityError, match=r"has no split 'val': it has validation, train\."):
        open_dataset(path, split="val")
    os.rename(f"{path}/imagenet1k-train-0000.tar", f"{path}/more.tar")
    with pytest.raises(PurityError, match=r"files of the splits validation, and more\.tar, which names none"):
        open_dataset(path)


def shard(path: Path, *contents: tuple[str, bytes]) -> str:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in contents:
            tar.addfile(member(name, data)[0], io.BytesIO(data))
    return str(path.parent)


def test_what_samples_hold(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "s" / "0.tar",
        ("d/a.jpg", png()), ("d/a.cls", b"\xef\xbb\xbf7\r\n\r\n"), ("d/a.json", b'{"label": 3}'),
        ("d/b.png", png()), ("d/b.json", b'{"caption": "x", "cls": 4}'), ("d/b.txt", b"words"),
        ("d/c.seg.png", png()), ("d/c.jpeg", png()), ("d/c.cls", b"0"),
        ("__MACOSX/e.jpg", png()), ("._d/x.jpg", png()), ("f.json", b'{"label": 1}'),
    )  # fmt: skip
    source = open_dataset(path)
    assert list(source.paths) == ["0.tar/d/a.jpg", "0.tar/d/b.png", "0.tar/d/c.jpeg"]
    assert (source.labels, source.class_names) == ([7, 4, 0], None)
    assert source.notes == ("Left out of s: 1 images of samples that have another one already.",)


def test_labels_that_are_names_or_missing(tmp_path: Path) -> None:
    samples = [(f"{k}.jpg", png()) for k in range(3)]
    named = shard(tmp_path / "a" / "0.tar", *samples, ("0.cls", b"cat"), ("1.cls", b"ant\n"), ("2.cls", b"cat"))
    source = open_dataset(named)
    assert (source.labels, source.class_names) == ([1, 0, 1], ["ant", "cat"])
    for k, bad in enumerate([b"-1", b"", b"\xff", None]):
        extra = [] if bad is None else [("1.cls", bad)]
        source = open_dataset(
            shard(tmp_path / f"b{k}{{}}" / "0.tar", *samples, ("0.cls", b"0"), ("2.cls", b"1"), *extra)
        )
        assert source.labels is None
        assert source.label_note == f"1 of the 3 images of b{k}{{}} have neither .cls nor .json with a label"
        assert len(source) == 3
    # A number alone, or what is no number, is nobody's label.
    for k, bad in enumerate([b"1", b"[1]", b'{"label": true}', b'{"label": [1]}', b'{"label": null}']):
        extra = [("0.cls", b"0"), ("1.json", bad), ("2.cls", b"1")]
        source = open_dataset(shard(tmp_path / f"c{k}" / "0.tar", *samples, *extra))
        assert (source.labels, len(source)) == (None, 3)
        assert source.label_note == f"1 of the 3 images of c{k} have neither .cls nor .json with a label"


def test_tars_that_are_no_shards(tmp_path: Path) -> None:
    """Annotations beside images in class folders are no labels of samples."""
    picture(tmp_path / "set" / "cat" / "1.png")
    picture(tmp_path / "set" / "dog" / "1.png")
    (tmp_path / "set" / "cat" / "1.json").write_text('{"boxes": [1, 2]}')
    path = pack(tmp_path / "set", tmp_path / "tars.tar")
    assert labelled(open_dataset(path)) == {"cat/1.png": 0, "dog/1.png": 1}
    (tmp_path / "place").mkdir()
    os.rename(path, tmp_path / "place" / "x.tar")
    with pytest.raises(PurityError, match=r"place holds no images: .* Left out in .*: 1 file .*\(1 \.tar\)"):
        open_dataset(str(tmp_path / "place"))
    assert len(open_dataset(f"shards:{tmp_path / 'place'}")) == 2


def test_shards_that_cannot_be_read(tmp_path: Path) -> None:
    path = Path(in_shards(tmp_path / "set", images()))
    whole = (path / "set-2.tar").read_bytes()
    (path / "set-2.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PurityError, match=r"set-2\.tar is damaged or truncated"):
        open_dataset(str(path))
    (path / "set-2.tar").unlink()
    import gzip

    (path / "set-2.tar.gz").write_bytes(gzip.compress(whole))
    with pytest.raises(PurityError, match=r"set-2\.tar\.gz is compressed, and shards are read in place"):
        open_dataset(str(path))
    (path / "set-2.tar.gz").unlink()
    source = open_dataset(str(path))
    (path / "set-1.tar").write_bytes(whole[:700])
    (path / "set-3.tar").unlink()
    with pytest.raises(UnreadableImage, match="the archive ends before it does"):
        source.load(9)
    with pytest.raises(UnreadableImage, match="No such file"):
        source.load(10)


# Parquet


def test_parquet_without_description(tmp_path: Path) -> None:
    files = images()
    expected = open_dataset(in_parquet(tmp_path / "described", files))
    plain = open_dataset(in_parquet(tmp_path / "plain", files, described=False))
    assert (plain.labels, plain.class_names) == (expected.labels, None)
    assert plain.fingerprint != expected.fingerprint
    path = in_parquet(tmp_path / "files", files)
    one = open_dataset(f"{path}/set-00001-of-00002.parquet")
    assert (len(one), one.class_names) == (14, list(COLOURS))
    assert open_dataset(f"{path}/*.parquet").fingerprint == open_dataset(path).fingerprint


def write(path: Path, columns: dict[str, Any], **options: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(pa.table(columns), path, **options)
    return str(path.parent)


def test_columns_of_other_names_and_types(tmp_path: Path) -> None:
    data, files = [png() for _ in range(4)], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    bare = open_dataset(write(tmp_path / "a" / "x.parquet", {"img": data, "class": ["b", "a", "b", "10"]}))
    assert (bare.labels, bare.class_names) == ([2, 1, 2, 0], ["10", "a", "b"])
    assert list(bare.paths) == [f"x.parquet/row {k}" for k in range(4)]
    assert bare.load(3).tobytes() == Image.open(io.BytesIO(data[3])).tobytes()
    structs = pa.array([{"bytes": data[0], "path": None}, {"bytes": None, "path": "far/away.jpg"}, None], files)
    coded = pa.array(["x", "y", "x"]).dictionary_encode()
    source = open_dataset(write(tmp_path / "b" / "x.parquet", {"image": structs, "label": coded, "mask": data[:3]}))
    assert (source.labels, source.class_names) == ([0, 1, 0], ["x", "y"])
    assert source.notes == (f"{tmp_path / 'b' / 'x.parquet'} has the columns image, mask for images: image is taken.",)
    assert list(source.paths) == ["x.parquet/row 0", "x.parquet/row 1/away.jpg", "x.parquet/row 2"]
    for i in (1, 2):
        with pytest.raises(UnreadableImage, match="its row holds no bytes"):
            source.load(i)
    test_split = open_dataset(write(tmp_path / "c" / "x.parquet", {"image": data, "label": [-1] * 4}))
    assert test_split.label_note == "4 of the 4 images of c have no label in column label"
    unlabelled = open_dataset(write(tmp_path / "d" / "x.parquet", {"image": data}))
    assert unlabelled.label_note == "4 of the 4 images of d have no column of labels"
    with pytest.raises(PurityError, match=r"has no column of images \(bytes, or bytes and path\): it has text"):
        open_dataset(write(tmp_path / "e" / "x.parquet", {"text": ["a"]}))


def test_numbers_beyond_the_names_that_are_stored_have_no_names(tmp_path: Path) -> None:
    about = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    described = {"huggingface": json.dumps({"info": {"features": about}})}
    for numbers, names in (([0, 1, 1], ["cat", "dog"]), ([0, 1, 2], None)):
        table = pa.table({"image": [png() for _ in numbers], "label": numbers}).replace_schema_metadata(described)
        parquet.write_table(table, tmp_path / "x.parquet")
        source = open_dataset(str(tmp_path))
        assert (source.labels, source.class_names) == (numbers, names)


def test_parquet_splits(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"):
        write(tmp_path / "data" / f"{name}.parquet", {"image": [png()], "label": [0]})
    source = open_dataset(str(tmp_path))
    assert list(source.paths) == ["data/validation-00000-of-00001.parquet/row 0"]
    assert len(open_dataset(str(tmp_path), split="train")) == 2


def test_damage_in_parquet(tmp_path: Path) -> None:
    path = Path(in_parquet(tmp_path / "set", images(), compression="snappy"))
    table = path / "set-00000-of-00002.parquet"
    whole = table.read_bytes()
    for bad in (whole[:-100], whole[:1000], b"", b"no parquet" * 20, whole[:-8] + b"\xff\xff\xff\x7fPAR1"):
        table.write_bytes(bad)
        with pytest.raises(PurityError, match=r"set-00000-of-00002\.parquet is (no parquet, or )?damaged") as caught:
            open_dataset(str(path))
        assert "\n" not in str(caught.value)
    place = parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(0).data_page_offset
    table.write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
    source = open_dataset(str(path))
    read, reasons = [], {}
    for i in (*range(len(source)), 8, 3):
        try:
            source.load(i)
            read.append(i)
        except UnreadableImage as error:
            reasons[i] = str(error)
    assert sorted(reasons) == list(range(7, 14))
    assert all(reason.startswith("row group 1 of its table is damaged (") for reason in reasons.values())
    assert read == [*range(7), *range(14, 44), 3]
    source = open_dataset(str(path))
    table.unlink()
    with pytest.raises(UnreadableImage, match="its table cannot be opened any more"):
        source.load(0)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = in_parquet(tmp_path / "set", images())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PurityError, match=r"pyarrow, which is not installed: run pip install 'purity-cli\[parquet\]'"):
        open_dataset(path)


def test_one_large_row_group_is_read_from_anywhere(tmp_path: Path) -> None:
    files = images()
    source = open_dataset(in_parquet(tmp_path / "set", files, row_group_size=1000, data_page_size=1 << 12))
    expected = [Image.open(io.BytesIO(data)).tobytes() for data in files.values()]
    for i in (43, 0, 29, 28, 31, 1, 43):
        assert source.load(i).tobytes() == expected[i]


# Memory


READ = """
import sys
from purity_cli.datasets import open_dataset
source = open_dataset(sys.argv[1])
for i in range(len(source)):
    source.load(i)
print(len(source), peak())
"""


@pytest.mark.parametrize("kind", PACKINGS)
def test_memory_does_not_follow_the_archive(kind: str, tmp_path: Path) -> None:
    """24 MB of images and 120 take the same: of neither more is kept than a few images, or those of a row group."""
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "bmp")
    peaks = []
    for count in (8, 40):
        names = [f"{COLOURS[4 * k // count]}/{k:02}.jpg" for k in range(count)]
        place = PACKINGS[kind](tmp_path / str(count), {name: data.getvalue() + name.encode() for name in names})
        assert sum(file.stat().st_size for file in (tmp_path / str(count)).rglob("*")) > 2.9e6 * count
        ran = subprocess.run([sys.executable, "-c", PEAK + READ, place], capture_output=True, text=True, check=True)
        read, peak = map(int, ran.stdout.split())
        assert read == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20, f"{peaks} MB"


# One entry each


def test_a_named_set_is_one_entry_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def opened(data_dir: str | None, split: str | None, download: bool) -> ImageDataset:
        pixels = np.random.default_rng(3).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        return ArrayImages("noise", [f"{i:02}" for i in range(20)], [i % 10 for i in range(20)], pixels=pixels)

    monkeypatch.setitem(KINDS, "noise", DatasetKind("noise", opened, "noise", 10, ("test",), "nothing but patience"))
    shown = CliRunner().invoke(command, ["--format", "json"]).output
    rows = {row["name"]: row for row in json.loads(shown)["datasets"]}
    assert rows["noise"]["needs"] == "nothing but patience"
    with pytest.raises(PurityError, match=r"Did you mean noise\?"):
        open_dataset("noize")
    monkeypatch.chdir(tmp_path)
    arguments = ["score", "-m", "tiny_vgg_10", "-d", "noise", "--resize", "32", "--crop", "32", "--device", "cpu"]
    assert cli.run([*arguments, "-o", "out"]) == 0
    assert (tmp_path / "out" / "purity.csv").is_file()
    assert "Traceback" not in capfd.readouterr().err
