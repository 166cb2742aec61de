"""Classes: their order, their fit with a network's, accuracies at chance; and which files are images."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from purity_cli import cli
from purity_cli.datasets import chance_note, class_names, limit_note, match_labels, open_dataset, select
from purity_cli.datasets.base import ArrayImages
from purity_cli.datasets.decoding import ENDINGS, FORMATS, UnreadableImage, maybe_images
from purity_cli.datasets.labels import in_order
from purity_cli.errors import PurityError
from purity_cli.imagenet import wnids
from tests.datasets.test_datasets import labelled, pack, picture


def made(labels: Sequence[int] | None, names: Sequence[str] | None) -> ArrayImages:
    n = len(labels or "1")
    paths, pixels = [f"{i:04}" for i in range(n)], np.zeros((n, 1, 1, 3), np.uint8)
    return ArrayImages("set", paths, labels, None if labels else "set has no labels", names, pixels=pixels)


# Order


@pytest.mark.parametrize("packed", ["folder", "tar", "zip"])
def test_numbered_folders_are_in_the_order_of_their_numbers(packed: str, tmp_path: Path) -> None:
    for k in range(1, 12):
        picture(tmp_path / "set" / str(k) / "x.png")
    path = tmp_path / "set" if packed == "folder" else tmp_path / f"set.{packed}"
    if packed == "tar":
        pack(tmp_path / "set", path)
    if packed == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "set").rglob("*.png")):
                archive.write(file, file.relative_to(tmp_path / "set"))
    source = open_dataset(str(path))
    assert labelled(source) == {f"{k}/x.png": k - 1 for k in range(1, 12)}
    assert list(source.paths) == sorted(source.paths)
    assert source.class_names == [str(k) for k in range(1, 12)]
    assert source.order == "classes in the order of their numbers"
    (note,) = source.notes
    assert "are taken in the order of these (1, 2, 3, ...), not of text (1, 10, 11, ...): a network" in note


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (["0001", "0010", "0002"], ["0001", "0002", "0010"], ""),
        (["10", "9", "100"], ["9", "10", "100"], "numbers"),
        (["10", "9", "a"], ["10", "9", "a"], "in the order of text (10, 9, a), as torchvision"),
        (["class10", "class9"], ["class10", "class9"], "in the order of text (class10, class9), as torchvision"),
        (["b", "a", "C"], ["C", "a", "b"], ""),
        (["n02", "n01"], ["n01", "n02"], ""),
        (["²", "10"], ["10", "²"], ""),
        (["1", "01", "2"], ["01", "1", "2"], ""),
    ],
)
def test_the_order_of_names(names: list[str], expected: list[str], said: str) -> None:
    order = in_order(names, "set")
    assert order.names == expected
    assert bool(order.note) == bool(said)
    assert said in (order.note or "")


def test_empty_folders_are_named_and_keep_their_numbers(tmp_path: Path) -> None:
    for name in ("ant", "cat"):
        picture(tmp_path / "set" / name / "1.png")
    for name in ("bee", "dog"):
        (tmp_path / "set" / name).mkdir()
    source = open_dataset(str(tmp_path / "set"))
    assert labelled(source) == {"ant/1.png": 0, "cat/1.png": 2}
    assert source.notes == ("bee and dog in set hold no images that are read.",)


# Fit


def fitted(
    labels: Sequence[int], names: Sequence[str] | None, classes: int, known: Sequence[str] | None = None
) -> tuple[list[int] | None, str]:
    """The labels that result, None where there are none, and what is said."""
    source = made(labels, names)
    fit = match_labels(source, "net", classes, known)
    assert fit.source.fingerprint == source.fingerprint
    assert source.labels == labels
    if fit.note is None and fit.source.class_names is not None:
        assert len(fit.source.class_names) == classes
    return (list(fit.source.labels or ()), " ".join(fit.said)) if fit.note is None else (None, fit.note)


DIGITS = [str(k) for k in range(10)]


def test_classes_that_agree() -> None:
    assert fitted([0, 1, 2], ["a", "b", "c"], 3) == ([0, 1, 2], "")
    assert fitted([0, 2], ["a", "b", "c"], 3) == ([0, 2], "")
    assert fitted([0, 2], ["a", "b", "c"], 3, ["A", "b", "c"]) == ([0, 2], "")
    assert fitted([3, 9], DIGITS, 10, DIGITS) == ([3, 9], "")
    assert fitted([3, 9], DIGITS, 10, [f"word {k}" for k in range(10)]) == ([3, 9], "")


def test_classes_that_do_not() -> None:
    animals = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibex", "jay"]
    labels, why = fitted(list(range(10)), animals, 10, DIGITS)
    assert (labels, why) == (
        None,
        "set has the class 'ant' and net knows no such class: its 10 classes are 0, 1, 2, ...",
    )
    assert fitted([0, 1], ["a", "b"], 10) == (None, "set has 2 classes and net 10")
    assert fitted([0, 2], ["a", "b", "c"], 10) == (None, "set has 3 classes (b without any image) and net 10")
    _, why = fitted([0, 1], ["crane", "ox"], 3, ["crane", "ox", "crane"])
    assert why.endswith("net has several of this name: its 3 classes are crane, ox, crane")
    unlabelled = made(None, None)
    assert match_labels(unlabelled, "net", 10).note == "set has no labels"
    assert match_labels(made([0], ["a"]), "net", None).note == "net has no classes"


def test_classes_in_another_order_are_found_by_name() -> None:
    labels, said = fitted([0, 1, 2], ["big_dog", "cat", "ox"], 3, ["Cat", "ox", "Big Dog"])
    assert labels == [2, 0, 1]
    assert said == "The classes of set were matched with those of net by their names, not by their order."
    labels, said = fitted([0, 1, 1], ["ox", "cat"], 3, ["cat", "dog", "ox"])
    assert labels == [2, 0, 0]
    assert said == "set has 2 of net's 3 classes, found by their names: top-1 is that among all 3."


def test_an_empty_class_gets_in_nobodys_way() -> None:
    labels, said = fitted([0, 2, 3], ["a", "b", "c", "d"], 3)
    assert (labels, said) == ([0, 1, 2], "b in set, without images, is no class of net, which has 3.")
    assert fitted([0, 2], ["a", "b", "c"], 2, ["c", "a"])[0] == [1, 0]


@pytest.mark.parametrize("known", [True, False])
def test_wordnet_ids_are_imagenets_classes(known: bool) -> None:
    """As in ImageNet-R, -A and -Sketch; the place of an id is that among all of them, sorted."""
    every = sorted(wnids())
    some = [every[k] for k in (3, 200, 201, 999)]
    labels, said = fitted([0, 1, 2, 3, 3], some, 1000, class_names("imagenet") if known else None)
    assert labels == [3, 200, 201, 999, 999]
    assert said == "set has 4 of net's 1,000 classes, found by their names: top-1 is that among all 1,000."
    assert fitted([0, 1], [*some[:1], "n00007846"], 1000)[0] is None
    assert fitted([0, 1], some[:2], 10)[0] is None
    assert fitted([0, 1], some[:2], 2)[0] == [0, 1]
    names = class_names("imagenet")
    assert names is not None
    words = [name[10:] for name in names]
    assert words[134] == words[517] == "crane"
    assert fitted(list(range(1000)), words, 1000, names) == (list(range(1000)), "")
    assert fitted([0, 1], ["tench, Tinca tinca", "toilet tissue, toilet paper"], 1000, names)[0] == [0, 999]


@pytest.mark.parametrize(
    ("numbers", "classes", "expected"),
    [
        ([0, 5, 999], 1000, [0, 5, 999]),
        ([1, 5, 10], 10, [0, 4, 9]),
        ([1, 5, 9], 10, None),  # from 0 or from 1: nobody knows
        ([0, 5, 10], 10, None),
        ([5, 11], 10, None),
    ],
)
def test_numbered_folders_of_some_classes(numbers: list[int], classes: int, expected: list[int] | None) -> None:
    labels, said = fitted(list(range(len(numbers))), [str(k) for k in numbers], classes)
    assert labels == expected
    assert said


def test_numbers_beside_numbers_are_names() -> None:
    """Whether they begin at 0 or 1 is known, then; beside words they say nothing but their place."""
    said = "set has 2 of net's 10 classes, found by their names: top-1 is that among all 10."
    assert fitted([0, 1], ["5", "7"], 10, DIGITS) == ([5, 7], said)
    words = [f"word {k}" for k in range(10)]
    assert fitted([0, 1], ["5", "10"], 10, words)[0] == [4, 9]
    labels, why = fitted([0, 1], ["5", "7"], 10, words)
    assert (labels, why) == (None, "set has 2 classes and net 10; whether its numbers begin at 0 or 1 cannot be told")


def test_a_number_that_is_written_in_two_ways_is_no_class() -> None:
    assert fitted([0, 1], ["0", "00"], 10) == (None, "set has 2 classes and net 10")
    assert fitted([0, 1, 2], ["10", "1", "01"], 10) == (None, "set has 3 classes and net 10")


def test_numbers_without_names() -> None:
    assert fitted([0, 9], None, 10) == ([0, 9], "")
    said = "The labels of set go up to 4 and are taken for numbers of net's 10 classes."
    assert fitted([0, 4], None, 10) == ([0, 4], said)
    assert fitted([0, 10], None, 10) == (None, "the labels of set go up to 10 and net has 10 classes")


def test_another_ten_classes_on_a_digits_network(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"):
        picture(tmp_path / "set" / name / "1.png")
    arguments = ["score", "-m", "tiny_vgg_10", "--resize", "32", "--crop", "32", "--device", "cpu"]
    assert cli.run([*arguments, "-d", str(tmp_path / "set"), "-o", str(tmp_path / "out")]) == 0
    assert "No accuracy: set has the class 'airplane' and tiny_vgg_10 knows no such class" in capfd.readouterr().err


# Chance and limits


@given(st.integers(2, 1000), st.integers(10, 50_000), st.floats(0, 1))
def test_chance(classes: int, n: int, share: float) -> None:
    top1 = 100 * round(share * n) / n
    above = (top1 / 100 - 1 / classes) / math.sqrt((1 / classes) * (1 - 1 / classes) / n)
    if abs(above - 2) > 1e-6:
        assert bool(chance_note(top1, n, classes, None)) == (above < 2)


def test_what_chance_says() -> None:
    said = chance_note(15.0, 100, 10, "classes in the order of their names")
    assert said is not None
    assert said.startswith(
        "Top-1 15.00 % of 100 images is no better than chance (10 %): the labels (classes in the order"
    )
    assert chance_note(82.0, 100, 10, None) is None
    assert chance_note(0.0, 9, 10, None) is None
    assert chance_note(100.0, 100, 1, None) is None
    assert "(0.1 %)" in (chance_note(0.0, 10_000, 1000, None) or "")


def test_a_limit_that_sees_some_classes_only() -> None:
    source = made([0, 0, 1, 1, 2], ["a", "b", "c", "d"])
    for limit, expected in ((1, "1 of its 3"), (3, "2 of its 3"), (5, None), (None, None)):
        said = limit_note(source, select(source, None, limit), limit)
        assert (expected in (said or "")) if expected else said is None
    said = limit_note(source, select(source, 1, 2), 2)
    assert said is not None
    assert said.startswith("--limit 2 takes the first images of set, and with them 2 of its 3 classes: use --per-class")
    assert limit_note(source, select(source, 1, 3), 3) is None
    assert limit_note(made(None, None), range(1), 1) is None


# Endings


SAVED = {
    ".png": "PNG", ".gif": "GIF", ".jfif": "JPEG", ".jpe": "JPEG", ".JPG": "JPEG", ".webp": "WEBP", ".bmp": "BMP",
    ".tif": "TIFF", ".ppm": "PPM", ".pnm": "PPM", ".tga": "TGA", ".pcx": "PCX", ".jp2": "JPEG2000", ".dib": "DIB",
    ".sgi": "SGI", ".apng": "PNG", ".dds": "DDS", ".qoi": "QOI", ".avif": "AVIF",
}  # fmt: skip


def test_all_that_pil_reads_is_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 12, 3), dtype=np.uint8)
    saved = {k: v for k, v in SAVED.items() if v != "AVIF" or features.check("avif")}
    for ending, kind in saved.items():
        Image.fromarray(pixels).save(tmp_path / f"x{ending}", kind)
    source = open_dataset(str(tmp_path))
    assert {Path(path).suffix for path in source.paths} == set(saved)
    assert source.notes == ()
    for i, path in enumerate(source.paths):
        with Image.open(tmp_path / path) as theirs:
            assert source.load(i).tobytes() == theirs.convert("RGB").tobytes()


def test_content_that_nothing_is_mistaken_for(tmp_path: Path) -> None:
    """What PIL recognises by next to nothing is read only where the name claims it."""
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "x.jpg", "TGA")
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "y.tga", "TGA")
    Image.new("RGB", (16, 16), (9, 9, 9)).save(tmp_path / "z.tga", "PNG")
    source = open_dataset(str(tmp_path))
    with pytest.raises(PurityError, match="not an image of a known kind"):
        source.load(0)
    assert source.load(1).getpixel((3, 3)) == source.load(2).getpixel((3, 3)) == (9, 9, 9)
    assert not {"EPS", "WMF", "MPEG", "HDF5"} & {*FORMATS, *ENDINGS.values()}


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.jpg", "b/.hidden.png", "b/._2.jpg", ".thumbs/3.png", "__MACOSX/b/4.png"):
        picture(tmp_path / "set" / name)
    for name in (
        "a/5.heic",
        "a/6.HEIC",
        "b/7.cr2",
        "b/8",
        "b/.DS_Store",
        "b/Thumbs.db",
        "README",
        "list.txt",
        "b/9.json",
    ):
        (tmp_path / "set" / name).touch()
    (tmp_path / "set" / "__pycache__").mkdir()
    for path in (tmp_path / "set", Path(pack(tmp_path / "set", tmp_path / "set.tar"))):
        source = open_dataset(str(path))
        assert labelled(source) == {"a/1.png": 0, "b/2.jpg": 1}
        (note,) = source.notes
        assert note.startswith(f"Left out in {path}: 5 files not named as images that are read (2 .heic, ")
        assert {"1 .cr2", "1 without ending", "1 hidden"} < set(note.split("(")[1].rstrip(").").split(", "))
    assert not maybe_images(["a.csv", "LICENSE", "._x.png", ".DS_Store"])


# Links and names


def test_a_link_to_itself_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "a" / "1.png")
    (tmp_path / "set" / "round").symlink_to("round")
    (tmp_path / "set" / "a" / "round.png").symlink_to("round.png")
    source = open_dataset(str(tmp_path / "set"))
    assert source.paths == ["a/1.png", "a/round.png"]
    assert "1 without ending" in " ".join(source.notes)
    with pytest.raises(UnreadableImage, match="a link to a file that is not there"):
        source.load(1)


def test_links_that_lead_into_each_other(tmp_path: Path) -> None:
    for name in ("a", "b"):
        picture(tmp_path / "set" / name / "1.png")
    (tmp_path / "set" / "a" / "x").symlink_to(tmp_path / "set" / "b")
    assert labelled(open_dataset(str(tmp_path / "set"))) == {"a/1.png": 0, "a/x/1.png": 0, "b/1.png": 1}
    (tmp_path / "set" / "b" / "y").symlink_to(tmp_path / "set" / "a")
    with pytest.raises(PurityError, match=r"The link a/x/y in .* leads back to a folder above"):
        open_dataset(str(tmp_path / "set"))


def test_names_that_are_no_utf8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    for name in (b"a\xff", b"b"):
        os.makedirs(os.path.join(root, name))
        Image.new("RGB", (32, 32), (200, 10, 90)).save(os.path.join(os.fsdecode(root), os.fsdecode(name), "\udcfe.png"))
    text = os.fsdecode(root)
    for path in (text, pack(Path(text), Path(f"{text}.tar"))):
        source = open_dataset(path)
        assert (source.name, source.class_names) == ("caf\\xe9", ["a\\xff", "b"])
        assert list(source.paths) == ["a\\xff/\\xfe.png", "b/\\xfe.png"]
        assert source.load(0).size == (32, 32)
    out = tmp_path / "out"
    (Path(text) / "b" / "bad.png").write_bytes(b"")
    arguments = ["score", "-m", "tiny_vgg_10", "--device", "cpu", "--cache", str(tmp_path / os.fsdecode(b"cache\xff"))]
    assert cli.run([*arguments, "-d", text, "-o", str(out)]) == 0
    assert (out / "purity.csv").read_text(encoding="utf-8").count("caf\\xe9") > 1
    assert cli.run([*arguments, "-d", text, "-o", f"{out}{os.fsdecode(bytes([255]))}"]) == 0
    assert "Traceback" not in capfd.readouterr().err
