"""One suite on many machines: shards, who holds what, and every network that a pattern means."""

from __future__ import annotations

import ast
import errno
import fcntl
import logging
import os
import re
import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import timm
import yaml

from purity_cli import cli, locks, run
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.suite import Suite, read, status
from purity_cli.suite.bench import Bench, Shard
from tests.logged import logged

FOUR = """
defaults: {weights: none, dataset: digits, batch_size: 8}
models:
""" + "".join(f"  - {{model: tiny_vgg_10, limit: {limit}}}\n" for limit in range(20, 24))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURITY_CACHE", str(tmp_path / "cache"))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    return tmp_path


def suite(text: str) -> Suite:
    Path("mine.yaml").write_text(text)
    return read(Path("mine.yaml"))


# Shards


@pytest.mark.parametrize("of", [1, 2, 4, 7, 9])
def test_shards_are_all_of_the_jobs_each_once(of: int) -> None:
    shares = [[place for place in range(7) if Shard(number, of).has(place)] for number in range(1, of + 1)]
    assert sorted(place for share in shares for place in share) == list(range(7))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "1/0", "a/b", "-1/3", "1/3/3", "1.0/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(PurityError, match=r"write I/N with I from 1 to N, as 3/8"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("task", "numbers", "expected"),
    [
        ("1", "1-4", Shard(1, 4)), ("4", "1-4", Shard(4, 4)), ("0", "0-3", Shard(1, 4)), ("3", "0-3", Shard(4, 4)),
        ("17", "10-19", Shard(8, 10)), ("5", "5-5", Shard(1, 1)), (None, "1-4", None),
    ],
)  # fmt: skip
def test_a_task_of_a_slurm_array_has_its_shard(
    task: str | None, numbers: str, expected: Shard | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, task, numbers)
    assert Shard.of_this_task() == expected


def set_array(monkeypatch: pytest.MonkeyPatch, task: str | None, numbers: str) -> None:
    """What slurmd 22.05 sets in such a task."""
    least, _, rest = numbers.partition("-")
    most, _, step = rest.partition(":")
    count = len(range(int(least), int(most) + 1, int(step or 1)))
    for name, value in (("ID", task), ("COUNT", count), ("MIN", least), ("MAX", most), ("STEP", step or 1)):
        if value is not None:
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_an_array_with_gaps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_array(monkeypatch, "7", "1-7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")  # --array=1,3,7
    with pytest.raises(PurityError, match="--shard 7/3 is none"):
        Shard.of_this_task()


def test_two_shards_score_each_job_once_and_the_last_one_s_table_has_all() -> None:
    made = suite(FOUR)
    first = Bench(made, Path("out"), workers=1, shard=Shard(1, 2))
    outcomes = first.run()
    assert [outcome.status for outcome in outcomes] == ["scored", "elsewhere"] * 2
    assert outcomes[1].error == "of another shard than 1/2"
    second = Bench(made, Path("out"), workers=1, shard=Shard(2, 2))
    others = second.run()
    assert [outcome.status for outcome in others] == ["elsewhere", "scored"] * 2
    with second.closing(others) as last:
        assert [outcome.status for outcome in last] == ["kept", "scored"] * 2
        assert all(outcome.result for outcome in last)


def test_a_result_of_before_is_not_shown_as_another_shards(here: Path) -> None:
    """The network behind a job changed; the shard that has it was not run again."""
    (here / "net.py").write_text(
        "import torch\nfrom purity_cli.nets import tiny_vgg_10\nSEED = 2\n"
        "def net():\n    torch.manual_seed(SEED)\n    return tiny_vgg_10()\n"
    )
    made = suite("defaults: {dataset: digits, limit: 8, resize: 32, crop: 32}\nmodels: [tiny_vgg_10, 'net.py:net']")
    assert [outcome.status for outcome in Bench(made, Path("out"), workers=1).run()] == ["scored"] * 2
    for change, status_ in (("SEED = 2 ", "kept"), ("SEED = 3", "elsewhere")):
        (here / "net.py").write_text((here / "net.py").read_text().replace("SEED = 2", change))
        first = Bench(made, Path("out"), workers=1, shard=Shard(1, 2))
        with first.closing(first.run()) as last:
            assert [outcome.status for outcome in last] == ["kept", status_]
            assert (last[1].result is None) == (status_ == "elsewhere")


