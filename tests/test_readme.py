"""The README says what the commands say."""

from __future__ import annotations

import re

from purity_cli.cli import COMMANDS
from tests.reference import README, reference, written


def test_reference_is_that_of_the_commands() -> None:
    # Words alone: how click breaks lines differs between its versions.
    assert written().split() == reference().split(), "run `make docs`"


def test_every_command_is_mentioned_outside_its_reference() -> None:
    text = README.read_text().replace(written(), "")
    assert not [name for name in COMMANDS if f"purity {name}" not in text]


def test_the_two_commands_stand_at_the_top() -> None:
    assert re.search(r"```\w*\nmake demo\b.*\nmake test\b.*\n```", README.read_text()[:2500])
