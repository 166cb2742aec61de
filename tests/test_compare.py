"""The paper's tables: values known by hand, the paper's own layout, what is missing, what differs."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

import purity_cli
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Layer, Result
from purity_cli.stats import jackknife, jackknife_of_mean
from purity_cli.suite import Suite, compare
from tests import oracle

PAPER = Path(purity_cli.__file__).parent / "paper"
GROUPS = 5


def spread(channels: int, live: int, per_group: int = 4) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Counts (G, T = 2, c) of which `live` channels fire alike: F = log live / log c at the first threshold."""
    counts = np.zeros((GROUPS, 2, channels), np.int64)
    counts[:, 0, :live] = per_group
    return counts


def result(model: str, layers: dict[str, np.ndarray[Any, np.dtype[np.int64]]], top1: float | None = 50.0) -> Result:
    """`layers` by stage or, where the name is none, by module."""
    return Result(
        job=Job.of(model=model, thresholds=(0.5, 0.9), groups=GROUPS),
        thresholds=(0.5, 0.9),
        layers=tuple(
            Layer(f"net.{name}", name if name[0] == "C" else None, counts.shape[2], 2, 2, counts)
            if name[0] == "C"
            else Layer(name, None, counts.shape[2], 2, 2, counts)
            for name, counts in layers.items()
        ),
        n_images=400,
        top1=top1,
        top5=None,
        model=model.rpartition(":")[2],
        source="torchvision",
        weights="W",
        dataset="imagenet",
        preprocessing="resize 224",
        provenance={},
    )


def suite(models: list[str], **options: Any) -> Suite:
    return Suite.model_validate({"name": "mine", "models": models, **options})


def found(*results: Result, missing: str | None = None) -> list[compare.Column]:
    jobs: list[tuple[Job, Result | None, str | None]] = [(one.job, one, None) for one in results]
    return compare.columns([*jobs, *([(Job.of(model=missing), None, "no weights here")] if missing else [])])


def kinds_of(summary: pd.DataFrame) -> dict[str, list[Any]]:
    """The rows of a summary by their kind of cell."""
    return {name: row for name, *row in summary.to_numpy().tolist()}


STAGES = {"C1": spread(16, 4), "C2": spread(64, 8), "C3": spread(256, 1)}
"""F = 0.5, 0.5 and 0."""


def test_values_known_by_hand() -> None:
    cells = compare.cells(result("a", STAGES), "stages", 0.5)
    assert {name: value for name, (value, _) in cells.items()} == pytest.approx(
        {"C1": 0.5, "C2": 0.5, "C3": 0.0, "Average": 1 / 3, "top1": 50.0}
    )
    assert [se for _, se in cells.values()] == pytest.approx([0, 0, 0, 0, 100 * math.sqrt(0.25 / 400)], abs=1e-9)
    assert compare.cells(result("a", STAGES, top1=None), "last", 0.5).keys() == {"purity"}
    assert compare.cells(result("a", STAGES), "last", 0.5)["purity"][0] == 0.0
    assert math.isnan(compare.cells(result("a", STAGES), "stages", 0.9)["Average"][0])
    with pytest.raises(PurityError, match=r"no counts of a at the threshold 0.7"):
        compare.cells(result("a", STAGES), "stages", 0.7)


def test_the_deepest_stage_is_the_last_wherever_it_stands() -> None:
    layers = {"C5": spread(16, 4), "C2": spread(16, 16)}
    assert compare.cells(result("a", layers), "last", 0.5)["purity"][0] == pytest.approx(0.5)


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


