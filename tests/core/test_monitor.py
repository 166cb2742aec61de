"""Purity in a training loop, plain and Lightning's: the recipes of `purity_cli.monitor`, as they are written there."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError, UnsuitableLayer
from purity_cli.monitor import PurityMonitor
from purity_cli.nets import resnet18_cifar
from tests.core import oracle

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Small, with batch normalisation, dropout and an in-place ReLU: all that a careless look would disturb."""

    purity_stages = ("early.2", "late.2")

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        self.late = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Dropout(0.2))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.late(self.early(x)).mean((2, 3)))
        return out


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    """Digits, in batches of 32."""
    digits = open_dataset("digits", split="train")
    assert digits.labels is not None
    pictures = np.stack([np.asarray(digits.load(i)) for i in range(96)])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return list(zip(images.split(32), torch.tensor(digits.labels[:96]).split(32), strict=True))


def new() -> Net:
    torch.manual_seed(0)
    return Net()


def train_epoch(net: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch]) -> None:
    net.train()
    for images, labels in batches:
        optimizer.zero_grad()
        cross_entropy(net(images), labels).backward()
        optimizer.step()


def expected(net: Net, batches: list[Batch], layer: str, threshold: float) -> float:
    """F by the oracle, which knows neither taps nor metrics."""
    modes = [module.training for module in net.modules()]
    net.eval()
    count = oracle.counts(net, torch.cat([images for images, _ in batches]), layer, [threshold])[0]
    for module, mode in zip(net.modules(), modes, strict=True):
        module.training = mode
    net.zero_grad()
    return oracle.purity(count)


def test_plain_loop_logs_the_purity_of_every_epoch(batches: list[Batch]) -> None:
    net, logged = new(), []
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    monitor = PurityMonitor(net, ["C1", "last"], threshold=0.2)
    for _ in range(3):
        train_epoch(net, optimizer, batches)
        for images, _ in batches:
            monitor.update(images)
        logged.append(monitor.compute())
        monitor.reset()
        for layer in ("early.2", "late.2"):
            want = expected(net, batches, layer, 0.2)
            assert logged[-1][f"purity/{layer}"] == pytest.approx(want, abs=1e-6, nan_ok=True)
    assert logged[0] != logged[2]
    assert list(logged[0]) == ["purity/early.2", "purity_rate/early.2", "purity/late.2", "purity_rate/late.2"]


def test_looking_changes_nothing(batches: list[Batch]) -> None:
    states = []
    for looks in (False, True):
        net = new()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        monitor = PurityMonitor(net, ["early.*", "last"])
        net.early[0].weight.requires_grad_(False)
        for _ in range(2):
            train_epoch(net, optimizer, batches)
            gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
            if looks:
                monitor.update(batches[0][0])
            assert net.training
            assert all(module.training for module in net.modules())
            assert not net.early[0].weight.requires_grad
            now = [p.grad for p in net.parameters() if p.grad is not None]
            assert all(torch.equal(a, b) for a, b in zip(gradients, now, strict=True))
            assert not any(module._forward_hooks for module in net.modules())
        states.append(net.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class DigitsModule(Net):
    """A LightningModule in all but its base class: the methods that Lightning's Trainer calls, and `log_dict`."""

    def __init__(self) -> None:
        super().__init__()
        self.monitor = PurityMonitor(self, ["last"], threshold=0.2)
        self.logged: list[dict[str, float]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Batch, _: int) -> None:
        self.monitor.update(batch[0])

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.monitor.compute())
        self.monitor.reset()

    def log_dict(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def fit(module: DigitsModule, batches: list[Batch], epochs: int, inference_mode: bool) -> None:
    """Lightning's order: a sanity check, then per epoch training and validation, that in eval and inference mode.

    Batches reach the device inside that mode, so that they are inference tensors themselves.
    """
    optimizer = module.configure_optimizers()

    def validate(part: list[Batch]) -> None:
        module.eval()
        with torch.inference_mode() if inference_mode else torch.no_grad():
            for number, (images, labels) in enumerate(part):
                module.validation_step((images + 0, labels), number)
            module.on_validation_epoch_end()
        module.train()

    validate(batches[:1])
    for _ in range(epochs):
        for number, batch in enumerate(batches):
            optimizer.zero_grad()
            module.training_step(batch, number).backward()
            optimizer.step()
        validate(batches)


@pytest.mark.parametrize("inference_mode", [True, False])
def test_lightnings_loop_logs_the_purity_of_every_validation(batches: list[Batch], inference_mode: bool) -> None:
    torch.manual_seed(0)
    module = DigitsModule()
    fit(module, batches, 2, inference_mode)
    assert len(module.logged) == 3
    want = expected(module, batches, "late.2", 0.2)
    assert module.logged[-1]["purity/late.2"] == pytest.approx(want, abs=1e-6)
    assert not any("monitor" in name for name in module.state_dict())


def test_a_torchvision_network_knows_its_last_stage(batches: list[Batch]) -> None:
    torch.manual_seed(0)
    monitor = PurityMonitor(resnet18_cifar().train())
    monitor.update(batches[0][0][:4])
    assert list(monitor.compute()) == ["purity/layer4", "purity_rate/layer4"]


def test_nothing_seen_and_nothing_fired(batches: list[Batch]) -> None:
    monitor = PurityMonitor(new(), ["last"], threshold=0.99)
    assert monitor.compute() == {}
    monitor.update(batches[0][0])
    assert math.isnan(monitor.compute()["purity/late.2"])


def test_too_few_firings_are_said_once(batches: list[Batch], caplog: pytest.LogCaptureFixture) -> None:
    monitor = PurityMonitor(new(), ["C1", "last"], threshold=0.2)
    for images, _ in batches:
        monitor.update(images)
    monitor.compute()
    assert not caplog.records
    for _ in range(3):
        monitor.reset()
        monitor.update(batches[0][0][:1])
        monitor.compute()
    assert [record.getMessage().split()[2] for record in caplog.records] == ["early.2", "late.2"]


def test_purity_at_a_rate_is_read_where_that_share_fires(batches: list[Batch]) -> None:
    net, rate = new().eval(), 0.3
    monitor = PurityMonitor(net, ["last"], rate=rate)
    for images, _ in batches:
        monitor.update(images)
    images = torch.cat([images for images, _ in batches])
    masses = np.stack([oracle.mass(*oracle.map_and_gradient(net, image[None], "late.2")) for image in images])
    exact = oracle.purity((masses > np.quantile(masses, 1 - rate)).sum(0))
    assert monitor.compute()["purity_rate/late.2"] == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("spoiled", ["images", "weights"])
def test_a_nan_is_an_error_and_no_image_of_the_batch_counts(batches: list[Batch], spoiled: str) -> None:
    net, images = new(), batches[0][0].clone()
    monitor = PurityMonitor(net, ["C1", "last"], threshold=0.2)
    monitor.update(images)
    before = monitor.compute()
    if spoiled == "images":
        images[5, 0, 0, 0] = math.nan
    else:
        with torch.no_grad():
            net.fc.weight[0] = math.inf
    place = 5 if spoiled == "images" else 0
    with pytest.raises(PurityError, match=f"layer early.2 holds a NaN or an infinity for image {place} of the batch"):
        monitor.update(images)
    assert monitor.compute() == pytest.approx(before, nan_ok=True)


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        (["late.9"], PurityError, "Net has no layer 'late.9'"),
        (["fc"], UnsuitableLayer, r"fc gave \(n, 10\)"),
        (["C3"], PurityError, "Net has no stage C3"),
    ],
)
def test_layers_that_cannot_be_tapped(layers: list[str], error: Any, says: str, batches: list[Batch]) -> None:
    with pytest.raises(error, match=says):
        PurityMonitor(new(), layers).update(batches[0][0])


