"""RankMe and alpha-ReQ: against numpy's SVD of explicit matrices, and the laws of what adds."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from numpy.typing import NDArray
from torch import Tensor, nn

from purity_cli import run, store, tables
from purity_cli.engine import Engine
from purity_cli.peers import FeatureSpectrum, alpha_req, rankme
from purity_cli.pixels import normalise
from purity_cli.plan import Job
from purity_cli.results import Result
from purity_cli.taps import Taps
from tests import test_engine

Floats = NDArray[np.float64]


def oracle_rankme(z: Floats) -> float:
    """Eq. 1 of Garrido et al. on the matrix itself: its singular values are never squared."""
    s = np.linalg.svd(z, compute_uv=False)
    p = s / np.abs(s).sum() + 1e-7
    return float(np.exp(-np.sum(p * np.log(p))))


def oracle_alpha(z: Floats) -> float:
    """The normal equations of the weighted line, as the authors of alpha-ReQ solve them, on the centred matrix."""
    eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2 / (len(z) - 1)
    j = np.arange(1, len(eigenvalues) + 1)[3:100]
    y = np.log(eigenvalues[3:100])
    x = np.stack([-np.log(j), np.ones(len(j))], 1)
    w = 1 / j[:, None]
    return float(np.linalg.solve(x.T @ (w * x), (w * x).T @ y)[0])


def features(n: int, c: int, decay: float = 0.5, seed: int = 0, offset: float = 0.3) -> Tensor:
    """Float32, rectified means as a network's pooled features are: not centred, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, c)) * np.arange(1.0, c + 1) ** -decay
    return torch.from_numpy(np.abs(z @ np.linalg.qr(rng.normal(size=(c, c)))[0] + offset).astype(np.float32))


def fed(z: Tensor, cuts: list[int]) -> FeatureSpectrum:
    one = FeatureSpectrum(z.shape[1])
    for part in torch.tensor_split(z, sorted(cuts)):
        if len(part):
            one.update(part)
    return one


def values(metric: FeatureSpectrum) -> list[float]:
    return [float(value) for value in metric.compute().values()]


@pytest.mark.parametrize(("n", "c"), [(300, 10), (700, 64), (260, 256), (900, 300)])
def test_both_are_those_of_the_matrix(n: int, c: int) -> None:
    z = features(n, c)
    got = fed(z, [n // 3]).compute()
    assert list(got) == ["rankme", "alpha_req"]
    assert float(got["rankme"]) == pytest.approx(oracle_rankme(z.double().numpy()), rel=1e-9)
    # Centring takes the last of n directions, whose eigenvalue is 0 but for rounding.
    assert float(got["alpha_req"]) == pytest.approx(oracle_alpha(z.double().numpy()), rel=1e-9)


def test_fewer_images_than_channels_leave_as_many_singular_values() -> None:
    z = features(40, 200)
    got = float(fed(z, []).compute()["rankme"])
    assert got == pytest.approx(oracle_rankme(z.double().numpy()), rel=1e-7)
    assert got < 40.001


def test_the_cost_of_squaring_the_matrix_is_as_stated() -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 256)))[0] for n in (800, 256))
    for smallest, allowed in ((1e-4, 1e-11), (1e-6, 1e-9), (1e-12, 1e-5)):
        z = left * np.geomspace(1, smallest, 256) @ right.T
        got = values(fed(torch.from_numpy(z), []))[0]
        assert abs(got / oracle_rankme(z) - 1) < allowed, smallest


def test_dead_channels_and_low_rank_do_not_pass_for_directions() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, 300))
    z[:, ::3] = 0
    metric = fed(torch.from_numpy(z), [])
    assert values(metric)[0] == pytest.approx(oracle_rankme(z), rel=1e-9)
    # The fit ends with the 20 eigenvalues there are, where an oracle on the matrix would fit rounding.
    eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False)[:20] ** 2
    assert values(metric)[1] == pytest.approx(alpha_req(eigenvalues), rel=1e-9)


