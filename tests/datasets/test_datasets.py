"""Folders, tars, files of every kind, digits and CIFAR-10; torchvision's own readers are the oracle."""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder

from purity_cli.datasets import ImageDataset, UnreadableImage, open_dataset, path_of, select
from purity_cli.datasets.base import ArrayImages
from purity_cli.errors import PurityError

NOISE = np.random.default_rng(0)


def picture(path: Path) -> None:
    """A small picture of noise, of a kind that the suffix names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(NOISE.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(path)


def pack(folder: Path, tar: Path, mode: Any = "w") -> str:
    with tarfile.open(tar, mode) as archive:
        archive.add(folder, arcname=".")
    return str(tar)


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Class folders: names that sort differently by case, nested folders, a file that is no image."""
    root = tmp_path / "classes"
    for name in (
        "dog/2.png",
        "dog/10.PNG",
        "dog/deep/er/1.jpg",
        "Zebra/a.JPEG",
        "cat/x.webp",
        "cat/b.bmp",
        "cat/c.tiff",
    ):
        picture(root / name)
    (root / "cat" / "notes.txt").write_text("no image")
    return root


def by_torchvision(root: Path) -> dict[str, int]:
    return {str(Path(path).relative_to(root)): label for path, label in ImageFolder(str(root)).samples}


def labelled(source: ImageDataset) -> dict[str, int]:
    assert source.labels is not None
    return dict(zip(source.paths, source.labels, strict=True))


def reason_of(source: ImageDataset, path: str) -> str:
    with pytest.raises(UnreadableImage) as caught:
        source.load(list(source.paths).index(path))
    return str(caught.value)


# Folders and tars


def test_class_folders_are_torchvisions(classes: Path) -> None:
    source, theirs = open_dataset(str(classes)), ImageFolder(str(classes))
    assert labelled(source) == by_torchvision(classes)
    assert source.class_names == theirs.classes == ["Zebra", "cat", "dog"]
    assert list(source.paths) == sorted(source.paths)
    pixels = {str(Path(path).relative_to(classes)): theirs.loader(path) for path, _ in theirs.samples}
    for i, path in enumerate(source.paths):
        assert source.load(i).mode == "RGB"
        assert source.load(i).tobytes() == pixels[path].tobytes()
    assert (source.name, source.label_note, len(source)) == ("classes", None, 7)


