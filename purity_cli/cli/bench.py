"""`purity bench`: many models over the same images, resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import console, options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.report import Report
    from purity_cli.run.ranks import Ranks
    from purity_cli.suite import Suite
    from purity_cli.suite.bench import JobOutcome

FAILED_JOBS = 3


@click.command("bench")
@click.argument("suite", metavar="SUITE.yaml", type=click.Path(dir_okay=False, path_type=Path))
@options.output_option("Folder of the tables, with one inside for each job.  [default: results/SUITE]")
@click.option("--data-dir", metavar="DIR", help="Where the named data sets lie, instead of where the suite says.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE",
    help="A setting, written as in the suite: it holds for every job, as limit=100; again for more.",
)  # fmt: skip
@options.rate_option
@options.fresh_option
@click.option("--dry-run", is_flag=True, help="Only show what would run, and what is missing for it.")
@click.option(
    "--status", "show_status", is_flag=True,
    help="Only show how far the suite is, and who is at it; works while it runs.",
)  # fmt: skip
@click.option(
    "--shard", metavar="I/N", help="Only every N-th job from the I-th, for file systems without locks.  [default: a "
    "Slurm array task's own, else all]",
)  # fmt: skip
@options.workers_option
@options.cache_option("auto")
@options.log_option
@options.progress_option
@options.format_option("What is printed; the files are always written.")
def command(
    suite: Path, output: Path | None, data_dir: str | None, changes: tuple[str, ...], rate: float,
    dry_run: bool, show_status: bool, shard: str | None, layout: str, **how: Any,
) -> None:  # fmt: skip
    """Score the models of a suite, and write their table beside the paper's, and the page of `purity report`.

    Started again, this keeps the jobs that are finished and continues the one that is not. Jobs that fail do not stop
    the others; the exit code is then 3. Started several times at once, also on several machines, these processes share
    the jobs; `torchrun --nproc-per-node N -m purity_cli bench` shares each job among N processes. Paths in the suite
    are relative to its file. docs/cluster.md has recipes for clusters.

    A suite names `models`, and may give `defaults` for all of them; `datasets` and `settings`, each of which every
    model is scored with; the `threshold` and `rate` at which the tables are read; and a `reference`: table1, table2 or
    a CSV file like theirs. The settings are the options of `purity score`, with _ in place of -:

    \b
    defaults: {dataset: photos, per_class: 20}
    models:
      - resnet18
      - {model: net.py:make_net, weights: w.pth, mean: [.5, .5, .5], std: [.2, .2, .2]}
    """
    from purity_cli import paper
    from purity_cli.run import ranks as several
    from purity_cli.suite import bench, read, status

    if shard and (dry_run or show_status):
        raise click.UsageError("--dry-run and --status are of the whole suite: leave out --shard.")
    share = bench.Shard.parse(shard) if shard else bench.Shard.of_this_task()
    chosen = read(suite).changed(changes)
    if options.is_given("rate"):
        chosen = chosen.model_copy(update={"rate": rate})
    if data_dir is not None:
        chosen = chosen.moved(data_dir)
    if chosen.reference:
        paper.reference(chosen.reference)  # says now what would be wrong with it after hours
    folder = output or Path("results", chosen.name)
    chosen = chosen.expanded()
    code = 0
    with several.joined() as ranks:
        if not (dry_run or show_status):
            code = _run(chosen, folder, shard=share, ranks=ranks, layout=layout, **how)
        elif ranks.first:
            jobs = (status.look if dry_run else status.standings)(chosen.tasks(), folder)
            console.show(status.report(jobs), layout)
            hopeless = [job for job in jobs if not job.taps and job.task.absent is None]
            code = FAILED_JOBS if dry_run and hopeless else 0
    if code:
        raise click.exceptions.Exit(code)


def _run(suite: Suite, folder: Path, ranks: Ranks, trackers: tuple[str, ...], layout: str, **how: Any) -> int:
    """Run the suite's jobs, write and print its tables; the exit code."""
    from purity_cli import loggers
    from purity_cli.suite import bench

    if how["shard"]:
        log.info(f"Shard {how['shard']} of the jobs; --shard 1/1 takes all.")
    for target in trackers:
        loggers.check(target)  # says now what is missing
    outcomes: list[JobOutcome] = []
    tables: dict[str, Report] = {}

    def finish() -> None:
        with runs.closing(outcomes) as finished:
            outcomes[:] = finished
            tables.update(reports(suite, outcomes))
            write(suite, outcomes, tables, folder)
            for one in outcomes:
                if one.result:
                    loggers.log_results(trackers, one.task.name, {0: one.folder}, suite.threshold)

    with progress.bars(ranks.first) as bars:
        command_line = click.get_current_context().find_root().obj
        watch = progress.SuiteProgress(bars)
        runs = bench.Bench(suite, folder, ranks=ranks, watch=watch, command=command_line, **how)
        outcomes += runs.run()
    ranks.on_first(finish)
    if ranks.first:
        for report in (ran(outcomes), *tables.values()):
            console.show(report, layout)
    log.info(f"Wrote {folder}")
    return FAILED_JOBS if any(outcome.status == "failed" for outcome in outcomes) else 0


