"""Layouts: what a module's axes are found to be, and values against plain autograd on maps turned by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torchvision.models import MaxVit, SwinTransformer, VisionTransformer

from benchmarks.breadth import enliven
from purity_cli import score
from purity_cli.datasets import open_dataset
from purity_cli.engine import Engine
from purity_cli.errors import PurityError
from purity_cli.layouts import Layout
from purity_cli.monitor import PurityMonitor
from purity_cli.purity import activation, map_statistics
from purity_cli.stages import probe, resolve
from purity_cli.taps import Taps
from tests.core import oracle

FIRST, LAST = Layout(), Layout("last")
GRID = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


def tokens(side: int, prefix: int = 0) -> Layout:
    return Layout("tokens", prefix, (side, side))


def of_timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=7, **settings)


def vit(name: str, **more: Any) -> Callable[[], nn.Module]:
    return of_timm(name, img_size=32, patch_size=4, embed_dim=24, depth=2, num_heads=2, **more)


def swin(name: str) -> Callable[[], nn.Module]:
    return of_timm(name, img_size=32, window_size=4, embed_dim=16, depths=(1, 1), num_heads=(1, 2))


# Each network with the layers to read; where the maps of these are was read in its code.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Layout]]] = {
    "vit": (
        vit("vit_tiny_patch16_224"), 32,
        {"patch_embed": tokens(8), "blocks.0": tokens(8, 1), "blocks.1.attn.qkv": tokens(8, 1), "last": tokens(8, 1)},
    ),
    "vit of registers": (
        vit("vit_tiny_patch16_224", reg_tokens=4, global_pool="avg"), 32,
        {"blocks.1.mlp.fc1": tokens(8, 5), "last": tokens(8, 5)},
    ),
    "deit": (vit("deit_tiny_distilled_patch16_224"), 32, {"blocks.0": tokens(8, 2), "last": tokens(8, 2)}),
    "beit": (vit("beit_base_patch16_224"), 32, {"blocks.0.norm2": tokens(8, 1), "last": tokens(8, 1)}),
    "cait": (vit("cait_xxs24_224"), 32, {"blocks.0": tokens(8), "blocks.1.mlp": tokens(8), "last": tokens(8, 1)}),
    "mixer": (
        lambda: MlpMixer(num_classes=7, img_size=32, patch_size=4, embed_dim=24, num_blocks=2), 32,
        {"blocks.0": tokens(8), "last": tokens(8)},
    ),
    "pit": (
        of_timm("pit_ti_224", img_size=64, base_dims=(8, 8, 8), depth=(1, 1, 2), heads=(1, 2, 4)), 64,
        {"transformers.0.blocks": tokens(7, 1), "transformers.1.blocks.0": tokens(4, 1), "last": tokens(2, 1)},
    ),
    "levit": (
        of_timm("levit_128s", img_size=128), 128,
        {"C1": tokens(8), "stages.1.blocks.1": tokens(4), "last": tokens(2)},
    ),
    "swin": (
        swin("swin_tiny_patch4_window7_224"), 32,
        {"layers.0": LAST, "layers.0.blocks.0.norm1": LAST, "layers.1.downsample.reduction": LAST, "last": LAST},
    ),
    "swin v2": (
        swin("swinv2_tiny_window8_256"), 32,
        {"layers.0.blocks.0": LAST, "layers.1": LAST, "norm": LAST},
    ),
    "convnext": (
        of_timm("convnext_atto", dims=(32, 16, 16, 16), depths=(1, 1, 1, 1), patch_size=1, conv_mlp=False), 32,
        # 32 x 32 x 32: rows, columns and channels are told apart by images of other proportions.
        {"stages.0.blocks.0.norm": LAST, "stages.0.blocks.0.mlp.fc2": LAST, "stages.0.blocks.0.conv_dw": FIRST},
    ),
    "torchvision vit": (
        lambda: VisionTransformer(32, 4, 2, 2, 32, 48, num_classes=7), 32,
        {"encoder.layers.encoder_layer_0": tokens(8, 1), "encoder.layers.encoder_layer_0.mlp": tokens(8, 1),
         "last": tokens(8, 1)},
    ),
    "torchvision swin": (
        lambda: SwinTransformer([4, 4], 16, [1, 1], [1, 2], [4, 4], num_classes=7), 32,
        {"features.1": LAST, "features.3.0.mlp.0": LAST, "norm": LAST, "last": FIRST},
    ),
    "torchvision maxvit": (
        lambda: MaxVit((32, 32), 8, 4, [8, 8], [1, 1], 8, 0.0, num_classes=7), 32,
        {"blocks.0": FIRST, "blocks.0.layers.0.layers.MBconv.layers.conv_a": FIRST, "last": FIRST},
    ),
}  # fmt: skip


def by_hand(output: Tensor, layout: Layout) -> NDArray[Any]:
    """(n, c, places) of an output."""
    array = output.detach().numpy()
    if layout.kind == "first":
        return array.reshape(*array.shape[:2], -1)
    return np.moveaxis(array[:, layout.prefix :].reshape(len(array), -1, array.shape[-1]), 2, 1)


def reference(net: nn.Module, images: Tensor, layouts: dict[str, Layout]) -> dict[str, NDArray[Any]]:
    """M (n, c) by plain autograd: each layer's output is kept, a copy of it handed on, and its gradient retained."""
    kept: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            kept[name] = output
            output.retain_grad()
            return output.clone()

        return hook

    handles = [net.get_submodule(name).register_forward_hook(keep(name)) for name in layouts]
    net(images.requires_grad_()).amax(1).sum().backward()
    for handle in handles:
        handle.remove()
    found = {}
    for name, layout in layouts.items():
        gradient = kept[name].grad
        assert gradient is not None
        pairs = zip(by_hand(kept[name], layout), by_hand(gradient, layout), strict=True)
        found[name] = np.stack([oracle.mass(b, g) for b, g in pairs])
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_plain_autograd(name: str) -> None:
    make, side, layers = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    enliven(net)
    net.double()
    taps = resolve(net, "memory", name, list(layers), (side, side))
    assert [tap.layout for tap in taps] == list(layers.values())
    layouts = {tap.module: tap.layout for tap in taps}
    images = torch.rand(3, 3, side, side, dtype=torch.float64)
    with Taps(net, layouts, map_statistics) as read:
        found = read(images)
    expected = reference(net, images.clone(), layouts)
    for module in layouts:
        ours = activation(found.maps[module], found.gradients[module]).numpy()
        assert ours.max() > 0, f"{module} has no gradient, so this test says nothing of it"
        np.testing.assert_allclose(ours, expected[module], atol=1e-5, err_msg=module)


