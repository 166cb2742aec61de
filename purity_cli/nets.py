"""The networks of the paper's Table 3, and the one whose weights ship with this package.

All take float RGB images (n, 3, 32, 32) in 0..1, without normalisation, and give logits (n, num_classes). Every ReLU
is a module of its own and runs once, so that each can be tapped.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

from torch import Tensor, nn


class _Block(nn.Module):
    """torchvision's BasicBlock with a second ReLU, `relu2`, for the sum: theirs has one that runs twice.

    Takes (n, c_in, h, w) and gives (n, c, h/stride, w/stride). torchvision's ResNet passes settings of its other block,
    which do not matter here.
    """

    expansion = 1

    def __init__(self, c_in: int, c: int, stride: int = 1, downsample: nn.Module | None = None, *_: Any, **__: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, padding=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(c), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c)
        self.downsample = downsample
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


def resnet18_cifar(num_classes: int = 10) -> nn.Module:
    """ResNet18 for small images: a 3x3 stem of 64 without maxpool, then stages of 64, 128, 256, 512 channels.

    Modules are named, and weights initialised, as torchvision's; its average pool gets 4x4 maps. Stages C1..C4 are
    layer1..layer4: the stem keeps its resolution.
    """
    from torchvision.models.resnet import ResNet  # takes seconds, and no other network of this module needs it

    net = ResNet(_Block, [2, 2, 2, 2], num_classes=num_classes)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net  # type: ignore[no-any-return]


def resnet10_cifar(num_classes: int = 10) -> nn.Module:
    """A small ResNet whose four stages fire: the one that is scored where no other is named.

    After DAWNBench's ResNet-9 (Page 2018, github.com/davidcpage/cifar10-fast): each of layer1..layer4 is a 3x3
    convolution with BN and ReLU, to 32, 64, 96, 160 channels, and a maxpool of 3 with stride 2; layer1 begins with one
    more convolution, to 16 channels, and layer2 and layer3 end in a basic block. Then the mean and a fully connected
    layer. Initialised as torchvision's with `zero_init_residual`. Stages C1..C4 are what layer1..layer4 hand on, of
    16x16, 8x8, 4x4 and 2x2.
    """
    widths = (16, 32, 64, 96, 160)
    layers: dict[str, nn.Module] = {}
    for number, (c_in, c) in enumerate(pairwise(widths), 1):
        parts = [*_convolution(3, c_in)] if number == 1 else []
        parts += [*_convolution(c_in, c), nn.MaxPool2d(3, 2, padding=1)]
        layers[f"layer{number}"] = nn.Sequential(*parts, *([_Block(c, c)] if number in (2, 3) else []))
    head = {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(widths[-1], num_classes)}
    net = nn.Sequential(OrderedDict({**layers, **head}))
    net.purity_stages = tuple(layers)  # type: ignore[assignment]
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, _Block):
            # A block begins as the identity, and its maps stay those of the maxpool for long: flatter, so that more of
            # them exceed t = 0.5.
            nn.init.zeros_(module.bn2.weight)
    return net


def _convolution(c_in: int, c: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(c_in, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU(inplace=True)


class _TinyVgg(nn.Module):
    """Convolutions in pairs with a maxpool after each (`features`), then `classifier`.

    Stages C1, C2 are the ReLUs before the two maxpools.
    """

    def __init__(self, pairs: list[list[nn.Module]], classifier: list[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.purity_stages: list[str] = []
        for pair in pairs:
            layers += pair
            self.purity_stages.append(f"features.{len(layers) - 1}")
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), *classifier)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))  # type: ignore[no-any-return]


class _ReleasedTinyVgg(nn.Module):
    """`tiny_vgg`; modules are named as its authors named them, in the order in which they run.

    Stages C1, C2 are the ReLUs before the two maxpools.
    """

    purity_stages = ("relu2", "relu4")

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 256)
        for k in range(1, 5):
            self.add_module(f"conv{k}", nn.Conv2d(widths[k - 1], widths[k], 3, padding=1, bias=False))
            self.add_module(f"bn{k}", nn.BatchNorm2d(widths[k]))
            self.add_module(f"relu{k}", nn.ReLU(inplace=True))
            if k % 2 == 0:
                self.add_module(f"maxpool{k // 2}", nn.MaxPool2d(2))
        self.flatten = nn.Flatten()
        self.fc, self.fc1 = nn.Linear(256 * 8 * 8, 256), nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def tiny_vgg(num_classes: int = 10) -> nn.Module:
    """The paper's Tiny VGG as its authors released it: padded 3x3 convolutions of 32, 64, 128, 256 channels.

    Each is without bias and has BN and ReLU; a maxpool of 2 follows the second and the fourth, then fully connected
    layers 16384-256-`num_classes` with nothing in between.
    """
    return _ReleasedTinyVgg(num_classes)


def tiny_vgg_10(num_classes: int = 10) -> nn.Module:
    """CNN Explainer's Tiny VGG (Wang et al. 2020, github.com/poloclub/cnn-explainer, tiny-vgg/tiny-vgg.py).

    As there: four 3x3 convolutions of 10 filters with bias and without padding, a ReLU after each, a maxpool of 2 after
    the second and the fourth, one fully connected layer, no BN; Keras' initialisation of weights (Glorot uniform,
    biases 0). Unlike there: images of 32x32 instead of 64x64, so that the last maps are 10x10 and the fully connected
    layer has 250 inputs; logits instead of softmax.
    """

    def convolution(c_in: int) -> list[nn.Module]:
        return [nn.Conv2d(c_in, 10, 3), nn.ReLU(inplace=True)]

    net = _TinyVgg(
        [convolution(3) + convolution(10), convolution(10) + convolution(10)], [nn.Linear(10 * 5 * 5, num_classes)]
    )
    for parameter in net.parameters():
        nn.init.xavier_uniform_(parameter) if parameter.ndim > 1 else nn.init.zeros_(parameter)
    return net
