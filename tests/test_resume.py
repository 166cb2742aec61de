"""Interrupted and gone on from: parts add, files that do not fit are not used, no image counts twice or not at all."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from purity_cli import run
from purity_cli.engine import Engine, NonFinite
from purity_cli.errors import PurityError
from purity_cli.pixels import Block, Pixels
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.run.counting import Share
from purity_cli.run.interrupts import Interrupts
from purity_cli.run.parts import FIRST, Checkpoint, Part, clear
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Plan

IMAGES, BATCH = 60, 8
BLOCKS = 8
LAYERS = ("features.3", "features.8")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return run.resolve(Job.of(model="tiny_vgg_10", dataset="digits", weights="none", limit=IMAGES, batch_size=BATCH))


@pytest.fixture(scope="module")
def undisturbed(plan: Plan) -> Result:
    return run.score(plan, workers=1)


def assert_equal(got: Result, expected: Result) -> None:
    """All but the times."""
    for ours, theirs in zip(got.layers, expected.layers, strict=True):
        assert replace(ours, counts=None) == replace(theirs, counts=None)  # type: ignore[arg-type]
        assert np.array_equal(ours.counts, theirs.counts)
        assert ours.counts.dtype == theirs.counts.dtype
    timeless = [
        {name: value for name, value in result.provenance.items() if name not in TIMES} for result in (got, expected)
    ]
    assert timeless[0] == timeless[1]
    names = ("n_images", "top1", "top5", "thresholds", "job", "preprocessing")
    assert [getattr(got, name) for name in names] == [getattr(expected, name) for name in names]


TIMES = ("seconds", "images_per_second", "started", "git")
"""Of the provenance; someone may commit meanwhile."""


class Stop(Exception):
    """What ends a run in these tests."""


def stop_at(images: int, error: type[BaseException]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= images:
            raise error

    return progress


# Parts


def part(blocks: Sequence[int], rng: np.random.Generator) -> Part:
    return Part(
        batch_size=int(rng.integers(1, 9)),
        blocks=frozenset(blocks),
        shapes={"a": (3, 2, 2)} if blocks else {},
        counts={"a": rng.integers(0, 9, (2, 2, 3))} if blocks else {},
        tally=rng.integers(0, 9, 4),
        skipped={n: ((f"{n}.png", "truncated"),) for n in blocks if n % 3 == 0},
        seconds=float(rng.integers(0, 9)),
        started=f"2026-01-0{rng.integers(1, 9)}",
    )


def same(a: Part, b: Part) -> bool:
    arrays = [{**p.counts, "tally": p.tally} for p in (a, b)]
    fields = [{k: v for k, v in vars(p).items() if k not in ("counts", "tally")} for p in (a, b)]
    return fields[0] == fields[1] and all(np.array_equal(arrays[0][k], arrays[1][k]) for k in arrays[0] | arrays[1])


@given(st.lists(st.integers(0, 2), min_size=9, max_size=9), st.integers(0, 99))
def test_parts_add_in_any_order_and_grouping(owners: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (part([n for n, owner in enumerate(owners) if owner == who], rng) for who in range(3))
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    total = a + b + c
    assert total.blocks == frozenset(range(9))
    assert [path for path, _ in total.left_out] == ["0.png", "3.png", "6.png"]


def test_a_block_cannot_count_twice() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="block 2 would count twice"):
        part([1, 2], rng) + part([2, 3], rng)


# Files


def empty() -> Part:
    return Part(batch_size=8, started="2027")


def saved(folder: Path, rank: int, content: Part, inputs: dict[str, Any] | None = None) -> None:
    Checkpoint(folder, {"key": "k"} if inputs is None else inputs, rank=rank).save(content)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9), st.integers(0, 99))
def test_what_several_processes_left_becomes_one_part_in_one_file(
    tmp_path_factory: pytest.TempPathFactory, owners: list[int], seed: int
) -> None:
    folder, rng, said = tmp_path_factory.mktemp("parts"), np.random.default_rng(seed), list[str]()
    pieces = [part([n for n, owner in enumerate(owners) if owner == who], rng) for who in range(3)]
    for rank, piece in enumerate(pieces):
        if piece.blocks:
            saved(folder, rank, piece)
    expected = sum((piece for piece in pieces if piece.blocks), empty())
    for _ in range(2):
        restored = Checkpoint(folder, {"key": "k"}).restore(empty(), said.append)
        assert same(restored, expected)
        assert [file.name for file in folder.iterdir()] == ([FIRST] if restored.blocks else [])
    assert said == []


def test_a_part_whose_sum_was_already_written_is_not_added_again(tmp_path: Path) -> None:
    """A kill between the writing of the sum and the removal of its parts."""
    rng = np.random.default_rng(0)
    a, b = part([0, 2], rng), part([1], rng)
    saved(tmp_path, 0, a + b)
    saved(tmp_path, 1, b)
    assert same(Checkpoint(tmp_path, {"key": "k"}).restore(empty(), print), empty() + a + b)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "cannot be read"),
        (lambda path: path.write_bytes(b"x" * 100), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (
            lambda path: path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}, {"format": "pt"})),
            "another version",
        ),
        (lambda path: saved(path.parent, 0, part([1], np.random.default_rng(0)), {"key": "other"}), "of another key"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_not_used(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    saved(tmp_path, 0, part([1], np.random.default_rng(0)))
    damage(tmp_path / FIRST)
    said: list[str] = []
    restored = Checkpoint(tmp_path, {"key": "k"}).restore(empty(), said.append)
    assert same(restored, empty())
    assert len(said) == 1
    assert says in said[0]
    assert FIRST in said[0]
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_due_after_its_interval_and_never_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("purity_cli.run.parts.monotonic", lambda: clock)
    kept, lost = Checkpoint(tmp_path, {}, every=60), Checkpoint(None, {}, every=60)
    clock = 59.0
    assert not kept.due()
    clock = 60.0
    assert kept.due()
    assert not lost.due()
    kept.save(empty())
    assert not kept.due()
    lost.save(empty())


# Jobs


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, SystemExit])
@pytest.mark.parametrize("at", [1, 17, 60])
def test_an_ended_run_goes_on_to_the_same_result(
    plan: Plan, undisturbed: Result, tmp_path: Path, error: type[BaseException], at: int
) -> None:
    with pytest.raises(error):
        run.score(plan, workers=1, checkpoint=tmp_path, progress=stop_at(at, error))
    assert (tmp_path / FIRST).exists()
    decoded = Counter[int]()
    with pytest.MonkeyPatch.context() as patch:
        load = plan.source.load
        patch.setattr(plan.source, "load", lambda i: (decoded.update([i]), load(i))[1])
        result = run.score(plan, workers=1, checkpoint=tmp_path)
    assert_equal(result, undisturbed)
    done = -(-at // BATCH)
    assert sorted(decoded.elements()) == list(range(done * BATCH, IMAGES))
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_ended_run_leaves_no_threads_to_whoever_keeps_its_error(plan: Plan, tmp_path: Path) -> None:
    """An error's traceback keeps every frame of the run, and with them what these do not close."""
    before = set(threading.enumerate())
    with pytest.raises(Stop) as kept:
        run.score(plan, workers=2, checkpoint=tmp_path, progress=stop_at(17, Stop))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert kept.tb is not None


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_any_number_of_interruptions_makes_no_difference(
    plan: Plan, undisturbed: Result, tmp_path_factory: pytest.TempPathFactory, strides: list[int]
) -> None:
    folder, done = tmp_path_factory.mktemp("job"), 0
    for stride in strides:
        done += stride * BATCH
        if done < IMAGES:
            with pytest.raises(Stop):
                run.score(plan, workers=1, checkpoint=folder, progress=stop_at(done, Stop))
    assert_equal(run.score(plan, workers=1, checkpoint=folder), undisturbed)


