"""Purity over training: which checkpoints, in which order, what they score, and what purity would have chosen."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from hypothesis import given
from PIL import Image
from scipy import stats

from purity_cli import epochs, models, run, store
from purity_cli.cli import run as run_command
from purity_cli.datasets import open_dataset
from purity_cli.datasets.base import ArraySource
from purity_cli.epochs import Checkpoint, Measured, choice, table3
from purity_cli.epochs.choice import Course
from purity_cli.errors import PurityError
from purity_cli.figures import curves, drawing
from purity_cli.plan import Job

LIMIT = 40


def silent(_: str) -> None:
    return None


def save(path: Path, seed: int, about: dict[str, Any] | None = None, model: str = "tiny_vgg_10") -> Path:
    """Random weights as a checkpoint, with the JSON beside it that `purity train` writes."""
    state = models.load(model, "none", seed=seed).module.state_dict()
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    if about is not None:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


def about(epoch: int, **changes: Any) -> dict[str, Any]:
    recipe = {"model": "bundled:tiny_vgg_10", "dataset": "digits"}
    return {"model": "tiny_vgg_10", "epoch": epoch, "test_top1": 50.0 + epoch, "recipe": recipe} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one network whose names do not sort as their epochs do."""
    place = tmp_path_factory.mktemp("run")
    for epoch in (20, 3, 100):
        save(place / f"net_epoch{epoch}.safetensors", epoch, about(epoch))
    return place


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[Measured]:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]), silent)
    return epochs.score(found, Job(limit=LIMIT, thresholds=(0.2, 0.5)), workers=1, peers=("rankme",))


def test_patterns_and_files_are_found_once(folder: Path) -> None:
    found = epochs.find([f"{folder}/net_epoch3.safetensors", f"{folder}/*.safetensors"])
    assert epochs.find([f"{folder}/*"]) == epochs.find([f"{folder}/*.safetensors"])
    assert [path.name for path in found] == [f"net_epoch{epoch}.safetensors" for epoch in (3, 100, 20)]
    with pytest.raises(PurityError, match=r"is a folder: give the weight files in it, e.g. '.*/\*.safetensors'"):
        epochs.find([str(folder)])
    with pytest.raises(PurityError, match=r"There is no checkpoint .*nothing\*: give weight files, or a pattern"):
        epochs.find([f"{folder}/nothing*"])


def test_epochs_come_from_the_json_beside(folder: Path) -> None:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]), silent)
    assert [one.epoch for one in found] == [3, 20, 100]
    assert [one.path.stem for one in found] == ["net_epoch3", "net_epoch20", "net_epoch100"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["net_epoch10.pth", "net_epoch9.pth"], {"net_epoch9": 9, "net_epoch10": 10}),
        (["epoch=4-step=900.ckpt", "epoch=5-step=1080.ckpt"], {"epoch=4-step=900": 4, "epoch=5-step=1080": 5}),
        (["resnet18_7.pth", "resnet18_12.pth"], {"resnet18_7": 7, "resnet18_12": 12}),
        (["ckpt_10.pth", "ckpt_20.pth"], {"ckpt_10": 10, "ckpt_20": 20}),
    ],
)
def test_else_from_their_names(names: list[str], expected: dict[str, int], tmp_path: Path) -> None:
    said: list[str] = []
    found = epochs.number([tmp_path / name for name in names], said.append)
    assert {one.path.stem: one.epoch for one in found} == expected
    assert [one.epoch for one in found] == sorted(expected.values())
    assert said == []


@pytest.mark.parametrize(
    "names",
    [
        ["best.pth", "last.pth"],
        ["resnet18_a.pth", "resnet18_b.pth"],
        ["ckpt_10_0.81.pth", "ckpt_20_0.79.pth"],
        ["a1.pth", "a1_2.pth"],
    ],
)
def test_else_from_the_order_given_and_that_is_said(names: list[str], tmp_path: Path) -> None:
    said: list[str] = []
    found = epochs.number([tmp_path / name for name in names], said.append)
    assert [(one.epoch, one.path.name) for one in found] == list(enumerate(names, 1))
    assert len(said) == 1
    assert "numbered as given" in said[0]


def test_two_of_one_epoch_or_of_two_networks_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in paths:
        path.with_suffix(".json").write_text(json.dumps(about(7)))
    with pytest.raises(PurityError, match=r"a.pth and .*b.pth are both of epoch 7: give those of one training"):
        epochs.number(paths, silent)
    paths[1].with_suffix(".json").write_text(json.dumps(about(8, model="tiny_vgg")))
    with pytest.raises(PurityError, match=r"a.pth is of tiny_vgg_10 and .*b.pth of tiny_vgg: give checkpoints of one"):
        epochs.number(paths, silent)
    paths[1].with_suffix(".json").write_text("{")
    with pytest.raises(PurityError, match=r"b.json cannot be read as JSON: mend or remove it"):
        epochs.number(paths, silent)


