"""Figures: what is drawn is what the counts say; names cover nothing; files are files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from PIL import Image

from purity_cli import store
from purity_cli.errors import PurityError
from purity_cli.figures import charts, drawing
from purity_cli.plan import DEFAULT_GRID
from purity_cli.results import Layer, Result
from purity_cli.views import cells
from tests.core import oracle
from tests.views import made


def expected(layer: Layer) -> dict[float, float]:
    """F by threshold, where anything fires."""
    totals = layer.counts.sum(0)
    return {t: oracle.purity(row) for t, row in zip(DEFAULT_GRID, totals, strict=True) if row.sum()}


def jackknife_se(layer: Layer, t: float) -> float:
    """Written out: 20 groups, each left out once."""
    counts = layer.counts[:, DEFAULT_GRID.index(t)]
    left = [oracle.purity(np.delete(counts, g, 0).sum(0)) for g in range(20)]
    return float(np.sqrt(19 / 20 * sum((f - np.mean(left)) ** 2 for f in left)))


def legend_texts(ax: Axes) -> list[Text]:
    found = ax.get_legend()
    return list(found.get_texts()) if found else []


def legend(ax: Axes) -> list[str]:
    return [text.get_text().replace("\n", "") for text in legend_texts(ax)]


def xy(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata(), float).tolist()


def filled(ax: Axes) -> list[Line2D]:
    """The lines without the markers that are hollow."""
    return [line for line in ax.lines if line.get_label() != "_low"]


def hollow_points(ax: Axes) -> list[tuple[float, float]]:
    return [point for line in ax.lines if line.get_label() == "_low" for point in zip(*xy(line), strict=True)]


def rows_at(results: list[Result], threshold: float = 0.5) -> pd.DataFrame:
    return cells.frame(results, threshold)


def words(figure: Figure) -> Iterator[Text]:
    """All that is written and within view; a tick outside of it has a label that is not drawn."""
    yield from figure.texts
    for ax in figure.axes:
        yield from (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts)
        yield from legend_texts(ax)
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            places = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            yield from (label for place, label in places if low <= place <= high)


def nothing_overlaps(figure: Figure) -> None:
    """No words lie over others, and none leave the figure."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in words(figure) if text.get_text().strip()]
    for (one, a), (other, b) in combinations(boxes, 2):
        assert not a.padded(-0.5).overlaps(b.padded(-0.5)), (one, other)
    for name, box in boxes:
        assert figure.bbox.padded(1).contains(*box.min), name
        assert figure.bbox.padded(1).contains(*box.max), name


def test_a_sweep_draws_the_oracles_purity_with_one_standard_error_and_leaves_out_what_never_fires() -> None:
    net = made.result("net", [*made.stages(3, silent=(2,)), made.layer("conv9", seed=9)])
    (ax,) = charts.threshold_sweep(cells.frame([net])).axes
    names = ("C1 (layer1)", "C2 (layer2)", "C3 (layer3)", "conv9")
    for layer, name, line, band, label in zip(net.layers, names, filled(ax), ax.collections, legend(ax), strict=True):
        points = expected(layer)
        assert xy(line)[0] == list(points)
        assert xy(line)[1] == pytest.approx(list(points.values()), abs=1e-12)
        silent = [t for t in DEFAULT_GRID if t not in points]
        assert silent
        where = "at any t" if not points else f"from t = {silent[0]:g}"
        assert label == f"{name}, nothing fires {where}"
        if points:
            corners = np.asarray(band.get_paths()[0].vertices)
            at_half = sorted(corners[corners[:, 0] == 0.5, 1])
            se = jackknife_se(layer, 0.5)
            assert at_half == pytest.approx([points[0.5] - se, points[0.5] + se], abs=1e-12)
    fired = {t: f for one in net.layers for t, f in expected(one).items() if _n(one, t) < 5 * 24}
    assert fired
    assert {t for t, _ in hollow_points(ax)} == set(fired)
    assert len(hollow_points(ax)) == sum(_n(one, t) < 5 * 24 for one in net.layers for t in expected(one))


def _n(layer: Layer, t: float) -> int:
    """N at a threshold."""
    return int(layer.counts[:, DEFAULT_GRID.index(t)].sum())


