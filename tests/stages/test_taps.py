"""Taps: captum's beta, graphs without in-place ops, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import timm
import torch
import torch.utils.checkpoint
import torchvision
from captum.attr import LayerGradCam
from torch import Tensor, nn

from purity_cli.engine import Engine
from purity_cli.errors import PurityError, UnsuitableLayer
from purity_cli.recomputing import without_activation_checkpointing
from purity_cli.taps import Taps
from tests.core import oracle

GRID = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
# Convolution taps, taps that a following in-place op overwrites, and stage taps, for each network of the issue.
NETWORKS = {
    "alexnet": ["features.0", "features.1", "features.6", "features.10", "features.11"],
    "vgg16": ["features.2", "features.3", "features.14", "features.28", "features.29"],
    "vgg16_bn": ["features.3", "features.4", "features.5", "features.40", "features.41", "features.42"],
    "densenet121": [
        "features.conv0",
        "features.norm0",
        "features.relu0",
        "features.denseblock2.denselayer3.conv1",
        "features.denseblock3",
        "features.norm5",
    ],
    "resnet50": ["conv1", "bn1", "relu", "layer1.0.bn3", "layer2.0.downsample.1", "layer3", "layer4.2.conv3", "layer4"],
    "legacy_senet154": ["layer0.conv1", "layer0.relu3", "layer1.0.bn3", "layer2", "layer4.2.conv2", "layer4"],
}


def build(name: str, classes: int = 10) -> nn.Module:
    """Random weights, with batch norms that do something."""
    torch.manual_seed(0)
    if name == "legacy_senet154":
        net = timm.create_model(name, num_classes=classes)
    else:
        net = torchvision.models.get_model(name, weights=None, num_classes=classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


class Batch:
    def __init__(self, n: int, size: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
        self.positions = torch.arange(n)
        self.labels = torch.full((n,), -1)


def normalise(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - 0.45) / 0.25


def engine_counts(net: nn.Module, layers: list[str], batch: Batch) -> dict[str, Tensor]:
    engine = Engine(
        net, layers, normalise=normalise, thresholds=GRID, groups=2, device=torch.device("cpu"), batch_size=8
    )
    with engine:
        engine.run([batch])
    return {layer: engine.counts(layer).sum(0) for layer in layers}


class Tokens(nn.Module):
    """Affine, and turned from maps to tokens behind a batch normalisation, as attention does with its values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
        logits: Tensor = self.fc(tokens.flatten(1))
        return logits


