"""What moved between two runs; scipy's entropy and a jackknife by hand are the oracle."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import entropy

from purity_cli import cli, store
from purity_cli import suite as suites
from purity_cli.cli import stored
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Layer, Result
from purity_cli.store import FAILED
from purity_cli.views import diff as view
from purity_cli.views.diff import Diff, StoredResult

GRID = (0.25, 0.5)
GROUPS, CHANNELS = 20, 8
Purity = Callable[..., tuple[int, str, str]]


def result(model: str = "net", seed: int = 0, **fields: Any) -> Result:
    """Two layers of random counts from 400 images."""
    job = {"model": model, "thresholds": GRID, **fields.pop("job", {})}
    rng = np.random.default_rng(seed)
    layers = tuple(
        Layer(module, stage, CHANNELS, 4, 4, rng.integers(0, 9, (GROUPS, len(GRID), CHANNELS)))
        for module, stage in (("conv1", None), ("layer4", "C5"))
    )
    provenance = {
        "torch": "2.11", "git": "abc", "weights_sha256": "0" * 64, "dataset_fingerprint": "f" * 64,
        "images_selected": 400, "images_skipped": [], "images_scored": 400, "seconds": 1.0, "started": "now",
        **fields.pop("provenance", {}),
    }  # fmt: skip
    named = {"source": "torchvision", "weights": "V1", "dataset": "photos", "preprocessing": "none", **fields}
    return Result(
        job=Job.of(**job), thresholds=GRID, layers=layers, n_images=400, top1=50.0, top5=None, model=model,
        provenance=provenance, **named,
    )  # fmt: skip


def with_counts(given: Result, change: Callable[[np.ndarray], None], layer: int = 1) -> Result:
    layers = list(given.layers)
    counts = layers[layer].counts.copy()
    change(counts)
    layers[layer] = replace(layers[layer], counts=counts)
    return replace(given, layers=tuple(layers))


def one_channel_wins(counts: np.ndarray) -> None:
    counts[:, :, 0] += 20


def silence(counts: np.ndarray) -> None:
    counts[:, 1] = 0


def diff(old: Path, new: Path, **options: Any) -> Diff:
    return view.diff(stored.find(old), stored.find(new), **options)


def save(folder: Path, *results: Result) -> Path:
    for number, one in enumerate(results):
        store.write(one, folder / f"job{number}")
    return folder


def purity_of(counts: np.ndarray) -> float:
    """F of (G, c) by scipy."""
    return float(entropy(counts.sum(0), base=2) / math.log2(counts.shape[1]))


def se_of(counts: np.ndarray) -> float:
    """The jackknife's, one group after the other."""
    without = [purity_of(np.delete(counts, j, axis=0)) for j in range(len(counts))]
    mean = sum(without) / len(without)
    return math.sqrt((len(without) - 1) / len(without) * sum((f - mean) ** 2 for f in without))


@pytest.fixture
def purity(capfd: pytest.CaptureFixture[str]) -> Purity:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.run(["diff", *map(str, arguments)])
        return code, *capfd.readouterr()

    return call


@pytest.mark.parametrize("t", [0, 1])
def test_values_differences_and_errors(t: int, tmp_path: Path) -> None:
    old, new = result(seed=0), result(seed=1)
    found = diff(save(tmp_path / "old", old), save(tmp_path / "new", new), threshold=GRID[t])
    at_threshold = [row for row in found.cells if row["measure"] == "purity"]
    assert [row["layer"] for row in at_threshold] == ["conv1", "layer4"]
    assert [row["stage"] for row in at_threshold] == [None, "C5"]
    for row, a, b in zip(at_threshold, old.layers, new.layers, strict=True):
        before, after = a.counts[:, t], b.counts[:, t]
        se = math.hypot(se_of(before), se_of(after))
        assert row["old"] == pytest.approx(purity_of(before), abs=1e-12)
        assert row["new"] == pytest.approx(purity_of(after), abs=1e-12)
        assert row["difference"] == pytest.approx(purity_of(after) - purity_of(before), abs=1e-12)
        assert row["se"] == pytest.approx(se, rel=1e-9)
        assert row["in_se"] == pytest.approx((purity_of(after) - purity_of(before)) / se, rel=1e-9)


