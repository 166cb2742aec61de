"""Stored results -> reports; no network is needed, and nothing is read or written.

`VIEWS` are those that `purity show --view` offers: each makes a `Report` of results at a threshold and a rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from purity_cli.report import Report
    from purity_cli.results import Result

View = Callable[["Sequence[Result]", float, float], "Report"]


def _layers(results: Sequence[Result], threshold: float, rate: float) -> Report:
    from purity_cli.views.layers import layers

    return layers(results, threshold, rate, corrected=True)


def _sweep(results: Sequence[Result], threshold: float, rate: float) -> Report:
    from purity_cli.views.sweep import sweep

    return sweep(results)


def _epochs(results: Sequence[Result], threshold: float, rate: float) -> Report:
    from purity_cli.views.epochs import epochs

    return epochs(results, threshold, rate)


def _correlation(results: Sequence[Result], threshold: float, rate: float) -> Report:
    from purity_cli.views.correlation import correlation, points

    return correlation(points(results, threshold, rate))


VIEWS: dict[str, View] = {"layers": _layers, "sweep": _sweep, "epochs": _epochs, "correlation": _correlation}
"""`layers` is the default. The sweep takes every threshold that is stored."""
