"""A results folder: what is written is what is read, whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

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
    assert list(read.columns) == list(cells.COLUMNS)
    for name in cells.COLUMNS:
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


def test_the_lock_of_another_user_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that several may write into, each file is its writer's own."""
    locks.claim(tmp_path, "purity score").close()
    real = Path.open

    def denied(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if path.name == locks.LOCK and mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", denied)
    with locks.claim(tmp_path, "purity bench"), pytest.raises(locks.Held):
        locks.claim(tmp_path, "purity bench")
    locks.claim(tmp_path, "purity bench").close()
