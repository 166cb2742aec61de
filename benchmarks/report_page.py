"""How large the page of 300 results is, and how long it takes to make, to open and to sort.

make benchmark-page ARGS=300   # minutes where N is large; needs chromium for the last two
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from purity_cli import cli, store
from purity_cli.plan import DEFAULT_GRID, Job
from purity_cli.results import Layer, Result
from tests.report.browser import Browser, installed

MEASURES = ("rankme", "alpha_req", "participation_ratio", "stable_rank", "saturation")
CHANNELS = (64, 128, 256, 512, 1024)


def drawn(seed: int) -> Result:
    """A network of five stages, of random counts and measures."""
    rng = np.random.default_rng(seed)
    layers = []
    for depth, c in enumerate(CHANNELS, 1):
        chance = rng.beta(0.3, 2, c)[None] * np.linspace(1, 0, len(DEFAULT_GRID))[:, None]
        counts = rng.binomial(50, np.broadcast_to(chance, (20, *chance.shape)))
        measures = dict(zip(MEASURES, rng.uniform(0, c, len(MEASURES)).tolist(), strict=True))
        size = 224 >> depth
        layers.append(Layer(f"features.stage{depth}.block", f"C{depth}", c, size, size, counts, measures, "activation"))
    name = f"network_{seed:03d}.some_tag_in1k"
    about = {
        "weights_sha256": "0123456789abcdef" * 4, "network_sha256": "f" * 64, "dataset_fingerprint": "e" * 64,
        "purity": "0.1.0", "torch": "2.14.1", "timm": "1.0.31", "device": "cpu", "batch_size": 64,
        "parameters": int(rng.integers(10**6, 10**8)), "images_per_second": float(rng.uniform(10, 1000)),
        "started": "2026-01-01T00:00:00", "images_scored": 1000, "images_skipped": [],
        "command": f"purity score -m timm:{name} -d imagenet --per-class 1",
    }  # fmt: skip
    result = Result(
        Job.of(model=f"timm:{name}"), DEFAULT_GRID, tuple(layers), 1000, float(rng.uniform(50, 90)), 95.0, name, "timm",
        "in1k", "imagenet", "resize 256 bicubic, crop 224", about,
    )  # fmt: skip
    return replace(result, identity={"seed": seed})


def busy(browser: Browser) -> float:
    """Seconds that the page's thread has worked, however busy the machine is with other things."""
    return next(one["value"] for one in browser("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration")


def main(count: int = 300) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored, page = Path(folder, "stored"), Path(folder, "report.html")
        for seed in range(count):
            store.write(drawn(seed), stored / str(seed))
        start = perf_counter()
        assert cli.run(["report", str(stored), "-o", str(page)]) == 0
        print(f"{count} results: {page.stat().st_size / 1e6:.1f} MB, made in {perf_counter() - start:.1f} s")
        if program := installed():
            with tempfile.TemporaryDirectory() as profile:
                browser = Browser(program, Path(profile))
                try:
                    browser("Performance.enable", timeDomain="threadTicks")
                    start = perf_counter()
                    browser.open(page)
                    opened, worked = perf_counter() - start, busy(browser)
                    start = perf_counter()
                    browser.click("th[data-key=last] button")
                    browser["new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"]
                    print(
                        f"opened in {opened:.2f} s ({worked:.2f} s of its thread's own time), sorted in "
                        f"{perf_counter() - start:.2f} s ({busy(browser) - worked:.2f} s)"
                    )
                    assert browser["document.querySelector('[data-key=last]').ariaSort"] == "descending"
                finally:
                    browser.close()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
