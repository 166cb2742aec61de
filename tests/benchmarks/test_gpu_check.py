"""The GPU's check, in its tiny form on the CPU: every part runs, and says null where nothing was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import torch

from benchmarks.gpu_check import __main__ as script
from benchmarks.gpu_check import parts
from benchmarks.gpu_check.measuring import LATE, Book, Contender, OutOfTime, Settings, in_turn, tiny

CPU = torch.device("cpu")
# The columns that name a row; all others are measured.
NAMES = {"what", "network", "precision", "memory_format", "reference", "batch", "networks", "note"}
SHEETS = {
    "ceilings": ("ceilings",),
    "correctness": ("correctness", "correctness_cells", "out_of_memory", "precisions"),
    "speed": ("speed",),
    "end_to_end": ("end_to_end",),
}


def run(out: Path, *arguments: str) -> None:
    """As the command line runs it, without real weights beside the checkout: those take too long on a CPU."""
    common = ["--device", "cpu", "--tiny", "--shared", str(out / "none"), "--out", str(out), "--workers", "1"]
    script.main.main([*arguments, *common], standalone_mode=False)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text())["rows"]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    run(folder, *(part for part in SHEETS if part != "correctness"), "--precisions", "fp32", "--formats", "contiguous")
    run(folder, "correctness", "--precisions", "bf16,fp32", "--networks", "tiny_vgg_10")
    return folder


def test_every_table_is_there_and_says_of_what_it_is(measured: Path) -> None:
    assert list(SHEETS) == list(script.PARTS)
    for part, sheets in SHEETS.items():
        for name in sheets:
            record = json.loads((measured / f"{name}.json").read_text())
            assert len(pd.read_csv(measured / f"{name}.csv")) == len(record["rows"]) > 0, name
            assert (record["part"], record["complete"]) == (part, True)
            assert record["device"].startswith("cpu")
            assert "python -m benchmarks.gpu_check" in record["command"]
            assert all(row["note"] is None for row in record["rows"]), name


def test_the_figures_agree_with_each_other(measured: Path) -> None:
    for row in rows(measured, "speed"):
        forward, scoring, last = (row[f"{name}_images_per_s"] for name in ("forward", "scoring", "last"))
        assert row["scoring_over_forward"] == pytest.approx(forward / scoring, rel=1e-4)
        assert row["last_over_forward"] == pytest.approx(forward / last, rel=1e-4)
        assert row["scoring_tflops"] == pytest.approx(row["scoring_gflop"] * scoring / 1000, rel=1e-4)
        assert row["scoring_of_ceiling"] == pytest.approx(row["scoring_tflops"] / row["ceiling_tflops"], rel=1e-4)
        assert row["device_mib"] is None  # of a GPU alone
    (row,) = rows(measured, "out_of_memory")
    assert (row["batch_asked"], row["batch_in_the_end"]) == (4, parts.FITS)
    assert row["all_counted_once"]
    assert row["differing_share"] == 0


def test_a_cpu_agrees_with_itself_and_bf16_nearly(measured: Path) -> None:
    networks = rows(measured, "correctness")
    # Bundled weights on the digits, and random ones twice: against the CPU, and against the device's own fp32.
    assert [row["weights"] for row in networks] == ["digits", "digits", *["none"] * 4]
    for row in networks:
        assert row["firings"] > 0
        assert row["two_runs_equal"]
        assert row["precision"] == "bf16" or row["differing"] == row["largest_df"] == row["nan_in_one"] == 0
    for row in rows(measured, "precisions"):
        same = [r for r in networks if (r["reference"], r["precision"]) == (row["reference"], row["precision"])]
        assert row["largest_df"] == max(r["largest_df"] for r in same)
    assert max(row["differing"] for row in networks) > 0
    cells = [row for row in rows(measured, "correctness_cells") if row["weights"] == "digits"]
    assert sum(cell["differing"] for cell in cells) == sum(row["differing"] for row in networks[:2])


def test_end_to_end_scores_every_image(measured: Path) -> None:
    table = rows(measured, "end_to_end")
    assert [row["what"] for row in table[-2:]] == ["from JPEG", "from the cache"]
    for row in table:
        assert row["images"] == 12
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"], rel=1e-4)
        assert row["host_mib"] > 0
        assert row["gpu_busy"] is None


def settings(tmp_path: Path) -> Settings:
    return tiny(Settings(device=CPU, out=tmp_path, scratch=tmp_path, shared=tmp_path / "none", workers=1))


def test_a_row_that_fails_says_why_and_those_after_the_end_say_so(tmp_path: Path) -> None:
    # The clock is looked at when the book is made, before each row and when the file is written.
    book = Book(replace(settings(tmp_path), seconds=10), "t", "", clock=iter([0, 1, 1, 2, 2, 11, 12, 12]).__next__)

    def work(value: float) -> dict[str, Any]:
        if value < 0:
            raise RuntimeError("too small\nand more")
        return {"b": value}

    book.fill([("t", {"a": i}, partial(work, value)) for i, value in enumerate((1.5, -1.0, 2.0, 3.0))])
    assert [(row["a"], row["b"]) for row in rows(tmp_path, "t")] == [(0, 1.5), (1, None), (2, None), (3, None)]
    assert [row["note"] for row in rows(tmp_path, "t")] == [None, "RuntimeError: too small", LATE, LATE]
    assert not json.loads((tmp_path / "t.json").read_text())["complete"]


def test_without_time_nothing_is_measured_and_every_cell_is_null(tmp_path: Path) -> None:
    run(tmp_path, *(part for part in SHEETS if part != "correctness"), "--budget", "0", "--precisions", "fp32")
    for path in tmp_path.glob("*.json"):
        for row in json.loads(path.read_text())["rows"]:
            assert row["note"] == LATE
            assert all(value is None for column, value in row.items() if column not in NAMES), path.name


class Checks(Book):
    """Out of time at the `n`th look at the clock."""

    left = 0

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise OutOfTime


def test_timing_stops_when_time_is_over(tmp_path: Path) -> None:
    book, done = Checks(settings(tmp_path), "t", ""), list[int]()
    book.left = 5
    with pytest.raises(OutOfTime):
        in_turn(book, {"a": Contender(lambda: done.append(1))}, rounds=50)
    assert len(done) < 10


def test_wrong_names_and_a_missing_gpu_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="No memory format 'chanels_last': there are channels_last, contig"):
        run(tmp_path, "--formats", "chanels_last")
    with pytest.raises(click.ClickException, match="No part 'sped'"):
        run(tmp_path, "sped")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(click.ClickException, match="--device cuda needs an NVIDIA GPU"):
        script.main.main(["ceilings", "--out", str(tmp_path)], standalone_mode=False)