@pytest.mark.parametrize("n", [1, 2])
def test_batch_normalisation_before_tokens(n: int) -> None:
    """PyTorch 2.14 has wrong gradients here for one image on a CPU: its kernel takes the transposed one as it lies."""
    torch.manual_seed(0)
    net = Tokens().eval()
    nn.init.uniform_(net.bn.weight, 0.5, 1.5)
    images = torch.randn(n, 3, 8, 8)
    with Taps(net, ["conv"], lambda b: b) as taps:
        found = taps(images)
    best = found.logits.argmax(1, keepdim=True)
    assert net.conv.bias is not None
    for channel in range(4):  # all is affine, so that one more everywhere in a map adds the sum of its gradient
        with torch.no_grad():
            net.conv.bias[channel] += 1
            more = net(images)
            net.conv.bias[channel] -= 1
        expected = (more - found.logits).gather(1, best)[:, 0]
        torch.testing.assert_close(found.gradients["conv"][:, channel], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_the_graph_without_in_place_ops(name: str) -> None:
    # SENet154's 700 modules take minutes at the size of the others, and its wiring is the same at any.
    net, layers, batch = build(name), NETWORKS[name], Batch(2, 32) if name == "legacy_senet154" else Batch(3, 64)
    together = engine_counts(net, layers, batch)
    with oracle.OutOfPlace():
        reference = engine_counts(net, layers, batch)
    for layer in layers:
        alone = engine_counts(net, [layer], batch)[layer]
        assert torch.equal(alone, together[layer]), layer
        assert torch.equal(alone, reference[layer]), layer
        assert int(alone[0].sum()) > 0, f"{layer} never fires, so this test says nothing of it"


@pytest.mark.parametrize("name", ["alexnet", "densenet121", "resnet50"])
def test_counts_are_the_numpy_oracles(name: str) -> None:
    net, layers, batch = build(name), NETWORKS[name], Batch(2, 64)
    got = engine_counts(net, layers, batch)
    images = normalise(batch.pixels)
    for layer in layers:
        expected = oracle.counts(net, images, layer, GRID)
        # Another order of summation may move an M across a threshold: one firing in 10^5, and one for small sums.
        assert abs(got[layer].numpy() - expected).sum() <= 1 + 1e-5 * expected.sum(), layer


@pytest.mark.parametrize("name", ["alexnet", "resnet50"])
def test_beta_is_captums(name: str) -> None:
    net, images = build(name), normalise(Batch(3, 64).pixels)
    layers = [layer for layer in NETWORKS[name] if layer not in ("features.0", "bn1", "layer1.0.bn3")]
    with Taps(net, layers, lambda b: b.clone()) as taps:
        reading = taps(images)
    target = reading.logits.argmax(1)
    with oracle.OutOfPlace():
        for layer in layers:
            cam = LayerGradCam(net, dict(net.named_modules())[layer]).attribute(images, target)
            maps = reading.maps[layer]
            beta = reading.gradients[layer][:, :, None, None] / maps[0, 0].numel()
            ours = (beta * maps).sum(1, keepdim=True)
            torch.testing.assert_close(ours, cam, rtol=1e-4, atol=1e-5 * float(cam.abs().max()), msg=layer)


class Small(nn.Module):
    """A convolution, a ReLU, and whatever a test puts between them and the classifier."""

    def __init__(self, then: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.aside = nn.Conv2d(3, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 5)
        self.then = then

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return self.fc(self.pool(self.then(self.act(self.conv(x)))).flatten(1))


def read(net: nn.Module, *layers: str, images: Tensor | None = None) -> dict[str, Tensor]:
    with Taps(net, layers, lambda b: b.clone()) as taps:
        return dict(taps(torch.rand(2, 3, 8, 8) if images is None else images).maps)


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in net.modules())


def test_the_map_is_the_one_before_an_in_place_op_and_the_logits_stay() -> None:
    torch.manual_seed(0)
    net, images = Small(lambda x: x.sub_(1).relu_()), torch.rand(2, 3, 8, 8)
    expected, seen = net(images), net.act(net.conv(images))
    with Taps(net, ["conv", "act"], lambda b: b.clone()) as taps:
        reading = taps(images)
    torch.testing.assert_close(reading.logits, expected)
    torch.testing.assert_close(reading.maps["act"], seen)


def test_an_op_that_turns_in_place_only_later_changes_nothing() -> None:
    torch.manual_seed(0)
    state = {"in place": False}
    net = Small(lambda x: x.add_(1) if state["in place"] else x + 1)
    images, found = torch.rand(2, 3, 8, 8), []
    with Taps(net, ["conv", "act"], lambda b: b.clone()) as taps:
        for state["in place"] in (False, True):
            found.append(taps(images))
    for layer in ("conv", "act"):
        assert torch.equal(found[0].maps[layer], found[1].maps[layer])
        assert torch.equal(found[0].gradients[layer], found[1].gradients[layer])


def test_nothing_is_left_behind_even_by_an_error() -> None:
    net = Small().train()
    net.act.eval()
    net.conv.weight.requires_grad_(False)
    before = [p.requires_grad for p in net.parameters()]
    read(net, "conv", "act")
    with pytest.raises(RuntimeError), Taps(net, ["conv"], lambda b: b) as taps:
        taps(torch.rand(2, 1, 8, 8))
    with pytest.raises(ZeroDivisionError), Taps(net, ["conv"], lambda b: 1 / 0) as taps:
        taps(torch.rand(2, 3, 8, 8))
    assert hooks(net) == 0
    assert [p.requires_grad for p in net.parameters()] == before
    assert net.training
    assert not net.act.training
    assert all(p.grad is None for p in net.parameters())


def test_nothing_before_the_shallowest_tap_is_recorded() -> None:
    net = torchvision.models.resnet18(weights=None).eval()
    recorded = []
    net.layer4.register_forward_hook(lambda module, inputs, output: recorded.append(inputs[0].requires_grad))
    read(net, "layer4", images=torch.rand(1, 3, 32, 32))
    assert recorded == [False]


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [("fc", "gives no feature map"), ("aside", "does not influence the logits")],
)
def test_unsuitable_layers_are_named(layer: str, complaint: str) -> None:
    with pytest.raises(UnsuitableLayer, match=f"{layer} {complaint}"):
        read(Small(), layer)


