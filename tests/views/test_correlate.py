"""Correlations: against scipy, against enumeration by hand, and in words what few results can show."""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from scipy import stats

import purity_cli
from purity_cli import run, store
from purity_cli.cli import run as run_command
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Layer, Result
from purity_cli.stats import feature_purity
from purity_cli.views import correlation as correlate
from purity_cli.views.against import read_against
from purity_cli.views.correlation import DRAWS, STATISTICS, all_orders, least_p, rows_of
from purity_cli.views.correlation import correlate as correlations
from tests.views import made

Floats = NDArray[np.float64]
SCIPY: dict[str, Callable[[Floats, Floats], Any]] = {
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
    "kendall": stats.kendalltau,
}
TABLE2 = Path(purity_cli.__file__).parent / "paper" / "table2.csv"

samples = st.integers(3, 12).flatmap(
    lambda n: st.tuples(
        *[st.lists(st.integers(-3, 3) | st.floats(-3, 3, width=16), min_size=n, max_size=n).filter(varies)] * 2
    )
)


def varies(values: list[float]) -> bool:
    return len(set(values)) > 1


def arrays(pair: tuple[list[float], list[float]]) -> tuple[Floats, Floats]:
    return np.array(pair[0], dtype=float), np.array(pair[1], dtype=float)


@settings(max_examples=40, deadline=None)
@given(samples)
def test_rows_are_scipys_on_random_and_tied_data(pair: tuple[list[float], list[float]]) -> None:
    x, y = arrays(pair)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(x)), (3, 1)), axis=1)
    assert set(STATISTICS) == set(SCIPY)
    for name in STATISTICS:
        expected = [SCIPY[name](x, y[order]).statistic for order in orders]
        np.testing.assert_allclose(rows_of(name, x, y[orders]), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            rows_of(name, x[orders], y[orders[::-1]]),
            [SCIPY[name](x[a], y[b]).statistic for a, b in zip(orders, orders[::-1], strict=True)],
            rtol=0,
            atol=1e-12,
        )


@pytest.mark.parametrize("n", [3, 5, 8, 40])
@pytest.mark.parametrize("levels", [3, 10**6])
def test_values_are_scipys(n: int, levels: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.integers(0, levels, (2, n)) / 7.0
    x[:2], y[:2] = (0, 1), (1, 0)
    found = correlations(x, y)
    for name, scipys in SCIPY.items():
        assert found[name].value == pytest.approx(scipys(x, y).statistic, rel=0, abs=1e-12)


@settings(max_examples=12, deadline=None)
@given(st.integers(3, 5).flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2)))
def test_p_of_few_is_the_share_of_all_orders(pair: tuple[list[float], list[float]]) -> None:
    x, y = arrays(pair)
    if not (varies(pair[0]) and varies(pair[1])):
        return
    found = correlations(x, y)
    for name, scipys in SCIPY.items():
        values = [scipys(x, np.array(order)).statistic for order in itertools.permutations(y)]
        expected = np.mean([abs(value) >= abs(found[name].value) - 1e-9 for value in values])
        assert found[name].exact
        assert found[name].p == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [4, 5, 6, 7])
def test_p_of_few_without_ties_is_scipys_exact_one(n: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, n))
    found = correlations(x, y)
    assert found["kendall"].p == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue, abs=1e-12)


def test_p_of_many_comes_near_scipys() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=20)
    y = 0.4 * x + rng.normal(size=20)
    found = correlations(x, y)
    for name in ("pearson", "spearman", "kendall"):
        assert not found[name].exact
        # Four standard errors of 4,999 draws.
        p = SCIPY[name](x, y).pvalue
        assert abs(found[name].p - p) < 4 * math.sqrt(p * (1 - p) / DRAWS) + 1e-3


def test_no_p_is_nought() -> None:
    x = np.arange(12.0)
    found = correlations(x, x)
    assert found["kendall"].p == 1 / (DRAWS + 1)
    assert found["kendall"].high == 1


