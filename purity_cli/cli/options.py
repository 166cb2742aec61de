"""The options of several commands; those that make a Job are made of the Job's fields."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource

from purity_cli.cli import console
from purity_cli.errors import log

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from purity_cli.plan import Job, Option


class Setting(click.ParamType):  # type: ignore[type-arg]  # click before 8.4 has no Generic here
    """A field of a Job, as a user writes it; the field itself says what is wrong with that."""

    name = "text"

    def __init__(self, field: str) -> None:
        self.field = field

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from pydantic import TypeAdapter, ValidationError

        from purity_cli.plan import Job, complaint

        try:
            field = Job.model_fields[self.field]
            return TypeAdapter(_annotated(field)).validate_python(value)
        except ValidationError as error:
            self.fail(complaint(error, ()), param, ctx)


def _annotated(field: FieldInfo) -> Any:
    from typing import Annotated

    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _option(name: str, field: FieldInfo, about: Option) -> click.Option:
    """The option of one field; the few values that a field allows, or a whole number, are click's own to check."""
    kinds = [kind for kind in _kinds(field.annotation) if kind is not type(None)]
    kind: Any = Setting(name)
    if kinds == [int]:
        kind = click.IntRange(1)
    elif all(get_origin(kind) is Literal for kind in kinds):
        kind = click.Choice([value for kind in kinds for value in get_args(kind)])
    names = [f"--{name.replace('_', '-')}", *filter(None, [about.short])]
    default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
    text = about.help if isinstance(about.help, str) else about.help()
    return click.Option(names, type=kind, metavar=about.metavar, default=default, show_default=bool(default), help=text)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the type itself, without what annotates them."""
    from types import UnionType
    from typing import Annotated, Union

    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return tuple(inner for kind in get_args(annotation) for inner in _kinds(kind))
    return (annotation,)


def job_settings() -> dict[str, tuple[FieldInfo, Option]]:
    """The fields of a Job that are options, by name."""
    from purity_cli.plan import Job, Option

    found = {name: [m for m in field.metadata if isinstance(m, Option)] for name, field in Job.model_fields.items()}
    return {name: (Job.model_fields[name], abouts[0]) for name, abouts in found.items() if abouts}


class JobCommand(click.Command):
    """A command whose `job_options` are made when they are asked for: its name and help take no pydantic."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        found = list[click.Parameter]()
        for parameter in super().get_params(ctx):
            found += parameter.options(ctx) if isinstance(parameter, _JobOptions) else [parameter]
        return found


class _JobOptions(click.Option):
    """Stands in a JobCommand's parameters for the options of a Job, but those `without`."""

    def __init__(self, several_weights: bool, without: tuple[str, ...]) -> None:
        super().__init__(["--job-options"], hidden=True)
        self.several_weights, self.without = several_weights, without

    def options(self, ctx: click.Context) -> list[click.Parameter]:
        made: list[click.Parameter] = ctx.meta.get(f"{__name__}.job", [])
        if not made:
            for name, (field, about) in job_settings().items():
                if name in self.without:
                    continue
                option = _several_weights(about) if name == "weights" and self.several_weights else None
                made.append(option or _option(name, field, about))
                if name == "split":
                    made.append(
                        click.Option(["--download"], is_flag=True, help="Fetch the data set where its library can.")
                    )
            ctx.meta[f"{__name__}.job"] = made
        return made


def _several_weights(about: Option) -> click.Option:
    return click.Option(
        ["--weights", *filter(None, [about.short])], multiple=True, default=("default",), show_default=True,
        metavar=about.metavar, help="As for score; again for each --model, or for more weights of one.",
    )  # fmt: skip


_MODEL = click.option(
    "--model", "-m", "models", multiple=True, default=("resnet10_cifar",), show_default=True, metavar="NAME",
    help="resnet50, timm:resnet50.tv_in1k, net.py:function, ...: see `purity models`. Give it again for more models.",
)  # fmt: skip


