"""A Job becomes a Result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from purity_cli import store
from purity_cli.cache import CachedPixels
from purity_cli.datasets import ImageSource
from purity_cli.errors import PurityError
from purity_cli.machine import device_name, versions
from purity_cli.pixels import Block, Pixels
from purity_cli.plan import Job
from purity_cli.results import PEERS, Layer, Result
from purity_cli.run import parts
from purity_cli.run.counting import Progress, Share
from purity_cli.run.parts import Part
from purity_cli.run.ranks import Ranks
from purity_cli.run.resolving import Plan, Warn, resolve

__all__ = ["Plan", "pixels_of", "read", "resolve", "resolve_together", "score", "score_into"]


def silent(_: str) -> None:
    """Say nothing."""


def pixels_of(
    plan: Plan,
    *,
    workers: int,
    pool: ThreadPoolExecutor | None = None,
    cache: Path | None = None,
    warn: Warn = silent,
    say: Warn = silent,
) -> Pixels:
    """The images of a resolved Job as blocks of pixels, decoded by `workers` threads, or by those of `pool`.

    `cache` is the folder in which decoded pixels are kept; without it they are not.
    """
    what = (plan.source, plan.selection, plan.preprocessing)
    batch_size, on_bad_image, pin = plan.batch_size, plan.job.on_bad_image, plan.device.type == "cuda"
    if cache is None:
        return Pixels(*what, batch_size=batch_size, workers=workers, on_bad_image=on_bad_image, pin=pin, pool=pool)
    return CachedPixels(
        *what, root=cache, warn=warn, say=say,
        batch_size=batch_size, workers=workers, on_bad_image=on_bad_image, pin=pin, pool=pool,
    )  # fmt: skip


def read(plan: Plan, *, workers: int) -> Iterator[Block]:
    """The pixels of a resolved Job, block by block, decoded by `workers` threads."""
    return pixels_of(plan, workers=workers).blocks()


def resolve_together(
    job: Job,
    ranks: Ranks,
    *,
    download: bool = False,
    source: Callable[[], ImageSource | None] = lambda: None,
    warn: Warn = silent,
) -> Plan:
    """`resolve` on every rank; PurityError where not all find the same. `source` opens the Job's data set."""
    found: list[Plan] = []

    def mine() -> dict[str, Any]:
        heard = warn if ranks.first else silent
        found.append(resolve(job, download=download, source=source(), ranks=ranks, warn=heard))
        return {**found[0].inputs, "batch_size": found[0].batch_size, "device": found[0].device.type}

    first, *others = ranks.together(mine)
    for rank, other in enumerate(others, 1):
        unlike = [name.replace("_", " ") for name in first if first[name] != other[name]]
        if unlike:
            raise PurityError(
                f"Processes 0 and {rank} differ in {', '.join(unlike)}: all machines need the same images, weights "
                "and kind of device."
            )
    return found[0]


def score_into(
    folder: Path, plan: Plan, ranks: Ranks, *, threshold: float, command: str | None, warn: Warn, **options: Any
) -> Result:
    """`score`, with its `options`, and have rank 0 write the result into `folder`; an unfinished one is kept there."""

    def write() -> None:
        if ranks.first:
            result.provenance["command"] = command
            store.write(result, folder, threshold)
            parts.clear(folder)

    ranks.together(lambda: store.prepare(folder) if ranks.first else None)
    heard = warn if ranks.first else silent
    result = score(plan, checkpoint=folder, ranks=ranks, warn=heard, **options)
    ranks.together(write)
    return result


