"""The measures of a layer: against numpy's SVD of explicit matrices, laws of what adds, and one added by its entry."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping
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

from purity_cli import cli, metrics, run, store
from purity_cli.engine import Engine
from purity_cli.errors import PurityError
from purity_cli.metrics import METRICS, Measure, Parameter
from purity_cli.metrics.accumulators import Accumulator, LayerBatch, SecondMoments
from purity_cli.metrics.spectrum import alpha_of, rankme_of
from purity_cli.pixels import normalise
from purity_cli.plan import Job
from purity_cli.purity import MapStatistics
from purity_cli.results import Result
from purity_cli.taps import Taps
from purity_cli.views import cells
from tests.core import test_engine
from tests.logged import logged

Floats = NDArray[np.float64]
NET = {"model": "tiny_vgg_10", "dataset": "digits"}
SPECTRAL = ("rankme", "alpha-req", "participation-ratio", "stable-rank", "saturation")
ALL = ",".join(SPECTRAL)


def oracle_rankme(z: Floats, epsilon: float = 1e-7) -> float:
    """Eq. 1 of Garrido et al. on the matrix itself: its singular values are never squared."""
    s = np.linalg.svd(z, compute_uv=False)
    p = s / np.abs(s).sum() + epsilon
    return float(np.exp(-np.sum(p * np.log(p))))


def oracle_alpha(z: Floats, first: int = 4) -> float:
    """The normal equations of the weighted line, as the authors of alpha-ReQ solve them, on the centred matrix."""
    eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2 / (len(z) - 1)
    j = np.arange(1, len(eigenvalues) + 1)[first - 1 : 100]
    y = np.log(eigenvalues[first - 1 : 100])
    x = np.stack([-np.log(j), np.ones(len(j))], 1)
    w = 1 / j[:, None]
    return float(np.linalg.solve(x.T @ (w * x), (w * x).T @ y)[0])


def oracle_participation(z: Floats) -> float:
    """From the entries of the covariance, without an eigenvalue: tr(C)^2 / tr(C C)."""
    c = np.cov(z.T)
    return float(np.trace(c) ** 2 / (c**2).sum())


def oracle_stable_rank(z: Floats) -> float:
    return float((z**2).sum() / np.linalg.norm(z, 2) ** 2)


def oracle_saturation(z: Floats, delta: float = 0.99) -> float:
    """By counting up."""
    variance = np.linalg.svd(z - z.mean(0), compute_uv=False) ** 2
    held, k = 0.0, 0
    while held < delta * variance.sum() * (1 - 1e-12):
        held, k = held + variance[k], k + 1
    return k / z.shape[1]


def oracles(z: Floats) -> dict[str, float]:
    return {
        "rankme": oracle_rankme(z),
        "alpha_req": oracle_alpha(z),
        "participation_ratio": oracle_participation(z),
        "stable_rank": oracle_stable_rank(z),
        "saturation": oracle_saturation(z),
    }


def features(n: int, c: int, decay: float = 0.5, seed: int = 0, offset: float = 0.3) -> Tensor:
    """Float32, rectified means as a network's pooled features are: not centred, with a falling spectrum."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, c)) * np.arange(1.0, c + 1) ** -decay
    return torch.from_numpy(np.abs(z @ np.linalg.qr(rng.normal(size=(c, c)))[0] + offset).astype(np.float32))


def seen(z: Tensor) -> LayerBatch:
    """A batch whose pooled features are z (n, c)."""
    maps = MapStatistics(z.clamp_min(0), z.clamp_min(0), -z.clamp_max(0), -z.clamp_max(0))
    return LayerBatch(maps, None, torch.arange(len(z)), torch.full((len(z),), -1))


def fed(z: Tensor, cuts: list[int]) -> SecondMoments:
    one = SecondMoments(z.shape[1])
    for part in torch.tensor_split(z, sorted(cuts)):
        if len(part):
            one.add(one.increments(seen(part)))
    return one


def values(metric: SecondMoments) -> dict[str, float]:
    arrays = metric.arrays()
    return {name: value for key in SPECTRAL for name, value in METRICS[key].values(arrays).items()}


