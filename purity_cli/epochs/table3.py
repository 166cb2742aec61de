"""Purity over training in the layout of the paper's Table 3, with what it would have chosen, and the paper's values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

import pandas as pd

from purity_cli import tables
from purity_cli.epochs import Measured, choice

PAPER = {"tiny_vgg": "tiny_vgg", "resnet18_cifar": "resnet18"}
"""Networks of the paper's Table 3, by their names here; all were trained on CIFAR-10."""


def frame(measured: Sequence[Measured], threshold: float) -> pd.DataFrame:
    """`tables.frame` at one threshold behind `epoch` and `checkpoint`; top1 is the checkpoint's accuracy."""
    parts = []
    for one in measured:
        rows = tables.at(tables.frame([one.result]), threshold)
        rows = rows.assign(top1=math.nan if one.accuracy is None else one.accuracy)
        rows.insert(0, "epoch", one.checkpoint.epoch)
        rows.insert(1, "checkpoint", one.checkpoint.path.name)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def course(measured: Sequence[Measured], threshold: float) -> choice.Course:
    """Purity of the deepest layer and accuracy over the epochs."""
    last = measured[0].result.deepest
    rows = frame(measured, threshold)
    rows = rows[rows["layer"] == last.module]
    return choice.Course(
        epochs=rows["epoch"].tolist(),
        layer=last.stage or last.module,
        purity=rows["purity"].tolist(),
        accuracy=rows["top1"].tolist(),
        images=measured[0].result.n_images,
    )


def notes(measured: Sequence[Measured]) -> list[str]:
    """Where the accuracies come from, and where they are missing or differ from what the training recorded."""
    said = []
    missing = [one.checkpoint.path.name for one in measured if one.accuracy is None]
    recorded = [one for one in measured if one.result.top1 is None and one.accuracy is not None]
    why = measured[0].result.provenance.get("labels")
    if missing:
        said.append(
            f"No regret can be said, for {', '.join(missing)} {'has' if len(missing) == 1 else 'have'} no accuracy: "
            f"{why}, and no JSON beside them has test_top1."
        )
    if recorded:
        said.append(f"Accuracies are those that the training recorded, for they cannot be measured here: {why}.")
    said += [
        f"{one.checkpoint.path.name} has {one.result.top1:.2f} % here, and its training recorded "
        f"{one.checkpoint.about['test_top1']:.2f} % on the same images: the pixels may not be those of its training."
        for one in measured
        if one.disagrees
    ]
    return said


def paper(measured: Sequence[Measured]) -> pd.DataFrame | None:
    """epoch, top1, purity of the paper's Table 3; None where it does not have this network and these images."""
    result = measured[0].result
    name = PAPER.get(result.model) if result.source == "bundled" and result.dataset.startswith("cifar10") else None
    if name is None:
        return None
    with (resources.files("purity_cli") / "paper" / "table3.csv").open() as file:
        rows = pd.read_csv(file)
    return rows[rows["model"] == name].drop(columns="model")


def layout(measured: Sequence[Measured], threshold: float) -> pd.DataFrame:
    """A row per checkpoint as text: accuracy and purity of the deepest layer, then the other layers and what must
    stand beside them, then the paper's values where it has this network."""
    last = measured[0].result.deepest
    known = paper(measured)
    published = {} if known is None else known.set_index("epoch").to_dict("index")
    lines = []
    for epoch, rows in frame(measured, threshold).groupby("epoch", sort=False):
        deepest = rows[rows["layer"] == last.module].iloc[0]
        others = rows[rows["layer"] != last.module]
        line = {
            "model": deepest["model"],
            "epoch": str(epoch),
            "accuracy": tables.cell(None if math.isnan(deepest["top1"]) else deepest["top1"], 2),
            "purity": tables.cell(deepest["purity"]),
            "se": tables.cell(deepest["se"]),
            **dict(zip(tables.labels(others), map(tables.cell, others["purity"]), strict=True)),
            **({"Average": tables.cell(float(rows["purity"].to_numpy().mean()))} if len(others) else {}),
            **{name: tables.cell(deepest[name]) for name in tables.peers_of(rows)},
            "N": f"{deepest['activations']:,}",
            "live": f"{deepest['live']} of {deepest['channels']}",
        }
        if published:
            theirs = published.get(epoch, {"top1": None, "purity": None})
            line |= {"paper accuracy": tables.cell(theirs["top1"], 2), "paper purity": tables.cell(theirs["purity"])}
        lines.append(line)
    return pd.DataFrame(lines)


def choices_table(found: Sequence[choice.Choice]) -> pd.DataFrame:
    """A row per rule as text."""
    return pd.DataFrame(
        {
            "rule": [one.rule for one in found],
            "keeps epoch": ["" if one.epoch is None else str(one.epoch) for one in found],
            "looks until": [str(one.seen) for one in found],
            "accuracy": [tables.cell(one.accuracy, 2) for one in found],
            "regret": [tables.cell(one.regret, 2) for one in found],
        }
    )


def sentences(measured: Sequence[Measured], threshold: float, found: Sequence[choice.Choice]) -> list[str]:
    """All that must be said beside the tables."""
    said = [*notes(measured), *choice.words(course(measured, threshold), found)]
    low = tables.starved(frame(measured, threshold))
    silent = low["activations"] == 0
    if silent.any():
        said.append(f"Nothing fired, so that F is NaN: {_places(low[silent])}.")
    if not silent.all():
        said.append(f"F is biased low, for N < {tables.ENOUGH} c: {_places(low[~silent])}.")
    dataset = measured[0].result.dataset
    if paper(measured) is not None and dataset != "cifar10":
        said.append(f"The paper's values are of CIFAR-10 as it was published, these of {dataset}.")
    return said


def _places(rows: pd.DataFrame) -> str:
    """`C1 at epochs 1, 2; C2 at epoch 5`."""
    epochs = rows.assign(label=tables.labels(rows)).groupby("label", sort=False)["epoch"].agg(list)
    return "; ".join(
        f"{label} at epoch{'s' * (len(found) > 1)} {', '.join(map(str, found))}" for label, found in epochs.items()
    )


def to_csv(measured: Sequence[Measured], threshold: float) -> str:
    """The rows of `frame`, with every digit."""
    return tables.to_csv(frame(measured, threshold))


def to_markdown(measured: Sequence[Measured], threshold: float, found: Sequence[choice.Choice]) -> str:
    """The table, the choices, the sentences, and what was computed from what."""
    texts = (layout(measured, threshold), choices_table(found))
    parts = [text.to_markdown(index=False, disable_numparse=True) for text in texts]
    parts.append("\n".join(f"- {sentence}" for sentence in sentences(measured, threshold, found)))
    result = measured[0].result
    purity = result.deepest.stage or result.deepest.module
    parts.append(f"Purity is that of {purity}. At the first checkpoint: {tables.footnote(result, threshold)}")
    return "\n\n".join(parts) + "\n"


def to_json(measured: Sequence[Measured], threshold: float, found: Sequence[choice.Choice]) -> str:
    """An object with `epochs` (the rows of `frame`), `choices` and `notes`; null for NaN."""
    whole: dict[str, Any] = {
        "epochs": json.loads(tables.to_json(frame(measured, threshold))),
        "choices": [asdict(one) for one in found],
        "notes": sentences(measured, threshold, found),
    }
    return json.dumps(whole, indent=2, allow_nan=False) + "\n"
