"""Suites: what the YAML says, which jobs run again and which do not, and what a failing one does to the others."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from purity_cli import cli, datasets, locks, nets, run, store
from purity_cli.cli.bench import command as bench_command
from purity_cli.datasets import ImageDataset
from purity_cli.datasets.base import FileImages
from purity_cli.errors import PurityError
from purity_cli.plan import STORED_GRID, Job
from purity_cli.run.ranks import Ranks
from purity_cli.run.runner import JobRunner
from purity_cli.states import States
from purity_cli.suite import Suite, Task, bench, read
from purity_cli.suite.bench import Bench, JobOutcome
from tests.logged import logged

DIGITS = "defaults: {weights: none, dataset: digits, limit: 40, batch_size: 16}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def suite(text: str) -> Suite:
    Path("mine.yaml").write_text(text)
    return read(Path("mine.yaml"))


def start(text: str, **options: Any) -> list[JobOutcome]:
    return Bench(suite(text), Path("out"), workers=2, **options).run()


def statuses(outcomes: list[JobOutcome]) -> list[str]:
    return [outcome.status for outcome in outcomes]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """The jobs that were really scored."""
    jobs: list[Job] = []
    score = run.score

    def spy(job: run.Resolved, **options: Any) -> Any:
        jobs.append(job.job)
        return score(job, **options)

    monkeypatch.setattr(run, "score", spy)
    return jobs


# The YAML


def test_models_times_datasets_times_settings() -> None:
    made = suite("""
defaults: {weights: none, limit: 5, layers: "C1, last"}
models: [alexnet, {model: vgg16, limit: 7, interpolation: lanczos}]
datasets: [digits, {dataset: digits, split: train, limit: 6}]
settings: [{preprocess: paper}, {preprocess: weights, interpolation: bicubic}]
threshold: 0.33
""")
    jobs = [task.job for task in made.tasks()]
    got = [(job.model, job.split, job.limit, job.preprocess, job.interpolation) for job in jobs]
    assert got == [
        ("alexnet", None, 5, "paper", None),
        ("alexnet", None, 5, "weights", "bicubic"),
        ("alexnet", "train", 6, "paper", None),
        ("alexnet", "train", 6, "weights", "bicubic"),
        ("vgg16", None, 7, "paper", "lanczos"),
        ("vgg16", None, 7, "weights", "lanczos"),
        ("vgg16", "train", 7, "paper", "lanczos"),
        ("vgg16", "train", 7, "weights", "lanczos"),
    ]
    assert {(job.weights, job.layers) for job in jobs} == {("none", ("C1", "last"))}
    assert {job.thresholds for job in jobs} == {tuple(sorted({*STORED_GRID, 0.33}))}
    assert made.name == "mine"


LEVELS = ("defaults", "datasets", "settings", "models")


@pytest.mark.parametrize("low", range(4))
@pytest.mark.parametrize("high", range(4))
def test_a_setting_counts_for_more_the_later_it_stands(low: int, high: int) -> None:
    if low >= high:
        return
    said = dict.fromkeys(LEVELS, "{}") | {"models": "{model: alexnet}"}
    for level, limit in ((low, 3), (high, 4)):
        said[LEVELS[level]] = said[LEVELS[level]][:-1] + (", " if level == 3 else "") + f"limit: {limit}}}"
    lines = [f"{name}: {text if name == 'defaults' else f'[{text}]'}" for name, text in said.items()]
    (task,) = suite("\n".join(lines)).tasks()
    assert task.job.limit == 4


def test_paths_are_relative_to_the_file_and_names_are_none(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "sub" / "photos").mkdir(parents=True)
    (here / "sub" / "own.yaml").write_text("""
defaults: {limit: 3}
reference: own.csv
models:
  - {model: net.py:net, weights: w.safetensors, dataset: photos}
  - {model: "file:../net.py:net", weights: none, dataset: "folder:photos"}
  - {model: resnet18, weights: IMAGENET1K_V1, dataset: cifar10, data_dir: data, needs: data}
  - {model: "timm:resnet18.a1_in1k", dataset: /abs/photos, data_dir: /abs}
  - {model: resnet18, dataset: "shards:tars/{00..03}.tar"}
  - {model: resnet18, dataset: "parquet:rows.parquet"}
