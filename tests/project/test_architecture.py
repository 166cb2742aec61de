"""The package that docs/architecture.md shows is installed, and used by the commands; a broken plug-in is named."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from importlib import import_module
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CODE, TOML = (re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0] for kind in ("python", "toml"))
BROKEN = """
[purity_cli.metrics]
rankme = my_package:brightness
[purity_cli.formats]
broken = my_package:broken
missing = not_there:nothing
"""


def entry_points() -> str:
    """Those of the page, and three that cannot be used, as a wheel holds them."""
    points = ConfigParser(delimiters=("=",), strict=False)
    points.read_string(TOML.replace('project.entry-points."', "").replace('"', "") + BROKEN)
    text = StringIO()
    points.write(text)
    return text.getvalue()


Purity = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def purity(tmp_path_factory: pytest.TempPathFactory) -> Purity:
    """Commands in a process that finds the package, which pip has installed from a wheel; the highest exit code."""
    folder = tmp_path_factory.mktemp("plug")
    wheel, info = folder / "plug_one-3.1-py3-none-any.whl", "plug_one-3.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("my_package.py", f"{CODE}\n\nbroken = 17\n")
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: plug-one\nVersion: 3.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", entry_points())
        file.writestr(f"{info}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "in")]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    paths = [str(folder / "in"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}

    def run(*commands: list[str]) -> subprocess.CompletedProcess[str]:
        code = f"import sys; from purity_cli import cli; sys.exit(max([cli.run(each) for each in {commands}]))"
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_commands_take_one_of_each_and_name_what_cannot_be_used(purity: Purity, tmp_path: Path) -> None:
    out, suite = tmp_path / "out", tmp_path / "suite.yaml"
    suite.write_text(
        "defaults: {dataset: noise, weights: none, layers: '3', metrics: brightness}\nmodels: [plain:two_convs]\n"
    )
    score = ["score", "-m", "plain:two_convs", "-w", "none", "-d", "noise", "-l", "0,3", "--metrics", "brightness"]
    bench = ["bench", str(suite), "-o", str(tmp_path / "suite"), "--cache", "none"]
    ran = purity(
        [*score, "--format", "lines", "-o", str(out)], bench, ["models", "plain:*", "--all"], ["datasets"],
        ["datasets", "noise"],
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "two_convs|plain" in ran.stdout  # by the format
    assert "eight images" in ran.stdout
    assert len(list(tmp_path.glob("suite/*/purity.csv"))) == 1
    assert b"plug-one 3.1" in (out / "states.safetensors").read_bytes()  # another version is another result
    found = rows(out / "purity.csv")
    assert {row["source"] for row in found} == {"plain"}
    assert np.isfinite([float(row["brightness"]) for row in found]).all()
    for name, why in (("rankme", "there is a 'rankme' already"), ("broken", "it is not"), ("missing", "not_there")):
        warnings = [line for line in ran.stderr.splitlines() if f"plug-in {name} of plug-one 3.1" in line]
        assert len(warnings) == 1, ran.stderr
        assert why in warnings[0]


def test_help_and_version_import_none(purity: Purity) -> None:
    ran = purity(["--help"], ["--version", "--verbose"])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "metrics: brightness (plug-one 3.1, my_package:brightness)" in ran.stdout
    assert ran.stdout.count("plug-one 3.1") == 7


def test_an_entry_of_ones_own_needs_no_package() -> None:
    from purity_cli.plugins import Registry

    registry: Registry[object] = Registry("purity_cli.formats", None, {"a": str})
    registry["b"] = repr
    assert list(registry) == ["a", "b"]
    assert registry["b"] is repr


def test_a_figure_is_an_entry_in_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from purity_cli import cli
    from purity_cli.figures import FIGURES, Scored

    def draw(scored: Scored) -> Figure:
        figure = Figure()
        figure.subplots().bar(scored.rows["label"], scored.rows["live"])
        return figure

    monkeypatch.setitem(FIGURES, "live", draw)
    assert cli.run(["score", "--limit", "20", "-l", "C1", "-o", str(tmp_path / "r")]) == 0
    assert cli.run(["plot", str(tmp_path / "r"), "--figure", "live", "-o", str(tmp_path / "f")]) == 0
    assert {path.suffix for path in (tmp_path / "f").iterdir()} == {".png", ".svg"}


def test_what_the_page_and_the_guide_name_is_there() -> None:
    for word in re.findall(r"`([A-Z]+)` in `(\w+)`", PAGE):
        assert hasattr(import_module(f"purity_cli.{word[1]}"), word[0]), word
    guide = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for file, quote in (("stats.py", "F = H / log2 c of counts"), ("plugins.py", "# before a plug-in is imported")):
        assert quote in guide
        assert quote in (ROOT / "purity_cli" / file).read_text("utf-8")