class Batch:
    pixels = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    positions, labels = torch.arange(5), torch.full((5,), -1)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_counts_of_the_engine(name: str) -> None:
    """At every threshold, in float32, of more images than a batch has."""
    make, side, layers = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    enliven(net)
    layouts = {tap.module: tap.layout for tap in resolve(net, "memory", name, list(layers), (side, side))}
    engine = Engine(
        net, layouts, normalise=lambda x: x / 255, thresholds=GRID, groups=2, device=torch.device("cpu"), batch_size=2
    )  # fmt: skip
    with engine:
        engine.run([Batch()])
    expected = reference(net, Batch.pixels / 255, layouts)
    for module, masses in expected.items():
        counts = np.stack([(masses > t).sum(0) for t in GRID])
        assert abs(engine.counts(module).sum(0).numpy() - counts).sum() <= 1 + 1e-3 * counts.sum(), module


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_score_reads_each_layer_in_its_layout(name: str) -> None:
    """From a network to a result, so that no step between the stages and the engine loses a layout."""
    make, side, layers = NETWORKS[name]
    torch.manual_seed(0)
    net = make().eval()
    enliven(net)
    scores = score(
        net, "cifar10-sample", layers=list(layers), limit=12, resize="none", crop="none",
        mean=(0, 0, 0), std=(1, 1, 1), thresholds=GRID,
    )  # fmt: skip
    images = open_dataset("cifar10-sample")
    pixels = np.stack([np.asarray(images.load(i)) for i in range(12)])
    layouts = {tap.module: tap.layout for tap in resolve(net, "memory", name, list(layers), (side, side))}
    expected = reference(net, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255, layouts)
    for layer in scores.result.layers:
        stored = [scores.result.thresholds.index(t) for t in GRID]
        counts = np.stack([(expected[layer.module] > t).sum(0) for t in GRID])
        assert abs(layer.counts.sum(0)[stored] - counts).sum() <= 1 + 1e-3 * counts.sum(), layer.module


def test_the_monitor_reads_tokens_and_says_why_nothing_fires(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = NETWORKS["vit"][0]()
    monitor = PurityMonitor(net, ["last", "blocks.1", "blocks.1.norm2"], threshold=0.2)
    with caplog.at_level(logging.WARNING, "purity"):
        monitor.update(torch.rand(4, 3, 32, 32))
        monitor.update(torch.rand(4, 3, 32, 32))
    values = monitor.compute()
    assert values["purity/blocks.1.norm1"] > 0
    assert np.isnan(values["purity/blocks.1"])
    said = [record.getMessage() for record in caplog.records if "class token" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("Nothing fires at blocks.1.norm2, blocks.1: ")


class Net(nn.Module):
    """A layer, and before it what a test needs to make its input of the image."""

    def __init__(
        self, layer: nn.Module, before: Callable[[Tensor], Tensor] = lambda x: x, fixed: int | None = None
    ) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 32, 3, padding=1), layer
        self.before, self.fixed = before, fixed

    def forward(self, x: Tensor) -> Tensor:
        assert self.fixed in (None, x.shape[-1])
        return self.layer(self.before(self.stem(x)))


def last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)