""")
    made = read(Path("sub/own.yaml"))
    assert made.reference == "sub/own.csv"
    jobs = [(task.job.model, task.job.weights, task.job.dataset, task.job.data_dir) for task in made.tasks()]
    assert jobs == [
        ("sub/net.py:net", "sub/w.safetensors", "sub/photos", None),
        ("file:net.py:net", "none", "folder:sub/photos", None),
        ("resnet18", "IMAGENET1K_V1", "cifar10", "sub/data"),
        ("timm:resnet18.a1_in1k", "default", "/abs/photos", "/abs"),
        ("resnet18", "default", "shards:sub/tars/{00..03}.tar", None),
        ("resnet18", "default", "parquet:sub/rows.parquet", None),
    ]
    assert made.tasks()[2].absent == "sub/data"
    names = [task.name for task in made.tasks()]
    monkeypatch.chdir(here / "sub")
    again = read(Path("own.yaml"))
    assert [task.name for task in again.tasks()] == names
    assert again.tasks()[0].job.dataset == "photos"


def test_a_job_is_the_one_of_the_command_line() -> None:
    (task,) = suite("models: [{model: alexnet, weights: none, crop: 64, resize: 64, mean: [0.1, 0.2, 0.3]}]").tasks()
    other = Job.of(model="alexnet", weights="none", crop=(64, 64), resize=64, mean=(0.1, 0.2, 0.3))
    assert task.job.key() == other.key()


def test_a_model_that_fixes_a_setting_is_there_once() -> None:
    made = suite(
        "models: [{model: alexnet, preprocess: paper}]\nsettings: [{preprocess: paper}, {preprocess: weights}]"
    )
    assert len(made.tasks()) == 1
    with pytest.raises(PurityError, match=r"Models 1 and 3 .*alexnet on cifar10-sample"):
        suite("models: [alexnet, vgg16, {model: alexnet, dataset: cifar10-sample}]").tasks()


def test_folders_of_unlike_jobs_have_unlike_names_that_other_jobs_do_not_change() -> None:
    many = suite("models: [a/net.py:one, b/net.py:one, {model: a/net.py:one, limit: 3}, 'timm:resnet50.tv_in1k']")
    names = [task.name for task in many.tasks()]
    assert len(set(names)) == 4
    (alone,) = suite("models: [b/net.py:one]").tasks()
    assert alone.name == names[1]
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_.-") for name in names)


NONE = "there is no such setting. Did you mean"
MISTAKES = [
    ("models: [alexnet]\nmodles: [vgg16]", rf"line 2: modles: {NONE} models"),
    ("models:\n  - alexnet\n  - {model: vgg16,\n     limt: 3}", rf"line 4: models.2.limt: {NONE} limit"),
    ("models: [alexnet]\ndefaults:\n  batch-size: 3", rf"line 3: defaults.batch-size: {NONE} batch_size"),
    ("models:\n  - model: alexnet\n    limit: 0", r"line 3: models.1.limit: .*equal to 1 \(got 0\)"),
    ("models:\n  - model: alexnet\n    crop: big", r"line 3: models.1.crop: 'big' is no size: write 224, 240x320"),
    ("models:\n  - {model: alexnet, resize: no}", "line 2: models.1: resize cannot be false, which is also what YAML"),
    ("models: [alexnet]\ndefaults: {per_class: true}", "line 2: defaults: per_class cannot be true"),
    ("models: [alexnet]\n\nsettings:\n- std: [0, 1, 1]", r"line 4: settings.1: std must be positive"),
    ("models: [alexnet]\ndefaults:\n  thresholds: 0:2:1", r"line 3: defaults.thresholds: A threshold must lie"),
    ("models: [alexnet]\nthreshold: 1", r"line 2: threshold: .*less than 1 \(got 1\)"),
    ("models: []", r"line 1: models: .*at least 1"),
    ("defaults: {}", r"line 1: models: it has to be given\."),
    ("models:", r"line 1: models: it must be a list, not None\."),
    ("models: [18]", r"line 1: models\.1: it must be a name, or settings as in .*, not 18\."),
    ("name: 2024-01-01\nmodels: [a]", r"line 1: name: it must be text \(in quotes .*\), not datetime"),
    ("models: [a]\nlayers: [last]", r"line 2: layers is a setting of models: write it under `defaults:`, for all"),
    ("models: [alexnet]\nmodels: [vgg16]", r"line 2: models stands twice"),
    ("models:\n- {model: alexnet, limit: 3, limit: 4}", r"line 2: limit stands twice"),
    ("models: [alexnet", r"line 1: this is not YAML"),
    ("models: [alexnet]\n\tdefaults: {}", r"line 2: this is not YAML"),
    ("models: !!python/name:os.system ''", r"line 1: this is not YAML"),
    ("models: [a\0b]", r"this is not YAML: unacceptable character"),
    ("- alexnet", r"must be a mapping"),
    ("", r"must be a mapping"),
    ("name: a/b\nmodels: [alexnet]", r"line 1: name: "),
    ("models: [alexnet]\nlayout: wide", r"line 2: layout: .*'stages' or 'last'"),
]


@pytest.mark.parametrize(("text", "says"), MISTAKES)
def test_a_mistake_is_named_with_its_line(text: str, says: str) -> None:
    with pytest.raises(PurityError, match=says):
        suite(text)


def test_the_suite_that_help_shows_is_one() -> None:

    shown = str(bench_command.help).split("\b\n")[1]
    first, second = suite(shown).tasks()
    assert (first.job.model, first.job.per_class) == ("resnet18", 20)
    assert (second.job.mean, second.job.weights) == ((0.5, 0.5, 0.5), "w.pth")


def test_a_suite_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bench", "none.yaml"]) == 1
    assert "none.yaml cannot be read (No such file or directory)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "figure3", "figure4", "smoke", "nightly"])
def test_the_suites_that_come_along_are_sound(name: str) -> None:
    tasks = read(Path(__file__).parents[2] / "configs" / f"{name}.yaml").tasks()
    assert len({task.name for task in tasks}) == len(tasks)


def test_table1_and_table2_have_the_papers_models_and_published_settings() -> None:
    root = Path(__file__).parents[2]
    for number, first in ((1, "stage,"), (2, None)):
        made = read(root / "configs" / f"table{number}.yaml")
        lines = (root / "purity_cli" / "paper" / f"table{number}.csv").read_text().splitlines()
        models = lines[0].removeprefix("stage,").split(",") if first else [line.split(",")[0] for line in lines[1:]]
        jobs = [task.job for task in made.tasks()]
        assert [job.model.removeprefix("pretrainedmodels:") for job in jobs] == models
        for job in jobs:
            assert (job.dataset, job.per_class, job.preprocess, job.limit) == ("imagenet", 11, "paper", None)
            assert job.layers == (("all:C1..C5",) if first else ("all:last",))
            assert job.weights == ("default" if "senet154" in job.model else "IMAGENET1K_V1")


# Jobs


def test_each_job_has_its_folder_and_a_second_start_scores_nothing(scored: list[Job]) -> None:
    text = DIGITS + "models: [tiny_vgg_10, {model: tiny_vgg_10, limit: 30}]"
    first = start(text)
    assert statuses(first) == ["scored", "scored"]
    assert len(scored) == 2
    for outcome in first:
        assert sorted(path.name for path in outcome.folder.iterdir()) == [
            ".lock", "purity.csv", "purity.md", "run.json", "states.safetensors",
        ]  # fmt: skip
        assert json.loads((outcome.folder / "run.json").read_text())["key"] == outcome.task.job.key()
    again = start(text)
    assert statuses(again) == ["kept", "kept"]
    assert len(scored) == 2
    for one, other in zip(first, again, strict=True):
        assert one.result is not None
        assert other.result is not None
        assert np.array_equal(one.result.layers[1].counts, other.result.layers[1].counts)
    assert statuses(start(text, fresh=True)) == ["scored", "scored"]


def test_results_are_those_of_purity_score() -> None:
    (outcome,) = start(DIGITS + "models: [tiny_vgg_10]")
    alone = run.score(
        run.resolve(Job.of(model="tiny_vgg_10", dataset="digits", weights="none", limit=40, batch_size=16)), workers=1
    )
    stored = store.read(outcome.folder)
    for ours, theirs in zip(stored.layers, alone.layers, strict=True):
        assert np.array_equal(ours.counts, theirs.counts)
    assert stored.top1 == alone.top1


def test_a_finished_job_is_known_by_its_key_and_not_by_its_folder(scored: list[Job]) -> None:
    (outcome,) = start(DIGITS + "models: [tiny_vgg_10]")
    moved = outcome.folder.rename(outcome.folder.with_name("renamed"))
    (again,) = start(DIGITS + "models: [tiny_vgg_10]")
    assert (again.status, again.folder) == ("kept", moved)
    # And a folder of the right name with another job's result is not taken for this one's.
    (other,) = start(DIGITS + "models: [{model: tiny_vgg_10, limit: 39}]")
    moved.rename(moved.with_name("elsewhere")).rename(Path("elsewhere"))
    shutil.rmtree(outcome.folder)
    other.folder.rename(outcome.folder)
    (last,) = start(DIGITS + "models: [tiny_vgg_10]")
    assert last.status == "scored"
    assert len(scored) == 3


FIELDS: dict[str, Any] = {
    "model": "tiny_vgg", "weights": "w.safetensors", "dataset": "photos", "data_dir": "x", "split": "train",
    "layers": ("C2",), "preprocess": "paper", "resize": 40, "crop": (24, 24), "interpolation": "lanczos",
    "mean": (0.5,) * 3, "std": (0.5,) * 3, "per_class": 2, "limit": 30, "batch_size": 8, "device": "cpu",
    "precision": "bf16", "on_bad_image": "fail", "thresholds": (0.1, 0.5), "groups": 7, "metrics": "rankme",
}  # fmt: skip


def test_every_setting_of_a_job_is_in_its_key() -> None:
    assert set(FIELDS) == set(Job.model_fields)
    keys = {Job.of(**{name: value}).key() for name, value in FIELDS.items()}
    assert len(keys | {Job().key()}) == len(FIELDS) + 1


def change_weights(here: Path) -> None:
    net = nets.tiny_vgg_10()
    torch.nn.init.zeros_(net.get_parameter("features.0.bias"))
    safetensors.torch.save_file(net.state_dict(), here / "w.safetensors")


def change_an_image(here: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(here / "photos" / "a" / "0.png")


def touch_an_image(here: Path) -> None:
    os.utime(here / "photos" / "a" / "0.png", (1, 1))


def change_the_code(here: Path) -> None:
    text = (here / "net.py").read_text()
    (here / "net.py").write_text(text.replace("x * 1.0", "x * 2.0"))


def change_a_helper(here: Path) -> None:
    """A function of a module that no class of the network stands in, imported where the network is built."""
    text = (here / "helpers.py").read_text()
    (here / "helpers.py").write_text(text.replace("return 1.0", "return 3.0"))


def change_what_a_function_imports(here: Path) -> None:
    text = (here / "pack" / "deep.py").read_text()
    (here / "pack" / "deep.py").write_text(text.replace("SHIFT = 0", "SHIFT = 1"))


def change_the_neighbour(here: Path) -> None:
    text = (here / "layers.py").read_text()
    (here / "layers.py").write_text(text.replace("x + 0.0", "x + 1.0"))


def add_an_image(here: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(here / "photos" / "a" / "9.png")


NET = """
import torch
from torch import nn
from layers import Shift
from helpers import factor

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.shift, self.linear = nn.Conv2d(3, 4, 3), Shift(), nn.Linear(4, 3)
    def forward(self, x):
        return self.linear(self.shift(self.conv(x * 1.0)).mean((2, 3)) * factor() + self.by)