def test_a_network_is_read_within_its_wrappers(batches: list[Batch]) -> None:
    net, found = new(), []
    for wrapped in (net, nn.DataParallel(net), torch.compile(net)):
        monitor = PurityMonitor(wrapped, ["C1"], threshold=0.2, rate=0.2)  # type: ignore[arg-type]
        monitor.update(batches[0][0])
        found.append(monitor.compute())
    assert found[0] == found[1] == found[2]
    assert list(found[0]) == ["purity/early.2", "purity_rate/early.2"]


def test_layers_may_be_one_text(batches: list[Batch]) -> None:
    monitor = PurityMonitor(new(), "C1, last")
    monitor.update(batches[0][0])
    assert [name for name in monitor.compute() if "rate" not in name] == ["purity/early.2", "purity/late.2"]


@pytest.mark.parametrize("threshold", [-1, 1, 50, math.nan])
def test_a_threshold_that_no_channel_can_cross_is_refused(threshold: float) -> None:
    with pytest.raises(PurityError, match=r"A threshold must lie in \[0, 1\)"):
        PurityMonitor(new(), threshold=threshold)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5, math.nan])
def test_a_rate_that_is_no_share_is_refused(rate: Any) -> None:
    with pytest.raises(PurityError, match="A rate must lie between 0 and 1"):
        PurityMonitor(new(), rate=rate)


def test_a_batch_with_its_labels_is_refused(batches: list[Batch]) -> None:
    with pytest.raises(PurityError, match="not a list: give the images of the batch alone"):
        PurityMonitor(new()).update([*batches[0]])  # type: ignore[arg-type]


TOGETHER = """
import sys
import torch
import torch.distributed as dist
from purity_cli.errors import log
from purity_cli.monitor import PurityMonitor
from tests.core.test_monitor import new

dist.init_process_group("gloo")
rank = dist.get_rank()
monitor = PurityMonitor(new().eval(), ["C1", "last"], threshold=0.2)
images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
for epoch in range(2):
    if rank == 0:  # the other one sees no batch at all, as with fewer batches than processes
        monitor.update(images)
    found = monitor.compute()
    monitor.reset()
    with open(f"said{rank}", "a") as said:  # not stdout, where the lines of two processes can run into each other
        print(epoch, rank, found, file=said)
nobody = PurityMonitor(new().eval(), ["last"])
assert nobody.compute() == {}

said = []
log.addFilter(lambda record: said.append(record.getMessage()) or True)
shared = PurityMonitor(new().eval(), ["C1"], threshold=0.05)
shared.update(images[8 * rank : 8 * rank + 8])  # too few on each process, and enough on both
shared.compute()
assert not said, said
alone = PurityMonitor(new().eval(), ["C1"], threshold=0.05)
if rank == 0:
    alone.update(images[:8])
alone.compute()
assert len(said) == 1, said
dist.destroy_process_group()
"""


def test_a_process_that_saw_no_batch_has_the_sums_of_the_others(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TOGETHER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ran.returncode == 0, ran.stderr
    images = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    monitor = PurityMonitor(new().eval(), ["C1", "last"], threshold=0.2)
    monitor.update(images)
    alone = monitor.compute()
    for rank in (0, 1):
        assert (tmp_path / f"said{rank}").read_text() == f"0 {rank} {alone}\n1 {rank} {alone}\n"
