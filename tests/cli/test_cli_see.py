"""sweep-threshold, cam and plot as a user meets them: answers, files, mistakes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from purity_cli import cli, store
from purity_cli.figures.charts import correlation
from purity_cli.views import cells, sweep
from tests.views import made

FEW = ["-d", "digits", "--limit", "40", "--device", "cpu"]
TINY = ["-m", "tiny_vgg_10", *FEW]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    """Two stored results."""
    for i, name in enumerate(("netA", "netB")):
        store.write(made.result(name, made.stages(3, seed=i), top1=70.0 + i), tmp_path / "stored" / name)
    return ["stored/netA", "stored/netB"]


def shown(*arguments: str, capfd: pytest.CaptureFixture[str]) -> str:
    assert cli.run([*arguments]) == 0
    return capfd.readouterr().out


# sweep-threshold


def test_a_sweep_from_stored_counts_equals_a_fresh_one_to_the_last_digit(capfd: pytest.CaptureFixture[str]) -> None:
    for layout in ("csv", "md"):
        grid = ["--thresholds", "0.05:0.95:0.1", "--format", layout]
        fresh = shown("sweep-threshold", *TINY, *grid, "-o", "out", "--suggest", capfd=capfd)
        assert shown("sweep-threshold", "--from", "out", *grid, "--suggest", capfd=capfd) == fresh
    rows = list(csv.DictReader(io.StringIO(shown("sweep-threshold", "--from", "out", "--format", "csv", capfd=capfd))))
    result = store.read(Path("out"))
    assert len(rows) == 19 * 2
    for row, expected in zip(rows, cells.rows([result]), strict=True):
        assert np.array_equal(float(row["purity"]), expected["purity"], equal_nan=True)  # NaN is NaN


def test_the_table_has_a_column_per_layer_and_marks_what_is_biased_or_silent(
    two: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    lines = shown("sweep-threshold", "--from", two[0], capfd=capfd).splitlines()
    assert lines[0].split() == ["t", "C1", "C2", "C3"]
    rows = cells.rows([store.read(Path(two[0]))])
    grid = [line.split() for line in lines[2:] if line.strip().startswith("0")]
    assert len(grid) == 19
    for line in grid:
        for layer, shown_ in zip(("layer1", "layer2", "layer3"), line[1:], strict=True):
            (row,) = (r for r in rows if r["layer"] == layer and r["threshold"] == float(line[0]))
            fired = row["activations"]
            assert shown_ == ("NaN" if not fired else f"{row['purity']:.3f}{'*' if fired < 5 * 24 else ''}")
    assert "netA (file, weights w.pth) on 400 images of photos: top-1 70.00 %; no resize, not normalised." in lines
    assert any(line.startswith("netA: every layer has N >= 5 c up to the threshold 0.") for line in lines)


def test_suggest_names_a_threshold_for_each_result_and_leaves_stdout_to_the_format(
    two: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["sweep-threshold", "--from", "stored", "--suggest"]) == 0
    words = [line for line in capfd.readouterr().out.splitlines() if line.startswith("Suggested")]
    for name, line in zip(two, words, strict=True):
        found = sweep.suggest(store.read(Path(name)))
        assert line.startswith(f"Suggested threshold for {Path(name).name}: {found.threshold:g}")
    assert cli.run(["sweep-threshold", "--from", "stored", "--suggest", "--format", "json"]) == 0
    captured = capfd.readouterr()
    found_ = json.loads(captured.out)
    assert len(found_["rows"]) == 2 * 3 * 19
    assert sum(note.startswith("Suggested threshold") for note in found_["notes"]) == 2
    assert captured.err == ""


def test_stored_counts_are_swept_and_drawn_without_torch_or_a_network(two: list[str]) -> None:
    code = (
        "import os, sys; from purity_cli.cli import run;"
        "sys.addaudithook(lambda event, _: os._exit(9) if event in ('socket.connect', 'socket.getaddrinfo') else None);"
        "code = run(['sweep-threshold', '--from', 'stored', '--suggest', '--plot', 'f']);"
        "heavy = {'torch', 'torchvision', 'timm', 'scipy', 'matplotlib.pyplot'} & set(sys.modules);"
        "print(code, heavy)"
    )
    there = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=there)
    assert done.stdout.splitlines()[-1] == "0 set()"
    words = "".join(ElementTree.parse("f.svg").getroot().itertext())
    assert {"netA", "netB"} <= set(re.findall("net.", words))
    assert "C3 (layer3)" in words
    with Image.open("f.png") as picture:
        assert picture.format == "PNG"


def test_layers_of_stored_counts_can_be_picked(two: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = shown("sweep-threshold", "--from", two[0], "--layers", "C1,layer3", capfd=capfd)
    assert out.splitlines()[0].split() == ["t", "C1", "C3"]
    assert cli.run(["plot", *two, "--layers", "C[12]", "--figure", "heatmap", "-o", "."]) == 0
    words = set(ElementTree.parse("heatmap.svg").getroot().itertext())
    assert {"C1", "C2"} <= words
    assert "C3" not in words


# bars


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_bars_are_drawn_on_a_terminal_only(
    two: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "█" not in shown("sweep-threshold", "--from", two[0], capfd=capfd)
    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        assert cli.run(["sweep-threshold", "--from", two[0]]) == 0
        assert "█" in terminal.getvalue()
        assert "░" in terminal.getvalue()  # where N < 5 c
        terminal.truncate(0)
        assert cli.run(["sweep-threshold", "--from", two[0], "--format", "csv"]) == 0
        assert "█" not in terminal.getvalue()


# show


def test_show_prints_what_score_printed_at_any_threshold_in_every_format(capfd: pytest.CaptureFixture[str]) -> None:
    for layout in ("table", "csv", "md", "json"):
        said = shown("score", *FEW, "-o", "out", "-t", "0.3", "--format", layout, capfd=capfd)
        again = shown("show", "out", "-t", "0.3", "--format", layout, capfd=capfd)
        # F without its bias is for programs and for `show`.
        assert (again == said) == (layout in ("csv", "json"))
        assert [("F jk" in text) for text in (said, again)] == [False, layout in ("table", "md")]
    other = json.loads(shown("show", "out", "-t", "0.1", "--format", "json", capfd=capfd))
    assert {row["threshold"] for row in other["layers"]} == {0.1}
    assert shown("show", "out", "-l", "C2", "--format", "csv", capfd=capfd).count("\n") == 2


def test_show_has_the_other_views_and_the_papers_values(two: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert shown("show", *two, "--view", "sweep", capfd=capfd) == shown(
        "sweep-threshold", *(part for one in two for part in ("--from", one)), capfd=capfd
    )
    assert cli.run(["show", *two, "--view", "correlation"]) == 1
    assert "2 results cannot be correlated" in capfd.readouterr().err
    Path("own.csv").write_text("model,top1,purity\nnetA,70,0.5\nnetB,70,0.5\n")
    out = shown("show", *two, "--reference", "own.csv", capfd=capfd)
    assert "mean absolute difference" in out
    assert cli.run(["show", *two, "--reference", "table9"]) == 1
    assert "The reference table9 is not there: write table1, table2, table3, figure4" in capfd.readouterr().err


def test_folders_without_results_are_left_out_of_several_and_said(
    two: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("stored/figures").mkdir()
    for command in (["show"], ["plot", "--figure", "heatmap"]):
        assert cli.run([*command, *two, "stored/figures"]) == 0
        assert capfd.readouterr().err.splitlines()[0] == "No results in stored/figures: left out."
    assert cli.run(["show", "stored/figures"]) == 1
    assert "stored/figures holds no results" in capfd.readouterr().err
    assert cli.run(["show", "stored/figures", "nowhere"]) == 1


# plot


def test_plot_draws_all_that_the_results_allow(two: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    out = shown("plot", "stored", "-t", "0.3", capfd=capfd)
    names = ["stages", "heatmap", "accuracy", "sweep"]
    assert out.splitlines() == [f"figures/{name}.{kind}" for name in names for kind in ("png", "svg")]
    words = {name: "".join(ElementTree.parse(f"figures/{name}.svg").getroot().itertext()) for name in names}
    assert all("photos, n = 400 images" in text for text in words.values())
    assert [name for name in names if "at t = 0.3" in words[name]] == ["stages", "heatmap", "accuracy"]
    assert "n = 2, too few or too alike to correlate" in words["accuracy"]


def test_one_result_has_no_accuracy_plot_and_says_so(two: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plot", two[0], "-o", "one"]) == 0
    assert "needs two results or more" in capfd.readouterr().err
    assert sorted(path.stem for path in Path("one").glob("*.png")) == ["heatmap", "stages", "sweep"]
    assert cli.run(["plot", two[0], "--figure", "accuracy"]) == 1


@pytest.mark.parametrize("n", [3, 4, 5, 9])
def test_the_correlation_has_its_interval_and_n_and_is_silent_on_significance_below_5(n: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.random(n)
    y = x + rng.random(n)
    said = correlation(x.tolist(), y.tolist())
    assert said.startswith(f"Pearson's r = {scipy.stats.pearsonr(x, y).statistic:.2f}, 95 % interval ")
    assert said.endswith(f"n = {n}")
    assert (", p = " in said) == (n >= 5)


# cam


def test_cam_heads_columns_with_the_purity_that_score_finds(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["score", *TINY, "-o", "out"]) == 0
    assert cli.run(["cam", *TINY, "-i", "2", "-o", "a.svg"]) == 0
    assert cli.run(["cam", *TINY, "-i", "2", "-o", "b.svg", "--from", "out"]) == 0
    rows = cells.rows([store.read(Path("out"))], 0.5)
    for file, n in (("a.svg", "n = 40"), ("b.svg", "n = 40 of digits")):
        words = "\n".join(ElementTree.parse(file).getroot().itertext())
        for label, purity in ((row["label"], row["purity"]) for row in rows):
            assert label in words
            assert ("F = –" if np.isnan(purity) else f"F = {purity:.3f}") in words
        assert n in words
    assert "Wrote b.svg" in capfd.readouterr().err


def test_cam_takes_files_checkpoints_models_and_channels() -> None:
    Image.new("RGB", (32, 32), "red").save("red.png")
    assert cli.run(["cam", "-i", "red.png", "-o", "files.svg"]) == 0
    words = "\n".join(ElementTree.parse("files.svg").getroot().itertext())
    assert "n = 1" in words
    assert "red.png" in words
    for i in range(2):
        shutil.copy(
            Path(cli.__file__).parents[1] / "assets" / "tiny_vgg_10_digits" / "tiny_vgg_10_epoch100.safetensors",
            f"epoch{i}.safetensors",
        )
    weights = ["-w", "epoch0.safetensors", "-w", "epoch1.safetensors"]
    assert cli.run(["cam", *TINY, *weights, "-c", "7", "-o", "epochs.svg"]) == 0
    words = "\n".join(ElementTree.parse("epochs.svg").getroot().itertext())
    assert "epoch0" in words
    assert "epoch1" in words
    models = ["-m", "tiny_vgg_10", "-w", "epoch0.safetensors", "-m", "tiny_vgg", "-w", "none"]
    assert cli.run(["cam", *FEW, *models, "-c", "7", "-o", "models.svg"]) == 0
    words = "\n".join(ElementTree.parse("models.svg").getroot().itertext())
    assert re.findall(r"^tiny_vgg.*$", words, re.MULTILINE) == ["tiny_vgg_10", "tiny_vgg"]
    tiny = ["-m", "tiny_vgg_10", "-d", "digits"]
    assert (
        cli.run(["cam", *tiny, "--per-class", "4", "-c", "7", "--channels", "3", "-t", "0.2", "-o", "channels.svg"])
        == 0
    )
    words = "\n".join(ElementTree.parse("channels.svg").getroot().itertext())
    assert re.search(r"channel \d", words)
    assert "of 4" in words
