"""The options that make a Job, shared by every command that scores."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from purity_cli.plan import Job


class Size(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 has no Generic here
    """Pixels: `224`, `240x320` (height x width), or `none`."""

    name = "N|HxW|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value == "none":
            return value
        parts = value.split("x")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"{value!r} is no size: write 224, 240x320 (height x width) or none.", param, ctx)
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


class Colour(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 has no Generic here
    """Three numbers, `R,G,B`."""

    name = "R,G,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            red, green, blue = (float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is no colour: write three numbers, e.g. 0.485,0.456,0.406.", param, ctx)
        return red, green, blue


class Count(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 has no Generic here
    """A positive number or `auto`."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int) or value == "auto":
            return value
        if not str(value).isdecimal() or int(value) < 1:
            self.fail(f"{value!r} is no batch size: write a positive number or auto.", param, ctx)
        return int(value)


def parse_layers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse_threshold(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """One threshold, for `callback=`; a usage error outside [0, 1)."""
    from purity_cli.errors import PurityError
    from purity_cli.plan import check_thresholds

    try:
        return check_thresholds([value])[0]
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")

_MODEL = click.option(
    "--model", "-m", "models", multiple=True, default=("tiny_vgg_10",), show_default=True, metavar="NAME",
    help="resnet50, timm:resnet50.tv_in1k, net.py:function, ...: see `purity models`. Give it again for more models.",
)  # fmt: skip
_WEIGHTS = functools.partial(click.option, "--weights", "-w", show_default=True, metavar="NAME|FILE|none")
_ONE = _WEIGHTS(default="default", help="Weights that the model knows by name, a file, or none for random ones.")
_SEVERAL = _WEIGHTS(default=("default",), multiple=True,
                    help="As for score; again for each --model, or for more weights of one.")  # fmt: skip
_JOB: tuple[Callable[[Any], Any], ...] = (
    click.option("--dataset", "-d", default="digits", show_default=True, metavar="NAME|PATH",
                 help="Images by name or path: see `purity datasets` for what is known, and how a path is read."),
    click.option("--data-dir", metavar="DIR", help="Where a named data set lies."),
    click.option("--split", metavar="NAME", help="Which split of the data set.  [default: test, else val]"),
    click.option("--download", is_flag=True, help="Fetch the data set where its library can."),
    click.option("--layers", "-l", default="C1..last", show_default=True, callback=parse_layers, metavar="SPEC,...",
                 help="Stages (C1..C5, last), readings of stages (conv:C1..C5, block:last, pool:C1; all:last for each "
                 "that there is), module paths or globs: see `purity layers MODEL`."),
    click.option("--preprocess", type=click.Choice(["weights", "paper"]), default="weights", show_default=True,
                 help="Pixels as the weights declare them, or as in the paper."),
    click.option("--resize", type=Size(), help="Short side or exact size, instead of what was declared."),
    click.option("--crop", type=Size(), help="Central crop, instead of what was declared."),
    click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="Of the resize."),
    click.option("--mean", type=Colour(), help="Per channel, on a scale of 0 to 1."),
    click.option("--std", type=Colour(), help="Per channel, on a scale of 0 to 1."),
    click.option("--per-class", type=click.IntRange(1), metavar="N", help="Only the first N images of each class."),
    click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images."),
    click.option("--batch-size", "-b", type=Count(), default="auto", show_default=True),
    click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]"),
    click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), default="fp32", show_default=True),
    click.option("--on-bad-image", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
                 help="Leave unreadable images out and name them, or stop."),
)  # fmt: skip


