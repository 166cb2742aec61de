"""Tables: the tidy frame against the oracle, NaN in every format, the paper's layout."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest

from purity_cli import tables
from purity_cli.errors import PurityError
from tests import oracle
from tests.test_store import THRESHOLDS, result


def test_frame_has_a_row_per_layer_and_threshold_with_the_oracles_purity() -> None:
    given = result()
    rows = tables.frame([given])
    assert list(rows.columns) == list(tables.COLUMNS)
    assert len(rows) == 2 * len(THRESHOLDS)
    for layer in given.layers:
        for t, threshold in enumerate(THRESHOLDS):
            (row,) = rows[(rows["layer"] == layer.module) & (rows["threshold"] == threshold)].to_dict("records")
            totals = layer.counts.sum(0)[t]
            assert row["purity"] == pytest.approx(oracle.purity(totals), abs=1e-12)
            assert (row["activations"], row["live"]) == (totals.sum(), (totals > 0).sum())
            assert (row["channels"], row["height"], row["width"]) == (layer.channels, layer.height, layer.width)


def test_nothing_fired_is_nan_in_csv_and_markdown_and_null_in_json() -> None:
    silent = result(silent=True)
    rows = tables.at(tables.frame([silent]), 0.75)
    (first, _) = csv.DictReader(io.StringIO(tables.to_csv(rows)))
    assert (first["purity"], first["se"], first["activations"], first["top5"], first["stage"]) == (
        "NaN",
        "NaN",
        "0",
        "",
        "",
    )
    (first, _) = json.loads(tables.to_json(rows))
    assert (first["purity"], first["se"], first["activations"], first["top5"], first["stage"]) == (
        None,
        None,
        0,
        None,
        None,
    )
    lines = [[cell.strip() for cell in line.split("|")] for line in tables.to_markdown([silent], 0.75).splitlines()]
    assert ["", "C5", "NaN", ""] in lines
    assert ["", "Average", "NaN", ""] in lines
    assert ["", "C5", "layer4", "6 x 4 x 3", "NaN", "NaN", "NaN", "0 (< 5 c)", "0 of 6", ""] in lines


def test_json_keeps_every_digit() -> None:
    rows = tables.at(tables.frame([result()]), 0.5)
    assert [row["purity"] for row in json.loads(tables.to_json(rows))] == rows["purity"].tolist()


def test_layout_is_the_papers() -> None:
    one = result()
    two = replace(one, model="other", top1=None, layers=one.layers[1:])
    rows = tables.at(tables.frame([one, two]), 0.5)
    paper = tables.layout(rows)
    assert list(paper.index) == ["layer1.0.conv1", "C5", "Average", "top1"]
    assert list(paper.columns) == ["net", "other"]
    first, second = (oracle.purity(layer.counts.sum(0)[1]) for layer in one.layers)
    assert paper["net"].tolist() == pytest.approx([first, second, (first + second) / 2, one.top1])
    assert np.isnan(paper["other"]["layer1.0.conv1"])
    assert paper["other"]["Average"] == pytest.approx(second)
    text = tables.to_markdown([one, two], 0.5)
    assert f"{(first + second) / 2:.3f}" in text
    assert "12.35" in text
    assert "threshold 0.5; no resize, not normalised. Layers: `layer1.0.conv1`, C5 = `layer4`." in text


def test_models_of_one_name_are_told_apart() -> None:
    one = result()
    names = list(tables.layout(tables.at(tables.frame([one, replace(one, weights="v.pth")]), 0.5)).columns)
    assert names == ["net w.pth", "net v.pth"]


def test_a_threshold_that_was_not_counted_says_which_were() -> None:
    with pytest.raises(PurityError, match=r"no counts at the threshold 0.6, only at 0.25, 0.5, 0.75"):
        tables.at(tables.frame([result()]), 0.6)


def test_too_few_activations_are_found() -> None:
    rows = tables.at(tables.frame([result(channels=4, largest=1)]), 0.5)
    totals = rows["activations"]
    assert (totals < 5 * 4 * 20).all()
    assert list(tables.starved(rows).index) == [i for i, n in totals.items() if n < 20]
