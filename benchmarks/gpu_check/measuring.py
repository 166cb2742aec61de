"""What the parts have in common: settings, tables on disk after every row, and timing on a device."""

from __future__ import annotations

import json
import math
import os
import statistics
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch

from purity_cli import machine, store
from purity_cli.pixels import Block

NETWORKS = (
    "vgg13_bn", "vgg16_bn", "vgg19_bn", "resnet34", "resnet50", "resnet101", "alexnet", "vgg16", "densenet121",
    "timm:legacy_senet154",
)  # fmt: skip
"""Of the paper's Tables 1 and 2. timm's SENet154 is pretrainedmodels', which need not be installed for it."""
PRECISIONS = ("bf16", "tf32", "fp16", "fp32")
"""In the order in which they are measured: the slowest last, where time may run out."""
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
LATE = "not measured: out of time"

Cells = dict[str, Any]
Step = tuple[str, Cells, Callable[[], Cells | list[Cells]]]
"""A table, the cells that name its row, and the work that gives the others, or several rows of them."""


@dataclass(frozen=True)
class Settings:
    """One run of the script."""

    device: torch.device
    out: Path
    scratch: Path
    """For pictures and caches; 50,000 images take 8 GB there."""
    shared: Path
    """Where real weights and images are, if at all."""
    workers: int
    networks: tuple[str, ...] = NETWORKS
    precisions: tuple[str, ...] = PRECISIONS
    formats: tuple[str, ...] = tuple(FORMATS)
    seconds: float = 480.0
    """Per part."""
    side: int = 224
    """Of the pictures that networks see."""
    compared: int = 64
    """Images on which the device is compared with the CPU."""
    wide: int = 1024
    """Images on which its precisions are compared with each other."""
    real: int = 1000
    """Images for networks with real weights."""
    batch: int = 128
    batches: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Among which the best one is searched."""
    huge: int = 4096
    """A batch that cannot fit."""
    images: int = 50_000
    """Of the end-to-end part."""
    pictures: int = 1000
    """Different ones among these."""
    rounds: int = 5
    at_least: float = 0.2
    """Seconds of one timing: below, the clock and the launches are what is measured."""
    main: str = "resnet50"
    """The network of the parts that take only one."""
    scale: int = 1
    """By which the ceilings' problems are smaller."""


def tiny(settings: Settings) -> Settings:
    """Everything once, on next to nothing: figures of it say nothing but that the script runs."""
    return replace(
        settings, networks=("tiny_vgg_10", "resnet18"), side=32,
        compared=6, wide=6, real=6, batch=2, batches=(2, 4), huge=4, images=12, pictures=4, rounds=1, at_least=0.0,
        main="tiny_vgg_10", scale=64,
    )  # fmt: skip


class OutOfTime(BaseException):
    """A part's time is over. No Exception, since a suite of jobs goes on after those."""


