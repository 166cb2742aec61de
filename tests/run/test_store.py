"""A results folder: what is written is what is read, whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from purity_cli import locks, store
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Layer, Result
from purity_cli.views import cells

THRESHOLDS = (0.25, 0.5, 0.75)


def result(*, channels: int = 6, largest: int = 30, silent: bool = False) -> Result:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, largest + 1, (20, 3, channels))
    if silent:
        counts[:, 2] = 0
    layers = (
        Layer("layer1.0.conv1", None, channels, 8, 8, counts),
        Layer("layer4", "C5", channels, 4, 3, counts[:, :, ::-1]),
    )
    return Result(
        job=Job.of(model="net", layers=("layer1.0.conv1", "last"), thresholds=THRESHOLDS, mean=(0.1, 0.2, 0.3)),
        thresholds=THRESHOLDS,
        layers=layers,
        n_images=1234,
        top1=12.3456789012345,
        top5=None,
        model="net",
        source="file",
        weights="w.pth",
        dataset="photos",
        preprocessing="no resize, not normalised",
        provenance={"torch": "2.0", "images_skipped": [], "rate": float("nan")},
    )


def same(a: Result, b: Result) -> bool:
    layers = zip(a.layers, b.layers, strict=True)
    return all(
        np.array_equal(x.counts, y.counts) and {**vars(x), "counts": None} == {**vars(y), "counts": None}
        for x, y in layers
    )


@pytest.mark.parametrize("largest", [3, 255, 256, 65_536, 2**33])
def test_what_is_written_is_what_is_read(largest: int, tmp_path: Path) -> None:
    given = result(largest=largest)
    store.write(given, tmp_path / "a" / "b")
    got = store.read(tmp_path / "a" / "b")
    assert same(given, got)
    assert all(layer.counts.dtype == np.int64 for layer in got.layers)
    assert (got.job, got.job.key(), got.thresholds) == (given.job, given.job.key(), THRESHOLDS)
    assert (got.n_images, got.top1, got.top5, got.model) == (1234, given.top1, None, "net")
    assert got.provenance["torch"] == "2.0"
    assert got.provenance["rate"] is None
    assert sorted(file.name for file in (tmp_path / "a" / "b").iterdir()) == [
        "purity.csv", "purity.md", "run.json", "states.safetensors",
    ]  # fmt: skip


def test_csv_is_read_back_by_pandas_to_the_last_digit(tmp_path: Path) -> None:
    given = result(silent=True)
    store.write(given, tmp_path)
    rows, read = cells.frame([given]), pd.read_csv(tmp_path / "purity.csv", float_precision="round_trip")
    assert list(read.columns) == [*cells.COLUMNS, *cells.RATE_COLUMNS]
    for name in read.columns:
        pd.testing.assert_series_equal(read[name], rows[name], check_exact=True, check_dtype=False)
    assert read["purity"].isna().sum() == 2
    assert read["purity"][0] == rows["purity"][0]


def test_run_json_is_strict_json_with_the_job(tmp_path: Path) -> None:
    store.write(result(), tmp_path)
    found = json.loads((tmp_path / "run.json").read_text(), parse_constant=pytest.fail)
    assert found["job"]["layers"] == ["layer1.0.conv1", "last"]
    assert found["key"] == result().job.key()
    assert found["rate"] is None


def test_counts_of_another_kind_say_so(tmp_path: Path) -> None:
    with pytest.raises(PurityError, match="holds no results: give a folder that `purity score` has written"):
        store.read(tmp_path)
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / store.STATES)
    with pytest.raises(PurityError, match="no states of this tool"):
        store.read(tmp_path)
    safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / store.STATES, {"format": "purity counts 99"})
    with pytest.raises(PurityError, match="holds purity counts 99, and this version reads 'purity states 1'"):
        store.read(tmp_path)
    store.write(result(), tmp_path)
    path = tmp_path / store.STATES
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PurityError, match="is damaged"):
        store.read(tmp_path)


def test_a_flipped_bit_is_no_other_number(tmp_path: Path) -> None:
    store.write(result(), tmp_path)
    path = tmp_path / store.STATES
    whole = path.read_bytes()
    for place in range(len(whole) - 1, 8 + int.from_bytes(whole[:8], "little"), -7):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with pytest.raises(PurityError, match="is damaged"):
            store.read(tmp_path)


def test_a_folder_that_cannot_be_written_is_found_out_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PurityError, match="Cannot write results into .*file.*: choose another --output"):
        locks.prepare(tmp_path / "file")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    store.write_text(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PurityError, match="No space left on device"):
        store.write_text(path, "new")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_flipped_bit_in_what_a_file_says_of_itself_is_found(tmp_path: Path) -> None:
    """The metadata: a count of images, an accuracy, a setting."""
    store.write(result(), tmp_path)
    path = tmp_path / store.STATES
    whole = path.read_bytes()
    place = whole.index(b"1234")
    path.write_bytes(whole[:place] + b"1235" + whole[place + 4 :])
    with pytest.raises(PurityError, match="what it says of itself is not what was written"):
        store.read(tmp_path)


@pytest.mark.parametrize("at", [store.STATES, *store.VIEWS])
def test_after_a_crash_no_file_of_another_result_stands_beside_the_states(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(replace(result(), n_images=1), tmp_path)
    real = store.write_bytes

    def fails(path: Path, content: bytes) -> None:
        if path.name == at:
            raise KeyboardInterrupt
        real(path, content)

    second = replace(result(), n_images=2, provenance={"images_scored": 2})
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_bytes", fails)
        with pytest.raises(KeyboardInterrupt):
            store.write(second, tmp_path)
    n = store.read(tmp_path).n_images
    assert n == (1 if at == store.STATES else 2)
    if (tmp_path / store.RUN).exists():
        assert json.loads((tmp_path / store.RUN).read_text()).get("images_scored", 1) == n
    if (tmp_path / store.CSV).exists():
        assert set(pd.read_csv(tmp_path / store.CSV)["n_images"]) == {n}


def test_what_is_damaged_is_not_kept_and_that_is_said(tmp_path: Path) -> None:
    given = replace(result(), identity={"model": "net"})
    store.write(given, tmp_path)
    assert store.kept(tmp_path, {"model": "net"}, no_images)[0] is not None
    path = tmp_path / store.STATES
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    found, why = store.kept(tmp_path, {"model": "net"}, no_images)
    assert found is None
    assert "is damaged" in str(why)


@pytest.mark.parametrize("name", ["model", "weights", "network_sha256", "newer"])
def test_a_result_is_kept_only_where_all_of_its_identity_is_equal(name: str, tmp_path: Path) -> None:
    identity = {"model": "net", "weights": "w", "network_sha256": "0", "newer": 1, "limit": None}
    store.write(replace(result(), identity=identity), tmp_path)
    assert store.kept(tmp_path, identity, no_images)[0] is not None
    for other in ({**identity, name: "x"}, {k: v for k, v in identity.items() if k != name}):
        found, why = store.kept(tmp_path, other, no_images)
        assert found is None
        assert why


def no_images(size: int) -> store.Images:
    raise AssertionError("nobody has to look at images of equal stamps")


def test_folders_of_models_of_one_name_have_the_source_in_theirs() -> None:
    jobs = [Job.of(model=name) for name in ("torchvision:resnet18", "timm:resnet18", "a/net.py:make")]
    assert store.folder_names(jobs) == [
        "torchvision-resnet18_cifar10-sample", "timm-resnet18_cifar10-sample", "make_cifar10-sample",
    ]  # fmt: skip
    with pytest.raises(PurityError, match="alexnet is given twice"):
        store.folder_names([Job.of(model="alexnet")] * 2)