def test_every_checkpoint_is_scored_as_purity_score_does(measured: list[Measured]) -> None:
    assert [one.checkpoint.epoch for one in measured] == [3, 20, 100]
    for one in measured:
        job = Job(limit=LIMIT, thresholds=(0.2, 0.5), weights=str(one.checkpoint.path))
        alone = run.score(run.resolve(job), workers=1)
        assert one.result.job == job
        assert one.result.top1 == alone.top1
        assert one.result.weights == one.checkpoint.path.name
        assert one.result.provenance["epoch"] == one.checkpoint.epoch
        assert all(np.array_equal(a.counts, b.counts) for a, b in zip(one.result.layers, alone.layers, strict=True))
    counts = [one.result.deepest.counts for one in measured]
    assert not np.array_equal(counts[0], counts[1])


def test_pixels_are_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    load = ArraySource.load

    def counted(self: ArraySource, i: int, /) -> Image.Image:
        seen.append(i)
        return load(self, i)

    monkeypatch.setattr(ArraySource, "load", counted)
    told: list[tuple[int, int]] = []
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]), silent)
    epochs.score(found, Job(limit=10, batch_size=4), workers=1, progress=lambda *done: told.append(done))
    # The first is opened for its size as well, whenever names are resolved.
    assert sorted(i for i in seen if i > 0) == list(range(1, 10))
    assert told == [(done, 30) for done in (4, 8, 10, 14, 18, 20, 24, 28, 30)]


def test_another_architecture_and_a_damaged_file_are_one_sentence_before_any_work(folder: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "net_epoch200.safetensors", 0, model="tiny_vgg")
    good = folder / "net_epoch3.safetensors"
    with pytest.raises(PurityError, match=r"net_epoch200.safetensors does not fit tiny_vgg_10"):
        epochs.score([Checkpoint(good, 3), Checkpoint(other, 200)], Job(dataset="nowhere"), workers=1)
    other.write_bytes(b"no weights")
    with pytest.raises(PurityError, match=r"net_epoch200.safetensors cannot be read as safetensors"):
        epochs.score([Checkpoint(good, 3), Checkpoint(other, 200)], Job(dataset="nowhere"), workers=1)


def test_a_checkpoint_that_diverged_is_named(folder: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(folder / "net_epoch3.safetensors")
    state["features.2.bias"][:] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "net_epoch4.safetensors")
    bad = Checkpoint(tmp_path / "net_epoch4.safetensors", 4)
    with pytest.raises(PurityError, match=r"net_epoch4.safetensors: .*holds a NaN"):
        epochs.score([Checkpoint(folder / "net_epoch3.safetensors", 3), bad], Job(limit=5), workers=1)


values = st.lists(st.integers(0, 5).map(float) | st.just(math.nan), min_size=1, max_size=12)


@given(values, st.integers(1, 4))
def test_keeping_is_the_argmax_of_what_was_looked_at(given_values: list[float], patience: int) -> None:
    known = np.where(np.isnan(given_values), -1.0, given_values)
    best, seen = choice.keep(given_values)
    assert seen == len(known) - 1
    assert best == (None if known.max() < 0 else int(known.argmax()))
    # Stopped at the first place that lies `patience` behind the best until there.
    behind = [t - int(known[: t + 1].argmax()) if known[: t + 1].max() >= 0 else 0 for t in range(len(known))]
    stop = next((t for t, places in enumerate(behind) if places >= patience), len(known) - 1)
    best, seen = choice.keep(given_values, patience)
    assert seen == stop
    assert best == (None if known[: stop + 1].max() < 0 else int(known[: stop + 1].argmax()))


def course(purity: list[float], accuracy: list[float], images: int = 200) -> Course:
    return Course([1, 2, 5, 10, 20][: len(purity)], "C2", purity, accuracy, images)


