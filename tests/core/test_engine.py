"""The loop: batch sizes, memory, bad numbers, accuracy."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from purity_cli.engine import Engine, NonFinite
from purity_cli.errors import PurityError
from purity_cli.metrics import METRICS
from purity_cli.purity import MapStatistics, levels_passed, map_statistics
from tests.core import oracle

GRID = (0.1, 0.3, 0.5)
CPU = torch.device("cpu")


@dataclass
class Batch:
    pixels: Tensor
    positions: Tensor
    labels: Tensor


class Net(nn.Module):
    """Small; `largest` is the batch above which it runs out of memory."""

    def __init__(self, largest: int = 10_000) -> None:
        super().__init__()
        self.largest = largest
        self.attempts: list[int] = []
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.Conv2d(64, 96, 3), nn.BatchNorm2d(96), nn.ReLU(inplace=True)
        )
        self.fc = nn.Linear(96, 7)

    def forward(self, x: Tensor) -> Tensor:
        self.attempts.append(len(x))
        y = self.features(x)
        if len(x) > self.largest:
            raise torch.OutOfMemoryError("out of memory")
        return self.fc(y.mean((2, 3)))


def make_net(largest: int = 10_000) -> Net:
    torch.manual_seed(0)
    return Net(largest).eval()


def images(n: int) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return Batch(pixels, torch.arange(n), torch.randint(0, 7, (n,), generator=generator))


def blocks(batch: Batch, size: int) -> list[Batch]:
    parts = zip(batch.pixels.split(size), batch.positions.split(size), batch.labels.split(size), strict=True)
    return [Batch(*part) for part in parts]


def scale(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def engine(net: nn.Module, batch_size: int, layers: tuple[str, ...] = ("features.0", "features.2")) -> Engine:
    return Engine(net, layers, normalise=scale, thresholds=GRID, groups=4, device=CPU, batch_size=batch_size)


def test_batch_sizes_agree_to_one_firing_in_100_000() -> None:
    batch, seen = images(1500), {}
    for size in (1, 7, 64):
        with engine(make_net(), size) as run:
            run.run(blocks(batch, size))
        seen[size] = {layer: run.counts(layer) for layer in run.shapes}
        assert run.tally[0] == 1500
    for layer, counts in seen[64].items():
        assert int(counts.sum()) > 100_000
        allowed = 1e-5 * int(counts.sum())
        for size in (1, 7):
            assert int((seen[size][layer] - counts).abs().sum()) <= allowed


def test_the_same_blocks_in_any_order_give_the_same_counts_to_the_bit() -> None:
    batch = images(70)
    runs = []
    for step in (1, -1):
        with engine(make_net(), 16) as run:
            run.run(blocks(batch, 16)[::step])
        runs.append({layer: run.counts(layer) for layer in run.shapes})
    assert all(torch.equal(runs[0][layer], runs[1][layer]) for layer in runs[0])


def test_groups_follow_the_position_in_the_list() -> None:
    batch = images(8)
    batch.positions = torch.tensor([0, 4, 8, 12, 1, 5, 9, 13])
    with engine(make_net(), 8) as run:
        run.run([batch])
    fired = run.counts("features.2").sum((1, 2))
    assert (fired[:2] > 0).all()
    assert fired[2:].sum() == 0


def test_out_of_memory_halves_the_batch_and_counts_every_image_once() -> None:
    batch = images(50)
    with engine(make_net(), 5) as reference:
        reference.run(blocks(batch, 5))
    net = make_net(largest=10)
    with engine(net, 32) as run:
        run.run(blocks(batch, 32))
    assert run.batch_size == 8
    assert net.attempts == [1, 32, 16, 8, 8, 8, 8, 8, 8, 2]
    assert run.tally[0] == 50
    for layer in run.shapes:
        assert int((run.counts(layer) - reference.counts(layer)).abs().sum()) <= 1


def test_memory_that_runs_out_while_counting_counts_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two layers of one batch, the first of them already reduced."""
    batch, calls = images(50), []
    with engine(make_net(), 5) as reference:
        reference.run(blocks(batch, 5))

    def scarce(*arguments: Any) -> Tensor:
        calls.append(arguments)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("out of memory")
        return levels_passed(*arguments)

    monkeypatch.setattr("purity_cli.metrics.accumulators.levels_passed", scarce)
    with engine(make_net(), 10) as run:
        run.run(blocks(batch, 10))
    assert run.batch_size == 5
    assert run.tally[0] == 50
    for layer in run.shapes:
        assert int((run.counts(layer) - reference.counts(layer)).abs().sum()) <= 1


def test_no_memory_for_a_single_image_is_one_sentence() -> None:
    with engine(make_net(largest=0), 4) as run, pytest.raises(PurityError, match="too little memory for one image"):
        run.run([images(4)])


def test_accuracy_counts_only_labelled_images() -> None:
    net, batch = make_net(), images(40)
    batch.labels[::4] = -1
    with engine(net, 16) as run:
        run.run(blocks(batch, 16))
    with torch.no_grad():
        order = net(scale(batch.pixels)).argsort(1, descending=True)
    known = batch.labels >= 0
    first = order[known, 0] == batch.labels[known]
    five = (order[known, :5] == batch.labels[known, None]).any(1)
    assert run.tally.tolist() == [40, 30, int(first.sum()), int(five.sum())]