def net():
    from pack import deep
    torch.manual_seed(0)
    made = Net()
    made.by = deep.SHIFT
    return made
"""
LAYERS = """
from torch import nn
class Shift(nn.Module):
    def forward(self, x):
        return x + 0.0
"""


@pytest.fixture
def workshop(here: Path) -> Path:
    """A user's network in two files, weights in a file, and a folder of images."""
    (here / "net.py").write_text(NET)
    (here / "layers.py").write_text(LAYERS)
    (here / "helpers.py").write_text("def factor():\n    return 1.0\n")
    (here / "pack").mkdir()
    (here / "pack" / "__init__.py").write_text("")
    (here / "pack" / "deep.py").write_text("SHIFT = 0\n")
    torch.manual_seed(0)
    safetensors.torch.save_file(nets.tiny_vgg_10().state_dict(), here / "w.safetensors")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (here / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(here / "photos" / name / f"{i}.png")
    return here


WORKSHOP = """
models:
  - {model: tiny_vgg_10, weights: w.safetensors, limit: 6}
  - {model: tiny_vgg_10, weights: none, dataset: photos}
  - {model: net.py:net, layers: conv, resize: 32, crop: 32, limit: 6}
"""


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda here: None, []),
        (change_weights, [0]),
        (change_an_image, [1]),
        (add_an_image, [1]),
        (change_the_code, [2]),
        (change_the_neighbour, [2]),
        (change_a_helper, [2]),
        (change_what_a_function_imports, [2]),
        (touch_an_image, []),
    ],
)
def test_what_changed_behind_a_name_is_scored_again(
    workshop: Path, change: Callable[[Path], None], again: list[int]
) -> None:
    assert statuses(start(WORKSHOP)) == ["scored"] * 3
    change(workshop)
    assert statuses(start(WORKSHOP)) == ["scored" if i in again else "kept" for i in range(3)]
    assert statuses(start(WORKSHOP)) == ["kept"] * 3


