"""A Job becomes a Result."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from purity_cli import locks, store
from purity_cli.cache import CachedPixels
from purity_cli.datasets import ImageDataset
from purity_cli.errors import PurityError, log
from purity_cli.pixels import Pixels
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.run.outcome import result_of
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Resolved, resolve
from purity_cli.run.share import JobRunner, Progress

__all__ = ["Resolved", "claimed", "pixels_of", "resolve", "resolve_together", "score", "score_into"]


def pixels_of(
    job: Resolved,
    *,
    workers: int,
    pool: ThreadPoolExecutor | None = None,
    cache: Path | None = None,
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
        return {**found[0].identity, "batch_size": found[0].batch_size, "device": found[0].device.type}

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
    handle = None

    def claim() -> str | None:
        nonlocal handle
        if not ranks.first:
            return None
        handle = locks.claim(folder, command)
        if ranks.size == 1:
            return ""
        mark = uuid4().hex
        handle.write(mark)
        handle.flush()
        os.fsync(handle.fileno())
        return mark

    def tried() -> tuple[str | None, str | None]:
        try:
            return claim(), None
        except locks.Held as error:
            return None, str(error)

    def see() -> None:
        path = folder / locks.LOCK
        if mark and not (path.is_file() and path.read_text().endswith(mark)):
            raise PurityError(
                f"Process {ranks.rank} does not see the first one's {folder}: all machines must share it."
            )

    try:
        mark, held = ranks.together(tried)[0]
        if held:
            raise locks.Held(held)
        ranks.together(see)
        yield
    finally:
        if handle:
            handle.close()


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
    kept: Result | None = None

    def look() -> bool:
        nonlocal kept
        if ranks.first and not fresh:
            kept, why = store.kept(folder, job.identity)
            if why:
                log.warning(f"{folder} holds another result, which this one replaces ({why}): --output keeps both.")
        if ranks.first and (kept or fresh):
            JobRunner(job, folder, 0, ranks).unfinished.clear()
        if kept:
            kept.provenance.update(about or {})
            store.write_tables(kept, folder, threshold)
        return kept is not None

    if ranks.together(look)[0]:
        return kept, True
    result, share = _score(job, folder=folder, ranks=ranks, **options)

    def write() -> None:
        if ranks.first:
            result.provenance.update({"command": command, **(about or {})})
            store.write(result, folder, threshold)
            share.unfinished.clear()

    ranks.together(write)
    return result, False


def score(job: Resolved, *, workers: int, **options: Any) -> Result:
    """Score a resolved Job: all its layers over all its images, in one pass.

    `workers` threads decode, or those of `pool`; `cache` is a folder of decoded pixels, None for none. `folder` is one
    in which an unfinished job is kept, at least every `every` seconds and when it is interrupted, and from which it
    goes on; `score_into` removes that once the result is stored. Of several `ranks` each scores its share of the
    blocks, and all return the whole result.

    `progress` is called with the images done and the images in all after every block. Raises PurityError.
    """
    return _score(job, workers=workers, **options)[0]


def _score(
    job: Resolved,
    *,
    workers: int,
    pool: ThreadPoolExecutor | None = None,
    cache: Path | None = None,
    folder: Path | None = None,
    every: float = 60.0,
    ranks: Ranks | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Result, JobRunner]:
    ranks = ranks or Ranks()
    pixels = pixels_of(job, workers=workers, pool=pool, cache=cache)
    share = JobRunner(job, folder, every, ranks)
    before = ranks.together(share.restore)[0]
    mine = ranks.share([number for number in range(len(pixels)) if number not in before.blocks])
    with closing(pixels.blocks(mine)) as blocks:
        headings = ranks.together(lambda: share.count(blocks, before, progress))
    total = share.total(headings)
    if not total.shapes:
        path, reason = total.left_out[0]
        raise PurityError(
            f"None of the {len(job.selection)} images of {job.source.name} could be read, the first {path} ({reason})."
        )
    if total.left_out:
        path, reason = total.left_out[0]
        log.warning(
            f"{len(total.left_out)} of {len(job.selection)} images could not be read and were left out, the first "
            f"{path} ({reason})."
        )
    if total.batch_size < job.batch_size:
        log.warning(f"Out of memory at a batch of {job.batch_size}: the rest ran at {total.batch_size}.")
    return result_of(job, total), share
