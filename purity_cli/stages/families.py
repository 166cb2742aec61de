"""Networks whose stages the paper or a library names otherwise than the rule of `trunk` does: one entry a family."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from purity_cli.stages.probe import LayerInfo
from purity_cli.stages.trunk import POOLS


def _cells(*names: str) -> tuple[str, ...]:
    """In pretrainedmodels' NASNets the first ReLU of each of these cells, and the last of the network."""
    return (*(f"{name}.conv_1x1.relu" for name in names), "relu")


FAMILIES: dict[str, tuple[str, ...]] = {
    # The paper's five: all rectified convolutions, three of them on maps of one size.
    "torchvision.AlexNet": ("features.1", "features.4", "features.7", "features.9", "features.11"),
    "pretrainedmodels.VGGM": ("features.1", "features.5", "features.9", "features.11", "features.13"),
    "timm.SENet": ("layer0.relu3|layer0.relu1", "layer1", "layer2", "layer3", "layer4"),  # the stem after its last ReLU
    # The stem and the branches that timm's own forward_intermediates gives; feature_info names no modules of them.
    "timm.HighResolutionNet": ("act1", *(f"incre_modules.{i}" for i in range(4))),
    "timm.MobileNetV5": ("conv_stem", *(f"blocks.{i}" for i in range(4))),
    # From here on the modules are those that timm names in the same networks. The rule counts each convolution without
    # padding for a down-sampling, and opens cells that are given two maps.
    "torchvision.Inception3": ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
    "pretrainedmodels.InceptionResNetV2": ("conv2d_2b", "conv2d_4a", "repeat", "repeat_1", "conv2d_7b"),
    "pretrainedmodels.InceptionV4": ("features.2", "features.3", "features.9", "features.17", "features.21"),
    "pretrainedmodels.NASNetALarge": ("conv0", *_cells("cell_stem_1", "reduction_cell_0", "reduction_cell_1")),
    "pretrainedmodels.NASNetAMobile": ("conv0", *_cells("cell_stem_1", "reduction_cell_0", "reduction_cell_1")),
    "pretrainedmodels.PNASNet5Large": ("conv_0", *_cells("cell_stem_1", "cell_4", "cell_8")),
    "pretrainedmodels.PolyNet": ("stem.conv1", "stage_a", "stage_b", "stage_c"),
    # The first and last ReLU are one module that runs four times.
    "pretrainedmodels.Xception": ("bn2", "block2.rep.0", "block3.rep.0", "block12.rep.0", "bn4"),
}
"""The modules of the stages, by library and class; `|` stands between names of which a variant has one.

A subclass, such as a user's own variant, is of its parent's family.
"""


def find(net: nn.Module, layers: Mapping[str, LayerInfo]) -> list[str]:
    """The stages by a network's family; none where it has no entry, or is a variant without these modules."""
    names = (f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(net).__mro__)
    entry = next((FAMILIES[name] for name in names if name in FAMILIES), ())
    # pretrainedmodels renames what it takes from torchvision, where its own method `features` needs the name.
    variants = ([name for path in paths.split("|") for name in (path, f"_{path}") if name in layers] for paths in entry)
    found = [variant[0] for variant in variants if variant]
    return found if len(found) == len(entry) else []


def feature_info(net: nn.Module, layers: Mapping[str, LayerInfo]) -> list[str]:
    """timm's own list of feature modules without poolings, in order.

    None where it names modules that give no map, or maps of one size alone.
    """
    info = getattr(net, "feature_info", None) or []
    entries = getattr(info, "info", info)
    named = [entry.get("module", "") for entry in entries if isinstance(entry, dict)]
    found = [path for path in named if path not in layers or not isinstance(net.get_submodule(path), POOLS)]
    shapes = [layers[path].shape for path in found if path in layers]
    if len(shapes) < len(found) or len(named) < len(entries) or None in shapes:
        return []
    sizes = {shape[1:] for shape in shapes if shape}
    return found if len(sizes) > 1 or len(found) == 1 else []