def test_the_same_results_have_not_moved(tmp_path: Path, purity: Purity) -> None:
    save(tmp_path / "a", result(), result("other", seed=1))
    save(tmp_path / "b", result(), result("other", seed=1))
    code, out, _ = purity(tmp_path / "a", tmp_path / "b", "--tolerance", 0)
    assert code == 0
    assert "None of 8 cells moved by more than 0." in out
    assert "In what else" not in out
    # A folder with one result may stand against a suite that has it.
    assert purity(tmp_path / "a" / "job0", tmp_path / "b")[0] == 0
    assert purity(tmp_path / "a" / "job0" / store.STATES, tmp_path / "b" / "job0")[0] == 0


def test_a_cell_moves_where_it_differs_by_more_than_the_tolerance(tmp_path: Path, purity: Purity) -> None:
    old = result()
    new = with_counts(old, one_channel_wins)
    save(tmp_path / "a", old)
    save(tmp_path / "b", new)
    moved = purity_of(new.layers[1].counts[:, 1]) - purity_of(old.layers[1].counts[:, 1])
    assert moved < -0.005
    code, out, err = purity(tmp_path / "a", tmp_path / "b")
    assert (code, err) == (4, "")
    assert f"{moved:+.4f}" in out
    assert "1 of 4 cells moved by more than 0.005." in out
    assert purity(tmp_path / "a", tmp_path / "b", "--tolerance", abs(moved) * 0.999)[0] == 4
    assert purity(tmp_path / "a", tmp_path / "b", "--tolerance", abs(moved))[0] == 0
    assert purity(tmp_path / "b", tmp_path / "a", "--tolerance", abs(moved))[0] == 0
    found = diff(tmp_path / "a", tmp_path / "b")
    assert [row["status"] for row in found.cells] == ["", "", "moved", ""]


@pytest.mark.parametrize(("old", "new", "code"), [(0, 1, 4), (1, 0, 4), (1, 1, 0), (0, 0, 0)])
def test_a_layer_that_falls_silent_or_speaks_again_has_moved(
    old: int, new: int, code: int, tmp_path: Path, purity: Purity
) -> None:
    loud, silent = result(), with_counts(result(), silence)
    save(tmp_path / "a", (loud, silent)[old])
    save(tmp_path / "b", (loud, silent)[new])
    assert purity(tmp_path / "a", tmp_path / "b", "--tolerance", 1)[0] == code
    # At the other threshold it never was silent.
    assert purity(tmp_path / "a", tmp_path / "b", "--threshold", 0.25)[0] == 0


def test_jobs_and_layers_that_vanish_and_appear(tmp_path: Path, purity: Purity) -> None:
    save(tmp_path / "a", result("one"), result("two"))
    save(tmp_path / "b", result("one"), result("three"))
    code, out, _ = purity(tmp_path / "a", tmp_path / "b")
    assert code == 4
    assert "None of 4 cells moved by more than 0.005; 1 job vanished (two)." in out
    found = diff(tmp_path / "a", tmp_path / "b")
    assert [[row["job"], row["status"]] for row in found.cells] == [
        *[["one", ""]] * 4, *[["three", "new"]] * 4, *[["two", "vanished"]] * 4,
    ]  # fmt: skip
    assert [row["difference"] is None for row in found.cells] == [False] * 4 + [True] * 8
    # What is only new is no regression.
    shutil.rmtree(tmp_path / "a" / "job1")
    assert purity(tmp_path / "a", tmp_path / "b")[0] == 0
    less = replace(result("one"), layers=result("one").layers[:1])
    store.write(less, tmp_path / "b" / "job0")
    code, out, _ = purity(tmp_path / "a", tmp_path / "b")
    assert code == 4
    assert "None of 2 cells moved by more than 0.005; 1 layer vanished (one layer4)." in out
    assert purity(tmp_path / "b" / "job0", tmp_path / "a")[0] == 0


