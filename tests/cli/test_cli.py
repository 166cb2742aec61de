"""The command line as a user meets it: answers, files, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from purity_cli import cli, store
from purity_cli.cli import COMMANDS, options
from purity_cli.plan import Job

FEW = ["--limit", "30", "--device", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands write into `results/` of the folder they run in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of three pictures."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_with_no_options_the_bundled_network_is_scored_on_the_bundled_images(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.run(["score"]) == 0
    out, err = capfd.readouterr()
    result = store.read(Path("results/resnet10_cifar_cifar10-sample"))
    assert result.top1 is not None
    assert result.top1 == pytest.approx(85.5, abs=0.1)  # as its training ended; nothing was chosen by it
    assert f"top-1 {result.top1:.2f} %" in out
    assert [layer.stage for layer in result.layers] == ["C1", "C2", "C3", "C4"]
    assert all(layer.module in out for layer in result.layers)
    place = result.thresholds.index(0.5)
    assert all(layer.counts[:, place].sum() >= 5 * layer.channels for layer in result.layers)
    assert "Warning" not in err
    assert "Wrote results/resnet10_cifar_cifar10-sample" in err
    assert result.provenance["command"] == "purity score"


def test_every_format_prints_the_same_numbers(capfd: pytest.CaptureFixture[str]) -> None:
    printed = {}
    for layout in ("csv", "json", "md", "table"):
        assert cli.run(["score", *FEW, "--layers", "last", "-t", "0.42", "--format", layout]) == 0
        printed[layout] = capfd.readouterr().out
    (row,) = csv.DictReader(io.StringIO(printed["csv"]))
    report = json.loads(printed["json"])
    assert report["schema"] == "purity-report/1"
    (record,) = report["layers"]
    assert float(row["purity"]) == record["purity"]
    assert record["threshold"] == 0.42
    assert record["n_images"] == 30
    for layout in ("md", "table"):
        assert f"{record['purity']:.3f}" in printed[layout]
    assert printed["md"] == Path("results/resnet10_cifar_cifar10-sample/purity.md").read_text()


def test_several_models_give_a_folder_each_and_one_table(capfd: pytest.CaptureFixture[str]) -> None:
    models = ["-m", "tiny_vgg_10", "-m", "tiny_vgg", "--weights", "none"]
    assert cli.run(["score", *models, *FEW, "-o", "both", "--format", "md"]) == 0
    assert sorted(path.name for path in Path("both").iterdir()) == [
        "tiny_vgg_10_cifar10-sample",
        "tiny_vgg_cifar10-sample",
    ]
    assert "| tiny_vgg_10" in capfd.readouterr().out


def test_every_option_reaches_the_result() -> None:
    options = {
        "--weights": "none", "--dataset": "digits", "--split": "train", "--layers": "C1,last", "--preprocess": "paper",
        "--resize": "40", "--crop": "32x32", "--interpolation": "lanczos",
        "--mean": "0.1,0.2,0.3", "--std": "0.5,0.6,0.7",
        "--per-class": "3", "--limit": "20", "--batch-size": "7", "--device": "cpu", "--precision": "bf16",
        "--on-bad-image": "fail", "--workers": "2", "--output": "out",
    }  # fmt: skip
    assert cli.run(["score", *(word for pair in options.items() for word in pair)]) == 0
    result = store.read(Path("out"))
    assert (result.weights, result.n_images, result.job.per_class) == ("none", 20, 3)
    assert result.preprocessing == "resize 40 lanczos, crop 32, mean 0.1 0.2 0.3, std 0.5 0.6 0.7"
    assert (result.provenance["batch_size"], result.provenance["precision"]) == (7, "bf16")
    assert (result.job.split, result.job.preprocess, result.job.on_bad_image) == ("train", "paper", "fail")


def test_the_batch_suits_the_pictures_that_there_are(photos: Path) -> None:
    """And not those that a network of unknown input size is guessed to take."""
    Path("net.py").write_text("from torchvision.models import squeezenet1_1\ndef net(): return squeezenet1_1()\n")
    assert (
        cli.run(["score", "-m", "net.py:net", "-d", str(photos), "--resize", "none", "--crop", "none", "-o", "o"]) == 0
    )
    assert store.read(Path("o")).provenance["batch_size"] == 512
    assert store.read(Path("o")).layers[0].height < 32


def test_a_finished_result_is_kept_and_read_at_any_threshold(capfd: pytest.CaptureFixture[str]) -> None:
    few = [*FEW, "-m", "tiny_vgg_10", "-d", "digits"]
    assert cli.run(["score", *few, "-t", "0.2"]) == 0
    first = Path("results/tiny_vgg_10_digits/states.safetensors").read_bytes()
    capfd.readouterr()
    assert cli.run(["score", *few, "-t", "0.3"]) == 0
    out, err = capfd.readouterr()
    assert "Kept results/tiny_vgg_10_digits: it holds this very result; --fresh scores it again." in err
    assert "threshold 0.3" in out
    assert "threshold 0.3" in Path("results/tiny_vgg_10_digits/purity.md").read_text()
    assert Path("results/tiny_vgg_10_digits/states.safetensors").read_bytes() == first
    for arguments, why in ((["--fresh"], None), (["--limit", "31"], "another choice of images")):
        assert cli.run(["score", *few, *arguments]) == 0
        err = capfd.readouterr().err
        assert "Wrote results/tiny_vgg_10_digits" in err
        assert why is None or f"holds another result, which this one replaces ({why}): --output keeps both" in err
        assert Path("results/tiny_vgg_10_digits/states.safetensors").read_bytes() != first


def test_accuracy_needs_as_many_classes_as_the_network_has(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["score", "-m", "tiny_vgg_10", "-d", str(photos), "-o", "out"]) == 0
    assert "No accuracy" in capfd.readouterr().err
    assert store.read(Path("out")).top1 is None


def test_unreadable_images_are_counted_named_and_shown(photos: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (photos / "cat" / "1.png").write_text("not a picture")
    arguments = ["score", "-d", str(photos), "--resize", "none", "--crop", "none", "-o", "out"]
    assert cli.run(arguments) == 0
    assert (
        "1 of 6 images could not be read and were left out, the first cat/1.png (not an image" in capfd.readouterr().err
    )
    record = json.loads(Path("out/run.json").read_text())
    assert (record["images_scored"], record["images_selected"]) == (5, 6)
    assert [skipped["path"] for skipped in record["images_skipped"]] == ["cat/1.png"]
    assert cli.run([*arguments, "--on-bad-image", "fail"]) == 1
    assert "cat/1.png cannot be read" in capfd.readouterr().err


def test_debug_shows_the_traceback() -> None:
    from purity_cli.errors import PurityError

    with pytest.raises(PurityError):
        cli.run(["score", "-m", "resnt50", "--debug"])


def test_help_is_light_and_every_command_has_it() -> None:
    heavy = {"torch", "torchvision", "timm", "pandas", "numpy", "scipy", "matplotlib", "rich", "yaml"}
    # That of `models` tells what each source has, which takes the libraries that they are.
    for arguments in (["--help"], *([name, "--help"] for name in COMMANDS if name != "models")):
        # Options of a Job are made of its fields, by commands that are asked for theirs.
        loaded = heavy | {"pydantic"} if arguments == ["--help"] else heavy
        code = f"import sys; from purity_cli.cli import run; run({arguments}); print({loaded} & set(sys.modules))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=_checkout())
        assert done.stdout.splitlines()[-1] == "set()", arguments
        assert "--help" in done.stdout


def _checkout() -> Path:
    return Path(cli.__file__).parents[2]


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_an_interrupted_run_ends_with_130_and_without_a_traceback(photos: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(_checkout())}
    arguments = ["score", "-m", "tiny_vgg", "-w", "none", "--batch-size", "1", "-o", "out"]
    command = [sys.executable, "-m", "purity_cli", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while not Path("out").exists() and running.poll() is None:  # it has begun to score
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    assert "Interrupted" in err


def test_the_options_are_the_fields_of_a_job() -> None:
    own = {"model", "thresholds", "groups", "target"}
    assert {*options.JOB_OPTIONS} - own == {*Job.model_fields} - own
    command = cli.cli.get_command(click.Context(cli.cli), "score")
    assert command
    values = command.make_context("score", []).params
    settings = {name: values[name] for name in options.JOB_OPTIONS if values[name] is not None}
    assert options.make_jobs(values["models"], settings, Job().thresholds) == [Job()]


SUITE = "defaults: {dataset: digits, limit: 6}\nmodels: [{model: tiny_vgg_10, limit: 9}]\n"


def test_a_suite_takes_settings_that_hold_for_every_job(capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(SUITE)
    bench = ["bench", "mine.yaml", "--cache", "none", "--workers", "1"]
    for name, changes in (("as it is", []), ("changed", ["--set", "limit=4", "--set", "rate=0.05"])):
        assert cli.run([*bench, *changes, "-o", name]) == 0
        (folder,) = (path for path in Path(name).iterdir() if path.is_dir())
        assert store.read(folder).n_images == (9 if name == "as it is" else 4)
    assert "F 5%" in capfd.readouterr().out


def test_progress_is_lines_of_json_for_programs(capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(SUITE)
    assert cli.run(["bench", "mine.yaml", "--cache", "none", "--progress", "json", "-o", "out"]) == 0
    steps = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (done,) = (one for one in steps if one["event"] == "job")
    assert (done["status"], done["images"], done["number"], done["of"], done["error"]) == ("scored", 9, 1, 1, None)
    assert [(one["done"], one["total"]) for one in steps if one["event"] == "images"][-1] == (9, 9)
    assert {one["level"] for one in steps if one["event"] == "message"} == {"info", "warning"}
    assert cli.run(["score", "-m", "no", "--progress", "json"]) == 1
    (error,) = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert error["level"] == "error"
    assert "No model 'no'" in error["text"]