names = st.builds("{}{}z".format, st.sampled_from("aB0_-é"), st.text("B0_-. ", max_size=2))
trees = st.dictionaries(names, st.sets(st.lists(names, min_size=1, max_size=3).map(tuple), min_size=1), min_size=2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(tree=trees, mode=st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
def test_any_class_folders_and_any_tar_of_them(tree: dict[str, set[tuple[str, ...]]], mode: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "root")
        for name, files in tree.items():
            for parts in files:
                path = root.joinpath(name, *parts[:-1], f"{parts[-1]}.png")
                if not any(parent.is_file() for parent in path.parents) and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(bytes(len(parts[-1])))
        source, packed = open_dataset(str(root)), open_dataset(pack(root, Path(place, "root.tar"), mode))
        assert labelled(source) == by_torchvision(root)
        assert list(source.paths) == sorted(source.paths, key=os.fsencode)
        assert (packed.paths, packed.labels, packed.class_names) == (source.paths, source.labels, source.class_names)
        assert packed.fingerprint == source.fingerprint
        assert packed.name == source.name == "root"


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "C.JPG", ".hidden.png", "._a.jpg"):
        picture(tmp_path / "flat" / name)
    (tmp_path / "flat" / "a.txt").touch()
    for path in (str(tmp_path / "flat"), f"folder:{tmp_path / 'flat'}", pack(tmp_path / "flat", tmp_path / "flat.tar")):
        source = open_dataset(path)
        assert list(source.paths) == ["C.JPG", "a.jpg", "b.png"]
        assert (source.labels, source.class_names, source.label_note) == (None, None, "flat has no class folders")
        assert source.load(1).size == (4, 5)


def test_the_working_directory(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(classes)
    assert (open_dataset(".").name, open_dataset("./cat/").name) == ("classes", "cat")
    (classes / "digits").mkdir()
    picture(classes / "digits" / "one.png")
    assert len(open_dataset("digits")) == 540
    assert len(open_dataset("folder:digits")) == 1
    monkeypatch.setenv("HOME", str(classes.parent))
    assert open_dataset("~/classes").paths == open_dataset("folder:~/classes").paths == open_dataset(".").paths


def test_an_empty_class_folder_keeps_the_others_numbers(classes: Path) -> None:
    (classes / "bird").mkdir()
    for path in (str(classes), pack(classes, classes.parent / "classes.tar")):
        source = open_dataset(path)
        assert source.class_names == ["Zebra", "bird", "cat", "dog"]
        assert labelled(source) == {
            str(Path(path).relative_to(classes)): label
            for path, label in ImageFolder(str(classes), allow_empty=True).samples
        }


def test_each_folder_is_listed_once(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: dict[str, int] = defaultdict(int)
    scandir = os.scandir

    def counting(path: Any) -> Any:
        listed[os.path.normpath(path)] += 1
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    open_dataset(str(classes))
    # The way to the first image is looked at before, to see what kind of data set it is.
    assert {Path(path).name: count for path, count in listed.items() if count > 1} == {"classes": 3, "Zebra": 3}
    assert len(listed) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_splits(tmp_path: Path, packed: bool) -> None:
    for name in ("train/a/1.png", "train/b/2.png", "Val/a/3.png", "test/b/4.png", "test/a/5.png"):
        picture(tmp_path / "set" / name)
    path = pack(tmp_path / "set", tmp_path / "set.tgz", "w:gz") if packed else str(tmp_path / "set")
    assert labelled(open_dataset(path)) == {"test/a/5.png": 0, "test/b/4.png": 1}
    assert labelled(open_dataset(path, split="train")) == {"train/a/1.png": 0, "train/b/2.png": 1}
    assert "all images of set-val are in one folder, a" in str(open_dataset(path, split="val").label_note)
    given = [open_dataset(path, split=split).name for split in (None, "test", "val", "train")]
    assert given == ["set", "set", "set-val", "set-train"]
    picture(tmp_path / "set" / "extra" / "a" / "6.png")  # several splits stay splits beside another folder
    assert labelled(open_dataset(str(tmp_path / "set"))) == {"test/a/5.png": 0, "test/b/4.png": 1}
    with pytest.raises(PurityError, match=r"no split 'dev': it has test, val, train\."):
        open_dataset(path, split="dev")


def test_folders_like_splits_of_other_names_are_said(tmp_path: Path) -> None:
    for name in ("Training/a/1.png", "Training/b/2.png", "Testing/a/3.png", "Testing/b/4.png"):
        picture(tmp_path / "mri" / name)
    (note,) = open_dataset(str(tmp_path / "mri")).notes
    assert "Testing and Training in" in note
    assert "each holds the same folders (a and b): if they are splits, give the path of one of them." in note
    picture(tmp_path / "mri" / "Testing" / "c" / "5.png")
    assert not open_dataset(str(tmp_path / "mri")).notes
    for name in ("cat/front/1.png", "dog/front/2.png"):
        picture(tmp_path / "animals" / name)
    assert not open_dataset(str(tmp_path / "animals")).notes


def test_train_and_valid(tmp_path: Path) -> None:
    for name in ("Train/a/1.png", "Train/b/2.png", "Valid/a/3.png", "Valid/b/4.png"):
        picture(tmp_path / name)
    assert labelled(open_dataset(str(tmp_path))) == {"Valid/a/3.png": 0, "Valid/b/4.png": 1}


def test_the_default_split(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.png")
    with pytest.raises(PurityError, match="has only train, and neither test nor val: pass --split train"):
        open_dataset(str(tmp_path))
    picture(tmp_path / "validation" / "b.png")
    picture(tmp_path / "cover.png")
    assert list(open_dataset(str(tmp_path)).paths) == ["validation/b.png"]
    with pytest.raises(PurityError, match="Did you mean validation"):
        open_dataset(str(tmp_path), split="valdation")


def test_a_class_named_train_is_no_split(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        picture(tmp_path / name / "1.png")
    assert open_dataset(str(tmp_path)).class_names == ["bus", "car", "train"]
    with pytest.raises(PurityError, match="not divided into split folders"):
        open_dataset(str(tmp_path), split="train")


def test_a_wrapping_folder_is_looked_into(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "data" / "test" / "a" / "1.png")
    picture(tmp_path / "set" / "data" / "train" / "a" / "2.png")
    inner = open_dataset(str(tmp_path / "set" / "data"))
    for path in (str(tmp_path / "set"), pack(tmp_path / "set", tmp_path / "set.tar")):
        source = open_dataset(path)
        assert list(source.paths) == ["data/test/a/1.png"]
        assert source.fingerprint == inner.fingerprint


def test_the_fingerprint_sees_what_decides(classes: Path) -> None:
    seen = {open_dataset(str(classes)).fingerprint}
    assert seen == {open_dataset(str(classes)).fingerprint}
    with (classes / "cat" / "b.bmp").open("ab") as file:
        file.write(b"\0")
    seen.add(open_dataset(str(classes)).fingerprint)
    (classes / "cat" / "b.bmp").rename(classes / "cat" / "d.bmp")
    seen.add(open_dataset(str(classes)).fingerprint)
    (classes / "aardvark").mkdir()
    seen.add(open_dataset(str(classes)).fingerprint)
    assert len(seen) == 4


def test_links_on_disk_are_followed(classes: Path, tmp_path: Path) -> None:
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "dog").symlink_to(classes / "dog")
    (farm / "cat").mkdir()
    (farm / "cat" / "b.bmp").symlink_to(classes / "cat" / "b.bmp")
    assert labelled(open_dataset(str(farm))) == by_torchvision(farm)
    (farm / "cat" / "gone.png").symlink_to(classes / "gone.png")
    os.mkfifo(farm / "cat" / "pipe.png")
    source = open_dataset(str(farm))
    reasons = {path: reason_of(source, path) for path in ("cat/gone.png", "cat/pipe.png")}
    assert reasons == {"cat/gone.png": "a link to a file that is not there", "cat/pipe.png": "not a regular file"}
    (farm / "cat" / "up").symlink_to(farm)
    with pytest.raises(PurityError, match="The link cat/up .* leads back"):
        open_dataset(str(farm))


# Tars


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def make_tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> str:
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def png() -> bytes:
    data = io.BytesIO()
    Image.fromarray(NOISE.integers(0, 256, (5, 4, 3), dtype=np.uint8)).save(data, "png")
    return data.getvalue()


def test_hard_links_in_a_tar_are_files_and_symbolic_links_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    path = make_tar(
        tmp_path / "x.tar",
        member("a/1.png", png()),
        member("a/2.png", type=tarfile.SYMTYPE, linkname="../../secret.png"),
        member("a/3.png", type=tarfile.LNKTYPE, linkname="a/1.png"),
        member("b", type=tarfile.SYMTYPE, linkname="a"),
        member("blobs/one", png()),
        member("./c/4.png", type=tarfile.LNKTYPE, linkname="./blobs/one"),
        member("c/5.png", type=tarfile.LNKTYPE, linkname="../../secret.png"),
        member("c/6.png", type=tarfile.LNKTYPE, linkname="c/4.png"),
    )
    source = open_dataset(path)
    assert labelled(source) == {"a/1.png": 0, "a/2.png": 0, "a/3.png": 0, "c/4.png": 2, "c/5.png": 2, "c/6.png": 2}
    assert reason_of(source, "a/2.png") == reason_of(source, "c/5.png") == "a link or a special file in an archive"
    contents = [source.load(i).tobytes() for i in (0, 2, 3, 5)]
    assert contents[0] == contents[1] != contents[2] == contents[3]


@pytest.mark.parametrize("name", ["../1.png", "/etc/1.png", "a/../../1.png", ".."])
def test_members_outside_of_the_tar_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PurityError, match="outside of its own folder"):
        open_dataset(make_tar(tmp_path / "x.tar", member("a/1.png", png()), member(name, png())))


@pytest.mark.parametrize("kind", ["tar", "zip", "shards"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_several_members_of_a_name_counts(kind: str, tmp_path: Path) -> None:
    """As where an archive was added to: the newest is what unpacking it leaves."""
    contents, path = [png(), png(), png()], tmp_path / f"x.{'zip' if kind == 'zip' else 'tar'}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for content in contents:
                archive.writestr("1.png", content)
    else:
        labels = [member("1.cls", b"7"), member("1.cls", b"3")] if kind == "shards" else []
        make_tar(path, *labels, *map(member, ("./1.png", "1.png", "1.png"), contents))
    source = open_dataset(str(path))
    assert [Path(path).name for path in source.paths] == ["1.png"]
    assert source.load(0).tobytes() == Image.open(io.BytesIO(contents[2])).tobytes()
    assert source.labels == ([3] if kind == "shards" else None)


TINY = "".join(f"val_{k}.png\t{wnid}\t0\t0\t31\t31\n" for k, wnid in enumerate(["n02", "n01", "n02", "n01"]))
METADATA: dict[str, tuple[dict[str, str], list[str], list[int] | None]] = {
    "tiny-imagenet": ({"val_annotations.txt": TINY}, [f"images/val_{k}.png" for k in range(4)], [1, 0, 1, 0]),
    "csv": (
        {"metadata.csv": "file_name,label\npart0/1.png,cat\npart0/2.png,ant\npart1/3.png,cat\n"},
        ["part0/1.png", "part0/2.png", "part1/3.png"],
        [1, 0, 1],
    ),
    "csv with numbers, deeper": (
        {"metadata.csv": "\ufefffile_name,text,label\r\ndata/p/1.png,a,5\r\ndata/p/2.png,b,0\r\n"},
        ["data/p/1.png", "data/p/2.png"],
        [5, 0],
    ),
    "jsonl in each part": (
        {
            "part0/metadata.jsonl": '{"file_name": "1.png", "label": 1}\n',
            "part1/metadata.jsonl": '{"file_name": "1.png", "label": 0}\n',
        },
        ["part0/1.png", "part1/1.png"],
        [1, 0],
    ),
    "no labels": ({"metadata.csv": "file_name,text\na/1.png,hi\nb/2.png,ho\n"}, ["a/1.png", "b/2.png"], None),
    "one image is not named": ({"metadata.csv": "file_name,label\na/1.png,cat\n"}, ["a/1.png", "b/2.png"], None),
    "another file of that name": ({"metadata.csv": "width,height\n3,4\n"}, ["a/1.png", "b/2.png"], [0, 1]),
    "one folder": ({}, ["images/1.png", "images/2.png"], None),
    "one folder of images": ({"labels/1.txt": "0 0 0 1 1"}, ["images/1.png", "images/2.png"], None),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", METADATA)
def test_a_folder_that_is_no_class_is_not_taken_for_one(case: str, packed: bool, tmp_path: Path) -> None:
    texts, paths, labels = METADATA[case]
    for path, text in texts.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / path).write_text(text)
    for path in paths:
        picture(tmp_path / "set" / path)
    source = open_dataset(pack(tmp_path / "set", tmp_path / "x.tar") if packed else str(tmp_path / "set"))
    assert (source.paths, source.labels) == (paths, labels)
    if labels is None:
        with pytest.raises(PurityError, match="--per-class needs labels, but"):
            select(source, per_class=1)


def test_a_damaged_list_of_labels_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    for name, text in (("metadata.jsonl", '{"file_name": "a/1.png"\n'), ("val_annotations.txt", "a/1.png\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(PurityError, match=f"Cannot read labels from {name}"):
            open_dataset(str(tmp_path))
        (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("digits", ("", None)),
        ("photos", ("", "photos")),
        ("folder:photos", ("folder:", "photos")),
        ("shards:a/x-{0..3}.tar", ("shards:", "a/x-{0..3}.tar")),
        ("parquet:a/b.parquet", ("parquet:", "a/b.parquet")),
        ("digits:1", ("", "digits:1")),
        ("c:photos", ("", "c:photos")),
    ],
)
def test_the_part_of_a_name_that_is_a_path(name: str, expected: tuple[str, str | None]) -> None:
    assert path_of(name) == expected


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_truncated_tars(tmp_path: Path, mode: str) -> None:
    for k in range(6):
        picture(tmp_path / "set" / f"{k}.png")
    whole = Path(pack(tmp_path / "set", tmp_path / "whole.tar", mode)).read_bytes()
    for size in range(10, len(whole) - 10240 if mode == "w" else len(whole) - 8, 97):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        with pytest.raises(PurityError, match=r"damaged or truncated|neither a folder nor a tar"):
            open_dataset(str(tmp_path / "cut.tar"))


def test_a_tar_cut_between_members_and_one_with_a_broken_header(tmp_path: Path) -> None:
    path = Path(make_tar(tmp_path / "{x}.tar", *(member(f"{k}.png", png()) for k in range(4))))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2].offset
    whole = path.read_bytes()
    path.write_bytes(whole[:third])
    with pytest.raises(PurityError, match=r"damaged or truncated .no readable header after 1\.png"):
        open_dataset(str(path))
    path.write_bytes(whole[:third] + b"x" + whole[third + 1 :])
    with pytest.raises(PurityError, match=r"damaged or truncated .no readable header after 1\.png"):
        open_dataset(str(path))


def test_a_tar_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", member("1.png", png()))
    source = open_dataset(path)
    os.truncate(path, 520)
    assert reason_of(source, "1.png") == "the archive ends before it does"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device here that is always full")
def test_a_full_disk(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(classes, classes.parent / "classes.tar.xz", "w:xz")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "wb+"))  # noqa: SIM115
    with pytest.raises(PurityError, match="No space left on device.* set TMPDIR"):
        open_dataset(path)


def test_threads_read_one_tar_at_once(tmp_path: Path) -> None:
    for k in range(40):
        picture(tmp_path / "set" / f"{k:02}.png")
    source = open_dataset(pack(tmp_path / "set", tmp_path / "set.tar.gz", "w:gz"))
    order = [k for _ in range(8) for k in NOISE.permutation(40).tolist()]
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda k: source.load(k).tobytes(), order))
    with Image.open(tmp_path / "set" / "07.png") as known:
        assert source.load(7).tobytes() == known.tobytes()
    assert read == [source.load(k).tobytes() for k in order]


# Errors of place


def test_places_that_hold_no_images(tmp_path: Path) -> None:
    empty, text, photo, garbage = (tmp_path / name for name in ("empty", "a.txt", "photo.png", "garbage.tar.gz"))
    empty.mkdir()
    (empty / "class").mkdir()
    text.write_text("words, " * 1000)
    picture(photo)
    garbage.write_bytes(b"\x1f\x8b" + bytes(100))
    (tmp_path / "zero.tar").touch()
    for path, expected in {
        empty: r"empty holds no images: files that end in \.jpg, \.png, .* PIL reads are looked for\.$",
        text: "a.txt is neither a folder nor a tar",
        photo: "photo.png is a single image: give the folder that it is in",
        garbage: "garbage.tar.gz is damaged or truncated",
        tmp_path / "zero.tar": "zero.tar is neither a folder nor a tar",
        Path(make_tar(tmp_path / "none.tar")): "none.tar holds no images",
    }.items():
        with pytest.raises(PurityError, match=expected) as caught:
            open_dataset(str(path))
        assert str(caught.value).count("\n") == 0
    with pytest.raises(PurityError, match=r"missing is not there: give a folder"):
        open_dataset("folder:missing")


def test_images_beside_class_folders_are_ambiguous(classes: Path) -> None:
    picture(classes / "cover.png")
    with pytest.raises(PurityError, match=r"class folders and 1 images beside them, the first cover\.png"):
        open_dataset(str(classes))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagnet", r"No data set 'imagnet', and no such file or folder: .* Did you mean imagenet\?"),
        ("CIFAR10", r"Did you mean cifar10 or cifar10-sample\?"),
        ("flder:x", r"Did you mean folder\?"),
        ("photos/summer", r"No data set 'photos/summer', and no such file or folder: see `purity datasets`\.$"),
        ("", "No data set ''"),
        ("x" * 5000, "No data set"),
        ("folder", "No data set 'folder'"),
        ("folder:", "needs a path behind it"),
    ],
)
def test_unknown_names(name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PurityError, match=expected):
        open_dataset(name)