def test_error_bars_stop_at_0_and_1() -> None:
    counts = np.zeros((20, len(DEFAULT_GRID), 24), dtype=np.int64)
    counts[0, :, 0], counts[1, :, 1] = 1, 1  # two images decide: F has a large error
    wide = replace(made.result("wide", [Layer("x", "C1", 24, 7, 7, counts)]), images_by_group=(20,) * 20)
    (row,) = cells.rows([wide], 0.5)
    assert row["purity"] - 1.96 * row["se"] < 0
    (ax,) = charts.stage_curve(rows_at([wide])).axes
    (drawn,) = ax.containers
    assert isinstance(drawn, ErrorbarContainer)
    (bars,) = drawn.lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert low == pytest.approx(0)
    assert high == pytest.approx(min(1, row["purity"] + 1.96 * row["se"]))
    assert drawing.within([0.5, 0.9, np.nan], [0.1, 0.3, np.nan]).tolist() == [
        [0.1, 0.3, 0],
        pytest.approx([0.1, 0.1, 0]),
    ]


def test_what_is_biased_low_is_hollow_or_hatched_and_the_caption_says_so() -> None:
    results = [made.result("a", [made.layer("x", "C1", n=12)]), made.result("b", made.stages(1))]
    rows = rows_at(results, 0.3)
    assert rows["starved"].tolist() == [True, False]
    (ax,) = charts.stage_curve(rows).axes
    assert hollow_points(ax) == [(0.0, rows["purity"][0])]
    figure = charts.heatmap(rows)
    (patch,) = figure.axes[0].patches
    assert (patch.get_hatch(), patch.get_path().get_extents(patch.get_patch_transform()).bounds) == (
        "////", (-0.5, -0.5, 1, 1),
    )  # fmt: skip
    assert "hatched: N < 5 c" in figure.get_supxlabel()
    assert "hatched" not in charts.heatmap(rows_at(results[1:], 0.3)).get_supxlabel()
    assert hollow_points(charts.against_accuracy(rows).axes[0]) == [(70.0, rows["purity"][0])]


def test_a_layer_of_one_channel_is_not_called_silent() -> None:
    counts = np.ones((20, len(DEFAULT_GRID), 1), dtype=np.int64)
    (ax,) = charts.threshold_sweep(cells.frame([made.result("net", [Layer("x", None, 1, 7, 7, counts)])])).axes
    assert legend(ax) == ["x, one channel and so no F"]


def test_every_result_has_its_panel_and_every_line_its_own_look() -> None:
    results = [made.result(name, made.long_names(12)) for name in ("a", "b", "c")]
    axes = charts.threshold_sweep(cells.frame(results)).axes
    assert [ax.get_title() for ax in axes] == ["a", "b", "c"]
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in filled(axes[0])}
    assert len(looks) == 12
    in_grey = {(line.get_linestyle(), line.get_marker()) for line in filled(axes[0])}
    assert len(in_grey) == 12


def test_a_stage_curve_has_95_percent_intervals_and_a_gap_where_nothing_fires() -> None:
    results = [made.result("a", made.stages(5, silent=(3,))), made.result("_b", made.stages(3, seed=1))]
    (ax,) = charts.stage_curve(rows_at(results, 0.3)).axes
    for result, drawn in zip(results, ax.containers, strict=True):
        assert isinstance(drawn, ErrorbarContainer)
        line, _, (bars,) = drawn.lines
        x, y = xy(line)
        for i, layer in enumerate(result.layers):
            assert x[i] == i
            if layer.counts.any():
                f, se = expected(layer)[0.3], jackknife_se(layer, 0.3)
                assert y[i] == pytest.approx(f, abs=1e-12)
                assert bars.get_segments()[i][:, 1] == pytest.approx([f - 1.96 * se, f + 1.96 * se], abs=1e-9)
            else:
                assert np.isnan(y[i])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["C1", "C2", "C3", "C4", "C5"]
    # matplotlib drops what begins with _, were it not for the space
    assert legend(ax) == ["a, no F in C3", " _b"]
    assert ax.get_ylabel() == "feature purity F at t = 0.3"


def test_stages_of_several_results_keep_each_ones_order() -> None:
    first = made.result("a", [made.layer("conv1"), *made.stages(2), made.layer("head")])
    second = made.result("b", [*made.stages(4), made.layer("head")])
    (ax,) = charts.stage_curve(rows_at([first, second], 0.3)).axes
    names = [text.get_text() for text in ax.get_xticklabels()]
    assert sorted(names) == ["C1", "C2", "C3", "C4", "conv1", "head"]
    for order in (["conv1", "C1", "C2", "head"], ["C1", "C2", "C3", "C4"]):
        assert [name for name in names if name in order] == order