def test_table1_has_the_papers_rows_and_columns(tmp_path: Path) -> None:
    with (PAPER / "table1.csv").open() as file:
        paper = list(csv.reader(file))
    models = paper[0][1:]
    stages = {f"C{i}": spread(2**10, 2**i) for i in range(5, 0, -1)}
    columns = found(*(result(model, stages) for model in models))
    compare.write(suite(models, reference="table1"), columns, tmp_path)
    with (tmp_path / "mine.csv").open() as file:
        ours = list(csv.reader(file))
    assert ours[0] == paper[0]
    assert [row[0] for row in ours[1:]] == [*(row[0] for row in paper[1:]), "top1"]
    assert [float(row[3]) for row in ours[1:6]] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    compared: Any = pd.read_csv(tmp_path / "mine_comparison.csv")
    assert list(compared.columns) == ["model", "cell", "measured", "paper", "difference", "se"]
    assert len(compared) == 6 * 6
    values = {(row[0], model): float(value) for row in paper[1:] for model, value in zip(models, row[1:], strict=True)}
    for row in compared.to_dict("records"):
        assert row["paper"] == values[row["cell"], row["model"]]
        assert row["difference"] == pytest.approx(row["measured"] - row["paper"])
        assert row["measured"] == pytest.approx(0.3 if row["cell"] == "Average" else int(row["cell"][1]) / 10)
    summary = compare.summary(compared)
    stage = compared[compared["cell"] != "Average"]
    kinds = kinds_of(summary)
    assert kinds["purity"][:2] == [30, 30]
    assert kinds["purity"][2] == pytest.approx(np.abs(stage["measured"] - stage["paper"]).mean())
    assert kinds["purity"][3] == pytest.approx(scipy_stats.spearmanr(stage["measured"], stage["paper"])[0])
    assert kinds["Average"][:2] == [6, 6]
    assert math.isnan(kinds["Average"][3])  # they are all alike
    text = (tmp_path / "mine_comparison.md").read_text()
    assert "| vgg13_bn  | C1      | 0.100      | 0.407   | -0.307       | 0.000 |" in text