def test_what_does_not_go_together(classes: Path) -> None:
    with pytest.raises(PurityError, match="itself the place of the images: leave out --data-dir"):
        open_dataset(str(classes), data_dir="elsewhere")
    with pytest.raises(PurityError, match="digits comes with this package: leave out --data-dir"):
        open_dataset("digits", data_dir="elsewhere")
    for name in ("imagenet", "cifar10"):
        with pytest.raises(PurityError, match=f"{name} needs --data-dir"):
            open_dataset(name)


def test_a_folder_that_may_not_be_listed(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root, as whom tests may run, may list everything
    with pytest.raises(PurityError, match=r"Cannot list .*classes/dog \(Permission denied\)"):
        open_dataset(str(classes))


# select


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 4), min_size=1), st.none() | st.integers(1, 5), st.none() | st.integers(1, 30))
def test_select_takes_the_first_of_each_class(labels: list[int], per_class: int | None, limit: int | None) -> None:
    paths = [f"{i:03}" for i in range(len(labels))]
    source = ArrayImages(
        "x", paths, labels, class_names=list("abcde"), pixels=np.zeros((len(labels), 1, 1, 3), np.uint8)
    )
    wanted = [
        i
        for k in range(5)
        for i in [i for i, label in enumerate(labels) if label == k][: per_class or len(labels)]
    ]  # fmt: skip
    assert list(select(source, per_class, limit)) == sorted(wanted)[:limit]


def test_select_without_labels(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "1.png")
    source = open_dataset(str(tmp_path / "set"))
    assert list(select(source, None, 5)) == [0]
    with pytest.raises(PurityError, match="--per-class needs labels, but set has no class folders: leave it out"):
        select(source, 1, None)


# Real images


def test_the_cifar_archive(shared: Path) -> None:
    path = shared / "data" / "cifar10-jpeg.tar.xz"
    source = open_dataset(str(path))
    assert (source.name, len(source), source.paths[0]) == ("cifar10-jpeg", 10000, "test/airplane/0000.jpg")
    assert source.class_names == [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    assert list(np.bincount(source.labels)) == [1000] * 10  # type: ignore[arg-type]
    with tarfile.open(path) as tar:
        first = next(info for info in tar if info.name.removeprefix("./") == "test/airplane/0000.jpg")
        theirs = Image.open(tar.extractfile(first)).convert("RGB")  # type: ignore[arg-type]
    assert source.load(0).tobytes() == theirs.tobytes()
    assert source.load(9999).size == (32, 32)
