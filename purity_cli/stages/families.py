"""Where each family of networks has its stages: one entry a family.

A stage is "the feature layer before each down-sampling" (the paper's Table 1), after its activation where the family
has one there; the last stage is the layer before the global pooling.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from torch import nn

from purity_cli.stages.probe import LayerInfo

Rule = Callable[[nn.Module], list[str]]
"""From a network to the module paths of its stages, shallow to deep."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def modules(*paths: str) -> Rule:
    return lambda net: list(paths)


def cells(stem: str, *names: str) -> Rule:
    """In pretrainedmodels' NASNets the stem, the first ReLU of each of these cells, and the last."""
    return modules(stem, *(f"{name}.conv_1x1.relu" for name in names), "relu")


def children(container: str, *indices: int) -> Rule:
    return lambda net: [_children(net, container)[index] for index in indices]


def before_downsampling(container: str) -> Rule:
    """In a Sequential, the child before each child that has a stride, and the last one."""
    return lambda net: _before_downsampling(net, _children(net, container))


def residual(net: nn.Module) -> list[str]:
    """The stem before its pooling, if it has one, and layer1, layer2, ...: the shape of all ResNets."""
    return _before_downsampling(net, _residual_trunk(net))


def feature_info(net: nn.Module) -> list[str]:
    """timm's own list of feature modules, in order; empty where a network has none."""
    info = getattr(net, "feature_info", None) or []
    return [entry["module"] for entry in getattr(info, "info", info)]


def _selecsls(net: nn.Module) -> list[str]:
    """The blocks hand on lists; the map itself comes from their last convolution."""
    return [path + ".conv6" if path.startswith("features.") else path for path in feature_info(net)]


