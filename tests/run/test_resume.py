"""Interrupted and gone on from: parts add, files that do not fit are not used, no image counts twice or not at all."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
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

from purity_cli import process, run
from purity_cli.engine import Engine, NonFinite
from purity_cli.pixels import Block
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.run import Resolved
from purity_cli.run.ranks import Ranks
from purity_cli.run.runner import JobRunner
from purity_cli.states import States, unpack
from purity_cli.store import Unfinished
from tests.logged import logged

IMAGES, BATCH = 60, 8
BLOCKS = 8
MEASURES = ("rankme", "alpha-req", "saturation")
LAYERS = ("features.3", "features.8")


@pytest.fixture(scope="module")
def plan() -> Resolved:
    named = {"model": "tiny_vgg_10", "dataset": "digits", "weights": "none"}
    return run.resolve(Job.of(**named, limit=IMAGES, batch_size=BATCH, metrics=MEASURES))


@pytest.fixture(scope="module")
def undisturbed(plan: Resolved) -> Result:
    return run.score(plan, workers=1)


def assert_equal(got: Result, expected: Result) -> None:
    """All but the times."""
    for ours, theirs in zip(got.layers, expected.layers, strict=True):
        plain = [{k: v for k, v in vars(one).items() if k not in ("counts", "measures")} for one in (ours, theirs)]
        assert plain[0] == plain[1]
        assert ours.counts is not None
        assert theirs.counts is not None
        assert np.array_equal(ours.counts, theirs.counts)
        assert ours.counts.dtype == theirs.counts.dtype
        assert list(ours.measures) == list(theirs.measures)
        assert list(ours.measures.values()) == pytest.approx(list(theirs.measures.values()), rel=1e-9, nan_ok=True)
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


# States


def part(blocks: Sequence[int], rng: np.random.Generator) -> States:
    arrays = {
        "a/purity/counts": rng.integers(0, 9, (2, 2, 3)),
        "a/moments/images": rng.integers(0, 9, ()),
        "a/moments/total": rng.integers(0, 9, 3) / 4,
    }
    return States(
        batch_size=int(rng.integers(1, 9)),
        blocks=frozenset(blocks),
        shapes={"a": (3, 2, 2)} if blocks else {},
        arrays=arrays if blocks else {},
        tally=rng.integers(0, 9, 4),
        skipped={n: ((f"{n}.png", "truncated"),) for n in blocks if n % 3 == 0},
        images={n: ("abcdefghi"[n], f"content of {'abcdefghi'[n]}") for n in blocks},
        block_size=8,
        seconds=float(rng.integers(0, 9)),
        started=f"2026-01-0{rng.integers(1, 9)}",
    )


def same(a: States, b: States) -> bool:
    arrays = [{**p.arrays, "tally": p.tally} for p in (a, b)]
    fields = [{k: v for k, v in vars(p).items() if k not in ("arrays", "tally")} for p in (a, b)]
    kinds = [{k: v.dtype for k, v in one.items()} for one in arrays]
    equal = all(np.array_equal(arrays[0][k], arrays[1][k]) for k in arrays[0] | arrays[1])
    return fields[0] == fields[1] and kinds[0] == kinds[1] and equal


@given(st.lists(st.integers(0, 2), min_size=9, max_size=9), st.integers(0, 99))
def test_states_add_in_any_order_and_grouping(owners: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c = (part([n for n, owner in enumerate(owners) if owner == who], rng) for who in range(3))
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    total = a + b + c
    assert total.blocks == frozenset(range(9))
    assert [path for path, _ in total.left_out] == ["0.png", "3.png", "6.png"]
    assert total.seconds == a.seconds + b.seconds + c.seconds


def test_a_block_cannot_count_twice() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="block 2 would count twice"):
        part([1, 2], rng) + part([2, 3], rng)


@pytest.mark.parametrize("largest", [3, 255, 256, 65_536, 2**33, -1])
def test_a_file_holds_every_integer_and_every_digit(largest: int, tmp_path: Path) -> None:
    one = part([1, 2, 3], np.random.default_rng(0))
    counts = np.array([0, largest])
    one = replace(one, arrays={**one.arrays, "a/purity/counts": counts, "a/moments/total": np.array([1 / 3, 1e-300])})
    (tmp_path / "x").write_bytes(one.pack(identity={"key": "k"}, result={"rate": float("nan")}))
    got, about = unpack(tmp_path / "x")
    assert same(got, one)
    assert about == {"identity": {"key": "k"}, "result": {"rate": None}}


# Files


class Images(list[str]):
    """The images of nine blocks, by a letter each; `touched` are those whose files changed, and not what is in them."""

    touched: frozenset[int] = frozenset()
    read = 0

    def stamp(self, number: int) -> str:
        return f"{self[number]}{' touched' if number in self.touched else ''}"

    def digest(self, number: int) -> str:
        self.read += 1
        return f"content of {self[number]}"


IMAGES_OF = Images("abcdefghi")


def empty() -> States:
    return States(batch_size=8, block_size=8, started="2027")


def unfinished(folder: Path | None, rank: int = 0, every: float = 60.0, **changes: Any) -> Unfinished:
    return Unfinished(folder, {"limit": 9, "selection": "9", **changes}, IMAGES_OF, rank=rank, every=every)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=9, max_size=9), st.integers(0, 99))
def test_what_several_processes_left_becomes_one_part_in_one_file(
    tmp_path_factory: pytest.TempPathFactory, owners: list[int], seed: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("parts"), np.random.default_rng(seed)
    pieces = [part([n for n, owner in enumerate(owners) if owner == who], rng) for who in range(3)]
    for rank, piece in enumerate(pieces):
        if piece.blocks:
            unfinished(folder, rank).save(piece)
    expected = sum((piece for piece in pieces if piece.blocks), empty())
    for _ in range(2):
        with logged() as said:
            restored = unfinished(folder).restore(empty())
        assert same(restored, expected)
        assert files(folder) == ([unfinished(folder).name] if restored.blocks else [])
    assert said == []


def test_a_part_whose_sum_was_already_written_is_not_added_again(tmp_path: Path) -> None:
    """A kill between the writing of the sum and the removal of its parts."""
    rng = np.random.default_rng(0)
    a, b = part([0, 2], rng), part([1], rng)
    unfinished(tmp_path).save(a + b)
    unfinished(tmp_path, 1).save(b)
    assert same(unfinished(tmp_path).restore(empty()), empty() + a + b)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "it is damaged"),
        (lambda path: path.write_bytes(b"x" * 100), "it is damaged"),
        (lambda path: path.write_bytes(b""), "it is damaged"),
        (
            lambda path: path.write_bytes(safetensors.numpy.save({"a": np.zeros(2)}, {"format": "pt"})),
            "it holds pt, and this version reads 'purity states 1'",
        ),
        (lambda path: path.write_bytes(part([1], np.random.default_rng(0)).pack()), "it is damaged"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_removed(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    path = tmp_path / unfinished(tmp_path).name
    unfinished(tmp_path).save(part([1], np.random.default_rng(0)))
    damage(path)
    with logged() as said:
        assert same(unfinished(tmp_path).restore(empty()), empty())
    assert len(said) == 1
    assert f"{path} is removed, for {says}" in said[0]
    assert files(tmp_path) == []


def test_the_work_of_another_job_stays_and_is_named(tmp_path: Path) -> None:
    unfinished(tmp_path, limit=7).save(part([1], np.random.default_rng(0)))
    with logged() as said:
        assert same(unfinished(tmp_path).restore(empty()), empty())
    (line,) = said
    assert "is of another run (limit 7, now 9) and stays; this one starts anew" in line
    unfinished(tmp_path).clear()
    with logged() as said:
        assert unfinished(tmp_path, limit=7).restore(empty()).blocks == {1}


def test_blocks_of_the_same_images_count_for_another_choice_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    few = part([0, 1], rng)
    Unfinished(tmp_path, {"selection": "few"}, Images("abx")).save(few)
    many = Unfinished(tmp_path, {"selection": "many"}, IMAGES_OF)
    with logged() as said:
        assert same(many.restore(empty()), empty() + few)
    assert said == []
    # That of the first choice stays beside it, and where a block has other images nothing is taken.
    assert len(files(tmp_path)) == 2
    other = replace(part([2], rng), images={2: ("x", "content of x")})
    Unfinished(tmp_path, {"selection": "few"}, Images("abx")).save(few + other)
    (tmp_path / many.name).unlink()
    with logged() as said:
        assert same(many.restore(empty()), empty())
    assert "(other images)" in said[0]


def test_it_is_time_to_save_after_an_interval_and_never_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("purity_cli.store.monotonic", lambda: clock)
    kept, lost = unfinished(tmp_path), unfinished(None)
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
    plan: Resolved, undisturbed: Result, tmp_path: Path, error: type[BaseException], at: int
) -> None:
    with pytest.raises(error):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(at, error))
    assert saved_in(plan, tmp_path).exists()
    decoded = Counter[int]()
    with pytest.MonkeyPatch.context() as patch:
        decode = plan.source.decode
        patch.setattr(plan.source, "decode", lambda i, data: (decoded.update([i]), decode(i, data))[1])
        result = run.score(plan, workers=1, folder=tmp_path)
    assert_equal(result, undisturbed)
    done = -(-at // BATCH)
    assert sorted(decoded.elements()) == list(range(done * BATCH, IMAGES))
    keeper(plan, tmp_path).clear()
    assert list(tmp_path.iterdir()) == []


def test_an_ended_run_leaves_no_threads_to_whoever_keeps_its_error(plan: Resolved, tmp_path: Path) -> None:
    """An error's traceback keeps every frame of the run, and with them what these do not close."""
    before = set(threading.enumerate())
    with pytest.raises(Stop) as kept:
        run.score(plan, workers=2, folder=tmp_path, progress=stop_at(17, Stop))
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive()
    assert kept.tb is not None


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6))
def test_any_number_of_interruptions_makes_no_difference(
    plan: Resolved, undisturbed: Result, tmp_path_factory: pytest.TempPathFactory, strides: list[int]
) -> None:
    folder, done = tmp_path_factory.mktemp("job"), 0
    for stride in strides:
        done += stride * BATCH
        if done < IMAGES:
            with pytest.raises(Stop):
                run.score(plan, workers=1, folder=folder, progress=stop_at(done, Stop))
    assert_equal(run.score(plan, workers=1, folder=folder), undisturbed)