def test_random_weights_of_another_version_are_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file and no hash says that torch has come to initialise otherwise."""
    text = DIGITS + "models: [tiny_vgg_10]"
    start(text)
    make = nets.tiny_vgg_10

    def otherwise(num_classes: int = 10) -> torch.nn.Module:
        net = make(num_classes)
        torch.nn.init.ones_(net.get_parameter("features.0.bias"))
        return net

    monkeypatch.setattr(nets, "tiny_vgg_10", otherwise)
    assert statuses(start(text)) == ["scored"]


@pytest.mark.parametrize("library", ["torch", "torchvision", "pillow"])
def test_a_result_of_another_version_is_scored_again_and_that_is_said(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DIGITS + "models: [tiny_vgg_10]"
    start(text)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    with logged() as said:
        assert statuses(start(text)) == ["scored"]
    assert sum(f"holds another result, which this one replaces ({library} {version(library)}, now 0.0.1)" in line
               for line in said) == 1  # fmt: skip
    assert statuses(start(text)) == ["kept"]
    monkeypatch.setattr("purity_cli.__version__", "99")
    assert statuses(start(text)) == ["scored"]


def test_an_unfinished_job_of_another_version_is_begun_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = Job.of(weights="none", limit=40, batch_size=16)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.score(run.resolve(job), workers=1, folder=tmp_path, progress=stop)
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "torch" else version(name))
    told: list[int] = []
    with logged() as said:
        run.score(run.resolve(job), workers=1, folder=tmp_path, progress=lambda done, _: told.append(done))
    assert told == [16, 32, 40]
    assert any(f"(torch {version('torch')}, now 0.0.1) and stays; this one starts anew" in line for line in said)


def test_the_versions_of_libraries_that_brought_the_network_count() -> None:
    assert "timm" in run.resolve(Job.of(model="timm:resnet18", weights="none", limit=1)).identity
    assert "timm" not in run.resolve(Job.of(weights="none", limit=1)).identity


def test_a_damaged_result_is_named_and_scored_again() -> None:
    (outcome,) = start(DIGITS + "models: [tiny_vgg_10]")
    path = outcome.folder / store.STATES
    path.write_bytes(path.read_bytes()[:-9])
    with logged() as said:
        assert statuses(start(DIGITS + "models: [tiny_vgg_10]")) == ["scored"]
    assert any("it is damaged" in line for line in said)


FAILING = (
    DIGITS
    + """
