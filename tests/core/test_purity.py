"""The formula: against numpy written from SPEC."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra import numpy as hnp

from purity_cli.purity import activation, firings, images_by_group, map_statistics
from purity_cli.stats import feature_purity
from tests.core import oracle

GRID = (0.0, 0.1, 0.25, 0.5, 0.9)
counts = hnp.arrays(np.int64, st.tuples(st.just(3), st.integers(2, 40)), elements=st.integers(0, 10_000))
masses = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 30), st.integers(1, 6)),
    elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1, width=32),
)


@given(counts)
def test_purity_is_the_oracles(k: np.ndarray) -> None:
    got = feature_purity(k)
    np.testing.assert_allclose(got, [oracle.purity(row) for row in k], atol=1e-12)
    fired = got[k.sum(1) > 0]
    assert ((fired >= 0) & (fired <= 1 + 1e-12)).all()


@given(st.integers(2, 2048), st.integers(1, 10_000))
def test_equal_counts_give_one_and_a_single_channel_nought(c: int, k: int) -> None:
    equal = np.full(c, k)
    single = np.zeros(c, dtype=np.int64)
    single[c // 2] = k
    assert feature_purity(equal).item() == pytest.approx(1, abs=1e-12)
    assert feature_purity(single).item() == 0
    assert not math.copysign(1, feature_purity(single).item()) < 0


def test_nothing_fired_and_one_channel_are_nan() -> None:
    assert np.isnan(feature_purity(np.zeros(7)))
    assert np.isnan(feature_purity(np.array([5])))


@given(
    hnp.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-4, 4, width=32)),
    hnp.arrays(np.float32, (2, 3), elements=st.floats(-1, 1, width=32)),
    st.booleans(),
)
def test_activation_is_the_oracles(b: np.ndarray, beta: np.ndarray, rectified: bool) -> None:
    # Where beta * B underflows the oracle's literal order of steps would lose the map; such maps do not occur.
    b[np.abs(b) < 1e-6] = 0
    beta[np.abs(beta) < 1e-6] = 0
    b = np.maximum(b, 0) if rectified else b
    got = activation(map_statistics(torch.from_numpy(b)), torch.from_numpy(beta)).numpy()
    gradient = np.broadcast_to(beta[:, :, None, None], b.shape)
    np.testing.assert_allclose(got, [oracle.mass(x, g) for x, g in zip(b, gradient, strict=True)], rtol=1e-5, atol=1e-7)


def test_activation_of_a_point_map_is_nought_or_one() -> None:
    b = torch.tensor([[[[2.0]], [[-3.0]], [[0.0]], [[1.0]]]])
    beta = torch.tensor([[0.1, 0.1, 0.1, 0.0]])
    assert activation(map_statistics(b), beta).tolist() == [[1, 0, 0, 0]]


def test_activation_ignores_the_size_of_beta() -> None:
    statistics = map_statistics(torch.randn(4, 5, 6, 6))
    beta = torch.randn(4, 5)
    assert torch.equal(activation(statistics, beta), activation(statistics, beta * 2.0**20))


@given(masses)
def test_firing_is_strict_and_counted_by_group(m: np.ndarray) -> None:
    positions = torch.arange(len(m))
    got = firings(torch.from_numpy(m), positions, torch.tensor(GRID), 4)
    for g in range(4):
        rows = m[np.arange(len(m)) % 4 == g]
        for t, threshold in enumerate(GRID):
            assert got[g, t].tolist() == (rows > np.float32(threshold)).sum(0).tolist()
    assert images_by_group(positions, 4).tolist() == [len(m[g::4]) for g in range(4)]


def test_a_nan_fires_nowhere() -> None:
    overflowed = map_statistics(torch.tensor([[[[1.0, math.inf]]] * 3]))
    for m in (torch.tensor([[math.nan, 0.95, 0.0]]), activation(overflowed, torch.ones(1, 3))):
        got = firings(m, torch.arange(1), torch.tensor(GRID), 4)
        assert got.sum((0, 1)).tolist() == [0, 5 * bool(m[0, 1] > 0), 0]