def test_a_kill_leaves_the_last_whole_checkpoint(plan: Resolved, undisturbed: Result, tmp_path: Path) -> None:
    """As SIGKILL would: the file as it is after some blocks is all that is left."""
    after, path = list[bytes](), saved_in(plan, tmp_path)
    run.score(
        plan, workers=1, folder=tmp_path, every=0.0,
        progress=lambda done, total: after.append(path.read_bytes() if path.exists() else b""),
    )  # fmt: skip
    assert len(after) == BLOCKS
    for content in after[1:]:
        path.write_bytes(content)
        assert_equal(run.score(plan, workers=1, folder=tmp_path), undisturbed)


def test_a_block_that_was_counted_in_part_is_not_saved(
    plan: Resolved, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Engine.add

    def fails_behind_its_work(self: Engine, block: Block) -> None:
        add(self, block)
        if block.number == 3:
            raise Stop

    monkeypatch.setattr(Engine, "add", fails_behind_its_work)
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, every=0.0)
    monkeypatch.undo()
    assert keeper(plan, tmp_path).restore(empty()).blocks == {0, 1, 2}
    assert_equal(run.score(plan, workers=1, folder=tmp_path), undisturbed)


def keeper(plan: Resolved, folder: Path) -> Unfinished:
    return JobRunner(plan, folder, 60, Ranks()).unfinished


