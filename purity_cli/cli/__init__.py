"""The `purity` command: its subcommands by name, and what each kind of failure answers."""

from __future__ import annotations

import os
import shlex
import sys
from importlib import import_module

import click

from purity_cli import __version__
from purity_cli.errors import PurityError, did_you_mean

COMMANDS = (
    "score", "show", "bench", "models", "layers", "datasets", "cache", "diff", "train", "sweep-threshold",
    "cam", "plot", "correlate", "epochs",
)  # fmt: skip
"""Each is `command` in the module of its name, with `_` for `-`; imported when its help or it itself is asked for."""

DEBUG = "purity_cli.debug"


class Commands(click.Group):
    """Subcommands from `COMMANDS`, each with `--debug`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"purity_cli.cli.{cmd_name.replace('-', '_')}").command
        if not any(parameter.name == "debug" for parameter in command.params):
            debug = click.Option(
                ["--debug"], is_flag=True, expose_value=False, callback=_debug, help="Show tracebacks."
            )
            command.params.append(debug)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"No such command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta[DEBUG] = True


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="purity")
def cli() -> None:
    """What have the layers of a pretrained CNN learned? Feature purity answers without labels."""


def main() -> None:
    """Run the command line; exits 0 done, 1 PurityError, 2 usage, 3 from `bench`, 4 from `diff`, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code for these arguments."""
    context = None
    try:
        with cli.make_context("purity", list(arguments)) as context:
            context.obj = shlex.join(["purity", *arguments])
            cli.invoke(context)
    except click.exceptions.Exit as leave:
        return leave.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except PurityError as error:
        if context is not None and DEBUG in context.meta:
            raise
        click.echo(f"Error: {error}", err=True)
        return 1
    except BrokenPipeError:
        # What read our output has gone, as `head` does: Python must not complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0
