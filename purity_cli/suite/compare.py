"""A suite's results in the layout of the paper's tables, and beside the paper's values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from purity_cli import store, tables
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.stats import jackknife, jackknife_of_mean
from purity_cli.suite import Suite, bare

PAPER = ("table1", "table2")
AVERAGE, TOP1, LAST = "Average", "top1", "purity"
"""Cells that are no layer; the last is that of the deepest layer, in a table of one value to a model."""


@dataclass(frozen=True)
class Column:
    """One job in a suite's tables; `missing` says why there is no result."""

    name: str
    model: str
    """As the paper calls it."""
    result: Result | None
    missing: str | None


def columns(jobs: Sequence[tuple[Job, Result | None, str | None]]) -> list[Column]:
    """Jobs, with their results or why there are none, under the shortest names that tell them apart."""
    names = [bare(job) for job, _, _ in jobs]
    found = []
    for (job, result, missing), name in zip(jobs, names, strict=True):
        alike = [other for (other, _, _), label in zip(jobs, names, strict=True) if label == name]
        varying = [field for field in Job.model_fields if len({getattr(other, field) for other in alike}) > 1]
        parts = [_shown(job, field) for field in varying if field != "model"]
        label = " ".join([job.model if "model" in varying else name, *parts])
        found.append(Column(label, result.model if result else name.partition(".")[0], result, missing))
    return found


def _shown(job: Job, field: str) -> str:
    value = getattr(job, field)
    return value if isinstance(value, str) and field in ("dataset", "weights", "precision") else f"{field} {value}"


def cells(result: Result, layout: str, threshold: float) -> dict[str, tuple[float, float]]:
    """Value and standard error of each cell of a result's column: F or per cent; NaN where nothing fired.

    The standard error of top1 is the binomial one. Cells are the stages or layers and their Average, or in the layout
    `last` the deepest layer's purity; then top1, where there are labels.
    """
    t = int(np.argmin(np.abs(np.array(result.thresholds) - threshold)))
    if abs(result.thresholds[t] - threshold) > 1e-9:
        raise PurityError(f"There are no counts of {result.model} at the threshold {threshold:g}: score it again.")
    layers = {
        layer.stage or layer.module: layer.counts[:, t : t + 1] for layer in result.layers if layer.counts is not None
    }
    if layout == "last":
        deepest = max(reversed(result.layers), key=lambda layer: int(layer.stage[1:]) if layer.stage else 0)
        layers = {LAST: layers[deepest.stage or deepest.module]}
    found = {name: jackknife(counts, result.n_images)[:2] for name, counts in layers.items()}
    if layout == "stages":
        found[AVERAGE] = jackknife_of_mean(list(layers.values()), result.n_images)[:2]
    values = {name: (float(purity[0]), float(se[0])) for name, (purity, se) in found.items()}
    if result.top1 is not None:
        values[TOP1] = (result.top1, math.sqrt(result.top1 * (100 - result.top1) / result.n_images))
    return values


def table(suite: Suite, found: Sequence[Column], paper: pd.DataFrame | None) -> pd.DataFrame:
    """The paper's layout: a row per stage, Average and top1, or of top1 and purity; a column per model.

    A cell is None where the model has no such layer or was not scored, NaN where nothing fired. Rows are those of the
    models and of what `paper` has of them.
    """
    layout, threshold = suite.layout, suite.threshold
    values = {column.name: cells(column.result, layout, threshold) if column.result else {} for column in found}
    rows = dict.fromkeys(name for column in values.values() for name in column)
    if paper is not None:
        rows |= dict.fromkeys(paper.loc[paper["model"].isin([column.model for column in found]), "cell"])
    ends = (TOP1, LAST) if layout == "last" else (AVERAGE, TOP1)
    order = [*sorted((row for row in rows if row not in ends), key=_depth), *(end for end in ends if end in rows)]
    data = {name: [column[row][0] if row in column else None for row in order] for name, column in values.items()}
    return pd.DataFrame(data, index=pd.Index(order, name="stage" if layout == "stages" else "measure"), dtype=object)


def _depth(row: str) -> int:
    """Stages by number, and behind them the layers in the order in which they came."""
    return int(row[1:]) if row[:1] == "C" and row[1:].isdecimal() else 10**6


def reference(name: str) -> pd.DataFrame:
    """model, cell, value: the paper's `table1` or `table2`, or those of a CSV file laid out as either; PurityError."""
    path = resources.files("purity_cli") / "paper" / f"{name}.csv" if name in PAPER else Path(name).expanduser()
    try:
        with path.open(encoding="utf-8") as file:
            frame = pd.read_csv(file)
        across = frame.columns[0] == "stage"
        long = frame.melt(frame.columns[0], var_name="model" if across else "cell").dropna()
        long = long.rename(columns={"stage": "cell"})[["model", "cell", "value"]]
        return long.astype({"value": float})
    except FileNotFoundError:
        raise PurityError(f"The reference {name} is not there: write {', '.join(PAPER)} or a CSV file.") from None
    except (OSError, ValueError, KeyError) as error:
        raise PurityError(
            f"The reference {name} cannot be read ({error}): its first column must be stage, with a column per model, "
            "or model, with purity and top1."
        ) from None


