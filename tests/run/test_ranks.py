"""Several processes: counts are those of one, an error of one is an error of all, and nobody waits for the dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from purity_cli import run, store
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.run import ranks as several
from purity_cli.run.ranks import Abandoned, Ranks
from purity_cli.suite import read
from purity_cli.suite.bench import Bench

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, *arguments: str, folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `purity` in so many processes that find each other on a port of their own."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "purity_cli"]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PURITY_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def results(folder: Path) -> dict[str, Result]:
    found = {}
    for path in folder.glob(f"*/{store.STATES}"):
        result = store.read(path.parent)
        found[result.job.key()] = result
    return found


def assert_equal(ours: Result, theirs: Result) -> None:
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        assert (a.module, a.stage, a.channels, a.height, a.width) == (b.module, b.stage, b.channels, b.height, b.width)
        assert a.counts is not None
        assert b.counts is not None
        assert np.array_equal(a.counts, b.counts)
        assert list(a.measures) == list(b.measures)
        assert list(a.measures.values()) == pytest.approx(list(b.measures.values()), rel=1e-9, nan_ok=True)
    assert (ours.n_images, ours.top1, ours.top5) == (theirs.n_images, theirs.top1, theirs.top5)
    times = ("seconds", "images_per_second", "started", "command", "device", "git")
    records = [{k: v for k, v in r.provenance.items() if k not in times} for r in (ours, theirs)]
    assert records[0] == records[1]


NETS = """
import os, signal, time, torch
from torch import nn

RANK = os.environ.get("RANK")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.passes = nn.Conv2d(3, 4, 3), nn.Linear(4, 10), 0
    def forward(self, x):
        if x.device.type == "cpu" and len(x) > 1:
            self.passes += 1
            self.act()
        return self.linear(self.conv(x).relu().mean((2, 3)))
    def act(self):
        pass

class Fails(Net):
    def act(self):
        if RANK == "1" and self.passes == 2:
            time.sleep(0.4)  # the other one shall have done something, also where there is other work
            raise RuntimeError("this part is broken")
        time.sleep(0.02)

class Dies(Net):
    def act(self):
        if self.passes == 4 and os.path.exists("mortal"):
            while RANK == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(3)

class Differs(Net):
    def __init__(self):
        super().__init__()
        if RANK == "1":
            nn.init.ones_(self.conv.weight)

def fails(): return Fails()
def dies(): return Dies()
def differs(): return Differs()
"""

SUITE = """
defaults: {weights: none, dataset: digits, limit: 100, batch_size: 8}
models:
  - {model: tiny_vgg_10, metrics: "rankme,alpha-req,participation-ratio,stable-rank,saturation"}
  - {model: "nets.py:fails", layers: conv, weights: default, limit: 200, batch_size: 2}
  - {model: "nets.py:differs", layers: conv, weights: default}
  - {model: tiny_vgg_10, weights: absent.safetensors}
  - {model: tiny_vgg_10, limit: 90, on_bad_image: fail}