class Book:
    """The tables of one part, as `NAME.csv` and `NAME.json`; the JSON also says of what and with what it was measured.

    `check` raises OutOfTime when the part's time is over: the rows from there on say so.
    """

    def __init__(
        self, settings: Settings, part: str, command: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        device, cuda = settings.device, settings.device.type == "cuda"
        self.settings, self._clock, self._start, self.broken = settings, clock, clock(), False
        self.tables: dict[str, list[Cells]] = {}
        self.about: Cells = {
            "part": part,
            "command": command,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": machine.device_name(device),
            **machine.versions(),
            "cuda": torch.version.cuda if cuda else None,
            "cudnn": torch.backends.cudnn.version() if cuda else None,
            "device_mib": torch.cuda.get_device_properties(device).total_memory // 2**20 if cuda else None,
            "budget_s": settings.seconds,
        }

    @property
    def spent(self) -> float:
        return self._clock() - self._start

    def check(self) -> None:
        if self.spent >= self.settings.seconds:
            raise OutOfTime

    def fill(self, steps: Iterable[Step]) -> None:
        """A row for each step, or what went wrong with it; where the part itself breaks off it is `broken`."""
        late = False
        try:
            for table, names, work in steps:
                values: Cells | list[Cells] = {}
                note: str | None = LATE
                if not late:
                    try:
                        self.check()
                        values, note = attempt(work)
                    except OutOfTime:
                        late = True
                for row in values if isinstance(values, list) else [values]:
                    self.add(table, **{**names, **row, "note": row.get("note", note)})
                self.write()
        except Exception:
            traceback.print_exc()
            self.broken = True

    def add(self, table: str, **cells: Any) -> None:
        """A row; what is not given was not measured, which `note` should explain."""
        self.tables.setdefault(table, []).append({name: _plain(value) for name, value in cells.items()})

    def write(self) -> None:
        """Replace the files."""
        self.settings.out.mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            frame = pd.DataFrame(rows, dtype=object)
            content = {
                **self.about,
                "seconds": round(self.spent, 1),
                "complete": not any(row["note"] == LATE for row in rows),
                "rows": json.loads(frame.to_json(orient="records")),
            }
            store.write_text(self.settings.out / f"{name}.csv", frame.to_csv(index=False))
            store.write_text(self.settings.out / f"{name}.json", json.dumps(content, indent=1) + "\n")

    def show(self) -> None:
        """Print the tables, but for the long ones."""
        for name, rows in self.tables.items():
            if not name.endswith("_cells"):
                text = pd.DataFrame([{key: _text(value) for key, value in row.items()} for row in rows]).fillna("-")
                print(f"\n{name}")
                print(text.to_string(index=False))


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """What `work` gives, or why it gave nothing: whatever fails in one row, the others must be measured."""
    try:
        return work(), None
    except torch.OutOfMemoryError:
        return {}, "out of memory"
    except Exception as error:
        traceback.print_exc()
        return {}, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, (bool, str, int)):
        return "-" if value is None else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Contender:
    """Work to be timed: `step`, over and over, inside what `around` sets up, which is not timed."""

    step: Callable[[], object]
    around: Callable[[], AbstractContextManager[object]] = nullcontext


def per_step(contender: Contender, device: torch.device, steps: int) -> float:
    """Mean seconds of a step; on a GPU between two events, so that the device's time counts and not the launches'."""
    with contender.around():
        if device.type != "cuda":
            start = time.perf_counter()
            for _ in range(steps):
                contender.step()
            return (time.perf_counter() - start) / steps
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        for _ in range(steps):
            contender.step()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1000 / steps


def in_turn(book: Book, contenders: Mapping[str, Contender], rounds: int | None = None) -> dict[str, float]:
    """Median seconds per step of each: every round runs all of them, since clocks and heat drift. OutOfTime."""
    device, steps = book.settings.device, {}
    for name, contender in contenders.items():
        for _ in range(2):  # the first, in which libraries load and kernels are chosen, does not count
            book.check()
            once = per_step(contender, device, 1)
        steps[name] = max(1, round(book.settings.at_least / max(once, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds or book.settings.rounds):
        for name, contender in contenders.items():
            book.check()
            times[name].append(per_step(contender, device, steps[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def noise(n: int, side: int, device: torch.device) -> Block:
    """`n` pictures of noise that are on the device already."""
    pixels = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, device=device)
    positions, labels = torch.arange(n, device=device), torch.full((n,), -1, device=device)
    return Block(0, pixels.contiguous(memory_format=torch.channels_last), positions, labels, ())


class Watcher:
    """A context manager; afterwards `seconds` and `cells`: the host's memory, the device's, how busy a GPU was.

    Busy is the driver's figure, the part of its last sampling period in which some kernel ran, averaged; it needs
    nvidia-ml-py, which PyTorch asks for it. Without that, or on a CPU, it is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda, self.seconds = device, device.type == "cuda", 0.0
        self._busy, self._resident, self._end = list[int](), 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self._end.set()
        self._thread.join()

    @property
    def cells(self) -> Cells:
        return {
            "seconds": self.seconds,
            "gpu_busy": statistics.fmean(self._busy) / 100 if self._busy else None,
            "host_mib": self._resident // 2**20 or None,
            "device_mib": torch.cuda.max_memory_reserved(self.device) // 2**20 if self.cuda else None,
        }

    def _look(self) -> None:
        over, blind = False, not self.cuda
        while not over:
            over = self._end.wait(0.1)
            self._resident = max(self._resident, resident())
            if not blind:
                try:
                    self._busy.append(torch.cuda.utilization(self.device))
                except Exception:  # no nvidia-ml-py, or a driver that does not say
                    blind = True


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