def test_counts_are_the_oracles_in_every_layer() -> None:
    net, batch = make_net().eval(), images(12)
    layers = ("features.0", "features.1", "features.2", "features.3", "features.4")
    with engine(net, 5, layers) as run:
        run.run(blocks(batch, 5))
    for layer in layers:
        expected = oracle.counts(net, scale(batch.pixels), layer, list(GRID))
        assert run.counts(layer).sum(0).tolist() == expected.tolist(), layer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_number_names_the_layer_and_the_image(value: float) -> None:
    class Spoilt(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.features[1](self.features[0](x))
            y = self.features[2](torch.where(x.mean((1, 2, 3), keepdim=True) > 0.9, value, y))
            return self.fc(self.features[4](self.features[3](y)).mean((2, 3)).nan_to_num(0, 0, 0))

    batch = images(9)
    batch.pixels[5:7] = 255
    with engine(Spoilt(), 4) as run, pytest.raises(NonFinite, match="layer features.2 holds a NaN.* for image 5"):
        run.run(blocks(batch, 4))


def test_a_gradient_that_is_not_finite_is_an_error_though_the_map_is() -> None:
    """The slope of a square root is infinite at 0, and 0 times infinity is NaN."""

    class Root(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.sqrt(self.features[4](self.features[:4](x))).mean((2, 3)))

    with engine(Root(), 4, ("features.4",)) as run, pytest.raises(NonFinite, match="layer features.4 holds a NaN"):
        run.run(blocks(images(4), 4))


def test_five_classes_are_all_among_the_first_five() -> None:
    net, batch = make_net(), images(20)
    net.fc, batch.labels = nn.Linear(96, 5), batch.labels % 5
    with engine(net, 8) as run:
        run.run(blocks(batch, 8))
    assert run.tally[3] == run.tally[1] == 20


def test_states_stand_in_the_order_of_the_metrics_asked_for() -> None:
    for asked in (("purity", "rankme"), ("rankme", "purity")):
        run = Engine(
            make_net(), ["features.2"], normalise=scale, thresholds=GRID, groups=4, device=CPU, batch_size=4,
            metrics=asked,
        )  # fmt: skip
        with run:
            run.run([images(4)])
        order = list(dict.fromkeys(name.split("/")[1] for name in run.arrays()))
        assert order == [METRICS[name].accumulator().name for name in asked]


def test_half_precision_stays_close() -> None:
    batch = images(128)
    counts = {}
    for precision in ("fp32", "bf16"):
        run = Engine(
            make_net(),
            ["features.2"],
            normalise=scale,
            thresholds=GRID,
            groups=4,
            device=CPU,
            precision=precision,
            batch_size=64,
        )
        with run:
            run.run(blocks(batch, 64))
        counts[precision] = run.counts("features.2").sum((0, 2)).double()
    assert torch.allclose(counts["bf16"], counts["fp32"], rtol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
@pytest.mark.parametrize("before", ["ieee", "tf32", "none"])
@pytest.mark.parametrize("fails", [False, True])
def test_what_a_process_says_of_float32_is_as_before_afterwards(
    precision: str, before: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    outer = [backend.fp32_precision for backend in backends]
    run = Engine(
        make_net(largest=0 if fails else 100), ["features.2"], normalise=scale, thresholds=GRID, groups=4, device=CPU,
        precision=precision, batch_size=4,
    )  # fmt: skip
    try:
        for backend in backends:
            backend.fp32_precision = before
        during: list[list[str]] = []
        with suppress(PurityError), run:
            during.append([backend.fp32_precision for backend in backends])
            run.run([images(4)])
        assert during == [["ieee" if precision == "fp32" else "tf32"] * 2]
        assert [backend.fp32_precision for backend in backends] == [before] * 2
    finally:
        for backend, value in zip(backends, outer, strict=True):
            backend.fp32_precision = value


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_is_that_of_weights_and_maps_and_changes_no_more_than_rounding(
    memory_format: torch.memory_format,
) -> None:
    batch, seen = images(64), []

    def look(maps: Tensor) -> MapStatistics:
        seen.append(maps.is_contiguous(memory_format=memory_format))
        return map_statistics(maps)

    net = make_net()
    run = Engine(
        net, ("features.0", "features.2"), normalise=scale, thresholds=GRID, groups=4, device=CPU, batch_size=32,
        memory_format=memory_format, statistics=look,
    )  # fmt: skip
    with run, engine(make_net(), 32) as reference:
        run.run(blocks(batch, 32))
        reference.run(blocks(batch, 32))
    assert seen == [True] * 4
    weight = net.features[0].weight
    assert isinstance(weight, Tensor)
    assert weight.is_contiguous(memory_format=memory_format)
    for layer in run.shapes:
        assert int((run.counts(layer) - reference.counts(layer)).abs().sum()) <= 1
