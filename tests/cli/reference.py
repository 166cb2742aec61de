"""docs/commands.md and the README's example, made by the commands themselves, and the commands that the pages show.

python -m tests.cli.reference   # writes both anew
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from purity_cli.cli import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "commands.md"
README = ROOT / "README.md"
START, END = "<!-- example: python -m tests.cli.reference -->\n", "<!-- end of example -->\n"
PAGES = (README, *sorted(path for path in (ROOT / "docs").glob("*.md") if path != REFERENCE))
"""All that is written by hand."""


def reference() -> str:
    """`--help` of every command, as Markdown."""
    sections = (_section(cli.get_command(click.Context(cli), name), f"purity {name}") for name in COMMANDS)
    return "# Commands\n\nWhat `--help` says; `make docs` writes this page.\n\n" + "\n".join(sections)


def _section(command: click.Command | None, name: str) -> str:
    assert command is not None
    settings = {**cli.context_settings, "max_content_width": 100}
    context = click.Context(command, info_name=name, terminal_width=100, **settings)
    text = f"## `{name}`\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        text += "".join("\n" + _section(sub, f"{name} {key}") for key, sub in command.commands.items())
    return text


class Shown(NamedTuple):
    """A command line that a page shows."""

    page: str
    line: int
    text: str
    """In one line, without its comment."""
    needs: str | None
    """What stands behind `# needs` in its comment: this machine may not have it. None where it runs anywhere."""


def shown() -> Iterator[Shown]:
    """Every command line in the pages' blocks of shell, in their order."""
    for page in PAGES:
        inside, begun = False, ""
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            if line.startswith("```"):
                inside = line in ("```sh", "```bash")
            elif inside and line.endswith("\\"):
                begun += line[:-1]
            elif inside and line.strip():
                text, _, comment = (begun + line).partition(" #")
                needs = re.match(r"\s*needs (.+)", comment)
                begun = ""
                if not line.startswith("#"):
                    yield Shown(page.name, number, text.strip(), needs[1] if needs else None)


def example() -> str:
    """What the README says that `purity score` prints."""
    return README.read_text("utf-8").partition(START)[2].partition(END)[0]


def _printed() -> str:
    """What it prints, in a folder of its own and 80 columns."""
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "purity_cli", "score"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=folder, env=environment
        ).stdout.rstrip()


def main() -> None:
    REFERENCE.write_text(reference(), "utf-8")
    before, _, rest = README.read_text("utf-8").partition(START)
    text = "\n".join(line.rstrip() for line in _printed().splitlines())
    README.write_text(f"{before}{START}```text\n$ purity score\n{text}\n```\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
