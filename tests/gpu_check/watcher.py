"""What a run takes while it runs: how busy the GPU is, the host's memory, the device's."""

from __future__ import annotations

import os
import statistics
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch

INTERVAL = 0.1


class Watcher:
    """A context manager; afterwards `seconds` and `cells`.

    Busy is the driver's figure, the part of its last sampling period in which some kernel ran, averaged; it needs
    nvidia-ml-py, which PyTorch asks for it. Without that, or on a CPU, it is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self._busy: list[int] = []
        self._resident = 0
        self._blind = device.type != "cuda"
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        self._start = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self._end.set()
        self._thread.join()

    @property
    def cells(self) -> dict[str, Any]:
        """For a row of a table."""
        cuda = self.device.type == "cuda"
        return {
            "seconds": self.seconds,
            "gpu_busy": statistics.fmean(self._busy) / 100 if self._busy else None,
            "host_mib": self._resident // 2**20 or None,
            "device_mib": torch.cuda.max_memory_reserved(self.device) // 2**20 if cuda else None,
        }

    def _look(self) -> None:
        while not self._end.wait(INTERVAL):
            self._resident = max(self._resident, resident())
            if not self._blind:
                try:
                    self._busy.append(torch.cuda.utilization(self.device))
                except Exception:  # no nvidia-ml-py, or a driver that does not say
                    self._blind = True
        self._resident = max(self._resident, resident())


def resident() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return 0
