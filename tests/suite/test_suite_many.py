"""One suite on many machines: shards, who holds what, and every network that a pattern means."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import re
import shlex
import socket
from datetime import UTC, datetime
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import timm
import torch
import yaml
from torch import nn

from purity_cli import cli, locks, run
from purity_cli.errors import PurityError
from purity_cli.models import listing
from purity_cli.plan import Job
from purity_cli.suite import Suite, bench, costs, read, status, survey
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
    costs._kept.cache_clear()
    costs.operations.cache_clear()
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
        bench.parse_shard(text)


@pytest.mark.parametrize(
    ("task", "numbers", "expected"),
    [
        ("1", "1-4", Shard(1, 4)), ("4", "1-4", Shard(4, 4)), ("0", "0-3", Shard(1, 4)), ("3", "0-3", Shard(4, 4)),
        ("17", "10-19", Shard(8, 10)), ("7", "3-7:2", Shard(3, 3)), ("5", "5-5", Shard(1, 1)), (None, "1-4", None),
    ],
)  # fmt: skip
def test_a_task_of_a_slurm_array_has_its_shard(
    task: str | None, numbers: str, expected: Shard | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_array(monkeypatch, task, numbers)
    assert bench.shard_of_this_task() == expected


def set_array(monkeypatch: pytest.MonkeyPatch, task: str | None, numbers: str) -> None:
    """What slurmd 22.05 sets in such a task."""
    least, _, rest = numbers.partition("-")
    most, _, step = rest.partition(":")
    count = len(range(int(least), int(most) + 1, int(step or 1)))
    for name, value in (("ID", task), ("COUNT", count), ("MIN", least), ("MAX", most), ("STEP", step or 1)):
        if value is not None:
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_an_array_with_gaps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_array(monkeypatch, "3", "1-7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")  # --array=1,3,7
    with pytest.raises(PurityError, match=r"task 3 of a Slurm array of 3 .* not evenly spaced: give --shard I/N"):
        bench.shard_of_this_task()


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


def test_the_command_takes_the_shard_of_its_array_or_the_one_it_is_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite(FOUR)
    set_array(monkeypatch, "11", "10-11")
    assert cli.run(["bench", "mine.yaml", "-o", "out"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:6]] == ["elsewhere", "scored"] * 2
    assert "Shard 2/2 of the jobs, as this is a task of a Slurm array; --shard 1/1 takes all." in err
    assert "[2/2]" in err
    assert cli.run(["bench", "mine.yaml", "-o", "out", "--shard", "1/1"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[1] for line in out.splitlines()[2:6]] == ["scored", "kept"] * 2
    assert "Slurm" not in err
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
    assert "4 done" in status.report(made.tasks(), Path("out")).lead


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
        assert "No data set 'nonesuch'" in str(found[5].error)
        assert cli.run(["bench", "mine.yaml", "-o", "out", "--status"]) == 0
        out, _ = capsys.readouterr()
        assert "6 jobs: 1 done, 1 running, 1 unfinished, 1 failed, 1 waiting, 1 left out. About " in out
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
    shown = status.report(suite(FOUR).tasks(), Path("out"))
    assert shown.lead == "4 jobs: 4 waiting."
    assert not Path("out").exists()


# Patterns


def by_hand(name: str, size: int) -> float:
    """10^9 MACs of every convolution and linear layer of a network, by hooks, as it really runs."""
    total = 0

    def count(module: Any, given: Any, output: Any) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += (
                output.numel() * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            )
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features

    net = timm.create_model(name).eval()
    for module in net.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size))
    return total / 1e9


SURVEY = """
defaults: {dataset: cifar10-sample, limit: 40}
models:
  - {model: "timm:test_[bnrv]*", pretrained: true, below_gmacs: 0.2}
  - {model: tiny_vgg_10, weights: none}
