"""`FeaturePurity` in the hands of torchmetrics: laws of its states, collections and `forward`."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torchmetrics import MetricCollection

from purity_cli import FeaturePurity
from purity_cli.errors import PurityError
from tests.core import oracle
from tests.core.test_purity import GRID, masses


def metric(channels: int) -> FeaturePurity:
    return FeaturePurity(channels, GRID, groups=4)


def fed(m: torch.Tensor, cuts: list[int]) -> FeaturePurity:
    one = metric(m.shape[1])
    for positions in torch.tensor_split(torch.arange(len(m)), sorted(cuts)):
        if len(positions):
            one.update(m[positions], positions)
    return one


@given(masses.map(torch.from_numpy), st.data())
def test_any_split_any_order_and_any_merge_give_the_same_states(m: torch.Tensor, data: st.DataObject) -> None:
    n = len(m)
    whole = fed(m, [])
    split = fed(m, data.draw(st.lists(st.integers(0, n), max_size=4)))
    shuffled = metric(m.shape[1])
    order = torch.tensor(data.draw(st.permutations(range(n))))
    shuffled.update(m[order], order)
    cut, later = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    parts = [metric(m.shape[1]) for _ in range(3)]
    for part, rows in zip(parts, (slice(0, cut), slice(cut, later), slice(later, n)), strict=True):
        part.update(m[rows], torch.arange(n)[rows])
    merged = metric(m.shape[1])
    for part in reversed(parts):
        merged.merge_state(part.metric_state)
    for other in (split, shuffled, merged):
        assert torch.equal(whole.counts, other.counts)
        assert torch.equal(whole.images_by_group, other.images_by_group)
        assert torch.equal(whole.thresholds, other.thresholds)


def test_it_is_the_oracle_s_computes_twice_and_resets() -> None:
    m = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    one = fed(m, [17])
    expected = [oracle.purity((m.numpy() > np.float32(t)).sum(0)) for t in GRID]
    for _ in range(2):
        np.testing.assert_allclose(one.compute(), expected, atol=1e-12)
    one.reset()
    assert (int(one.counts.sum()), int(one.images)) == (0, 0)
    assert one.thresholds.tolist() == pytest.approx(GRID)


def test_images_are_numbered_in_the_order_in_which_they_come_by_update_and_by_forward() -> None:
    m = torch.rand(25, 3, generator=torch.Generator().manual_seed(0))
    updated, forwarded = metric(3), metric(3)
    for rows in m.split(3):  # 3 does not divide the 4 groups
        updated.update(rows)
        of_batch = forwarded(rows)
        np.testing.assert_allclose(of_batch, [oracle.purity((rows.numpy() > np.float32(t)).sum(0)) for t in GRID])
    for g in range(4):
        for t, threshold in enumerate(GRID):
            expected = (m[g::4].numpy() > np.float32(threshold)).sum(0).tolist()
            assert updated.counts[g, t].tolist() == forwarded.counts[g, t].tolist() == expected
    assert updated.images_by_group.tolist() == forwarded.images_by_group.tolist() == [7, 6, 6, 6]


def test_a_collection_keeps_metrics_of_different_thresholds_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    # After the first batch, both have the same counts.
    batches = [torch.full((4, 8), 0.9), torch.rand(200, 8, generator=generator) ** 0.5]
    both = MetricCollection({"low": FeaturePurity(8, (0.5,)), "high": FeaturePurity(8, (0.85,))})
    for batch in batches:
        both.update(batch)
    m = torch.cat(batches).numpy()
    expected = {name: oracle.purity((m > np.float32(t)).sum(0)) for name, t in (("low", 0.5), ("high", 0.85))}
    assert {name: float(value) for name, value in both.compute().items()} == pytest.approx(expected)
    assert expected["low"] != pytest.approx(expected["high"])


def test_a_nan_fires_nowhere_and_is_counted_as_an_image() -> None:
    one = metric(3)
    one.update(torch.tensor([[math.nan, 0.95, 0.0]]))
    assert one.counts.sum((0, 1)).tolist() == [0, 5, 0]
    assert int(one.images) == 1


@pytest.mark.parametrize("shape", [(2, 1), (2, 5), (4,), (2, 4, 1, 1)])
def test_another_number_of_channels_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PurityError, match=r"of 4 channels takes M of shape \(n, 4\), not"):
        metric(4).update(torch.rand(shape))


@pytest.mark.parametrize("thresholds", [(0.5, 0.3), (0.5, 0.5), (1.5,), (-0.1,), (math.nan,)])
def test_thresholds_that_would_be_counted_wrongly_are_refused(thresholds: tuple[float, ...]) -> None:
    with pytest.raises(PurityError, match="Thresholds must increase and lie in"):
        FeaturePurity(4, thresholds)