def close(got: Mapping[str, float], expected: Mapping[str, float], rel: float) -> bool:
    return dict(got) == {name: pytest.approx(value, rel=rel, nan_ok=True) for name, value in expected.items()}


@pytest.mark.parametrize(("n", "c"), [(300, 10), (700, 64), (260, 256), (900, 300)])
def test_all_are_those_of_the_matrix(n: int, c: int) -> None:
    z = features(n, c)
    got = values(fed(z, [n // 3]))
    assert list(got) == metrics.columns()
    # Centring takes the last of n directions, whose eigenvalue is 0 but for rounding.
    assert close(got, oracles(z.double().numpy()), 1e-9)


def test_the_other_convention_is_a_parameter_and_can_reverse_an_order() -> None:
    arrays = fed(features(300, 40), []).arrays()
    z = features(300, 40).double().numpy()
    assert METRICS["rankme"].values(arrays, epsilon=1e-2)["rankme"] == pytest.approx(oracle_rankme(z, 1e-2), rel=1e-9)
    assert METRICS["alpha-req"].values(arrays, first=11)["alpha_req"] == pytest.approx(oracle_alpha(z, 11), rel=1e-9)
    got = METRICS["saturation"].values(arrays, delta=0.5)["saturation"]
    assert got == oracle_saturation(z, 0.5) < oracle_saturation(z)


def test_fewer_images_than_channels_leave_as_many_singular_values() -> None:
    z = features(40, 200)
    got = values(fed(z, []))["rankme"]
    assert got == pytest.approx(oracle_rankme(z.double().numpy()), rel=1e-7)
    assert got < 40.001


def test_the_cost_of_squaring_the_matrix_is_as_stated() -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 256)))[0] for n in (800, 256))
    for smallest, allowed in ((1e-4, 1e-11), (1e-6, 1e-9), (1e-12, 1e-5)):
        z = left * np.geomspace(1, smallest, 256) @ right.T
        got = values(fed(torch.from_numpy(z), []))["rankme"]
        assert abs(got / oracle_rankme(z) - 1) < allowed, smallest


def test_dead_channels_and_low_rank_do_not_pass_for_directions() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2000, 20)) @ rng.normal(size=(20, 300))
    z[:, ::3] = 0
    got = values(fed(torch.from_numpy(z), []))
    assert got["rankme"] == pytest.approx(oracle_rankme(z), rel=1e-9)
    # The fit ends with the 20 eigenvalues there are, where an oracle on the matrix would fit rounding.
    eigenvalues = np.linalg.svd(z - z.mean(0), compute_uv=False)[:20] ** 2
    assert got["alpha_req"] == pytest.approx(alpha_of(eigenvalues), rel=1e-9)
    assert got["saturation"] <= 20 / 300


@pytest.mark.parametrize("k", [1, 2, 7, 500])
def test_k_equal_singular_values_are_of_rank_k(k: int) -> None:
    # What Garrido's 1e-7 adds, to first order: k equal p_k, and then each of 500 that are 0.
    added = 1e-7 * k * (math.log(k) - 1)
    assert rankme_of(np.full(k, 3.0)) == pytest.approx(k * math.exp(added), rel=1e-8)
    nothing = 500 * 1e-7 * math.log(1e7)
    assert rankme_of(np.array([3.0] * k + [0.0] * 500)) == pytest.approx(k * math.exp(added + nothing), rel=1e-8)


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("c", [6, 50, 100, 300])
def test_a_power_law_gives_its_exponent(a: float, c: int) -> None:
    j = np.arange(1.0, c + 1)
    assert alpha_of(7 * j**-a) == pytest.approx(a, abs=1e-12)
    # Only ranks 4 to 100 are looked at.
    outside = (j < 4) | (j > 100)
    assert alpha_of(np.where(outside, 1e3 * j**-a, j**-a)) == pytest.approx(a, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8])
