"""Stages: SPEC's table, what --layers may say, and layers that give no maps."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from torch import Tensor, nn

from purity_cli.cli import layers as cli
from purity_cli.errors import PurityError, UnsuitableLayer
from purity_cli.layouts import Layout
from purity_cli.stages import LayerInfo, NoStages, layers, probe, resolve, stages
from purity_cli.taps import Taps


def build(source: str, name: str) -> nn.Module:
    """Without weights and memory, in eval mode."""
    import pretrainedmodels  # imported first: it builds two networks as it is imported, and not on the meta device

    net: nn.Module
    with torch.device("meta"):
        if source == "torchvision":
            net = torchvision.models.get_model(name, weights=None)
        elif source == "timm":
            net = timm.create_model(name)
        else:
            net = vars(pretrainedmodels)[name](num_classes=1000, pretrained=None)
    return net.eval()


def known(net: nn.Module, size: int = 224) -> dict[str, tuple[str, tuple[int, ...] | None]]:
    seen = probe(net, (size, size))
    return {stage: (module, seen[module].shape) for stage, module in stages(net, "any", "net", seen).items()}


RESNET50 = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
DENSENET121 = [(64, 112, 112), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (1024, 7, 7)]
ALEXNET = [(64, 55, 55), (192, 27, 27), (384, 13, 13), (256, 13, 13), (256, 13, 13)]
BLOCKS = ["layer1", "layer2", "layer3", "layer4"]
DENSE = ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features.norm5"]


@pytest.mark.parametrize(
    ("source", "name", "modules", "shapes"),
    [
        ("torchvision", "alexnet", [f"features.{i}" for i in (1, 4, 7, 9, 11)], ALEXNET),
        ("pretrainedmodels", "alexnet", [f"_features.{i}" for i in (1, 4, 7, 9, 11)], ALEXNET),
        ("torchvision", "resnet50", ["relu", *BLOCKS], RESNET50),
        ("torchvision", "resnext50_32x4d", ["relu", *BLOCKS], RESNET50),
        ("torchvision", "wide_resnet50_2", ["relu", *BLOCKS], RESNET50),
        ("timm", "resnet50", ["act1", *BLOCKS], RESNET50),
        ("pretrainedmodels", "resnet50", ["relu", *BLOCKS], RESNET50),
        ("torchvision", "densenet121", DENSE, DENSENET121),
        ("timm", "densenet121", ["features.norm0", *DENSE[1:]], DENSENET121),
        ("pretrainedmodels", "densenet121", DENSE, DENSENET121),
        ("timm", "legacy_senet154", ["layer0.relu3", *BLOCKS], [(128, 112, 112), *RESNET50[1:]]),
        ("pretrainedmodels", "senet154", ["layer0.relu3", *BLOCKS], [(128, 112, 112), *RESNET50[1:]]),
        ("pretrainedmodels", "se_resnet50", ["layer0.relu1", *BLOCKS], RESNET50),
    ],
)
def test_table_of_the_spec(source: str, name: str, modules: list[str], shapes: list[tuple[int, int, int]]) -> None:
    expected = {f"C{i}": pair for i, pair in enumerate(zip(modules, shapes, strict=True), 1)}
    assert known(build(source, name)) == expected


VGGS = [f"vgg{depth}{bn}" for depth in (11, 13, 16, 19) for bn in ("", "_bn")]


@pytest.mark.parametrize("source", ["torchvision", "timm", "pretrainedmodels"])
@pytest.mark.parametrize("name", VGGS)
def test_vgg_has_the_relu_before_each_maxpool(source: str, name: str) -> None:
    net = build(source, name)
    container = "_features" if source == "pretrainedmodels" else "features"
    layers = list(net.get_submodule(container).children())
    before = [i - 1 for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    assert all(isinstance(layers[i], nn.ReLU) for i in before)
    sizes = zip((64, 128, 256, 512, 512), (224, 112, 56, 28, 14), strict=True)
    assert list(known(net).values()) == [
        (f"{container}.{i}", (c, h, h)) for i, (c, h) in zip(before, sizes, strict=True)
    ]


@pytest.mark.parametrize("size", [64, 97])
def test_stages_do_not_depend_on_the_size_of_the_picture(size: int) -> None:
    net = build("torchvision", "resnet50")
    assert [module for module, _ in known(net, size).values()] == ["relu", *BLOCKS]


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = torchvision.models.resnet18(num_classes=10)
    return net.eval()


def ask(net: nn.Module, *specs: str) -> list[tuple[str, str | None]]:
    return [(tap.module, tap.stage) for tap in resolve(net, "torchvision", "resnet18", specs, (64, 64))]


STAGES = [("relu", "C1"), ("layer1", "C2"), ("layer2", "C3"), ("layer3", "C4"), ("layer4", "C5")]


@pytest.mark.parametrize(
    ("specs", "expected"),
    [
        (["C1..C5"], STAGES),
        (["C1..last"], STAGES),
        (["C2..last"], STAGES[1:]),
        (["C2..C2"], STAGES[1:2]),
        (["last..last"], STAGES[4:]),
        (["last"], STAGES[4:]),
        (["C3"], STAGES[2:3]),
        (["layer4.1.conv2"], [("layer4.1.conv2", None)]),
        (["layer4.*.conv2"], [("layer4.0.conv2", None), ("layer4.1.conv2", None)]),
        (["layer[34]"], STAGES[3:]),
        (["layer1", "conv1"], [("layer1", "C2"), ("conv1", None)]),
        (["C5", "C1", "last", "layer4"], [STAGES[4], STAGES[0]]),
        # layer1.?.relu runs twice in each block and is left out of what a glob gives.
        (["layer1.1.*"], [(f"layer1.1.{part}", None) for part in ("conv1", "bn1", "conv2", "bn2")]),
    ],
)
def test_specs(resnet18: nn.Module, specs: list[str], expected: list[tuple[str, str | None]]) -> None:
    assert ask(resnet18, *specs) == expected


@pytest.mark.parametrize(
    ("spec", "error", "says"),
    [
        ("C6", PurityError, "resnet18 has no stage C6: it has C1..C5"),
        ("C2..C9", PurityError, "resnet18 has no stage C9: it has C1..C5"),
        ("C0", PurityError, "resnet18 has no stage C0"),
        ("C5..C2", PurityError, "write C2..C5"),
        ("last..C1", PurityError, "write C1..C5"),
        ("layr4", PurityError, r"no layer 'layr4'.*`purity layers torchvision:resnet18`.*Did you mean layer4"),
        ("c1", PurityError, "no layer 'c1'"),
        ("", PurityError, "no layer ''"),
        ("layer9.*", PurityError, r"no layer 'layer9\.\*'"),
        ("layer1.*.relu", UnsuitableLayer, r"matches 2 modules .* layer1\.0\.relu ran 2 times"),
        ("layer1.0.relu", UnsuitableLayer, r"layer1\.0\.relu ran 2 times"),
        ("fc", UnsuitableLayer, r"fc gave \(n, 10\)"),
    ],
)
def test_what_cannot_be_resolved_says_why(resnet18: nn.Module, spec: str, error: type[PurityError], says: str) -> None:
    with pytest.raises(error, match=says):
        ask(resnet18, spec)


def test_convnext_says_which_stages_it_has() -> None:
    with pytest.raises(PurityError, match=r"convnext_tiny has no stage C5: it has C1\.\.C4\."):
        resolve(build("torchvision", "convnext_tiny"), "torchvision", "convnext_tiny", ["C1..C5"], (224, 224))


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "densenet121", "resnet50", "googlenet", "shufflenet_v2_x0_5"])
def test_taps_read_every_stage(name: str) -> None:
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    net = torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval()
    taps = resolve(net, "torchvision", name, ["C1..last"], (64, 64))
    seen = probe(net, (64, 64))
    with Taps(net, [tap.module for tap in taps], lambda b: b.shape) as read:
        reading = read(torch.rand(2, 3, 64, 64))
    shapes = {tap.module: (2, *(seen[tap.module].shape or ())) for tap in taps}
    assert reading.maps == shapes
    assert {name: sums.shape for name, sums in reading.gradients.items()} == {
        name: shape[:2] for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("swin_tiny_patch4_window7_224", {f"C{i + 1}": f"layers.{i}" for i in range(4)}),
        ("deit_tiny_patch16_224", {"C1": "blocks.11.norm1"}),  # it predicts from its class token
        ("mixer_s16_224", {"C1": "norm"}),
        ("xcit_nano_12_p16_224", "cls_attn_blocks.1.norm1"),
        ("convmixer_1536_20", {"C1": "blocks"}),  # it down-samples nowhere
    ],
)
def test_transformers_have_stages(name: str, stages: dict[str, str] | str) -> None:
    net = build("timm", name)
    found = {tap.name: tap.module for tap in resolve(net, "timm", name, ["C1..last"], (224, 224))}
    assert (list(found.values())[-1] if isinstance(stages, str) else found) == stages
    with pytest.raises(PurityError, match="Did you mean"):
        resolve(net, "timm", name, [f"{list(found.values())[-1]}x"], (224, 224))


def state(net: nn.Module) -> list[object]:
    """Everything that a probe might have changed."""
    return [
        [(name, id(p), p.device, p.requires_grad, p.sum().item()) for name, p in net.named_parameters()],
        [(name, module.training, dict(module._forward_hooks)) for name, module in net.named_modules()],
        torch.get_rng_state().tolist(),
    ]


def test_the_network_is_left_as_it_was() -> None:
    net = torchvision.models.resnet18(num_classes=10)
    net.layer1.eval()
    before = state(net)
    probe(net, (64, 64))
    layers(net, "torchvision", "resnet18", (64, 64))
    resolve(net, "torchvision", "resnet18", ["last"], (64, 64))
    with pytest.raises(PurityError, match=r"does not run on images of 64x0 \(.+\): give its own input size"):
        probe(net, (64, 0))
    assert state(net) == before


def test_layers_lists_every_module_with_its_calls() -> None:
    net = torchvision.models.resnet50().eval()
    found = {layer.module: layer for layer in layers(net, "torchvision", "resnet50", (224, 224))}
    assert list(found) == [name for name, _ in net.named_modules() if name]
    assert found["layer1.0.relu"] == LayerInfo("layer1.0.relu", "ReLU", None, 3, "ran 3 times", None)
    conv, last = found["layer4.2.conv3"], found["layer4"]
    assert (conv.kind, conv.shape, conv.calls, conv.problem) == ("Conv2d", (2048, 7, 7), 1, None)
    assert (conv.readings, last.readings, last.layout) == (("conv:C5",), ("C5", "block:C5"), Layout())
    assert {layer.stage: layer.reason for layer in found.values() if layer.stage} == {
        "C1": "before maxpool (112x112 to 56x56)", "C2": "before layer2 (56x56 to 28x28)",
        "C3": "before layer3 (28x28 to 14x14)", "C4": "before layer4 (14x14 to 7x7)",
        "C5": "before the global pooling by avgpool (7x7 to 1x1)",
    }  # fmt: skip
    assert [layer.module for layer in found.values() if layer.stage] == ["relu", *BLOCKS]


def test_layers_runs_what_the_meta_device_cannot() -> None:
    class Shift(nn.Module):
        offset = torch.ones(1, 1, 1, 1)  # no buffer, so it stays on the CPU

        def forward(self, x: Tensor) -> Tensor:
            return x + self.offset * x.max().item()

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Shift())
    assert [layer.shape for layer in layers(net, "file", "net", (8, 8))] == [(4, 6, 6), (4, 6, 6)]


class Cnn(nn.Module):
    """A user's own network of two convolutions and a pooling in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.second = nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.pool(self.first(x))).mean((2, 3))


