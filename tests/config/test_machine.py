"""What is asked of the machine: its processors, environment, git and allocator; and of PyTorch around a call."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from purity_cli import machine, score
from purity_cli.cli import options
from purity_cli.errors import PurityError
from purity_cli.nets import resnet10_cifar
from purity_cli.run import ranks


@pytest.mark.parametrize("fails", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5), PermissionError()])
def test_a_git_that_fails_costs_its_part_of_the_versions_alone(
    fails: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise fails

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(machine, "commit", machine.commit.__wrapped__)
    versions = machine.versions()
    assert versions["git"] is None
    assert versions["torch"]


@pytest.mark.skipif(not (Path(__file__).parents[2] / ".git").exists(), reason="not a checkout")
@pytest.mark.parametrize(("code", "expected"), [(0, "0123456789ab-dirty"), (128, None)])
def test_the_commit_is_what_git_says(
    code: int, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\necho 0123456789ab-dirty; exit {code}\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.commit.__wrapped__() == expected


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": ""}, (0, 1, 0)),
        ({"WORLD_SIZE": "4"}, (0, 1, 0)),
        ({"RANK": "", "WORLD_SIZE": "x"}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": ""}, (0, 1, 0)),
        ({"RANK": "0"}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x", "MASTER_PORT": "y"}, (0, 1, 0)),
        ({"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, (1, 4, 0)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, (3, 4, 1)),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"RANK": "²"}, "RANK is '²'"),
        ({"RANK": "9" * 5000}, "RANK is '99"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"RANK": "3", "WORLD_SIZE": ""}, "RANK is 3, and WORLD_SIZE is not set"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK is 4, and WORLD_SIZE 4"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h"}, "MASTER_PORT is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "p"}, "MASTER_PORT is 'p'"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1", "LOCAL_RANK": "-2"},
            "LOCAL_RANK is '-2'",
        ),
    ],
)
def test_what_is_left_of_torchrun_is_one_process_or_named(
    environment: dict[str, str], expected: tuple[int, int, int] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(PurityError, match=re.escape(expected)):
            ranks.place()
    else:
        assert ranks.place() == expected


@pytest.mark.parametrize("text", ["", "0", "-3", "x", "2"])
def test_the_local_world_size_counts_under_torchrun_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = options.cores()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", text)
    assert options.cores() == alone
    monkeypatch.setenv("RANK", "0")
    if text in ("", "2"):
        assert options.cores() == (max(1, alone // 2) if text else alone)
    else:
        with pytest.raises(PurityError, match="LOCAL_WORLD_SIZE"):
            options.cores()


def test_only_the_command_line_changes_the_allocator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from purity_cli import run
    from purity_cli.plan import Job

    def refuse(*_: object) -> None:
        raise AssertionError("the allocator of a process that only uses the library")

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    assert run.score(run.resolve(Job(model="tiny_vgg_10", dataset="digits", limit=4, device="cpu")), workers=1)
    with pytest.raises(AssertionError):
        machine.keep_freed_memory()


KEPT: dict[str, Any] = {"per_class": 2, "resize": "none", "crop": "none", "mean": (0, 0, 0), "std": (1, 1, 1)}


def test_numbers_do_not_depend_on_what_is_set_around_the_call() -> None:
    torch.manual_seed(0)
    net = resnet10_cifar()

    def fired() -> list[int]:
        counts: list[int] = (
            score(net, "cifar10-sample", layers="last", **KEPT).result.layers[0].counts.sum((0, 2)).tolist()
        )
        return counts

    alone = fired()
    with torch.no_grad():
        assert fired() == alone
    with torch.inference_mode():
        assert fired() == alone
    with torch.autocast("cpu", torch.bfloat16):
        assert fired() == alone
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        assert fired() == alone
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