def test_k_uncorrelated_channels_of_one_variance_are_k_directions(k: int) -> None:
    """Orthogonal columns of zero mean, so that the covariance is exactly diagonal."""
    signs = np.array([[(-1) ** (i >> j & 1) for j in range(3)] for i in range(8)], float)
    walsh = np.stack([np.prod(signs[:, [j for j in range(3) if s >> j & 1]], 1) for s in range(1, 8)], 1)
    z = np.zeros((16, 10))
    z[:8, : min(k, 7)], z[8:, : min(k, 7)] = walsh[:, : min(k, 7)], walsh[:, : min(k, 7)]
    if k == 8:
        z[:8, 7], z[8:, 7] = 1, -1
    got = values(fed(torch.from_numpy(z), []))
    assert got["participation_ratio"] == pytest.approx(k, rel=1e-12)
    assert got["stable_rank"] == pytest.approx(k, rel=1e-12)
    assert got["saturation"] == k / 10


def test_a_share_that_is_met_exactly_is_met() -> None:
    """Ten equal eigenvalues, whose sum in floating point falls short of some of its tenths."""
    arrays = {"images": np.array(10), "total": np.zeros(10), "products": np.eye(10) * 0.1}
    for k in range(1, 11):
        assert METRICS["saturation"].values(arrays, delta=k / 10)["saturation"] == k / 10


def test_what_cannot_be_said_is_nan() -> None:
    assert all(math.isnan(value) for value in values(SecondMoments(8)).values())
    assert all(math.isnan(value) for value in values(fed(torch.zeros(5, 8), [])).values())
    assert math.isnan(values(fed(features(500, 5), []))["alpha_req"])
    # The same features for every image: no variance, whatever rounding leaves.
    constant = values(fed(features(1, 8).repeat(1000, 1), [100, 400]))
    assert [name for name, value in constant.items() if math.isnan(value)] == [
        "alpha_req", "participation_ratio", "saturation",
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.lists(st.integers(0, 60), max_size=4), st.integers(0, 1000))
def test_any_split_and_any_order_give_the_same(c: int, cuts: list[int], seed: int) -> None:
    z = features(60, c, seed=seed)
    shuffled = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))]
    whole = values(fed(z, []))
    assert close(values(fed(z, cuts)), whole, 1e-9)
    assert close(values(fed(shuffled, cuts)), whole, 1e-9)


def test_memory_does_not_grow_with_the_images() -> None:
    held = [sum(state.numel() for state in fed(features(n, 12), []).states.values()) for n in (10, 500)]
    assert held == [12 * 12 + 12 + 1] * 2
    assert SecondMoments.bytes(12, (0.5,), 20) == 8 * (12 * 12 + 12 + 1)


