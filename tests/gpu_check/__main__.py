"""Measure the engine on a GPU: `python -m tests.gpu_check [PART ...]`, from the checkout's folder.

    ceilings      convolutions, matrix products and copies: what the device can do at most
    correctness   counts and F in every precision against the CPU's in fp32; batch sizes; two runs; memory that runs out
    speed         images/s of the ten networks of the paper's Tables 1 and 2: plain forward, C1..C5, C5, and FLOP/s
    reductions    what one read of each map instead of several would give, by torch.compile
    profile       where a batch's time goes, kernel by kernel
    end_to_end    50,000 JPEGs, and the same decoded before: images/s, how busy the GPU is, memory

Needs no network; of what this package depends on, `NEEDED` suffices (pretrainedmodels and captum may be absent). Each
part ends within `--budget` seconds and what its last step takes; what did not fit is shown as not measured. Tables go
to `$OUT`, else to `results/gpu`, as CSV and JSON. `--device cpu --tiny` tries the script itself.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

PARTS = ("ceilings", "correctness", "speed", "reductions", "profile", "end_to_end")
NEEDED = {
    "torch": "torch", "torchvision": "torchvision", "timm": "timm", "torchmetrics": "torchmetrics",
    "pydantic": "pydantic (with pydantic-core, annotated-types, typing-inspection)", "pandas": "pandas",
    "tabulate": "tabulate", "rich": "rich", "yaml": "pyyaml", "safetensors": "safetensors", "sklearn": "scikit-learn",
    "PIL": "pillow",
}  # fmt: skip
"""Modules, and the packages that they come in."""
ROOT = Path(__file__).resolve().parents[2]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("parts", nargs=-1, metavar="[PART]...")
@click.option("--device", default="cuda", show_default=True, metavar="cuda[:i]|cpu")
@click.option("--tiny", "small", is_flag=True, help="Small networks and few pictures: this tries the script.")
@click.option("--networks", metavar="NAME,...", help="Only these.")
@click.option("--precisions", metavar="NAME,...", help="Only these of bf16, tf32, fp16, fp32.")
@click.option("--formats", metavar="NAME,...", help="Only channels_last, or contiguous.")
@click.option("--images", type=click.IntRange(1), help="Of the end-to-end part.  [default: 50000]")
@click.option("--budget", "seconds", type=click.FloatRange(0), help="Seconds for each part.  [default: 480]")
@click.option("--workers", type=click.IntRange(1), help="Decoding threads.  [default: one per core]")
@click.option("--shared", type=click.Path(path_type=Path), default=ROOT.parent / "shared", metavar="DIR",
              help="Where real pictures and weights are.  [default: ../shared]")  # fmt: skip
@click.option(
    "--scratch", type=click.Path(path_type=Path), metavar="DIR", help="Room for 9 GB.  [default: the system's]"
)
@click.option("--out", envvar="OUT", type=click.Path(path_type=Path), default=Path("results/gpu"), metavar="DIR",
              help="Of the tables.  [default: $OUT, else results/gpu]")  # fmt: skip
def main(parts: tuple[str, ...], **options: Any) -> None:
    """Measure PARTs of the engine: ceilings, correctness, speed, reductions, profile, end_to_end; all by default."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise click.ClickException(f"Missing here: {', '.join(missing)}. Install them or put them on PYTHONPATH.")
    from purity_cli.errors import PurityError

    try:
        failed = measure(parts, **options)
    except PurityError as error:
        raise click.ClickException(str(error)) from None
    if failed:
        raise click.exceptions.Exit(1)


def measure(parts: tuple[str, ...], **options: Any) -> bool:
    """Run the parts, print their tables last; whether any broke off."""
    from tests.gpu_check import settings as known
    from tests.gpu_check.budget import Budget
    from tests.gpu_check.report import about

    settings, sheets, failed = make_settings(**options), [], False
    command = shlex.join(["python", "-m", "tests.gpu_check", *sys.argv[1:]])
    for name in known.chosen("part", ",".join(parts), PARTS):
        budget = Budget(settings.seconds)
        record = about(settings, name, command)
        try:
            filled = import_module(f"tests.gpu_check.{name}").part(settings, budget, record)
        except Exception:
            traceback.print_exc()
            failed = True
            continue
        record["seconds"] = round(budget.spent, 1)
        for sheet in filled:
            sheet.write()
        sheets += filled
        print(f"{name}: {budget.spent:.0f} s", flush=True)
    for sheet in sheets:
        sheet.show()
    if settings.device.type != "cuda" or options["small"]:
        print("\nTried without a GPU or with --tiny: these figures say only that the script runs.")
    return failed


def make_settings(
    *,
    device: str,
    small: bool,
    networks: str | None,
    precisions: str | None,
    formats: str | None,
    images: int | None,
    seconds: float | None,
    workers: int | None,
    shared: Path,
    scratch: Path | None,
    out: Path,
) -> Any:
    """The settings that the options ask for; PurityError where there is no such device or name."""
    from dataclasses import replace

    import torch

    from purity_cli.cli.options import cores
    from purity_cli.machine import keep_freed_memory, resolve_device
    from tests.gpu_check import settings as known

    keep_freed_memory()
    chosen = resolve_device(device, "fp32")
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)  # whose streams the timing's events are on
    settings = known.Settings(
        device=chosen,
        out=out,
        scratch=scratch or Path(tempfile.gettempdir()),
        shared=shared,
        workers=workers or cores(),
    )
    settings = known.tiny(settings) if small else settings
    return replace(
        settings,
        images=images or settings.images,
        seconds=settings.seconds if seconds is None else seconds,
        networks=known.chosen("network", networks, settings.networks),
        precisions=known.chosen("precision", precisions, known.possible(settings.device)),
        formats=known.chosen("memory format", formats, settings.formats),
    )


if __name__ == "__main__":
    main()