def saved_in(plan: Resolved, folder: Path) -> Path:
    return folder / keeper(plan, folder).name


def test_an_image_that_must_not_count_is_not_saved(
    plan: Resolved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        run.score(plan, workers=1, folder=tmp_path, every=0.0)
    assert keeper(plan, tmp_path).restore(empty()).blocks == {0, 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_leave_parts_that_one_process_goes_on_from(
    plan: Resolved, undisturbed: Result, tmp_path: Path, rank: int
) -> None:
    """Both ranks' shares, one of them unfinished."""
    for r in (0, 1):
        share = JobRunner(plan, tmp_path, 0.0, Ranks(r, 2))
        blocks = run.pixels_of(plan, workers=1).blocks(range(r, BLOCKS, 2))
        with suppress(Stop):
            share.count(blocks, share.restore(), stop_at(17 if r == rank else 10 * IMAGES, Stop), lambda: None)
        share.save()
    assert len(list(tmp_path.iterdir())) == 2
    assert_equal(run.score(plan, workers=1, folder=tmp_path), undisturbed)


def test_a_halved_batch_is_remembered(
    plan: Resolved, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, sizes = Engine._score, list[int]()

    def small(self: Engine, pixels: torch.Tensor, *rest: torch.Tensor) -> None:
        if len(pixels) > BATCH // 2:
            raise torch.OutOfMemoryError
        sizes.append(len(pixels))
        score(self, pixels, *rest)

    monkeypatch.setattr(Engine, "_score", small)
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(17, Stop))
    monkeypatch.undo()
    with logged() as said:
        result = run.score(plan, workers=1, folder=tmp_path)
    assert result.provenance["batch_size"] == BATCH // 2
    assert any(f"Out of memory at a batch of {BATCH}: the rest ran at {BATCH // 2}" in line for line in said)
    assert result.n_images == IMAGES
    assert max(sizes) == BATCH // 2


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 4},
        {"layers": ("C2",)},
        {"metrics": "rankme"},
        {"thresholds": (0.5,)},
        {"groups": 5},
        {"mean": (0.1,) * 3},
    ],
)
def test_another_job_does_not_go_on_from_this_one(plan: Resolved, tmp_path: Path, change: dict[str, Any]) -> None:
    other = run.resolve(Job.of(**{**plan.job.model_dump(), **change}))
    expected = run.score(other, workers=1)
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(17, Stop))
    with logged() as said:
        assert_equal(run.score(other, workers=1, folder=tmp_path), expected)
    assert sum("this one starts anew" in line for line in said) == 1
    # And what this one had is not lost.
    assert keeper(plan, tmp_path).restore(empty()).blocks == {0, 1, 2}