def of_user(net: nn.Module, **attributes: object) -> dict[str, str]:
    for name, value in attributes.items():
        setattr(net, name, value)
    return stages(net, "file", "mine", probe(net, (32, 32)))


BOTH = {"C1": "first", "C2": "second"}


def test_a_users_network_says_its_own_stages() -> None:
    assert of_user(Cnn(), purity_stages=["first", "second"]) == BOTH
    assert of_user(Cnn(), purity_stages=BOTH) == BOTH
    assert of_user(Cnn(), feature_info=[{"module": "first"}, {"module": "second"}]) == BOTH
    # What is of no use goes to the rule: entries without modules, and such as name no map.
    assert of_user(Cnn(), feature_info=[{"num_chs": 4}]) == BOTH
    assert of_user(Cnn(), feature_info=[{"module": "first"}, {"module": "third"}]) == BOTH
    assert of_user(torchvision.models.resnet18(), purity_stages=["layer4"]) == {"C1": "layer4"}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({"purity_stages": ["first", "third"]}, "third, where C2 would be, is not there"),
        ({"purity_stages": {"C2": "second"}}, "purity_stages of mine has C2: name its stages C1, C2"),
        ({"purity_stages": []}, "name its stages C1, C2"),
        ({"purity_stages": "second"}, "purity_stages of mine is a str: give module paths"),
    ],
)
def test_a_users_network_without_stages_says_so(attributes: dict[str, object], says: str) -> None:
    with pytest.raises(PurityError, match=says):
        of_user(Cnn(), **attributes)


