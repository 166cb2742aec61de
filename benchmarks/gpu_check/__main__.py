"""Measure the engine on a GPU: `make gpu-check ARGS='[PART ...]'`.

    ceilings      convolutions, matrix products and copies: what the device can do at most
    correctness   counts and F in every precision against the CPU's in fp32; batch sizes; two runs; memory that runs out
    speed         images/s of the ten networks of the paper's Tables 1 and 2: plain forward, C1..C5, C5, and FLOP/s
    end_to_end    50,000 JPEGs, and the same decoded before: images/s, how busy the GPU is, memory

Each part ends within `--budget` seconds and what its last step takes; what did not fit is shown as not measured. Tables
go to `$OUT`, else to `results/gpu`, as CSV and JSON. `--device cpu --tiny` tries the script itself.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.gpu_check import end_to_end, parts, speeds
from benchmarks.gpu_check.measuring import FORMATS, PRECISIONS, Book, Settings, tiny
from purity_cli.cli.options import cores
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.machine import keep_freed_memory, resolve_device

PARTS = {
    "ceilings": parts.ceilings,
    "correctness": parts.correctness,
    "speed": speeds.speed,
    "end_to_end": end_to_end.end_to_end,
}
SHARED = Path(__file__).resolve().parents[3] / "shared"


def chosen(what: str, asked: str | None, known: Sequence[str]) -> tuple[str, ...]:
    """Those of `known` that a comma-separated text names; all without one. PurityError for others."""
    names = [name.strip() for name in asked.split(",")] if asked else list(known)
    for name in names:
        if name not in known:
            raise PurityError(f"No {what} {name!r}: there are {', '.join(known)}.{did_you_mean(name, known)}")
    return tuple(dict.fromkeys(names))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[PART]...")
@click.option("--device", default="cuda", show_default=True, metavar="cuda[:i]|cpu")
@click.option("--tiny", "small", is_flag=True, help="Small networks and few pictures: this tries the script.")
@click.option("--networks", metavar="NAME,...", help="Only these.")
@click.option("--precisions", metavar="NAME,...", help="Only these of bf16, tf32, fp16, fp32.")
@click.option("--formats", metavar="NAME,...", help="Only channels_last, or contiguous.")
@click.option("--images", type=click.IntRange(1), help="Of the end-to-end part.  [default: 50000]")
@click.option("--budget", "seconds", type=click.FloatRange(0), help="Seconds for each part.  [default: 480]")
@click.option("--workers", type=click.IntRange(1), help="Decoding threads.  [default: one per core]")
@click.option("--shared", type=click.Path(path_type=Path), default=SHARED, metavar="DIR",
              help="Where real pictures and weights are.  [default: ../shared]")  # fmt: skip
@click.option("--scratch", type=click.Path(path_type=Path), default=Path(tempfile.gettempdir()), metavar="DIR",
              help="Room for 9 GB.  [default: the system's]")  # fmt: skip
@click.option("--out", envvar="OUT", type=click.Path(path_type=Path), default=Path("results/gpu"), metavar="DIR",
              help="Of the tables.  [default: $OUT, else results/gpu]")  # fmt: skip
def main(names: tuple[str, ...], small: bool, **options: Any) -> None:
    """Measure PARTs of the engine: ceilings, correctness, speed, end_to_end; all by default."""
    keep_freed_memory()
    try:
        asked = chosen("part", ",".join(names), list(PARTS))
        settings = make_settings(small, **options)
    except PurityError as error:
        raise click.ClickException(str(error)) from None
    command, books = shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]), []
    for name in asked:
        book = Book(settings, name, command)
        book.fill(PARTS[name](settings, book))
        books.append(book)
        print(f"{name}: {book.spent:.0f} s", flush=True)
    for book in books:
        book.show()
    if settings.device.type != "cuda" or small:
        print("\nTried without a GPU or with --tiny: these figures say only that the script runs.")
    if any(book.broken for book in books):
        raise click.exceptions.Exit(1)


def make_settings(
    small: bool, *, device: str, networks: str | None, precisions: str | None, formats: str | None,
    images: int | None, seconds: float | None, workers: int | None, **folders: Any,
) -> Settings:  # fmt: skip
    """The settings that the options ask for; PurityError where there is no such device or name."""
    where = resolve_device(device, "fp32")
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)  # whose streams the timing's events are on
    settings = Settings(device=where, workers=workers or cores(), **folders)
    settings = tiny(settings) if small else settings
    possible = PRECISIONS if where.type == "cuda" else ("bf16", "fp32")
    return replace(
        settings,
        images=images or settings.images,
        seconds=settings.seconds if seconds is None else seconds,
        networks=chosen("network", networks, settings.networks),
        precisions=chosen("precision", precisions, possible),
        formats=chosen("memory format", formats, list(FORMATS)),
    )


if __name__ == "__main__":
    main()