def compare(suite: Suite, found: Sequence[Column], paper: pd.DataFrame) -> pd.DataFrame:
    """model, cell, measured, paper (or reference), difference, se: a row for each cell that is known of the models.

    NaN where a cell was not measured.
    """
    rows = []
    for column in found:
        own = cells(column.result, suite.layout, suite.threshold) if column.result else {}
        for cell, value in paper.loc[paper["model"] == column.model, ["cell", "value"]].itertuples(index=False):
            measured, se = own.get(cell, (math.nan, math.nan))
            rows.append((column.name, cell, measured, value, measured - value, se))
    known = "paper" if suite.reference in PAPER else "reference"
    return pd.DataFrame(rows, columns=["model", "cell", "measured", known, "difference", "se"])


def summary(compared: pd.DataFrame) -> pd.DataFrame:
    """Per kind of cell: how many there are, how many were measured, their mean |difference| and Spearman's rho.

    Averages follow from the stages and are counted apart from them. rho is NaN for fewer than three cells.
    """
    kinds = compared["cell"].map({AVERAGE: AVERAGE, TOP1: TOP1}).fillna("purity")
    rows = []
    for kind, part in compared.groupby(kinds, sort=False):
        both = part.dropna(subset=["measured"])
        measured, known = both.iloc[:, 2], both.iloc[:, 3]
        varies = len(both) > 2 and measured.nunique() > 1 and known.nunique() > 1
        rho = float(spearmanr(measured, known).statistic) if varies else math.nan
        rows.append((kind, len(part), len(both), both["difference"].abs().mean(), rho))
    return pd.DataFrame(rows, columns=["cells", "known", "measured", "mean difference", "rank correlation"])


def table_text(numbers: pd.DataFrame, found: Sequence[Column]) -> pd.DataFrame:
    """`table` as shown, its rows' names in the first column; `missing` where a model was not scored."""
    absent = _absent(found)
    rows = [str(row) for row in numbers.index]
    shown = {
        str(name): [
            "missing" if name in absent else _number(value, row) for row, value in zip(rows, column, strict=True)
        ]
        for name, column in numbers.items()
    }
    measure = numbers.index.name == "measure"
    first = ["accuracy / %" if measure and row == TOP1 else row for row in rows]
    return pd.DataFrame({str(numbers.index.name): first, **shown})


def compared_text(compared: pd.DataFrame, found: Sequence[Column]) -> pd.DataFrame:
    """`compare` as shown; `missing` where a model was not scored."""
    numbers = {
        name: [_number(value, cell) for value, cell in zip(compared[name], compared["cell"], strict=True)]
        for name in compared.columns[2:]
    }
    shown = compared.assign(**numbers)
    shown.loc[shown["model"].isin(_absent(found)), ["measured", "difference", "se"]] = ["missing", "", ""]
    return shown


def _absent(found: Sequence[Column]) -> set[str]:
    return {column.name for column in found if column.result is None}


def summary_text(frame: pd.DataFrame) -> pd.DataFrame:
    """`summary` as shown."""
    digits = {"mean difference": 3, "rank correlation": 3}
    return frame.assign(**{name: [tables.cell(value, n) for value in frame[name]] for name, n in digits.items()})


def write(suite: Suite, found: Sequence[Column], folder: Path) -> None:
    """`<suite>.md` and `.csv`, and where there is a reference `<suite>_comparison.md` and `.csv`."""
    paper = reference(suite.reference) if suite.reference else None
    numbers = table(suite, found, paper)
    csv = numbers.map(lambda value: "" if value is None else value)
    store.write_text(folder / f"{suite.name}.csv", csv.to_csv(na_rep="NaN", lineterminator="\n"))
    notes = [tables.footnote(column.result, suite.threshold) for column in found if column.result]
    notes += [f"Missing: {column.name}: {column.missing}" for column in found if column.result is None]
    parts = [_markdown(table_text(numbers, found)), *notes]
    store.write_text(folder / f"{suite.name}.md", "\n\n".join(parts) + "\n")
    if paper is None:
        return
    compared = compare(suite, found, paper)
    name = f"{suite.name}_comparison"
    store.write_text(folder / f"{name}.csv", compared.to_csv(index=False, na_rep="NaN", lineterminator="\n"))
    parts = [
        _markdown(compared_text(compared, found)),
        _markdown(summary_text(summary(compared))),
        *unmatched(found, paper),
    ]
    store.write_text(folder / f"{name}.md", "\n\n".join(parts) + "\n")


def unmatched(found: Sequence[Column], paper: pd.DataFrame) -> list[str]:
    """A sentence on the models that the reference does not have."""
    strange = [column.name for column in found if column.model not in set(paper["model"])]
    return [f"There is nothing to compare {', '.join(strange)} with."] if strange else []


def _number(value: float | None, cell: str) -> str:
    return tables.cell(value, 2 if cell == TOP1 else 3)


def _markdown(frame: pd.DataFrame) -> str:
    return frame.to_markdown(index=False, disable_numparse=True)