def test_the_command_takes_the_shard_of_its_array_or_the_one_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(FOUR)
    set_array(monkeypatch, "11", "10-11")
    assert cli.run(["bench", "mine.yaml", "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:6]] == ["elsewhere", "scored"] * 2
    assert "Shard 2/2 of the jobs; --shard 1/1 takes all." in err
    assert "[2/2]" in err
    assert cli.run(["bench", "mine.yaml", "-o", "out", "--shard", "1/1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:6]] == ["scored", "kept"] * 2
    assert cli.run(["bench", "mine.yaml", "--shard", "5/4"]) == 1
    assert cli.run(["bench", "mine.yaml", "--shard", "1/4", "--dry-run"]) == 2


def test_without_locks_it_is_said_that_shards_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    made = suite(FOUR)
    monkeypatch.setattr(fcntl, "flock", none)
    with logged() as said:
        outcomes = Bench(made, Path("out"), workers=1).run()
    assert [outcome.status for outcome in outcomes] == ["scored"] * 4
    assert "The file system of out has no locks: several processes would score the same jobs" in said[0]
    said.clear()
    with logged() as said:
        Bench(made, Path("out"), workers=1, shard=Shard(1, 2)).run()
    assert not any("locks" in sentence for sentence in said)
    assert "4 done" in status.report(status.standings(made.tasks(), Path("out"))).lead


# Status


def test_status_says_what_is_done_running_unfinished_failed_and_left(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = suite(
        FOUR + "  - {model: tiny_vgg_10, limit: 3, needs: nowhere}\n  - {model: tiny_vgg_10, dataset: nonesuch}\n"
    )
    tasks = made.tasks()
    Bench(made, Path("out"), workers=1, shard=Shard(1, 4)).run()  # job 1
    Bench(made, Path("out"), workers=1, shard=Shard(6, 6)).run()  # job 6, which fails
    # Job 2 was cut short after two blocks of eight images, and job 3 is at work, of which one block is saved.
    for place, blocks in ((1, 2), (2, 1)):
        begin(tasks[place].job, Path("out", tasks[place].name), blocks)
    with locks.claim(Path("out", tasks[2].name), "purity bench"):
        before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in here.rglob("*")}
        found = list(status.standings(tasks, Path("out")))
        assert [one.state for one in found] == [
            "done", "unfinished", "running", "waiting", "left out", "failed",
        ]  # fmt: skip
        assert [one.images for one in found] == [20, 16, 8, None, None, None]
        holder = found[2].holder
        assert holder is not None
        assert (holder.host, holder.pid, holder.command) == (socket.gethostname(), os.getpid(), "purity bench")
        assert abs((datetime.now(UTC) - datetime.fromisoformat(holder.since)).total_seconds()) < 60
        assert "No data set 'nonesuch'" in str(found[5].note)
        assert cli.run(["bench", "mine.yaml", "-o", "out", "--status"]) == 0
        out, _ = capsys.readouterr()
        assert "6 jobs: 1 done, 1 running, 1 unfinished, 1 failed, 1 waiting, 1 left out." in out
        assert f"{socket.gethostname()} {os.getpid()}" in out
        assert "nowhere is not there" in out
        assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in here.rglob("*")} == before
    # From another folder, with paths that are written otherwise, and with nobody at it any more.
    monkeypatch.chdir(here.parent)
    again = read(here / "mine.yaml").tasks()
    assert [one.state for one in status.standings(again, here / "out")][:4] == [
        "done", "unfinished", "unfinished", "waiting",
    ]  # fmt: skip


def begin(job: Job, folder: Path, blocks: int) -> None:
    """Score some blocks of a job, and no more."""

    def stop(done: int, total: int) -> None:
        if done >= 8 * blocks:
            raise KeyboardInterrupt

    folder.mkdir(parents=True, exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        run.score(run.resolve(job), workers=1, folder=folder, progress=stop)


def test_who_only_looks_keeps_nobody_out() -> None:
    """A look takes a shared lock for an instant; a claim that meets it tries again."""
    Path("out").mkdir()
    Path("out/.lock").touch()
    with Path("out/.lock").open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        taken = fcntl.flock
        tries = []

        def meets(handle: Any, how: int) -> None:
            tries.append(how)
            if len(tries) == 2:
                taken(looking, fcntl.LOCK_UN)
            taken(handle, how)

        fcntl.flock = meets
        try:
            locks.claim(Path("out"), "purity bench").close()
        finally:
            fcntl.flock = taken
    assert len(tries) == 2
    assert locks.holder(Path("out")) is None
    assert locks.holder(Path("nowhere")) is None


def test_an_empty_suite_folder_has_everything_to_do() -> None:
    shown = status.report(status.standings(suite(FOUR).tasks(), Path("out")))
    assert shown.lead == "4 jobs: 4 waiting."
    assert not Path("out").exists()


# Patterns


def test_a_pattern_means_the_networks_that_classify(capsys: pytest.CaptureFixture[str]) -> None:
    text = "defaults: {dataset: cifar10-sample}\nmodels: [{model: 'timm:test_[bnr]*', pretrained: true}, tiny_vgg_10]"
    with logged(logging.INFO) as said:
        chosen = suite(text).expanded()
    names = [f"timm:{name}" for name in timm.list_pretrained("test_[bnr]*")]
    assert [entry.model for entry in chosen.models] == [*sorted(names), "tiny_vgg_10"]
    assert said == []
    listed = suite("defaults: {dataset: cifar10-sample}\nmodels: ['timm:test_resnet.r160_in1k']").tasks()
    assert listed[0].name in [task.name for task in chosen.tasks()]


def test_patterns_that_mean_nothing_are_refused_and_belong_to_models() -> None:
    with pytest.raises(PurityError, match="No model matches 'timm:nonesuch"):
        suite("models: ['timm:nonesuch*']").expanded()
    with pytest.raises(PurityError, match="belong to the models"):
        suite("models: [alexnet]\ndefaults: {pretrained: true}")


def test_a_name_without_signs_is_that_name_alone() -> None:
    tags = {f"timm:{name}" for name in timm.list_pretrained("resnet34.*")}
    assert len(tags) > 3
    every = suite("models: [{model: 'timm:resnet34', pretrained: true}]").expanded()
    assert {entry.model for entry in every.models} == tags
    assert [entry.model for entry in suite("models: ['timm:resnet34']").expanded().models] == ["timm:resnet34"]


def test_weights_without_a_classifier_are_named() -> None:
    text = "models: [{model: 'timm:resnet18*', pretrained: true}, {model: 'timm:resnet50_clip*', pretrained: true}]"
    with logged(logging.INFO) as said:
        chosen = suite(text).expanded()
    found = [*timm.list_pretrained("resnet18*"), *timm.list_pretrained("resnet50_clip*")]
    classes = {f"timm:{name}": getattr(timm.models.get_pretrained_cfg(name), "num_classes", 0) for name in found}
    assert {entry.model for entry in chosen.models} == {name for name, many in classes.items() if many}
    (sentence,) = said
    assert next(name for name, many in classes.items() if not many) in sentence


# docs/cluster.md


def test_the_recipes_for_clusters_are_understood() -> None:
    """All that starts purity on the page parses, and the Kubernetes Job is one: keys as the API's schema has them."""
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    blocks = dict(re.findall(r"^## (\w+).*?\n```(?:text|yaml|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    assert set(blocks) == {"Slurm", "torchrun", "Kubernetes", "submitit"}
    job = yaml.safe_load(blocks["Kubernetes"])
    assert (job["apiVersion"], job["kind"], job["spec"]["completionMode"]) == ("batch/v1", "Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert set(pod) == {"restartPolicy", "terminationGracePeriodSeconds", "containers", "volumes"}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (shell,) = container["args"]
    in_python = next(line for line in blocks["submitit"].splitlines() if line.startswith("command = "))
    compile(blocks["submitit"], "cluster.md", "exec")
    lines = [
        next(line for line in blocks["Slurm"].splitlines() if "purity bench" in line),
        blocks["torchrun"].replace("\\\n", ""),
        shell.replace("$((JOB_COMPLETION_INDEX + 1))", "1"),
        " ".join(ast.literal_eval(in_python.removeprefix("command = "))),
    ]
    for line in lines:
        words = shlex.split(line.replace("$SLURM_CPUS_PER_TASK", "8"))
        options = words[words.index("bench") + 1 :]
        command = cli.cli.get_command(click.Context(cli.cli), "bench")
        assert command is not None
        context = command.make_context("bench", options)
        assert context.params["suite"].parent.name == "configs"
        if context.params["shard"]:
            Shard.parse(context.params["shard"])
