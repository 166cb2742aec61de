"""The GPU's check, in its tiny form on the CPU: every part runs, and says null where nothing was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import ResNet18_Weights, get_model

from purity_cli import pixels
from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError
from purity_cli.plan import DEFAULT_GRID
from tests.gpu_check import __main__ as script
from tests.gpu_check import ceilings, correctness, end_to_end, out_of_memory, profile, reductions, speed
from tests.gpu_check.budget import Budget, Contender, OutOfTime, in_turn
from tests.gpu_check.report import LATE, Sheet
from tests.gpu_check.settings import Settings, chosen, tiny
from tests.gpu_check.subjects import IMAGENET, noise, pictures, repeated
from tests.gpu_check.tables import paper_tables

CPU = torch.device("cpu")
# The columns that name a row; all others are measured.
NAMES = {"what", "network", "precision", "memory_format", "reference", "how", "batch", "networks", "note"}
SHEETS = {
    "ceilings": ("ceilings",),
    "correctness": ("correctness", "correctness_cells", "out_of_memory", "precisions"),
    "speed": ("speed",),
    "reductions": ("reductions",),
    "profile": ("profile", "profile_kernels"),
    "end_to_end": ("end_to_end",),
}
COLUMNS = {
    "ceilings": ceilings.COLUMNS,
    "correctness": correctness.COLUMNS,
    "correctness_cells": correctness.CELLS,
    "out_of_memory": out_of_memory.COLUMNS,
    "precisions": correctness.PRECISIONS,
    "speed": speed.COLUMNS,
    "reductions": reductions.COLUMNS,
    "profile": profile.COLUMNS,
    "profile_kernels": profile.BY_NAME,
    "end_to_end": end_to_end.COLUMNS,
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


def test_every_table_is_there_with_its_columns_and_says_of_what_it_is(measured: Path) -> None:
    assert list(SHEETS) == list(script.PARTS)
    for part, sheets in SHEETS.items():
        for name in sheets:
            table = pd.read_csv(measured / f"{name}.csv")
            record = json.loads((measured / f"{name}.json").read_text())
            assert list(table) == [*COLUMNS[name], "note"], name
            assert len(table) == len(record["rows"]) > 0, name
            assert record["part"] == part
            assert record["complete"]
            assert record["device"].startswith("cpu")
            assert torch.__version__.startswith(record["torch"])
            assert "python -m tests.gpu_check" in record["command"]
            assert all(row["note"] is None for row in record["rows"]), name


def test_what_a_cpu_cannot_say_is_null(measured: Path) -> None:
    for name, columns in {
        "end_to_end": ("gpu_busy", "device_mib"),
        "speed": ("device_mib",),
        "profile": ("idle",),
    }.items():
        for row in rows(measured, name):
            assert all(row[column] is None for column in columns), name
    for row in rows(measured, "speed"):
        assert all(row[column] is not None for column in speed.COLUMNS if column != "device_mib")


def test_speeds_and_their_ratios_agree(measured: Path) -> None:
    for row in rows(measured, "speed"):
        forward, scoring, last = (row[f"{name}_images_per_s"] for name in ("forward", "scoring", "last"))
        assert row["scoring_over_forward"] == pytest.approx(forward / scoring, rel=1e-4)
        assert row["last_over_forward"] == pytest.approx(forward / last, rel=1e-4)
        assert row["scoring_tflops"] == pytest.approx(row["scoring_gflop"] * scoring / 1000, rel=1e-4)
        assert row["scoring_of_ceiling"] == pytest.approx(row["scoring_tflops"] / row["ceiling_tflops"], rel=1e-4)


def test_a_cpu_agrees_with_itself_and_bf16_nearly(measured: Path) -> None:
    networks = rows(measured, "correctness")
    # Bundled weights on the digits, and random ones twice: against the CPU, and against the device's own fp32.
    assert [row["weights"] for row in networks] == ["digits", "digits", *["none"] * 4]
    for row in networks:
        assert row["firings"] > 0
        assert row["two_runs_equal"]
        if row["precision"] == "fp32":
            assert row["differing"] == row["largest_df"] == row["nan_in_one"] == 0
    for row in rows(measured, "precisions"):
        same = [r for r in networks if (r["reference"], r["precision"]) == (row["reference"], row["precision"])]
        assert row["largest_df"] == max(r["largest_df"] for r in same)
        assert row["networks"] == len(same)
    cells = rows(measured, "correctness_cells")
    for row in networks[:2]:
        own = [
            cell for cell in cells if [cell[n] for n in ("weights", "precision")] == [row["weights"], row["precision"]]
        ]
        assert sum(cell["differing"] for cell in own) == row["differing"]


def test_a_batch_that_does_not_fit_is_halved(measured: Path) -> None:
    (row,) = rows(measured, "out_of_memory")
    assert (row["batch_asked"], row["batch_in_the_end"]) == (4, out_of_memory.FITS)
    assert row["all_counted_once"]
    assert row["differing_share"] == 0


def test_the_compiled_reductions_ran_and_change_nothing(measured: Path) -> None:
    *maps, whole = rows(measured, "reductions")
    assert all(row["largest_relative_difference"] < 1e-6 for row in maps)
    assert whole["firings"] > 0
    assert whole["differing"] == 0


def test_end_to_end_scores_every_picture_and_adds_the_suite_up(measured: Path) -> None:
    table = rows(measured, "end_to_end")
    *jobs, total = [row for row in table if row["what"].startswith("tables")]
    assert {row["images"] for row in table} == {12, 24}
    assert [row["network"] for row in jobs] == ["tiny_vgg_10", "resnet18"]
    assert total["images"] == 24
    assert total["seconds"] >= sum(row["seconds"] for row in jobs)
    for row in table:
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"], rel=1e-4)
        assert row["host_mib"] > 0


def test_without_time_nothing_is_measured_and_every_cell_is_null(tmp_path: Path) -> None:
    run(tmp_path, "--budget", "0", "--precisions", "fp32", "--networks", "tiny_vgg_10")
    for sheets in SHEETS.values():
        for name in sheets:
            record = json.loads((tmp_path / f"{name}.json").read_text())
            for row in record["rows"]:
                assert all(value is None for column, value in row.items() if column not in NAMES), name
                assert row["note"] == LATE or name == "precisions"
            assert not record["rows"] or name == "precisions" or not record["complete"]
    assert rows(tmp_path, "precisions")[0]["networks"] == 0
    assert rows(tmp_path, "end_to_end")[-1]["images"] is None


def settings(tmp_path: Path) -> Settings:
    return tiny(Settings(device=CPU, out=tmp_path, scratch=tmp_path, shared=tmp_path, workers=1))


def test_a_row_that_fails_says_why_and_those_after_the_end_say_so(tmp_path: Path) -> None:
    budget = Budget(10, clock=iter([0.0, 1.0, 2.0, 11.0, 12.0]).__next__)

    def work(value: float) -> dict[str, Any]:
        budget.check()
        if value < 0:
            raise RuntimeError("too small\nand more")
        return {"b": value}

    sheet = Sheet(settings(tmp_path), "t", ("a", "b"), {})
    sheet.fill([({"a": i}, partial(work, value)) for i, value in enumerate((1.5, -1.0, 2.0, 3.0))])
    assert [(row["a"], row["b"]) for row in rows(tmp_path, "t")] == [(0, 1.5), (1, None), (2, None), (3, None)]
    assert [row["note"] for row in rows(tmp_path, "t")] == [None, "RuntimeError: too small", LATE, LATE]
    assert not sheet.complete
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["b"].isna().tolist() == [False, True, True, True]
    with pytest.raises(ValueError, match="no column c"):
        sheet.add(c=1)


def test_timing_stops_when_time_is_out() -> None:
    done: list[int] = []
    contender = Contender(lambda: done.append(1))
    clock = iter(range(100))
    with pytest.raises(OutOfTime):
        in_turn({"a": contender}, CPU, Budget(5, clock=lambda: next(clock)), rounds=50, at_least=0)
    assert len(done) < 10


class Checks(Budget):
    """Out of time at the `n`th look at the clock."""

    def __init__(self, n: int) -> None:
        super().__init__(1)
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            raise OutOfTime


def test_a_suite_that_is_cut_off_keeps_what_it_has_and_has_no_total(tmp_path: Path) -> None:
    made = replace(settings(tmp_path), precisions=("fp32",))
    # It looks when it begins, when each network does, and after each of its blocks: one to a network here.
    steps = end_to_end.EndToEnd(made, Checks(5), tmp_path)
    table = paper_tables(made, steps.budget, steps.dataset, tmp_path, tmp_path / "cache")
    assert [(row["network"], row.get("images"), row.get("note")) for row in table] == [
        ("tiny_vgg_10", 12, None),
        ("resnet18", None, LATE),
        ("all", None, LATE),
    ]
    assert "seconds" not in table[1]
    assert "seconds" not in table[2]
    steps.budget = Checks(1)
    with pytest.raises(OutOfTime):
        steps.score("fp32", steps.from_files)


def test_flops_are_torchvisions_figure_and_the_backward_pass_stops_at_c1(tmp_path: Path) -> None:
    network = speed.Network(settings(tmp_path), "resnet18")
    block = noise(1, 224, CPU)
    net = get_model("resnet18", weights=None).eval()
    with torch.no_grad():
        forward = speed._gflop(lambda: net(pixels.normalise(block.pixels, IMAGENET)))
    # Published in multiplications with their additions, of which each is two operations.
    assert forward == pytest.approx(2 * ResNet18_Weights.IMAGENET1K_V1.meta["_ops"], rel=1e-3)
    # At 32 x 32: all is done twice but for the first convolution, 3 x 7 x 7 -> 64 on 16 x 16.
    first = 2 * 64 * 3 * 49 * 16 * 16 / 1e9
    assert network.scoring_gflop == pytest.approx(2 * network.forward_gflop - first, rel=1e-6)


def test_differences_are_counted_cell_by_cell() -> None:
    grid = len(DEFAULT_GRID)
    expected, found = (np.zeros((2, grid, 4), np.int64) for _ in range(2))
    expected[0, 0], found[0, 0] = [1, 1, 0, 0], [1, 0, 1, 0]
    expected[1, 0], found[1, 0] = [1, 1, 1, 1], [1, 1, 1, 1]
    found[0, 1, 2] = 1
    subject: Any = type("Subject", (), {"layers": {"relu": "C1"}})
    table = list(correctness.compare(subject, {"relu": expected}, {"relu": found}))
    assert [row["differing"] for row in table] == [2, 1, *[0] * (grid - 2)]
    assert (table[0]["firings_reference"], table[0]["firings"]) == (6, 6)
    p = np.array([2, 2, 1, 1]) / 6
    assert table[0]["f_reference"] == pytest.approx(-(p * np.log2(p)).sum() / 2)
    assert table[0]["df"] == pytest.approx(0)  # the same four counts in another order
    summary = correctness.summary(table)
    assert summary["nan_in_one"] == 1  # at the second threshold only one of them fired
    assert summary["differing_share"] == 3 / 6
    assert math.isnan(table[1]["f_reference"])


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", "convolution"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNN", "convolution"),
        ("void splitKreduce_kernel<32, 16, int, float>", "convolution"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float, float, false>", "layout"),
        ("void cudnn::bn_fw_inf_1C11_kernel_NCHW<float, float, true, 1>", "batch norm"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps>>", "reduction"),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("Memcpy HtoD (Pinned -> Device)", "copy"),
        ("void at::native::(anonymous namespace)::max_pool_forward_nhwc<float>", "pooling"),
        ("void at::native::_scatter_gather_elementwise_kernel", "elementwise"),
        ("something else", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(kernel: str, kind: str) -> None:
    assert profile.kind(kernel) == kind


def test_wrong_names_and_a_missing_gpu_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(PurityError, match="No memory format 'chanels_last': there are channels_last, contiguous"):
        chosen("memory format", "chanels_last", ("channels_last", "contiguous"))
    with pytest.raises(click.ClickException, match="No part 'sped'"):
        run(tmp_path, "sped")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(click.ClickException, match="--device cuda needs an NVIDIA GPU"):
        script.main.main(["ceilings", "--out", str(tmp_path)], standalone_mode=False)
    monkeypatch.setattr(script, "find_spec", lambda name: None if name == "pydantic" else True)
    with pytest.raises(click.ClickException, match="Missing here: pydantic"):
        script.main.main(["ceilings", "--out", str(tmp_path)], standalone_mode=False)


def test_a_repeated_sample_is_a_data_set_of_that_many_images(tmp_path: Path) -> None:
    made = settings(tmp_path)
    folder = repeated(pictures(tmp_path / "made", made), tmp_path / "repeated", 10)
    source = open_dataset(f"folder:{folder}")
    assert len(source) == 10
    assert source.labels is not None
    assert [source.labels.count(label) for label in range(4)] == [3, 3, 2, 2]
    assert source.load(9).size == (500, 375)