@pytest.mark.parametrize("limit", [40, 59, 61, 80])
def test_another_limit_goes_on_from_what_it_has_in_common(plan: Resolved, tmp_path: Path, limit: int) -> None:
    other = run.resolve(Job.of(**{**plan.job.model_dump(), "limit": limit}))
    expected = run.score(other, workers=1)
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(17, Stop))
    decoded = Counter[int]()
    with pytest.MonkeyPatch.context() as patch:
        decode = other.source.decode
        patch.setattr(other.source, "decode", lambda i, data: (decoded.update([i]), decode(i, data))[1])
        assert_equal(run.score(other, workers=1, folder=tmp_path), expected)
    assert sorted(decoded) == list(range(3 * BATCH, limit))
    assert keeper(plan, tmp_path).restore(empty()).blocks == {0, 1, 2}


def test_a_limit_that_ends_within_what_was_scored_starts_anew_and_loses_nothing(plan: Resolved, tmp_path: Path) -> None:
    other = run.resolve(Job.of(**{**plan.job.model_dump(), "limit": 20}))
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(33, Stop))
    with logged() as said:
        assert run.score(other, workers=1, folder=tmp_path).n_images == 20
    assert any("(other images)" in line for line in said)
    assert keeper(plan, tmp_path).restore(empty()).blocks == {0, 1, 2, 3, 4}