class Turned(nn.LayerNorm):
    """As libraries have them: of channels first, by turning the axes twice."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        q = x.flatten(2).unflatten(1, (4, 8)).mT
        return (q @ q.mT).softmax(-1)


# The stem's maps are 32 x 32 x 32. `fixed` networks run on no other size.
@pytest.mark.parametrize(
    ("net", "says"),
    [
        (Net(nn.LayerNorm(32), last), LAST),
        (Net(nn.LayerNorm(32), last, 32), LAST),
        (Net(nn.Linear(32, 32), last, 32), LAST),
        (Net(nn.GELU(), last), LAST),
        (Net(nn.GELU()), FIRST),
        (Net(nn.GELU(), fixed=32), FIRST),
        (Net(nn.Sequential(nn.LayerNorm(32), nn.GELU()), last, 32), "may be channels first or channels last"),
        (Net(Turned(32)), FIRST),
        (Net(Turned(32), fixed=32), FIRST),
        (Net(nn.Linear(32, 8), last, 32), LAST),
        (Net(nn.Softmax(-1), lambda x: (y := x.flatten(2)[:, :4].mT) @ y.mT), "no map of the image"),
        (Net(Attention()), "gave (n, 4, 1024, 1024), no map of the image"),
        (Net(Attention(), lambda x: F.avg_pool2d(x, 8)), "gave (n, 4, 16, 16), no map of the image"),
        (Net(Attention(), lambda x: F.avg_pool2d(x, 8), 32), "gave (n, 4, 16, 16), no map of the image"),
        (Net(nn.LayerNorm(8), lambda x: x.flatten(2).unflatten(1, (4, 8)).mT), "no map of the image"),
        (Net(nn.LayerNorm(32), lambda x: x.flatten(2).mT), tokens(32)),
        (Net(nn.LayerNorm(32), lambda x: x.flatten(2).mT, 32), tokens(32)),
        (Net(nn.Linear(1024, 64), lambda x: x.flatten(2)), "gave (n, 32, 64), no map of the image"),
        (Net(nn.Identity(), lambda x: F.pad(x.flatten(2).mT, (0, 0, 3, 0))), tokens(32, 3)),
        (Net(nn.Identity(), lambda x: x.mean((2, 3)).unsqueeze(1)), "gave (n, 1, 32), no map of the image"),
        (Net(nn.AdaptiveAvgPool2d(1)), FIRST),
        (Net(nn.Identity(), lambda x: torch.cat([x, x]).flatten(2).mT), "gave (2, 1024, 32)"),
        (Net(nn.Identity(), lambda x: x > 0), "gave a tensor of torch.bool"),
        (Net(nn.Identity(), lambda x: (x, x)), "gave a tuple"),  # type: ignore[arg-type, return-value]
    ],
)
def test_layouts_are_known_or_refused(net: nn.Module, says: Layout | str) -> None:
    found = probe(net, (32, 32))["layer"]
    if isinstance(says, str):
        assert found.layout is None
        assert says in (found.problem or "")
    else:
        assert (found.layout, found.problem) == (says, None)


class Bare(nn.Module):
    """Tokens of which no module tells the grid: patches without a convolution, cut to a number of them."""

    def __init__(self, count: int, **says: int) -> None:
        super().__init__()
        self.count, self.embed = count, nn.Linear(48, 16)
        vars(self).update(says)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 4, stride=4).mT[:, : self.count]
        return self.embed(F.pad(patches, (0, 0, self.count - patches.shape[1], 0)))


def test_where_several_grids_fit_a_sentence_asks() -> None:
    assert probe(Bare(64), (32, 32))["embed"].layout == tokens(8)
    assert probe(Bare(64), (32, 128))["embed"].layout == Layout("tokens", 0, (4, 16))
    assert probe(Bare(46), (12, 12))["embed"].problem == "gave (n, 46, 16), no map of the image"
    both = probe(Bare(17), (12, 12))["embed"].problem or ""
    assert "which may be 1 + 4x4 or 8 + 3x3 tokens: set num_prefix_tokens" in both
    assert probe(Bare(17, num_prefix_tokens=1), (12, 12))["embed"].layout == tokens(4, 1)


def test_a_wide_image() -> None:
    net = vit("vit_tiny_patch16_224")().eval()
    wide = timm.create_model(
        "vit_tiny_patch16_224", img_size=(16, 40), patch_size=4, embed_dim=24, depth=2, num_heads=2
    )  # fmt: skip
    assert probe(wide.eval(), (16, 40))["blocks.0"].layout == Layout("tokens", 1, (4, 10))
    maps = Layout("tokens", 1, (2, 3)).maps(torch.arange(14.0).reshape(1, 7, 2))
    assert maps[0, 1].tolist() == [[3, 5, 7], [9, 11, 13]]  # row by row, behind the first token
    with pytest.raises(PurityError, match=r"blocks\.0 gives no feature map with channels first but shape"), Taps(
        net, ["blocks.0"], lambda b: b
    ) as taps:  # fmt: skip
        taps(torch.rand(1, 3, 32, 32))
    with pytest.raises(PurityError, match="'tokens' with a grid"):
        Layout("tokens")
