"""The first result again: found without PyTorch, and only where nothing that decides it has changed."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from click.testing import CliRunner

from purity_cli import shipped, store
from purity_cli.cli import cli
from purity_cli.plan import Job
from purity_cli.results import Result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("first")
    run = CliRunner().invoke(cli, ["score", "-o", str(path)])
    assert run.exit_code == 0, run.output
    (path / "printed").write_text(run.stdout)
    return path


def test_a_second_score_prints_the_same_without_pytorch(folder: Path) -> None:
    again = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "purity_cli", "score", "-o", str(folder)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert again.stdout == (folder / "printed").read_text()
    assert "Kept" in again.stderr
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines() if line.startswith("import time")}
    assert "numpy" in imported
    assert not imported & {"torch", "torchvision", "torchmetrics"}


def test_only_the_very_same_job_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(shipped.scored(Job(), folder), Result)
    for other in (
        {"limit": 500},
        {"layers": ("C1",)},
        {"weights": "none"},
        {"model": "tiny_vgg_10"},
        {"data_dir": "x"},
    ):
        assert shipped.scored(Job(**other), folder) is None, other
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0" if name == "torch" else version(name))
    assert shipped.scored(Job(), folder) is None


@pytest.mark.parametrize("field", ["dataset_fingerprint", "weights_sha256", "purity"])
def test_other_content_is_not_taken_for_it(folder: Path, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    read = store.read

    def changed(path: Path) -> Result:
        result = read(path)
        result.identity[field] = "another"  # type: ignore[index]
        return result

    monkeypatch.setattr(store, "read", changed)
    assert shipped.scored(Job(), folder) is None


def test_a_damaged_result_is_left_to_be_scored_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / store.STATES).write_bytes((folder / store.STATES).read_bytes()[:1000])
    assert shipped.scored(Job(), tmp_path) is None
