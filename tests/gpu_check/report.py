"""Tables that are on disk after every row, with null where nothing was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch

from purity_cli import machine, store
from purity_cli.cli import console
from tests.gpu_check.budget import OutOfTime
from tests.gpu_check.settings import Settings
from tests.gpu_check.subjects import attempt

LATE = "not measured: out of time"

Cells = dict[str, Any]
Planned = tuple[Cells, Callable[[], Cells | list[Cells]]]
"""The cells that name a row, and the work that gives the others, or several rows of them."""


class Sheet:
    """One table, as `NAME.csv` and `NAME.json`; the JSON also says of what and with what it was measured.

    `shown` are the columns that are printed, all by default; a `quiet` one is not printed.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        columns: Sequence[str],
        about: Cells,
        shown: Sequence[str] = (),
        *,
        quiet: bool = False,
    ) -> None:
        self.folder, self.name, self.columns = settings.out, name, (*columns, "note")
        self.about, self.shown = about, (*shown, "note") if shown else self.columns
        self.quiet = quiet
        self.rows: list[Cells] = []

    def fill(self, planned: Iterable[Planned]) -> None:
        """A row for each piece of work; from where time runs out they say so. A failure is its row's note."""
        late = False
        for names, work in planned:
            values: Cells | list[Cells] | None = None
            note: str | None = LATE
            if not late:
                try:
                    values, note = attempt(work)
                except OutOfTime:
                    late = True
            for row in values if isinstance(values, list) else [values or {}]:
                self.add(**{"note": note, **names, **row})
            self.write()

    def add(self, **cells: Any) -> None:
        """A row; what is not given was not measured, which `note` should explain."""
        unknown = set(cells) - set(self.columns)
        if unknown:
            raise ValueError(f"{self.name} has no column {min(unknown)}")
        self.rows.append({name: _plain(cells.get(name)) for name in self.columns})

    def write(self) -> None:
        """Replace the files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        store.write_text(self.folder / f"{self.name}.csv", self.frame().to_csv(index=False))
        content = {**self.about, "complete": self.complete, "rows": self.rows}
        store.write_text(self.folder / f"{self.name}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")

    def frame(self) -> pd.DataFrame:
        """Cells keep their types: a column with nulls stays one of integers."""
        return pd.DataFrame(self.rows, columns=list(self.columns), dtype=object)

    @property
    def complete(self) -> bool:
        """Whether time sufficed for every row."""
        return not any(LATE in (row["note"] or "") for row in self.rows)

    def show(self) -> None:
        """Print it, unless it is quiet."""
        if self.quiet:
            return
        frame = self.frame()[list(self.shown)]
        text = pd.DataFrame({name: [_text(value) for value in frame[name]] for name in frame})
        left = tuple(name for name in self.shown if any(isinstance(value, str) for value in frame[name]))
        print(f"\n{self.name}")
        console.show(console.table(text, left=left))


def about(settings: Settings, part: str, command: str) -> Cells:
    """What stands beside every figure."""
    device = settings.device
    record: Cells = {
        "part": part,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": machine.device_name(device),
        **machine.versions(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cudnn": torch.backends.cudnn.version() if device.type == "cuda" else None,
        "budget_s": settings.seconds,
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        record |= {"device_mib": card.total_memory // 2**20, "multiprocessors": card.multi_processor_count}
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