class Chain(nn.Module):
    """Modules and functions in a row, then the mean and a classifier."""

    def __init__(self, *steps: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.steps = steps
        for number, step in enumerate(steps):
            if isinstance(step, nn.Module):
                self.add_module(f"part{number}", step)
        self.head = nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return self.head(x.mean((2, 3)))


class Sum(nn.Module):
    """A residual block with other names, whose shortcut runs first or last."""

    def __init__(self, c: int, stride: int, *, late: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(c, stride), nn.ReLU(), conv(c))
        self.aside, self.late = nn.LazyConv2d(c, 1, stride), late

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.aside(x) if self.late else self.aside(x) + self.body(x)


class Gate(nn.Module):
    """Weights of channels, (n, c, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True).sigmoid()


class Pair(nn.Module):
    """A block that hands on a tuple: its own last map is inside."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return self.part(x), 1


def conv(c: int, stride: int = 1) -> nn.Module:
    return nn.LazyConv2d(c, 3, stride, 1)


def pooled(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 2)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([conv(4), nn.ReLU(), nn.MaxPool2d(2), conv(8), nn.ReLU()], ["part1", "part4"]),
        ([conv(4), nn.ReLU(), pooled, conv(8), nn.ReLU()], ["part1", "part4"]),
        ([conv(4, 2), nn.BatchNorm2d(4), conv(8, 2), nn.ReLU(), nn.AvgPool2d(8)], ["part1", "part3"]),
        ([conv(4), nn.MaxPool2d(2), conv(8, 2), nn.ReLU(), pooled], ["part0", "part3"]),
        ([Sum(4, 1, late=True), Sum(8, 2, late=True), Sum(8, 2, late=False)], ["part0", "part1", "part2"]),
        # What down-samples more than once is opened.
        ([nn.Sequential(conv(4), nn.ReLU(), conv(4, 2), nn.ReLU(), conv(4, 2))], ["part0.1", "part0.3", "part0.4"]),
        ([nn.Sequential(conv(4, 2), nn.ReLU()), nn.Sequential(conv(4), conv(4, 2))], ["part0", "part1"]),
        ([Pair(conv(4)), lambda pair: pair[0], conv(8, 2)], ["part0.part", "part2"]),
        # A classifier that pools at its end, and one after the pooling, are behind the last map.
        ([conv(4, 2), nn.Sequential(conv(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1))], ["part0"]),
        ([conv(4, 2), nn.AdaptiveAvgPool2d(1), nn.LazyConv2d(8, 1), nn.ReLU()], ["part0"]),
        ([conv(4, 2), lambda x: x.mean((2, 3), keepdim=True), nn.LazyConv2d(8, 1)], ["part0"]),
        # A valid convolution takes places off.
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 5), nn.ReLU()], ["part1", "part3"]),
        ([conv(4, 2), *[nn.ReLU()] * 2, conv(8)], ["part3"]),  # the ReLU that runs twice is left out
        ([conv(4), lambda x: x.permute(0, 2, 3, 1), nn.LayerNorm(4), lambda x: x[:, ::2, ::2], nn.Linear(4, 8),
          lambda x: x.permute(0, 3, 1, 2)], ["part2", "part4"]),
    ],
)  # fmt: skip
def test_the_rule_in_networks_of_no_known_family(steps: list[Callable[..., Tensor]], expected: list[str]) -> None:
    net = Chain(*steps).eval()
    net(torch.rand(1, 3, 32, 32))  # lazy modules take their shapes
    assert list(of_user(net).values()) == expected


