"""Whether a device and a precision change what is counted: against the CPU in fp32, cell by cell."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from purity_cli import run
from purity_cli.plan import DEFAULT_GRID, Job
from purity_cli.stats import feature_purity
from tests.gpu_check import out_of_memory
from tests.gpu_check.budget import Budget
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import Settings
from tests.gpu_check.subjects import Subject, make_engine, of_plan, pictures, random_job, real_jobs, split

COLUMNS = (
    "network", "weights", "images", "reference", "precision", "largest_df", "largest_df_at", "largest_df_fed",
    "nan_in_one", "firings", "differing", "differing_share", "other_batch_share", "two_runs_equal",
)  # fmt: skip
PRECISIONS = (
    "reference", "precision", "networks", "largest_df", "largest_df_in", "largest_df_fed", "nan_in_one",
    "differing_share", "other_batch_share", "two_runs_equal",
)  # fmt: skip
CELLS = (
    "network", "weights", "images", "reference", "precision", "stage", "layer", "channels", "threshold",
    "f_reference", "f", "df", "firings_reference", "firings", "differing",
)  # fmt: skip
GROUPS = 64
"""Groups of images that are compared one by one. Up to 64 images are a group each, and `differing` is exact; with more
it is a lower bound, for opposite differences within a group cancel."""
FED = 5
"""Firings per channel from which F is not starved, as `purity score` warns."""
BATCH, OTHER_BATCH = 64, 7

Counts = dict[str, NDArray[np.int64]]
"""(GROUPS, T, c) by module."""


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `correctness`, with a row per network and precision, `correctness_cells`, with one per stage and threshold,
    `precisions`, with the worst of all networks, and `out_of_memory`.
    """
    networks = Sheet(settings, "correctness", COLUMNS, about, quiet=True)
    cells = Sheet(settings, "correctness_cells", CELLS, about, quiet=True)
    memory = Sheet(settings, "out_of_memory", out_of_memory.COLUMNS, about)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        dataset = f"folder:{pictures(Path(folder), settings)}"

        def random(name: str, limit: int) -> Job:
            return random_job(name, dataset, settings, device="cpu", limit=limit)

        cpu = torch.device("cpu")
        checks = [Check(settings, job, cpu, cells) for job in real_jobs(settings)]
        checks += [Check(settings, random(name, settings.compared), cpu, cells) for name in settings.networks]
        # Many images, which the CPU would take hours for, so that no F hangs on a few firings.
        checks += [Check(settings, random(name, settings.wide), settings.device, cells) for name in settings.networks]
        memory.fill(out_of_memory.planned(settings, budget))
        for check in checks:
            networks.fill(check.planned(budget))
            cells.write()
    worst = Sheet(settings, "precisions", PRECISIONS, about)
    for row in worst_of(networks.rows):
        worst.add(**row)
    return [networks, cells, memory, worst]


class Check:
    """One network, in every precision, against fp32 on `reference`."""

    def __init__(self, settings: Settings, job: Job, reference: torch.device, cells: Sheet) -> None:
        self.settings, self.job, self.reference, self.cells = settings, job, reference, cells

    def planned(self, budget: Budget) -> Iterator[Planned]:
        """A row for each precision."""
        about = f"{self.reference.type} fp32"
        for precision in self.settings.precisions:
            names = {"network": self.job.model.rpartition(":")[2], "reference": about, "precision": precision}
            yield names, partial(self.compare, precision, budget)
        # The network and its pictures are let go of with this object's attributes, before the next one's are loaded.
        self.__dict__.pop("subject", None)
        self.__dict__.pop("expected", None)

    @cached_property
    def subject(self) -> Subject:
        return of_plan(run.resolve(self.job), self.settings.workers)

    @cached_property
    def expected(self) -> Counts:
        return counts(self.subject, self.reference, "fp32", BATCH)

    def compare(self, precision: str, budget: Budget) -> Cells:
        """The row of one precision; its cells go to `cells`."""
        budget.check()
        subject, device = self.subject, self.settings.device
        expected = self.expected
        budget.check()
        found, again, other = (counts(subject, device, precision, batch) for batch in (BATCH, BATCH, OTHER_BATCH))
        names = {
            "network": subject.name,
            "weights": subject.weights,
            "images": subject.images,
            "reference": f"{self.reference.type} fp32",
            "precision": precision,
        }
        rows = list(compare(subject, expected, found))
        for row in rows:
            self.cells.add(**names, **row)
        return {
            **names,
            **summary(rows),
            "other_batch_share": share(found, other),
            "two_runs_equal": all(np.array_equal(found[layer], again[layer]) for layer in found),
        }