def cores() -> int:
    """Processors that this process may use; of torchrun's on one machine, each takes its part."""
    import os

    from purity_cli.machine import environment_number

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    among = environment_number("LOCAL_WORLD_SIZE", least=1) if os.environ.get("RANK") else None
    return max(1, here // (among or 1))


def _workers(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    return value or cores()


workers_option = click.option(
    "--workers", type=click.IntRange(1), callback=_workers, metavar="N",
    help="Decoding threads.  [default: one per core]",
)  # fmt: skip


def threshold_option(about: str = "At which purity is read.") -> Callable[[Any], Any]:
    """`--threshold`, one of them."""
    return click.option(
        "--threshold", "-t", default=0.5, show_default=True, callback=parse_threshold, metavar="T", help=about
    )


def output_option(about: str, default: Path | None = None) -> Callable[[Any], Any]:
    """`--output`, a folder."""
    return click.option(
        "--output", "-o", type=click.Path(file_okay=False, path_type=Path), default=default,
        show_default=default is not None, metavar="DIR", help=about,
    )  # fmt: skip


def stored_option(about: str) -> Callable[[Any], Any]:
    """`--from`, given to the command as `folders`."""
    return click.option("--from", "folders", type=click.Path(path_type=Path), multiple=True, metavar="DIR", help=about)


def format_option(about: str | None = None) -> Callable[[Any], Any]:
    """`--format`, given to the command as `layout`."""
    layouts = click.Choice(["table", "csv", "md", "json"])
    return click.option("--format", "layout", type=layouts, default="table", show_default=True, help=about)


def _cache(ctx: click.Context, param: click.Parameter, value: str) -> Path | None:
    from purity_cli.cache import NOWHERE, default_root
    from purity_cli.cli import progress
    from purity_cli.files import expanded

    root = None if value == "none" else default_root() if value == "auto" else expanded(value)
    if value == "auto" and root is None:
        progress.warn(f"No pixels are cached, for {NOWHERE}.")
    return root


def cache_option(default: str) -> Callable[[Any], Any]:
    """`--cache`, given to the command as a Path, or None for none."""
    return click.option(
        "--cache",
        default=default,
        show_default=True,
        callback=_cache,
        metavar="auto|none|DIR",
        help="Keep decoded pixels, for models that want the same; auto is $PURITY_CACHE, else ~/.cache/purity.",
    )


def _metrics(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    from purity_cli.errors import did_you_mean
    from purity_cli.results import PEERS

    names = parse_layers(ctx, param, value)
    for name in names:
        if name not in PEERS:
            known = f"there are {', '.join(PEERS)}.{did_you_mean(name, PEERS)}"
            raise click.BadParameter(f"No metric {name!r}: {known}", ctx, param)
    return names


metrics_option = click.option(
    "--metrics", default="", callback=_metrics, metavar="NAME,...",
    help="Other measures beside purity, of the deepest layer's pooled features: rankme, alpha-req.",
)  # fmt: skip


def job_options(
    function: Callable[..., Any], *, several_weights: bool = False, weights: bool = True
) -> Callable[..., Any]:
    """Add every option that makes a Job; `function` is given them as `settings`, for `make_jobs`, and `download`,
    `workers` and `models` as they are. With `several_weights`, `settings["weights"]` is a tuple; without `weights`
    there is none.
    """

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        settings = {name: given.pop(name) for name in JOB_SETTINGS if name in given}
        return function(settings=settings, **given)

    chosen = [_SEVERAL if several_weights else _ONE] if weights else []
    for option in reversed((_MODEL, *chosen, *_JOB, workers_option)):
        option(wrapper)
    return wrapper


JOB_SETTINGS = (
    "weights", "dataset", "data_dir", "split", "layers", "preprocess", "resize", "crop", "interpolation", "mean", "std",
    "per_class", "limit", "batch_size", "device", "precision", "on_bad_image",
)  # fmt: skip


def make_jobs(models: Iterable[str], settings: dict[str, Any], thresholds: tuple[float, ...]) -> list[Job]:
    """A Job per model with the same settings."""
    from purity_cli.plan import Job

    crop = settings["crop"]
    square = {**settings, "crop": (crop, crop) if isinstance(crop, int) else crop}
    return [Job.of(model=model, thresholds=thresholds, **square) for model in dict.fromkeys(models)]


def said(option: str) -> bool:
    """Whether the running command was given this option, by its parameter's name, and not left to its default."""
    return click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE
