"""How far a suite is, and who is at it, from what lies in its folder; no data set or network is opened, and nothing
written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from purity_cli import locks, store
from purity_cli.errors import PurityError
from purity_cli.locks import Holder
from purity_cli.plan import Job
from purity_cli.report import Report, Table, duration, number, text
from purity_cli.states import describe
from purity_cli.suite import Task, costs
from purity_cli.suite.outlook import images_of, wanted

STATES = ("done", "running", "unfinished", "failed", "waiting", "left out")
"""What a job can be: `unfinished` is one that was begun and that nobody is at now."""


@dataclass(frozen=True)
class JobStatus:
    """What there is of one job. A result counts as done that was asked for in the same words: whether what lies behind
    them is the same is looked at by whoever scores."""

    task: Task
    state: str
    holder: Holder | None = None
    images: int | None = None
    """That are in its result, or saved of it."""
    seconds: float | None = None
    """That its result took."""
    error: str | None = None


PATHS = {"model", "weights", "dataset", "data_dir"}
"""Settings of a Job that are written otherwise where the suite is run from another folder."""


def finished(tasks: list[Task], folder: Path) -> dict[str, Mapping[str, Any]]:
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


def standings(tasks: list[Task], folder: Path) -> Iterator[JobStatus]:
    """Every job of a suite, in its order; of one that is at work without locks nobody can tell that it is."""
    results = finished(tasks, folder)
    for task in tasks:
        place = folder / task.name
        holder, result = None, results.get(task.name)
        with suppress(OSError, ImportError):
            holder = locks.holder(place)
        if holder:
            yield JobStatus(task, "running", holder, _saved(place))
        elif result:
            record = result["provenance"]
            yield JobStatus(task, "done", None, result["n_images"], record["seconds"])
        elif (place / store.FAILED).exists():
            yield JobStatus(task, "failed", error=_why(place / store.FAILED))
        elif task.absent:
            yield JobStatus(task, "left out", error=f"{task.absent} is not there")
        else:
            saved = _saved(place)
            yield JobStatus(task, "waiting" if saved is None else "unfinished", None, saved)


def _saved(place: Path) -> int | None:
    """Images of which an unfinished job is kept, as far as its files say so; None where there is none."""
    found = None
    for path in place.glob(store.PARTIAL):
        with suppress(PurityError, FileNotFoundError, KeyError, TypeError):
            about = describe(path)
            found = (found or 0) + len(about["images"]) * about["identity"]["images to a pass"]
    return found


def _why(path: Path) -> str:
    try:
        record = json.loads(path.read_text())
        return f"{record['error']} ({record['when']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "failed"


def report(tasks: list[Task], folder: Path, now: datetime | None = None) -> Report:
    """The standings as a table, and above it how many are what, and how long the rest may take."""
    found = list(standings(tasks, folder))
    rows = [
        {
            "job": one.task.name,
            "state": one.state,
            "by": f"{one.holder.host} {one.holder.pid}" if one.holder else None,
            "since": _ago(one.holder.since, now or datetime.now(UTC)) if one.holder else None,
            "images": one.images,
            "seconds": one.seconds,
            "note": one.error,
        }
        for one in found
    ]
    columns = [
        text("job", fold=True), text("state"), text("by", "host and process", fold=True), text("since"),
        number("images", digits=None), number("seconds", digits=0, drop=1), text("note", fold=True),
    ]  # fmt: skip
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    amounts = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lead = f"{len(found)} job{'' if len(found) == 1 else 's'}: {amounts}.{_outlook(found)}"
    return Report([Table("status", columns, rows)], lead=lead)


def _ago(since: str, now: datetime) -> str | None:
    with suppress(ValueError):
        seconds = (now - datetime.fromisoformat(since)).total_seconds()
        return duration(max(0.0, seconds))
    return None


def _outlook(found: list[JobStatus]) -> str:
    """How long the rest may take, by what the finished ones took."""
    done = [one for one in found if one.state == "done" and one.seconds]
    rest = [one for one in found if one.state in ("running", "unfinished", "waiting")]
    if not done or not rest:
        return ""
    weights = {one.task.name: _weight(one.task.job) for one in (*done, *rest)}
    if not all(weights.values()):
        weights = dict.fromkeys(weights, 1.0)
    speed = sum(one.seconds or 0 for one in done) / sum(weights[one.task.name] or 0 for one in done)
    left = sum((weights[one.task.name] or 0) * (1 - _part(one, done)) for one in rest)
    running = sum(one.state == "running" for one in found)
    by = f"the {running} that are at it" if running > 1 else "one process"
    return f" About {duration(left * speed / max(1, running))} more for {by}, as long as the finished ones took."


def _weight(job: Job) -> float | None:
    """What an image costs the job's network, where that was found before."""
    pixels = None if ".py" in job.model else wanted(job)
    found = costs.known(job.model, *pixels.crop) if pixels and pixels.crop else None
    return found.gmacs if found else None


def _part(one: JobStatus, done: list[JobStatus]) -> float:
    """How much of an unfinished job is saved, by the images of a finished one on the same data."""
    whole = next((other.images for other in done if images_of(other.task.job) == images_of(one.task.job)), None)
    return min(1.0, (one.images or 0) / whole) if whole else 0.0
