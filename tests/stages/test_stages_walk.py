"""Stages and readings of one network of every tenth family, against what timm says of its features."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import timm
from torch import nn

from benchmarks import walk
from purity_cli.stages.trunk import POOLS

CHOSEN = [*walk.CNNS[::9], *walk.HYBRIDS[::6]]


@pytest.fixture(scope="module")
def found() -> dict[str, walk.Found]:
    return {name: walk.look("timm", name, partial(timm.create_model, name), walk.size_of(name)) for name in CHOSEN}


def check_readings(name: str, network: walk.Found) -> None:
    """Each is a module of its kind on maps of its stage's size, and every stage of a CNN has a convolution."""
    for number, shape in enumerate(network.maps.values(), 1):
        conv = network.readings.get(f"conv:C{number}")
        assert conv or name in walk.HYBRIDS, (name, number)
        if conv:
            assert any(issubclass(kind, nn.Conv2d) for kind in conv[0]), (name, number)
            assert conv[1] is not None
            assert conv[1][1:] == shape[1:], (name, number)
        if block := network.readings.get(f"block:C{number}"):
            assert block[1] == shape, (name, number)
            assert any(issubclass(kind, (nn.Conv2d, nn.Linear)) for kind in block[0]), (name, number)
        if pool := network.readings.get(f"pool:C{number}"):
            assert all(issubclass(kind, POOLS) for kind in pool[0]), (name, number)
            assert pool[1] is not None
            assert pool[1][1:] <= shape[1:], (name, number)


def test_readings(found: dict[str, walk.Found]) -> None:
    for name, network in found.items():
        assert len(network.maps) >= 3, (name, network.reason)
        assert all(deep[1] <= shallow[1] for shallow, deep in pairwise(network.maps.values())), name
        check_readings(name, network)


def test_stages_are_as_timm_describes_its_features(found: dict[str, walk.Found]) -> None:
    compared = 0
    for name, network in found.items():
        if len(network.features) != len(network.maps):
            continue
        compared += 1
        for (module, (channels, height, _)), feature in zip(network.maps.items(), network.features, strict=True):
            assert channels == feature["num_chs"], (name, module)
            exact = network.size[0] / feature["reduction"]
            # The Inceptions convolve without padding, which takes off a little more.
            assert abs(height - exact) < max(1, 0.15 * exact), (name, module, height)
    assert compared >= 8
