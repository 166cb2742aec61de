"""What moves F, and what moves F at an equal rate? Of stored results, over the number of images, map sizes and layers.

    for size in 160 224 288; do  # three passes over 1,000 photographs: ten minutes on one core
      purity score -m efficientnet_lite0 -d folder:../shared/data/imagenet-sample -l C1..last \\
        --resize $size --crop $size -o /tmp/size$size
    done
    python -m benchmarks.rate /tmp/size* results/efficientnet_lite0_imagenet-sample results/resnet20_cifar10-jpeg

The jackknife's groups are samples of the images: the first k of 20 give what k / 20 of the images would have given. The
table goes to `--out`, a row for every result, layer and number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from purity_cli import store
from purity_cli.results import Result
from purity_cli.stats import feature_purity, purity_at_rate

GROUPS = (2, 4, 10, 20)
"""The numbers of groups, of 20, whose images are taken."""


def rows(name: str, result: Result, threshold: float = 0.5) -> Iterator[dict[str, Any]]:
    """A row for every layer and number of images."""
    images, place = np.asarray(result.images), result.thresholds.index(threshold)
    for layer in result.layers:
        for groups in GROUPS:
            counts = layer.counts[:groups]
            row: dict[str, Any] = {"result": name, "layer": layer.name, "map": f"{layer.height}x{layer.width}"}
            row |= {"n": int(images[:groups].sum()), "N": int(counts[:, place].sum())}
            row["F"] = float(feature_purity(counts[:, place].sum(0)))
            for rate in (0.01, 0.05):
                row[f"F {rate:.0%}"] = purity_at_rate(counts, images[:groups], result.thresholds, rate).purity
            yield row


@click.command(help=__doc__)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/rate"), show_default=True)
def main(folders: tuple[Path, ...], out: Path) -> None:
    table = pd.DataFrame([row for folder in folders for row in rows(folder.name, store.read(folder))])
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "rate.csv", index=False, float_format="%.6g")
    text = table.to_markdown(index=False, floatfmt=".3f")
    (out / "rate.md").write_text(f"{text}\n")
    click.echo(text)


if __name__ == "__main__":
    main()
