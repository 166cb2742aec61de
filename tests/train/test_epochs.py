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

from purity_cli import epochs, models, paper, run, store
from purity_cli.cli import run as run_command
from purity_cli.datasets import open_dataset
from purity_cli.datasets.base import ArrayImages
from purity_cli.epochs import CheckpointFile
from purity_cli.errors import PurityError
from purity_cli.figures import charts, drawing
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Result
from purity_cli.suite import bench
from purity_cli.views import cells
from purity_cli.views import epochs as view
from purity_cli.views.epochs import Trajectory
from tests.logged import logged

LIMIT = 40


def save(path: Path, seed: int, about: dict[str, Any] | None = None, model: str = "tiny_vgg_10") -> Path:
    """Random weights as a checkpoint, with the JSON beside it that `purity train` writes."""
    state = models.load(model, "none", seed=seed).module.state_dict()
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    if about is not None:
        path.with_suffix(".json").write_text(json.dumps(about))
    return path


def about(epoch: int, **changes: Any) -> dict[str, Any]:
    recipe = {"model": "bundled:tiny_vgg_10", "dataset": "digits"}
    return {"model": "tiny_vgg_10", "epoch": epoch, "test_top1": 50.0 + epoch / 4, "recipe": recipe} | changes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of one network whose names do not sort as their epochs do."""
    place = tmp_path_factory.mktemp("run")
    for epoch in (20, 3, 100):
        save(place / f"net_epoch{epoch}.safetensors", epoch, about(epoch))
    return place


@pytest.fixture(scope="module")
def measured(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]))
    return epochs.score(
        found,
        Job(model="tiny_vgg_10", dataset="digits", limit=LIMIT, thresholds=(0.2, 0.5), metrics=("rankme",)),
        tmp_path_factory.mktemp("scored"),
        workers=1,
    )


def test_patterns_and_files_are_found_once(folder: Path) -> None:
    found = epochs.find([f"{folder}/net_epoch3.safetensors", f"{folder}/*.safetensors"])
    assert epochs.find([f"{folder}/*"]) == epochs.find([f"{folder}/*.safetensors"])
    assert [path.name for path in found] == [f"net_epoch{epoch}.safetensors" for epoch in (3, 20, 100)]
    with pytest.raises(PurityError, match=r"is a folder: give the weight files in it, e.g. '.*/\*.safetensors'"):
        epochs.find([str(folder)])
    with pytest.raises(PurityError, match=r"There is no checkpoint .*nothing\*: give weight files, or a pattern"):
        epochs.find([f"{folder}/nothing*"])


def test_epochs_come_from_the_json_beside(folder: Path) -> None:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]))
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
    with logged() as said:
        found = epochs.number([tmp_path / name for name in names])
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
    with logged() as said:
        found = epochs.number([tmp_path / name for name in names])
    assert [(one.epoch, one.path.name) for one in found] == list(enumerate(names, 1))
    assert len(said) == 1
    assert "numbered as given" in said[0]


def test_two_of_one_epoch_or_of_two_networks_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.pth", tmp_path / "b.pth"]
    for path in paths:
        path.with_suffix(".json").write_text(json.dumps(about(7)))
    with pytest.raises(PurityError, match=r"a.pth and .*b.pth are both of epoch 7: give those of one training"):
        epochs.number(paths)
    paths[1].with_suffix(".json").write_text(json.dumps(about(8, model="tiny_vgg")))
    with pytest.raises(PurityError, match=r"a.pth is of tiny_vgg_10 and .*b.pth of tiny_vgg: give checkpoints of one"):
        epochs.number(paths)
    paths[1].with_suffix(".json").write_text("{")
    with pytest.raises(PurityError, match=r"b.json cannot be read as JSON: mend or remove it"):
        epochs.number(paths)


def test_every_checkpoint_is_scored_as_purity_score_does(measured: list[Result]) -> None:
    assert [one.provenance["epoch"] for one in measured] == [3, 20, 100]
    for one in measured:
        job = one.job.model_copy(update={"metrics": ()})
        alone = run.score(run.resolve(job), workers=1)
        assert one.top1 == alone.top1
        assert one.weights == one.provenance["checkpoint"]
        assert all(np.array_equal(a.counts, b.counts) for a, b in zip(one.layers, alone.layers, strict=True))
    counts = [cells.deepest(one).counts for one in measured]
    assert not np.array_equal(counts[0], counts[1])


class Watch(bench.Unwatched):
    """Keeps what it is told of images; raises KeyboardInterrupt after so many calls."""

    def __init__(self, calls: int = 1000) -> None:
        self.calls, self.told = calls, list[tuple[int, int]]()

    def images(self, done: int, total: int) -> None:
        self.told.append((done, total))
        if len(self.told) == self.calls:
            raise KeyboardInterrupt


def test_pixels_are_decoded_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    decode = ArrayImages.decode

    def counted(self: ArrayImages, i: int, data: bytes, /) -> Image.Image:
        decoded.append(i)
        return decode(self, i, data)

    monkeypatch.setattr(ArrayImages, "decode", counted)
    watch = Watch()
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]))
    job = Job(model="tiny_vgg_10", dataset="digits", limit=10, batch_size=4)
    epochs.score(found, job, tmp_path / "out", workers=1, cache=tmp_path / "cache", watch=watch)
    # The first is opened for its size as well, whenever names are resolved.
    assert sorted(i for i in decoded if i > 0) == list(range(1, 10))
    assert watch.told == [(done, 10) for done in (4, 8, 10)] * 3


def test_a_course_that_was_ended_goes_on_where_it_stopped(folder: Path, tmp_path: Path) -> None:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]))
    job = Job(model="tiny_vgg_10", dataset="digits", limit=10, batch_size=4, metrics=("rankme",))
    with pytest.raises(KeyboardInterrupt):
        epochs.score(found, job, tmp_path / "out", workers=1, watch=Watch(4))
    (unfinished,) = (tmp_path / "out").glob("*/partial-*.safetensors")
    assert unfinished.parent.name == "epoch020"
    before = (tmp_path / "out" / "epoch003" / store.STATES).stat().st_mtime_ns
    watch = Watch()
    got = epochs.score(found, job, tmp_path / "out", workers=1, watch=watch)
    assert (tmp_path / "out" / "epoch003" / store.STATES).stat().st_mtime_ns == before
    assert len(watch.told) == 2 + 3
    whole = epochs.score(found, job, tmp_path / "other", workers=1)
    for one, other in zip(got, whole, strict=True):
        for ours, theirs in zip(one.layers, other.layers, strict=True):
            assert np.array_equal(ours.counts, theirs.counts)
            assert ours.measures["rankme"] == pytest.approx(theirs.measures["rankme"], rel=1e-9)


def test_another_architecture_and_a_damaged_file_are_one_sentence_before_any_work(folder: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "net_epoch200.safetensors", 0, model="tiny_vgg")
    good, job = folder / "net_epoch3.safetensors", Job(model="tiny_vgg_10", dataset="nowhere")
    with pytest.raises(PurityError, match=r"net_epoch200.safetensors does not fit tiny_vgg_10"):
        epochs.score([CheckpointFile(good, 3), CheckpointFile(other, 200)], job, tmp_path / "out", workers=1)
    other.write_bytes(b"no weights")
    with pytest.raises(PurityError, match=r"net_epoch200.safetensors cannot be read"):
        epochs.score([CheckpointFile(good, 3), CheckpointFile(other, 200)], job, tmp_path / "out", workers=1)


def test_a_checkpoint_that_diverged_is_named(folder: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(folder / "net_epoch3.safetensors")
    state["features.2.bias"][:] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "net_epoch4.safetensors")
    bad = CheckpointFile(tmp_path / "net_epoch4.safetensors", 4)
    good = CheckpointFile(folder / "net_epoch3.safetensors", 3)
    with pytest.raises(PurityError, match=r"holds a NaN .*weights: net_epoch4\.safetensors"):
        epochs.score([good, bad], Job(model="tiny_vgg_10", dataset="digits", limit=5), tmp_path / "out", workers=1)


values = st.lists(st.integers(0, 5).map(float) | st.just(math.nan), min_size=1, max_size=12)


@given(values, st.integers(1, 4))
def test_keeping_is_the_argmax_of_what_was_looked_at(given_values: list[float], patience: int) -> None:
    known = np.where(np.isnan(given_values), -1.0, given_values)
    best, seen = view.keep(given_values)
    assert seen == len(known) - 1
    assert best == (None if known.max() < 0 else int(known.argmax()))
    # Stopped at the first place that lies `patience` behind the best until there.
    behind = [t - int(known[: t + 1].argmax()) if known[: t + 1].max() >= 0 else 0 for t in range(len(known))]
    stop = next((t for t, places in enumerate(behind) if places >= patience), len(known) - 1)
    best, seen = view.keep(given_values, patience)
    assert seen == stop
    assert best == (None if known[: stop + 1].max() < 0 else int(known[: stop + 1].argmax()))


def course(purity: list[float], accuracy: list[float], images: int = 200) -> Trajectory:
    return Trajectory([1, 2, 5, 10, 20][: len(purity)], "C2", purity, accuracy, images)


def test_choices_and_their_regret() -> None:
    nan = math.nan
    one = course([0.5, 0.7, 0.6, 0.65, 0.9], [40.0, 61.0, 72.5, 80.0, 79.0])
    found = {each.rule: (each.epoch, each.seen, each.accuracy, each.regret) for each in view.choices(one, 2)}
    assert found == {
        "highest purity of C2": (20, 20, 79.0, 1.0),
        "purity of C2, patience 2": (2, 10, 61.0, 19.0),
        "highest accuracy": (10, 20, 80.0, 0.0),
        "accuracy, patience 2": (10, 20, 80.0, 0.0),
        "last checkpoint": (20, 20, 79.0, 1.0),
    }
    said = view.words(one, view.choices(one, 2))
    assert said[0] == "By highest purity of C2, epoch 20 is kept: 79.00 %, a regret of 1.00 points (2 of 200 images)."
    tau = stats.kendalltau(one.purity, one.accuracy)
    assert f"with accuracy: {tau.statistic:.3f}, two-sided p {tau.pvalue:.2g}, n = 5." in said[3]
    assert "One image is 0.5 points" in said[-1]
    silent_course = course([nan, nan, nan], [40.0, 50.0, 60.0])
    assert view.choices(silent_course, 2)[0].epoch is None
    assert "no checkpoint can be kept: nothing fired" in view.words(silent_course, view.choices(silent_course, 2))[0]
    assert all("nan" not in sentence for sentence in view.words(silent_course, view.choices(silent_course, 2)))


def test_without_an_accuracy_there_is_a_choice_and_no_regret() -> None:
    one = course([0.5, 0.7, 0.6], [40.0, math.nan, 60.0])
    found = view.choices(one, 2)
    assert [(each.rule, each.epoch, each.regret) for each in found] == [
        ("highest purity of C2", 2, None),
        ("purity of C2, patience 2", 2, None),
        ("last checkpoint", 5, None),
    ]
    said = view.words(one, found)
    assert said[0] == "By highest purity of C2, epoch 2 is kept."
    assert "with accuracy: none, because 2 checkpoints have both." in said[3]
    assert "nan" not in " ".join(said)


def test_the_table_is_the_papers_with_the_other_layers_behind(measured: list[Result]) -> None:
    report = view.epochs(measured, 0.2)
    rows = report.main.rows
    assert [row["epoch"] for row in rows] == [3, 3, 20, 20, 100, 100]
    assert [row["checkpoint"] for row in rows[::2]] == [one.provenance["checkpoint"] for one in measured]
    (shown,) = (table for table in report.tables if table.key == "layout")
    assert [column.heading for column in shown.shown][:6] == ["epoch", "accuracy", "purity", "se", "F 1%", "C1"]
    assert "rankme" in [column.heading for column in shown.shown]
    assert [row["purity"] for row in shown.rows] == [row["purity"] for row in rows if row["stage"] == "C2"]
    assert [row["top1"] for row in shown.rows] == [one.top1 for one in measured]
    assert not any(column.heading.startswith("paper") for column in shown.columns)


def test_beside_the_papers_networks_stand_the_papers_values(measured: list[Result]) -> None:
    named = [
        replace(one, model="tiny_vgg", dataset="cifar10-jpeg", provenance={**one.provenance, "epoch": epoch})
        for one, epoch in zip(measured, (5, 10, 100), strict=True)
    ]
    published = paper.published(named)
    assert published is not None
    report = view.epochs(named, 0.2, published=published)
    (shown,) = (table for table in report.tables if table.key == "layout")
    assert [(row["paper_top1"], row["paper"]) for row in shown.rows] == [(None, None), (81.25, 0.713), (87.5, 0.835)]
    assert list(published.values) == [10, 20, 50, 100]
    assert paper.ABOUT["table3"] in report.notes
    assert "The paper's values are of CIFAR-10 as it was published, these of cifar10-jpeg." in report.notes
    assert paper.published([replace(one, dataset="digits") for one in named]) is None


def test_results_that_are_no_course_are_refused(measured: list[Result]) -> None:
    one, other, _ = measured
    with pytest.raises(PurityError, match="are both of epoch 3: give one training"):
        view.epochs([one, one], 0.2)
    with pytest.raises(PurityError, match="tiny_vgg_10 and b are not of one network"):
        view.epochs([one, replace(other, model="b")], 0.2)
    unknown = replace(one, provenance={}, job=one.job.model_copy(update={"weights": "default"}))
    with pytest.raises(PurityError, match="is of no known epoch: leave it out"):
        view.epochs([unknown, other], 0.2)


def test_layers_that_are_silent_or_starved_are_named_with_their_epochs(measured: list[Result]) -> None:
    def with_counts(one: Result, first: int, second: int) -> Result:
        layers = tuple(
            replace(layer, counts=np.full_like(layer.counts, 0) + (np.arange(layer.channels) < firing))
            for layer, firing in zip(one.layers, (first, second), strict=True)
        )
        return replace(one, layers=layers)

    # 20 groups with one firing for each channel that fires: N = 20 times their number, against 5 c = 50.
    three = measured
    changed = [with_counts(three[0], 0, 2), with_counts(three[1], 0, 3), with_counts(three[2], 2, 9)]
    report = view.epochs(changed, 0.2)
    assert "Nothing fires at any threshold, so that F is NaN: epoch 3, epoch 20: C1." in report.notes
    assert "N < 5 c where a * stands, so that F is biased low: epoch 3: C2; epoch 100: C1." in report.notes
    (shown,) = (table for table in report.tables if table.key == "layout")
    assert {place: mark for place, mark in shown.marks.items() if place[1] != "purity_rate"} == {
        (0, "purity"): "starved", (2, "C1"): "starved",
    }  # fmt: skip


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flat")
    digits = open_dataset("digits")
    for i in range(8):
        digits.load(i).save(place / f"{i}.png")
    return place


def test_accuracies_that_cannot_be_measured_come_from_the_training(
    folder: Path, unlabelled: Path, tmp_path: Path
) -> None:
    found = epochs.number(epochs.find([f"{folder}/*.safetensors"]))
    scored = epochs.score(
        found,
        Job(model="tiny_vgg_10", dataset=str(unlabelled), thresholds=(0.2,)),
        tmp_path / "out",
        threshold=0.2,
        workers=1,
    )
    assert [view.accuracy(one) for one in scored] == [50.75, 55.0, 75.0]
    assert any(
        note.startswith("Accuracies are those that the training recorded") for note in view.epochs(scored, 0.2).notes
    )
    # One without: said by name, and nothing is NaN.
    scored[1] = replace(scored[1], provenance={**scored[1].provenance, "recorded": {}})
    report = view.epochs(scored, 0.2)
    assert report.notes[0].startswith("No regret can be given, because net_epoch20.safetensors has no accuracy: ")
    assert json.loads(FORMATS["json"](report))["choices"][0]["regret"] is None


def test_an_accuracy_unlike_the_recorded_one_is_told(measured: list[Result]) -> None:
    one = measured[0]
    recipe = {"test_fingerprint": one.provenance["dataset_fingerprint"], "test_images": LIMIT}
    assert not view.disagrees(one)
    top1 = one.top1
    assert top1 is not None
    for recorded, told in ((top1, False), (top1 + 0.4, False), (top1 + 3, True)):
        said = CheckpointFile(Path("x"), 3, about(3, test_top1=recorded, recipe=recipe)).provenance()
        result = replace(one, provenance={**one.provenance, **said})
        assert view.disagrees(result) is told
    assert "the pixels may not be those of its training" in view.epochs([result], 0.2).notes[0]


def test_the_curve_is_drawn_from_the_rows(measured: list[Result]) -> None:
    named = [replace(one, model="tiny_vgg", dataset="cifar10") for one in measured]
    report, published = view.epochs(named, 0.2), paper.published(named)
    assert published is not None
    left, right = charts.training_curve(report, published.values).axes
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    last = [row["purity"] for row in report.main.rows if row["stage"] == "C2"]
    assert np.asarray(lines["C2"].get_ydata()).tolist() == last
    assert np.asarray(lines["accuracy"].get_xdata()).tolist() == [3, 20, 100]
    assert np.asarray(lines["paper, last layer"].get_ydata()).tolist() == [0.713, 0.756, 0.823, 0.835]
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
    again = [store.read(tmp_path / f"epoch{epoch:03}") for epoch in (100, 3, 20)]
    assert (tmp_path / "epochs.csv").read_text() == FORMATS["csv"](view.epochs(again, 0.2))
    if layout == "csv":
        assert pd.read_csv(io.StringIO(out))["epoch"].tolist() == [3, 3, 20, 20, 100, 100]
    elif layout == "json":
        assert [each["rule"] for each in json.loads(out)["choices"]][1] == "purity of C2, patience 1"
    else:
        assert "highest purity of C2" in out
    if layout == "md":
        assert (tmp_path / "epochs.md").read_text().startswith(out)


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


def test_names_that_tell_nothing_are_still_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("b10_x1", "b9_x3", "b9_x2", "a_0.5"):
        (tmp_path / f"{name}.pth").touch()
    assert [path.stem for path in epochs.find([f"{tmp_path}/*.pth"])] == ["a_0.5", "b9_x2", "b9_x3", "b10_x1"]


@pytest.mark.parametrize(
    ("weights", "epoch"),
    [("step=1000-epoch=2.ckpt", 2), ("sweep_20_epoch9.pth", 9), ("deep18.pth", None), ("net_20ep.pth", 20)],
)
def test_views_read_epochs_by_the_same_rule(weights: str, epoch: int | None) -> None:
    assert cells.epoch_of(Job(weights=weights)) == epoch