def test_the_seed_alone_decides() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 9))
    assert correlations(x, y) == correlations(x, y)
    assert correlations(x, y, seed=1)["pearson"].p != correlations(x, y)["pearson"].p


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=25)
    y = x + rng.normal(size=25)
    found = correlations(x, y)
    for name in ("pearson", "kendall"):
        scipys = stats.bootstrap(
            (x, y),
            lambda a, b, name=name: SCIPY[name](a, b).statistic,
            paired=True,
            vectorized=False,
            n_resamples=999,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        assert found[name].low == pytest.approx(scipys.low, abs=0.06)
        assert found[name].high == pytest.approx(scipys.high, abs=0.04)


@pytest.mark.parametrize(("n", "two"), [(3, 2 / 6), (4, 2 / 24), (5, 2 / 120), (6, 2 / 720), (7, 2 / 5040)])
def test_the_least_p_is_that_of_the_two_perfect_orders(n: int, two: float) -> None:
    y = np.random.default_rng(n).normal(size=n)
    assert list(least_p(y)) == pytest.approx([two, two / 2])
    assert stats.kendalltau(y, y, method="exact").pvalue == pytest.approx(two)
    assert len(all_orders(n)) == math.factorial(n)
    assert f"{two:.3g}" in correlate.what_n_allows(y)


def test_the_words_say_what_five_can_show() -> None:
    said = correlate.what_n_allows(np.arange(5.0))
    assert "n = 5: of the 120 orders" in said
    assert "no two-sided p below 0.0167 and no one-sided p below 0.00833" in said
    assert "significant" not in said
    assert "no two-sided tau can be significant at 0.05; no p at all is below 0.0417" in correlate.what_n_allows(
        np.arange(4.0)
    )
    # One pair that is tied: the best orders come twice.
    assert "with the ties in these 5" in correlate.what_n_allows(np.array([1.0, 1, 2, 3, 4]))
    assert "below 0.0333" in correlate.what_n_allows(np.array([1.0, 1, 2, 3, 4]))
    assert "none below 0.0002" in correlate.what_n_allows(np.arange(8.0))


def counts(purity: float, channels: int = 16) -> NDArray[np.int64]:
    """(G, T, c) whose F is about `purity`: as many channels share the firings equally."""
    live = round(channels**purity)
    found = np.zeros((20, 1, channels), dtype=np.int64)
    found[:, :, :live] = 5
    return found


def result(model: str, purities: list[float], top1: float | None, **changes: Any) -> Result:
    """Stages C1.. with these purities, and as many parameters as the name is long."""
    layers = tuple(
        Layer(f"layer{i}", f"C{i}", 16, 64 >> i, 64 >> i, counts(purity)) for i, purity in enumerate(purities, 1)
    )
    whole = Result(
        job=Job.of(model=model, thresholds=(0.5,)),
        thresholds=(0.5,),
        layers=layers,
        n_images=100,
        top1=top1,
        top5=None,
        model=model,
        source="bundled",
        weights="w",
        dataset="digits",
        preprocessing="no resize",
        provenance={"parameters": len(model) * 1000, "labels": "digits carries none" if top1 is None else "used"},
    )
    return replace(whole, **changes)


def five() -> list[Result]:
    return [
        result("a", [0.3, 0.5], 50.0),
        result("bb", [0.5, 0.25], 61.0),
        result("ccc", [0.25, 0.75], 70.0),
        result("dddd", [0.75, 0.8], 75.0),
        result("eeeee", [0.1, 1.0], 72.0),
    ]


def sizes(found: correlate.Study) -> dict[str, int]:
    """The n of each quantity."""
    return {row["quantity"]: row["n"] for row in found.rows}


def _unknown(found: correlate.Study) -> list[Any]:
    return [row for row in found.rows if row["value"] is None or math.isnan(row["value"])]


def test_points_hold_stages_average_last_and_baselines() -> None:
    data = correlate.points(five(), 0.5)
    second = data.rows[1]
    expected = [feature_purity(layer.counts[:, 0].sum(0)).item() for layer in five()[1].layers]
    assert [second[name] for name in ("C1", "C2", "Average", "last")] == pytest.approx(
        [*expected, np.mean(expected), expected[1]]
    )
    assert [second[name] for name in ("parameters", "map h x w", "channels")] == [2000, 16 * 16, 16]
    assert [row["accuracy"] for row in data.rows] == [50, 61, 70, 75, 72]
    assert list(data.kinds.values()) == ["purity"] * 6 + ["baseline"] * 3


def test_a_study_is_scipys_numbers_with_words_beside() -> None:
    found = correlate.study(correlate.points(five(), 0.5))
    rows = correlate.points(five(), 0.5).rows
    x, y = (np.array([row[name] for row in rows]) for name in ("last", "accuracy"))
    last = {row["statistic"]: row for row in found.rows if row["quantity"] == "last"}
    for name, scipys in SCIPY.items():
        assert last[name]["value"] == pytest.approx(scipys(x, y).statistic, abs=1e-12)
    assert last["kendall"]["p"] == pytest.approx(stats.kendalltau(x, y, method="exact").pvalue)
    assert set(sizes(found)) == {"C1", "C2", "Average", "last", "parameters"}
    assert not _unknown(found)
    assert "Left out: map h x w (map h x w is 256 in all 5 results that have both)." in found.notes
    assert "Left out: channels (channels is 16 in all 5 results that have both)." in found.notes
    assert any("15 correlations stand here" in note for note in found.notes)
    assert any("no two-sided p below 0.0167" in note for note in found.notes)


def test_stages_that_not_all_have_are_of_those_that_do() -> None:
    results = [*five(), result("f", [0.2, 0.4, 0.9], 60.0), result("g", [0.3, 0.6, 0.8], 65.0)]
    found = correlate.study(correlate.points(results, 0.5))
    n = sizes(found)
    assert n["C2"] == n["last"] == 7
    assert "Left out: C3 (known of 2 of 7 results, too few)." in found.notes
    data = correlate.points(results, 0.5)
    assert [row["last"] for row in data.rows[-2:]] == [row["C3"] for row in data.rows[-2:]]


def test_what_fired_nowhere_is_left_out_and_not_nan() -> None:
    results = five()
    silent = replace(results[0].layers[0], counts=np.zeros((20, 1, 16), dtype=np.int64))
    results[0] = replace(results[0], layers=(silent, results[0].layers[1]))
    found = correlate.study(correlate.points(results, 0.5))
    n = sizes(found)
    assert (n["C1"], n["Average"], n["last"]) == (4, 4, 5)
    assert sum(note.startswith("n = ") for note in found.notes) == 2
    assert not _unknown(found)


def test_peers_and_random_networks_stand_beside() -> None:
    results = five()
    for i, one in enumerate(results):
        layers = (one.layers[0], replace(one.layers[1], measures={"rankme": 3.0 + i, "alpha_req": 1.0}))
        results[i] = replace(one, layers=layers)
    twins = [result("t", [0.1 * (i + 1), 0.15 * (i + 1)], None) for i in range(5)]
    data = correlate.points(results, 0.5, random_init=twins)
    kinds = {"purity": 6, "peer": 2, "baseline": 3, "random": 6}
    assert [kind for kind, many in kinds.items() for _ in range(many)] == list(data.kinds.values())
    found = correlate.study(data)
    assert {"rankme", "random last", "random C1", "random Average"} <= set(sizes(found))
    assert any(note.startswith("Left out: alpha_req (alpha_req is 1 in all") for note in found.notes)


def test_measures_of_every_layer_are_asked_for() -> None:
    results = []
    for i, one in enumerate(five()):
        layers = tuple(replace(layer, measures={"rankme": 3.0 + i * k}) for k, layer in enumerate(one.layers, 1))
        results.append(replace(one, layers=layers))
    kinds = correlate.points(results, 0.5).kinds
    assert [name for name, kind in kinds.items() if kind == "peer"] == ["rankme"]
    data = correlate.points(results, 0.5, every_layer=True)
    peers = [name for name, kind in data.kinds.items() if kind == "peer"]
    assert peers == ["rankme", "C1 rankme", "C2 rankme"]
    assert [data.rows[1][name] for name in peers] == [5.0, 4.0, 5.0]


def test_networks_without_a_classifier_are_correlated_by_their_other_measures() -> None:
    results = []
    for i, one in enumerate(five()):
        layer = replace(one.layers[1], counts=None, measures={"rankme": 3.0 + i})  # type: ignore[arg-type]
        results.append(replace(one, layers=(layer,)))
    found = correlate.study(correlate.points(results, 0.5))
    assert set(sizes(found)) == {"rankme", "parameters"}
    assert "Left out: last (known of 0 of 5 results, too few)." in found.notes


def test_results_that_differ_or_depend_on_each_other_are_told() -> None:
    results = five()
    results[0] = replace(results[0], dataset="cifar10", n_images=1000, preprocessing="resize 32")
    notes = correlate.points(results, 0.5).notes
    assert notes == (
        "The results are of 2 different data sets (cifar10, digits): compare within one.",
        "The results are of 2 different numbers of images (1,000, 100): compare within one.",
        "The results are of 2 different pixels (resize 32, no resize): compare within one.",
    )
    same = [replace(one, model="a", weights=f"epoch{i}") for i, one in enumerate(five())]
    assert "Checkpoints of one training depend on each other (a)" in correlate.points(same, 0.5).notes[0]


def test_fewer_than_three_are_refused() -> None:
    with pytest.raises(PurityError, match="2 results cannot be correlated: give 3 or more"):
        correlate.points(five()[:2], 0.5)


def test_a_missing_accuracy_is_named() -> None:
    results = [*five(), result("blind", [0.1, 0.2], None)]
    with pytest.raises(
        PurityError, match=r"blind with weights w has no accuracy \(digits carries none\): leave it out"
    ):
        correlate.points(results, 0.5)


def test_a_constant_target_is_refused() -> None:
    results = [replace(one, top1=50.0) for one in five()]
    with pytest.raises(PurityError, match="accuracy is 50 in all 5 results: nothing can be correlated with it"):
        correlate.study(correlate.points(results, 0.5))


def test_purity_that_is_constant_is_refused() -> None:
    results = [replace(one, layers=five()[0].layers) for one in five()]
    with pytest.raises(PurityError, match=r"No purity can be correlated: C1 \(C1 is [\d.]+ in all 5 results"):
        correlate.study(correlate.points(results, 0.5))


def test_against_is_joined_on_model_and_on_weights(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("model,weights,loss\neeeee,w,5\nbb,w,2\nccc,w,3\na,w,1\ndddd,w,4\ndddd,other,9\nz,w,7\n")
    against = read_against(f"{path}:loss", five())
    assert against[:2] == ([1, 2, 3, 4, 5], "loss of own.csv")
    assert against.notes == ("Joined with own.csv by model and weights: 5 of 5 results; 2 of its 7 rows are of none.",)
    data = correlate.points(five(), 0.5, against=against)
    assert [row["loss of own.csv"] for row in data.rows] == [1, 2, 3, 4, 5]
    assert {row["against"] for row in correlate.study(data).rows} == {"loss of own.csv"}


def test_the_papers_own_table_can_be_the_target() -> None:
    paper = pd.read_csv(TABLE2)
    results = [result(model, [0.2, 0.5], None) for model in paper["model"]]
    assert read_against(f"{TABLE2}:purity", results).values == paper["purity"].tolist()


# A dozen rows, laid out and quoted as in timm's results-imagenet.csv; the numbers are made up.
TIMM = """model,top1,top1_err,top5,top5_err,param_count,img_size,crop_pct,interpolation
resnet50.a1_in1k,81.2,18.8,95.1,4.9,25.56,288,1.000,bicubic
resnet50.a1_in1k,80.2,19.8,94.6,5.4,25.56,224,0.950,bicubic
resnet50.tv_in1k,76.1,23.9,92.9,7.1,25.56,224,0.875,bilinear
resnet50.a3_in1k,78.1,21.9,93.8,6.2,25.56,224,0.950,bicubic
resnet50d.a1_in1k,81.5,18.5,95.2,4.8,25.58,288,1.000,bicubic
resnet18.a1_in1k,73.2,26.8,91.0,9.0,11.69,288,1.000,bicubic
convnext_tiny.fb_in1k,82.7,17.3,96.1,3.9,28.59,288,1.000,bicubic
convnext_tiny.fb_in1k,82.1,17.9,95.9,4.1,28.59,224,0.875,bicubic
regnety_1280.swag_ft_in1k,88.2,11.8,98.7,1.3,"1,644.81",384,1.000,bicubic
xception41.tf_in1k,78.5,21.5,94.3,5.7,26.97,299,0.903,bicubic
tresnet_m,80.1,19.9,94.8,5.2,31.39,224,0.875,bilinear
densenet121.ra_in1k,75.6,24.4,92.7,7.3,7.98,224,0.875,bicubic
"""


def scored(model: str, weights: str, size: int | None, source: str = "timm") -> Result:
    pixels = {"crop": [size, size] if size else None, "resize": None if size else 256}
    return result(model, [0.2, 0.5], None, weights=weights, source=source, provenance={"preprocessing": pixels})


def test_a_table_of_timm_s_is_joined_by_tag_then_by_size_and_says_what_is_left(tmp_path: Path) -> None:
    path = tmp_path / "results-imagenet.csv"
    path.write_text(TIMM)
    results = [
        scored("resnet50", "a1_in1k", 224), scored("resnet50", "a1_in1k", 288), scored("resnet50", "a1_in1k", 160),
        scored("resnet50", "tv_in1k", 224), scored("resnet50", "IMAGENET1K_V1", 224, "torchvision"),
        scored("resnet50d", "a1_in1k", 224), scored("convnext_tiny.fb_in1k", "main", 288, "hf-hub"),
        scored("xception41", "tf_in1k", 299), scored("tresnet_m", "miil_in1k", 224),
        scored("regnety_1280", "swag_ft_in1k", 384), scored("resnet34", "a1_in1k", 224),
        scored("resnet18", "model.safetensors", 288), scored("densenet121", "ra_in1k", None),
    ]  # fmt: skip
    found = read_against(f"{path}:top1", results)
    expected = [80.2, 81.2, None, 76.1, None, None, 82.7, 78.5, 80.1, 88.2, None, None, None]
    assert (list(found.values), found.name) == (expected, "top1 of results-imagenet.csv")
    assert found.notes == (
        "Joined with results-imagenet.csv by model, tag and image size: 7 of 13 results; 5 of its 12 rows are of none.",
        "Left, without a value in results-imagenet.csv: resnet50.a1_in1k (of 288 and 224 pixels there, scored at 160), "
        "resnet50 with weights IMAGENET1K_V1 (no row), resnet50d.a1_in1k (of 288 pixels there, scored at 224), "
        "resnet34.a1_in1k (no row), resnet18.model.safetensors (no row), "
        "densenet121.ra_in1k (of 224 pixels there, scored at no one size).",
    )
    nearest = read_against(f"{path}:top5", results, any_size=True).values
    assert list(nearest) == [94.6, 95.1, 94.6, 92.9, None, 95.2, 96.1, 94.3, 94.8, 98.7, None, None, 92.7]
    assert read_against(f"{path}:param_count", results).values[9] == 1644.81
    data = correlate.points(results, 0.5, against=found)
    assert [row[found.name] for row in data.rows] == [value for value in expected if value]
    assert data.notes[:2] == found.notes
    with pytest.raises(
        PurityError, match=r"has rows for 2 of the 4 results, too few; left: resnet50\.a1_in1k \(of 288"
    ):
        read_against(f"{path}:top1", results[1:5])


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        ("model,loss\na,1\n", "own.csv", "Cannot read --against .*own.csv: write FILE.csv:COLUMN"),
        ("model,loss\na,1\n", "own.csv:los", "own.csv has no column los, only model, loss. Did you mean loss"),
        ("net,loss\na,1\n", "own.csv:loss", "own.csv has no column model, only net, loss"),
        ("model,loss\na,1\nbb,2\n", "own.csv:loss", r"rows for 2 of the 5 results, too few; left: ccc .* \(no row\),"),
        ("model,loss\na,1\na,2\n", "own.csv:loss", "own.csv has 2 rows for a with weights w: leave one, or add a col"),
        ("model,loss\na,high\n", "own.csv:loss", "own.csv has no number in loss for a with weights w, but 'high'"),
        ("model,loss\na,\n", "own.csv:loss", "own.csv has no number in loss for a with weights w, but ''"),
        ("", "own.csv:loss", "own.csv cannot be read as CSV"),
        ("model,loss\n", "other.csv:loss", "other.csv cannot be read as CSV"),
    ],
)
def test_a_bad_csv_is_one_sentence(text: str, given: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text(text)
    given = given if given == "own.csv" else f"{tmp_path}/{given}"
    with pytest.raises(PurityError, match=says):
        read_against(given, five())


def test_several_measures_are_ranked_side_by_side() -> None:
    results = []
    for i, one in enumerate(five()):
        measures = {"rankme": [9.0, 8, 7, 1, 2][i], "alpha_req": [1.0, 2, 5, 4, 3][i]}
        results.append(replace(one, layers=(one.layers[0], replace(one.layers[1], measures=measures))))
    found = correlate.study(correlate.points(results, 0.5))
    (table,), notes = correlate.ranking(found)
    accuracy, last = [50, 61, 70, 75, 72], [row["last"] for row in correlate.points(results, 0.5).rows]
    values = {"purity": last, "rankme": [9, 8, 7, 1, 2], "alpha_req": [1, 2, 5, 4, 3]}
    rho = {name: stats.spearmanr(of, accuracy).statistic for name, of in values.items()}
    assert [row["measure"] for row in table.rows] == sorted(rho, key=lambda name: -abs(rho[name]))
    for row in table.rows:
        assert row["rho"] == pytest.approx(rho[row["measure"]], abs=1e-12)
        assert row["low"] <= row["high"]
        assert row["n"] == 5
    assert "overlap: 5 results do not tell" in notes[0]
    assert correlate.ranking(correlate.study(correlate.points(five(), 0.5))) == ([], ())
    results[0] = replace(results[0], layers=five()[0].layers)
    assert any(
        "unlike with unlike" in note for note in correlate.ranking(correlate.study(correlate.points(results, 0.5)))[1]
    )
    shown = correlate.correlation(correlate.points(results, 0.5))
    assert [table.key for table in shown.tables] == ["correlations", "quantities", "ranking", "points"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Real results of three networks on a few digits, written as `purity score` writes them."""
    place = tmp_path_factory.mktemp("results")
    written = []
    for i, (layer, limit) in enumerate([("C1", 40), ("C2", 50), ("features.6", 60)]):
        job = Job(model="tiny_vgg_10", dataset="digits", layers=(layer, "last"), limit=limit, thresholds=(0.1,))
        one = replace(run.score(run.resolve(job), workers=1), model=f"net{i}", top1=90.0 + i**2)
        one = replace(one, layers=one.layers[-1:])
        store.write(one, place / str(i), 0.1)
        written.append(str(place / str(i)))
    return written


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run_command(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("layout", ["table", "csv", "md", "json"])
def test_the_command_in_every_format(layout: str, folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(["correlate", *folders, "-t", "0.1", "--baseline", "random", "--format", layout], capsys)
    assert code == 0, err
    whole = out + err
    assert "no two-sided p below 0.333" in whole
    assert "no two-sided tau can be significant" in whole
    if layout == "csv":
        table = pd.read_csv(io.StringIO(out))
        assert list(table.columns) == [
            "quantity",
            "kind",
            "against",
            "n",
            "statistic",
            "value",
            "p",
            "p_of",
            "low",
            "high",
        ]
        assert set(table["statistic"]) == set(SCIPY)
    elif layout == "json":
        found = json.loads(out)
        assert [point["accuracy"] for point in found["points"]] == [90, 91, 94]
        assert {row["quantity"] for row in found["correlations"]} >= {"last"}
    else:
        assert "kendall" in out
    shown = whole if layout in ("csv", "table") else ""
    assert "nan" not in shown.lower()


def test_the_command_refuses_in_one_sentence(folders: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["correlate", *folders[:2]], capsys)[0] == 1
    code, _, err = call(["correlate", *folders, "-t", "0.3"], capsys)
    assert code == 1
    assert err.startswith("Error: There are no counts of net0 at the threshold 0.3")
    assert call(["correlate"], capsys)[0] == 2


def test_trainings_from_other_seeds_count_and_a_result_given_twice_does_not(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = store.read(Path(folders[0]))
    other.provenance["weights_sha256"] = "0"
    store.write(replace(other, top1=80.0), tmp_path / "other", 0.1)
    code, out, err = call(["correlate", *folders, str(tmp_path), "-t", "0.1"], capsys)
    assert code == 0, err
    assert "n = 4" in out
    code, _, err = call(["correlate", *folders, folders[0] + "/.", str(tmp_path / "other"), "-t", "0.1"], capsys)
    assert code == 0, err
    store.write(store.read(Path(folders[0])), tmp_path / "same", 0.1)
    code, _, err = call(["correlate", *folders, str(tmp_path / "same"), "-t", "0.1"], capsys)
    assert code == 1
    assert "both hold net0" in err


def test_images_that_changed_are_no_baseline(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = store.read(Path(folders[0]))
    changed.provenance["dataset_fingerprint"] = "0"
    store.write(changed, tmp_path, 0.1)
    code, _, err = call(["correlate", str(tmp_path), *folders[1:], "-t", "0.1", "--baseline", "random"], capsys)
    assert code == 1
    assert "The images of digits are no longer those that net0 was scored on" in err


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["82", "77.5", "1,014.45", "-2,500,000"], [82, 77.5, 1014.45, -2_500_000]),
        (["82", "77,5", "1", "2"], "'77,5'"),
        (["82", "0,125", "1", "2"], "'0,125'"),
        (["82", "9,125", "32,25", "10"], "'32,25'"),
        (["82", "1,2345", "1", "2"], "'1,2345'"),
    ],
)
def test_a_comma_only_groups_thousands(values: list[str], expected: list[float] | str, tmp_path: Path) -> None:
    results = [replace(one, model=f"m{i}") for i, one in enumerate(five()[:4])]
    path = tmp_path / "a.csv"
    path.write_text("model,v\n" + "".join(f'm{i},"{value}"\n' for i, value in enumerate(values)))
    if isinstance(expected, str):
        with pytest.raises(PurityError, match=f"has {expected} in v: a comma may only group thousands"):
            read_against(f"{path}:v", results)
        return
    target = read_against(f"{path}:v", results)
    assert list(target.values) == expected
    assert target.notes[-1] == "Commas in v group thousands: 1,014.45 is read as 1014.45."


def test_last_layers_that_are_not_alike_are_named() -> None:
    conv = [replace(one, reading="conv", module=f"{one.module}.conv") for one in made.stages(5, seed=2)]
    mixed = [
        made.result("a", made.stages(5, seed=1), top1=70.0), made.result("b", conv, top1=72.0),
        made.result("c", made.stages(2, seed=3), top1=75.0),
    ]  # fmt: skip
    notes = correlate.points(mixed, 0.5).notes
    assert any("The last layers are not alike (C5 of a, conv:C5 of b, C2 of c)" in note for note in notes)
    alike = [made.result(name, made.stages(5, seed=i), top1=70.0 + i) for i, name in enumerate("abc")]
    assert not any("not alike" in note for note in correlate.points(alike, 0.5).notes)
