"""200 photographs as a folder, tar, zip, shards and a parquet file: `purity score` comes to the same integers for each,
whichever of them are asked for, from a cache, by two processes, after an interruption, and with one of them damaged.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from purity_cli import cache as caching
from purity_cli import cli, store
from purity_cli.cli import progress
from purity_cli.datasets import open_dataset
from purity_cli.datasets.base import FileImages
from purity_cli.results import Result
from tests.datasets.packing import PACKINGS, classes_of, in_folder
from tests.run.test_ranks import torchrun

OPTIONS: dict[str, dict[str, Any]] = {"shards": {"size": 40}, "parquet": {"rows": 200, "row_group_size": 100}}
"""Five shards; one table in row groups as Hugging Face's."""
PARTS = {"all": [], "per class": ["--per-class", "2"], "limit": ["--limit", "77"]}
COUNT = {"all": 200, "per class": 100, "limit": 77}
DAMAGED = 50
"""Which photograph: one of the second shard, and not the first that is read of anything."""
NETWORK = ["-m", "resnet10_cifar", "--resize", "32", "--crop", "32", "-b", "16", "--workers", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def photographs(shared: Path) -> dict[str, bytes]:
    """Every fifth of the sample, which has one of each class: four neighbours make a class here."""
    chosen = sorted((shared / "data" / "imagenet-sample").glob("*/*"))[::5]
    return {f"class{k // 4:02}/{path.name}": path.read_bytes() for k, path in enumerate(chosen)}


@pytest.fixture(scope="module")
def places(photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return pack(photographs, tmp_path_factory.mktemp("whole"))


def pack(files: dict[str, bytes], place: Path) -> dict[str, str]:
    made = {kind: make(place / kind, files, **OPTIONS.get(kind, {})) for kind, make in PACKINGS.items()}
    # A suite scores sets of one name and content once, and the tar has both as well.
    return {**made, "zip": str(Path(made["zip"]).rename(place / "zip" / "zipped.zip"))}


def score(place: str, out: Path, *more: str) -> Result:
    assert cli.run(["score", "-d", place, *NETWORK, "-o", str(out), *more]) == 0
    return store.read(out)


@pytest.fixture(scope="module")
def expected(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """What the folder comes to."""
    out = tmp_path_factory.mktemp("expected")
    return {part: score(places["folder"], out / part, *options) for part, options in PARTS.items()}


def assert_same(ours: Result, theirs: Result) -> None:
    assert (ours.n_images, ours.top1, ours.top5) == (theirs.n_images, theirs.top1, theirs.top5)
    assert [layer.module for layer in ours.layers] == [layer.module for layer in theirs.layers]
    assert len(ours.layers) == 4
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert a.counts.dtype == b.counts.dtype
        assert np.array_equal(a.counts, b.counts), a.module
        assert a.counts.sum() > 0


@pytest.mark.parametrize("kind", PACKINGS)
def test_every_kind_has_the_same_photographs(
    kind: str, places: dict[str, str], photographs: dict[str, bytes], shared: Path
) -> None:
    source = open_dataset(places[kind])
    assert (len(source), len(classes_of(photographs))) == (200, 50)
    assert source.labels == [k // 4 for k in range(200)]
    originals = {path.name: path for path in (shared / "data" / "imagenet-sample").glob("*/*")}
    for i, path in enumerate(photographs):
        assert source.load(i).tobytes() == Image.open(originals[Path(path).name]).convert("RGB").tobytes()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", [kind for kind in PACKINGS if kind != "folder"])
def test_counts_are_those_of_the_folder(
    kind: str, part: str, places: dict[str, str], expected: dict[str, Result], tmp_path: Path
) -> None:
    ours = score(places[kind], tmp_path / "out", *PARTS[part])
    assert ours.n_images == COUNT[part]
    assert_same(ours, expected[part])


@pytest.mark.parametrize("part", ["per class", "limit"])
def test_a_part_is_scored_as_a_folder_of_it_alone(
    part: str, photographs: dict[str, bytes], expected: dict[str, Result], tmp_path: Path
) -> None:
    taken = [path for k, path in enumerate(photographs) if (k % 4 < 2 if part == "per class" else k < 77)]
    alone = in_folder(tmp_path / "alone", {path: photographs[path] for path in taken})
    assert_same(score(alone, tmp_path / "out"), expected[part])


@pytest.mark.parametrize("kind", PACKINGS)
def test_a_cache_is_filled_and_then_read_alone(
    kind: str, places: dict[str, str], expected: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(self: FileImages, i: int, /) -> Image.Image:
        pytest.fail(f"{self.paths[i]} was decoded again")

    monkeypatch.setattr(caching, "LEFT_FREE", 0)  # on a disk that is nearly full, too
    cache = ["--cache", str(tmp_path / "cache")]
    assert_same(score(places[kind], tmp_path / "filled", *cache), expected["all"])
    monkeypatch.setattr(FileImages, "load", load)
    for part, options in PARTS.items():
        assert_same(score(places[kind], tmp_path / part, *cache, *options), expected[part])


@pytest.mark.parametrize("kind", PACKINGS)
def test_an_interrupted_run_goes_on_to_the_same_counts(
    kind: str, places: dict[str, str], expected: dict[str, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def interrupted(images: int, total: int) -> None:
        if images >= 70:
            raise KeyboardInterrupt

    command = ["score", "-d", places[kind], *NETWORK, "-o", str(tmp_path / "out")]
    monkeypatch.setattr(progress, "images", watched_by(interrupted))
    assert cli.run(command) == 130
    monkeypatch.setattr(progress, "images", watched_by(lambda images, total: done.append(images)))
    assert cli.run(command) == 0
    assert done[0] == 96, "it went on behind the first five blocks of 16"
    assert_same(store.read(tmp_path / "out"), expected["all"])


def watched_by(progress: Callable[[int, int], None]) -> Callable[..., object]:
    """In place of the bar that a terminal would be shown."""

    @contextmanager
    def images(description: str, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
        yield progress

    return images


SUITE = """
defaults: {model: resnet10_cifar, resize: 32, crop: 32, batch_size: 16, device: cpu}
settings: [{}, {per_class: 2}, {limit: 77}]
models: [resnet10_cifar]
datasets:
"""


def test_two_processes_come_to_the_counts_of_one(
    places: dict[str, str], expected: dict[str, Result], tmp_path: Path
) -> None:
    """All kinds in one suite, for torchrun takes seconds to start."""
    (tmp_path / "suite.yaml").write_text(SUITE + "".join(f"  - '{place}'\n" for place in places.values()))
    ran = torchrun(2, "bench", "suite.yaml", "--output", "two", folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    found = [store.read(path.parent) for path in (tmp_path / "two").glob(f"*/{store.STATES}")]
    assert len(found) == len(PACKINGS) * len(PARTS)
    assert {result.job.dataset for result in found} == {*places.values()}
    for result in found:
        part = "per class" if result.job.per_class else "limit" if result.job.limit else "all"
        assert_same(result, expected[part])


# One of them is damaged


@pytest.fixture(scope="module", params=["cut short", "overwritten"])
def damaged(
    request: pytest.FixtureRequest, photographs: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """One photograph that was cut short before all were packed, or whose beginning was overwritten where it lies."""
    place, path = tmp_path_factory.mktemp("damaged"), list(photographs)[DAMAGED]
    if request.param == "cut short":
        return pack({**photographs, path: photographs[path][:3000]}, place)
    # Kept as they are, so that the bytes of one photograph are nowhere but in its place.
    options = {**OPTIONS, "zip": {"compression": zipfile.ZIP_STORED}}
    options["parquet"] = {**OPTIONS["parquet"], "compression": "none"}
    made = {kind: make(place / kind, photographs, **options.get(kind, {})) for kind, make in PACKINGS.items()}
    for kind, where in made.items():
        files = [Path(where)] if os.path.isfile(where) else sorted(p for p in Path(where).rglob("*") if p.is_file())
        assert sum(overwrite(file, photographs[path]) for file in files) == 1, kind
    return made


def overwrite(file: Path, photograph: bytes) -> bool:
    content = file.read_bytes()
    at = content.find(photograph)
    if at < 0:
        return False
    file.write_bytes(content[:at] + bytes(600) + content[at + 600 :])
    return True


@pytest.mark.parametrize("kind", PACKINGS)
def test_one_damaged_photograph_is_named(
    kind: str, damaged: dict[str, str], photographs: dict[str, bytes], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = list(photographs)[DAMAGED]
    named = {"shards": "set-1.tar/000050.jpg", "parquet": f"row 50/{path.replace('/', '_')}"}.get(kind, path)
    skipping = score(damaged[kind], tmp_path / "out")
    (skipped,) = skipping.provenance["images_skipped"]
    assert skipped["path"].endswith(named)
    what = f"{skipped['path']} ({skipped['reason']})"
    assert f"1 of 200 images could not be read and were left out, the first {what}." in capsys.readouterr().err
    assert skipping.n_images == 199
    assert_same(skipping, score(damaged["folder"], tmp_path / "folder"))
    failing = ["score", "-d", damaged[kind], *NETWORK, "-o", str(tmp_path / "failed"), "--on-bad-image", "fail"]
    assert cli.run(failing) == 1
    assert f"{skipped['path']} cannot be read ({skipped['reason']})" in capsys.readouterr().err
    assert not (tmp_path / "failed" / "purity.csv").exists()
