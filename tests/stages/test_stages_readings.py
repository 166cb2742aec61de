"""Readings of stages: `conv:`, `block:`, `pool:`, written down from published architectures, and checked by value."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from purity_cli import models, nets, run, stages, suite
from purity_cli.cli import layers as cli
from purity_cli.errors import PurityError
from purity_cli.monitor import PurityMonitor
from purity_cli.naming import ACTIVATION, READINGS
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.stages import NoStages, Tap, probe, resolve
from purity_cli.views import cells
from tests.stages.test_stages import build


def read(net: nn.Module, *specs: str, size: int = 224) -> dict[str, str]:
    """Module by name of the reading."""
    taps = resolve(net, "any", "net", specs, (size, size))
    found = {tap.name: tap.module for tap in taps}
    assert len(found) == len(taps)
    return found


def table(**stage: str) -> dict[str, dict[str, str]]:
    """`C1="module, conv, block, pool"`, with a dash where there is none."""
    rows: dict[str, dict[str, str]] = {}
    for name, text in stage.items():
        parts = [part.strip() for part in text.split(",")]
        assert len(parts) == 4
        prefixes = ("", "conv:", "block:", "pool:")
        rows[name] = {f"{prefix}{name}": part for prefix, part in zip(prefixes, parts, strict=True) if part != "-"}
    return rows


def bottlenecks(last: tuple[int, int, int, int], conv: str, stem: str, pool: str) -> dict[str, dict[str, str]]:
    """A ResNet whose layers end in these blocks."""
    blocks = {
        f"C{k + 1}": f"layer{k}, layer{k}.{i}.{conv}, layer{k}, {pool if k == 4 else '-'}"
        for k, i in enumerate(last, 1)
    }
    return table(C1=stem, **blocks)


RESNET50 = bottlenecks((2, 3, 5, 2), "conv3", "relu, conv1, -, maxpool", "avgpool")
"""He et al. 2015, Table 1: 3, 4, 6, 3 blocks of three convolutions; the stem is pooled, then nothing until the end."""

# Huang et al. 2017, Table 1: 6, 12, 24, 16 layers of a 1x1 (conv1) and a 3x3 (conv2) convolution; between blocks a
# 1x1 convolution and an average pooling of 2, which takes maps of the block's size.
DENSE = {
    f"C{k + 1}": f"features.denseblock{k}, features.denseblock{k}.denselayer{layers}.conv2, features.denseblock{k}, "
    f"features.transition{k}.pool"
    for k, layers in enumerate((6, 12, 24), 1)
}
DENSE_END = "features.norm5, features.denseblock4.denselayer16.conv2, features.denseblock4"

# Hu et al. 2018 and its release: 3, 8, 36, 3 blocks; a stem of three 3x3 convolutions, the third with relu3.
SENET154 = (2, 7, 35, 2)


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        # Krizhevsky 2014: conv relu pool, conv relu pool, conv relu, conv relu, conv relu pool.
        (
            "torchvision",
            "alexnet",
            table(
                C1="features.1, features.0, -, features.2",
                C2="features.4, features.3, -, features.5",
                C3="features.7, features.6, -, -",
                C4="features.9, features.8, -, -",
                C5="features.11, features.10, -, features.12",
            ),
        ),
        # Simonyan & Zisserman 2014, D, with BN: 2, 2, 3, 3, 3 of (conv, bn, relu), a pooling after each.
        (
            "torchvision",
            "vgg16_bn",
            table(
                C1="features.5, features.3, -, features.6",
                C2="features.12, features.10, -, features.13",
                C3="features.22, features.20, -, features.23",
                C4="features.32, features.30, -, features.33",
                C5="features.42, features.40, -, features.43",
            ),
        ),
        ("torchvision", "resnet50", RESNET50),
        ("pretrainedmodels", "resnet50", RESNET50),
        ("torchvision", "resnet18", bottlenecks((1, 1, 1, 1), "conv2", "relu, conv1, -, maxpool", "avgpool")),
        # The stem is a container of three convolutions; shortcuts pool before their convolution, which does not follow.
        (
            "timm",
            "resnet50d",
            bottlenecks((2, 3, 5, 2), "conv3", "act1, conv1.6, conv1, maxpool", "global_pool.pool"),
        ),
        # One block a layer, whose shortcut convolves after its other convolutions.
        (
            "timm",
            "resnet10t",
            bottlenecks((0, 0, 0, 0), "conv2", "act1, conv1.6, conv1, maxpool", "global_pool.pool"),
        ),
        (
            "torchvision",
            "densenet121",
            table(C1="features.relu0, features.conv0, -, features.pool0", **DENSE, C5=f"{DENSE_END}, -"),
        ),
        (
            "timm",
            "densenet121",
            table(C1="features.norm0, features.conv0, -, features.pool0", **DENSE, C5=f"{DENSE_END}, global_pool.pool"),
        ),
        (
            "pretrainedmodels",
            "senet154",
            bottlenecks(SENET154, "conv3", "layer0.relu3, layer0.conv3, -, layer0.pool", "avg_pool"),
        ),
        # Here the pooling stands behind the stem, whose output the stage therefore is.
        (
            "timm",
            "legacy_senet154",
            bottlenecks(SENET154, "conv3", "layer0.relu3, layer0.conv3, layer0, pool0", "global_pool.pool"),
        ),
        # Weight-standardised convolutions, activations before them: the stem's convolution is the stage.
        (
            "timm",
            "resnetv2_50x1_bit",
            table(
                C1="stem.conv, stem.conv, -, -",
                C2="stages.0, stages.0.blocks.2.conv3, stages.0, -",
                C3="stages.1, stages.1.blocks.3.conv3, stages.1, -",
                C4="stages.2, stages.2.blocks.5.conv3, stages.2, -",
                C5="stages.3, stages.3.blocks.2.conv3, stages.3, head.global_pool.pool",
            ),
        ),
        # Tan & Le 2019, Table 1, 1 2 2 3 3 4 1 blocks; lite has no squeeze-and-excitation. The first block is
        # depthwise-separable, the others project by conv_pwl; stages are before each stride and at the end.
        (
            "timm",
            "tf_efficientnet_lite0",
            table(
                C1="blocks.0, blocks.0.0.conv_pw, blocks.0, -",
                C2="blocks.1, blocks.1.1.conv_pwl, blocks.1, -",
                C3="blocks.2, blocks.2.1.conv_pwl, blocks.2, -",
                C4="blocks.4, blocks.4.2.conv_pwl, blocks.4, -",
                C5="blocks.6, blocks.6.0.conv_pwl, blocks.6, global_pool.pool",
            ),
        ),
        # Its squeeze-and-excitation pools maps as well, and is made of convolutions.
        (
            "torchvision",
            "efficientnet_b0",
            table(
                C1="features.1, features.1.0.block.2.0, features.1, -",
                C2="features.2, features.2.1.block.3.0, features.2, -",
                C3="features.3, features.3.1.block.3.0, features.3, -",
                C4="features.5, features.5.2.block.3.0, features.5, -",
                C5="features.8, features.8.0, features.8, avgpool",
            ),
        ),
        # Radosavovic 2020, RegNetX-200MF: 1, 1, 4, 7 blocks; the one block of s1 has a shortcut with a convolution.
        (
            "timm",
            "regnetx_002",
            table(
                C1="stem, stem.conv, stem, -",
                C2="s1, s1.b1.conv3.conv, s1, -",
                C3="s2, s2.b1.conv3.conv, s2, -",
                C4="s3, s3.b4.conv3.conv, s3, -",
                C5="s4, s4.b7.conv3.conv, s4, head.global_pool.pool",
            ),
        ),
        # Szegedy 2014: the last branch of each module is a pooling with a 1x1 convolution.
        (
            "torchvision",
            "googlenet",
            table(
                C1="conv1, conv1.conv, conv1, maxpool1",
                C2="conv3, conv3.conv, conv3, maxpool2",
                C3="inception3b, inception3b.branch4.1.conv, inception3b, maxpool3",
                C4="inception4e, inception4e.branch4.1.conv, inception4e, maxpool4",
                C5="inception5b, inception5b.branch4.1.conv, inception5b, avgpool",
            ),
        ),
    ],
)
def test_published_architectures(source: str, name: str, expected: dict[str, dict[str, str]]) -> None:
    net = build(source, name)
    wanted = {reading: module for row in expected.values() for reading, module in row.items()}
    assert read(net, "all:C1..last") == wanted
    assert list(read(net, *(f"all:{stage}" for stage in expected))) == list(wanted)


def test_networks_of_the_paper_on_cifar10() -> None:
    assert read(nets.tiny_vgg().eval(), "all:C1..C2", size=32) == {
        "C1": "relu2", "C2": "relu4", "conv:C1": "conv2", "conv:C2": "conv4", "pool:C1": "maxpool1",
        "pool:C2": "maxpool2",
    }  # fmt: skip
    assert read(nets.tiny_vgg_10().eval(), "all:last", size=32) == {
        "C2": "features.8", "conv:C2": "features.7", "pool:C2": "features.9",
    }  # fmt: skip
    assert read(nets.resnet18_cifar().eval(), "all:C1..last", size=32) == {
        **{f"C{i}": f"layer{i}" for i in range(1, 5)},
        **{f"conv:C{i}": f"layer{i}.1.conv2" for i in range(1, 5)},
        **{f"block:C{i}": f"layer{i}" for i in range(1, 5)},
        "pool:C4": "avgpool",
    }


@pytest.fixture
def resnet20(shared: Path) -> nn.Module:
    spec: dict[str, object] = {}
    exec((shared / "models/cifar_resnet.py").read_text(), spec)
    net: nn.Module = spec["resnet20"]()  # type: ignore[operator]
    return net.eval()


def test_a_users_network_that_has_no_modules_for_relu_and_pooling(resnet20: nn.Module) -> None:
    assert read(resnet20, "all:C1..last", size=32) == {
        **{f"C{i}": f"layer{i}" for i in range(1, 4)},
        **{f"conv:C{i}": f"layer{i}.2.conv2" for i in range(1, 4)},
        **{f"block:C{i}": f"layer{i}" for i in range(1, 4)},
    }
    with pytest.raises(
        PurityError, match=r"net has no pool:C3; of this stage there is C3 = layer3, conv:C3 = layer3\.2"
    ):
        read(resnet20, "pool:last", size=32)


@pytest.mark.parametrize("size", [32, 64, 97])
def test_readings_do_not_depend_on_the_size_of_the_image(size: int) -> None:
    wanted = {reading: module for row in RESNET50.values() for reading, module in row.items()}
    assert read(build("torchvision", "resnet50"), "all:C1..C5", size=size) == wanted
    wide = resolve(build("torchvision", "resnet50"), "any", "net", ["all:C1..C5"], (64, 96))
    assert {tap.name: tap.module for tap in wide} == wanted


def outputs(net: nn.Module, readings: dict[str, str], size: int) -> dict[str, Tensor]:
    """What the modules give for one image, before anything overwrites it."""
    seen: dict[str, Tensor] = {}
    modules = dict(net.named_modules())

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output.clone())

    handles = [modules[module].register_forward_hook(keep(name)) for name, module in readings.items()]
    with torch.no_grad():
        net(torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1)))
    for handle in handles:
        handle.remove()
    return seen


def same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5) and bool(a.abs().max() > 0)


def randomised(net: nn.Module) -> Any:
    """With batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return net.eval()


