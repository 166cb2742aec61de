"""How much slower an epoch of `purity train` is than its bare steps on the same batches.

    make benchmark-training                             # tiny_vgg; some five minutes on two cores
    make benchmark-training ARGS='--model tiny_vgg_10'

Bare is: forward, loss, backward and step, on batches that are augmented and normalised beforehand. Both sides run in
one process in turn, since absolute times differ between machines and from minute to minute; the medians count, of the
time on the wall and of the processor's, which other programs disturb less. The images are noise: speed does not
depend on them.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.speed import seconds
from purity_cli.machine import keep_freed_memory
from purity_cli.pixels import normalise
from purity_cli.train import (
    Training,
    TrainingFolder,
    TrainingImages,
    augment,
    draw,
    repeatable,
    resolve,
    train_epoch,
)


def bare(net: nn.Module, optimizer: torch.optim.Optimizer, batches: list[tuple[Tensor, Tensor]]) -> None:
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()


@click.command()
@click.option("--model", default="tiny_vgg", show_default=True)
@click.option("--batches", default=8, show_default=True, help="Of an epoch.")
@click.option("--rounds", default=5, show_default=True)
def main(model: str, batches: int, rounds: int) -> None:
    """Print the ratio of an epoch, and of an epoch with its resume file, to the bare steps."""
    keep_freed_memory()
    cpu, resolved = torch.device("cpu"), resolve(Training(model=model, device="cpu"))
    network, size = resolved.network, resolved.batch_size
    n = size * batches
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    images = TrainingImages(pixels, torch.randint(0, 10, (n,)))
    draws = draw(n, False, cpu)
    ready = [
        (normalise(augment(images.pixels, chosen, draws), network.preprocessing), images.labels[chosen])
        for chosen in draws.order.split(size)
    ]
    net = copy.deepcopy(network.module).requires_grad_(True).train()
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    trained = copy.deepcopy(net)
    its_own = torch.optim.Adam(trained.parameters(), fused=True)
    times = []
    with tempfile.TemporaryDirectory() as name, repeatable(cpu, "fp32"):
        folder = TrainingFolder(Path(name), network.name, {})
        for number in range(1, rounds + 2):
            plain = seconds(partial(bare, net, optimizer, ready))
            epoch = seconds(partial(train_epoch, resolved, trained, its_own, number, images, lambda done: None))
            state = {"network": trained.state_dict(), "optimizer": its_own.state_dict()}
            stored = seconds(partial(folder.write_resume, number, state))
            times.append([plain, epoch, stored])
            print(
                f"round {number}: bare {plain[0]:.2f} s, epoch {epoch[0]:.2f} s, resume file {stored[0]:.2f} s",
                flush=True,
            )
    plain, epoch, stored = np.array(times[1:]).transpose(1, 2, 0)  # each (wall or processor, round)
    whole = stored * n / 50_000  # it is written once an epoch, however many batches that has
    print(f"{model}, {batches} batches of {size}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    for kind, part, all_of_it in zip(("wall", "processor"), epoch / plain, (epoch + whole) / plain, strict=True):
        print(
            f"{kind} time, epoch / bare: {np.median(part):.3f} (median of {rounds} rounds, {part.min():.3f} to "
            f"{part.max():.3f}); with the resume file, for 50,000 images: {np.median(all_of_it):.3f}"
        )


if __name__ == "__main__":
    main()
