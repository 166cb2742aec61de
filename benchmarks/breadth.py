"""Every family of networks against plain autograd: what the tool counts at every reading of every stage.

    make breadth                                            # timm's families, torchvision, pretrainedmodels; hours
    make breadth ARGS="'timm:*resnet*' torchvision:vgg11"   # these alone

Random weights in which everything lives: a residual branch whose last normalisation begins at zero has no gradient, and
would agree whatever was computed. Counts at all thresholds are compared with those of the maps and gradients that hooks
and `retain_grad` give in the same batch and memory format, reduced in float64 by the letters of SPEC. `breadth.csv` in
`--out` has a row for each network, and in which modules how many counts differ.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.walk import CNNS, HYBRIDS, OTHERS
from purity_cli import run
from purity_cli.errors import PurityError
from purity_cli.layouts import Layout
from purity_cli.models import LIBRARIES
from purity_cli.pixels import normalise
from purity_cli.plan import Job
from tests.core import oracle

IMAGES = 4


def names() -> Iterator[str]:
    """One of each of timm's families, and all of the other libraries that are not of the largest."""
    yield from (f"timm:{name}" for name in (*CNNS, *HYBRIDS, *OTHERS))
    for source in ("torchvision", "pretrainedmodels"):
        yield from (f"{source}:{name}" for name in LIBRARIES[source].names())


def enliven(module: nn.Module) -> None:
    """Let no vector of weights be constant, as those of normalisations are before a training, nor any zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if not tensor.is_floating_point() or tensor.numel() < 2 or (tensor != tensor.flatten()[0]).any():
                continue
            drawn = torch.rand(tensor.shape, generator=generator)
            shifts = name.endswith(("bias", "running_mean"))
            tensor.copy_(0.2 * (drawn - 0.5) if shifts else 0.5 + drawn)


def reference(module: nn.Module, images: Tensor, taps: dict[str, Layout]) -> dict[str, NDArray[Any]]:
    """M (n, c) of each tap. What a tap hands on is a copy, so that the one kept is what nothing writes into."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(part: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept[name] = output.clone()
            if not kept[name].requires_grad:  # what stands before is not followed by autograd
                kept[name].requires_grad_()
            kept[name].retain_grad()
            return kept[name].clone()

        return hook

    with ExitStack() as stack, torch.enable_grad():
        for name in taps:
            stack.callback(module.get_submodule(name).register_forward_hook(keep(name)).remove)
        logits = module(images.clone().requires_grad_())
        logits.amax(1).sum().backward()
    found = {}
    for name, tensor in kept.items():
        assert tensor.grad is not None
        both = (taps[name].maps(each).numpy() for each in (tensor.detach(), tensor.grad))
        pairs = zip(*both, strict=True)
        found[name] = np.stack([oracle.mass(b, g) for b, g in pairs])
    return found


def compare(name: str) -> dict[str, Any]:
    """A row of the table."""
    job = Job.of(
        model=name, weights="none", per_class=1, limit=IMAGES, batch_size=IMAGES, layers=("all:C1..last",)
    )  # fmt: skip
    try:
        plan = run.resolve(job)
        module = plan.network.module
        enliven(module)
        result = run.score(plan, workers=1)
    except PurityError as error:
        return {"network": name, "note": str(error)}
    block = next(iter(run.pixels_of(plan, workers=1).blocks([0])))
    images = normalise(block.pixels, plan.preprocessing).contiguous(memory_format=plan.network.memory_format)
    layers = {layer.module: layer for layer in result.layers}
    masses = reference(module.requires_grad_(False), images, {tap.module: tap.layout for tap in plan.taps})
    counts, differ, where = 0, 0, []
    for path, layer in layers.items():
        expected = np.stack([(masses[path] > t).sum(0) for t in job.thresholds])
        unlike = int((expected != layer.counts.sum(0)).sum())
        counts, differ = counts + expected.size, differ + unlike
        where += [f"{path} {unlike}"] if unlike else []
    fired = sum(int(layer.counts.sum()) for layer in layers.values())
    return {
        "network": name, "stages": len({layer.stage for layer in result.layers}), "modules": len(layers),
        "counts": counts, "fired": fired, "differ": differ, "note": ", ".join(where),
    }  # fmt: skip


@click.command(help=__doc__)
@click.argument("patterns", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/stages"))
def main(patterns: tuple[str, ...], out: Path) -> None:
    rows = []
    for name in names():
        if patterns and not any(fnmatch(name, pattern) for pattern in patterns):
            continue
        rows.append(compare(name))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items() if value != ""), flush=True)
        gc.collect()
    table = pd.DataFrame(rows).astype(dict.fromkeys(("stages", "modules", "counts", "fired", "differ"), "Int64"))
    table.to_csv(out / "breadth.csv", index=False)
    scored = table.dropna(subset="counts")
    print(
        f"{len(scored)} of {len(table)} networks scored, {scored['modules'].sum():,} modules, "
        f"{scored['counts'].sum():,} counts; {scored['differ'].sum():,} differ, in {(scored['differ'] > 0).sum()}"
    )


if __name__ == "__main__":
    main()
