"""What the figures share: their look, their files, and names that cover nothing.

Colours are Okabe and Ito's, and each line has its own marker and dash pattern as well, so that colour is never the
only mark.
"""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from purity_cli.errors import PurityError

# A notebook names its screen to all that is started in it. matplotlib cannot be imported where it lacks that screen.
_screen = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as mpl
finally:
    if _screen is not None:
        os.environ["MPLBACKEND"] = _screen
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.transforms import Bbox, ScaledTranslation  # noqa: E402

__all__ = ["Figure", "Rectangle", "mpl"]

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    Points = NDArray[np.float64]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "image.composite_image": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "purity",  # the same data give the same file
    "text.parse_math": False,  # a $ in a file's name is a $
}
ENDINGS = (".png", ".svg", ".pdf")
WIDTH, HEIGHT = 5.2, 2.9
"""Inches, of one panel without its legend: between a column and a page."""
LINE = 0.155
"""Inches that a line of a legend takes."""
AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))


@contextmanager
def style() -> Iterator[None]:
    """While this is entered, matplotlib has its own defaults and `STYLE`, whatever a user's matplotlibrc sets."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def targets(path: Path) -> list[Path]:
    """The files that a figure goes to, PNG and SVG where `path` has no ending; PurityError where they cannot be made.

    Asked before hours are spent on what the figure shows.
    """
    if path.suffix and path.suffix not in ENDINGS:
        raise PurityError(
            f"Cannot draw {path}: its name must end in {', '.join(ENDINGS)}, or in nothing for both PNG and SVG."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise PurityError(f"Cannot write the figure {path} ({error.strerror}): choose another folder.") from None
    return [path] if path.suffix else [path.with_suffix(".png"), path.with_suffix(".svg")]


def save(figure: Figure, path: Path, dpi: int | None = None) -> list[Path]:
    """Write the figure to its `targets`."""
    files = targets(path)
    with style():
        for file in files:
            metadata: dict[str, Any] = {"Date": None} if file.suffix == ".svg" else {}
            try:
                figure.savefig(file, dpi=dpi or STYLE["savefig.dpi"], metadata=metadata)
            except OSError as error:
                raise PurityError(f"Cannot write the figure {file} ({error.strerror}): free some space.") from None
    return files


def within(purity: Any, bars: Any) -> NDArray[np.float64]:
    """Lengths of error bars below and above, (2, n), that stop at 0 and 1; 0 where they are unknown."""
    values, lengths = np.asarray(purity, float), np.nan_to_num(np.asarray(bars, float))
    return np.stack([np.fmin(lengths, np.nan_to_num(values)), np.fmin(lengths, 1 - np.nan_to_num(values))])


def hollow(ax: Axes, x: Any, y: Any, low: Any, style: Any) -> None:
    """Markers with nothing in them where a value cannot be trusted, over those that are drawn."""
    places = np.asarray(low, bool)
    if places.any():
        look: Any = {"linestyle": "none", "markerfacecolor": "white", "zorder": 3, "label": "_low"}
        ax.plot(np.asarray(x)[places], np.asarray(y)[places], **{**style, **look})


def panels(n: int) -> tuple[Figure, list[Axes]]:
    """A figure of n panels, two in a row."""
    columns = min(n, 2)
    lines = -(-n // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * lines), layout=ConstrainedLayoutEngine(h_pad=0.08))
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def styles() -> Iterator[dict[str, Any]]:
    """Looks of lines: seven colours, four dashes and nine markers share no divisor, so the first 252 all differ."""
    for colour, dash, marker in zip(cycle(COLOURS), cycle(DASHES), cycle(MARKERS), strict=False):
        yield {"color": colour, "linestyle": dash, "marker": marker}


def wrapped(name: str, width: int) -> str:
    """A name in lines of `width` characters at most, broken behind its dots and dashes where that can be."""
    lines = []
    for line in name.split("\n"):
        lines.append("")
        for part in re.findall(r"[^\s._/:-]*[\s._/:-]?", line):
            for piece in textwrap.wrap(part, width, drop_whitespace=False):
                if len(lines[-1] + piece.rstrip()) > width:
                    lines.append("")
                lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def in_legend(label: str) -> str:
    """A label that matplotlib shows: it leaves out what begins with _, as modules may."""
    return f" {label}" if label.startswith("_") else label


def legends_below(figure: Figure, axes: Sequence[Axes], ticks: float = 0.0) -> None:
    """A legend under each panel, and the figure as much higher; `ticks` is the height of its tick labels in inches."""
    longest = 0
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        columns = 2 if len(labels) > 3 and max(map(len, labels)) < 38 else 1
        shown = [in_legend(wrapped(label, 80)) for label in labels]
        below = ax.transAxes + ScaledTranslation(0, -0.42 - ticks, figure.dpi_scale_trans)
        ax.legend(handles, shown, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below, ncols=columns)
        longest = max(longest, -(-sum(label.count("\n") + 1 for label in shown) // columns))
    width, height = figure.get_size_inches()
    lines = height / HEIGHT
    figure.set_size_inches(width, height + lines * (LINE * longest + ticks))


def name_points(figure: Figure, ax: Axes, points: Points, bars: Points, names: Sequence[str]) -> None:
    """Names beside points (n, 2), each as near as can be without covering another or a bar.

    `bars` (n,) are how far the points' bars reach up and down, in data units.
    """
    figure.draw_without_rendering()
    upper, lower = (ax.transData.transform(points + sign * np.stack([0 * bars, bars], 1)) for sign in (1, -1))
    taken = [Bbox([below - 4, above + 4]) for below, above in zip(lower, upper, strict=True)]
    shared: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7, "in_layout": False}
    for point, name in zip(points, names, strict=True):
        best: tuple[int, Any] | None = None
        for ring in range(1, 16):
            for dx, dy in AROUND:
                sides = ("right", "center", "left")[dx + 1], ("top", "center", "bottom")[dy + 1]
                look: dict[str, Any] = {"horizontalalignment": sides[0], "verticalalignment": sides[1]}
                label = ax.annotate(wrapped(name, 30), point, (6 * ring * dx, 6 * ring * dy), **look, **shared)
                box = label.get_window_extent()
                inside = ax.bbox.contains(*box.min) and ax.bbox.contains(*box.max)
                covered = box.count_overlaps(taken) + 100 * (not inside)
                if best is None or covered < best[0]:
                    if best:
                        best[1].remove()
                    best = covered, label
                else:
                    label.remove()
            if best and best[0] == 0:
                break
        assert best is not None
        taken.append(best[1].get_window_extent())
