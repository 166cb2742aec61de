"""What is attacked, whole: nine pictures of three classes, a network, its weights, a suite, and the numbers of each."""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from benchmarks.attack.stage import Rows, Stage, rows

CLASSES = ("ant", "bee", "cat")
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def net():
    return Net()
"""
PIXELS = ("--mean", "0,0,0", "--std", "1,1,1", "--resize", "32x32", "--crop", "none")
# One image a batch, so that an image's counts do not depend on its neighbours by as much as rounding.
HOW = (*PIXELS, "-l", "conv1,conv2", "-b", "1", "--workers", "1", "--device", "cpu")
SUITE = """
defaults:
  {dataset: photos, mean: [0, 0, 0], std: [1, 1, 1], resize: [32, 32], crop: none, layers: "conv1,conv2", batch_size: 1}
models:
  - {model: "net.py:net", weights: w.safetensors}
  - {model: "net.py:net", weights: w.pth, per_class: 2}
threshold: 0.3
"""
SUITE_RUN = ("bench", "suite.yaml", "--workers", "1", "-o", "out")
TRAIN = ("train", "-m", "net.py:net", "-d", "split", "--epochs", "3", "--checkpoints", "1,2,3", "-b", "4",
         "--workers", "1", "--device", "cpu", "-o", "out")  # fmt: skip
CACHE = ("cache", "build", "-m", "net.py:net", "-w", "w.safetensors", "-d", "photos", *HOW, "--cache", "cache")


def score(
    *more: str, model: str = "net.py:net", weights: str = "w.safetensors", data: str = "photos", out: str = "out"
) -> list[str]:
    """The command that is attacked most."""
    return ["score", "-m", model, "-w", weights, "-d", data, *HOW, "-o", out, *more]


@dataclass
class World:
    """The folder, and what undisturbed runs in it gave."""

    folder: Path
    score: Rows = field(default_factory=dict)
    jobs: dict[str, Rows] = field(default_factory=dict)
    """Of the suite, by job."""
    weights: dict[str, bytes] = field(default_factory=dict)
    """Of the training, by file."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each undisturbed command, by its name."""


def picture(rng: np.random.Generator, size: int = 32) -> Image.Image:
    """Smooth enough for lossy formats, each unlike the others."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def build(folder: Path) -> World:
    """Fill the folder and run each command once, undisturbed; RuntimeError where that alone goes wrong."""
    import safetensors.torch
    import torch

    rng = np.random.default_rng(0)
    (folder / "net.py").write_text(NET)
    (folder / "suite.yaml").write_text(SUITE)
    for name in CLASSES:
        for place, count in (("photos", 3), ("split/train", 6), ("split/test", 2)):
            (folder / place / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                picture(rng).save(folder / place / name / f"{i}.png")
    with tarfile.open(folder / "photos.tar", "w") as tar:
        tar.add(folder / "photos", "photos")
    with tarfile.open(folder / "photos.tar.gz", "w:gz") as tar:
        tar.add(folder / "photos", "photos")
    space: dict[str, object] = {}
    exec(compile(NET, "net.py", "exec"), space)
    torch.manual_seed(0)
    network = space["net"]()  # type: ignore[operator]
    weights = {
        name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in network.state_dict().items()
    }
    safetensors.torch.save_file(weights, folder / "w.safetensors")
    torch.save(weights, folder / "w.pth")
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}}, folder / "w.ckpt")
    world = World(folder)
    for name, command in (("score", score()), ("bench", [*SUITE_RUN]), ("train", [*TRAIN]), ("cache", [*CACHE])):
        stage = Stage(folder, folder, Random(0))
        ran = stage.run(*command, exits=(0,))
        if stage.fallen:
            raise RuntimeError(f"undisturbed, purity {name} already fails: {stage.fallen}\n{ran.err}")
        world.seconds[name] = ran.seconds
        if name == "score":
            world.score = rows(folder / "out")
        elif name == "bench":
            world.jobs = jobs(folder / "out")
        elif name == "train":
            world.weights = checkpoints(folder / "out")
        if name != "cache":
            shutil.move(folder / "out", folder / f"{name}-out")
    assert world.score
    assert len(world.jobs) == 2
    assert len(world.weights) == 3
    return world


def jobs(folder: Path) -> dict[str, Rows]:
    """The numbers of every finished job of a suite."""
    return {path.parent.name: rows(path.parent) for path in sorted(folder.glob("*/purity.csv"))}


def checkpoints(folder: Path) -> dict[str, bytes]:
    """Every weight file of a training."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*_epoch*.safetensors"))}


def skipped(record: dict[str, object]) -> str:
    """The images that a run left out, in one text."""
    return json.dumps(record.get("images_skipped", []))
