"""The paper's Tables 1 and 2 as one suite, as `purity bench` runs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from purity_cli.suite import Suite, Task
from purity_cli.suite.bench import Bench, Outcome
from tests.gpu_check.budget import Budget, OutOfTime
from tests.gpu_check.report import LATE, Cells
from tests.gpu_check.settings import Settings
from tests.gpu_check.watcher import Watcher


def paper_tables(settings: Settings, budget: Budget, dataset: str, folder: Path, cache: Path) -> list[Cells]:
    """A row for each network, C1..last for Table 1's and the last stage for the others, and one for all of them.

    A network's time is all that the suite takes for it, its making and its hash too. Of the whole there is only a
    figure if every network was scored.
    """
    budget.check()
    suite = make_suite(settings, dataset)
    watch, late = Watch(settings, budget), False
    with Watcher(settings.device) as watcher:
        try:
            Bench(suite, folder / "results", workers=settings.workers, cache=cache, watch=watch).run()
        except OutOfTime:
            late = True
        finally:
            watch.close()
    rows = watch.rows
    rows += [{"network": name, "note": LATE} for name in watch.left]
    whole = not late and all("seconds" in row for row in rows)
    images = sum(row["images"] for row in rows) if whole else None
    total: Cells = {"note": LATE if late else "not all networks were scored"}
    if whole and images:
        total = {"images": images, "images_per_s": images / watcher.seconds, **watcher.cells}
        # Each network's watcher began to count anew.
        total["device_mib"] = max((row["device_mib"] for row in rows if row["device_mib"]), default=None)
    return [*rows, {"network": "all", **total}]


def make_suite(settings: Settings, dataset: str) -> Suite:
    side = settings.side
    return Suite.model_validate(
        {
            "name": "tables",
            "defaults": {
                "weights": "none", "dataset": dataset, "preprocess": "paper", "resize": side, "crop": side,
                "device": str(settings.device), "precision": settings.precisions[0],
            },
            "models": [{"model": name, "layers": "C1..last"} for name in settings.table1]
            + [{"model": name, "layers": "last"} for name in settings.table2],
        }
    )  # fmt: skip


class Watch:
    """A `bench.Watch` that keeps a row for each job and stops the suite when time is out."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        self.settings, self.budget = settings, budget
        self.rows: list[Cells] = []
        self.left: list[str] = []
        self._watcher: Watcher | None = None

    def plans(self, tasks: Sequence[tuple[Task, int, int]]) -> None:
        self.left = [task.job.model for task, *_ in tasks]

    def begins(self, task: Task) -> None:
        self.budget.check()
        self._watcher = Watcher(self.settings.device)
        self._watcher.__enter__()

    def images(self, done: int, total: int) -> None:
        self.budget.check()

    def ends(self, outcome: Outcome) -> None:
        self.left.remove(outcome.task.job.model)
        watcher, result = self.close(), outcome.result
        if result is None or watcher is None:
            self.rows.append({"network": outcome.task.job.model, "note": outcome.error})
            return
        self.rows.append(
            {
                "network": outcome.task.job.model,
                "images": result.n_images,
                "images_per_s": result.n_images / watcher.seconds,
                "scoring_seconds": result.provenance["seconds"],
                "batch_size": result.provenance["batch_size"],
                **watcher.cells,
            }
        )

    def close(self) -> Watcher | None:
        """End the current job's watcher, if there is one."""
        watcher, self._watcher = self._watcher, None
        if watcher:
            watcher.__exit__()
        return watcher