def test_table2_is_accuracy_and_purity_and_says_what_is_missing(tmp_path: Path) -> None:
    known = {"alexnet": 4, "vgg16": 16, "densenet121": 64, "resnet50": 256}
    results = [result(name, {"C5": spread(2**10, live)}, top1=50.0 + live / 100) for name, live in known.items()]
    columns = found(*results, missing="pretrainedmodels:senet154")
    chosen = suite([*known, "pretrainedmodels:senet154"], reference="table2", layout="last")
    compare.write(chosen, columns, tmp_path)
    lines = (tmp_path / "mine.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[0] == ["measure", *known, "senet154"]
    assert rows[2] == ["accuracy / %", "50.04", "50.16", "50.64", "52.56", "missing"]
    assert rows[3] == ["purity", "0.200", "0.400", "0.600", "0.800", "missing"]
    assert "Missing: senet154: no weights here" in lines
    assert any(line.startswith("alexnet (torchvision, weights W) on 400 images of imagenet") for line in lines)
    with (tmp_path / "mine.csv").open() as file:
        assert [row[-1] for row in csv.reader(file)] == ["senet154", "", ""]
    compared: Any = pd.read_csv(tmp_path / "mine_comparison.csv")
    paper: Any = pd.read_csv(PAPER / "table2.csv").set_index("model")
    assert len(compared) == 10
    for row in compared.to_dict("records"):
        assert row["paper"] == paper.loc[row["model"], row["cell"]]
        assert math.isnan(row["measured"]) == (row["model"] == "senet154")
    kinds = kinds_of(compare.summary(compared))
    assert {name: row[:2] for name, row in kinds.items()} == {"purity": [5, 4], "top1": [5, 4]}
    assert kinds["purity"][3] == pytest.approx(1.0)
    assert kinds["purity"][2] == pytest.approx(np.mean([0.312, 0.393, 0.27, 0.148]))
    text: Any = compare.compared_text(compared, columns)
    missing = text[text["model"] == "senet154"]
    assert missing["measured"].tolist() == ["missing", "missing"]
    assert missing["difference"].tolist() == ["", ""]


def test_nothing_fired_is_not_nothing_scored(tmp_path: Path) -> None:
    silent = result("resnet50", {"C1": spread(8, 0)})
    columns = found(silent, missing="resnet34")
    text = compare.table_text(compare.table(suite(["resnet50", "resnet34"]), columns, None), columns)
    assert list(text.iloc[0]) == ["C1", "NaN", "missing"]
    compare.write(suite(["resnet50", "resnet34"], reference="table1"), columns, tmp_path)
    with (tmp_path / "mine.csv").open() as file:
        assert list(csv.reader(file))[1] == ["C1", "NaN", ""]


def test_with_no_result_at_all_the_table_still_has_the_papers_rows(tmp_path: Path) -> None:
    columns = found(missing="resnet50")
    numbers = compare.table(suite(["resnet50"]), columns, compare.reference("table1"))
    assert list(numbers.index) == ["C1", "C2", "C3", "C4", "C5", "Average"]
    compare.write(suite(["resnet50"], reference="table1"), columns, tmp_path)
    assert compare.summary(pd.read_csv(tmp_path / "mine_comparison.csv"))["measured"].tolist() == [0, 0]


def test_stages_come_before_layers_and_in_their_order() -> None:
    columns = found(
        result("a", {"C2": spread(4, 2), "head": spread(4, 2)}), result("b", {"C10": spread(4, 2), "C1": spread(4, 2)})
    )
    numbers = compare.table(suite(["a", "b"]), columns, None)
    assert list(numbers.index) == ["C1", "C2", "C10", "head", "Average", "top1"]
    assert numbers.loc["head", "b"] is None


def test_columns_have_the_shortest_names_that_tell_them_apart() -> None:
    def names(*jobs: dict[str, Any]) -> list[str]:
        return [column.name for column in compare.columns([(Job.of(**job), None, None) for job in jobs])]

    assert names({"model": "timm:resnet50"}, {"model": "a/net.py:mine"}) == ["resnet50", "mine"]
    assert names({"model": "timm:resnet50"}, {"model": "torchvision:resnet50"}) == [
        "timm:resnet50",
        "torchvision:resnet50",
    ]
    assert names({"model": "a"}, {"model": "a", "dataset": "photos"}, {"model": "b"}) == [
        "a cifar10-sample",
        "a photos",
        "b",
    ]
    assert names({"model": "a", "limit": 3}, {"model": "a", "limit": 4, "weights": "none"}) == [
        "a default limit 3",
        "a none limit 4",
    ]


def test_a_reference_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("stage,resnet50,alexnet\nC1,0.25,\nhead,,0.5\ntop1,40,\n")
    columns = found(result("resnet50", {"C1": spread(16, 4)}), result("mine", {"C1": spread(16, 4)}))
    paper = compare.reference(str(tmp_path / "own.csv"))
    compared = compare.compare(suite(["resnet50"], reference="own.csv"), columns, paper)
    assert list(compared.columns) == ["model", "cell", "measured", "reference", "difference", "se"]
    assert compared[["model", "cell", "difference"]].to_numpy().tolist() == [
        ["resnet50", "C1", pytest.approx(0.25)],
        ["resnet50", "top1", pytest.approx(10.0)],
    ]
    assert compare.unmatched(columns, paper) == ["There is nothing to compare mine with."]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is not there"),
        ("", "cannot be read"),
        ("a,b\n1,2\n", "first column must be stage"),
        ("stage,m\nC1,high\n", "cannot be read"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "own.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PurityError, match=f"own.csv.*{says}"):
        compare.reference(str(path))


def test_the_smoke_suites_reference_is_of_its_models() -> None:
    from purity_cli.suite import read

    root = Path(__file__).parents[1] / "configs"
    models = {
        column.model
        for column in compare.columns([(task.job, None, None) for task in read(root / "smoke.yaml").tasks()])
    }
    assert set(compare.reference(str(root / "smoke.csv"))["model"]) < models
