"""`purity train`: checkpoints of a network at chosen epochs, for purity over training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from purity_cli.cli import options, progress
from purity_cli.errors import log

if TYPE_CHECKING:
    from purity_cli.train import Epoch


def _epochs(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no list of epochs: write e.g. 10,20,50,100.", ctx, param)
    return tuple(int(part) for part in parts)


@click.command("train")
@click.option(
    "--model", "-m", default="tiny_vgg_10", show_default=True, metavar="NAME",
    help="tiny_vgg, resnet18_cifar, net.py:function, ...: see `purity models`."
)  # fmt: skip
@click.option(
    "--dataset", "-d", default="digits", show_default=True, metavar="NAME|PATH",
    help="cifar10, digits, or a folder or tar with train and test (or val) folders of class folders."
)  # fmt: skip
@options.JOB_OPTIONS["data_dir"]
@options.download_option
@click.option(
    "--resize", type=options.COUNT, metavar="N",
    help="Short side of the images, and then a central crop of NxN.  [default: as they are]"
)  # fmt: skip
@click.option("--epochs", type=options.COUNT, default=100, show_default=True)
@click.option(
    "--checkpoints", callback=_epochs, metavar="N,N,...",
    help="Epochs whose weights are kept.  [default: 10,20,50,100 and the last]"
)  # fmt: skip
@click.option("--batch-size", "-b", type=options.COUNT, metavar="N", help="[default: 64 for resnet18_cifar, else 128]")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Adam's; divided by 3 every --lr-every epochs.")
@click.option("--lr-every", type=options.COUNT, default=20, show_default=True, metavar="N")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@options.JOB_OPTIONS["device"]
@click.option("--precision", type=click.Choice(["fp32", "tf32", "bf16"]), default="fp32", show_default=True)
@click.option("--limit", type=options.COUNT, metavar="N", help="Only N images of each split, for a trial.")
@options.workers_option
@options.progress_option
@options.output_option("Folder of the checkpoints.  [default: checkpoints/MODEL_DATASET]")
def command(download: bool, workers: int, output: Path | None, **settings: Any) -> None:
    """Train a network by the paper's recipe, and keep its weights after chosen epochs.

    Images are padded by 4, mirrored at random (but not digits) and cropped at random; a last batch of one image joins
    the one before it. Each checkpoint is a weight file for `purity score --weights` and a JSON that says how it came
    about. The same command goes on after an interruption, to the same weights, and with more --epochs after the end.
    """
    from purity_cli import train

    resolved = train.resolve(train.Training.of(**settings), download=download)
    folder = output or Path("checkpoints", f"{resolved.network.name}_{resolved.test.name}")

    def report(epoch: Epoch) -> None:
        progress.step("epoch", **epoch._asdict())
        test = "" if epoch.test_top1 is None else f", test {epoch.test_top1:.2f} %"
        log.info(
            f"epoch {epoch.epoch}/{resolved.training.epochs}: loss {epoch.loss:.4f}, train {epoch.train_top1:.2f} %"
            f"{test}, {epoch.seconds:.1f} s"
        )

    with progress.images(resolved.network.name) as show:
        command_line = click.get_current_context().find_root().obj
        files = train.train(resolved, folder, workers=workers, command=command_line, progress=show, report=report)
    for file in files:
        click.echo(file)
