"""Stages of all classification networks of torchvision and of every family of timm, random and without memory.

python -m benchmarks.walk > results/stages/walk.csv
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
import timm.data
import torchvision
from torch import nn

from purity_cli.errors import PurityError
from purity_cli.models import LIBRARIES
from purity_cli.models.base import ShapesOnly
from purity_cli.stages import NoStages, probe, stages
from purity_cli.stages.probe import Size
from purity_cli.stages.readings import FINDERS, RunOrder

LIBRARY: Any = timm
"""timm, whose type hints do not cover what is used here."""


def names(text: str) -> list[str]:
    """Those that the installed timm knows."""
    return [name for name in text.split() if timm.is_model(name)]


CNNS = names("""
    bat_resnext26ts convformer_s18 convmixer_1536_20 convnext_atto convnextv2_atto cs3darknet_s csatv2
    cspnext_tiny cspresnet50 darknet17 densenet121 dla34 dpn48b eca_nfnet_l0 edgenext_xx_small efficientnet_b0
    ese_vovnet19b_slim fasternet_t0 fastvit_t8 fbnetc_100 focalnet_tiny_lrf gernet_s ghostnet_100 ghostnetv3_100
    hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto inception_resnet_v2 inception_v3
    inception_v4 lcnet_050 lcnetv2_small legacy_senet154 legacy_seresnext26_32x4d legacy_xception mixnet_s
    mnasnet_small mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv5_base mobileone_s0
    nasnetalarge nf_regnet_b0 nf_resnet26 pnasnet5large poolformer_s12 rdnet_tiny regnetx_002 regnety_002
    repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet18 resnet50 resnet51q resnetv2_18
    resnetv2_50x1_bit resnext50_32x4d rexnet_100 selecsls42 semnasnet_050 skresnet18 spnasnet_100 starnet_s050
    tf_efficientnet_lite0 tf_efficientnetv2_b0 tinynet_e tresnet_m vgg11 wide_resnet50_2 xception41p
""")
"""A small network of every family of timm's that convolves and hands on (n, c, h, w) maps."""

HYBRIDS = names("""
    botnet26t_256 coatnet_nano_rw_224 cpubone_nano davit_tiny efficientformerv2_s0 efficientvit_b0 efficientvit_l1
    efficientvit_m0 gcvit_xxtiny iformer_t levit_conv_128s lowformer_b0 maxvit_rmlp_pico_rw_256 mobilevit_xxs
    mobilevitv2_050 nest_tiny_jx nextvit_small pvt_v2_b0 shvit_s1 swiftformer_xs swinv2_cr_tiny_ns_224
    tiny_vit_5m_224 visformer_tiny
""")
"""Families with attention that hand on such maps all the same."""

OTHERS = names("""
    beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny crossvit_tiny_240 deepseek_vit_412m
    deit_tiny_distilled_patch16_224 efficientformer_l1 efficientvim_m1 eva02_tiny_patch14_224 gemma4_vit_167m
    hiera_tiny_224 hieradet_small levit_128s mambaout_femto mixer_s16_224 mvitv2_tiny naflexvit_base_patch16_gap
    pit_ti_224 qwen3_vit_88m samvit_base_patch16_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
    tnt_s_patch16_224 twins_svt_small vit_relpos_small_patch16_224 vit_tiny_patch16_224 vit_tiny_r_s16_p8_224
    vitamin_small_224 volo_d1_224 xcit_nano_12_p16_224
""")
"""Families that hand on tokens, channels-last maps or tuples, if only at the end."""


@dataclass(frozen=True)
class Found:
    """The stages of one network, or why it has none."""

    size: Size
    maps: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """(c, h, w) by module, shallow to deep."""
    layouts: tuple[str, ...] = ()
    reason: str = ""
    readings: dict[str, tuple[set[type], tuple[int, ...] | None]] = field(default_factory=dict)
    """Of the module that is `conv:C3`, ..., where there is one: the classes of itself and of all inside, and (c, h, w).
    """
    features: list[dict[str, Any]] = field(default_factory=list)
    """timm's own word on them: `num_chs`, and `reduction` of the picture's sides."""


def kinds(module: nn.Module) -> set[type]:
    return {type(part) for part in module.modules()}


def look(source: str, name: str, make: Callable[[], nn.Module], size: Size) -> Found:
    try:
        with ShapesOnly():
            net = make().to("meta")
            seen = probe(net, size)
    except (RuntimeError, NotImplementedError, PurityError):  # it computes with values, in some version
        net = make()
        seen = probe(net, size)
    try:
        known = stages(net, source, name, seen)
    except NoStages as error:
        return Found(size, reason=str(error))
    order = RunOrder(net, seen, known)
    places = {f"{reading}:{stage}": find(order, stage) for reading, find in FINDERS.items() for stage in known}
    readings: dict[str, tuple[set[type], tuple[int, ...] | None]] = {
        reading: (kinds(net.get_submodule(path)), seen[path].shape) for reading, path in places.items() if path
    }
    info = getattr(net, "feature_info", None) or []
    maps = {module: shape for module in known.values() if (shape := seen[module].shape)}
    layouts = tuple(str(seen[module].layout) for module in maps)
    return Found(size, maps, layouts, readings=readings, features=list(getattr(info, "info", info)))


def size_of(name: str) -> Size:
    """(h, w) that one of timm's networks takes."""
    cfg = LIBRARY.get_pretrained_cfg(name).to_dict()
    height, width = LIBRARY.data.resolve_data_config(pretrained_cfg=cfg)["input_size"][1:]
    return height, width


def walk_torchvision() -> Iterator[tuple[str, Found]]:
    source = LIBRARIES["torchvision"]
    for name in torchvision.models.list_models(module=torchvision.models):
        spec = source.spec(name, source.tags(name)[0])
        yield name, look("torchvision", name, partial(spec.build, None), spec.input_size)


def walk_timm() -> Iterator[tuple[str, Found]]:
    for name in [*CNNS, *HYBRIDS, *OTHERS]:
        yield name, look("timm", name, partial(LIBRARY.create_model, name), size_of(name))


if __name__ == "__main__":
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["source", "version", "model", "input", "stages", "modules", "maps", "layouts", "reason"])
    for library, walk in ((torchvision, walk_torchvision), (timm, walk_timm)):
        for model, network in walk():
            maps = ["x".join(map(str, shape)) for shape in network.maps.values()]
            about = [library.__name__, library.__version__, model, "x".join(map(str, network.size)), len(maps)]
            layouts = ", ".join(dict.fromkeys(network.layouts))
            table.writerow([*about, " ".join(network.maps), " ".join(maps), layouts, network.reason])
