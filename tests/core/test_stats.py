"""The jackknife and purity at a rate: against their definitions, a known bias, scipy and a bootstrap over images."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.interpolate import interp1d

from purity_cli.stats import feature_purity, jackknife, jackknife_of_mean, purity_at_rate, purity_at_rate_of_mean
from tests.core import oracle

GRID = np.linspace(0.05, 0.95, 19)


def draw(rng: np.random.Generator, p: np.ndarray, images: int, groups: int = 20) -> np.ndarray:
    """Counts (G, 1, c) of `images` images that fire one channel each, drawn from p."""
    channels = rng.choice(len(p), size=images, p=p)
    counts = np.zeros((groups, 1, len(p)), dtype=np.int64)
    np.add.at(counts[:, 0], (np.arange(images) % groups, channels), 1)
    return counts


def made(seed: int, images: int, channels: int) -> NDArray[np.float64]:
    """M (n, c) with channels that are peaked and channels that are not, some of them dead."""
    rng = np.random.default_rng(seed)
    m = 0.96 * rng.random((images, channels)) ** rng.uniform(0.5, 4, channels)
    m[:, : channels // 8] = 0
    return m


def counted(m: NDArray[np.float64], groups: int = 20, positions: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Counts (G, T, c) of M (n, c)."""
    place = np.arange(len(m)) if positions is None else positions
    return np.stack([[(m[place % groups == g] > t).sum(0) for t in GRID] for g in range(groups)])


def oracle_rate(counts: NDArray[np.int64], images: int, rate: float) -> float:
    """F of counts (T, c) at the rate, by scipy's interpolation over the shares that are not 0."""
    share = counts.sum(1) / (images * counts.shape[1])
    share, counts = share[share > 0], counts[share > 0]
    kept = np.unique(share, return_index=True)[1]
    if len(kept) < 2:
        return math.nan
    purity = [oracle.purity(counts[k]) for k in kept]
    return float(interp1d(np.log(share[kept]), purity, bounds_error=False, fill_value=math.nan)(math.log(rate)))


# The jackknife


def test_jackknife_is_its_definition_written_out() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, (5, 3, 7))
    got = jackknife(counts, 1000)
    for t in range(3):
        left = [oracle.purity(np.delete(counts, j, 0)[:, t].sum(0)) for j in range(5)]
        mean, whole = sum(left) / 5, oracle.purity(counts[:, t].sum(0))
        assert got.purity[t] == pytest.approx(whole, abs=1e-12)
        assert got.se[t] == pytest.approx((4 / 5 * sum((f - mean) ** 2 for f in left)) ** 0.5, abs=1e-12)
        assert got.corrected[t] == pytest.approx(5 * whole - 4 * mean, abs=1e-12)


def test_standard_error_is_the_spread_of_repeated_samples_and_the_correction_removes_most_of_the_bias() -> None:
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(64))
    truth = float(feature_purity(p))
    runs = [jackknife(draw(rng, p, 400), 400) for _ in range(300)]
    raw, corrected, se = (np.array([run[i][0] for run in runs]) for i in (0, 2, 1))
    assert np.sqrt((se**2).mean()) == pytest.approx(raw.std(), rel=0.25)
    assert raw.mean() < truth - 0.01
    assert abs(corrected.mean() - truth) < 0.3 * (truth - raw.mean())


def test_only_groups_that_hold_images_count_whichever_they_are() -> None:
    rng = np.random.default_rng(2)
    own = draw(rng, np.full(8, 1 / 8), 12, groups=12)
    counts = np.zeros((20, 1, 8), np.int64)
    counts[8:] = own
    images = np.array([0] * 8 + [2] * 12)
    for got, expected in zip(jackknife(counts, images), jackknife(own, 1000), strict=True):
        np.testing.assert_allclose(got, expected)
    # A group that holds images of which none fired is one of the groups.
    silent = np.concatenate([own, np.zeros((1, 1, 8), np.int64)])
    assert jackknife(silent, [2] * 13).se[0] != pytest.approx(jackknife(own, [2] * 12).se[0])


def test_a_number_of_images_is_of_the_groups_in_which_anything_fired() -> None:
    counts = np.zeros((20, 1, 8), np.int64)
    counts[5:12] = draw(np.random.default_rng(2), np.full(8, 1 / 8), 7, groups=7)
    for got, expected in zip(jackknife(counts, 7), jackknife(counts[5:12], [1] * 7), strict=True):
        np.testing.assert_allclose(got, expected)
    alone = jackknife(counts[5:6], 1)
    assert alone.purity[0] == 0
    assert np.isnan([alone.se[0], alone.corrected[0]]).all()


def test_where_nothing_fired_nothing_is_known() -> None:
    assert np.isnan(jackknife(np.zeros((20, 1, 8), dtype=np.int64), 100)).all()
    assert np.isnan(jackknife(np.ones((20, 1, 1), dtype=np.int64), 100)).all()
    one_group = np.zeros((20, 1, 8), dtype=np.int64)
    one_group[3] = 1
    assert jackknife(one_group, 100).purity[0] == 1
    assert np.isnan(jackknife(one_group, 100).se[0])


