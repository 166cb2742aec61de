"""`purity bench`: many models over the same images, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from purity_cli.cli import console, options, progress
from purity_cli.cli.watch import Watch, duration, rate

if TYPE_CHECKING:
    from purity_cli.run.ranks import Ranks
    from purity_cli.suite import Suite
    from purity_cli.suite.bench import Outcome
    from purity_cli.suite.compare import Column

FAILED_JOBS, INTERRUPTED = 3, 130


@click.command("bench")
@click.argument("suite", metavar="SUITE.yaml", type=click.Path(dir_okay=False, path_type=Path))
@options.output_option("Folder of the tables, with one inside for each job.  [default: results/SUITE]")
@click.option("--data-dir", metavar="DIR", help="Where the named data sets lie, instead of where the suite says.")
@click.option("--fresh", is_flag=True, help="Score everything again, instead of keeping what is finished.")
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
    stop the others; the exit code is then 3. `torchrun --nproc-per-node N -m purity_cli bench` shares each job among
    N processes.
    """
    from purity_cli.run import ranks as several
    from purity_cli.suite import compare, read

    chosen = read(suite)
    if data_dir is not None:
        chosen = chosen.moved(data_dir)
    if chosen.reference:
        compare.reference(chosen.reference)  # says now what would be wrong with it after hours
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
    from purity_cli.suite import bench, compare

    name = click.get_current_context().find_root().obj
    if ranks.first:
        progress.note(f"Preparing the suite {suite.name}: its images, what is finished, and what each network costs.")
    try:
        with Watch() as watch:
            outcomes = bench.Bench(
                suite, folder, workers=workers, cache=cache, fresh=fresh, ranks=ranks, watch=watch,
                warn=progress.warn, say=progress.note, command=name,
            ).run()  # fmt: skip
        columns = compare.columns([(outcome.task.job, outcome.result, outcome.error) for outcome in outcomes])
        ranks.together(lambda: compare.write(suite, columns, folder) if ranks.first else None)
    except KeyboardInterrupt:
        if ranks.first:
            again = "without --fresh " if fresh else ""
            click.echo(f"Interrupted. The same command {again}goes on where this stopped.", err=True)
        return INTERRUPTED
    if ranks.first:
        show(suite, outcomes, columns)
        _warn_of_bias(suite, columns)
        click.echo(f"Wrote {folder}", err=True)
    return FAILED_JOBS if any(outcome.status == "failed" for outcome in outcomes) else 0


def show(suite: Suite, outcomes: Sequence[Outcome], columns: Sequence[Column]) -> None:
    """Print what became of the jobs, the table, and the comparison."""
    import pandas as pd

    from purity_cli.suite import compare

    rows = []
    for outcome in outcomes:
        result = outcome.result
        record = result.provenance if result else {}
        rows.append(
            {
                "job": outcome.task.name,
                "": outcome.status,
                "images": f"{result.n_images:,}" if result else "",
                "images/s": rate(record["images_per_second"]) if result else "",
                "time": duration(record["seconds"]) if result else "",
                "top-1": f"{result.top1:.2f}" if result and result.top1 is not None else "",
                "note": outcome.error or "",
            }
        )
    console.show(console.table(pd.DataFrame(rows), left=("job", "", "note")))
    paper = compare.reference(suite.reference) if suite.reference else None
    numbers = compare.table(suite, columns, paper)
    console.show(console.table(compare.table_text(numbers, columns), left=(str(numbers.index.name),)))
    if paper is None:
        return
    compared = compare.compare(suite, columns, paper)
    if len(compared):
        console.show(console.table(compare.compared_text(compared, columns), left=("model", "cell")))
        console.show(console.table(compare.summary_text(compare.summary(compared)), left=("cells",)))
    for sentence in compare.unmatched(columns, paper):
        click.echo(sentence)


def _warn_of_bias(suite: Suite, columns: Sequence[Column]) -> None:
    from purity_cli import tables

    low = []
    for column in columns:
        if column.result:
            rows = tables.starved(tables.at(tables.frame([column.result]), suite.threshold))
            layers = ", ".join(tables.labels(rows[rows["activations"] > 0]))
            low += [f"{layers} of {column.name}"] if layers else []
    if low:
        progress.warn(f"F is biased low in {'; '.join(low)}, where N < {tables.ENOUGH} c: score more images.")


def _forecast(suite: Suite, folder: Path, cache: Path | None) -> int:
    import pandas as pd

    from purity_cli.cache import size_text
    from purity_cli.suite import outlook

    rows, images, size, failing = [], 0, 0, 0
    for job in outlook.forecast(suite, folder, cache, progress.warn):
        plan = job.plan
        failing += job.plan is None and job.task.absent is None
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