FAMILIES: dict[str, Rule] = {
    "torchvision.AlexNet": children("features", 1, 4, 7, 9, 11),  # the paper's five: all rectified convolutions
    "torchvision.VGG": before_downsampling("features"),
    "torchvision.ResNet": residual,
    "torchvision.DenseNet": before_downsampling("features"),
    "torchvision.ConvNeXt": before_downsampling("features"),
    "torchvision.EfficientNet": before_downsampling("features"),
    "torchvision.GoogLeNet": modules("conv1", "conv3", "inception3b", "inception4e", "inception5b"),
    "torchvision.Inception3": modules("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
    "torchvision.MaxVit": modules("stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"),
    "torchvision.MNASNet": before_downsampling("layers"),
    "torchvision.MobileNetV2": before_downsampling("features"),
    "torchvision.MobileNetV3": before_downsampling("features"),
    "torchvision.RegNet": modules("stem", *(f"trunk_output.block{i}" for i in range(1, 5))),
    "torchvision.ShuffleNetV2": modules("conv1", "stage2", "stage3", "conv5"),
    "torchvision.SqueezeNet": before_downsampling("features"),
    # These give no (n, c, h, w) maps; being here, they can say so.
    "torchvision.SwinTransformer": modules("features.1", "features.3", "features.5", "features.7"),
    "torchvision.VisionTransformer": modules("encoder.layers.encoder_layer_0"),
    # Its stem and its four branches, as timm's own forward_intermediates gives them: feature_info names no modules.
    "timm.HighResolutionNet": modules("act1", *(f"incre_modules.{i}" for i in range(4))),
    "timm.MobileNetV5": modules("conv_stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"),  # feature_info: no module
    "timm.SelecSls": _selecsls,
    "timm.SENet": residual,
    "timm.TResNet": modules("body.layer1", "body.layer2", "body.layer3", "body.layer4"),  # feature_info: no module
    "timm.VGG": before_downsampling("features"),
    "pretrainedmodels.FBResNet": residual,
    # Without the stem's 79 x 79 map: it is concatenated by no module.
    "pretrainedmodels.PolyNet": modules("stem.conv1", "stage_a", "stage_b", "stage_c"),
    "pretrainedmodels.ResNet": residual,
    "pretrainedmodels.ResNeXt101_32x4d": before_downsampling("features"),
    "pretrainedmodels.ResNeXt101_64x4d": before_downsampling("features"),
    "pretrainedmodels.SENet": residual,
    "pretrainedmodels.VGGM": children("features", 1, 5, 9, 11, 13),  # as AlexNet, whose contemporary it is
    # From here on the modules are those that timm names in the same networks.
    "pretrainedmodels.InceptionResNetV2": modules("conv2d_2b", "conv2d_4a", "repeat", "repeat_1", "conv2d_7b"),
    "pretrainedmodels.InceptionV4": children("features", 2, 3, 9, 17, 21),
    "pretrainedmodels.NASNetALarge": cells("conv0", "cell_stem_1", "reduction_cell_0", "reduction_cell_1"),
    "pretrainedmodels.NASNetAMobile": cells("conv0", "cell_stem_1", "reduction_cell_0", "reduction_cell_1"),
    "pretrainedmodels.PNASNet5Large": cells("conv_0", "cell_stem_1", "cell_4", "cell_8"),
    # The first and last ReLU are one module that runs four times.
    "pretrainedmodels.Xception": modules("bn2", "block2.rep.0", "block3.rep.0", "block12.rep.0", "bn4"),
}
"""Stages by library and class; a subclass, such as a user's own variant, is of its parent's family.

timm networks without an entry have those of `feature_info`.
"""


def find(net: nn.Module, seen: Mapping[str, LayerInfo]) -> list[str]:
    """Module paths of the stages of `net`, shallow to deep, unchecked; empty where nothing says what they are.

    In order: its family's entry, timm's `feature_info`, the naming conventions of ResNet and VGG.
    """
    names = (f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(net).__mro__)
    rule = next((FAMILIES[name] for name in names if name in FAMILIES), feature_info)
    try:
        return rule(net) or _by_convention(net, seen)
    except (AttributeError, IndexError, KeyError, TypeError):  # a variant that lacks what its family has
        return []


def _by_convention(net: nn.Module, seen: Mapping[str, LayerInfo]) -> list[str]:
    """The stages of a network of no known family, if it is laid out as a ResNet (`layer1`, `layer2`, ...) or has its
    convolutions in a Sequential called `features`; nothing unless its maps agree with what the modules say.
    """
    trunk = _residual_trunk(net)
    if not trunk and isinstance(getattr(net, "features", None), nn.Sequential):
        trunk = _children(net, "features")
    maps = {path: layer.shape for path in trunk if (layer := seen.get(path)) and layer.shape}
    if len(maps) < len(trunk):
        return []
    stages = _before_downsampling(net, trunk)
    certain = (
        # Down-sampling that no module shows, e.g. F.max_pool2d; a convolution without padding takes off much less.
        all(_downsamples(net, b) or maps[b][1] * 1.5 > maps[a][1] for a, b in pairwise(trunk))
        and all(maps[a][1:] > maps[b][1:] for a, b in pairwise(stages))
        # A block that ends in its own pooling has its feature layer inside.
        and not any(isinstance(list(net.get_submodule(path).modules())[-1], POOLS) for path in stages)
    )
    return stages if certain else []


def _children(net: nn.Module, container: str) -> list[str]:
    # pretrainedmodels renames what it takes from torchvision, where its own method `features` needs the name.
    name = container if isinstance(getattr(net, container), nn.Module) else f"_{container}"
    return [f"{name}.{child}" for child, _ in net.get_submodule(name).named_children()]


def _residual_trunk(net: nn.Module) -> list[str]:
    """The children up to the last of layer1, layer2, ..., with those of SENet's stem `layer0`; empty for others."""
    trunk: list[str] = []
    for name, child in net.named_children():
        trunk += _children(net, name) if name == "layer0" and isinstance(child, nn.Sequential) else [name]
    layers = [position for position, path in enumerate(trunk) if re.fullmatch(r"layer[1-9]\d*", path)]
    return trunk[: layers[-1] + 1] if len(layers) > 1 else []


def _before_downsampling(net: nn.Module, trunk: Sequence[str]) -> list[str]:
    stages: list[str] = []
    latest = None  # since the previous down-sampling
    for path in trunk:
        if latest and _downsamples(net, path):
            stages.append(latest)
            latest = None
        if not isinstance(net.get_submodule(path), POOLS):
            latest = path
    return [*stages, latest] if latest else stages


def _downsamples(net: nn.Module, path: str) -> bool:
    """Whether a convolution or a pooling inside has a stride."""
    strides = [part.stride for part in net.get_submodule(path).modules() if isinstance(part, (nn.Conv2d, *POOLS[:2]))]
    return any(stride not in (1, (1, 1)) for stride in strides)