@pytest.mark.parametrize("field", ["source", "weights", "dataset", "preprocessing"])
def test_results_of_something_else_are_not_compared(field: str, tmp_path: Path, purity: Purity) -> None:
    save(tmp_path / "a", result())
    save(tmp_path / "b", result(seed=5, **{field: "another"}))
    code, out, _ = purity(tmp_path / "a", tmp_path / "b")
    assert code == 4
    assert "1 job vanished" in out
    assert "None of 0 cells" in out


def test_several_results_of_one_thing_are_told_apart_by_their_jobs(tmp_path: Path) -> None:
    few, many, half = (result(seed=n, job={"limit": n}) for n in (100, 400, 200))
    old = stored.find(save(tmp_path / "a", few, many))

    def names(*new: Result) -> list[tuple[int | None, int | None]]:
        found = stored.find(save(tmp_path / f"b{len(list(tmp_path.iterdir()))}", *new))
        return [tuple(one and one.result.job.limit for one in pair) for pair in view.match(old, found)]  # type: ignore[misc]

    assert names(many, few) == [(400, 400), (100, 100)]
    assert names(half, many) == [(400, 400), (100, 200)]
    assert names(many) == [(400, 400), (100, None)]
    assert sorted({row["job"] for row in diff(tmp_path / "a", tmp_path / "a").cells}) == [
        "net limit 100",
        "net limit 400",
    ]


def test_what_else_differs_is_named_once_for_all_jobs(tmp_path: Path, purity: Purity) -> None:
    skipped = [{"path": "cat/3.jpg", "reason": "truncated"}]
    save(tmp_path / "a", result("one"), result("two"))
    later = {"torch": "2.14", "started": "later", "seconds": 9.0}
    save(
        tmp_path / "b",
        result("one", provenance=later),
        replace(
            result(
                "two", provenance={**later, "weights_sha256": "1" * 64, "images_skipped": skipped}, job={"limit": 9}
            ),
            top1=48.125,
        ),
    )
    found = diff(tmp_path / "a", tmp_path / "b")
    assert not found.regressed
    assert sorted(tuple(change.values()) for change in found.changes) == [
        ("images skipped", "none", "1 (cat/3.jpg, ...)", "two"),
        ("limit", "none", "9", "two"),
        ("top1", "50.00 %", "48.12 %", "two"),
        ("torch", "2.11", "2.14", "all"),
        ("weights sha256", "0" * 12, "1" * 12, "two"),
    ]
    assert not found.same_images
    assert "where both runs saw the same images, it is too large" in found.caution()
    same = diff(tmp_path / "a", tmp_path / "a")
    assert same.same_images
    assert "independent images; as both runs saw the same images, it is too large" in same.caution()
    _, out, _ = purity(tmp_path / "a", tmp_path / "b")
    assert "weights sha256" in out


def test_why_a_job_vanished(tmp_path: Path, purity: Purity) -> None:
    save(tmp_path / "a", result("one"), result("two"))
    save(tmp_path / "b", result("one"))
    (tmp_path / "b" / "job1").mkdir()
    record = {"job": {"model": "two", "dataset": "photos"}, "error": "No weights."}
    (tmp_path / "b" / "job1" / FAILED).write_text(json.dumps(record))
    code, out, _ = purity(tmp_path / "a", tmp_path / "b", "--format", "md")
    assert code == 4
    assert "two on photos failed: No weights." in out
    (tmp_path / "b" / "job1" / FAILED).write_text("{")
    assert "job1 failed." in purity(tmp_path / "a", tmp_path / "b")[1]


