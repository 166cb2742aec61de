"""`purity bench`: many models over the same images, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options, progress
from purity_cli.cli.watch import Watch, duration, rate

if TYPE_CHECKING:
    from purity_cli.report import Report
    from purity_cli.run.ranks import Ranks
    from purity_cli.suite import Suite
    from purity_cli.suite.bench import Outcome

FAILED_JOBS, INTERRUPTED = 3, 130


@click.command("bench")
@click.argument("suite", metavar="SUITE.yaml", type=click.Path(dir_okay=False, path_type=Path))
@options.output_option("Folder of the tables, with one inside for each job.  [default: results/SUITE]")
@click.option("--data-dir", metavar="DIR", help="Where the named data sets lie, instead of where the suite says.")
@options.fresh_option
@click.option("--dry-run", is_flag=True, help="Only show what would run, and what is missing for it.")
@options.workers_option
@options.cache_option("auto")
def command(
    suite: Path,
    output: Path | None,
    data_dir: str | None,
    fresh: bool,
    dry_run: bool,
    workers: int,
    cache: Path | None,
) -> None:
    """Score the models of a suite, and write their table beside the paper's.

    Started again, this keeps the jobs that are finished and goes on in the one that is not. Jobs that fail do not
    stop the others; the exit code is then 3. Started several times at once, also on several machines, these share the
    jobs; `torchrun --nproc-per-node N -m purity_cli bench` shares each job among N processes. Paths in the suite are
    relative to its file.
    """
    from purity_cli.run import ranks as several
    from purity_cli.suite import read
    from purity_cli.views import comparison

    chosen = read(suite)
    if data_dir is not None:
        chosen = chosen.moved(data_dir)
    if chosen.reference:
        comparison.reference(chosen.reference)  # says now what would be wrong with it after hours
    folder = output or Path("results", chosen.name)
    with several.joined() as ranks:
        code = 0
        if not dry_run:
            code = _run(chosen, folder, fresh, workers, cache, ranks)
        elif ranks.first:
            code = _forecast(chosen, folder, cache)
    if code:
        raise click.exceptions.Exit(code)


def _run(suite: Suite, folder: Path, fresh: bool, workers: int, cache: Path | None, ranks: Ranks) -> int:
    from purity_cli.suite import bench

    name = click.get_current_context().find_root().obj
    if ranks.first:
        progress.note(f"Preparing the suite {suite.name}: its images, what is finished, and what each network costs.")
    outcomes: list[Outcome] = []
    views: dict[str, Report] = {}

    def finish() -> None:
        if ranks.first:
            with runs.closing(outcomes) as finished:
                outcomes[:] = finished
                views.update(reports(suite, outcomes))
                write(views, folder)

    try:
        with Watch() as watch:
            runs = bench.Bench(
                suite, folder, workers=workers, cache=cache, fresh=fresh, ranks=ranks, watch=watch,
                warn=progress.warn, say=progress.note, command=name,
            )  # fmt: skip
            outcomes += runs.run()
        ranks.together(finish)
    except KeyboardInterrupt:
        if ranks.first:
            again = "without --fresh " if fresh else ""
            progress.note(f"Interrupted. The same command {again}goes on where this stopped.")
        return INTERRUPTED
    if ranks.first:
        console.show(ran(outcomes))
        for report in views.values():
            console.show(report)
        progress.note(f"Wrote {folder}")
    return FAILED_JOBS if any(outcome.status == "failed" for outcome in outcomes) else 0


def reports(suite: Suite, outcomes: Sequence[Outcome]) -> dict[str, Report]:
    """The suite's table, and its comparison with a reference if it names one, by the names of their files."""
    from purity_cli.views import comparison

    found = comparison.columns([(outcome.task.job, outcome.result, outcome.error) for outcome in outcomes])
    known = comparison.reference(suite.reference) if suite.reference else []
    views = {suite.name: comparison.suite(found, suite.threshold, suite.layout, known)}
    if suite.reference:
        beside = comparison.comparison(found, suite.reference, known, suite.threshold)
        views[f"{suite.name}_comparison"] = beside
    return views


def write(views: Mapping[str, Report], folder: Path) -> None:
    """A page and a CSV file for each report."""
    from purity_cli import store
    from purity_cli.report import FORMATS

    for name, report in views.items():
        for ending in ("md", "csv") if report.tables else ("md",):
            store.write_text(folder / f"{name}.{ending}", FORMATS[ending](report))


def ran(outcomes: Sequence[Outcome]) -> Report:
    """What became of the jobs."""
    from purity_cli.report import Report, Table, number, text

    rows = []
    for outcome in outcomes:
        result = outcome.result
        record = result.provenance if result else {}
        rows.append(
            {
                "job": outcome.task.name,
                "status": outcome.status,
                "images": result.n_images if result else None,
                "speed": rate(record["images_per_second"]) if result else None,
                "time": duration(record["seconds"]) if result else None,
                "top1": result.top1 if result else None,
                "note": outcome.error,
            }
        )
    columns = [
        text("job", fold=True), text("status"), number("images", digits=None), number("speed", "images/s", drop=1),
        number("time", drop=1), number("top1", "top-1", 2), text("note", fold=True),
    ]  # fmt: skip
    return Report([Table("jobs", columns, rows)])


def _forecast(suite: Suite, folder: Path, cache: Path | None) -> int:
    import pandas as pd

    from purity_cli.cache import size_text
    from purity_cli.suite import outlook

    rows, images, size, failing = [], 0, 0, 0
    for job in outlook.forecast(suite, folder, cache):
        plan = job.plan
        failing += not job.taps and job.task.absent is None
        images += len(plan.selection) if plan and not job.finished else 0
        size += 0 if job.finished else job.to_cache
        rows.append(
            {
                "job": job.task.name,
                "model": f"{plan.network.source}:{plan.network.name}" if plan else job.task.job.model,
                "weights": {None: "", True: "here", False: "missing"}[job.weights_here],
                "images": f"{len(plan.selection):,}" if plan else "",
                "pixels": plan.preprocessing.describe().partition(", mean")[0] if plan else "",
                "layers": ", ".join(f"{tap.name if tap.stage else ''} {tap.module}".strip() for tap in job.taps),
                "note": job.problem or ("finished" if job.finished else ""),
            }
        )
    frame = pd.DataFrame(rows)
    console.show(console.table(frame, left=("job", "model", "weights", "pixels", "layers", "note")))
    pixels = f"; their pixels add {size_text(size)} to the cache in {cache}" if size else ""
    click.echo(f"{images:,} images to score in {len(rows)} jobs{pixels}. Nothing was scored.")
    if "missing" in set(frame["weights"]):
        click.echo("Weights that are missing are downloaded when their job begins, if there is a connection.")
    return FAILED_JOBS if failing else 0
