"""`from purity_cli import score`: what notebooks need, a table and figures of one scored network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from purity_cli import locks, run, store
from purity_cli.errors import PurityError
from purity_cli.machine import usual_torch
from purity_cli.models import name_in_memory
from purity_cli.plan import STORED_GRID, Job, check_rate, check_thresholds
from purity_cli.results import Result
from purity_cli.stats import RATE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SHOWN = ["stage", "layer", "channels", "height", "width", "purity", "se", "purity_rate", "activations", "live"]


@dataclass(frozen=True, repr=False, eq=False)
class Scores:
    """The purity of a network's layers, read at one threshold and one rate; a notebook shows it as a table."""

    result: Result
    """The counts at every threshold, and what must stand beside them."""
    threshold: float = 0.5
    rate: float = RATE
    """Share of all pairs of image and channel that fire at the threshold at which `purity_rate` is read."""

    @classmethod
    def load(cls, folder: str | PathLike[str], threshold: float = 0.5, rate: float = RATE) -> Scores:
        """What `purity score` or `save` has stored; PurityError where it has not, or not at this threshold."""
        return cls(store.read(Path(folder)), threshold, check_rate(rate))

    @property
    def frame(self) -> pd.DataFrame:
        """A row per layer, with the columns of `purity.csv`.

        F is `purity`, NaN where nothing fired; `purity_rate` is F_r, NaN where no threshold gives the rate.
        """
        from purity_cli.views import cells

        return cells.frame([self.result], self.threshold, self.rate)

    def at(self, threshold: float | None = None, rate: float | None = None) -> Scores:
        """The same counts, read at another threshold or another rate."""
        read = self.threshold if threshold is None else threshold
        return Scores(self.result, read, self.rate if rate is None else check_rate(rate))

    def plot(self) -> Figure:
        """F from stage to stage, with 95 % intervals."""
        from purity_cli.figures import charts

        return charts.stage_curve(self.frame)

    def sweep(self) -> Figure:
        """F against the threshold, a line per layer."""
        from purity_cli.figures import charts
        from purity_cli.views import cells

        return charts.threshold_sweep(cells.frame([self.result]))

    def save(self, folder: str | PathLike[str]) -> None:
        """Store it as `purity score --output` does, for `Scores.load` and all commands that take a results folder."""
        with locks.claim(Path(folder), "Scores.save"):
            store.write(self.result, Path(folder), self.threshold)

    def __repr__(self) -> str:
        table = self.frame[SHOWN].to_string(index=False, float_format="{:.3f}".format)
        return f"{table}\n{self._summary()}"

    def _repr_html_(self) -> str:
        table: str = self.frame[SHOWN].to_html(index=False, float_format="{:.3f}".format, border=0)
        return f"{table}\n<p>{self._summary()}</p>"

    def _summary(self) -> str:
        from purity_cli.views import cells

        return cells.summary(self.result, self.threshold)


def score(
    model: str | nn.Module | None = None,
    dataset: str | PathLike[str] | None = None,
    *,
    threshold: float = 0.5,
    rate: float = RATE,
    workers: int = 2,
    download: bool = False,
    progress: Callable[[int, int], object] | None = None,
    **settings: Any,
) -> Scores:
    """Score the purity of a network's layers, as `purity score` does; nothing is written.

    `model` is a name (`resnet50`, `timm:convnext_tiny.fb_in1k`), `FILE.py:FUNCTION`, or a network, which stays as it
    is: a copy of it is scored. `dataset` is a name or the path of a folder, tar, ...; without them the bundled network
    and images are taken. `settings` are the other options of `purity score` that decide a number, with their names:
    `layers=["C1", "last"]`, `per_class=11`, `weights="w.pth"`, `device="cuda"`; a network that does not say how its
    pixels are prepared, as timm's do in their `pretrained_cfg`, needs `resize`, `crop`, `mean` and `std`.

    F is read at `threshold`, and F_r where the share `rate` of all pairs of image and channel fires; `Scores.at` reads
    others from the same counts. `workers` threads decode, and `progress` is called with the images done and the images
    in all. What changes how far a number can be trusted is a warning of the logger `purity`. Raises PurityError.

    >>> from purity_cli import score
    >>> scores = score(layers=["C3", "C4"], per_class=5)
    >>> scores.frame[["stage", "layer", "channels"]]
      stage   layer  channels
    0    C3  layer3        96
    1    C4  layer4       160
    >>> scores.result.n_images
    50
    >>> bool(scores.at(0.3).frame["activations"].sum() > scores.frame["activations"].sum())
    True
    """
    if not isinstance(model, (str, nn.Module, NoneType)):
        raise PurityError(
            f"Cannot score a {type(model).__name__}: give a network (torch.nn.Module), a name that `purity models` "
            "lists, or FILE.py:FUNCTION."
        )
    for name, value in settings.items():
        if isinstance(value, (PathLike, torch.device)):
            settings[name] = fspath(value) if isinstance(value, PathLike) else str(value)
    module = model if isinstance(model, nn.Module) else None
    named = {
        "model": model if module is None else f"memory:{name_in_memory(module)}",
        "dataset": fspath(dataset) if isinstance(dataset, PathLike) else dataset,
    }
    rate, grid = check_rate(rate), check_thresholds([*settings.pop("thresholds", STORED_GRID), threshold])
    job = Job.of(**{name: value for name, value in named.items() if value is not None}, **settings, thresholds=grid)
    with usual_torch():
        plan = run.resolve(job, module=module, download=download)
        result = run.score(plan, workers=workers, progress=progress or (lambda done, total: None))
    return Scores(result, threshold, rate)