def test_formats_hold_the_same_cells(tmp_path: Path, purity: Purity) -> None:
    save(tmp_path / "a", result("one"), result("two"))
    save(tmp_path / "b", with_counts(result("one"), silence))
    found = diff(tmp_path / "a", tmp_path / "b")
    code, out, err = purity(tmp_path / "a", tmp_path / "b", "--format", "csv")
    assert (code, err.splitlines()) == (4, [found.verdict(), found.caution()])
    read = pd.read_csv(io.StringIO(out), keep_default_na=False, dtype=str)
    for name in ("old", "new", "difference", "se", "in_se"):
        assert [value == "" for value in read[name]] == [row[name] is None for row in found.cells]
        back = [float(value) for value in read[name] if value]
        np.testing.assert_array_equal(back, [row[name] for row in found.cells if row[name] is not None])
    assert read["stage"].tolist() == ["", "", "C5", "C5"] * 2
    assert read["status"].tolist() == ["", "", "moved", "", *["vanished"] * 4]
    code, out, _ = purity(tmp_path / "a", tmp_path / "b", "--format", "json")
    data = json.loads(out, parse_constant=pytest.fail)
    assert (code, data["regressed"], data["vanished"], len(data["cells"])) == (4, True, ["two"], 8)
    assert data["cells"][2]["new"] is None
    assert data["cells"][0]["old"] == found.cells[0]["old"]
    _, out, _ = purity(tmp_path / "a", tmp_path / "b", "--format", "md")
    assert out.startswith("### Purity: regression\n\n1 of 4 cells moved")
    (row,) = (line for line in out.splitlines() if "| moved" in line and "layer4" in line)
    assert [part.strip() for part in row.split("|")[1:-1]] == [
        "one", "C5", "layer4", "purity", f"{found.cells[2]['old']:.4f}", "NaN", "NaN", "NaN", "NaN", "moved",
    ]  # fmt: skip
    _, out, _ = purity(tmp_path / "a", tmp_path / "a", "--format", "md")
    assert out.startswith("### Purity: no regression\n\nNone of 8 cells moved")


def test_other_measures_move_by_a_share_of_their_value(tmp_path: Path, purity: Purity) -> None:
    def measured(rankme: float) -> Result:
        one = result()
        return replace(one, layers=(one.layers[0], replace(one.layers[1], measures={"rankme": rankme})))

    for before, value, tolerance, moved in (
        (200.0, 201.0, 0.005, False),
        (200.0, 201.1, 0.005, True),
        (8.0, 7.96, 0.005, False),  # 8 - 7.96 is 3e-17 more than 0.04 in binary, which nobody means
        (8.0, 7.9599, 0.005, True),
        (200.0, math.nan, 1, True),
        (200.0, 100.0, 0.5, False),
        (0.0, 0.4, 0.5, True),  # from 0, any change is more than a share of the value
        (0.0, 0.0, 0.0, False),
    ):
        save(tmp_path / "a", measured(before))
        save(tmp_path / "b", measured(value))
        found = diff(tmp_path / "a", tmp_path / "b", tolerance=tolerance)
        (row,) = (row for row in found.cells if row["measure"] == "rankme")
        assert (row["status"] == "moved", found.regressed, row["se"]) == (moved, moved, None)
        assert len(found.cells) == 5
    assert "| rankme " in purity(tmp_path / "a", tmp_path / "b", "--format", "md")[1]


def test_readings_of_one_module_are_cells_of_their_own() -> None:
    one = result()
    block = replace(one.layers[1], reading="block")
    both = replace(one, layers=(*one.layers, block))

    def against(new: Result, old: Result = both) -> Diff:
        return view.diff([StoredResult(Path("old"), old)], [StoredResult(Path("new"), new)])

    found = against(with_counts(both, silence, layer=2))
    assert [(row["row"], row["status"]) for row in found.cells] == [
        (None, ""), (None, ""), ("C5", ""), ("C5", ""), ("block:C5", "moved"), ("block:C5", ""),
    ]  # fmt: skip
    assert [(row["row"], row["status"]) for row in found.averages] == [
        ("Average", ""), ("Average", ""), ("block:Average", "moved"), ("block:Average", ""),
    ]  # fmt: skip
    assert found.verdict() == "1 of 6 cells moved by more than 0.005."
    assert against(one).verdict() == (
        "None of 4 cells moved by more than 0.005; 1 layer vanished (net block:C5 layer4)."
    )
    # An activation may be called so, or nothing, as before there were readings.
    said = replace(one, layers=(one.layers[0], replace(one.layers[1], reading="activation")))
    assert not against(said, one).regressed