def counts(subject: Subject, device: torch.device, precision: str, batch: int) -> Counts:
    """Firings of all layers, by groups of images."""
    engine = make_engine(
        subject.net,
        list(subject.layers),
        device,
        precision=precision,
        batch_size=batch,
        preprocessing=subject.preprocessing,
        groups=GROUPS,
    )
    with engine:
        engine.run(split(subject.block, batch))
    return {layer: engine.counts(layer).numpy() for layer in subject.layers}


def compare(subject: Subject, expected: Counts, found: Counts) -> Iterator[Cells]:
    """Every stage at every threshold."""
    for layer, stage in subject.layers.items():
        totals = [counts.sum(0) for counts in (expected[layer], found[layer])]
        fs = [feature_purity(total) for total in totals]
        differing = np.abs(expected[layer] - found[layer]).sum((0, 2))
        for t, threshold in enumerate(DEFAULT_GRID):
            before, after = (float(f[t]) for f in fs)
            yield {
                "stage": stage,
                "layer": layer,
                "channels": totals[0].shape[1],
                "threshold": threshold,
                "f_reference": before,
                "f": after,
                "df": abs(after - before),
                "firings_reference": int(totals[0][t].sum()),
                "firings": int(totals[1][t].sum()),
                "differing": int(differing[t]),
            }


def summary(rows: list[Cells]) -> Cells:
    """The largest difference in F, of all cells and of those with enough firings, and all firings that differ."""
    known = [row for row in rows if not math.isnan(row["df"])]
    fed = [row["df"] for row in known if row["firings_reference"] >= FED * row["channels"]]
    worst = max(known, key=lambda row: row["df"], default=None)
    fired, differing = (sum(row[name] for row in rows) for name in ("firings_reference", "differing"))
    return {
        "largest_df": worst["df"] if worst else None,
        "largest_df_at": f"{worst['stage']} at {worst['threshold']:g}" if worst else None,
        "largest_df_fed": max(fed, default=None),
        "nan_in_one": sum(math.isnan(row["f"]) != math.isnan(row["f_reference"]) for row in rows),
        "firings": fired,
        "differing": differing,
        "differing_share": differing / fired if fired else None,
    }


def worst_of(rows: list[Cells]) -> Iterator[Cells]:
    """The rows of networks, in one for each reference and precision."""
    for reference, precision in dict.fromkeys((row["reference"], row["precision"]) for row in rows):
        asked = [row for row in rows if (row["reference"], row["precision"]) == (reference, precision)]
        done = [row for row in asked if row["two_runs_equal"] is not None]
        missing = len(asked) - len(done)

        def most(column: str, done: list[Cells] = done) -> float | None:
            return max((row[column] for row in done if row[column] is not None), default=None)

        largest = most("largest_df")
        yield {
            "reference": reference,
            "precision": precision,
            "networks": len(done),
            "largest_df": largest,
            "largest_df_in": next(
                (f"{r['network']} {r['largest_df_at']}" for r in done if r["largest_df"] == largest is not None), None
            ),
            **{name: most(name) for name in ("largest_df_fed", "nan_in_one", "differing_share", "other_batch_share")},
            "two_runs_equal": all(row["two_runs_equal"] for row in done) if done else None,
            "note": f"without {missing} networks that were not measured" if missing else None,
        }


def share(first: Counts, second: Counts) -> float | None:
    """Firings that differ, as a part of the first's."""
    fired = sum(int(counts.sum()) for counts in first.values())
    return sum(int(np.abs(first[layer] - second[layer]).sum()) for layer in first) / fired if fired else None