"""


def test_a_pattern_means_the_cnns_below_a_cost(capsys: pytest.CaptureFixture[str]) -> None:
    chosen, left = survey.expanded(suite(SURVEY), 1)
    names = [entry.model for entry in chosen.models]
    expected = {f"timm:{name}": by_hand(name.partition(".")[0], 160) for name in timm.list_pretrained("test_[bnrv]*")}
    cnns = {name for name in expected if "vit" not in name}
    assert left["attention"] == sorted(set(expected) - cnns)
    assert len(left["attention"]) == 3
    assert names == [*sorted(name for name in cnns if expected[name] < 0.2), "tiny_vgg_10"]
    assert left["0.2 GMACs or more"] == sorted(name for name in cnns if expected[name] >= 0.2)
    assert left["0.2 GMACs or more"]
    # Normalised maps and the like are no MACs, and there are no others.
    for name in names[:-1]:
        look = costs.looks([(costs.network(name), 160, 160)])[costs.network(name), 160, 160]
        assert look.gmacs == pytest.approx(expected[name], rel=0.01)
        net = timm.create_model(name.removeprefix("timm:"))
        assert look.parameters == sum(parameter.numel() for parameter in net.parameters())

    # What was found is kept, and all that is told of the suite follows from it, without weights.
    costs._kept.cache_clear()
    assert cli.run(["bench", "mine.yaml", "--dry-run", "--cache", "pixels"]) == 0
    out, err = capsys.readouterr()
    assert "networks are looked at" not in err
    assert "Left out: 3 for attention: timm:test_vit.r160_in1k, " in err
    operations = 2 * 2e9 * 40 * sum(expected[name] for name in names[:-1])
    lead = " ".join(out.split())
    assert f"{len(names)} networks, {40 * len(names)} images in all, " in lead
    assert f"{len(names) - 1} sets of weights are missing, which take " in lead
    assert "decoded pixels" in lead
    told = float(lead.partition("images in all, ")[2].split()[0]) * 1e15
    assert told == pytest.approx(operations, rel=0.2)
    assert not Path("results").exists()
    assert not Path("pixels").exists()


def test_a_survey_runs_and_its_jobs_are_those_of_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "defaults: {dataset: cifar10-sample, limit: 8, weights: none, resize: 40, crop: 32}\nmodels:\n"
    chosen, _ = survey.expanded(suite(text + "  - {model: 'timm:test_byobne*', below_gmacs: 1}\n"), 1)
    listed = suite(text + "  - timm:test_byobnet\n")
    assert [task.name for task in chosen.tasks()] == [task.name for task in listed.tasks()]
    (outcome,) = Bench(chosen, Path("out"), workers=1).run()
    assert outcome.status == "scored", outcome.error


def test_patterns_that_mean_nothing_are_refused() -> None:
    with pytest.raises(PurityError, match=r"leave no model: 3 for attention: timm:test_vit"):
        survey.expanded(suite("models: [{model: 'timm:test_vit*', pretrained: true, below_gmacs: 1}]"), 1)
    with pytest.raises(PurityError, match="No model matches 'timm:nonesuch"):
        survey.expanded(suite("models: ['timm:nonesuch*']"), 1)
    with pytest.raises(PurityError, match="belong to the models"):
        suite("models: [alexnet]\ndefaults: {below_gmacs: 3}")
    with pytest.raises(PurityError, match=r"line 1: models.1.below_gmacs: .*greater than 0"):
        suite("models: [{model: 'timm:*', below_gmacs: 0}]")


def test_a_name_without_signs_is_that_name_alone() -> None:
    tags = {f"timm:{name}" for name in timm.list_pretrained("resnet34.*")}
    assert len(tags) > 3
    assert set(listing.matching("timm:resnet34", pretrained=True)) == tags
    assert listing.matching("timm:resnet34.a1_in1k") == ["timm:resnet34.a1_in1k"]
    assert listing.matching("timm:resnet34") == ["timm:resnet34"]
    assert set(listing.matching("timm:resnet3?")) == {"timm:resnet34"}


def test_weights_without_a_classifier_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "models: [{model: 'timm:resnet18*', pretrained: true}, {model: 'timm:resnet50_clip*', pretrained: true}]"
    chosen, left = survey.expanded(suite(text), 1)
    headless = [name for name, cfg in configurations() if not cfg.num_classes]
    assert headless
    assert {why: sorted(names) for why, names in left.items()} == {"no classifier": sorted(headless)}
    assert {entry.model for entry in chosen.models} == {name for name, cfg in configurations() if cfg.num_classes}


def configurations() -> list[tuple[str, Any]]:
    names = [*timm.list_pretrained("resnet18*"), *timm.list_pretrained("resnet50_clip*")]
    return [(f"timm:{name}", timm.models.get_pretrained_cfg(name)) for name in names]


def test_several_processes_look_at_many_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads stand for them here: each real one takes seconds to start."""
    monkeypatch.setattr(costs, "PARALLEL", 2)
    monkeypatch.setattr("multiprocessing.get_context", lambda kind: SimpleNamespace(Pool=lambda n, *_: ThreadPool(n)))
    wanted = [("bundled:tiny_vgg_10", 32, 32), ("bundled:tiny_vgg", 32, 32)]
    steps: list[tuple[int, int]] = []
    found = costs.looks(wanted, 2, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert all(one.gmacs and one.lacks is None for one in found.values())
    (kept,) = Path("cache/networks").glob("*.json")
    assert len(json.loads(kept.read_text())) == 2


def test_what_a_network_costs_is_taken_from_what_is_kept() -> None:
    name = ("timm:test_resnet", 160, 160)
    gmacs = costs.looks([name])[name].gmacs
    assert gmacs
    costs.operations.cache_clear()
    assert costs.operations("timm:test_resnet.r160_in1k", 160, 160) == pytest.approx(2e9 * gmacs)
    assert costs.operations("timm:test_resnet", 64, 64) < 2e9 * gmacs  # type: ignore[operator]


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
            bench.parse_shard(context.params["shard"])
