"""The options that several commands share, and the Jobs that they make."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from purity_cli.cli import progress
from purity_cli.cli.console import Entries
from purity_cli.errors import PurityError, log

if TYPE_CHECKING:
    from purity_cli.plan import Job

Decorator = Callable[[Any], Any]
COUNT = click.IntRange(1)


def _names(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


JOB_OPTIONS: Mapping[str, Decorator] = {
    "weights": click.option(
        "--weights", "-w", default="default", show_default=True, metavar="NAME|FILE|none",
        help="Weights that the model knows by name, a file, or none for random ones.",
    ),
    "dataset": click.option(
        "--dataset", "-d", default="cifar10-sample", show_default=True, metavar="NAME|PATH",
        help="Images by name or path: see `purity datasets` for what is known, and how a path is read.",
    ),
    "data_dir": click.option("--data-dir", metavar="DIR", help="Where a named data set lies."),
    "split": click.option(
        "--split", metavar="NAME", help="Which split of the data set.  [default: test, else val]"
    ),
    "layers": click.option(
        "--layers", "-l", default="C1..last", show_default=True, callback=_names, metavar="SPEC,...",
        help="Stages (C1..C5, last), readings of stages (conv:C1..C5, block:last, pool:C1; all:last for each that "
        "there is), module paths or globs: see `purity layers MODEL`.",
    ),
    "preprocess": click.option(
        "--preprocess", type=click.Choice(["weights", "paper"]), default="weights", show_default=True,
        help="Pixels as the weights declare them, or as in the paper.",
    ),
    "resize": click.option(
        "--resize", metavar="N|HxW|none", help="Short side or exact size, instead of what was declared."
    ),
    "crop": click.option("--crop", metavar="N|HxW|none", help="Central crop, instead of what was declared."),
    "interpolation": click.option(
        "--interpolation", type=click.Choice(["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]),
        help="Of the resize.",
    ),
    "mean": click.option("--mean", metavar="R,G,B", help="Per channel, on a scale of 0 to 1."),
    "std": click.option("--std", metavar="R,G,B", help="Per channel, on a scale of 0 to 1."),
    "per_class": click.option("--per-class", type=COUNT, metavar="N", help="Only the first N images of each class."),
    "limit": click.option("--limit", type=COUNT, metavar="N", help="Only the first N images."),
    "batch_size": click.option(
        "--batch-size", "-b", default="auto", show_default=True, metavar="auto|N", help="Images in one pass."
    ),
    "device": click.option(
        "--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Where the network runs."
    ),
    "precision": click.option(
        "--precision", type=click.Choice(["fp32", "tf32", "bf16", "fp16"]), default="fp32", show_default=True,
        help="The number format in which the network computes.",
    ),
    "on_bad_image": click.option(
        "--on-bad-image", type=click.Choice(["skip", "fail"]), default="skip", show_default=True,
        help="Leave unreadable images out and name them, or stop.",
    ),
    "metrics": click.option(
        "--metrics", metavar="NAME,...",
        help="Other measures than purity, of every layer: rankme, alpha-req, participation-ratio, stable-rank, "
        "saturation; with a parameter as in rankme:epsilon=1e-5.",
    ),
}  # fmt: skip
"""The settings of a Job by their fields, which say what is wrong with a value."""


def job_options(without: tuple[str, ...] = ()) -> Decorator:
    """Add every option that makes a Job, but those `without`, and --model, --download and --workers.

    The command is given them as `settings`, for `make_jobs`, and as `models`, `download` and `workers`.
    """
    names = [name for name in JOB_OPTIONS if name not in without]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(**values: Any) -> Any:
            given = {name: values.pop(name) for name in names}
            return function(settings={name: value for name, value in given.items() if value is not None}, **values)

        options = [model_option, *(JOB_OPTIONS[name] for name in names), download_option, workers_option]
        for option in reversed(options):
            option(wrapper)
        return wrapper

    return decorate


def make_jobs(models: Iterable[str], settings: Mapping[str, Any], thresholds: tuple[float, ...]) -> list[Job]:
    """A Job per model with the same settings; a usage error for a value that cannot be read."""
    from pydantic import ValidationError

    from purity_cli.plan import Job, complaint

    try:
        return [Job(model=model, thresholds=thresholds, **settings) for model in dict.fromkeys(models)]
    except ValidationError as error:
        place, sentence = error.errors()[0]["loc"], complaint(error, Job.model_fields)
        if place:
            raise click.BadParameter(sentence, param_hint=f"--{str(place[0]).replace('_', '-')}") from None
        raise PurityError(sentence) from None


def cores() -> int:
    """Processors that this process may use; of torchrun's on one machine, each takes its part."""
    from purity_cli.machine import environment_number

    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    among = environment_number("LOCAL_WORLD_SIZE", least=1) if os.environ.get("RANK") else None
    return max(1, here // (among or 1))


def _workers(ctx: click.Context, param: click.Parameter, value: int | None) -> int:
    return value or cores()


def _threshold(ctx: click.Context, param: click.Parameter, value: float) -> float:
    from purity_cli.plan import check_thresholds

    try:
        return check_thresholds([value])[0]
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _rate(ctx: click.Context, param: click.Parameter, value: float) -> float:
    from purity_cli.plan import check_rate

    try:
        return check_rate(value)
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _cache(ctx: click.Context, param: click.Parameter, value: str) -> Path | None:
    if value == "none":
        return None
    from purity_cli.cache import NOWHERE, default_root
    from purity_cli.files import expanded

    root = default_root() if value == "auto" else expanded(value)
    if value == "auto" and root is None:
        log.warning(f"No pixels are cached, because {NOWHERE}.")
    return root


model_option = click.option(
    "--model", "-m", "models", multiple=True, default=("resnet10_cifar",), show_default=True, metavar="NAME",
    help="resnet50, timm:resnet50.tv_in1k, net.py:function, ...: see `purity models`. Give it again for more models."
)  # fmt: skip
download_option = click.option("--download", is_flag=True, help="Fetch the data set where its library can.")
workers_option = click.option(
    "--workers", type=COUNT, callback=_workers, metavar="N",
    help="Decoding threads.  [default: one per core]"
)  # fmt: skip


log_option = click.option(
    "--log", "trackers", multiple=True, metavar="TRACKER[:PLACE]",
    help="Write the values to a tracker as well: tensorboard:DIR, wandb:PROJECT (offline) or mlflow:URI."
)  # fmt: skip
fresh_option = click.option(
    "--fresh", is_flag=True,
    help="Score everything again, instead of keeping what is finished."
)  # fmt: skip
rate_option = click.option(
    "--rate", type=float, default=0.01, show_default=True, callback=_rate, metavar="R",
    help="Also F where this share of all pairs of image and channel fires: F at an equal firing rate.",
)  # fmt: skip
stored_layers_option = click.option(
    "--layers", "-l", default="*", show_default=True, callback=_names, metavar="SPEC,...",
    help="Only these of the layers scored: stages, paths or globs."
)  # fmt: skip
progress_option = click.option(
    "--progress", type=click.Choice(["auto", "json"]), default="auto", show_default=True, expose_value=False,
    callback=progress.set_form,
    help="json: on stderr a line of JSON for every step, for programs."
)  # fmt: skip


def threshold_option(about: str = "At which purity is read.") -> Decorator:
    """`--threshold`, one of them."""
    return click.option(
        "--threshold", "-t", default=0.5, show_default=True, callback=_threshold, metavar="T", help=about
    )


def output_option(about: str, default: Path | None = None) -> Decorator:
    """`--output`, a folder."""
    return click.option(
        "--output", "-o", type=click.Path(file_okay=False, path_type=Path), default=default,
        show_default=default is not None, metavar="DIR", help=about,
    )  # fmt: skip


def stored_option(about: str) -> Decorator:
    """`--from`, given to the command as `folders`."""
    return click.option("--from", "folders", type=click.Path(path_type=Path), multiple=True, metavar="DIR", help=about)


def format_option(about: str | None = None) -> Decorator:
    """`--format`, given to the command as `layout`."""
    formats = Entries("purity_cli.report:FORMATS")
    return click.option("--format", "layout", type=formats, default="table", show_default=True, help=about)


def cache_option(default: str) -> Decorator:
    """`--cache`, given to the command as a Path, or None for none."""
    return click.option(
        "--cache", default=default, show_default=True, callback=_cache, metavar="auto|none|DIR",
        help="Keep decoded pixels, for models that want the same; auto is $PURITY_CACHE, else ~/.cache/purity.",
    )  # fmt: skip


def is_given(option: str) -> bool:
    """Whether the running command was given this option, by its parameter's name, and not left to its default."""
    return click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE
