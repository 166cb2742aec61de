"""The README says what the commands say."""

from __future__ import annotations

import re
import subprocess
import sys

from purity_cli.cli import COMMANDS
from tests.reference import README, parts


def test_reference_is_that_of_the_commands() -> None:
    # In a process of its own, since click remembers how a command's help was first asked for; and words alone, since
    # how it breaks lines differs between its versions.
    code = "from tests.reference import reference; print(reference())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=README.parent)
    assert parts()[1].split() == fresh.stdout.split(), "run `make docs`"


def test_every_command_is_mentioned_outside_its_reference() -> None:
    before, _, after = parts()
    assert not [name for name in COMMANDS if f"purity {name}" not in before + after]


def test_the_two_commands_stand_at_the_top() -> None:
    assert re.search(r"```\w*\nmake demo\b.*\nmake test\b.*\n```", parts()[0][:2500])