class Rectified(nn.Module):
    """Two taps, one with negative values, one without."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc = nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.relu(self.conv(x)).mean((2, 3)))
        return out


ENGINE: dict[str, Any] = {"thresholds": (0.5,), "groups": 4, "device": torch.device("cpu")}


def spectra(engine: Engine) -> dict[str, dict[str, float]]:
    arrays = engine.arrays()
    found = {}
    for module in engine.shapes:
        mine = {name: arrays[f"{module}/moments/{name}"] for name in ("images", "total", "products")}
        found[module] = {name: value for key in SPECTRAL for name, value in METRICS[key].values(mine).items()}
    return found


def test_the_engine_pools_every_layer() -> None:
    net, batch = Rectified().eval(), test_engine.images(50)
    with Engine(
        net, ["conv", "relu"], normalise=test_engine.scale, metrics=("purity", *SPECTRAL), batch_size=16, **ENGINE
    ) as engine:
        engine.run(test_engine.blocks(batch, 16))
    with torch.no_grad():
        maps = net.conv(test_engine.scale(batch.pixels))
    for layer, found in spectra(engine).items():
        pooled = (maps if layer == "conv" else maps.relu()).mean((2, 3)).double().numpy()
        assert close(found, oracles(pooled), 1e-5), layer


def test_running_out_of_memory_adds_no_image_twice() -> None:
    batch = test_engine.images(50)
    both = []
    for largest in (10, 10_000):
        net = test_engine.make_net(largest)
        with Engine(
            net, ["features.2"], normalise=test_engine.scale, metrics=("purity", "rankme"), batch_size=32, **ENGINE
        ) as engine:
            engine.run(test_engine.blocks(batch, 32))
        assert int(engine.arrays()["features.2/moments/images"]) == 50
        both.append(spectra(engine)["features.2"])
    assert close(both[0], both[1], 1e-5)


def test_a_layer_without_room_is_left_out_and_the_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    room = SecondMoments.bytes(10, (), 1) + 8
    monkeypatch.setattr("purity_cli.engine.ROOM", room)
    job = Job.of(**NET, limit=60, layers=("C1", "last"), metrics="rankme")
    with logged() as said:
        result = run.score(run.resolve(job), workers=1)
    assert said == ["rankme of features.8 is left out, for which there is no room: tap fewer layers."]
    assert [math.isnan(layer.measures["rankme"]) for layer in result.layers] == [False, True]
    assert all(layer.counts is not None for layer in result.layers)


# Names


def test_written_forms_become_one() -> None:
    assert metrics.parse("alpha-req, rankme:epsilon=0.0000001") == ("rankme", "alpha-req")
    assert metrics.parse(["rankme:epsilon=1e-5", "purity"]) == ("rankme:epsilon=1e-05",)
    assert metrics.parse("alpha-req:last=50:first=11") == metrics.parse("alpha-req:first=11:last=50")
    assert metrics.parse("") == ()
    assert metrics.parse(SPECTRAL[::-1]) == SPECTRAL
    assert Job.of(metrics="alpha-req,rankme").key() == Job.of(metrics=["rankme", "alpha-req"]).key()
    assert Job.of(metrics="rankme").key() != Job.of(metrics="rankme:epsilon=1e-5").key() != Job.of().key()


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("rankm", "No metric 'rankm': there are purity, rankme, .*Did you mean rankme?"),
        ("rankme:eps=1", r"rankme has no parameter 'eps=1': it has epsilon=1e-07"),
        ("stable-rank:x=1", "stable-rank has no parameter 'x=1': it has none"),
        ("rankme:epsilon", "rankme has no parameter 'epsilon'"),
        ("rankme:epsilon=x", "epsilon of rankme: 'x' is not a number"),
        ("rankme:epsilon=nan", "epsilon of rankme: nan is not between 0 and 1"),
        ("alpha-req:first=1.5", "first of alpha-req: '1.5' is not a whole number"),
        ("alpha-req:first=50:last=20", "last must be first [+] 2 or more"),
        ("rankme,rankme:epsilon=1", "rankme stands twice among the metrics"),
    ],
)
def test_what_is_no_metric_is_said(written: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PurityError, match=says):
        metrics.parse(written)
    assert cli.run(["score", "--metrics", written]) == 2
    assert re.search(says, " ".join(capsys.readouterr().err.split()))


# Jobs


@pytest.fixture(scope="module")
def scored() -> Result:
    job = Job.of(**NET, limit=60, layers=("last", "features.0", "C1"), metrics=ALL)
    return run.score(run.resolve(job), workers=1)


def test_a_result_carries_them_for_every_layer(scored: Result) -> None:
    job = run.resolve(scored.job)
    modules = [tap.module for tap in job.taps]
    with Taps(job.network.module, modules, lambda maps: maps.mean((2, 3))) as taps:
        read = [
            taps(normalise(block.pixels, job.preprocessing)).maps for block in run.pixels_of(job, workers=1).blocks()
        ]
    assert len(modules) == 3
    for layer in scored.layers:
        pooled = torch.cat([maps[layer.module] for maps in read]).double().numpy()
        assert len(pooled) == 60
        assert close(layer.measures, oracles(pooled) | {"alpha_req": math.nan}, 1e-5) or layer.channels > 5
        assert layer.measures["rankme"] == pytest.approx(oracle_rankme(pooled), rel=1e-5)


def test_they_survive_the_store_and_stand_in_tables_only_where_asked_for(scored: Result, tmp_path: Path) -> None:
    store.write(scored, tmp_path)
    stored = store.read(tmp_path)
    for a, b in zip(stored.layers, scored.layers, strict=True):
        assert close(a.measures, b.measures, 0)
    rows = cells.frame([scored], 0.5)
    assert rows["rankme"].notna().all()
    back = pd.read_csv(tmp_path / "purity.csv")
    assert [name for name in back.columns if name in metrics.columns()] == metrics.columns()
    back = back[back["threshold"] == 0.5]
    assert back["saturation"].tolist() == pytest.approx(rows["saturation"].tolist(), rel=1e-12)
    assert "rankme" in (tmp_path / "purity.md").read_text()
    plain = replace(scored, layers=tuple(replace(layer, measures={}) for layer in scored.layers))
    store.write(plain, tmp_path / "plain")
    assert not {*pd.read_csv(tmp_path / "plain" / "purity.csv").columns} & {*metrics.columns()}


def test_the_record_names_the_convention(tmp_path: Path) -> None:
    job = Job.of(**NET, limit=20, layers=("last",), metrics="rankme:epsilon=1e-5")
    result = run.score(run.resolve(job), workers=1)
    (told,) = result.provenance["metrics"]
    assert (told["metric"], told["columns"], told["epsilon"]) == ("rankme", ["rankme"], 1e-5)
    assert "1e-7 as in the paper" in told["convention"]
    assert "2210.02885" in told["reference"]


def test_one_that_is_unknown_is_said_and_stored_as_such(tmp_path: Path) -> None:
    job = Job.of(**NET, limit=3, layers=("last",), metrics="alpha-req")
    with logged() as said:
        result = run.score(run.resolve(job), workers=1)
    assert said[-1:] == ["alpha_req of features.8 is unknown: too few images or channels that vary."]
    store.write(result, tmp_path)
    assert math.isnan(store.read(tmp_path).layers[0].measures["alpha_req"])


# Networks without a classifier

HEADLESS = """
import torch
from torch import nn

