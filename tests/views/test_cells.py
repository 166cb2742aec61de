"""What every view says of a result: tidy rows against the oracle, averages, the deepest layer, names, worth."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Layer, Result
from purity_cli.views import cells
from purity_cli.views.layers import Caveats, caveats, layers, stored, trust, two_digits
from tests.core import oracle
from tests.run.test_store import THRESHOLDS, result
from tests.views import made


def spread(live: int, channels: int = 16, groups: int = 4, per_group: int = 9) -> Any:
    """Counts (G, 1, c) of which `live` channels fire alike: F = log live / log c."""
    counts = np.zeros((groups, 1, channels), np.int64)
    counts[:, 0, :live] = per_group
    return counts


def row(stage: str | None, reading: str | None, live: int, module: str = "") -> Layer:
    return Layer(module or f"net.{reading}.{stage}", stage, 16, 2, 2, spread(live), reading=reading)


def of(*given: Layer, **fields: Any) -> Result:
    return replace(made.result("net", given), thresholds=(0.5,), **fields)


def test_a_tidy_row_per_layer_and_threshold_with_the_oracles_purity() -> None:
    one = result()
    rows = cells.rows([one])
    assert len(rows) == 2 * len(THRESHOLDS)
    for layer in one.layers:
        for t, threshold in enumerate(THRESHOLDS):
            (found,) = (r for r in rows if r["layer"] == layer.module and r["threshold"] == threshold)
            totals = layer.counts.sum(0)[t]
            assert set(cells.COLUMNS) <= set(found)
            assert found["purity"] == pytest.approx(oracle.purity(totals), abs=1e-12)
            assert (found["activations"], found["live"]) == (totals.sum(), (totals > 0).sum())
            assert (found["channels"], found["height"], found["width"]) == (layer.channels, layer.height, layer.width)


def test_nothing_fired_is_nan_and_no_such_cell_is_empty_in_every_format() -> None:
    silent = result(silent=True)
    page = layers([silent], 0.75)
    first, second = csv.DictReader(io.StringIO(FORMATS["csv"](page)))
    names = ("purity", "se", "activations", "top5", "stage", "reading", "average")
    assert tuple(first[name] for name in names) == ("NaN", "NaN", "0", "", "", "", "")
    assert tuple(second[name] for name in names) == ("NaN", "NaN", "0", "", "C5", "activation", "NaN")
    first, _ = json.loads(FORMATS["json"](page), parse_constant=pytest.fail)["layers"]
    assert tuple(first[name] for name in names) == (None, None, 0, None, None, None, None)
    lines = [[cell.strip() for cell in line.split("|")] for line in FORMATS["md"](page).splitlines()]
    assert ["", "C5", "layer4", "6 x 4 x 3", "NaN", "NaN", "NaN", "0", "0", ""] in lines
    assert ["", "C5", "NaN", ""] in lines
    assert ["", "Average", "NaN", ""] in lines
    assert "C5" in FORMATS["table"](page)


def test_csv_and_json_keep_every_digit() -> None:
    everything, _ = stored(result(), 0.5)
    expected = [(r["purity"], r["se"], r["purity_jk"]) for r in cells.rows([result()])]
    names = ("purity", "se", "purity_jk")
    read = csv.DictReader(io.StringIO(FORMATS["csv"](everything)))
    assert [tuple(float(r[name]) for name in names) for r in read] == expected
    assert [tuple(r[name] for name in names) for r in json.loads(FORMATS["json"](everything))["rows"]] == expected


def averages(one: Result, t: float = 0.5) -> dict[str, Any]:
    return {row["label"]: row for row in cells.every_row([one], t) if row["layer"] is None}


def test_the_average_is_of_the_stages_of_one_reading_and_nan_where_one_is() -> None:
    given_ = of(
        row("C1", None, 4), row("C2", "activation", 16), row("C2", "conv", 2), row("C3", "conv", 0), row(None, None, 1)
    )
    assert cells.rows([given_], 0.5)[0]["purity"] == pytest.approx(0.5)
    found = averages(given_)
    assert list(found) == ["Average", "conv:Average"]
    assert found["Average"]["purity"] == pytest.approx(0.75)
    assert "activations" not in found["Average"]
    assert math.isnan(found["conv:Average"]["purity"])
    rows = cells.rows([given_], 0.5)
    assert [r["average"] for r in rows][:2] == [pytest.approx(0.75)] * 2
    assert all(math.isnan(r["average"]) for r in rows[2:4])
    assert rows[4]["average"] is None
    assert averages(of(row(None, None, 1, "fc"))) == {}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(0, 16), min_size=1, max_size=5))
def test_an_average_is_the_mean_of_the_oracles(live: list[int]) -> None:
    one = of(*(row(f"C{i}", "activation", k) for i, k in enumerate(live, 1)))
    expected = np.mean([oracle.purity(layer.counts.sum(0)[0]) for layer in one.layers])
    assert averages(one)["Average"]["purity"] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ([("C2", None), ("C10", None), ("C3", None)], 1),
        ([("C3", "activation"), ("C5", "conv"), ("C4", "activation")], 2),
        ([("C5", "conv"), ("C4", "block"), ("C3", "block")], 1),
        ([(None, None), ("C1", "activation"), (None, None)], 1),
        ([(None, None), (None, None)], 1),
    ],
)
def test_the_deepest_is_the_last_stage_as_an_activation_else_as_it_was_asked_for_last(
    given_: list[tuple[str | None, str | None]], expected: int
) -> None:
    rows = [row(stage, reading, 1, f"m{i}") for i, (stage, reading) in enumerate(given_)]
    assert cells.deepest(of(*rows)).module == f"m{expected}"


def test_names_are_the_shortest_that_tell_results_and_jobs_apart() -> None:
    def names(*jobs: dict[str, Any]) -> list[str]:
        return cells.names([Job.of(**job) for job in jobs])

    assert names({"model": "timm:resnet50"}, {"model": "a/net.py:mine"}) == ["resnet50", "mine"]
    both = ["timm:resnet50", "torchvision:resnet50"]
    assert names({"model": both[0]}, {"model": both[1]}) == both
    assert names({"model": "a"}, {"model": "a", "dataset": "photos"}, {"model": "b"}) == [
        "a cifar10-sample",
        "a photos",
        "b",
    ]
    assert names({"model": "a", "limit": 3}, {"model": "a", "limit": 4}) == ["a limit 3", "a limit 4"]
    assert names({"model": "x.py:a"}, {"model": "y.py:a"}) == ["x.py:a", "y.py:a"]
    epochs = [{"model": "a", "weights": f"run/a_epoch{n:03}.pth"} for n in (2, 10)]
    assert names(*epochs) == ["a epoch 2", "a epoch 10"]
    one = result()
    assert cells.names([one, replace(one, weights="v.pth")]) == ["net w.pth", "net v.pth"]
    assert cells.names([one, one]) == ["net", "net #2"]


def test_a_threshold_that_was_not_counted_says_which_were() -> None:
    with pytest.raises(PurityError, match=r"no counts of net at the threshold 0.6, only at 0.25, 0.5, 0.75"):
        cells.rows([result()], 0.6)


def fired(*amounts: tuple[int, ...]) -> Result:
    """A row per amounts, which are N of 2 channels at the thresholds 0.1, 0.2, ...; of 100 images."""
    layers_ = [
        Layer(f"m{i}", f"C{i + 1}", 2, 2, 2, np.array([[[n, 0] for n in some], [[0, 0] for n in some]]))
        for i, some in enumerate(amounts)
    ]
    grid = tuple(round(0.1 * (t + 1), 1) for t in range(len(amounts[0])))
    return replace(made.result("net", layers_), thresholds=grid, n_images=100)


def said(*results: Result, t: float, called: Sequence[str] | None = None) -> list[str]:
    """The sentences on F at the threshold."""
    names = called or cells.names(results)
    found = trust(results, cells.every_row(results, t, called=names), t, 0.01, names)
    return [sentence for sentence in found if not sentence.startswith("F 1%")]


def test_how_far_a_number_can_be_trusted() -> None:
    """c = 2, so that N should be 10."""
    fine = fired((30, 20, 10), (99, 98, 97))
    assert caveats(fine, 0.3) == Caveats((), (), (), 0.3, 100)
    assert said(fine, t=0.3) == []
    low = fired((30, 10, 3), (99, 98, 7))
    assert caveats(low, 0.3) == Caveats(("C1", "C2"), (), (), 0.2, 340)  # 100 * 10 / 3 = 333.3
    assert said(low, t=0.3) == [
        "N < 5 c where a * stands, so that F is biased low: C1, C2.",
        "Every layer has N >= 5 c up to the threshold 0.2; the threshold 0.3 needs about 340 images.",
    ]
    silent = fired((30, 10, 0), (9, 8, 7), (0, 0, 0))
    assert caveats(silent, 0.3) == Caveats(("C2",), ("C1",), ("C3",), None, None)
    assert said(silent, fine, t=0.3, called=["a", "b"]) == [
        "Nothing fires at any threshold, so that F is NaN: a: C3.",
        "Nothing fires at the threshold 0.3, so that F is NaN: a: C1.",
        "N < 5 c where a * stands, so that F is biased low: a: C2.",
        "a: Every layer that fires at all has N >= 5 c at no stored threshold.",
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, 1), (99.0, 99), (99.5, 100), (333.3, 340), (1200.0, 1200), (1201.0, 1300), (9951.0, 10000)],
)
def test_images_needed_are_rounded_up_to_two_digits(value: float, expected: int) -> None:
    assert two_digits(value) == expected


def test_a_network_without_a_classifier_has_its_other_measures_and_empty_cells() -> None:
    headless = Layer("layer4", "C4", 16, 7, 7, None, measures={"rankme": 3.25}, reading="activation")  # type: ignore[arg-type]
    sentence = "headless has no classifier, so that it has no purity."
    one = of(headless, provenance={"notes": [sentence]})
    page = layers([one], 0.5)
    (found,) = csv.DictReader(io.StringIO(FORMATS["csv"](page)))
    assert (found["purity"], found["threshold"], found["activations"], found["rankme"]) == ("", "", "", "3.25")
    for layout in ("md", "table", "json"):
        assert sentence in FORMATS[layout](page)
        assert "NaN" not in FORMATS[layout](page)
    assert cells.frame([one]).empty


def test_f_at_a_rate_stands_beside_f_and_its_columns_behind_all_others() -> None:
    one = made.result("net", made.stages(2))
    report = layers([one], 0.5, 0.05)
    head = next(line for line in FORMATS["md"](report).splitlines() if line.startswith("| stage"))
    assert [cell.strip() for cell in head.split("|")[4:7]] == ["F", "se", "F 5%"]
    everything, _ = stored(one, 0.5)
    (names, *_) = csv.reader(io.StringIO(FORMATS["csv"](everything)))
    assert names == [*cells.COLUMNS, "purity_rate", "purity_rate_se", "rate", "rate_threshold"]
    for layer, row in zip(one.layers, cells.rows([one], 0.5, 0.05), strict=True):
        totals = layer.counts.sum(0)
        share = totals.sum(1) / (400 * 24)
        f = np.array([oracle.purity(counts) for counts in totals])
        expected = np.interp(-np.log(0.05), -np.log(share[share > 0]), f[share > 0])
        assert row["purity_rate"] == pytest.approx(expected, abs=1e-12)
        assert row["average"] == pytest.approx(np.mean([r["purity"] for r in cells.rows([one], 0.5)]))


def test_a_rate_that_no_threshold_gives_is_nan_with_its_reason() -> None:
    full = Layer("fc", None, 16, 1, 1, np.repeat(spread(8, per_group=50), 3, axis=1))
    one = replace(made.result("net", [full]), thresholds=(0.1, 0.5, 0.9), n_images=200)
    (row,) = cells.rows([one], 0.5)
    assert math.isnan(row["purity_rate"])
    notes = layers([one], 0.5).notes
    assert any(note.startswith("F 1% is NaN, because 50.00% fire at every threshold") for note in notes)


def test_few_images_make_f_at_a_rate_biased_low() -> None:
    one = made.result("net", made.stages(1))
    starred = layers([one], 0.5, 0.01)
    assert (0, "purity_rate") in starred.main.marks
    assert any("F 1% of 400 images has about 4 firings per channel" in note for note in starred.notes)
    assert (0, "purity_rate") not in layers([one], 0.5, 0.02).main.marks


@pytest.mark.parametrize(
    ("named", "epoch"),
    [("step=1000-epoch=2.ckpt", 2), ("sweep_20_epoch9.pth", 9), ("deep18.pth", None), ("net_epoch007.pt", 7)],
)
def test_the_epoch_of_a_name_is_read_by_one_rule(named: str, epoch: int | None) -> None:
    assert cells.epoch_of(Job.of(weights=named)) == epoch
