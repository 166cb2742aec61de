"""The paper's tables: values known by hand, the paper's own layout, what is missing, what differs."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

import purity_cli
from purity_cli import paper
from purity_cli.errors import PurityError
from purity_cli.paper.nearness import verdict
from purity_cli.plan import Job
from purity_cli.report import FORMATS, Report
from purity_cli.results import Layer, Result
from purity_cli.stats import jackknife, jackknife_of_mean
from purity_cli.views import cells, suites
from purity_cli.views.suites import SuiteColumn
from tests.core import oracle

PAPER = Path(purity_cli.__file__).parent / "paper"

GROUPS = 5


def spread(channels: int, live: int, per_group: int = 4) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Counts (G, T = 2, c) of which `live` channels fire alike: F = log live / log c at the first threshold."""
    counts = np.zeros((GROUPS, 2, channels), np.int64)
    counts[:, 0, :live] = per_group
    return counts


def result(
    model: str, layers: dict[str, np.ndarray[Any, np.dtype[np.int64]]], top1: float | None = 50.0, **more: Any
) -> Result:
    """`layers` by stage, with their reading before a colon, or where the name is none, by module."""
    rows = []
    for name, counts in layers.items():
        reading, _, stage = name.rpartition(":")
        staged = stage[0] == "C"
        module, kind = (f"net.{reading or 'relu'}.{stage}", reading or "activation") if staged else (name, None)
        rows.append(Layer(module, stage if staged else None, counts.shape[2], 2, 2, counts, reading=kind))
    named = {"dataset": "imagenet", "weights": "W", "provenance": {}, **more}
    return Result(
        job=Job.of(model=model, thresholds=(0.5, 0.9), groups=GROUPS), thresholds=(0.5, 0.9), layers=tuple(rows),
        n_images=400, top1=top1, top5=None, model=model.rpartition(":")[2], source="torchvision",
        preprocessing="resize 224", **named,
    )  # fmt: skip


def found(*results: Result, missing: str | None = None) -> list[SuiteColumn]:
    jobs: list[tuple[Job, Result | None, str | None]] = [(one.job, one, None) for one in results]
    return suites.columns([*jobs, *([(Job.of(model=missing), None, "no weights here")] if missing else [])])


def compared(name: str, *results: Result, missing: str | None = None) -> Report:
    return paper.comparison(found(*results, missing=missing), name, paper.reference(name), 0.5)


def tabled(layout: str, *results: Result, missing: str | None = None, reference: str | None = None) -> Report:
    jobs = found(*results, missing=missing)
    return suites.suite(
        jobs, 0.5, layout, expected=paper.expected(jobs, paper.reference(reference)) if reference else ()
    )


def read(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(FORMATS["csv"](report))))


def readings(report: Report) -> dict[str, Any]:
    """The rows of the second table by their reading."""
    return {row["reading"]: row for row in report.tables[1].rows}


STAGES = {"C1": spread(16, 4), "C2": spread(64, 8), "C3": spread(256, 1)}
"""F = 0.5, 0.5 and 0."""


def of_values(values: dict[str, float]) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """Counts of 2^10 channels whose F are these, multiples of 0.1."""
    return {name: spread(2**10, 2 ** round(10 * value)) for name, value in values.items()}


def test_values_and_errors_known_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("stage,a\nC1,0.25\nC2,0.5\nC3,0.5\nAverage,0.5\ntop1,40\n")
    rows = compared(str(path), result("a", STAGES)).main.rows
    assert [(row["cell"], row["measured"]) for row in rows] == [
        ("C1", pytest.approx(0.5)), ("C2", pytest.approx(0.5)), ("C3", 0.0), ("Average", pytest.approx(1 / 3)),
        ("top1", 50.0),
    ]  # fmt: skip
    assert [row["difference"] for row in rows] == pytest.approx([0.25, 0, -0.5, 1 / 3 - 0.5, 10])
    assert [row["se"] for row in rows] == pytest.approx([0, 0, 0, 0, 100 * math.sqrt(0.25 / 400)], abs=1e-9)
    with pytest.raises(PurityError, match=r"no counts of a at the threshold 0.7"):
        paper.compare(found(result("a", STAGES)), paper.reference(str(path)), 0.7)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(2, 6))
