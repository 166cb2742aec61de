"""What all blocks of a Job gave -> its Result: rows, accuracy, measures, and what is told of how it came about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from purity_cli import datasets, metrics
from purity_cli.errors import log
from purity_cli.layouts import FIRST
from purity_cli.machine import device_name, versions
from purity_cli.results import Layer, Result
from purity_cli.run.resolving import Resolved
from purity_cli.stages import Tap
from purity_cli.states import States


def result_of(job: Resolved, total: States) -> Result:
    """The Result of a job whose blocks are all in `total`; warns of what weakens its numbers."""
    n_images, labelled, hits1, hits5 = total.tally.tolist()
    known = labelled > 0 and job.label_note is None
    network, source = job.network, job.source
    classes = network.num_classes or 0
    measured = _measures(job, total)
    top1 = 100 * hits1 / labelled if known else None
    if top1 is not None and network.weights != "none":
        chance = datasets.chance_note(top1, labelled, classes, source.order)
        if chance:
            log.warning(chance)
    return Result(
        job=job.job,
        thresholds=job.job.thresholds,
        layers=tuple(_layer(tap, total, measured[tap.module]) for tap in job.taps),
        n_images=n_images,
        top1=top1,
        top5=100 * hits5 / labelled if known and classes > 5 else None,
        model=network.name,
        source=network.source,
        weights=network.weights,
        dataset=source.name,
        preprocessing=job.preprocessing.describe(),
        provenance={
            **versions(),
            "device": device_name(job.device),
            "precision": job.precision,
            "batch_size": total.batch_size,
            "model": network.name,
            "source": network.source,
            "weights": network.weights,
            "weights_sha256": network.weights_sha256,
            "memory_format": str(network.memory_format).removeprefix("torch."),
            "memory_format_because": network.format_note,
            "network_notes": list(network.notes),
            "network_sha256": job.identity["network_sha256"],
            "parameters": sum(parameter.numel() for parameter in network.module.parameters()),
            "preprocessing": job.preprocessing.model_dump(mode="json"),
            "dataset": source.name,
            "dataset_fingerprint": source.fingerprint,
            "labels": job.label_note or "used",
            "dataset_notes": list(source.notes),
            "layouts": {tap.module: str(tap.layout) for tap in job.taps if tap.layout != FIRST},
            "metrics": metrics.about(job.job.metrics),
            "images_selected": len(job.selection),
            "images_scored": n_images,
            "images_skipped": [{"path": path, "reason": reason} for path, reason in total.left_out],
            "seconds": round(total.seconds, 3),
            "images_per_second": round(n_images / total.seconds, 2),
            "started": total.started,
        },
        identity=job.identity,
        images_by_group=_images_by_group(total),
        states=total,
    )


def _layer(tap: Tap, total: States, measured: Mapping[str, float]) -> Layer:
    purity = total.of_accumulator(tap.module, "purity")
    counts: Any = purity["counts"] if purity else None  # of a network that predicts no class
    return Layer(tap.module, tap.stage, *total.shapes[tap.module], counts, measured, tap.reading)


def _images_by_group(total: States) -> tuple[int, ...]:
    counted = [array for name, array in total.arrays.items() if name.endswith("/purity/images")]
    return tuple(counted[0].tolist()) if counted else ()


def _measures(job: Resolved, total: States) -> dict[str, dict[str, float]]:
    """The columns of the measures asked for, by tapped module; NaN, and a sentence, where one cannot be had."""
    found: dict[str, dict[str, float]] = {module: {} for module in total.shapes}
    for measure, parameters in map(metrics.read, job.job.metrics):
        nothing = dict.fromkeys(measure.columns, math.nan)
        crowded, unknown = list[str](), list[str]()
        why = "it needs a network that predicts classes" if measure.name not in job.metrics else None
        if measure.labels and job.label_note:
            why = f"it needs labels, but {job.label_note}"
        for module in found:
            arrays = total.of_accumulator(module, measure.accumulator().name)
            if arrays is None:
                crowded.append(module)
            values = nothing if why or arrays is None else measure.values(arrays, **parameters)
            if arrays is not None and not why and any(math.isnan(value) for value in values.values()):
                unknown.append(module)
            found[module] |= values
        if why:
            log.warning(f"{measure.name} is left out: {why}.")
        elif crowded:
            log.warning(
                f"{measure.name} of {', '.join(crowded)} is left out, for which there is no room: tap fewer layers."
            )
        if unknown:
            log.warning(
                f"{measure.columns[0]} of {', '.join(unknown)} is unknown: too few images or channels that vary."
            )
    return found
