"""The short part of the standing attack, and that it finds what is planted. `make attack` is the long one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attack.kinds import KINDS
from benchmarks.attack.mutate import damaged
from benchmarks.attack.planted import PLANTED

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the attack forks, and waits by pidfd: Linux's")


def attack(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.attack", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_a_few_inputs_of_every_kind_end_well() -> None:
    ran = attack("--n", "30", "--seed", "4")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "30 inputs in" in ran.stdout


def test_a_fault_that_is_planted_is_found() -> None:
    """One of `PLANTED`; the others take minutes, and are tried by hand when the attack changes."""
    assert "cache-believed" in PLANTED
    ran = attack("--n", "12", "--seed", "4", "--only", "cache", "--plant", "cache-believed")
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "numbers differ from an undisturbed run's" in ran.stdout


@given(st.binary(min_size=1, max_size=2000), st.integers())
def test_damage_changes_something_and_is_repeatable(data: bytes, seed: int) -> None:
    how, content = damaged(data, Random(seed))
    assert content != data
    assert damaged(data, Random(seed)) == (how, content)


def test_every_kind_says_what_it_is() -> None:
    assert all(kind.attack.__doc__ and kind.share > 0 for kind in KINDS.values())