@pytest.mark.parametrize("k", [1, 2, 7, 500])
def test_k_equal_singular_values_are_of_rank_k(k: int) -> None:
    # What Garrido's 1e-7 adds, to first order: k equal p_k, and then each of 500 that are 0.
    added = 1e-7 * k * (math.log(k) - 1)
    assert rankme(np.full(k, 3.0)) == pytest.approx(k * math.exp(added), rel=1e-8)
    nothing = 500 * 1e-7 * math.log(1e7)
    assert rankme(np.array([3.0] * k + [0.0] * 500)) == pytest.approx(k * math.exp(added + nothing), rel=1e-8)


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("c", [6, 50, 100, 300])
def test_a_power_law_gives_its_exponent(a: float, c: int) -> None:
    j = np.arange(1.0, c + 1)
    assert alpha_req(7 * j**-a) == pytest.approx(a, abs=1e-12)
    # Only ranks 4 to 100 are looked at.
    outside = (j < 4) | (j > 100)
    assert alpha_req(np.where(outside, 1e3 * j**-a, j**-a)) == pytest.approx(a, abs=1e-12)


def test_what_cannot_be_said_is_nan() -> None:
    assert all(math.isnan(value) for value in values(FeatureSpectrum(8)))
    assert all(math.isnan(value) for value in values(fed(torch.zeros(5, 8), [])))
    assert math.isnan(values(fed(features(500, 5), []))[1])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 1000))
def test_any_split_and_any_order_give_the_same(c: int, cuts: list[int], seed: int) -> None:
    z = features(60, c, seed=seed)
    shuffled = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))]
    whole = values(fed(z, []))
    assert values(fed(z, cuts)) == pytest.approx(whole, rel=1e-9, nan_ok=True)
    assert values(fed(shuffled, cuts)) == pytest.approx(whole, rel=1e-9, nan_ok=True)


def test_states_of_two_halves_merge_into_those_of_the_whole() -> None:
    z = features(90, 12)
    left, right, whole = fed(z[:40], [20]), fed(z[40:], []), fed(z, [])
    left.merge_state(right)
    assert int(left.images) == 90
    assert values(left) == pytest.approx(values(whole), rel=1e-9)


def test_computing_twice_and_on_between_changes_nothing() -> None:
    z = features(90, 12)
    metric = fed(z[:40], [])
    assert values(metric) == values(metric)
    metric.update(z[40:])
    assert values(metric) == pytest.approx(values(fed(z, [])), rel=1e-9)
    metric.reset()
    assert int(metric.images) == 0
    metric.update(z)
    assert values(metric) == values(fed(z, []))


def test_memory_does_not_grow_with_the_images() -> None:
    def held(metric: FeatureSpectrum) -> int:
        return sum(state.numel() for state in metric.metric_state.values() if isinstance(state, Tensor))

    assert held(fed(features(10, 12), [])) == held(fed(features(500, 12), [100, 200])) == 12 * 12 + 12 + 1