def test_values_of_a_vgg_are_chained() -> None:
    net = randomised(torchvision.models.vgg11_bn(num_classes=10, init_weights=False))
    found = read(net, "all:C1..C5", size=64)
    got = outputs(net, found, 64)
    for k in range(1, 6):
        place = int(found[f"conv:C{k}"].removeprefix("features."))
        assert same(got[f"C{k}"], net.features[place + 1](got[f"conv:C{k}"]).relu())
        assert same(got[f"pool:C{k}"], nn.functional.max_pool2d(got[f"C{k}"], 2))


def test_values_of_a_densenet_are_chained() -> None:
    net = randomised(torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=10))
    got = outputs(net, read(net, "all:C1..C5", size=64), 64)
    assert same(got["C5"], net.features.norm5(got["block:C5"]))
    for k in (2, 3, 4):
        assert torch.equal(got[f"C{k}"], got[f"block:C{k}"])
        # The last layer's new maps are the last of the concatenation.
        assert torch.equal(got[f"C{k}"][:, -8:], got[f"conv:C{k}"])
    assert same(got["block:C5"][:, -8:], got["conv:C5"])
    assert same(got["C1"], net.features.norm0(got["conv:C1"]).relu())


def test_values_of_a_resnet_are_chained() -> None:
    net = randomised(torchvision.models.ResNet(Bottleneck, [1, 1, 1, 2], num_classes=10))
    got = outputs(net, {**read(net, "all:C1..C5", size=64), "before": "layer4.0"}, 64)
    assert same(got["C5"], (net.layer4[1].bn3(got["conv:C5"]) + got["before"]).relu())
    assert same(got["pool:C5"], got["C5"].mean((2, 3), keepdim=True))
    # The shortcut of a block without another one runs after its last convolution.
    assert same(got["C4"], (net.layer3[0].bn3(got["conv:C4"]) + net.layer3[0].downsample(got["C3"])).relu())
    assert same(got["pool:C1"], nn.functional.max_pool2d(got["C1"], 3, 2, 1))