def test_a_heatmap_holds_the_purities_a_dash_where_nothing_fires_and_nothing_where_there_is_no_stage() -> None:
    results = [made.result("a", made.stages(3, silent=(2,))), made.result("b", made.stages(2, seed=1))]
    ax = charts.heatmap(rows_at(results, 0.3)).axes[0]
    (drawn,) = ax.images
    f = [[expected(layer).get(0.3, np.nan) for layer in result.layers] for result in results]
    assert np.ma.filled(np.ma.asarray(drawn.get_array()), np.nan) == pytest.approx(
        np.array([f[0], [*f[1], np.nan]]), nan_ok=True
    )
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    said = {(0, 0): f[0][0], (2, 0): f[0][2], (0, 1): f[1][0], (1, 1): f[1][1]}
    assert texts == {(1, 0): "–", **{place: f"{value:.3f}" for place, value in said.items()}}
    assert drawn.get_clim() == (0, 1)


def test_shades_of_the_heatmap_grow_evenly_lighter() -> None:
    import matplotlib as mpl

    red, green, blue = mpl.colormaps["cividis"](np.linspace(0, 1, 50))[:, :3].T
    assert (np.diff(0.2126 * red + 0.7152 * green + 0.0722 * blue) > 0).all()


def test_purity_against_accuracy_has_the_least_squares_line() -> None:
    results = [made.result(f"net{i}", made.stages(1, seed=i), top1=60.0 + i * i) for i in range(6)]
    rows = rows_at(results, 0.3)
    (ax,) = charts.against_accuracy(rows).axes
    x = [result.top1 for result in results]
    y = [expected(result.layers[0])[0.3] for result in results]
    points, line = ax.lines[0], ax.lines[-1]
    assert xy(points)[0] == x
    assert xy(points)[1] == pytest.approx(y, abs=1e-12)
    fit = scipy.stats.linregress(x, y)
    assert xy(line)[1] == pytest.approx([fit.intercept + fit.slope * end for end in (60, 85)])
    assert {text.get_text() for text in ax.texts} == {result.model for result in results}
    r = scipy.stats.pearsonr(x, y).statistic
    assert legend(ax)[0] == "least squares"
    assert legend(ax)[1].startswith(f"last layer; Pearson's r = {r:.2f}, 95 % interval ")
    assert ax.get_xlabel() == "top-1 accuracy / %"


@pytest.mark.parametrize("accuracies", [(70, 70, 70), (60, 70)])
def test_equal_accuracies_or_two_results_give_points_without_a_line(accuracies: tuple[float, ...]) -> None:
    results = [made.result(f"net{i}", made.stages(1, seed=i), top1=top1) for i, top1 in enumerate(accuracies)]
    (ax,) = charts.against_accuracy(rows_at(results)).axes
    assert legend(ax) == [f"last layer; n = {len(results)}, too few or too alike to correlate"]


MODELS = ("alexnet", "vgg16", "resnet50", "legacy_senet154", "tf_efficientnetv2_s.in21k_ft_in1k", "_private$net$") * 2


@pytest.mark.parametrize("k", [1, 12])
@pytest.mark.parametrize("kind", ["sweep", "stages", "heatmap", "accuracy"])
def test_nothing_overlaps_with_1_to_12_layers_or_models_of_long_names(kind: str, k: int) -> None:
    if kind == "sweep":
        figure = charts.threshold_sweep(cells.frame([made.result(MODELS[4], made.long_names(k))]))
    elif kind == "accuracy":
        results = [
            made.result(f"{name}{i}", made.stages(1, seed=i), top1=70 + 0.7 * i)
            for i, name in enumerate(MODELS[: max(2, k)])
        ]
        figure = charts.against_accuracy(rows_at(results, 0.3))
    else:
        draw = charts.stage_curve if kind == "stages" else charts.heatmap
        results = [made.result(f"{name}{i}", made.long_names(k)) for i, name in enumerate(MODELS)]
        figure = draw(rows_at(results, 0.3))
    nothing_overlaps(figure)


@pytest.mark.parametrize("draw", [charts.threshold_sweep, charts.stage_curve, charts.heatmap])
def test_a_model_of_which_nothing_fires_still_gives_a_figure(draw: object, tmp_path: Path) -> None:
    rows = cells.frame([made.result("net", made.stages(2, silent=(1, 2)))])
    figure = draw(rows if draw is charts.threshold_sweep else rows[rows["threshold"] == 0.5])  # type: ignore[operator]
    assert len(drawing.save(figure, tmp_path / "figure")) == 2


