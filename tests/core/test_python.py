"""The Python API: what docs/python.md shows, and that asking for little loads little."""

from __future__ import annotations

import ast
import copy
import doctest
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch import nn

import purity_cli
from purity_cli import Scores, cli, locks, score, scores
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.nets import resnet10_cifar
from purity_cli.stats import purity_at_rate
from tests.cli.reference import ROOT
from tests.logged import logged


def test_the_page_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A fence would be taken for the output of the line above it.
    text = re.sub(r"^```.*$", "", (ROOT / "docs" / "python.md").read_text("utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, "python.md", None, 0)
    assert len(test.examples) > 10
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


def test_the_docstrings_are_true() -> None:
    found = doctest.testmod(scores)
    assert (found.attempted > 4, found.failed) == (True, 0)


def test_the_package_is_light_and_says_what_it_offers() -> None:
    code = "import purity_cli, sys; assert 'score' in dir(purity_cli); print({'torch', 'pandas'} & {*sys.modules})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout == "set()\n"
    stub = (Path(purity_cli.__file__).parent / "__init__.pyi").read_text()
    assert {*re.findall(r"import \w+ as (\w+)", stub), "__version__"} == {*purity_cli.__all__}
    for name in purity_cli.__all__:
        assert getattr(purity_cli, name)
    with pytest.raises(AttributeError, match="no attribute 'scoer'"):
        _ = purity_cli.scoer  # type: ignore[attr-defined]


def test_a_plain_score_loads_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    code = (
        "import sys; from purity_cli import cli; assert cli.run(['score', '--limit', '10', '-o', sys.argv[1]]) == 0; "
        "heavy = {'torchmetrics', 'torchvision', 'timm', 'matplotlib', 'scipy', 'torch._dynamo'}; "
        "print('loaded:', heavy & {*sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert ran.stdout.endswith("loaded: set()\n")


def test_it_gives_what_the_command_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--per-class", "5", "--batch-size", "20", "--threshold", "0.42"]
    assert cli.run(["score", *options, "--output", "theirs"]) == 0
    ours = score(per_class=5, batch_size=20, threshold=0.42)
    theirs = Scores.load("theirs", 0.42)
    assert ours.result.job == theirs.result.job
    pd.testing.assert_frame_equal(ours.frame, theirs.frame)
    stored = pd.read_csv("theirs/purity.csv").query("threshold == 0.42").set_index("layer")
    shown = ours.frame.set_index("layer")
    assert shown["purity"].to_dict() == pytest.approx(stored["purity"].to_dict())
    html = ours._repr_html_()
    for layer in ours.result.layers:
        assert layer.module in html
        assert layer.module in repr(ours)
    assert f"{stored['purity'].iloc[-1]:.3f}" in html
    assert isinstance(ours.plot(), Figure)
    assert isinstance(ours.at(0.3).sweep(), Figure)
    result = ours.result
    asked = score(per_class=5, batch_size=20, threshold=0.42, rate=0.05)
    for rate, read in ((0.01, ours), (0.05, ours.at(rate=0.05)), (0.05, asked)):
        expected = [purity_at_rate(layer.counts, result.images, result.thresholds, rate) for layer in result.layers]
        np.testing.assert_allclose(read.frame["purity_rate"], [one.purity for one in expected])
        np.testing.assert_allclose(read.frame["purity_rate_se"], [one.se for one in expected])
    with pytest.raises(PurityError, match="A rate must lie between 0 and 1"):
        ours.at(rate=1)


def trained() -> nn.Sequential:
    net = resnet10_cifar()
    assert isinstance(net, nn.Sequential)
    net.load_state_dict(load_file(Path(purity_cli.__file__).parent / "assets" / "resnet10_cifar.safetensors"))
    return net


LIVE: dict[str, Any] = {"limit": 60, "resize": "none", "crop": "none", "mean": (0, 0, 0), "std": (1, 1, 1)}


def test_a_network_in_memory_gives_what_its_name_gives(tmp_path: Path) -> None:
    named = score(limit=60)
    for net in (trained(), nn.DataParallel(trained()), trained().train().requires_grad_(False), trained().double()):
        ours = score(net, **LIVE)
        for mine, theirs in zip(ours.result.layers, named.result.layers, strict=True):
            assert (mine.counts == theirs.counts).all()
    ours.save(tmp_path / "mine")
    loaded = Scores.load(tmp_path / "mine").result
    assert (loaded.source, loaded.model, loaded.weights) == ("memory", "Sequential", "as given")


def test_a_network_in_memory_stays_as_it_is() -> None:
    net = trained().train()
    net[0].requires_grad_(False)
    frozen = [parameter.requires_grad for parameter in net.parameters()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    score(net, **LIVE)
    assert all(part.training and not part._forward_hooks and not part._forward_pre_hooks for part in net.modules())
    assert [parameter.requires_grad for parameter in net.parameters()] == frozen
    assert set(frozen) == {True, False}
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_two_trainings_of_one_network_are_told_apart(tmp_path: Path) -> None:
    other = trained()
    with torch.no_grad():
        next(other.parameters()).mul_(0.9)
    for name, net in (("a", trained()), ("b", other)):
        score(net, **LIVE, layers=["last"]).save(tmp_path / name)
    assert cli.run(["show", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


def test_paths_and_devices_may_be_objects(tmp_path: Path) -> None:
    save_file(trained().state_dict(), tmp_path / "w.safetensors")
    ours = score(limit=20, layers=["last"], weights=tmp_path / "w.safetensors", device=torch.device("cpu"))
    assert ours.result.weights == "w.safetensors"
    assert copy.deepcopy(ours) != ours  # and no error of arrays that are compared


def test_how_far_it_is_can_be_followed() -> None:
    seen = list[tuple[int, int]]()
    score(limit=60, batch_size=20, layers=["last"], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 60), (40, 60), (60, 60)]


def test_what_another_process_writes_is_not_written_over(tmp_path: Path) -> None:
    scores = score(limit=20, layers=["last"])
    with locks.claim(tmp_path / "here", "purity score"), pytest.raises(PurityError, match="Another `purity score`"):
        scores.save(tmp_path / "here")


def test_a_near_miss_is_named_once() -> None:
    assert did_you_mean("layr4", ["layer4", "layer4", "stem"]) == " Did you mean layer4?"


def test_what_is_wrong_is_one_sentence() -> None:
    wrong: Any
    for wrong in (42, [], torchvision.models.resnet18, {"conv.weight": torch.zeros(1)}):
        with pytest.raises(PurityError, match="Cannot score a"):
            score(wrong)
    with pytest.raises(PurityError, match=r"none of its modules .* its named_modules\(\)"):
        score(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), **LIVE)
    history = trained()
    history.x = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(PurityError, match="cannot be copied"):
        score(history)
    with pytest.raises(PurityError, match="Did you mean"):
        score("resnet13_cifra")
    with pytest.raises(PurityError, match="there is no such setting"):
        score(per_clas=5)
    with pytest.raises(PurityError, match="no counts"):
        _ = score(limit=20, layers=["last"]).at(0.123).frame


def test_what_weakens_a_number_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    from purity_cli.datasets import open_dataset

    open_dataset("digits").load(0).save(tmp_path / "photos/a.png")
    with logged() as warned:
        score(dataset=str(tmp_path / "photos"), resize=32, crop=32)
    assert any(sentence.startswith("No accuracy") for sentence in warned)


# Names


def test_no_class_has_the_name_of_another() -> None:
    """Nor has a type's alias, unless it stands for the same thing."""
    meanings: dict[str, set[str]] = defaultdict(set)
    for path in Path(purity_cli.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                meanings[node.name].add(f"class in {path}")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name[:1].isupper() and not name.isupper():
                    meanings[name].add(ast.unparse(node.value))
    twice = {name: found for name, found in meanings.items() if len(found) > 1}
    twice.pop("Size", None)  # (height, width) both times, once with pydantic's check
    assert not twice