def test_nights(tmp_path: Path, purity: Purity) -> None:
    nights = tmp_path / "nightly"
    for name in ("2024-02-30", "2024-13-01", "latest", "2024-05-01-old", "20240501"):
        save(nights / name, result(seed=7))
    (nights / "2024-05-09").write_text("a file")
    code, _, err = purity("--nightly", nights)
    assert code == 1
    assert "holds no nights" in err
    save(nights / "2024-04-30", result(seed=3))
    code, out, err = purity("--nightly", nights)
    assert (code, out) == (0, "")
    assert err == f"{nights}/2024-04-30 is the first night with results: there is nothing to compare it with.\n"
    save(nights / "2024-05-02", result(seed=3))
    code, _, err = purity("--nightly", nights)
    assert code == 0
    assert err.startswith(f"{nights}/2024-04-30 -> {nights}/2024-05-02\n")
    # The night of a power cut between them is passed over; the newest one without results is an error.
    (nights / "2024-05-03" / "job0").mkdir(parents=True)
    code, _, err = purity("--nightly", nights)
    assert code == 1
    assert "2024-05-03 holds no results" in err
    save(nights / "2024-05-04", with_counts(result(seed=3), one_channel_wins))
    code, out, err = purity("--nightly", nights, "--format", "md")
    assert code == 4
    assert "05-02 -> " in err
    assert out.startswith("### Purity: regression")


def test_two_nights_of_a_suite(tmp_path: Path, purity: Purity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    suite = tmp_path / "nightly.yaml"
    weights = tmp_path / "mine.safetensors"
    shutil.copy(
        Path(str(resources.files("purity_cli") / "assets" / "tiny_vgg_10_digits" / "tiny_vgg_10_epoch100.safetensors")),
        weights,
    )
    suite.write_text(f"""
defaults: {{model: tiny_vgg_10, dataset: digits, limit: 60, device: cpu}}
models: [{{}}, {{weights: {weights}}}]
""")
    for date, scored, moved in (("2024-04-30", 0, 0), ("2024-05-01", 0, 0), ("2024-05-02", 3, 4)):
        if scored:
            weights.unlink()
        assert cli.run(["bench", str(suite), "--output", str(tmp_path / "nightly" / date)]) == scored
        code, out, _ = purity("--nightly", tmp_path / "nightly", "--tolerance", 0)
        assert code == moved
        assert date != "2024-05-01" or "None of 8 cells moved by more than 0." in out
    assert "None of 4 cells moved by more than 0; 1 job vanished" in out
    assert "tiny_vgg_10 on digits failed: " in out
    assert "mine.safetensors" in out


def test_the_nightly_suite_is_one() -> None:
    tasks = suites.read(Path(__file__).resolve().parents[2] / "configs" / "nightly.yaml").tasks()
    assert [task.job.model for task in tasks if task.absent is None and task.job.dataset == "cifar10-sample"] == [
        "resnet10_cifar"
    ]
    assert all(task.job.batch_size != "auto" for task in tasks)


def test_bad_input_is_one_sentence(tmp_path: Path, purity: Purity) -> None:
    good = save(tmp_path / "good", result())
    (tmp_path / "empty").mkdir()
    save(tmp_path / "twice", result(), result())
    damaged = save(tmp_path / "damaged", result()) / "job0" / store.STATES
    damaged.write_bytes(damaged.read_bytes()[:100])
    for bad, words in (
        ("missing", "missing is not there: give a folder that `purity score` or `purity bench` has written"),
        ("empty", "empty holds no results"),
        ("twice", "twice/job0 and .*twice/job1 are results of the same job: give one of them"),
        ("damaged", "is damaged"),
    ):
        for arguments in ((good, tmp_path / bad), (tmp_path / bad, good)):
            with pytest.raises(PurityError, match=words):
                diff(*arguments)
            code, out, err = purity(*arguments)
            assert (code, out, err.count("\n")) == (1, "", 1)
    code, _, err = purity(good, good, "--threshold", 0.3)
    assert code == 1
    assert "good/job0: There are no counts of net at the threshold 0.3, only at 0.25, 0.5." in err
    assert purity("--nightly", tmp_path / "missing")[0] == 1
    for wrong in ((), (good,), (good, good, "--nightly", good), (good, good, "--tolerance", "-1")):
        assert purity(*wrong)[0] == 2