class Body(nn.Module):
    def __init__(self, pooled):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.pooled = nn.Conv2d(3, 8, 3), nn.ReLU(), pooled
    def forward(self, x):
        y = self.relu(self.conv(x))
        return y.mean((2, 3)) if self.pooled else y

def maps(): return Body(False)

def together():
    net = Body(False)
    net.relu = nn.BatchNorm2d(8, track_running_stats=False)
    return net

def features():
    net = Body(True)
    net.num_classes = 0
    return net
"""


@pytest.mark.parametrize("output", ["maps", "features"])
def test_a_network_without_a_classifier_gives_what_needs_no_gradient(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(HEADLESS)
    arguments = ["score", "-m", f"net.py:{output}", "-l", "conv,relu", "--resize", "32", "--crop", "32"]
    arguments += ["--limit", "40", "-b", "16", "-o", "out"]
    assert cli.run(arguments) == 1
    assert "ask for measures that need none, e.g. --metrics rankme" in capsys.readouterr().err
    assert cli.run([*arguments, "--metrics", ALL, "--format", "csv"]) == 0
    out, err = capsys.readouterr()
    said = f"{output} predicts no class: there is neither purity nor accuracy, only {ALL.replace(',', ', ')}."
    assert err.count(said) == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["layer"] for row in rows] == ["conv", "relu"]
    assert {row[name] for row in rows for name in ("purity", "se", "purity_jk", "activations", "live", "top1")} == {""}
    result = store.read(Path("out"))
    assert [layer.counts for layer in result.layers] == [None, None]
    assert (result.top1, result.provenance["labels"]) == (None, f"{output} predicts no class")
    # Against the same features taken by hand.
    job = run.resolve(result.job)
    with torch.no_grad():
        maps = torch.cat(
            [
                job.network.module.conv(normalise(block.pixels, job.preprocessing))  # type: ignore[operator]
                for block in run.pixels_of(job, workers=1).blocks()
            ]
        )
    for layer, row in zip((maps, maps.relu()), rows, strict=True):
        expected = oracles(layer.mean((2, 3)).double().numpy())
        del expected["alpha_req"]  # grey pictures leave too few directions
        assert close({name: float(row[name]) for name in expected}, expected, 1e-4)


def test_features_that_depend_on_the_batch_are_refused_as_logits_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(HEADLESS)
    arguments = ["score", "-m", "net.py:together", "-l", "conv", "--resize", "32", "--crop", "32", "--limit", "8"]
    assert cli.run([*arguments, "--metrics", "rankme"]) == 1
    assert "depend on the batch" in capsys.readouterr().err
    assert cli.run([*arguments, "--metrics", "rankme", "-b", "1"]) == 0


# A measure that is added by its entry


class Peaks(Accumulator):
    """How many images have a positive value in the first channel, by group, and how many images have a label."""

    name = "peaks"

    def prepare(self) -> None:
        self.add_sum("positive", self.groups, dtype=torch.int64)
        self.add_sum("labelled", dtype=torch.int64)

    def increments(self, batch: LayerBatch) -> Mapping[str, Tensor | int]:
        fires = (batch.maps.max_positive[:, 0] > 0).long()
        group = torch.zeros(self.groups, dtype=torch.int64).scatter_add_(0, batch.positions % self.groups, fires)
        return {"positive": group, "labelled": (batch.labels >= 0).sum()}


def peaks(arrays: Mapping[str, NDArray[Any]], scale: float) -> dict[str, float]:
    n = arrays["positive"]
    return {"peaks": float(n.sum() / arrays["labelled"] * scale), "peaks_se": float(n.std())}


@pytest.fixture
def peaked(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Measure(
        name="peaks",
        columns=("peaks", "peaks_se"),
        about="how often the first channel is positive",
        convention="a convention",
        reference="a reference",
        accumulator=lambda: Peaks,
        function=lambda: peaks,
        parameters={"scale": Parameter(1.0, "a factor", 0.0)},
        labels=True,
    )
    monkeypatch.setitem(METRICS, "peaks", entry)


@pytest.mark.usefixtures("peaked")
def test_a_measure_is_added_by_its_entry_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["score", "--metrics", "peeks"]) == 2
    assert "Did you mean peaks?" in capsys.readouterr().err
    arguments = [
        "score",
        "-m",
        "tiny_vgg_10",
        "-d",
        "digits",
        "--limit",
        "50",
        "-b",
        "16",
        "--metrics",
        "peaks:scale=2,rankme",
        "-o",
        "out",
    ]
    assert cli.run([*arguments, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [name for name in rows[0] if name in ("rankme", "peaks", "peaks_se")] == ["rankme", "peaks", "peaks_se"]
    assert all(0 <= float(row["peaks"]) <= 2 for row in rows)
    assert cli.run([*arguments]) == 0
    out, err = capsys.readouterr()
    assert "peaks_se" in out
    assert "Kept out" in err
    stored = store.read(Path("out"))
    assert [layer.measures["peaks"] for layer in stored.layers] == [float(row["peaks"]) for row in rows]
    assert stored.provenance["metrics"][1]["scale"] == 2
    # The same from a suite.
    Path("mine.yaml").write_text(
        "models: [{model: tiny_vgg_10, dataset: digits, limit: 50, batch_size: 16, metrics: ['peaks:scale=2']}]"
    )
    assert cli.run(["bench", "mine.yaml", "-o", "suite"]) == 0
    (place,) = Path("suite").glob("*/states.safetensors")
    assert [layer.measures["peaks"] for layer in store.read(place.parent).layers] == [
        layer.measures["peaks"] for layer in stored.layers
    ]


@pytest.mark.usefixtures("peaked")
def test_a_measure_of_labels_is_left_out_where_there_are_none() -> None:
    job = Job.of(model="tiny_vgg_10", dataset="digits", limit=20, layers="last", metrics="peaks")
    resolved = replace(run.resolve(job), label_note="the images carry none")
    with logged() as said:
        result = run.score(resolved, workers=1)
    assert said == ["peaks is left out: it needs labels, but the images carry none."]
    assert math.isnan(result.layers[0].measures["peaks"])