def test_a_branch_aside_is_no_part_of_the_trunk() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.gate, self.main, self.aside = conv(4), Gate(), conv(8, 2), nn.LazyConv2d(8, 1, 2)
            self.wide, self.end = conv(4), conv(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x * self.gate(x)
            y = self.main(x) + self.wide(x).mean()
            return self.end(y + self.aside(x)).mean((2, 3))

    net = Net().eval()
    net(torch.rand(1, 3, 32, 32))
    assert of_user(net) == {"C1": "stem", "C2": "end"}


def test_a_network_of_no_maps_has_no_stages() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    with pytest.raises(
        NoStages, match=r"mine has no stages C1\.\.Ck, because none of its modules .*`purity layers FILE"
    ):
        of_user(net)


def test_a_subclass_is_of_its_parents_family() -> None:
    class Mine(torchvision.models.AlexNet):  # type: ignore[misc]
        pass

    assert [module for module, _ in known(Mine()).values()] == [f"features.{i}" for i in (1, 4, 7, 9, 11)]


def test_the_released_tiny_vgg(shared: Path) -> None:
    spec: dict[str, object] = {}
    exec((shared / "models/tiny_vgg.py").read_text(), spec)
    net: nn.Module = spec["tiny_vgg"]()  # type: ignore[operator]
    assert known(net.eval(), 32) == {"C1": ("relu2", (64, 32, 32)), "C2": ("relu4", (256, 16, 16))}
    assert [tap.module for tap in resolve(net, "file", "net", ["conv:last", "pool:last"], (32, 32))] == [
        "conv4", "maxpool2",
    ]  # fmt: skip


def test_the_users_resnet_of_the_shared_folder(shared: Path) -> None:
    spec: dict[str, object] = {}
    exec((shared / "models/cifar_resnet.py").read_text(), spec)
    net: nn.Module = spec["resnet20"]()  # type: ignore[operator]
    assert known(net.eval(), 32) == {
        "C1": ("layer1", (16, 32, 32)),
        "C2": ("layer2", (32, 16, 16)),
        "C3": ("layer3", (64, 8, 8)),
    }


def test_bundled_networks() -> None:
    from purity_cli import nets

    vgg = nets.tiny_vgg().eval()
    # Four convolutions of 32 to 256 channels on 32 x 32 pixels, pooled after the second and the fourth.
    assert [shape for _, shape in known(vgg, 32).values()] == [(64, 32, 32), (256, 16, 16)]
    assert all(isinstance(vgg.get_submodule(module), nn.ReLU) for module, _ in known(vgg, 32).values())
    assert [shape for _, shape in known(nets.tiny_vgg_10().eval(), 32).values()] != []
    # No pooling follows the stem, so it is not the layer before a down-sampling.
    assert known(nets.resnet18_cifar().eval(), 32) == {
        f"C{i}": (f"layer{i}", (64 << i - 1, 64 >> i, 64 >> i)) for i in range(1, 5)
    }


@pytest.fixture
def alexnet(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """`purity layers` with AlexNet for whatever model is asked."""
    from purity_cli import models

    loaded = models.load("torchvision:alexnet", "none")
    monkeypatch.setattr(models, "load", lambda name, weights, headless: loaded)
    return CliRunner()


def test_command_prints_the_same_in_every_format(alexnet: CliRunner) -> None:
    def run(*options: str) -> str:
        return alexnet.invoke(cli.command, ["alexnet", *options], catch_exceptions=False).stdout

    rows = list(csv.DictReader(io.StringIO(run("--format", "csv"))))
    assert [row["layer"] for row in rows if row["stage"]] == [f"features.{i}" for i in (1, 4, 7, 9, 11)]
    assert rows[1] == {
        "layer": "features.0", "type": "Conv2d", "channels": "64", "height": "55", "width": "55", "calls": "1",
        "stage": "", "readings": "conv:C1", "problem": "", "layout": "channels first", "reason": "",
    }  # fmt: skip
    table = run().splitlines()
    assert [line.split()[0] for line in table[2:-5]] == [row["layer"] for row in rows]
    assert table[-1] == "C5 = features.11, before features.12 (13x13 to 6x6)."
    assert table[4].split() == ["features.1", "ReLU", "64", "x", "55", "x", "55", "1", "C1"]
    every = json.loads(run("--format", "json", "--all"))["layers"]
    assert [row["layer"] for row in every if row["channels"]] == [row["layer"] for row in rows]
    assert next(row for row in every if row["layer"] == "classifier.6")["problem"] == "gave (n, 1000)"


def test_command_shows_layouts() -> None:
    run = CliRunner().invoke(cli.command, ["timm:test_vit"])
    assert re.search(r"^patch_embed\.proj +Conv2d +64 x 10 x 10 +1 ", run.stdout, re.MULTILINE)
    assert re.search(r"^blocks\.5\.norm1 +LayerNorm +64 x 10 x 10, tokens 1 \+ 10x10 +1 +C1", run.stdout, re.MULTILINE)
    assert re.search(r"^C1 = blocks\.5\.norm1, .* predicts from its class token\.", run.stdout, re.MULTILINE)