def job_options(
    function: Callable[..., Any], *, several_weights: bool = False, without: tuple[str, ...] = ()
) -> Callable[..., Any]:
    """Add every option that makes a Job, but those `without`, to a `JobCommand`.

    `function` is given them as `settings`, for `make_jobs`, and `download`, `workers` and `models` as they are. With
    `several_weights`, `settings["weights"]` is a tuple.
    """

    @functools.wraps(function)
    def wrapper(**given: Any) -> Any:
        settings = {name: given.pop(name) for name in job_settings() if name in given}
        return function(settings=settings, **given)

    workers_option(wrapper)
    _parameters(wrapper).append(_JobOptions(several_weights, without))
    _MODEL(wrapper)
    return wrapper


def _parameters(function: Any) -> list[click.Parameter]:
    """What click collects of a function until it becomes a command, last one first."""
    if not hasattr(function, "__click_params__"):
        function.__click_params__ = []
    found: list[click.Parameter] = function.__click_params__
    return found


def make_jobs(models: Iterable[str], settings: dict[str, Any], thresholds: tuple[float, ...]) -> list[Job]:
    """A Job per model with the same settings."""
    from purity_cli.plan import Job

    return [Job.of(model=model, thresholds=thresholds, **settings) for model in dict.fromkeys(models)]


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


def parse_layers(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Names with commas between them, for `callback=`."""
    return tuple(part.strip() for part in value.split(",") if part.strip())


def parse_threshold(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """One threshold, for `callback=`; a usage error outside [0, 1)."""
    from purity_cli.errors import PurityError
    from purity_cli.plan import check_thresholds

    try:
        return check_thresholds([value])[0]
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


stored_layers_option = click.option(
    "--layers", "-l", default="*", show_default=True, callback=parse_layers, metavar="SPEC,...",
    help="Only these of the layers scored: stages, paths or globs.",
)  # fmt: skip


def threshold_option(about: str = "At which purity is read.") -> Callable[[Any], Any]:
    """`--threshold`, one of them."""
    return click.option(
        "--threshold", "-t", default=0.5, show_default=True, callback=parse_threshold, metavar="T", help=about
    )


def parse_rate(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A share of all pairs of image and channel, for `callback=`; a usage error outside (0, 1)."""
    from purity_cli.errors import PurityError
    from purity_cli.plan import check_rate

    try:
        return check_rate(value)
    except PurityError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def rate_option(function: Any) -> Any:
    """`--rate`, the share of firings at which F is compared."""
    return click.option(
        "--rate", type=float, default=0.01, show_default=True, callback=parse_rate, metavar="R",
        help="Also F where this share of all pairs of image and channel fires: F at an equal firing rate.",
    )(function)  # fmt: skip


def output_option(about: str, default: Path | None = None) -> Callable[[Any], Any]:
    """`--output`, a folder."""
    return click.option(
        "--output", "-o", type=click.Path(file_okay=False, path_type=Path), default=default,
        show_default=default is not None, metavar="DIR", help=about,
    )  # fmt: skip


fresh_option = click.option(
    "--fresh", is_flag=True, help="Score everything again, instead of keeping what is finished."
)


log_option = click.option(
    "--log", "trackers", multiple=True, metavar="TRACKER[:PLACE]",
    help="Write the values to a tracker as well: tensorboard:DIR, wandb:PROJECT (offline) or mlflow:URI.",
)  # fmt: skip


def stored_option(about: str) -> Callable[[Any], Any]:
    """`--from`, given to the command as `folders`."""
    return click.option("--from", "folders", type=click.Path(path_type=Path), multiple=True, metavar="DIR", help=about)


def format_option(about: str | None = None) -> Callable[[Any], Any]:
    """`--format`, given to the command as `layout`."""
    layouts = console.formats()
    return click.option("--format", "layout", type=layouts, default="table", show_default=True, help=about)


def _cache(ctx: click.Context, param: click.Parameter, value: str) -> Path | None:
    if value == "none":
        return None
    from purity_cli.cache import NOWHERE, default_root
    from purity_cli.files import expanded

    root = default_root() if value == "auto" else expanded(value)
    if value == "auto" and root is None:
        log.warning(f"No pixels are cached, because {NOWHERE}.")
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


def said(option: str) -> bool:
    """Whether the running command was given this option, by its parameter's name, and not left to its default."""
    return click.get_current_context().get_parameter_source(option) == ParameterSource.COMMANDLINE
