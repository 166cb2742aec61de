"""The `purity` command: its subcommands by name, and what each kind of failure answers."""

from __future__ import annotations

import os
import platform
import shlex
import sysconfig
import traceback
from importlib import import_module, metadata
from pathlib import Path

import click

from purity_cli import __version__
from purity_cli.cli import progress
from purity_cli.errors import PurityError, did_you_mean, first_line, log, no_memory
from purity_cli.process import INTERRUPTED, Signals

COMMANDS = {
    "score": "Score",
    "bench": "Score",
    "show": "Look",
    "channels": "Look",
    "plot": "Look",
    "report": "Look",
    "cam": "Look",
    "sweep-threshold": "Look",
    "correlate": "Compare",
    "diff": "Compare",
    "epochs": "Compare",
    "train": "Train",
    "models": "List",
    "layers": "List",
    "datasets": "List",
    "cache": "List",
}
"""The group of each under `purity --help`. Each is `command` in the module of its name, with `_` for `-`; imported when
its help or it itself is asked for."""

DEBUG = "purity_cli.debug"
COMPLETE = "_PURITY_COMPLETE"

EPILOG = """\b
Completion by the Tab key, for ~/.bashrc, ~/.zshrc or fish's config.fish:
  bash: eval "$(_PURITY_COMPLETE=bash_source purity)"
  zsh:  eval "$(_PURITY_COMPLETE=zsh_source purity)"
  fish: _PURITY_COMPLETE=fish_source purity | source
"""


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section for each group, with the first sentence of every command whole."""
        widest = max(map(len, COMMANDS))
        for group in dict.fromkeys(COMMANDS.values()):
            found = {name: self.get_command(ctx, name) for name, its in COMMANDS.items() if its == group}
            rows = [
                (name.ljust(widest), command.get_short_help_str(1000)) for name, command in found.items() if command
            ]
            with formatter.section(group):
                formatter.write_dl(rows)


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta[DEBUG] = True


def _version(verbose: bool) -> None:
    """Print the versions of purity, PyTorch and Python; `verbose`, also the plug-ins that are installed."""
    from purity_cli.machine import commit
    from purity_cli.plugins import listed

    checkout = commit()
    git = f" (git {checkout})" if checkout else ""
    click.echo(f"purity {__version__}{git}, torch {metadata.version('torch')}, Python {platform.python_version()}")
    if verbose:
        click.echo("\n".join(["Plug-ins:", *(f"  {line}" for line in listed() or ["none"])]))


@click.group(
    cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EPILOG,
    invoke_without_command=True, no_args_is_help=True,
)  # fmt: skip
@click.option("--version", is_flag=True, help="Show the versions of purity, PyTorch and Python.")
@click.option("--verbose", is_flag=True, help="With --version: also the plug-ins that are installed.")
@click.pass_context
def cli(ctx: click.Context, version: bool, verbose: bool) -> None:
    """What have the layers of a pretrained CNN learned? Feature purity answers without labels."""
    if version:
        _version(verbose)
        ctx.exit()
    if verbose:
        raise click.UsageError("--verbose goes with --version.")
    if ctx.invoked_subcommand is None:
        raise click.UsageError("Missing command.")


def run(arguments: list[str]) -> int:
    """The exit code for these arguments. With `--debug` an error is raised instead."""
    if COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "purity", COMPLETE, os.environ[COMPLETE])
    context = None
    with progress.messages():
        try:
            with cli.make_context("purity", list(arguments)) as context:
                context.obj = shlex.join(["purity", *arguments])
                cli.invoke(context)
        except BaseException as error:  # a user's network may raise anything
            return _answer(error, context is not None and DEBUG in context.meta)
    return 0


def _answer(error: BaseException, debug: bool) -> int:
    """Say what there is to say of what ended a command; its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    # After a signal, anything: libraries turn KeyboardInterrupt into errors of their own.
    if isinstance(error, (click.Abort, KeyboardInterrupt)) or Signals.asked:
        log.info("Interrupted.")
        return INTERRUPTED
    if debug:
        raise error
    log.error(sentence(error))
    return 1


def _is_users(file: str) -> bool:
    """Whether code stands in a file of the user's: in none of Python's, of a library's or of this package's."""
    ours = (sysconfig.get_path("stdlib"), str(Path(__file__).parents[1]), "<")
    return not file.startswith(ours) and not {"site-packages", "dist-packages"} & set(Path(file).parts)


def sentence(error: BaseException) -> str:
    """What to say of an error, in one line, with the way out."""
    if isinstance(error, PurityError):
        return " ".join(str(error).split("\n"))
    text = first_line(error)
    if no_memory(error):
        return "Memory ran out: give a smaller --batch-size, fewer --workers, or smaller images by --resize and --crop."
    frames = traceback.extract_tb(error.__traceback__)
    # Python makes a RuntimeError of a StopIteration that leaves a generator, and only its cause knows where it began.
    begun = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
    own = [frame for frame in (*frames, *begun) if _is_users(frame.filename)]
    if own:
        where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}"
        return f"{where}, failed with {type(error).__name__}: {text[:200]}. --debug shows how it came to that."
    if isinstance(error, OSError):
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else "A file"
        return f"{place} cannot be used ({error.strerror or text}): mend that, or give another place."
    if isinstance(error, SystemExit):
        return f"Code that this ran wanted to end the program (exit code {error.code}): it must not."
    place = f", {Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}: {text[:200]}{place}. --debug shows all of it, and is worth a report."