def reports(suite: Suite, outcomes: Sequence[JobOutcome]) -> dict[str, Report]:
    """The suite's table, and its comparison with a reference if it names one, by the names of their files."""
    from purity_cli import paper
    from purity_cli.views import suites

    columns = suites.columns([(outcome.task.job, outcome.result, outcome.error) for outcome in outcomes])
    how = (suite.threshold, suite.layout, suite.rate)
    if not suite.reference:
        return {suite.name: suites.suite(columns, *how)}
    values = paper.reference(suite.reference)
    return {
        suite.name: suites.suite(columns, *how, expected=paper.expected(columns, values)),
        f"{suite.name}_comparison": paper.comparison(columns, suite.reference, values, suite.threshold),
    }


def write(suite: Suite, outcomes: Sequence[JobOutcome], tables: Mapping[str, Report], folder: Path) -> None:
    """A Markdown and a CSV file for each table, and the page of `purity report`."""
    from purity_cli import paper, store
    from purity_cli.report import FORMATS
    from purity_cli.views.diff import StoredResult
    from purity_cli.views.page import page

    for name, table in tables.items():
        for ending in ("md", "csv"):
            store.write_text(folder / f"{name}.{ending}", FORMATS[ending](table))
    found = [StoredResult(outcome.folder, outcome.result) for outcome in outcomes if outcome.result]
    failures = [f"{outcome.task.name}: {outcome.error}" for outcome in outcomes if outcome.status == "failed"]
    if found:
        references = [suite.reference] if suite.reference else None
        beside = paper.beside([one.result for one in found], suite.threshold, references)
        whole = page(found, suite.threshold, suite.rate, beside=beside, failures=failures)
        store.write_text(folder / "report.html", FORMATS["html"](whole))


def ran(outcomes: Sequence[JobOutcome]) -> Report:
    """What became of the jobs."""
    from purity_cli.report import Report, Table, duration, number, text

    rows = []
    for outcome in outcomes:
        row: dict[str, Any] = {"job": outcome.task.name, "status": outcome.status, "note": outcome.error}
        if outcome.result:
            record = outcome.result.provenance
            row |= {
                "images": outcome.result.n_images,
                "speed": progress.speed(record["images_per_second"]),
                "time": duration(record["seconds"]),
                "top1": outcome.result.top1,
            }
        rows.append(row)
    columns = [
        text("job", fold=True), text("status"), number("images", digits=None), number("speed", "images/s", drop=1),
        number("time", drop=1), number("top1", "top-1", 2), text("note", fold=True),
    ]  # fmt: skip
    return Report([Table("jobs", columns, rows)])
