"""A Job becomes a Result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from purity_cli import locks, process, store
from purity_cli.cache import CachedPixels
from purity_cli.datasets import ImageDataset
from purity_cli.errors import PurityError, log
from purity_cli.pixels import Pixels
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.run.outcome import result_of
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Resolved, resolve
from purity_cli.run.runner import JobRunner, Progress
from purity_cli.states import States

__all__ = ["Resolved", "claimed", "pixels_of", "resolve", "resolve_together", "score", "score_into", "stored"]

OF_ONE_MACHINE = {"images"}
"""Parts of an identity that are not compared between processes: each machine may keep the images elsewhere."""


def pixels_of(
    job: Resolved, *, workers: int, pool: ThreadPoolExecutor | None = None, cache: Path | None = None
) -> Pixels:
    """The images of a resolved Job as blocks of pixels, decoded by `workers` threads, or by those of `pool`.

    `cache` is the folder in which decoded pixels are kept; without it they are not.
    """
    what = (job.source, job.selection, job.preprocessing)
    how: dict[str, Any] = {
        "batch_size": job.batch_size,
        "workers": workers,
        "on_bad_image": job.job.on_bad_image,
        "pin": job.device.type == "cuda",
        "pool": pool,
    }
    return Pixels(*what, **how) if cache is None else CachedPixels(*what, root=cache, **how)


def resolve_together(
    job: Job,
    ranks: Ranks,
    *,
    download: bool = False,
    source: Callable[[], ImageDataset | None] = lambda: None,
) -> Resolved:
    """`resolve` on every rank; PurityError where not all find the same. `source` opens the Job's data set."""
    found: list[Resolved] = []

    def mine() -> dict[str, Any]:
        found.append(resolve(job, download=download, source=source(), ranks=ranks))
        identity = {name: value for name, value in found[0].identity.items() if name not in OF_ONE_MACHINE}
        images = found[0].source.fingerprint
        return {**identity, "images": images, "batch_size": found[0].batch_size, "device": found[0].device.type}

    first, *others = ranks.together(mine)
    for rank, other in enumerate(others, 1):
        unlike = [name.replace("_", " ") for name in first if first[name] != other[name]]
        if unlike:
            raise PurityError(
                f"Processes 0 and {rank} differ in {', '.join(unlike)}: all machines need the same images, weights "
                "and kind of device."
            )
    return found[0]


@contextmanager
def claimed(folder: Path, command: str, ranks: Ranks) -> Iterator[None]:
    """Hold a folder, so that no other process writes into it; locks.Held, on every rank, where one does.

    The lock goes with the process that holds it, however that ends. PurityError where not all ranks see the folder.
    """
    lock: locks.Lock | None = None

    def claim() -> locks.Holder | None:
        nonlocal lock
        with suppress(locks.Held):
            lock = locks.claim(folder, command)
        return lock.holder if lock else None

    def see() -> None:
        if locks.written(folder) != holder:
            raise PurityError(
                f"Process {ranks.rank} does not see the first one's {folder}: all machines must share it."
            )

    try:
        holder = ranks.on_first(claim)
        if holder is None:
            raise locks.Held(folder, command)
        if ranks.size > 1:
            ranks.together(see)
        yield
    finally:
        if lock:
            lock.close()


def stored(folder: Path, job: Resolved) -> tuple[Result | None, str | None]:
    """The result in `folder` if it is that of this very job; else None, and why it is not. The one rule for that."""
    return store.kept(folder, job.identity, job.images)


def score_into(
    folder: Path,
    job: Resolved,
    *,
    ranks: Ranks,
    threshold: float,
    command: str | None,
    fresh: bool = False,
    about: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Result | None, bool]:
    """The result that `folder` has of this very job, or else `score`'s, with its `options`; and whether it was kept.

    The caller has claimed the folder. Rank 0 alone writes, and alone is given a kept result; `fresh` scores in any
    case. `about` is added to the provenance.
    """
    result: Result | None = None

    def look() -> bool:
        nonlocal result
        result, why = (None, None) if fresh else stored(folder, job)
        if why:
            log.warning(f"{folder} holds another result, which this one replaces ({why}): --output keeps both.")
        if fresh:
            JobRunner(job, folder, 0, ranks).unfinished.clear()
        return result is not None

    def write() -> None:
        if result is not None:
            result.provenance.update({**({} if kept else {"command": command}), **(about or {})})
            (store.write_views if kept else store.write)(result, folder, threshold)
            JobRunner(job, folder, 0, ranks).unfinished.clear()

    kept = ranks.on_first(look)
    if not kept:
        result = score(job, folder=folder, ranks=ranks, **options)
    ranks.on_first(write)
    return result, kept


def score(
    job: Resolved,
    *,
    workers: int,
    pool: ThreadPoolExecutor | None = None,
    cache: Path | None = None,
    folder: Path | None = None,
    every: float = 60.0,
    ranks: Ranks | None = None,
    progress: Progress = lambda done, total: None,
) -> Result:
    """Score a resolved Job: all its layers over all its images, in one pass.

    `workers` threads decode, or those of `pool`; `cache` is a folder of decoded pixels, None for none. `folder` is one
    in which an unfinished job is kept, at least every `every` seconds and when it is interrupted, and from which it
    goes on; `score_into` removes that once the result is stored. Of several `ranks` each scores its share of the
    blocks, and all return the whole result.

    `progress` is called with the images done and the images in all after every block. Raises PurityError.
    """
    ranks = ranks or Ranks()
    pixels = pixels_of(job, workers=workers, pool=pool, cache=cache)
    runner = JobRunner(job, folder, every, ranks)
    before = ranks.together(runner.restore)[0]
    mine = ranks.share([number for number in range(len(pixels)) if number not in before.blocks])
    with process.saving(runner.save) as stop_if_asked, closing(pixels.blocks(mine)) as blocks:
        try:
            headings = ranks.together(lambda: runner.count(blocks, before, progress, stop_if_asked))
            total = runner.total(headings)
        except BaseException as error:
            if runner.save() and isinstance(error, KeyboardInterrupt) and ranks.first:
                log.info("The same command goes on where this stopped.")
            raise
    _say_what_is_left_out(job, total)
    return result_of(job, total)


def _say_what_is_left_out(job: Resolved, total: States) -> None:
    count = len(job.selection)
    path, reason = total.left_out[0] if total.left_out else ("", "")
    if not total.shapes:
        raise PurityError(
            f"None of the {count} images of {job.source.name} could be read, the first {path} ({reason})."
        )
    if total.left_out:
        log.warning(
            f"{len(total.left_out)} of {count} images could not be read and were left out, the first {path} ({reason})."
        )
    if total.batch_size < job.batch_size:
        log.warning(f"Out of memory at a batch of {job.batch_size}: the rest ran at {total.batch_size}.")