def test_choices_and_their_regret() -> None:
    nan = math.nan
    one = course([0.5, 0.7, 0.6, 0.65, 0.9], [40.0, 61.0, 72.5, 80.0, 79.0])
    found = {each.rule: (each.epoch, each.seen, each.accuracy, each.regret) for each in choice.choices(one, 2)}
    assert found == {
        "highest purity of C2": (20, 20, 79.0, 1.0),
        "purity of C2, patience 2": (2, 10, 61.0, 19.0),
        "highest accuracy": (10, 20, 80.0, 0.0),
        "accuracy, patience 2": (10, 20, 80.0, 0.0),
        "last checkpoint": (20, 20, 79.0, 1.0),
    }
    said = choice.words(one, choice.choices(one, 2))
    assert said[0] == "By highest purity of C2, epoch 20 is kept: 79.00 %, a regret of 1.00 points (2 of 200 images)."
    tau = stats.kendalltau(one.purity, one.accuracy)
    assert f"with accuracy: {tau.statistic:.3f}, two-sided p {tau.pvalue:.2g}, n = 5." in said[3]
    assert "One image is 0.5 points" in said[-1]
    silent_course = course([nan, nan, nan], [40.0, 50.0, 60.0])
    assert choice.choices(silent_course, 2)[0].epoch is None
    assert (
        "no checkpoint can be kept: nothing fired" in choice.words(silent_course, choice.choices(silent_course, 2))[0]
    )
    assert all("nan" not in sentence for sentence in choice.words(silent_course, choice.choices(silent_course, 2)))


def test_without_an_accuracy_there_is_a_choice_and_no_regret() -> None:
    one = course([0.5, 0.7, 0.6], [40.0, math.nan, 60.0])
    found = choice.choices(one, 2)
    assert [(each.rule, each.epoch, each.regret) for each in found] == [
        ("highest purity of C2", 2, None),
        ("purity of C2, patience 2", 2, None),
        ("last checkpoint", 5, None),
    ]
    said = choice.words(one, found)
    assert said[0] == "By highest purity of C2, epoch 2 is kept."
    assert "with accuracy: none, for 2 checkpoints have both." in said[3]
    assert "nan" not in " ".join(said)


def test_the_table_is_the_papers_with_the_other_layers_behind(measured: list[Measured]) -> None:
    rows = table3.frame(measured, 0.2)
    assert rows["epoch"].tolist() == [3, 3, 20, 20, 100, 100]
    last = rows[rows["stage"] == "C2"]
    shown = table3.layout(measured, 0.2)
    assert list(shown.columns[:7]) == ["model", "epoch", "accuracy", "purity", "se", "C1", "Average"]
    assert "rankme" in shown.columns
    assert shown["purity"].tolist() == [f"{value:.3f}" for value in last["purity"]]
    assert shown["accuracy"].tolist() == [f"{one.result.top1:.2f}" for one in measured]
    assert not any(name.startswith("paper") for name in shown.columns)


def test_beside_the_papers_networks_stand_the_papers_values(measured: list[Measured]) -> None:
    named = [
        Measured(
            replace(one.checkpoint, epoch=epoch),
            replace(one.result, model="tiny_vgg", dataset="cifar10-jpeg"),
        )
        for one, epoch in zip(measured, (5, 10, 100), strict=True)
    ]
    shown = table3.layout(named, 0.2)
    assert shown["paper accuracy"].tolist() == ["", "81.25", "87.50"]
    assert shown["paper purity"].tolist() == ["", "0.713", "0.835"]
    theirs = table3.paper(named)
    assert theirs is not None
    assert theirs["epoch"].tolist() == [10, 20, 50, 100]
    assert table3.paper([Measured(named[0].checkpoint, replace(named[0].result, source="file"))]) is None


def test_layers_that_are_silent_or_starved_are_named_with_their_epochs(measured: list[Measured]) -> None:
    def with_counts(one: Measured, first: int, second: int) -> Measured:
        layers = tuple(
            replace(layer, counts=np.full_like(layer.counts, 0) + (np.arange(layer.channels) < firing))
            for layer, firing in zip(one.result.layers, (first, second), strict=True)
        )
        return Measured(one.checkpoint, replace(one.result, layers=layers))

    # 20 groups with one firing for each channel that fires: N = 20 times their number, against 5 c = 50.
    changed = [with_counts(measured[0], 0, 2), with_counts(measured[1], 0, 3), with_counts(measured[2], 2, 9)]
    said = table3.sentences(changed, 0.2, choice.choices(table3.course(changed, 0.2), 3))
    assert said[-2:] == [
        "Nothing fired, so that F is NaN: C1 at epochs 3, 20.",
        "F is biased low, for N < 5 c: C2 at epoch 3; C1 at epoch 100.",
    ]


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flat")
    digits = open_dataset("digits")
    for i in range(8):
        digits.load(i).save(place / f"{i}.png")
    return place


def test_accuracies_that_cannot_be_measured_come_from_the_training(folder: Path, unlabelled: Path) -> None:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]), silent)
    scored = epochs.score(found, Job(dataset=str(unlabelled), thresholds=(0.2,)), workers=1)
    assert [one.accuracy for one in scored] == [53.0, 70.0, 150.0]
    assert table3.notes(scored)[0].startswith("Accuracies are those that the training recorded")
    # One without: said by name, and nothing is NaN.
    scored[1] = Measured(replace(scored[1].checkpoint, about={}), scored[1].result)
    picked = choice.choices(table3.course(scored, 0.2), 3)
    said = table3.sentences(scored, 0.2, picked)
    assert said[0].startswith("No regret can be said, for net_epoch20.safetensors has no accuracy: ")
    text = table3.to_markdown(scored, 0.2, picked)
    assert "nan" not in text.lower()
    assert json.loads(table3.to_json(scored, 0.2, picked))["choices"][0]["regret"] is None


