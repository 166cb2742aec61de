"""`purity cache`: what is kept of decoded images, filling it beforehand, and its removal."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from purity_cli.cache import CacheEntry
    from purity_cli.report import Report

_ROOT = click.option(
    "--cache", "root", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Where it is.  [default: $PURITY_CACHE, else ~/.cache/purity]",
)  # fmt: skip


@click.group("cache")
def command() -> None:
    """Keep the decoded pixels of images: each is decoded once for all models that want it the same.

    `purity bench` does so by itself, `purity score` with --cache auto.
    """


@command.command("list")
@_ROOT
@options.format_option()
def list_(root: Path | None, layout: str) -> None:
    """List what is cached, what was used last first."""
    from purity_cli import cache

    root = cache.chosen_root(root)
    entries = cache.entries(root)
    console.show(_report(entries, [] if entries else [f"Nothing is cached in {root}."]), layout)


@command.command()
@options.job_options(without=("metrics",))
@_ROOT
def build(models: tuple[str, ...], settings: dict[str, Any], download: bool, workers: int, root: Path | None) -> None:
    """Decode images now that will be scored later.

    The options are those of `purity score`, of which the data set, the selection, and how the model wants its pixels
    matter here.
    """
    from purity_cli import run
    from purity_cli.cache import CachedPixels, chosen_root
    from purity_cli.errors import PurityError
    from purity_cli.plan import DEFAULT_GRID

    for job in options.make_jobs(models, settings, DEFAULT_GRID):
        plan = run.resolve(job, download=download)
        pixels = CachedPixels(
            plan.source,
            plan.selection,
            plan.preprocessing,
            root=chosen_root(root),
            batch_size=plan.batch_size,
            workers=workers,
            on_bad_image=job.on_bad_image,
        )
        skipped: list[tuple[str, str]] = []
        done = 0
        with progress.images(plan.source.name) as show, closing(pixels.blocks()) as blocks:
            for block in blocks:
                if not pixels.cache.filling:
                    raise PurityError(f"The pixels of {plan.source.name} are not all cached.")
                skipped += block.skipped
                done += len(block.positions)
                show(done + len(skipped), len(plan.selection))
        if skipped:
            path, reason = skipped[0]
            log.warning(f"{len(skipped)} images could not be read, the first {path} ({reason}).")
        log.info(f"{done:,} images of {plan.source.name} are cached in {pixels.cache.folder}.")


@command.command()
@click.argument("names", nargs=-1, metavar="[DATASET|KEY]...")
@_ROOT
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(names: tuple[str, ...], root: Path | None, yes: bool) -> None:
    """Delete what is cached, all of it or that of these data sets or keys (their first characters do).

    A run that is using it goes on unharmed.
    """
    from purity_cli import cache

    root = cache.chosen_root(root)
    entries = _choose(cache.entries(root), names, root)
    if entries:
        console.show(_report(entries))
        if not yes:
            click.confirm(f"Delete {'it' if len(entries) == 1 else f'these {len(entries)}'}?", abort=True)
    cache.clear(root, entries)
    total = cache.size_text(sum(entry.bytes for entry in entries))
    log.info(f"{total} deleted." if entries else f"Nothing is cached in {root}.")


def _choose(entries: Sequence[CacheEntry], names: Sequence[str], root: Path) -> list[CacheEntry]:
    from purity_cli.errors import PurityError, did_you_mean

    chosen: dict[str, CacheEntry] = {}
    for name in names:
        found = {
            entry.key: entry for entry in entries if name and (entry.dataset == name or entry.key.startswith(name))
        }
        if not found:
            hint = did_you_mean(name, {entry.dataset for entry in entries})
            raise PurityError(f"Nothing of {name!r} is cached in {root}: see `purity cache list`.{hint}")
        chosen |= found
    return list(chosen.values()) if names else list(entries)


def _report(entries: Sequence[CacheEntry], notes: Sequence[str] = ()) -> Report:
    from purity_cli.cache import size_text
    from purity_cli.report import Report, Table, number, text

    columns = [
        text("key"), text("dataset", "data set", fold=True), text("pixels", fold=True),
        text("of", "images", data=False), *(number(key, digits=None, shown=False) for key in ("present", "images")),
        text("size", "on disk", data=False), number("bytes", digits=None, shown=False),
        text("day", "last used", data=False), number("used", digits=None, shown=False),
        text("note", fold=True, data=False), text("usable", shown=False),
    ]  # fmt: skip
    rows = [
        {
            **asdict(entry),
            "of": f"{entry.present:,} of {entry.images:,}",
            "size": size_text(entry.bytes),
            "day": f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
            "note": None if entry.usable or not entry.dataset else "made with other libraries, not used",
        }
        for entry in entries
    ]
    return Report([Table("caches", columns, rows)], notes)
