"""The jackknife, against its definition and against a bias that is known."""

from __future__ import annotations

import numpy as np
import pytest

from purity_cli.stats import feature_purity, jackknife
from tests.core import oracle


def draw(rng: np.random.Generator, p: np.ndarray, images: int, groups: int = 20) -> np.ndarray:
    """Counts (G, 1, c) of `images` images that fire one channel each, drawn from p."""
    channels = rng.choice(len(p), size=images, p=p)
    counts = np.zeros((groups, 1, len(p)), dtype=np.int64)
    np.add.at(counts[:, 0], (np.arange(images) % groups, channels), 1)
    return counts


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


def test_groups_without_images_do_not_count() -> None:
    rng = np.random.default_rng(2)
    counts = draw(rng, np.full(8, 1 / 8), 7, groups=20)
    seven = jackknife(counts[:7], 1000)
    assert np.allclose(jackknife(counts, 7), seven)
    alone = jackknife(counts[:1], 1)
    assert alone.purity[0] == 0
    assert np.isnan([alone.se[0], alone.corrected[0]]).all()


def test_where_nothing_fired_nothing_is_known() -> None:
    assert np.isnan(jackknife(np.zeros((20, 1, 8), dtype=np.int64), 100)).all()
    assert np.isnan(jackknife(np.ones((20, 1, 1), dtype=np.int64), 100)).all()
    one_group = np.zeros((20, 1, 8), dtype=np.int64)
    one_group[3] = 1
    assert jackknife(one_group, 100).purity[0] == 1
    assert np.isnan(jackknife(one_group, 100).se[0])