"""


def test_two_processes_count_as_one_and_fail_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "nets.py").write_text(NETS)
    ran = torchrun(2, "bench", "suite.yaml", "--output", "two", folder=tmp_path)
    assert ran.returncode != 0  # 3 in each process, which torchrun makes its own 1
    assert "exitcode" in ran.stderr
    assert "exitcode  : 3" in ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines()[2:7]]
    assert [row[1] for row in rows] == ["scored", "failed", "failed", "failed", "scored"]
    assert ran.stdout.count("tiny_vgg_10_digits") == 3, "one process prints"
    errors = [json.loads(path.read_text())["error"] for path in sorted(tmp_path.glob("two/*/failed.json"))]
    assert errors[0].startswith("Processes 0 and 1 differ in network sha256")
    assert errors[1].startswith("Process 1 of 2 failed: fails failed as it ran (RuntimeError: this part is broken)")
    assert "absent.safetensors" in errors[2]
    # The first process left off as soon as the second had failed, and kept what it had by then.
    parts = [safetensors.numpy.load_file(part)["blocks"] for part in tmp_path.glob("two/fails*/partial-*.safetensors")]
    assert 0 < sum(map(len, parts)) < 100
    monkeypatch.chdir(tmp_path)
    alone = Bench(read(Path("suite.yaml")), Path("one"), workers=1).run()
    shared = results(tmp_path / "two")
    for outcome in (alone[0], alone[4]):
        assert outcome.result is not None
        assert_equal(shared[outcome.task.job.key()], outcome.result)
    assert len(shared) == 2


def test_more_processes_than_blocks(tmp_path: Path) -> None:
    names = ("-m", "tiny_vgg_10", "-d", "digits", "-w", "none")
    options = (
        "--limit",
        "15",
        "--batch-size",
        "8",
        "--metrics",
        "rankme,stable-rank",
        "--output",
        "out",
        "--format",
        "csv",
    )
    ran = torchrun(3, "score", *names, *options, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    settings = {"model": "tiny_vgg_10", "dataset": "digits", "weights": "none", "metrics": "rankme,stable-rank"}
    alone = run.score(run.resolve(Job.of(**settings, limit=15, batch_size=8)), workers=1)
    assert_equal(store.read(tmp_path / "out"), alone)
    assert len(ran.stdout.splitlines()) == 3
    assert ran.stderr.count("Wrote out") == 1


def test_a_process_that_dies_ends_the_run_and_another_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "models: [{model: 'nets.py:dies', layers: conv, limit: 200, batch_size: 8, resize: 32, crop: 32}]"
    (tmp_path / "suite.yaml").write_text(text)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "mortal").touch()
    ran = torchrun(2, "bench", "suite.yaml", "--output", "out", folder=tmp_path, timeout=120)
    assert ran.returncode != 0
    assert "SIGKILL" in ran.stderr
    (tmp_path / "mortal").unlink()
    parts = [path.name.count("-") for path in tmp_path.glob("out/*/partial*")]
    assert parts == [1], "the one that could still keep what it had has done so"
    monkeypatch.chdir(tmp_path)
    (resumed,) = Bench(read(Path("suite.yaml")), Path("out"), workers=1).run()
    (alone,) = Bench(read(Path("suite.yaml")), Path("one"), workers=1).run()
    assert (resumed.status, alone.status) == ("scored", "scored")
    (shared,) = results(tmp_path / "out").values()
    assert alone.result is not None
    assert_equal(shared, alone.result)
    assert not list(tmp_path.glob("out/*/partial*"))


# In one process


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_shares_are_whole_and_without_repeats(size: int) -> None:
    blocks = [3, 5, 6, 7, 9, 12]
    shares = [Ranks(rank, size).share(blocks) for rank in range(size)]
    assert sorted(block for share in shares for block in share) == blocks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_as_without_ranks() -> None:
    alone = Ranks()
    assert alone.together(lambda: 3) == [3]
    with pytest.raises(ZeroDivisionError):
        alone.together(lambda: 1 // 0)
    array = np.arange(3)
    assert alone.total({"a": array}, torch.device("cpu"))["a"] is array
    alone.check()
    assert alone.device(torch.device("cuda")) == torch.device("cuda")


def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert Ranks(5, 8, 1).device(torch.device("cuda")) == torch.device("cuda", 1)
    assert Ranks(5, 8, 1).device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(PurityError, match="write cuda instead of cuda:0"):
        Ranks(5, 8, 1).device(torch.device("cuda:0"))
    with pytest.raises(PurityError, match=r"more processes on \S+ than its 2 GPU"):
        Ranks(5, 8, 2).device(torch.device("cuda"))


def test_a_failure_elsewhere_is_heard_between_two_blocks() -> None:
    said = HashStore()
    ours, theirs = Ranks(0, 2, store=said), Ranks(1, 2, store=said)
    ours.check()
    said.set(theirs._alarm, "")
    with pytest.raises(Abandoned):
        ours.check()
    ours.steps += 1
    ours.check()


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with several.joined() as alone:
        assert (alone.rank, alone.size) == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some clusters set it for other purposes
    with several.joined() as alone:
        assert alone.size == 1


def test_record_of_a_failure_names_the_process(tmp_path: Path) -> None:
    """`failed.json` is that of the first process."""
    (tmp_path / "net.py").write_text("def net():\n    raise ValueError('no net')\n")
    (tmp_path / "suite.yaml").write_text(f"models: ['{tmp_path}/net.py:net']")
    (outcome,) = Bench(read(tmp_path / "suite.yaml"), tmp_path / "out", workers=1).run()
    record = json.loads((outcome.folder / "failed.json").read_text())
    assert "no net" in record["error"]
