"""What a suite would do, and how far it is: one table of its jobs. Nothing is scored, downloaded or written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from purity_cli import locks, models, run, stages, store
from purity_cli.errors import PurityError, gathered
from purity_cli.locks import Holder
from purity_cli.plan import Job
from purity_cli.report import Report, Table, duration, number, text
from purity_cli.run.ranks import describe as sentence
from purity_cli.run.resolving import resolve_preprocessing
from purity_cli.states import describe
from purity_cli.suite import Task
from purity_cli.suite.bench import Sources, grouped, kept_in

STATES = ("done", "running", "unfinished", "failed", "waiting", "left out")
"""What a job can be: `unfinished` is one that was begun and that nobody is at now."""
PATHS = {"model", "weights", "dataset", "data_dir"}
"""Settings of a Job that are written otherwise where the suite is run from another folder."""


@dataclass(frozen=True)
class JobStatus:
    """What there is of one job. A result counts as done that was asked for in the same words: whether what lies behind
    them is the same is looked at by `look`, and by whoever scores."""

    task: Task
    state: str
    holder: Holder | None = None
    images: int | None = None
    """That are in its result, or saved of it; after `look` those that it has."""
    seconds: float | None = None
    """That its result took."""
    note: str | None = None
    weights: str | None = None
    """`here` or `missing`; None where no such model is known."""
    pixels: str | None = None
    taps: Sequence[stages.Tap] = ()
    """What it reads; known of any network that can be built, even without weights and images."""


def standings(tasks: Sequence[Task], folder: Path) -> list[JobStatus]:
    """Every job of a suite, in its order; of one that is at work without locks nobody can tell that it is."""
    results = _finished(tasks, folder)
    return [_standing(task, folder / task.name, results.get(task.name)) for task in tasks]


def _standing(task: Task, place: Path, result: Mapping[str, Any] | None) -> JobStatus:
    with suppress(OSError, ImportError):
        if holder := locks.holder(place):
            return JobStatus(task, "running", holder, _saved(place))
    if result:
        return JobStatus(task, "done", None, result["n_images"], result["provenance"]["seconds"])
    if (place / store.FAILED).exists():
        return JobStatus(task, "failed", note=_why(place / store.FAILED))
    if task.absent:
        return JobStatus(task, "left out", note=f"{task.absent} is not there")
    saved = _saved(place)
    return JobStatus(task, "waiting" if saved is None else "unfinished", None, saved)


def _finished(tasks: Sequence[Task], folder: Path) -> dict[str, Mapping[str, Any]]:
    """What the results of a suite say of themselves, by the names of their jobs, in whichever folders they lie."""
    found: dict[str, Mapping[str, Any]] = {}
    names = {task.job.key(): task.name for task in tasks}
    jobs = {task.name: task.job.model_dump(exclude=PATHS) for task in tasks}
    for path in sorted(folder.glob(f"*/{store.STATES}")):
        with suppress(PurityError, FileNotFoundError, KeyError, TypeError):
            about = describe(path)
            job = Job.of(**about["job"])
            own = job.model_dump(exclude=PATHS) == jobs.get(path.parent.name)
            name = path.parent.name if own else names.get(job.key())
            if name:
                found[name] = about["result"]
    return found


def _saved(place: Path) -> int | None:
    """Images of which an unfinished job is kept, as far as its files say so; None where there is none."""
    found = None
    for path in place.glob(store.PARTIAL):
        with suppress(PurityError, FileNotFoundError, KeyError, TypeError):
            heading = describe(path)["states"]
            found = (found or 0) + len(heading["images"]) * heading["block_size"]
    return found


def _why(path: Path) -> str:
    try:
        record = json.loads(path.read_text())
        return f"{record['error']} ({record['when']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "failed"


def look(tasks: Sequence[Task], folder: Path) -> list[JobStatus]:
    """As `standings`, in the order in which the jobs would run, after a look at every network and data set."""
    sources, found = Sources(), standings(tasks, folder)
    with gathered(len(tasks)):
        return [_look(found[place], folder, sources) for place in grouped(tasks)]


def _look(job: JobStatus, folder: Path, sources: Sources) -> JobStatus:
    asked = job.task.job
    if job.task.absent:
        return replace(job, taps=_taps(asked))
    weights = None
    try:
        preview = models.preview(asked.model, asked.weights)
        weights = "here" if preview.weights_here else "missing"
        # The stages of a network do not depend on its weights.
        plan = run.resolve(
            asked if preview.weights_here else asked.model_copy(update={"weights": "none"}), source=sources.open(asked)
        )
        pixels = resolve_preprocessing(asked, preview.preprocessing).describe().partition(", mean")[0]
        own = run.stored(folder / job.task.name, plan)[0] is not None
        done = preview.weights_here and (own or kept_in(folder, job.task, plan) is not None)
    except Exception as error:  # anything can go wrong in a user's network
        return replace(job, weights=weights, taps=_taps(asked), note=sentence(error))
    state = "done" if done else "waiting" if job.state == "done" else job.state
    return replace(job, state=state, weights=weights, pixels=pixels, taps=plan.taps, images=len(plan.selection))


def _taps(job: Job) -> Sequence[stages.Tap]:
    """The layers of a Job without its weights and images, at the network's own size; none where that cannot be told."""
    try:
        network = models.load(job.model, "none", headless=True)
        size = resolve_preprocessing(job, network.preprocessing).crop or network.input_size
        return stages.resolve(network.module, network.source, network.name, job.layers, size)
    except Exception:  # the job itself will say what is wrong
        return ()


def report(jobs: Sequence[JobStatus], now: datetime | None = None) -> Report:
    """The jobs as a table, and above it how many are what."""
    rows = [
        {
            "job": job.task.name,
            "state": job.state,
            "by": f"{job.holder.host} {job.holder.pid}" if job.holder else None,
            "since": _ago(job.holder.since, now or datetime.now(UTC)) if job.holder else None,
            "images": job.images,
            "seconds": job.seconds,
            "weights": job.weights,
            "pixels": job.pixels,
            "layers": [f"{tap.name if tap.stage else ''} {tap.module}".strip() for tap in job.taps] or None,
            "note": job.note,
        }
        for job in jobs
    ]
    columns = [
        text("job", fold=True), text("state"), text("by", "host and process", fold=True), text("since"),
        number("images", digits=None), number("seconds", digits=0, drop=1), text("weights"),
        text("pixels", fold=True), text("layers", fold=True), text("note", fold=True),
    ]  # fmt: skip
    said = [column for column in columns if any(row[column.key] is not None for row in rows)]
    counts = {state: sum(job.state == state for job in jobs) for state in STATES}
    amounts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    missing = any(job.weights == "missing" for job in jobs)
    notes = ["Weights that are missing are downloaded when their job begins, if there is a connection."]
    lead = f"{len(jobs)} job{'' if len(jobs) == 1 else 's'}: {amounts}."
    return Report([Table("jobs", said, rows)], notes if missing else [], lead=lead)


def _ago(since: str, now: datetime) -> str | None:
    with suppress(ValueError):
        seconds = (now - datetime.fromisoformat(since)).total_seconds()
        return duration(max(0.0, seconds))
    return None
