"""Bars beside the numbers of a table, for eyes: only where stdout is a terminal that can draw them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def bars(purity: Iterable[float], width: int = 10) -> list[RenderableType] | None:
    """A bar of `width` characters at F = 1 for each purity, none for NaN; None where no bars should be drawn.

    That is where stdout is no terminal or its encoding lacks block characters.
    """
    from rich.bar import Bar

    if not sys.stdout.isatty() or "utf" not in (sys.stdout.encoding or "").lower():
        return None
    return ["" if math.isnan(value) else Bar(size=1, begin=0, end=value, width=width) for value in purity]