models:
  - nonesuch
  - {model: resnet50, weights: IMAGENET1K_V1}
  - {model: broken.py:net, layers: conv}
  - {model: tiny_vgg_10, dataset: nowhere}
  - {model: tiny_vgg_10, limit: 30, needs: nowhere}
  - tiny_vgg_10
"""
)


def test_a_failing_job_is_recorded_and_the_others_go_on(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(here / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    text = (
        "import torch\nclass Net(torch.nn.Conv2d):\n  def forward(self, x):\n    raise RuntimeError('no such thing')\n"
    )
    (here / "broken.py").write_text(text + "def net():\n    return Net(3, 4, 3)\n")
    suite(FAILING)
    assert cli.run(["bench", "mine.yaml", "--output", "out"]) == 3
    out, err = capsys.readouterr()
    outcomes = [line.split()[1] for line in out.splitlines()[2:8]]
    assert outcomes == ["failed", "failed", "failed", "failed", "left", "scored"]
    assert "nowhere is not there" in out
    assert "[6/6] tiny_vgg_10_digits_" in err
    assert "40 images" in err
    records = [json.loads(path.read_text()) for path in sorted(Path("out").glob("*/failed.json"))]
    assert len(records) == 4
    errors = " ".join(record["error"] for record in records)
    for words in ("No model 'nonesuch'", "resnet50-0676ba61.pth", "no such thing", "No data set 'nowhere'"):
        assert words in errors
        assert words in out
    for record in records:
        assert Job.of(**record["job"]).key() == record["key"]
        unexpected = "RuntimeError" in record["error"]
        assert bool(record["traceback"]) == unexpected
    table = Path("out/mine.md").read_text()
    assert table.count("| missing ") >= 4
    assert "Missing: nonesuch: No model 'nonesuch'" in table
    page = Path("out/report.html").read_text("utf-8")
    assert "Feature purity of 1 network" in page
    assert "No model &#39;nonesuch&#39;" in page
    # What could be mended is scored, its record goes, and the exit code tells the rest.
    (here / "nowhere").mkdir()
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(here / "nowhere" / "a.png")
    again = Bench(read(Path("mine.yaml")), Path("out"), workers=1).run()
    assert statuses(again) == ["failed", "failed", "failed", "scored", "scored", "kept"]
    assert not (again[3].folder / "failed.json").exists()


def offline(*_: object, **__: object) -> None:
    raise OSError("no connection")


def test_nothing_is_left_of_what_a_kill_cut_short(here: Path) -> None:
    (outcome,) = start(DIGITS + "models: [tiny_vgg_10]")
    (here / "out" / ".mine.csv.17.tmp").write_text("x")
    (outcome.folder / ".states.safetensors.17.tmp").write_text("x")
    kept = JobRunner(run.resolve(outcome.task.job), outcome.folder, 0, Ranks(1, 2)).unfinished
    kept.save(States(batch_size=16))
    assert list(outcome.folder.glob(store.PARTIAL))
    with Bench(suite(DIGITS + "models: [tiny_vgg_10]"), Path("out"), workers=1).closing(
        start(DIGITS + "models: [tiny_vgg_10]")
    ):
        pass
    assert not [path for path in (here / "out").rglob("*") if "tmp" in path.name or "partial" in path.name]


def test_a_job_that_another_process_holds_is_passed_over(scored: list[Job]) -> None:
    made = suite(DIGITS + "models: [tiny_vgg_10, tiny_vgg]")
    _, second = made.tasks()
    with run.claimed(Path("out", second.name), "purity bench", Ranks()):
        runs = Bench(made, Path("out"), workers=1)
        outcomes = runs.run()
        assert statuses(outcomes) == ["scored", "held"]
        assert outcomes[1].error == "another process is at it"
    assert [job.model for job in scored] == ["tiny_vgg_10"]
    # The other one finishes, and then the tables have both; or it was killed, and then its job is anybody's.
    with runs.closing(outcomes) as last:
        assert statuses(list(last)) == ["scored", "held"]
    assert statuses(Bench(made, Path("out"), workers=1).run()) == ["kept", "scored"]
    with runs.closing(outcomes) as last:
        assert statuses(list(last)) == ["scored", "kept"]
        assert last[1].result is not None


def test_a_job_that_becomes_free_is_taken_before_the_end(scored: list[Job]) -> None:
    made = suite(DIGITS + "models: [tiny_vgg_10, tiny_vgg]")
    held = locks.claim(Path("out", made.tasks()[0].name), "purity bench")

    class ProgressCallback(bench.Unwatched):
        def ends(self, outcome: JobOutcome) -> None:
            held.close()

    outcomes = Bench(made, Path("out"), workers=1, watch=ProgressCallback()).run()
    assert statuses(outcomes) == ["scored", "scored"]
    assert [job.model for job in scored] == ["tiny_vgg", "tiny_vgg_10"]


def test_several_processes_share_a_suite(here: Path) -> None:
    text = "defaults: {weights: none, limit: 60, batch_size: 4}\nmodels:\n"
    text += "".join(f"  - {{model: tiny_vgg_10, limit: {limit}}}\n" for limit in (50, 51, 52, 53, 54, 55))
    suite(text)
    command = [sys.executable, "-m", "purity_cli", "bench", "mine.yaml", "-o", "out", "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=here, env=environment, **pipes) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    told = [[line.split()[1] for line in out.splitlines()[2:8]] for out, _ in printed]
    # Each job was scored once, by one of them.
    for both in zip(*told, strict=True):
        assert sorted(both).count("scored") == 1, told
    assert Path("out/mine.md").read_text().count("Missing") == 0
    assert statuses(start(text)) == ["kept"] * 6


SMALL = ["score", "-m", "tiny_vgg_10", "-d", "digits", "--limit", "20"]


def test_two_scores_do_not_write_into_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with locks.claim(Path("out"), "purity score"):
        assert cli.run([*SMALL, "-o", "out"]) == 1
        assert "Another `purity score` is writing into out: wait for it, or give --output" in capsys.readouterr().err
        assert [path.name for path in Path("out").iterdir()] == [".lock"]
    assert cli.run([*SMALL, "-o", "out"]) == 0


# Pixels


def test_jobs_with_the_same_pixels_run_together_and_decode_once(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six images, two kinds of pixels, five jobs in a mixed order: twelve decodes, by the same threads."""
    decoded = Counter[int]()
    decode = FileImages.decode
    monkeypatch.setattr(FileImages, "decode", lambda self, i, data: (decoded.update([i]), decode(self, i, data))[1])
    pools = Counter[str]()
    init = threading.Thread.__init__

    def counting(self: threading.Thread, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        pools.update([self.name.partition("_")[0]])

    monkeypatch.setattr(threading.Thread, "__init__", counting)
    order: list[str] = []

    class ProgressCallback(bench.Unwatched):
        def begins(self, task: Task) -> None:
            order.append(f"{task.job.model} {task.job.resize}")

    text = """
defaults: {dataset: photos, weights: none, batch_size: 2}
models:
  - {model: tiny_vgg_10, resize: 40, crop: 32}
  - tiny_vgg_10
  - {model: tiny_vgg, resize: 40, crop: 32}
  - tiny_vgg
  - {model: tiny_vgg_10, resize: 40, crop: 32, limit: 4}
"""
    outcomes = start(text, cache=workshop / "cache", watch=ProgressCallback())
    assert statuses(outcomes) == ["scored"] * 5
    assert order == ["tiny_vgg_10 40", "tiny_vgg 40", "tiny_vgg_10 40", "tiny_vgg_10 None", "tiny_vgg None"]
    # Where no crop says how large pictures are, each job looks at the first besides.
    looks = sum("None" in job for job in order)
    assert dict(decoded) == {0: 2 + looks, **dict.fromkeys(range(1, 6), 2)}
    assert pools["decode"] <= 2
    uncached = start(text.replace("photos", "folder:photos"))
    for one, other in zip(outcomes, uncached, strict=True):
        assert one.result is not None
        assert other.result is not None
        for ours, theirs in zip(one.result.layers, other.result.layers, strict=True):
            assert np.array_equal(ours.counts, theirs.counts)


def test_a_data_set_is_opened_once(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_dataset = datasets.open_dataset

    def spy(name: str, **options: Any) -> ImageDataset:
        opened.append(name)
        return open_dataset(name, **options)

    monkeypatch.setattr("purity_cli.suite.bench.open_dataset", spy)
    start("defaults: {weights: none, limit: 4}\nmodels: [tiny_vgg_10, tiny_vgg]\ndatasets: [digits, photos]")
    assert opened == ["digits", "photos"]


# The command


def test_dry_run_shows_all_and_writes_nothing(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(workshop / "torch"))
    suite("""
models:
  - {model: tiny_vgg_10, weights: w.safetensors, limit: 30}
  - {model: tiny_vgg_10, weights: none, limit: 40}
  - {model: resnet18, weights: IMAGENET1K_V1, dataset: photos}
  - {model: tiny_vgg_10, weights: none, needs: nowhere}
""")
    before = sorted(workshop.rglob("*"))
    assert cli.run(["bench", "mine.yaml", "--dry-run"]) == 0
    out, _ = capsys.readouterr()
    assert sorted(workshop.rglob("*")) == before
    lines = " ".join(out.split())
    assert "4 jobs: 3 waiting, 1 left out." in lines
    assert re.search(r"tiny_vgg_10\S* waiting 30 here", lines)
    assert re.search(r"resnet18\S* waiting 6 missing", lines)
    assert "C1 relu, C2 layer1, C3 layer2, C4 layer3, C5 layer4" in lines
    assert "nowhere is not there" in lines
    assert cli.run(["bench", "mine.yaml", "--dry-run", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert "missing" in json.dumps(rows)
    suite("models: [nonesuch]")
    assert cli.run(["bench", "mine.yaml", "--dry-run"]) == 3


def test_dry_run_shows_which_weights_are_missing_where_the_images_are_missing_too(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(workshop / "torch"))
    suite("defaults: {dataset: imagenet, data_dir: nowhere}\nmodels: [tiny_vgg_10, torchvision:resnet18]")
    assert cli.run(["bench", "mine.yaml", "--dry-run"]) == 0
    out, _ = capsys.readouterr()
    assert re.search(r"tiny_vgg_10\S* +waiting +here", out)
    assert re.search(r"resnet18\S* +waiting +missing", out)
    assert out.count("needs --data-dir: the folder that holds ILSVRC2012's validation images, or their tar, and") == 2


def test_data_dir_stands_for_every_place_that_the_suite_gives() -> None:
    chosen = suite("""
models: [tiny_vgg_10, {model: tiny_vgg, data_dir: theirs}]
datasets: [{dataset: imagenet, data_dir: ours}, digits]
""").moved("here")
    places = [(task.job.model, task.job.dataset, task.job.data_dir) for task in chosen.tasks()]
    assert places == [
        ("tiny_vgg_10", "imagenet", "here"), ("tiny_vgg_10", "digits", None),
        ("tiny_vgg", "imagenet", "here"), ("tiny_vgg", "digits", "here"),
    ]  # fmt: skip
    with pytest.raises(PurityError, match="The suite mine gives no data_dir"):
        suite(DIGITS + "models: [tiny_vgg_10]").moved("here")


@pytest.mark.parametrize(
    ("table", "layers"),
    [
        ("table1", ("C1 relu, ", "conv:C4 layer3.22.conv3", "block:C2 layer1", "pool:C1 maxpool")),
        ("table2", ("C5 features.11, conv:C5 features.10, pool:C5 features.12", "block:C5 features.denseblock4")),
    ],
)
def test_the_paper_s_suites_take_the_images_from_data_dir_and_show_layers_without_them(
    table: str, layers: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert cli.run(["bench", str(configs / f"{table}.yaml"), "--dry-run", "--data-dir", "absent"]) == 0
    out, _ = capsys.readouterr()
    assert "and absent is not there" in out
    for layer in layers:
        assert layer in out


def test_a_reference_that_is_not_there_is_said_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    suite(DIGITS + "models: [tiny_vgg_10]\nreference: table9.csv")
    assert cli.run(["bench", "mine.yaml"]) == 1
    assert "table9.csv is not there" in capsys.readouterr().err
    assert not Path("results").exists()


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    suite("defaults: {weights: none, limit: 40, batch_size: 8}\nmodels: [tiny_vgg_10, tiny_vgg]")
    from purity_cli.cli.progress import SuiteProgress

    with monkeypatch.context() as patch:
        patch.setattr(SuiteProgress, "images", interrupt)
        assert cli.run(["bench", "mine.yaml"]) == 130
    assert "The same command goes on where this stopped.\nInterrupted." in capsys.readouterr().err
    assert len(list(Path("results/mine").glob("*/partial-*.safetensors"))) == 1
    assert cli.run(["bench", "mine.yaml"]) == 0
    assert not list(Path("results/mine").glob("*/partial*.safetensors"))
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:4]] == ["scored", "scored"]
    assert "[2/2]" in err


def interrupt(self: object, done: int, total: int) -> None:
    if done >= 16:
        raise KeyboardInterrupt