def test_what_is_not_there_and_what_is_not_entered_is_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(PurityError, match=r"Sequential has no module '00'. Did you mean 0\?"):
        Taps(net, ["00"], lambda b: b)
    taps = Taps(net, ["0"], lambda b: b)
    with taps:
        taps(torch.rand(1, 3, 8, 8))
    with pytest.raises(PurityError, match="within their `with` block"):
        taps(torch.rand(1, 3, 8, 8))


def test_a_module_that_runs_twice_or_never_is_named() -> None:
    twice = Small()
    twice.then = twice.act
    with pytest.raises(UnsuitableLayer, match="act runs more than once"):
        read(twice, "act")
    never = Small()
    never.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(UnsuitableLayer, match="No call of spare was seen"):
        read(never, "spare")


def test_a_network_that_gives_no_logits_is_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(PurityError, match=r"must return logits \(n, classes\), but it returned shape"):
        read(net, "0")


def test_images_are_the_networks_own() -> None:
    """A network that normalises its input in place changes neither the caller's images nor what is scored."""
    torch.manual_seed(0)
    net, plain, images = Small(), Small(), torch.rand(2, 3, 8, 8)
    plain.load_state_dict(net.state_dict())
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0].sub_(0.5).mul_(3),))
    before = images.clone()
    with Taps(net, ["conv"], lambda b: b.clone()) as taps:
        assert taps.shapes(images[:1]) == {"conv": (4, 6, 6)}
        found = taps(images).maps["conv"]
    assert torch.equal(images, before)
    assert torch.equal(found, read(plain, "conv", images=(before - 0.5) * 3)["conv"])


def test_images_of_inference_mode() -> None:
    torch.manual_seed(0)
    net, images = Small(), torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        again = images.clone()
        with Taps(net, ["conv"], lambda b: b.clone()) as taps:
            inside = taps(again)
    with Taps(net, ["conv"], lambda b: b.clone()) as taps:
        outside = taps(images)
        assert torch.equal(outside.gradients["conv"], taps(again).gradients["conv"])
    assert torch.equal(outside.gradients["conv"], inside.gradients["conv"])


@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_the_eps_of_a_batch_norm_counts(eps: float) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=eps).eval()
    norm.running_var = torch.full((4,), 0.1)
    net = Small(norm)
    images = torch.rand(2, 3, 8, 8)
    with Taps(net, ["conv"], lambda b: b) as taps:
        ours = taps(images).gradients["conv"]
    with oracle.inputs_of(net, "conv") as seen:
        net(images).amax(1).sum().backward()
    assert seen[0].grad is not None
    torch.testing.assert_close(ours, seen[0].grad.sum((2, 3)))


def test_activation_checkpointing_is_back_when_the_last_thread_has_left() -> None:
    def function() -> object:
        return vars(torch.utils.checkpoint)["CheckpointFunction"]

    before, inside, leave = function(), threading.Event(), threading.Event()

    def work() -> None:
        with without_activation_checkpointing():
            inside.set()
            leave.wait(10)

    other = threading.Thread(target=work)
    with without_activation_checkpointing():
        other.start()
        assert inside.wait(10)
    assert function() is not before
    leave.set()
    other.join()
    assert function() is before
