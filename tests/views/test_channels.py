"""Channels by name: counts against numpy, and the network run again against plain PyTorch."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from purity_cli import cli, run, store
from purity_cli.cam import channels as cam_channels
from purity_cli.pixels import Pixels, normalise
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Result
from purity_cli.views import cells
from purity_cli.views.channels import channels
from tests.views import made

JOB = Job(limit=60, layers=("C2", "C3"), batch_size=20, device="cpu")


@pytest.fixture(scope="module")
def scored() -> Result:
    return run.score(run.resolve(JOB), workers=1)


@pytest.mark.parametrize("t", [0.2, 0.5])
def test_a_row_per_channel_and_exactly_the_dead_ones(scored: Result, t: float) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](channels([scored], t)))))
    for layer, row in zip(scored.layers, cells.rows([scored], t), strict=True):
        fired = layer.counts[:, scored.thresholds.index(t)].sum(0)
        own = [one for one in rows if one["layer"] == layer.module]
        assert sorted(int(one["channel"]) for one in own) == list(range(layer.channels))
        assert all(int(one["firings"]) == fired[int(one["channel"])] for one in own)
        assert [int(one["firings"]) for one in own] == sorted(fired.tolist(), reverse=True)
        dead = [one for one in own if one["dead"] == "True"]
        assert len(dead) == layer.channels - row["live"] == (fired == 0).sum()
        assert sum(float(one["share"]) for one in own) == pytest.approx(1)
        # At the rate, as many pairs fire as the rate says, but for the interpolation.
        at_rate = [float(one["firings_rate"]) for one in own if one["firings_rate"]]
        assert not at_rate or sum(at_rate) == pytest.approx(0.01 * 60 * layer.channels, rel=0.2)
        (line,) = (one for one in channels([scored], t).tables[0].rows if one["label"] == layer.name)
        half = np.sort(fired)[::-1].cumsum()
        assert half[line["half"] - 1] >= fired.sum() / 2 > (half[line["half"] - 2] if line["half"] > 1 else -1)


def test_only_the_dead_are_listed_on_demand(scored: Result) -> None:
    rows = channels([scored], 0.5, dead=True).main.rows
    assert rows
    assert {row["firings"] for row in rows} == {0}


def test_zeroed_channels_change_the_logits_as_by_hand(scored: Result) -> None:
    plan = run.resolve(JOB)
    lost = {layer.module: [0, 3] if layer.name == "C3" else [] for layer in scored.layers}
    (row,), n = cam_channels.ablate(plan, lost, scored.top1, 1, lambda done, total: None)
    (block,) = Pixels(plan.source, plan.selection, plan.preprocessing, batch_size=60, workers=1).blocks()
    images = normalise(block.pixels, plan.preprocessing)
    net = plan.network.module.eval()

    def without(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        kept = torch.ones(output.shape[1])
        kept[[0, 3]] = 0
        return output * kept[:, None, None]

    with torch.no_grad():
        before = net(images)
        handle = net.get_submodule("layer3").register_forward_hook(without)
        after = net(images)
        handle.remove()
    assert (n, row["layer"], row["zeroed"]) == (60, "C3", 2)
    assert row["changed"] == int((before.argmax(1) != after.argmax(1)).sum())
    assert row["largest"] == pytest.approx(float((before - after).abs().max()), abs=1e-4)
    assert row["top1_before"] == pytest.approx(scored.top1)
    assert row["top1"] == pytest.approx(100 * float((after.argmax(1) == block.labels).float().mean()))
    with pytest.raises(Exception, match="no longer those that were scored"):
        cam_channels.ablate(plan, lost, 10.0, 1, lambda done, total: None)


def test_the_images_are_those_on_which_a_channel_fires(scored: Result) -> None:
    layer = next(one for one in scored.layers if one.name == "C3")
    fired = layer.counts[:, scored.thresholds.index(0.3)].sum(0)
    channel = int(fired.argmax())
    plan = run.resolve(JOB.model_copy(update={"layers": (layer.module,)}))
    found = cam_channels.strongest(plan, {channel: int(fired[channel])}, 60, 0.3, 1, lambda done, total: None)
    assert len(found[channel]) == fired[channel]
    assert all(m > 0.3 for _, m in found[channel])
    with pytest.raises(Exception, match="fires on other images than stored"):
        cam_channels.strongest(plan, {channel: int(fired[channel]) + 5}, 3, 0.3, 1, lambda done, total: None)


MISTAKES = {
    "two results": (["channels", "a", "b", "--ablate"], 2, "of one result, not of 2"),
    "a channel without a layer": (["channels", "a", "--ablate", "-k", "1"], 2, "--channel names channels of one layer"),
    "no such layer": (["channels", "a", "-l", "C9"], 1, "No layer 'C9' was scored"),
    "nothing there": (["channels", "nowhere"], 1, "nowhere is not there"),
    "bad ending": (["channels", "a", "--images", "2", "-o", "f.docx"], 1, "must end in .png"),
    "dead": (["channels", "a", "--dead"], 0, "A dead channel fires on no image"),
    "one layer": (["channels", "a", "-l", "C1"], 0, "firings at 1%"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_the_command(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate("ab"):
        store.write(replace(made.result(name, made.stages(2, seed=i))), tmp_path / name)
    arguments, code, phrase = MISTAKES[case]
    assert cli.run(arguments) == code
    assert phrase in "".join(capsys.readouterr())
