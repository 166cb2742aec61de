"""Golden values of an independent implementation, on real weights and real images; and the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from purity_cli import run, store
from purity_cli.cli.options import cores
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.views import cells

RESULTS = Path(__file__).resolve().parents[2] / "results"
GOLDEN = Path(__file__).with_name("golden")


def load(shared: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "golden" / f"{name}.json").read_text())
    return found


def assert_agrees(result: Result, golden: dict[str, Any]) -> None:
    """Within SPEC's tolerances, for every layer that both have, at all nine thresholds."""
    assert result.n_images == golden["n"]
    assert result.top1 == pytest.approx(golden["top1"], abs=0.1)
    rows = cells.frame([result])
    common = [layer for layer in result.layers if layer.module in golden["layers"]]
    assert common
    for layer in common:
        expected = golden["layers"][layer.module]
        assert [layer.channels, layer.height, layer.width] == expected["shape"]
        for threshold in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
            (row,) = rows[(rows["label"] == layer.name) & (rows["threshold"] == threshold)].to_dict("records")
            purity, fired = expected["purity"][str(threshold)], expected["activations"][str(threshold)]
            where = f"{layer.module} at {threshold}"
            assert row["activations"] == pytest.approx(fired, abs=max(2, 0.005 * fired)), where
            purity = float("nan") if purity is None else purity
            assert row["purity"] == pytest.approx(purity, abs=0.002, nan_ok=True), where


def test_what_ships_with_this_package() -> None:
    """Where nothing lies beside the checkout: the first score that anybody makes, by `tests.core.golden.make`."""
    golden = json.loads((GOLDEN / "resnet10_cifar-cifar10-sample.json").read_text())
    result = run.score(run.resolve(Job.of(layers=("C1..last",), per_class=10, device="cpu")), workers=cores())
    assert result.provenance["weights_sha256"] == golden["weights_sha256"], (
        "other weights: python -m tests.core.golden.make"
    )
    assert [layer.module for layer in result.layers] == list(golden["layers"])
    assert_agrees(result, golden)


def test_cifar_resnet20(shared: Path) -> None:
    golden = load(shared, "resnet20-cifar10")
    job = Job.of(
        model=f"{shared / 'models/cifar_resnet.py'}:resnet20",
        weights=str(shared / "weights/resnet20-cifar10.safetensors"),
        dataset=str(shared / "data/cifar10-jpeg.tar.xz"),
        layers=tuple(golden["layers"]),
        resize="none",
        crop="none",
        device="cpu",
    )
    assert_agrees(run.score(run.resolve(job), workers=cores()), golden)


def test_efficientnet_lite0(shared: Path) -> None:
    golden = load(shared, "efficientnet_lite0-imagenet-sample")
    job = Job.of(
        model="efficientnet_lite0",
        dataset=f"folder:{shared / 'data/imagenet-sample'}",
        layers=tuple(golden["layers"]),
        device="cpu",
    )
    assert_agrees(run.score(run.resolve(job), workers=cores()), golden)


def test_tiny_vgg_as_its_authors_released_it(shared: Path) -> None:
    """The same values through the network that stands beside the weights, and through the bundled one."""
    golden = load(shared, "tiny_vgg-epoch10-cifar10")
    for model in (f"{shared / 'models/tiny_vgg.py'}:tiny_vgg", "tiny_vgg"):
        job = Job.of(
            model=model,
            weights=str(shared / "weights/tiny_vgg-cifar10-epoch10.safetensors"),
            dataset=str(shared / "data/cifar10-jpeg.tar.xz"),
            layers=tuple(golden["layers"]),
            resize="none",
            crop="none",
            mean=(0, 0, 0),
            std=(1, 1, 1),
            device="cpu",
        )
        assert len(job.layers) == 14
        assert_agrees(run.score(run.resolve(job), workers=cores()), golden)


@pytest.mark.parametrize(
    ("folder", "golden"),
    [
        ("resnet20_cifar10-jpeg", "resnet20-cifar10"),
        ("efficientnet_lite0_imagenet-sample", "efficientnet_lite0-imagenet-sample"),
    ],
)
def test_committed_results(folder: str, golden: str, shared: Path) -> None:
    assert_agrees(store.read(RESULTS / folder), load(shared, golden))