def test_the_mean_of_layers_is_unknown_where_one_layer_is_in_any_sample() -> None:
    rng = np.random.default_rng(3)
    every, one_group = rng.integers(1, 9, (4, 1, 6)), np.zeros((4, 1, 6), np.int64)
    one_group[2] = 1
    got = jackknife_of_mean([every, one_group], [5] * 4)
    assert got.purity[0] == pytest.approx((oracle.purity(every.sum((0, 1))) + 1) / 2)
    assert np.isnan([got.se[0], got.corrected[0]]).all()
    assert np.isnan(jackknife_of_mean([every, 0 * one_group], [5] * 4).purity[0])


# Purity at an equal rate


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_purity_at_a_rate_is_interpolated_in_the_log_of_the_share(rate: float) -> None:
    m = made(0, 300, 40)
    counts = counted(m)
    got = purity_at_rate(counts, len(m), GRID.tolist(), rate)
    assert got.purity == pytest.approx(oracle_rate(counts.sum(0), 300, rate), abs=1e-12)
    assert got.reason == ""
    share = np.array([(m > t).mean() for t in GRID])
    crossing = interp1d(np.log(share), GRID)(math.log(rate))
    assert got.threshold == pytest.approx(crossing, abs=1e-12)
    left = [oracle_rate(np.delete(counts, j, 0).sum(0), 285, rate) for j in range(20)]
    assert got.se == pytest.approx(math.sqrt(19 / 20 * np.square(np.array(left) - np.mean(left)).sum()), abs=1e-12)


def test_the_rate_of_a_stored_threshold_gives_its_purity_and_missing_images_change_the_share() -> None:
    m = made(1, 200, 16)
    positions = np.delete(np.arange(230), np.arange(0, 60, 2))
    counts, images = counted(m, positions=positions), np.bincount(positions % 20, minlength=20)
    for place in (3, 9):
        rate = float(counts[:, place].sum() / (200 * 16))
        got = purity_at_rate(counts, images, GRID.tolist(), rate)
        assert got.purity == pytest.approx(oracle.purity(counts[:, place].sum(0)), abs=1e-12)
        assert got.threshold == pytest.approx(GRID[place])
        left = [oracle_rate(np.delete(counts, j, 0).sum(0), int(200 - images[j]), rate) for j in range(20) if images[j]]
        assert len(left) == 20
        assert got.se == pytest.approx(math.sqrt(19 / 20 * np.square(np.array(left) - np.mean(left)).sum()), abs=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_the_standard_error_at_a_rate_is_that_of_a_bootstrap_over_images(rate: float) -> None:
    m = made(2, 600, 64)
    got = purity_at_rate(counted(m), len(m), GRID.tolist(), rate)
    fires = np.stack([m > t for t in GRID]).astype(np.int32)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(m), np.full(len(m), 1 / len(m)), 1500)
    samples = np.einsum("bn,tnc->btc", drawn, fires, optimize=True)
    spread = np.std([oracle_rate(sample, len(m), rate) for sample in samples])
    assert got.se == pytest.approx(spread, rel=0.15)


def test_the_mean_at_a_rate_is_of_each_layer_at_its_own_threshold() -> None:
    layers = [counted(made(seed, 100, channels)) for seed, channels in ((3, 16), (4, 24))]
    got = purity_at_rate_of_mean(layers, 100, GRID.tolist(), 0.05)
    whole = [oracle_rate(counts.sum(0), 100, 0.05) for counts in layers]
    left = [np.mean([oracle_rate(np.delete(k, j, 0).sum(0), 95, 0.05) for k in layers]) for j in range(20)]
    assert got.purity == pytest.approx(np.mean(whole), abs=1e-12)
    assert got.se == pytest.approx(math.sqrt(19 / 20 * np.square(np.array(left) - np.mean(left)).sum()), abs=1e-12)
    assert math.isnan(got.threshold)
    nothing = purity_at_rate_of_mean([*layers, 0 * layers[0]], 100, GRID.tolist(), 0.05)
    assert math.isnan(nothing.purity)
    assert nothing.reason == "nothing fired"


POINTS = counted(np.random.default_rng(5).integers(0, 2, (60, 8)).astype(float))


@pytest.mark.parametrize(
    ("counts", "rate", "reason"),
    [
        (POINTS, 0.01, "fire at every threshold, as in maps of 1 x 1"),
        (0 * POINTS, 0.01, "nothing fired"),
        (POINTS[:, :, :1], 0.01, "one channel"),
        (counted(0.5 * made(6, 60, 16)), 0.9, "fire at the lowest threshold 0.05"),
        (counted(0.5 * np.sqrt(np.random.default_rng(1).random((60, 2)))), 0.005, "still fire at the threshold"),
    ],
)
def test_a_rate_outside_the_stored_shares_is_nan_with_a_reason(
    counts: NDArray[np.int64], rate: float, reason: str
) -> None:
    got = purity_at_rate(counts, 60, GRID.tolist(), rate)
    assert np.isnan([got.purity, got.se]).all()
    assert reason in got.reason
