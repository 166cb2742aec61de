"""The bundled networks against SPEC's words and torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn

from purity_cli import nets
from purity_cli.stages import layers

NETWORKS = (nets.resnet10_cifar, nets.resnet18_cifar, nets.tiny_vgg, nets.tiny_vgg_10)
RELUS = {nets.resnet10_cifar: 9, nets.resnet18_cifar: 17, nets.tiny_vgg: 4, nets.tiny_vgg_10: 4}
Build = Callable[..., nn.Module]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def weights(net: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in net.named_parameters()}


@pytest.mark.parametrize("build", NETWORKS)
def test_gives_logits_for_as_many_classes_as_asked(build: Build) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert build().eval()(images).shape == (2, 10)
    assert build(num_classes=3).eval()(images).shape == (2, 3)


@pytest.mark.parametrize("build", NETWORKS)
def test_every_relu_runs_once_and_can_be_tapped(build: Build) -> None:
    net = build().eval()
    relus = [layer for layer in layers(net, "bundled", "net", (32, 32)) if layer.kind == "ReLU"]
    assert len(relus) == RELUS[build]
    assert [(layer.calls, layer.problem) for layer in relus] == [(1, None)] * len(relus)


def test_resnet18_is_torchvisions_with_a_stem_for_small_pictures() -> None:
    net, other = nets.resnet18_cifar().eval(), torchvision.models.resnet18(num_classes=10)
    other.conv1, other.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert weights(net) == weights(other)
    for module in net.modules():  # running averages and scales that would show a BN in the wrong place
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight, module.bias):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.5)
    other.load_state_dict(net.state_dict())
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(net(images), other.eval()(images), rtol=0, atol=0)


def test_resnet10_has_four_stages_whose_blocks_begin_as_the_identity() -> None:
    net = nets.resnet10_cifar().eval()
    found = {
        layer.stage: (layer.module, layer.shape) for layer in layers(net, "bundled", "net", (32, 32)) if layer.stage
    }
    assert found == {
        "C1": ("layer1", (32, 16, 16)), "C2": ("layer2", (64, 8, 8)),
        "C3": ("layer3", (96, 4, 4)), "C4": ("layer4", (160, 2, 2)),
    }  # fmt: skip
    # A convolution and its norm for each width, in blocks of two at 64 and 96 channels as well, and the classifier.
    widths = (3, 16, 32, 64, 96, 160)
    trunk = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    blocks = sum(2 * (9 * b * b + 2 * b) for b in (64, 96))
    assert sum(p.numel() for p in net.parameters()) == trunk + blocks + 160 * 10 + 10
    images = torch.rand(4, 3, 32, 32)
    expected = images
    for number in range(1, 5):
        stage = net.get_submodule(f"layer{number}")
        for first in (0, 3) if number == 1 else (0,):
            convolution, norm = stage[first], stage[first + 1]  # type: ignore[index]
            expected = norm(nn.functional.conv2d(expected, convolution.weight, padding=1)).relu()
        expected = nn.functional.max_pool2d(expected, 3, 2, 1)
    torch.testing.assert_close(net(images), net.get_submodule("fc")(expected.mean((2, 3))))


def test_tiny_vgg_has_the_layers_of_the_spec() -> None:
    channels = [3, 32, 64, 128, 256]
    net = nets.tiny_vgg()
    kinds = [type(layer) for layer in net.children()]
    triple = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    pairs = [*triple, *triple, nn.MaxPool2d]
    assert kinds == [*pairs, *pairs, nn.Flatten, nn.Linear, nn.Linear]
    shapes = [shape for shape in weights(net).values() if len(shape) > 1]
    assert shapes == [*((b, a, 3, 3) for a, b in pairwise(channels)), (256, 16384), (10, 256)]
    convolutions = sum(9 * a * b for a, b in pairwise(channels))
    assert sum(p.numel() for p in net.parameters()) == convolutions + 2 * 480 + 16384 * 256 + 256 + 2560 + 10


def test_tiny_vgg_10_is_cnn_explainers() -> None:
    net = nets.tiny_vgg_10()
    assert list(weights(net).values()) == [
        (10, 3, 3, 3), (10,), *[(10, 10, 3, 3), (10,)] * 3, (10, 250), (10,),
    ]  # fmt: skip
    found = {layer.module: layer.shape for layer in layers(net, "bundled", "tiny_vgg_10", (32, 32)) if layer.stage}
    assert list(found.values()) == [(10, 28, 28), (10, 10, 10)]
    # Glorot: the bound of the first convolution is sqrt(6 / (27 + 90)).
    assert 0.2 < net.get_parameter("features.0.weight").abs().max() <= (6 / 117) ** 0.5