class Rectified(nn.Module):
    """Two taps, one with negative values, one without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc = nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.relu(self.conv(x)).mean((2, 3)))
        return out


@pytest.mark.parametrize("layer", ["conv", "relu"])
def test_the_engine_pools_the_layer_that_it_is_told(layer: str) -> None:
    net, batch = Rectified().eval(), test_engine.images(50)
    settings: dict[str, Any] = {"thresholds": (0.5,), "groups": 4, "device": torch.device("cpu"), "batch_size": 16}
    with Engine(net, ["conv", "relu"], normalise=test_engine.scale, pooled=layer, **settings) as engine:
        engine.run(test_engine.blocks(batch, 16))
    with torch.no_grad():
        maps = net.conv(test_engine.scale(batch.pixels))
    pooled = (maps if layer == "conv" else maps.relu()).mean((2, 3)).double().numpy()
    assert engine.spectrum is not None
    assert int(engine.spectrum.images) == 50
    assert values(engine.spectrum) == pytest.approx([oracle_rankme(pooled), oracle_alpha(pooled)], rel=1e-5)


def test_running_out_of_memory_adds_no_image_twice() -> None:
    batch = test_engine.images(50)
    settings: dict[str, Any] = {"thresholds": (0.5,), "groups": 4, "device": torch.device("cpu"), "batch_size": 32}
    both = []
    for largest in (10, 10_000):
        net = test_engine.make_net(largest)
        with Engine(net, ["features.2"], normalise=test_engine.scale, pooled="features.2", **settings) as engine:
            engine.run(test_engine.blocks(batch, 32))
        assert engine.spectrum is not None
        assert int(engine.spectrum.images) == 50
        both.append(values(engine.spectrum))
    assert both[0] == pytest.approx(both[1], rel=1e-5)


@pytest.fixture(scope="module")
def scored() -> Result:
    job = Job(limit=60, layers=("last", "features.0", "C1"))
    return run.score(run.resolve(job), workers=1, peers=("rankme", "alpha-req"))


def test_a_result_carries_them_for_its_deepest_stage_alone(scored: Result) -> None:
    plan = run.resolve(scored.job)
    assert plan.deepest.stage == "C2"
    with Taps(plan.network.module, [plan.deepest.module], lambda maps: maps.mean((2, 3))) as taps:
        blocks = run.read(plan, workers=1)
        means = torch.cat(
            [taps(normalise(block.pixels, plan.preprocessing)).maps[plan.deepest.module] for block in blocks]
        )
    pooled = means.double().numpy()
    assert len(pooled) == 60
    expected = [oracle_rankme(pooled), oracle_alpha(pooled)]
    assert {layer.module: list(layer.measures.values()) for layer in scored.layers} == {
        "features.8": pytest.approx(expected, rel=1e-5), "features.0": [], "features.3": [],
    }  # fmt: skip


def test_they_survive_the_store_and_stand_in_tables_only_where_asked_for(scored: Result, tmp_path: Path) -> None:
    store.write(scored, tmp_path)
    assert [layer.measures for layer in store.read(tmp_path).layers] == [layer.measures for layer in scored.layers]
    rows = tables.at(tables.frame([scored]), 0.5)
    assert list(rows.columns[-2:]) == ["rankme", "alpha_req"]
    assert rows["rankme"].notna().tolist() == [True, False, False]
    back = pd.read_csv(tmp_path / "purity.csv")
    assert tables.at(back, 0.5)["alpha_req"].tolist() == pytest.approx(
        rows["alpha_req"].tolist(), rel=1e-12, nan_ok=True
    )
    assert "rankme" in tables.details(rows).columns
    plain = replace(scored, layers=tuple(replace(layer, measures={}) for layer in scored.layers))
    assert tuple(tables.frame([plain]).columns) == tables.COLUMNS


def test_one_that_is_unknown_is_said_and_stored_as_such(tmp_path: Path) -> None:
    said: list[str] = []
    job = Job(limit=3, layers=("last",))
    result = run.score(run.resolve(job), workers=1, peers=("alpha-req",), warn=said.append)
    assert said == ["alpha_req of features.8 is unknown: too few images or channels that vary."]
    store.write(result, tmp_path)
    assert math.isnan(store.read(tmp_path).layers[0].measures["alpha_req"])


def test_blocks_that_were_read_before_give_the_same_counts(scored: Result) -> None:
    plan = run.resolve(scored.job)
    again = run.score(plan, workers=1, blocks=list(run.read(plan, workers=1)))
    assert all(np.array_equal(a.counts, b.counts) for a, b in zip(scored.layers, again.layers, strict=True))
    assert again.top1 == scored.top1
    assert again.provenance["parameters"] == sum(p.numel() for p in plan.network.module.parameters())
