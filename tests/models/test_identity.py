"""`Network.digest` is equal for what computes the same, and another for everything that changes a number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from purity_cli import models

NET = """
import json, os, pathlib
import numpy as np, torch
from torch import nn
HERE = pathlib.Path(__file__).parent

class Net(nn.Module):
    def __init__(self, act=nn.ReLU(), mask=None):
        super().__init__()
        self.conv, self.fc, self.act = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), act
        self.register_buffer("mask", mask, persistent=False)
    def forward(self, x):
        x = x if self.mask is None else x * self.mask
        return self.fc(self.act(self.conv(x)).mean((2, 3)))
"""
HELPER = "import torch\ndef act(x): return torch.{}(x)\n"

# What the file adds to NET, and two ways to write what lies beside it.
LIBRARIES = {
    "helper": ("from helper import act\ndef make(): return Net(act)", "helper.py", HELPER),
    "helper of a package": ("from parts.model import act\ndef make(): return Net(act)", "parts/helper.py", HELPER),
    "late import": ("def make():\n    from helper import act\n    return Net(act)", "helper.py", HELPER),
    "config": (
        "def make(): return Net(getattr(torch, json.loads((HERE / 'config.json').read_text())))",
        "config.json",
        '"{}"',
    ),
    "own text": ("def make(): return Net(act)", "net.py", NET + HELPER + "def make(): return Net(act)"),
}


def digest(path: Path, seed: int = 0) -> str:
    network = models.load(f"{path / 'net.py'}:make", seed=seed)
    return models.validate(network, (16, 16)).digest()


@pytest.mark.parametrize("source", LIBRARIES)
def test_an_edited_file_that_the_network_reads_changes_its_digest(source: str, tmp_path: Path) -> None:
    body, name, text = LIBRARIES[source]
    (tmp_path / "net.py").write_text(NET + body)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").touch()
    (tmp_path / "parts" / "model.py").write_text("from .helper import act")
    found = []
    for function in ("relu", "relu", "tanh"):
        (tmp_path / name).write_text(text.replace("{}", function))
        found.append(digest(tmp_path))
    assert found[0] == found[1] != found[2]


def test_what_is_no_tensor_of_the_state_dict_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = "mask = torch.from_numpy(np.load(HERE / 'mask.npy'))"
    (tmp_path / "net.py").write_text(
        f"{NET}\ndef make():\n    {load}\n    return Net(getattr(nn, os.environ['ACT'])(), mask)"
    )
    monkeypatch.setenv("ACT", "ReLU")
    ones = np.ones((16, 16), np.float32)
    np.save(tmp_path / "mask.npy", ones)
    first = digest(tmp_path)
    np.save(tmp_path / "mask.npy", ones * (np.arange(16) < 15))
    masked = digest(tmp_path)
    monkeypatch.setenv("ACT", "Tanh")
    assert len({first, masked, digest(tmp_path)}) == 3


def test_two_helpers_that_swap_their_contents_are_another_network(tmp_path: Path) -> None:
    body = "from a import SLOPE as A\nfrom b import SLOPE as B\ndef make(): return Net(lambda x: x.sigmoid() * (A - B))"
    (tmp_path / "net.py").write_text(NET + body)
    found = []
    for a, b in ((2.5, 1.5), (1.5, 2.5)):
        (tmp_path / "a.py").write_text(f"SLOPE = {a}\n")
        (tmp_path / "b.py").write_text(f"SLOPE = {b}\n")
        found.append(digest(tmp_path))
    assert found[0] != found[1]


def test_a_setting_and_a_weight_count_and_a_folder_does_not(tmp_path: Path) -> None:
    make = "def make():\n    net = Net({})\n    {}\n    return net"
    # ReLU6 differs from ReLU above 6 alone, and a digest of outputs on small values does not show it.
    texts = [("nn.ReLU()", "pass"), ("nn.ReLU6()", "pass"), ("nn.ReLU()", "net.fc.weight.data[0, 0] += 1e-7")]
    found = []
    for i, (act, change) in enumerate([texts[0], *texts]):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "net.py").write_text(NET + make.format(act, change))
        found.append(digest(tmp_path / str(i)))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_the_digest_is_the_same_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.add(models.validate(models.load("timm:resnet18", "none"), (96, 96), scored=False).digest())
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1