def score(
    plan: Plan,
    *,
    workers: int,
    blocks: Iterable[Block] | None = None,
    pixels: Pixels | None = None,
    peers: Sequence[str] = (),
    checkpoint: Path | None = None,
    every: float = 60.0,
    ranks: Ranks | None = None,
    progress: Progress = lambda done, total: None,
    warn: Warn = silent,
) -> Result:
    """Score a resolved Job: all its layers over all its images, in one pass.

    `workers` threads decode, unless the images come from `pixels`, or are the `blocks` that `read` gave before.
    `checkpoint` is a folder in which an unfinished job is kept, at least every `every` seconds and when it is
    interrupted, and from which it goes on; `score_into` removes that once the result is stored. Of several `ranks` each
    scores its share of the blocks, and all return the whole result. `peers` (see that module) are taken of the deepest
    layer; as these do not add without rounding, nothing is kept then, nor shared.

    `progress` is called with the images done and the images in all after every block; `warn` takes one sentence at a
    time. Raises PurityError.
    """
    ranks = ranks or Ranks()
    divisible = not peers and blocks is None
    if not divisible and ranks.size > 1:
        raise PurityError("RankMe and alpha-ReQ are taken by one process: leave them out, or run without torchrun.")
    share = Share(plan, checkpoint if divisible else None, every, ranks)
    before = ranks.together(lambda: share.restore(warn))[0]
    with ExitStack() as stack:
        if blocks is None:
            pixels = pixels or pixels_of(plan, workers=workers)
            own = pixels.blocks(ranks.share([n for n in range(len(pixels)) if n not in before.blocks]))
            blocks = stack.enter_context(closing(own))
        headings = ranks.together(lambda: share.count(blocks, before, peers, progress))
    total = _total(share, headings)
    if not total.shapes:
        raise PurityError(f"None of the {len(plan.selection)} images of {plan.source.name} could be read.")
    if total.left_out:
        path, reason = total.left_out[0]
        warn(
            f"{len(total.left_out)} of {len(plan.selection)} images could not be read and were left out, the first "
            f"{path} ({reason})."
        )
    if total.batch_size < plan.batch_size:
        warn(f"Out of memory at a batch of {plan.batch_size}: the rest ran at {total.batch_size}.")
    measured = {PEERS[name]: share.peers[PEERS[name]] for name in peers}
    for name in (name for name, value in measured.items() if math.isnan(value)):
        warn(f"{name} of {plan.deepest.module} is unknown: too few images or channels that vary.")
    return _result(plan, total, measured)


def _total(share: Share, headings: Sequence[Part]) -> Part:
    """Everybody's part in one, by one all-reduce."""
    total = reduce(Part.__add__, headings)
    plan, own = share.plan, share.part
    shape = (plan.job.groups, len(plan.job.thresholds))
    arrays = {
        f"counts/{name}": own.counts.get(name, np.zeros((*shape, channels), np.int64))
        for name, (channels, _, _) in sorted(total.shapes.items())
    }
    summed = share.ranks.total({**arrays, "tally": own.tally}, plan.device)
    tally = summed.pop("tally")
    counts = {name.removeprefix("counts/"): array for name, array in summed.items()}
    return replace(total, counts=counts, tally=tally, seconds=headings[0].seconds, started=headings[0].started)


def _result(plan: Plan, total: Part, peers: Mapping[str, float]) -> Result:
    n_images, labelled, hits1, hits5 = total.tally.tolist()
    known = labelled > 0 and plan.label_note is None
    network, source = plan.network, plan.source
    classes = network.num_classes or 0
    return Result(
        job=plan.job,
        thresholds=plan.job.thresholds,
        layers=tuple(
            Layer(
                tap.module,
                tap.stage,
                *total.shapes[tap.module],
                total.counts[tap.module],
                peers if tap == plan.deepest else {},
                tap.reading,
            )
            for tap in plan.taps
        ),
        n_images=n_images,
        top1=100 * hits1 / labelled if known else None,
        top5=100 * hits5 / labelled if known and classes > 5 else None,
        model=network.name,
        source=network.source,
        weights=network.weights,
        dataset=source.name,
        preprocessing=plan.preprocessing.describe(),
        provenance={
            **versions(),
            "device": device_name(plan.device),
            "precision": plan.job.precision,
            "batch_size": total.batch_size,
            "model": network.name,
            "source": network.source,
            "weights": network.weights,
            "weights_sha256": network.weights_sha256,
            "memory_format": str(network.memory_format).removeprefix("torch."),
            "memory_format_because": network.format_note,
            "network_notes": list(network.notes),
            "network_sha256": plan.inputs["network_sha256"],
            "parameters": sum(parameter.numel() for parameter in network.module.parameters()),
            "preprocessing": plan.preprocessing.model_dump(mode="json"),
            "dataset": source.name,
            "dataset_fingerprint": source.fingerprint,
            "labels": plan.label_note or "used",
            "dataset_notes": list(source.notes),
            "images_selected": len(plan.selection),
            "images_scored": n_images,
            "images_skipped": [{"path": path, "reason": reason} for path, reason in total.left_out],
            "seconds": round(total.seconds, 3),
            "images_per_second": round(n_images / total.seconds, 2),
            "started": total.started,
        },
    )
