"""A package of one metric, model, data set and format is installed, and used by the commands; a broken one is named."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

CODE = '''
"""One of each, as docs/architecture.md says."""

import torch
from torch import nn

from purity_cli.datasets import DatasetKind
from purity_cli.datasets.base import ArrayImages
from purity_cli.metrics import Measure
from purity_cli.metrics.accumulators import SecondMoments
from purity_cli.models.base import ModelLibrary, ModelSpec
from purity_cli.plan import Preprocessing


def _brightness(arrays):
    return {"brightness": float((arrays["total"] / arrays["images"]).mean())}


brightness = Measure(
    name="brightness", columns=("brightness",), about="mean of the features", convention="of all channels",
    reference="none", accumulator=lambda: SecondMoments, function=lambda: _brightness,
)


class Plain(ModelLibrary):
    name, about = "plain", "one network"

    def names(self):
        return ["two_convs"]

    def spec(self, name, tag):
        def build(checkpoint):
            return nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.AdaptiveAvgPool2d(1),
                nn.Flatten(), nn.Linear(5, 3),
            )

        return ModelSpec(build, Preprocessing(mean=(0, 0, 0), std=(1, 1, 1)), None, size=(16, 16))


def _open(data_dir, split, download):
    pixels = torch.randint(0, 256, (8, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    paths = tuple(f"{i}.png" for i in range(8))
    return ArrayImages(
        name="noise", kind="noise", paths=paths, labels=None, label_note="none", class_names=None,
        pixels=pixels.numpy(),
    )


noise = DatasetKind(name="noise", open=_open, about="eight images", classes=None, splits=(), needs="nothing")


def lines(report):
    return "\\n".join("|".join(str(row.get(c.key)) for c in report.main.data) for row in report.main.rows) + "\\n"


broken = 17
'''
POINTS = """
[purity_cli.metrics]
brightness = plug_one:brightness
rankme = plug_one:brightness
[purity_cli.models]
plain = plug_one:Plain
[purity_cli.datasets]
noise = plug_one:noise
[purity_cli.formats]
lines = plug_one:lines
broken = plug_one:broken
missing = plug_two:nothing
"""
Purity = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def purity(tmp_path_factory: pytest.TempPathFactory) -> Purity:
    """Commands in a process that finds the package, which pip has installed from a wheel; the highest exit code."""
    folder = tmp_path_factory.mktemp("plug")
    wheel, info = folder / "plug_one-3.1-py3-none-any.whl", "plug_one-3.1.dist-info"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("plug_one.py", CODE)
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: plug-one\nVersion: 3.1\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/entry_points.txt", POINTS)
        file.writestr(f"{info}/RECORD", "")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder / "in")]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    paths = [str(folder / "in"), str(Path(__file__).parents[2])]
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
    found = rows(out / "purity.csv")
    assert {row["source"] for row in found} == {"plain"}
    assert np.isfinite([float(row["brightness"]) for row in found]).all()
    for name, why in (("rankme", "there is a 'rankme' already"), ("broken", "it is not"), ("missing", "plug_two")):
        warnings = [line for line in ran.stderr.splitlines() if f"plug-in {name} of plug-one 3.1" in line]
        assert len(warnings) == 1, ran.stderr
        assert why in warnings[0]


def test_help_and_version_import_none(purity: Purity) -> None:
    ran = purity(["--help"], ["--version", "--verbose"])
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "metrics: brightness (plug-one 3.1, plug_one:brightness)" in ran.stdout
    assert ran.stdout.count("plug-one 3.1") == 7


def test_an_entry_of_ones_own_needs_no_package() -> None:
    from purity_cli.plugins import Registry

    registry: Registry[object] = Registry("purity_cli.formats", None, {"a": str})
    registry["b"] = repr
    assert list(registry) == ["a", "b"]
    assert registry["b"] is repr
