"""The README says what the commands say."""

from __future__ import annotations

import re

from purity_cli.cli import COMMANDS
from tests.reference import parts, reference


def test_reference_is_that_of_the_commands() -> None:
    # Words alone: how click breaks lines differs between its versions.
    assert parts()[1].split() == reference().split(), "run `make docs`"


def test_every_command_is_mentioned_outside_its_reference() -> None:
    before, _, after = parts()
    assert not [name for name in COMMANDS if f"purity {name}" not in before + after]


def test_the_two_commands_stand_at_the_top() -> None:
    assert re.search(r"```\w*\nmake demo\b.*\nmake test\b.*\n```", parts()[0][:2500])