def test_an_accuracy_unlike_the_recorded_one_is_told(measured: list[Measured]) -> None:
    one = measured[0]
    recipe = {"test_fingerprint": one.result.provenance["dataset_fingerprint"], "test_images": LIMIT}
    assert not one.disagrees
    top1 = one.result.top1
    assert top1 is not None
    for recorded, told in ((top1, False), (top1 + 0.4, False), (top1 + 3, True)):
        checkpoint = replace(one.checkpoint, about=about(3, test_top1=recorded, recipe=recipe))
        assert Measured(checkpoint, one.result).disagrees is told
    assert "the pixels may not be those of its training" in table3.notes([Measured(checkpoint, one.result)])[0]


def test_the_curve_is_drawn_from_the_rows(measured: list[Measured]) -> None:
    rows = table3.frame(measured, 0.2)
    picked = choice.choices(table3.course(measured, 0.2), 3)
    paper = pd.DataFrame({"epoch": [10], "top1": [80.0], "purity": [0.7]})
    left, right = curves.training_curve(rows, [each for each in picked if each.rule.startswith("highest")], paper).axes
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    last = rows[rows["stage"] == "C2"]
    assert np.asarray(lines["C2"].get_ydata()).tolist() == last["purity"].tolist()
    assert np.asarray(lines["accuracy"].get_xdata()).tolist() == [3, 20, 100]
    assert np.asarray(lines["paper, last layer"].get_ydata()).tolist() == [0.7]
    assert sum(str(name).startswith("highest") for name in lines) == 2
    assert left.get_xscale() == "log"


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = run_command(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("layout", ["table", "csv", "md", "json"])
def test_the_command_needs_no_more_than_a_pattern(
    layout: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if layout != "table":  # drawing takes as long as all the rest
        monkeypatch.setattr(drawing, "save", lambda figure, path: None)
    given_ = ["epochs", f"{folder}/*.safetensors", "--limit", "20", "-t", "0.2", "-o", str(tmp_path)]
    code, out, err = call([*given_, "--format", layout, "--patience", "1", "--metrics", "rankme"], capsys)
    assert code == 0, err
    files = sorted(path.name for path in tmp_path.iterdir())
    drawn = ["epochs.png", "epochs.svg"] if layout == "table" else []
    assert files == ["epoch003", "epoch020", "epoch100", "epochs.csv", "epochs.md", *drawn]
    assert all(Image.open(tmp_path / name).format == "PNG" for name in drawn[:1])
    stored = store.read(tmp_path / "epoch020")
    assert stored.provenance["epoch"] == 20
    assert stored.provenance["command"].startswith("purity epochs")
    assert (tmp_path / "epochs.csv").read_text() == table3.to_csv(_again(tmp_path, folder), 0.2)
    if layout == "csv":
        assert pd.read_csv(io.StringIO(out))["epoch"].tolist() == [3, 3, 20, 20, 100, 100]
    elif layout == "json":
        assert [each["rule"] for each in json.loads(out)["choices"]][1] == "purity of C2, patience 1"
    else:
        assert "highest purity of C2" in out
    if layout == "md":
        assert (tmp_path / "epochs.md").read_text().startswith(out)


def _again(results: Path, folder: Path) -> list[Measured]:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]), silent)
    return [Measured(one, store.read(results / f"epoch{one.epoch:03}")) for one in found]


def test_what_the_command_cannot_know_it_asks_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(["epochs", f"{folder}/*.safetensors", "-m", "tiny_vgg", "-m", "tiny_vgg_10"], capsys)
    assert code == 2
    assert "Checkpoints are of one network: give one --model" in err
    recipe = {"model": "file:mine", "dataset": "photos"}
    save(tmp_path / "a.safetensors", 0, about(1, recipe=recipe))
    code, _, err = call(["epochs", f"{tmp_path}/a.safetensors", "-d", "digits"], capsys)
    assert (code, "give --model FILE.py:FUNCTION" in err) == (2, True)
    code, _, err = call(["epochs", f"{tmp_path}/a.safetensors", "-m", "tiny_vgg_10"], capsys)
    assert (code, "The training was on photos: give its path with --dataset" in err) == (2, True)
    code, _, err = call(["epochs", f"{folder}/*.safetensors", "--weights", "none"], capsys)
    assert code == 2
