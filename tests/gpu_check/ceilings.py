"""What the device can do at most: convolutions and matrix products in each precision, and copying its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from tests.gpu_check.budget import Budget, Contender, in_turn
from tests.gpu_check.report import Cells, Planned, Sheet
from tests.gpu_check.settings import FORMATS, Settings
from tests.gpu_check.subjects import arithmetic, attempt

COLUMNS = ("what", "precision", "memory_format", "tflops", "gb_per_s")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MATRIX = 8192
# (images, channels, side, kernel): the shapes of ResNet's and VGG's inner layers.
CONVOLUTIONS = ((128, 256, 56, 3), (128, 512, 28, 3), (128, 1024, 28, 1))
COPIED = 2**31
"""Bytes read, and as many written: far more than any cache holds."""

Problem = Callable[[torch.dtype, torch.device], tuple[Callable[[], object], float]]
"""From a type and a device to the work and its FLOPs."""


def part(settings: Settings, budget: Budget, about: Cells) -> list[Sheet]:
    """Fill `ceilings`."""
    sheet = Sheet(settings, "ceilings", COLUMNS, about)
    planned: list[Planned] = [
        ({"what": "copy, bytes read and written"}, lambda: {"gb_per_s": copying(settings, budget)})
    ]
    for precision in settings.precisions:
        planned += [(names, partial(_cells, work)) for names, work in problems(settings, budget, precision)]
    sheet.fill(planned)
    return [sheet]


def highest(settings: Settings, budget: Budget, precision: str) -> float | None:
    """The most FLOP/s of all the problems; None where none ran."""
    rates = (attempt(work)[0] for _, work in problems(settings, budget, precision))
    return max((1e12 * rate for rate in rates if rate), default=None)


def copying(settings: Settings, budget: Budget) -> float:
    """GB/s of one large copy on the device: bytes read plus bytes written."""
    source = torch.randint(0, 256, (COPIED // settings.scale**2,), dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / _seconds(settings, budget, lambda: target.copy_(source)) / 1e9


def problems(settings: Settings, budget: Budget, precision: str) -> Iterator[tuple[Cells, Callable[[], float]]]:
    """Each problem, and the work that gives its TFLOP/s."""
    n = MATRIX // settings.scale
    work = partial(_rate, settings, budget, precision)
    yield {"what": f"matrix product {n}", "precision": precision}, partial(work, _matrix(n))
    for memory_format in settings.formats:
        for images, channels, side, kernel in CONVOLUTIONS:
            small = min(settings.scale, 8)
            shape = (images // small, channels // small, side // small, kernel)
            name = f"convolution {kernel}x{kernel} of {shape[0]}x{shape[1]}x{shape[2]}x{shape[2]}"
            for gradient in (False, True):
                what = name + (", gradient of its input" if gradient else "")
                names = {"what": what, "precision": precision, "memory_format": memory_format}
                yield names, partial(work, _convolution(*shape, memory_format, gradient))


def _matrix(n: int) -> Problem:
    def make(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], float]:
        # Random numbers, here and below: zeros can run faster.
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        return lambda: a @ b, 2.0 * n**3

    return make


def _convolution(n: int, channels: int, side: int, kernel: int, memory_format: str, gradient: bool) -> Problem:
    def make(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], float]:
        layout = FORMATS[memory_format]
        x = torch.randn(n, channels, side, side, device=device).to(dtype).contiguous(memory_format=layout)
        w = torch.randn(channels, channels, kernel, kernel, device=device).to(dtype).contiguous(memory_format=layout)
        flops = 2.0 * n * (channels * kernel * side) ** 2
        if not gradient:
            return lambda: F.conv2d(x, w, padding=kernel // 2), flops
        backward, space = torch.ops.aten.convolution_backward, ([1, 1], [kernel // 2] * 2, [1, 1])
        return lambda: backward(x, x, w, None, *space, False, [0, 0], 1, [True, False, False]), flops

    return make


def _cells(work: Callable[[], float]) -> Cells:
    return {"tflops": work()}


def _rate(settings: Settings, budget: Budget, precision: str, problem: Problem) -> float:
    with torch.no_grad():
        work, flops = problem(DTYPES.get(precision, torch.float32), settings.device)
        return flops / _seconds(settings, budget, work, precision) / 1e12


def _seconds(settings: Settings, budget: Budget, work: Callable[[], object], precision: str = "fp32") -> float:
    def around() -> Any:
        # The tensors are of the precision's type already, and autocast would look at them in every step.
        return arithmetic(precision if precision == "tf32" else "fp32", settings.device)

    found = in_turn(
        {"": Contender(work, around)}, settings.device, budget, rounds=settings.rounds, at_least=settings.at_least
    )
    return found[""]
