"""Channels on images, in one pass each: the images on which a channel fires most, and what its loss changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from purity_cli import cam, stages
from purity_cli.cam.panels import Heading, Shown, Tile, TileRow
from purity_cli.errors import PurityError
from purity_cli.pixels import Block, Pixels, normalise
from purity_cli.purity import activation, map_statistics
from purity_cli.report import Row
from purity_cli.run.resolving import Resolved
from purity_cli.taps import Taps

Progress = Callable[[int, int], object]
CHANGED = "the network or the images are no longer those that were scored: score them again"


def _batches(plan: Resolved, workers: int, progress: Progress) -> Iterator[tuple[Block, Tensor]]:
    """Each block of the plan's images, and its pixels as the network takes them."""
    pixels = Pixels(
        plan.source, plan.selection, plan.preprocessing, batch_size=plan.batch_size, workers=workers,
        on_bad_image=plan.job.on_bad_image,
    )  # fmt: skip
    done = 0
    for block in pixels.blocks():
        if len(block.positions):
            yield block, normalise(block.pixels.to(plan.device), plan.preprocessing)
        done += len(block.positions) + len(block.skipped)
        progress(done, len(plan.selection))


def strongest(
    plan: Resolved, chosen: Mapping[int, int], k: int, threshold: float, workers: int, progress: Progress
) -> dict[int, list[tuple[int, float]]]:
    """For each channel of the plan's only layer, the k images (by their place in the source) that it adds most to.

    Of the images on which it fires, those with the largest mean of max(beta B, 0), which is what it adds to the
    predicted class; with its M there. `chosen` has the stored firings of each channel at the threshold. PurityError
    where this pass counts others, by more than another device would.
    """
    (tap,) = plan.taps
    channels = list(chosen)
    ratios, parts, places = list[Tensor](), list[Tensor](), list[Tensor]()
    network = plan.network.module.to(plan.device)
    with Taps(network, {tap.module: tap.layout}, map_statistics) as taps:
        for block, images in _batches(plan, workers, progress):
            output = taps(images)
            statistics, beta = output.maps[tap.module], output.gradients[tap.module]
            adds = torch.where(beta > 0, beta * statistics.mean_positive, -beta * statistics.mean_negative)
            ratios.append(activation(statistics, beta)[:, channels].cpu())
            parts.append(adds[:, channels].cpu())
            places.append(block.positions)
    m, part, positions = torch.cat(ratios), torch.cat(parts), torch.cat(places)
    counted = (m > threshold).sum(0).tolist()
    if any(abs(a - b) > max(2, 0.005 * b) for a, b in zip(counted, chosen.values(), strict=True)):
        raise PurityError(f"{tap.module} fires on other images than stored: {CHANGED}.")
    found = {}
    for place, channel in enumerate(channels):
        fires = (m[:, place] > threshold).nonzero()[:, 0]
        best = fires[part[fires, place].argsort(descending=True)[:k]].tolist()
        found[channel] = [(plan.selection[int(positions[i])], float(m[i, place])) for i in best]
    return found


def panel(plan: Resolved, found: Mapping[int, Sequence[tuple[int, float]]], label: str) -> Shown:
    """A row per channel with the images on which it fires most, each under the channel's map."""
    (tap,) = plan.taps
    rows = []
    most = max(map(len, found.values()))
    for channel, images in found.items():
        views = cam.look(plan, [i for i, _ in images], partial(cam.channel_maps, channels=[channel]))
        names = cam.names_of_classes(plan)
        tiles = [
            Tile(
                view.image,
                view.maps[tap.module][0],
                f"M = {m:.2f}\n{names[view.predicted] if names else view.predicted}",
            )
            for view, (_, m) in zip(views, images, strict=True)
        ]
        rows.append(TileRow(f"{label} {channel}", [*tiles, *[Tile(None)] * (most - len(tiles))]))
    headings = [Heading(f"no. {rank}") for rank in range(1, most + 1)]
    what = "max(beta B, 0) of each channel, on the images on which it fires and adds most to the class named below"
    return Shown(headings, rows, what)


@contextmanager
def zeroed(network: nn.Module, taps: Sequence[stages.Tap], channels: Mapping[str, Sequence[int]]) -> Iterator[None]:
    """While this is entered, these channels of these modules' maps are 0; prefix tokens stay as they are."""

    def hook(tap: stages.Tap) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def zero(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            tap.layout.maps(changed)[:, list(channels[tap.module])] = 0
            return changed

        return zero

    modules = dict(network.named_modules())
    with ExitStack() as stack:
        for tap in taps:
            stack.callback(modules[tap.module].register_forward_hook(hook(tap)).remove)
        yield


def ablate(
    plan: Resolved, channels: Mapping[str, Sequence[int]], top1: float | None, workers: int, progress: Progress
) -> tuple[list[Row], int]:
    """What changes where these channels of each layer are 0, layer by layer and all at once; and of how many images.

    A row each: how many predictions and how much of the logits (over all classes) change, and top-1 before and after.
    PurityError where top-1 is not the stored one, by more than another device would change it.
    """
    network = plan.network.module.to(plan.device).eval()
    taps = [tap for tap in plan.taps if channels[tap.module]]
    groups = {tap.name: [tap] for tap in taps} | ({"all of these": taps} if len(taps) > 1 else {})
    before, labels = list[Tensor](), list[Tensor]()
    after: dict[str, list[Tensor]] = {name: [] for name in groups}
    with torch.no_grad():
        for block, images in _batches(plan, workers, progress):
            before.append(network(images.clone()).float().cpu())
            labels.append(block.labels)
            for name, group in groups.items():
                with zeroed(network, group, channels):
                    after[name].append(network(images.clone()).float().cpu())
    logits, classes = torch.cat(before), torch.cat(labels)
    accuracy = _top1(logits, classes)
    if top1 is not None and accuracy is not None and abs(accuracy - top1) > 0.1 + 100 / len(logits):
        raise PurityError(f"Top-1 is {accuracy:.2f} % here and {top1:.2f} % as stored: {CHANGED}.")
    rows = list[Row]()
    for name, group in groups.items():
        changed = torch.cat(after[name])
        change = (changed - logits).abs()
        rows.append(
            {
                "layer": name, "zeroed": sum(len(channels[tap.module]) for tap in group), "top1_before": accuracy,
                "top1": _top1(changed, classes), "mean": float(change.mean()), "largest": float(change.max()),
                "changed": int((changed.argmax(1) != logits.argmax(1)).sum()), "spread": float(logits.std()),
            }
        )  # fmt: skip
    return rows, len(logits)


def _top1(logits: Tensor, labels: Tensor) -> float | None:
    known = labels >= 0
    return 100 * float((logits.argmax(1) == labels)[known].float().mean()) if known.any() else None
