"""`--precision auto` goes by what was measured, and results of one precision are never those of another."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import precision
from purity_cli import machine, run, store
from purity_cli.plan import Job
from purity_cli.views import diff
from tests.logged import logged

CPU = torch.device("cpu")
TABLE = Path(__file__).resolve().parents[2] / "results/benchmark/precision.csv"
FEW: dict[str, Any] = {"device": "cpu", "limit": 8, "layers": ("C1",)}


def test_what_auto_goes_by_is_what_the_table_says() -> None:
    cells = pd.read_csv(TABLE)
    cells = cells[~cells["precision"].str.contains("backward")]
    largest = cells.groupby(["kind", "precision"])["difference"].max()
    assert set(largest.index) == set(machine.MEASURED)
    for key, known in machine.MEASURED.items():
        assert math.isclose(known, largest[key], rel_tol=0.05), key


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """The identity of the same job in bf16."""
    identity = run.resolve(Job(precision="bf16", **FEW)).identity
    assert identity["precision"] == "bf16"
    return identity


@pytest.mark.parametrize(
    ("moved", "chosen", "said"),
    [
        ({"bf16": 0.0019}, "bf16", "moved F by 0.0019 at most"),
        ({"bf16": 0.0021}, "fp32", "bf16 moved F by up to 0.0021"),
        ({}, "fp32", "bf16 was not measured"),
    ],
)
def test_auto_takes_what_keeps_every_cell_and_says_why(
    moved: dict[str, float], chosen: str, said: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "kind_of", lambda device: "CPU of tomorrow")
    monkeypatch.setattr(machine, "MEASURED", {("CPU of tomorrow", name): value for name, value in moved.items()})
    with logged() as heard:
        auto = run.resolve(Job(precision="auto", **FEW))
    assert auto.precision == chosen
    assert any(f"auto takes {chosen}" in line and said in line for line in heard)
    # As if it had been asked for: it is kept for that, and for no other.
    others = {name: {**asked, "precision": name} for name in ("fp32", "bf16")}
    assert auto.identity == others.pop(chosen)
    assert auto.identity not in others.values()


def test_a_cpu_without_bfloat16_has_nothing_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "kind_of", lambda device: machine.PLAIN_CPU)
    assert machine.fastest(CPU) == ("fp32", f"on this kind of device ({machine.PLAIN_CPU}) nothing else is faster")


def test_a_result_says_what_auto_came_to_and_diff_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number, largest in enumerate((0.1, 0.001)):
        monkeypatch.setattr(machine, "kind_of", lambda device: "CPU")
        monkeypatch.setattr(machine, "MEASURED", {("CPU", "bf16"): largest})
        folder = tmp_path / str(number)
        store.write(run.score(run.resolve(Job(precision="auto", **FEW)), workers=1), folder, 0.5)
        found.append(diff.StoredResult(folder, store.read(folder)))
    assert [one.result.provenance["precision"] for one in found] == ["fp32", "bf16"]
    changes = diff.diff(found[:1], found[1:], tolerance=1.0).changes
    assert {"what": "precision", "old": "fp32", "new": "bf16", "jobs": "all"} in changes


def test_cells_are_compared_one_by_one() -> None:
    before, after = np.zeros((2, 9, 4), np.int64), np.zeros((2, 9, 4), np.int64)
    before[0, 0], after[0, 0] = [4, 4, 0, 0], [4, 3, 1, 0]
    rows = list(precision.compare({"a": before}, {"a": after}, 2))
    assert (rows[0]["firings"], rows[0]["differing"]) == (8, 2)
    entropies = [1.0, -(4 * math.log2(4 / 8) + 3 * math.log2(3 / 8) + math.log2(1 / 8)) / 8]
    assert rows[0]["difference"] == pytest.approx((entropies[1] - entropies[0]) / 2)
    assert math.isnan(rows[1]["difference"])