@pytest.mark.parametrize("draw", [charts.threshold_sweep, charts.stage_curve, charts.heatmap])
def test_the_caption_says_images_and_how_many(draw: object) -> None:
    rows = cells.frame([made.result("net", made.stages(2))])
    figure = draw(rows if draw is charts.threshold_sweep else rows[rows["threshold"] == 0.5])  # type: ignore[operator]
    assert "photos, n = 400 images" in figure.get_supxlabel()


def test_without_an_ending_a_figure_is_png_and_svg_and_the_same_each_time(tmp_path: Path) -> None:
    rows = rows_at([made.result("_private$net$", made.stages(3))])
    files = [drawing.save(charts.stage_curve(rows), tmp_path / name / "f") for name in ("a", "b")]
    assert [file.name for file in files[0]] == ["f.png", "f.svg"]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    with Image.open(files[0][0]) as picture:
        assert picture.format == "PNG"
    root = ElementTree.parse(files[0][1]).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = "".join(root.itertext())
    assert "_private$net$" in words
    assert "feature purity F at t = 0.5" in words


def test_with_an_ending_a_figure_is_that_file_alone(tmp_path: Path) -> None:
    for ending in ("png", "svg", "pdf"):
        drawing.save(charts.stage_curve(rows_at([made.result("net", made.stages(2))])), tmp_path / f"f.{ending}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pdf", "f.png", "f.svg"]


def test_a_figure_that_cannot_be_written_is_refused_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PurityError, match=r"must end in .png, .svg, .pdf"):
        drawing.targets(tmp_path / "f.docx")
    with pytest.raises(PurityError, match="Cannot write the figure .*file/f.png"):
        drawing.targets(tmp_path / "file" / "f.png")


@given(st.text("abc._-/ \n", max_size=60), st.integers(3, 30))
def test_wrapping_loses_nothing_but_space_and_keeps_to_the_width(name: str, width: int) -> None:
    lines = drawing.wrapped(name, width)
    assert "".join(lines.split()) == "".join(name.split())
    assert all(len(line) <= width for line in lines.split("\n"))


def test_names_break_behind_dots() -> None:
    assert drawing.wrapped("features.denseblock4.denselayer32.conv2", 24) == "features.denseblock4.\ndenselayer32.conv2"


@pytest.mark.parametrize("screen", [{"MPLBACKEND": "nonsense"}, {"MATPLOTLIBRC": "matplotlibrc"}])
def test_figures_are_drawn_with_settings_of_our_own(screen: dict[str, str], tmp_path: Path) -> None:
    """A notebook's screen and a user's matplotlibrc are read when matplotlib is imported, so this is a process."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nlines.linewidth: 9\n")
    store.write(made.result("net_a", made.stages(2)), tmp_path / "stored")
    for name, environment in (("plain", {}), ("theirs", screen)):
        ours = {key: value for key, value in os.environ.items() if not key.startswith("MPL")}
        (tmp_path / name).mkdir()
        if "MATPLOTLIBRC" in environment:
            environment = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")}
        command = [sys.executable, "-m", "purity_cli", "plot", str(tmp_path / "stored"), "-f", "sweep", "-o", name]
        subprocess.run(command, check=True, cwd=tmp_path, env={**ours, **environment}, capture_output=True)
    assert (tmp_path / "theirs" / "sweep.svg").read_bytes() == (tmp_path / "plain" / "sweep.svg").read_bytes()


def test_against_the_rate_each_point_stands_at_the_share_that_fires() -> None:
    one = made.result("net", made.stages(1))
    (ax,) = charts.threshold_sweep(cells.frame([one]), against_rate=True).axes
    line = next(line for line in ax.lines if str(line.get_label()).startswith("C1"))
    fired = one.layers[0].counts.sum((0, 2))
    shares = sorted(fired[fired > 0] / (400 * 24))
    np.testing.assert_allclose(np.asarray(line.get_xdata()).astype(float), shares)
    assert ax.get_xscale() == "log"


def test_with_a_rate_figures_show_f_at_that_rate() -> None:
    rows = charts.at_rate(cells.frame([made.result("net", made.stages(2))], 0.5, 0.05))
    (ax,) = charts.stage_curve(rows).axes
    assert ax.get_ylabel() == "feature purity F at a firing rate of 5 %"
    (drawn,) = ax.containers
    assert isinstance(drawn, ErrorbarContainer)
    expected = [row["purity_rate"] for row in cells.rows([made.result("net", made.stages(2))], 0.5, 0.05)]
    np.testing.assert_allclose(np.asarray(drawn.lines[0].get_ydata()).astype(float), expected)
