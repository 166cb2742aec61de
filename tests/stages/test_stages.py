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
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from purity_cli.cli import layers as cli
from purity_cli.errors import PurityError, UnsuitableLayer
from purity_cli.stages import LayerInfo, NoStages, Tap, layers, probe, resolve, stages
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


def test_stages_do_not_depend_on_the_size_of_the_picture() -> None:
    net = build("torchvision", "resnet50")
    assert [shape for _, shape in known(net, 16).values()] == [
        (64, 8, 8), (256, 4, 4), (512, 2, 2), (1024, 1, 1), (2048, 1, 1),
    ]  # fmt: skip


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


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def look(function: Callable[[Tensor], object], size: tuple[int, int] = (32, 32)) -> LayerInfo:
    """What `probe` says of a module that computes `function`."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Lambda(function)

        def forward(self, x: Tensor) -> object:
            return self.layer(x)

    return probe(Net(), size)["layer"]


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: x, None),
        (lambda x: x[:, :1, :1, :1], None),
        (lambda x: (x, x), "gave a tuple"),
        (lambda x: [x], "gave a list"),
        (lambda x: None, "gave a NoneType"),
        (lambda x: x > 0, "gave a tensor of torch.bool"),
        (lambda x: x.flatten(1), "gave (n, 3072)"),
        (lambda x: x.flatten(2).mT, "gave (n, 1024, 3)"),
        (lambda x: x.permute(0, 2, 3, 1), "gave (n, 32, 32, 3), channels last"),
        (lambda x: x.reshape(4, 3, 16, 16), "gave (4, 3, 16, 16)"),
        (lambda x: x.reshape(1, 12, 4, 64), "gave (n, 12, 4, 64), no map of the image"),
        (lambda x: x[:, :, :0], "gave (n, 3, 0, 32)"),
    ],
)
def test_what_is_no_map_is_told_apart(function: Callable[[Tensor], object], problem: str | None) -> None:
    assert look(function).problem == problem
    assert (look(function).shape is None) == (problem is not None)


SIDES = st.sampled_from([32, 48, 64, 96])


@settings(max_examples=200, deadline=None)
@given(height=SIDES, width=SIDES, stride=st.sampled_from([1, 2, 4, 8, 16]), channels=st.integers(16, 256))
def test_channels_first_is_a_map_and_channels_last_is_not(height: int, width: int, stride: int, channels: int) -> None:
    if max(height, width) > 2 * min(height, width):
        width = height

    def strided(x: Tensor) -> Tensor:
        return x[:, :1, ::stride, ::stride].expand(-1, channels, -1, -1)

    first = look(strided, (height, width))
    assert first.shape == (channels, -(-height // stride), -(-width // stride))
    if not 0.8 < channels / first.shape[2] * height / width < 1.25:  # h : w = w : c cannot be told apart
        last = look(lambda x: strided(x).permute(0, 2, 3, 1), (height, width))
        assert last.problem is not None
        assert last.problem.endswith("channels last")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("swin_tiny_patch4_window7_224", r"layers\.0, where C1 would be, gave \(n, 56, 56, 96\), channels last"),
        ("deit_tiny_patch16_224", r"blocks\.0, where C1 would be, gave \(n, 197, 192\)"),
    ],
)
def test_transformers_have_no_stages_but_have_layers(name: str, says: str) -> None:
    net = build("timm", name)
    with pytest.raises(NoStages, match=rf"{name} has no stages.*{says}.*`purity layers timm:{name}`"):
        resolve(net, "timm", name, ["C1..last"], (224, 224))
    assert resolve(net, "timm", name, ["patch_embed.proj"], (224, 224)) == [Tap("patch_embed.proj", None)]
    with pytest.raises(PurityError, match="Did you mean"):
        resolve(net, "timm", name, ["patch_embed.prj"], (224, 224))


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
    assert found["layer1.0.relu"] == LayerInfo("layer1.0.relu", "ReLU", None, 3, "ran 3 times")
    assert found["layer4.2.conv3"] == LayerInfo("layer4.2.conv3", "Conv2d", (2048, 7, 7), 1, None, ("conv:C5",))
    assert found["layer4"] == LayerInfo("layer4", "Sequential", (2048, 7, 7), 1, None, ("C5", "block:C5"))
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
    assert of_user(torchvision.models.resnet18(), purity_stages=["layer4"]) == {"C1": "layer4"}


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ({}, "mine has no stages.*no known family.*`purity layers FILE.py:FUNCTION`"),
        ({"purity_stages": ["first", "third"]}, "third, where C2 would be, is not there"),
        ({"purity_stages": {"C2": "second"}}, "purity_stages of mine has C2: name its stages C1, C2"),
        ({"feature_info": [{"num_chs": 4}]}, "no known family"),
    ],
)
def test_a_users_network_without_stages_says_so(attributes: dict[str, object], says: str) -> None:
    with pytest.raises(PurityError, match=says):
        of_user(Cnn(), **attributes)


class Resnet(nn.Module):
    """As people write them: a stem and layer1, layer2."""

    def __init__(self, pool: Callable[[Tensor], Tensor] | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.pool = pool or nn.Identity()
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), last or nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(4, 8, 3, 2, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.layer2(self.layer1(x)).mean((2, 3)))


def test_a_users_resnet_follows_the_convention() -> None:
    assert of_user(Resnet()) == {"C1": "layer1", "C2": "layer2"}
    assert of_user(Resnet(nn.MaxPool2d(2))) == {"C1": "relu", "C2": "layer1", "C3": "layer2"}
    small = torchvision.models.resnet18()
    small.conv1, small.maxpool = nn.Conv2d(3, 64, 3, 1, 1), nn.Identity()
    assert of_user(small) == {f"C{i}": f"layer{i}" for i in range(1, 5)}

    class Mine(torchvision.models.ResNet):  # type: ignore[misc]
        """A subclass is of its parent's family."""

    mine = Mine(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1])
    assert list(of_user(mine).values()) == ["relu", *BLOCKS]


def functional_pool(x: Tensor) -> Tensor:
    return nn.functional.max_pool2d(x, 2)


def test_a_users_resnet_that_does_not_fit_the_convention_has_no_stages() -> None:
    hidden = Resnet()
    hidden.layer1.register_forward_pre_hook(lambda module, inputs: (functional_pool(inputs[0]),))
    for net in (hidden, Resnet(last=nn.MaxPool2d(2))):
        with pytest.raises(NoStages, match="no known family"):
            of_user(net)


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
        "stage": "", "readings": "conv:C1", "problem": "",
    }  # fmt: skip
    table = run().splitlines()
    assert [line.split()[0] for line in table[2:]] == [row["layer"] for row in rows]
    assert table[4].split() == ["features.1", "ReLU", "64", "x", "55", "x", "55", "1", "C1"]
    every = json.loads(run("--format", "json", "--all"))["layers"]
    assert [row["layer"] for row in every if row["channels"]] == [row["layer"] for row in rows]
    assert next(row for row in every if row["layer"] == "classifier.6")["problem"] == "gave (n, 1000)"


def test_command_says_why_there_are_no_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    run = CliRunner().invoke(cli.command, ["timm:test_vit"])
    assert re.search(r"^ *patch_embed\.proj +Conv2d +64 x 10 x 10 +1$", run.stdout, re.MULTILINE)
    assert re.search(
        r"^test_vit has no stages C1\.\.Ck, because blocks\.0, where C1 .* gave \(n, 101, 64\).*\n",
        run.stdout,
        re.MULTILINE,
    )
