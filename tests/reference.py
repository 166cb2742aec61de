"""The README's command reference, generated from the commands themselves.

python -m tests.reference   # writes it anew
"""

from __future__ import annotations

from pathlib import Path

import click

from purity_cli.cli import COMMANDS, cli

README = Path(__file__).resolve().parents[1] / "README.md"
START, END = "<!-- reference: python -m tests.reference -->\n", "<!-- end of reference -->\n"


def reference() -> str:
    """`--help` of every command, as Markdown."""
    return "\n".join(_section(cli.get_command(click.Context(cli), name), f"purity {name}") for name in COMMANDS)


def _section(command: click.Command | None, name: str) -> str:
    assert command is not None
    settings = {**cli.context_settings, "max_content_width": 100}
    context = click.Context(command, info_name=name, terminal_width=100, **settings)
    text = f"### `{name}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        text += "".join("\n" + _section(sub, f"{name} {key}") for key, sub in command.commands.items())
    return text


def parts() -> tuple[str, str, str]:
    """The README before the reference, the reference in it, and what follows."""
    before, start, rest = README.read_text().partition(START)
    written, end, after = rest.partition(END)
    return before + start, written, end + after


def main() -> None:
    before, _, after = parts()
    README.write_text(f"{before}\n{reference()}\n{after}")


if __name__ == "__main__":
    main()