def test_a_kill_leaves_the_last_whole_checkpoint(plan: Plan, undisturbed: Result, tmp_path: Path) -> None:
    """As SIGKILL would: the file as it is after some blocks is all that is left."""
    after: list[bytes] = []
    run.score(
        plan, workers=1, checkpoint=tmp_path, every=0.0,
        progress=lambda done, total: after.append(path.read_bytes() if (path := tmp_path / FIRST).exists() else b""),
    )  # fmt: skip
    assert len(after) == BLOCKS
    for content in after[1:]:
        clear(tmp_path)
        (tmp_path / FIRST).write_bytes(content)
        assert_equal(run.score(plan, workers=1, checkpoint=tmp_path), undisturbed)


def test_a_block_that_was_counted_in_part_is_not_saved(
    plan: Plan, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Engine.add

    def fails_behind_its_work(self: Engine, block: Block) -> None:
        add(self, block)
        if block.number == 3:
            raise Stop

    monkeypatch.setattr(Engine, "add", fails_behind_its_work)
    with pytest.raises(Stop):
        run.score(plan, workers=1, checkpoint=tmp_path, every=0.0)
    monkeypatch.undo()
    assert Checkpoint(tmp_path, inputs(plan)).restore(empty(), print).blocks == {0, 1, 2}
    assert_equal(run.score(plan, workers=1, checkpoint=tmp_path), undisturbed)


def inputs(plan: Plan) -> dict[str, Any]:
    return dict(Share(plan, None, 60, Ranks()).checkpoint.inputs)


def test_an_image_that_must_not_count_is_not_saved(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA nobody looks at the results before a checkpoint does; here nobody does either."""
    add, check = Engine.add, Engine.check

    def blindly(self: Engine, block: Block) -> None:
        monkeypatch.setattr(Engine, "check", lambda self: None)
        add(self, block)
        monkeypatch.setattr(Engine, "check", check)
        if block.number == 2:
            self._first_bad[1] = 17

    monkeypatch.setattr(Engine, "add", blindly)
    with pytest.raises(NonFinite, match=r"layer features.3 .* test/\d+"):
        run.score(plan, workers=1, checkpoint=tmp_path, every=0.0)
    assert Checkpoint(tmp_path, inputs(plan)).restore(empty(), print).blocks == {0, 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_leave_parts_that_one_process_goes_on_from(
    plan: Plan, undisturbed: Result, tmp_path: Path, rank: int
) -> None:
    """Both ranks' shares, one of them unfinished."""
    for r in (0, 1):
        share = Share(plan, tmp_path, 0.0, Ranks(r, 2))
        blocks = run.pixels_of(plan, workers=1).blocks(range(r, BLOCKS, 2))
        with suppress(Stop):
            share.count(blocks, share.restore(print), (), stop_at(17 if r == rank else 10 * IMAGES, Stop))
    assert len(list(tmp_path.iterdir())) == 2
    assert_equal(run.score(plan, workers=1, checkpoint=tmp_path), undisturbed)


def test_a_halved_batch_is_remembered(
    plan: Plan, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, sizes = Engine._score, list[int]()

    def small(self: Engine, pixels: torch.Tensor, *rest: torch.Tensor) -> None:
        if len(pixels) > BATCH // 2:
            raise torch.OutOfMemoryError
        sizes.append(len(pixels))
        score(self, pixels, *rest)

    monkeypatch.setattr(Engine, "_score", small)
    with pytest.raises(Stop):
        run.score(plan, workers=1, checkpoint=tmp_path, progress=stop_at(17, Stop))
    monkeypatch.undo()
    said: list[str] = []
    result = run.score(plan, workers=1, checkpoint=tmp_path, warn=said.append)
    assert result.provenance["batch_size"] == BATCH // 2
    assert any(f"Out of memory at a batch of {BATCH}: the rest ran at {BATCH // 2}" in line for line in said)
    assert result.n_images == IMAGES
    assert max(sizes) == BATCH // 2


@pytest.mark.parametrize(
    "change",
    [
        {"limit": 59},
        {"batch_size": 4},
        {"layers": ("C2",)},
        {"thresholds": (0.5,)},
        {"groups": 5},
        {"mean": (0.1,) * 3},
    ],
)
def test_another_job_does_not_go_on_from_this_one(plan: Plan, tmp_path: Path, change: dict[str, Any]) -> None:
    other = run.resolve(Job.of(**{**plan.job.model_dump(), **change}))
    expected = run.score(other, workers=1)
    with pytest.raises(Stop):
        run.score(plan, workers=1, checkpoint=tmp_path, progress=stop_at(17, Stop))
    said: list[str] = []
    assert_equal(run.score(other, workers=1, checkpoint=tmp_path, warn=said.append), expected)
    assert sum("starts from its first image" in line for line in said) == 1


def test_the_peers_are_taken_in_one_go(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run.score(plan, workers=1, peers=("rankme",), checkpoint=tmp_path, progress=stop_at(17, Stop))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PurityError, match="without torchrun"):
        run.score(plan, workers=1, peers=("rankme",), ranks=Ranks(0, 2))


# Signals


@pytest.fixture
def slow(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A main thread that is in the middle of a block when the signal comes."""
    add = Engine.add

    def interrupted(self: Engine, block: Block) -> None:
        if block.number == 2:
            os.kill(os.getpid(), signal.SIGTERM if threading.current_thread() is threading.main_thread() else 0)
            time.sleep(0.01)
        add(self, block)

    monkeypatch.setattr(Engine, "add", interrupted)
    yield
    monkeypatch.undo()


@pytest.mark.usefixtures("slow")
def test_a_signal_waits_for_the_end_of_its_block(plan: Plan, undisturbed: Result, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        run.score(plan, workers=1, checkpoint=tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert Checkpoint(tmp_path, inputs(plan)).restore(empty(), print).blocks == {0, 1, 2}


def test_a_second_signal_does_not_wait() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
        interrupts.asked = False


def test_a_signal_at_the_very_end_is_not_forgotten() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)


def test_another_thread_may_score(plan: Plan, undisturbed: Result) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run.score(plan, workers=1)))
    thread.start()
    thread.join()
    assert_equal(results[0], undisturbed)


def test_threads_can_be_shared_between_jobs(plan: Plan, undisturbed: Result) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        next(run.pixels_of(plan, workers=2, pool=pool).blocks())
        for _ in range(2):
            pixels = run.pixels_of(plan, workers=2, pool=pool)
            assert isinstance(pixels, Pixels)
            assert_equal(run.score(plan, workers=2, pixels=pixels), undisturbed)
        assert len(pool._threads) <= 2