def test_the_error_of_an_average_is_its_definition_written_out(seed: int, layers: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    counts = [rng.integers(0, 9, (GROUPS, 2, int(rng.integers(2, 7)))) for _ in range(layers)]
    groups = min(GROUPS, images)
    got = jackknife_of_mean(counts, images)
    for t in range(2):
        whole = np.mean([oracle.purity(c.sum(0)[t]) for c in counts])
        without = [np.mean([oracle.purity((c.sum(0) - c[j])[t]) for c in counts]) for j in range(groups)]
        se = math.sqrt((groups - 1) / groups * sum((f - np.mean(without)) ** 2 for f in without))
        assert got.purity[t] == pytest.approx(whole, nan_ok=True)
        assert got.se[t] == pytest.approx(se, nan_ok=True, abs=1e-12)
        assert got.corrected[t] == pytest.approx(groups * whole - (groups - 1) * np.mean(without), nan_ok=True)
    for ours, theirs in zip(jackknife(counts[0], images), jackknife_of_mean(counts[:1], images), strict=True):
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_table1_has_the_papers_rows_and_columns() -> None:
    with (PAPER / "table1.csv").open() as file:
        paper = list(csv.reader(file))
    models = paper[0][1:]
    stages = {f"C{i}": spread(2**10, 2**i) for i in range(5, 0, -1)}
    results = [result(model, stages) for model in models]
    ours = list(csv.reader(io.StringIO(FORMATS["csv"](tabled("stages", *results, reference="table1")))))
    assert ours[0] == paper[0]
    assert [row[0] for row in ours[1:]] == [*(row[0] for row in paper[1:]), "top1"]
    assert [float(row[3]) for row in ours[1:6]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    report = compared("table1", *results)
    values = {(row[0], model): float(value) for row in paper[1:] for model, value in zip(models, row[1:], strict=True)}
    assert len(report.main.rows) == 6 * 6
    for row in report.main.rows:
        assert row["reference"] == values[row["cell"], row["model"]]
        assert row["difference"] == pytest.approx(row["measured"] - row["reference"])
        assert row["measured"] == pytest.approx(0.3 if row["cell"] == "Average" else int(row["cell"][1]) / 10)
    stage = [row for row in report.main.rows if row["cell"] != "Average"]
    both = np.array([(row["measured"], row["reference"]) for row in stage])
    one = readings(report)["activation"]
    assert one["cells"] == 30
    assert one["difference"] == pytest.approx(np.abs(both[:, 0] - both[:, 1]).mean())
    assert one["rank"] == pytest.approx(scipy_stats.spearmanr(*both.T)[0])
    average = readings(report)["Average"]
    assert (average["cells"], average["rank"]) == (6, None)  # they are all alike
    page = FORMATS["md"](report)
    assert "mean absolute difference" in page
    (line,) = (line for line in page.splitlines() if line.startswith("| vgg13_bn ") and "| C1 " in line)
    shown = [cell.strip() for cell in line.split("|")[1:-1]]
    assert shown == ["vgg13_bn", "C1", "activation", "net.relu.C1", "0.100", "0.407", "-0.307", "0.000"]
    assert "No reading is called the nearest: all values are of activation." in report.notes


def test_the_star_that_the_notes_speak_of_stands_in_the_table() -> None:
    for layout, starred in (("stages", ["0.500*", "0.000*"]), ("last", ["0.000*"])):
        page = FORMATS["md"](tabled(layout, result("a", STAGES)))
        assert "N < 5 c where a * stands, so that F is biased low: C2, C3." in page
        assert re.findall(r"[\d.]+\*", page) == starred


def test_table2_is_accuracy_and_purity_and_says_what_is_missing() -> None:
    known = {"alexnet": 4, "vgg16": 16, "densenet121": 64, "resnet50": 256}
    results = [result(name, {"C5": spread(2**10, live)}, top1=50.0 + live / 100) for name, live in known.items()]
    table = tabled("last", *results, missing="pretrainedmodels:senet154", reference="table2")
    assert [row["model"] for row in read(table)] == [*known, "senet154"]
    assert [row["top1"] for row in read(table)] == ["50.04", "50.16", "50.64", "52.56", ""]
    assert [row["purity"] for row in read(table)][1:] == ["0.4", "0.6", "0.8", ""]
    page = FORMATS["md"](table)
    assert "missing" in page
    assert "- Missing: senet154: no weights here." in page
    assert "- alexnet (torchvision, weights W) on 400 images of imagenet" in page
    report = compared("table2", *results, missing="pretrainedmodels:senet154")
    theirs: Any = pd.read_csv(PAPER / "table2.csv").set_index("model")
    assert len(report.main.rows) == 10
    for row in report.main.rows:
        assert row["reference"] == theirs.loc[row["model"], row["cell"]]
        assert (row["measured"] is None) == (row["model"] == "senet154")
    one = readings(report)["activation"]
    assert (one["cells"], readings(report)["top1"]["cells"]) == (4, 4)
    assert one["rank"] == pytest.approx(1.0)
    assert one["difference"] == pytest.approx(np.mean([0.312, 0.393, 0.27, 0.148]))
    missing = [line for line in FORMATS["md"](report).splitlines() if line.startswith("| senet154")]
    assert len(missing) == 2
    assert all("missing" in line for line in missing)
    assert paper.ABOUT["table2"] in report.notes
    assert paper.IN_PLACE in report.notes


def test_each_reading_has_its_row_its_distance_and_its_rank() -> None:
    """In table2 the paper has alexnet 0.512, vgg16 0.793, densenet121 0.870, resnet50 0.948."""
    far = {"alexnet": 0.1, "vgg16": 0.2, "densenet121": 0.3, "resnet50": 0.4}
    near = {"alexnet": 0.5, "vgg16": 0.9, "densenet121": 0.8, "resnet50": 0.9}
    block = {"resnet50": 0.4, "densenet121": 0.9}
    results = [
        result(
            name,
            of_values(
                {"C5": far[name], "conv:C4": 0.1, "conv:C5": near[name]}
                | ({"block:C5": block[name]} if name in block else {})
            ),
            top1=None,
        )
        for name in far
    ]
    report = compared("table2", *results)
    rows = {(row["model"], row["reading"]): row for row in report.main.rows if row["reading"]}
    assert len(rows) == 4 + 4 + 2
    assert rows["vgg16", "conv"]["layer"] == "net.conv.C5"
    assert rows["vgg16", "conv"]["difference"] == pytest.approx(0.9 - 0.793)
    found_ = readings(report)
    assert list(found_) == ["activation", "conv", "block"]
    distance = {"activation": (0.412 + 0.593 + 0.57 + 0.548) / 4, "conv": (0.012 + 0.107 + 0.07 + 0.048) / 4}
    for name, value in distance.items():
        assert (found_[name]["cells"], found_[name]["common"]) == (4, 4)
        assert found_[name]["difference"] == pytest.approx(value)
        assert found_[name]["common_difference"] == pytest.approx(value)
    assert found_["activation"]["rank"] == pytest.approx(1.0)
    theirs = [0.512, 0.793, 0.870, 0.948]
    assert found_["conv"]["rank"] == pytest.approx(scipy_stats.spearmanr([0.5, 0.9, 0.8, 0.9], theirs)[0])
    assert (found_["block"]["cells"], found_["block"].get("common")) == (2, None)
    assert report.notes[0] == (
        "Over the 4 cells that activation and conv share (purity of 4 models), block being left out for having too "
        f"few, conv comes nearest to the reference, with a mean absolute difference of {distance['conv']:.3f}, by "
        f"{distance['activation'] - distance['conv']:.3f} nearer than the next, activation; over each one's own cells "
        f"it is activation {distance['activation']:.3f} (4), conv {distance['conv']:.3f} (4), "
        f"block {(0.548 + 0.03) / 2:.3f} (2)."
    )


def test_readings_are_set_beside_each_other_over_the_cells_that_they_share() -> None:
    """A reading that has only the stages at which it is near does not win by that."""
    stages = {"C1": 0.7, "C2": 0.6, "C3": 0.5, "C4": 0.3, "C5": 0.9}  # the paper's resnet50: .692 .641 .491 .337 .948
    blocks = {f"block:C{i}": value + 0.1 for i, value in ((3, 0.5), (4, 0.3), (5, 0.9))}
    worse = {f"conv:C{i}": value + 0.2 if i > 2 else 0.0 for i, value in ((1, 0), (2, 0), (3, 0.5), (4, 0.3), (5, 0.7))}
    report = compared("table1", result("resnet50", of_values(stages | blocks | worse), top1=None))
    found_ = readings(report)
    assert [found_[name]["cells"] for name in ("activation", "conv", "block")] == [5, 5, 3]
    assert [found_[name]["common"] for name in ("activation", "conv", "block")] == [3, 3, 3]
    own, common = found_["conv"]["difference"], found_["conv"]["common_difference"]
    assert own == pytest.approx((0.692 + 0.641 + 0.209 + 0.163 + 0.048) / 5)
    assert common == pytest.approx((0.209 + 0.163 + 0.048) / 3)
    verdict = report.notes[0]
    assert verdict.startswith(
        "Over the 3 cells that activation, conv and block share (C3, C4, C5 of 1 model), activation"
    )
    assert "nearer than the next, block" in verdict
    assert f"conv {own:.3f} (5)" in verdict


def test_equally_near_readings_are_called_so_and_too_few_cells_are_not_compared() -> None:
    same = {f"{reading}C{i}": 0.5 for reading in ("", "block:") for i in (2, 3, 4, 5)}
    verdict = compared("table1", result("resnet50", of_values(same), top1=None)).notes[0]
    assert "activation and block come equally near" in verdict
    few = {f"{reading}C{i}": 0.5 for reading in ("", "conv:") for i in (4, 5)}
    verdict = compared("table1", result("resnet50", of_values(few), top1=None)).notes[0]
    assert verdict == "No reading is called the nearest: activation and conv share fewer than 3 cells that are known."
    silent = {"C3": 0.4, "C4": 0.4, "C5": 0.4} | {f"conv:C{i}": 0.5 for i in (3, 4)}
    counts = of_values(silent) | {"conv:C5": spread(2**10, 0)}
    report = compared("table1", result("resnet50", counts, top1=None))
    assert report.notes[0].startswith("No reading is called the nearest")
    assert readings(report)["conv"]["cells"] == 2
    assert "In 1 cell nothing fired" in report.notes[1]


@pytest.mark.parametrize(("apart", "said"), [(3.9e-4, "come equally near"), (6e-4, "comes nearest")])
def test_equally_near_is_less_than_what_three_decimals_show(apart: float, said: str) -> None:
    rows = [
        {"model": "a", "epoch": None, "cell": f"C{i}", "reading": reading, "measured": 0.5 + error, "reference": 0.5}
        for reading, error in (("activation", 0.01), ("conv", 0.01 + apart))
        for i in (1, 2, 3)
    ]
    assert said in verdict(rows)


def test_an_average_of_other_stages_is_not_set_beside_the_papers() -> None:
    stages = {f"C{i}": 0.5 for i in range(1, 6)}
    blocks = {f"block:C{i}": 0.5 for i in range(2, 6)}
    convs = {f"conv:C{i}": 0.5 for i in range(1, 6)}
    counts = of_values(stages | blocks | convs) | {"conv:C5": spread(2**10, 0)}
    report = compared("table1", result("resnet50", counts, top1=None))
    averages = {row["reading"]: row["measured"] for row in report.main.rows if row["cell"] == "Average"}
    assert averages == {"activation": pytest.approx(0.5), "conv": pytest.approx(math.nan, nan_ok=True)}
    assert readings(report)["conv:Average"]["cells"] == 0
    assert "In 2 cells nothing fired" in report.notes[1]  # C5 and the average


def checkpoint(epoch: int, values: dict[str, float], model: str = "resnet18_cifar", **more: Any) -> Result:
    return result(
        model, of_values(values), dataset="cifar10-jpeg", weights=f"{model}_epoch{epoch:03}.safetensors",
        provenance={"epoch": epoch}, **more,
    )  # fmt: skip


def test_table3_is_by_network_and_epoch_and_says_what_its_accuracies_are() -> None:
    results = [checkpoint(epoch, {"C4": 0.8, "conv:C4": 0.9}) for epoch in (5, 10, 20, 50, 100)]
    report = compared("table3", *results)
    rows = [row for row in report.main.rows if row["cell"] == "purity" and row["reading"] == "conv"]
    assert [(row["epoch"], row["reference"]) for row in rows] == [(10, 0.81), (20, 0.826), (50, 0.887), (100, 0.946)]
    assert report.notes[0].startswith("Over the 4 cells that activation and conv share (purity of 4 models)")
    assert any("Table 3 are of 16 images each" in note for note in report.notes)
    assert any("CIFAR-10 as it was published, these of cifar10-jpeg" in note for note in report.notes)

    assert any(note.endswith("compare resnet18_cifar epoch 5 with.") for note in report.notes)
    table = read(tabled("last", *results))
    assert [(row["epoch"], row["purity"], row["conv:purity"]) for row in table][:2] == [
        ("5", "0.8", "0.9"),
        ("10", "0.8", "0.9"),
    ]


def test_random_weights_and_other_images_are_said_beside_the_paper() -> None:
    random = result("resnet50", of_values({"C5": 0.8}), dataset="photos", weights="none")
    notes = compared("table1", random).notes
    assert "The weights of resnet50 are random: their values tell nothing about the reference." in notes
    assert "The paper's values are of ImageNet's validation set, these of photos." in notes
    own = result("resnet50", of_values({"C5": 0.8}), dataset="imagenet", weights="IMAGENET1K_V1")
    assert not any("random" in note or "these of" in note for note in compared("table1", own).notes)


def test_an_epoch_is_known_from_the_json_beside_a_checkpoint_or_its_name(tmp_path: Path) -> None:
    def epoch(name: str) -> int | None:
        return cells.epoch_of(Job.of(weights=str(tmp_path / name)))

    (tmp_path / "a.json").write_text('{"epoch": 7}')
    (tmp_path / "net_epoch020.json").write_text("{")
    assert [epoch(name) for name in ("a.pth", "net_epoch020.pth", "net.pth")] == [7, 20, None]
    assert cells.epoch_of(Job.of(weights="IMAGENET1K_V1")) is None


def test_figure4_is_by_path_of_module_at_its_own_threshold() -> None:
    layers = {f"layer{i}.1.conv{j}": spread(2**10, 2 ** (i + j)) for i in (1, 4) for j in (1, 2)}
    rows = compared("figure4", result("resnet18_cifar", layers, top1=None, dataset="cifar10")).main.rows
    assert [(row["layer"], row["measured"], row["reference"]) for row in rows] == [
        ("layer1.1.conv1", pytest.approx(0.2), 0.147), ("layer1.1.conv2", pytest.approx(0.3), 0.394),
        ("layer4.1.conv2", pytest.approx(0.6), 0.971),
    ]  # fmt: skip
    known = paper.reference("figure4")
    at = paper.compare(found(result("resnet18", layers)), known, 0.9)
    assert [row["measured"] for row in at] == [row["measured"] for row in rows]


def test_alexnet_and_vgg_come_with_what_their_hooks_saw() -> None:
    said = [paper.IN_PLACE in compared("table1", result(name, STAGES)).notes for name in ("vgg13_bn", "resnet50")]
    assert said == [True, False]


def test_nothing_fired_is_not_nothing_scored() -> None:
    silent = result("resnet50", {"C1": spread(8, 0)})
    report = tabled("stages", silent, missing="resnet34", reference="table1")
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in FORMATS["md"](report).splitlines() if "|" in line
    ]
    assert ["C1", "NaN", "missing"] in lines
    assert FORMATS["csv"](report).splitlines()[:2] == ["stage,resnet50,resnet34", "C1,NaN,"]


def test_with_no_result_at_all_the_table_still_has_the_papers_rows() -> None:
    report = tabled("stages", missing="resnet50", reference="table1")
    assert [row["stage"] for row in report.main.rows] == ["C1", "C2", "C3", "C4", "C5", "Average"]
    beside = compared("table1", missing="resnet50")
    assert all(row["measured"] is None for row in beside.main.rows)
    assert "No reading is called the nearest: nothing was measured." in beside.notes


def test_stages_come_before_layers_and_in_their_order() -> None:
    one = result("a", {"C2": spread(4, 2), "conv:C2": spread(4, 2), "head": spread(4, 2)})
    other = result("b", {"C10": spread(4, 2), "C1": spread(4, 2)})
    rows = tabled("stages", one, other).main.rows
    assert [row["stage"] for row in rows] == [
        "C1", "C2", "C10", "Average", "conv:C2", "conv:Average", "head", "top1",
    ]  # fmt: skip
    assert rows[6] == {"stage": "head", "a": pytest.approx(0.5), "b": None}


def test_a_reference_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("stage,resnet50,alexnet\nC1,0.25,\nhead,,0.5\ntop1,40,\n")
    one, other = result("resnet50", {"C1": spread(16, 4)}), result("mine", {"C1": spread(16, 4)})
    report = compared(str(tmp_path / "own.csv"), one, other)
    assert [(row["model"], row["cell"], row["difference"]) for row in report.main.rows] == [
        ("resnet50", "C1", pytest.approx(0.25)), ("resnet50", "top1", pytest.approx(10.0)),
    ]  # fmt: skip
    assert "There is nothing to compare mine with." in report.notes
    assert "| reference |" in FORMATS["md"](report)


def test_layers_stand_in_the_order_of_the_reference(tmp_path: Path) -> None:
    modules = ["bn1", "head", "blocks.3", "blocks.0", "stem", "blocks.10", "act"]
    (tmp_path / "own.csv").write_text("\n".join(["stage,mine", *(f"{module},0.5" for module in modules)]))
    one = result("mine", {module: spread(4, 2) for module in reversed(modules)})
    *rows, top1 = tabled("stages", one, reference=str(tmp_path / "own.csv")).main.rows
    assert [row["stage"] for row in rows] == modules
    assert top1["stage"] == "top1"


def test_nothing_to_compare_is_no_row_in_every_form() -> None:
    report = compared("table1", result("mine", {"C1": spread(16, 4)}))
    said = "There is nothing to compare mine with."
    assert FORMATS["csv"](report) == "model,epoch,cell,reading,layer,measured,reference,difference,se\n"
    assert FORMATS["md"](report) == f"- {said}\n"
    assert FORMATS["table"](report) == f"{said}\n"
    assert json.loads(FORMATS["json"](report)) == {
        "schema": "purity-report/1", "comparison": [], "readings": [], "notes": [said],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not there"),
        ("", "cannot be read"),
        ("a,b\n1,2\n", "first column must be stage"),
        ("model,loss\na,2\n", "first column must be stage"),
        ("stage,m\nC1,high\n", "cannot be read"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PurityError, match=f"own.csv.*{says}"):
        paper.reference(str(path))


@pytest.mark.parametrize("name", paper.PAPER)
def test_every_value_of_the_papers_tables_is_read(name: str) -> None:
    frame: Any = pd.read_csv(PAPER / f"{name}.csv")
    values = frame.drop(columns=["epoch", "threshold"], errors="ignore").select_dtypes("number").to_numpy()
    assert sorted(one.value for one in paper.reference(name)) == sorted(values.ravel().tolist())


def test_the_smoke_suites_reference_is_of_its_models() -> None:
    from purity_cli.suite import read as read_suite

    root = Path(__file__).parents[2] / "configs"
    tasks = read_suite(root / "smoke.yaml").tasks()
    models = {column.model for column in suites.columns([(task.job, None, None) for task in tasks])}
    assert {known.model for known in paper.reference(str(root / "smoke.csv"))} < models