def test_the_seconds_of_all_runs_count(plan: Resolved, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(17, Stop))
    kept = keeper(plan, tmp_path).restore(empty())
    assert kept.seconds > 0
    keeper(plan, tmp_path).save(replace(kept, seconds=5000.0))
    provenance = run.score(plan, workers=1, folder=tmp_path).provenance
    assert 5000 < provenance["seconds"] < 6000
    assert provenance["images_per_second"] == round(IMAGES / provenance["seconds"], 2)
    # And they are those of each process's own share, from its start to its end.
    assert run.score(plan, workers=1).provenance["seconds"] < 1000


# Signals


def test_states_that_change_while_they_are_packed_are_not_saved(tmp_path: Path) -> None:
    """As where the main thread goes on counting while another one saves before the process ends."""
    kept, rng = unfinished(tmp_path), np.random.default_rng(0)
    kept.save(part([0], rng))
    kept.save(part([0, 1], rng), lambda: False)
    assert unfinished(tmp_path).restore(empty()).blocks == {0}


def test_another_thread_saves_whole_blocks_while_the_network_computes(
    plan: Resolved, undisturbed: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the thread does that ends the process: `process.saving` has it."""
    score, found = Engine._score, list[frozenset[int]]()

    def interrupted(self: Engine, *batch: torch.Tensor) -> None:
        thread = threading.Thread(target=process._saving[-1])
        thread.start()
        thread.join()
        if list(tmp_path.iterdir()):
            found.append(keeper(plan, tmp_path).restore(empty()).blocks)
        score(self, *batch)

    monkeypatch.setattr(Engine, "_score", interrupted)
    assert_equal(run.score(plan, workers=1, folder=tmp_path), undisturbed)
    assert found == [frozenset(range(n)) for n in range(1, BLOCKS)]


def test_files_that_were_touched_are_read_and_others_are_not(tmp_path: Path) -> None:
    unfinished(tmp_path).save(part([0, 1], np.random.default_rng(0)))
    images = Images("abcdefghi")
    again = Unfinished(tmp_path, {"limit": 9, "selection": "9"}, images)
    assert again.restore(empty()).blocks == {0, 1}
    assert images.read == 0
    images.touched = frozenset({1})
    assert again.restore(empty()).blocks == {0, 1}
    assert images.read == 1
    images[1] = "z"
    assert again.restore(empty()).blocks == frozenset()


@pytest.mark.parametrize("name", ["images to a pass", "processor", "network_sha256"])
def test_a_part_of_another_identity_is_not_gone_on_from(plan: Resolved, tmp_path: Path, name: str) -> None:
    """What rounds otherwise, or is another network: its counts must not be mixed with these."""
    with pytest.raises(Stop):
        run.score(plan, workers=1, folder=tmp_path, progress=stop_at(17, Stop))
    whole = keeper(plan, tmp_path)
    other = Unfinished(tmp_path, {**whole.identity, name: "another"}, whole.images)
    assert other.restore(empty()).blocks == frozenset()
    assert whole.restore(empty()).blocks == {0, 1, 2}
    without = Unfinished(tmp_path, {k: v for k, v in whole.identity.items() if k != name}, whole.images)
    assert without.restore(empty()).blocks == frozenset()


def test_another_thread_may_score(plan: Resolved, undisturbed: Result) -> None:
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run.score(plan, workers=1)))
    thread.start()
    thread.join()
    assert_equal(results[0], undisturbed)


def test_threads_can_be_shared_between_jobs(plan: Resolved, undisturbed: Result) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        next(run.pixels_of(plan, workers=2, pool=pool).blocks())
        for _ in range(2):
            assert_equal(run.score(plan, workers=2, pool=pool), undisturbed)
        assert len(pool._threads) <= 2
