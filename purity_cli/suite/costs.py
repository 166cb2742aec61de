"""What one image costs a network, for how long a suite will take: found from shapes, before anything is loaded."""

from __future__ import annotations

from functools import cache

import torch

from purity_cli import models
from purity_cli.models.base import ShapesOnly


@cache
def operations(model: str, height: int, width: int) -> int | None:
    """Floating-point operations of the forward pass of one image; None where they can't be counted.

    A network of the user's is not asked, for its code should run once, when its job does.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if ".py" in model:
        return None
    try:
        with ShapesOnly():
            network = models.load(model, "none").module
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), ShapesOnly(), counter:
            network(torch.empty(1, 3, height, width))
    except Exception:  # whatever it is, the job itself will say
        return None
    return counter.get_total_flops() or None