class Residual(nn.Module):
    """A block of two convolutions and a shortcut with one, which runs first or last, in a network of two of them."""

    def __init__(self, c_in: int, c: int, stride: int, shortcut_first: bool) -> None:
        super().__init__()
        self.shortcut_first = shortcut_first
        self.body = nn.Sequential(nn.Conv2d(c_in, c, 3, stride, 1), nn.ReLU(), nn.Conv2d(c, c, 3, 1, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(stride), nn.Conv2d(c_in, c, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut_first:
            return self.shortcut(x) + self.body(x)
        return self.body(x) + self.shortcut(x)


class Small(nn.Module):
    """A plain network around what it is given."""

    def __init__(self, purity_stages: list[str], **parts: nn.Module) -> None:
        super().__init__()
        self.purity_stages = purity_stages
        for name, part in parts.items():
            self.add_module(name, part)
        self.fc = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            x = part(x.mean((2, 3)) if name == "fc" else x)
        return x


@pytest.mark.parametrize("shortcut_first", [True, False])
def test_a_shortcut_is_no_reading(shortcut_first: bool) -> None:
    blocks = {"a": Residual(3, 8, 1, shortcut_first), "b": Residual(8, 8, 2, shortcut_first)}
    net = Small(["a", "b"], **blocks, act=nn.ReLU())
    assert read(net, "all:C1..C2", size=16) == {
        "C1": "a", "C2": "b", "conv:C1": "a.body.2", "conv:C2": "b.body.2", "block:C1": "a", "block:C2": "b",
    }  # fmt: skip
    # An activation behind the block is the stage of the same block.
    net.purity_stages = ["a", "act"]
    assert read(net, "block:last", size=16) == {"block:C2": "b"}


def test_a_shortcut_s_convolution_counts_where_there_is_no_other() -> None:
    class Only(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.interpolate(self.body(x), x.shape[-1]) + self.shortcut(x)

    block = Only(3, 8, 1, False)
    block.body[0] = nn.Conv2d(3, 8, 3, 2, 1)
    assert read(Small(["a"], a=block), "conv:C1", size=16) == {"conv:C1": "a.shortcut.1"}


def conv(c_in: int, c: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c, 3, stride, 1)


def test_a_stage_inside_a_container_has_the_largest_that_ends_with_it() -> None:
    inner = nn.Sequential(conv(8, 8, 2), nn.ReLU())
    net = Small(
        ["stem.1", "deep.0.1", "tail.1"],
        stem=nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2)),  # ends in another map than its ReLU
        deep=nn.Sequential(inner, nn.BatchNorm2d(8)),
        tail=nn.Sequential(conv(8, 16, 2), nn.ReLU(), nn.Conv2d(16, 16, 1)),  # ends in another layer
    )
    assert read(net, "all:C1..C3", size=32) == {
        "C1": "stem.1", "C2": "deep.0.1", "C3": "tail.1",
        "conv:C1": "stem.0", "conv:C2": "deep.0.0", "conv:C3": "tail.0",
        "block:C2": "deep", "pool:C1": "stem.2",
    }  # fmt: skip


def test_the_trunk_is_no_block() -> None:
    trunk = nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(2), conv(8, 8), nn.ReLU())
    for after in (nn.Identity(), nn.BatchNorm2d(8)):
        net = Small(["features.1", "after"], features=trunk, after=after)
        assert read(net, "all:C1..C2", size=16) == {
            "C1": "features.1", "C2": "after", "conv:C1": "features.0", "conv:C2": "features.3",
            "pool:C1": "features.2",
        }  # fmt: skip


class Gate(nn.Module):
    """Squeeze-and-excitation, of modules."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.pool, self.fc1, self.fc2 = nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, 2, 1), nn.Conv2d(2, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(self.pool(x)).relu()).sigmoid()


def test_a_gate_is_no_reading() -> None:
    net = Small(
        ["a", "b"], a=nn.Sequential(conv(3, 8), Gate(8)), b=nn.Sequential(Gate(8), conv(8, 8, 2), Gate(8)),
        pool=nn.AdaptiveMaxPool2d(1),
    )  # fmt: skip
    assert read(net, "all:C1..C2", size=16) == {
        "C1": "a", "C2": "b", "conv:C1": "a.0", "conv:C2": "b.1", "block:C1": "a", "block:C2": "b", "pool:C2": "pool",
    }  # fmt: skip


def test_what_raises_and_is_caught_leaves_the_order_as_it_is() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    class Tries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.breaks, self.conv = Breaks(), conv(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            try:
                return self.breaks(x)
            except ValueError:
                return self.conv(x)

    net = Small(["a", "act"], a=Tries(), act=nn.ReLU())
    assert read(net, "conv:C1..C2", "block:C1", size=8) == {"conv:C1": "a.conv", "conv:C2": "a.conv", "block:C1": "a"}
    assert probe(net, (8, 8))["a.breaks"].problem == "was not seen to run"


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return build("torchvision", "resnet50")


def test_fifteen_rows_in_the_order_asked_for(resnet50: nn.Module) -> None:
    taps = resolve(resnet50, "any", "net", ["C1..C5", "conv:C1..C5", "block:C2..C5", "pool:C1"], (64, 64))
    assert [(tap.module, tap.stage, tap.reading) for tap in taps] == [
        ("relu", "C1", "activation"), ("layer1", "C2", "activation"), ("layer2", "C3", "activation"),
        ("layer3", "C4", "activation"), ("layer4", "C5", "activation"),
        ("conv1", "C1", "conv"), ("layer1.2.conv3", "C2", "conv"), ("layer2.3.conv3", "C3", "conv"),
        ("layer3.5.conv3", "C4", "conv"), ("layer4.2.conv3", "C5", "conv"),
        ("layer1", "C2", "block"), ("layer2", "C3", "block"), ("layer3", "C4", "block"), ("layer4", "C5", "block"),
        ("maxpool", "C1", "pool"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["conv:last"], [Tap("layer4.2.conv3", "C5", "conv")]),
        (["block:C5", "block:last", "block:C4..C5"], [Tap("layer4", "C5", "block"), Tap("layer3", "C4", "block")]),
        # A path beside a reading of its module is that reading, wherever it stands.
        (["conv1", "conv:C1"], [Tap("conv1", "C1", "conv")]),
        (["conv:C1", "conv?"], [Tap("conv1", "C1", "conv")]),
        (["conv1"], [Tap("conv1", None, None)]),
        (["layer4"], [Tap("layer4", "C5", "activation")]),
        (["block:C5", "layer4"], [Tap("layer4", "C5", "block"), Tap("layer4", "C5", "activation")]),
    ],
)  # fmt: skip
def test_rows_come_once(resnet50: nn.Module, specs: list[str], expected: list[Tap]) -> None:
    assert resolve(resnet50, "any", "net", specs, (64, 64)) == expected


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("block:C1", r"^net has no block:C1; of this stage there is C1 = relu, conv:C1 = conv1, pool:C1 = maxpool\.$"),
        ("block:C1..C5", r"^net has no block: of C1: write block:C2\.\.C5, or all:C1\.\.C5 for every reading"),
        ("pool:C1..last", r"^net has no pool: of C2, C3, C4: write pool:C1,pool:C5, or all:C1\.\.C5"),
        ("pool:C2..C4", r"^net has no pool: of any stage in C2\.\.C4: leave it out, or write all:C2\.\.C4"),
        ("conv:C6", r"^net has no stage C6: it has C1\.\.C5"),
        ("conv:C5..C2", r"write conv:C2\.\.C5\.$"),
        ("conv:layer3", r"^conv: stands before stages \(C3, last, C1\.\.C5\), not before 'layer3'"),
        ("conv:C1..conv:C5", r"^conv: stands before stages .* not before 'C1\.\.conv:C5'"),
        ("conv:", r"^conv: stands before stages"),
        ("activation:C3", r"write C3 for activation:C3"),
        ("blok:C3", r"no reading 'blok': before a stage may stand conv:, block:, pool: or all:\..*Did you mean block"),
    ],
)
def test_what_cannot_be_read_says_why(resnet50: nn.Module, spec: str, says: str) -> None:
    with pytest.raises(PurityError, match=says):
        read(resnet50, spec, size=64)


def test_a_network_without_stages_has_no_readings() -> None:
    with pytest.raises(NoStages, match=r"net has no stages"):
        read(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), "conv:last", size=8)


@pytest.fixture
def alexnet(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """`purity layers` with AlexNet for whatever model is asked."""
    loaded = models.load("torchvision:alexnet", "none")
    monkeypatch.setattr(models, "load", lambda *_, **__: loaded)
    return CliRunner()


def test_layers_lists_readings_in_every_format(alexnet: CliRunner) -> None:
    def run(*options: str) -> str:
        return alexnet.invoke(cli.command, ["alexnet", *options], catch_exceptions=False).stdout

    rows = {row["layer"]: row for row in csv.DictReader(io.StringIO(run("--format", "csv")))}
    assert {name: row["readings"] for name, row in rows.items() if row["readings"]} == {
        "features.0": "conv:C1", "features.1": "C1", "features.2": "pool:C1", "features.3": "conv:C2",
        "features.4": "C2", "features.5": "pool:C2", "features.6": "conv:C3", "features.7": "C3",
        "features.8": "conv:C4", "features.9": "C4", "features.10": "conv:C5", "features.11": "C5",
        "features.12": "pool:C5",
    }  # fmt: skip
    assert [line.split()[-1] for line in run().splitlines()[3:6]] == ["conv:C1", "C1", "pool:C1"]
    found = {row["layer"]: row for row in json.loads(run("--format", "json"))["layers"]}
    assert found["features.12"] == {
        "layer": "features.12", "type": "MaxPool2d", "channels": 256, "height": 6, "width": 6, "calls": 1,
        "problem": None, "readings": ["pool:C5"], "stage": None, "layout": "channels first", "reason": None,
    }  # fmt: skip
    assert found["features.11"]["stage"] == "C5"


def test_a_module_of_two_readings_shows_both(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = models.load("torchvision:resnet18", "none")
    monkeypatch.setattr(models, "load", lambda *_, **__: loaded)
    shown = CliRunner().invoke(cli.command, ["resnet18"], catch_exceptions=False).stdout.splitlines()
    assert next(line for line in shown if line.split()[0] == "layer3").endswith("C4, block:C4")


def test_layers_takes_a_size(alexnet: CliRunner) -> None:
    def run(size: str) -> tuple[int, str, str]:
        result = alexnet.invoke(cli.command, ["alexnet", "--format", "csv", "--size", size])
        return result.exit_code, result.stdout, result.stderr

    # A convolution of 11 with stride 4 and padding 2: (n + 4 - 11) // 4 + 1.
    assert "features.0,Conv2d,64,31,39,1,,conv:C1,channels first,,\n" in run("128x160")[1]
    assert "features.0,Conv2d,64,31,31,1,,conv:C1,channels first,,\n" in run("128")[1]
    for wrong in ("none", "x", "0", "1x2x3"):
        code, _, said = run(wrong)
        assert code == 2
        assert "is no size" in said
    result = alexnet.invoke(cli.command, ["alexnet", "--size", "8"])
    assert isinstance(result.exception, PurityError)
    assert "does not run on a float32 image of 8x8" in str(result.exception)


def test_the_monitor_takes_readings() -> None:
    torch.manual_seed(0)
    monitor = PurityMonitor(nets.tiny_vgg(), ["conv:C1..last", "pool:last", "last"], threshold=0.1)
    monitor.update(torch.rand(4, 3, 32, 32))
    found = [name for name in sorted(monitor.compute()) if "rate" not in name]
    assert found == ["purity/conv2", "purity/conv4", "purity/maxpool2", "purity/relu4"]


def test_each_row_is_scored_as_its_module_is() -> None:
    specs = ("C1..last", "conv:C1..last", "block:last", "pool:C4", "all:last", "conv1")

    def score(*layers: str) -> Result:
        job = Job.of(model="resnet18_cifar", weights="none", limit=6, batch_size=4, layers=layers, device="cpu")
        return run.score(run.resolve(job), workers=1)

    result = score(*specs)
    assert [(layer.name, layer.module) for layer in result.layers] == [
        ("C1", "layer1"), ("C2", "layer2"), ("C3", "layer3"), ("C4", "layer4"),
        ("conv:C1", "layer1.1.conv2"), ("conv:C2", "layer2.1.conv2"), ("conv:C3", "layer3.1.conv2"),
        ("conv:C4", "layer4.1.conv2"), ("block:C4", "layer4"), ("pool:C4", "avgpool"), ("conv1", "conv1"),
    ]  # fmt: skip
    assert cells.deepest(result).name == "C4"
    alone = {layer.module: layer for layer in score("layer?", "layer?.1.conv2", "avgpool", "conv1").layers}
    for layer in result.layers:
        other = alone[layer.module]
        assert (layer.channels, layer.height, layer.width) == (other.channels, other.height, other.width)
        assert np.array_equal(layer.counts, other.counts)
        assert layer.counts.any()


# Of the suites that need no ImageNet: what their layers are, by the paper's and its authors' names.
CIFAR = {
    "table3": {
        "tiny_vgg": {"C2": "relu4", "conv:C2": "conv4", "pool:C2": "maxpool2"},
        "resnet18_cifar": {
            "C4": "layer4", "conv:C4": "layer4.1.conv2", "block:C4": "layer4", "pool:C4": "avgpool",
        },
    },
    "figure4": {"resnet18_cifar": {name: name for name in ("layer1.1.conv1", "layer1.1.conv2", "layer4.1.conv2")}},
}  # fmt: skip


@pytest.mark.parametrize("name", CIFAR)
def test_suites_of_the_paper_on_cifar10(name: str) -> None:
    chosen = suite.read(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert chosen.reference == name
    jobs = [task.job for task in chosen.tasks()]
    for job in jobs:
        assert (job.dataset, job.preprocess, job.limit, job.per_class) == ("cifar10", "paper", None, None)
        assert read(models.load(job.model, "none").module, *job.layers, size=32) == CIFAR[name][job.model]
    epochs = (10, 20, 50, 100) if name == "table3" else (100,)
    files = [f"{model}_epoch{epoch:03}.safetensors" for model in CIFAR[name] for epoch in epochs]
    assert [Path(job.weights).name for job in jobs] == files


def test_readings_are_named_in_one_place() -> None:
    assert (ACTIVATION, *stages.FINDERS) == READINGS
