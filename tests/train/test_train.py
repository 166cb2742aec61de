"""Training: against a plain loop over PIL images, twice the same, through interruptions, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import to_tensor

import purity_cli
from purity_cli import locks, models, nets
from purity_cli.cli import run as purity
from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError
from purity_cli.train import Epoch, Training, augment, batches, draw, epoch_seed, repeatable, resolve, train

CPU = torch.device("cpu")
DROPOUT = """
from torch import nn

def net():
    convolution = [nn.Conv2d(3, 4, 3, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 10))
"""
"""A user's network, of chance and of running averages."""


@pytest.fixture
def dropout(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(DROPOUT)
    return f"{tmp_path / 'net.py'}:net"


def run(folder: Path, **settings: Any) -> list[Path]:
    """The weight files of a small training on the digits."""
    return train(resolve(Training.of(**{"limit": 64, "batch_size": 20, "epochs": 2, **settings})), folder, workers=1)


def contents(files: Sequence[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def test_what_is_kept_and_how_fast_it_learns() -> None:
    published = Training()
    assert (published.epochs, published.lr, published.kept()) == (100, 1e-3, [10, 20, 50, 100])
    assert [Training.of(epochs=n).kept() for n in (3, 20, 60)] == [[3], [10, 20], [10, 20, 50, 60]]
    assert Training.of(epochs=60, checkpoints=(30, 2, 30)).kept() == [2, 30]
    rates = [published.rate(epoch) for epoch in (1, 20, 21, 40, 41, 61, 81, 100)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3 / 3, 1e-3 / 3, 1e-3 / 9, 1e-3 / 27, 1e-3 / 81, 1e-3 / 81])


def test_the_batch_sizes_of_the_spec() -> None:
    sizes = {name: resolve(Training.of(model=name)).batch_size for name in ("tiny_vgg", "resnet18_cifar")}
    assert sizes == {"tiny_vgg": 128, "resnet18_cifar": 64}
    assert not Training().flips()
    assert Training.of(dataset="cifar10").flips()


def by_pil(pixels: Tensor, pad: int, top: int, left: int, mirrored: bool) -> Image.Image:
    """One image (3, h, w), padded, cropped and mirrored by PIL."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    padded = ImageOps.expand(image, pad, 0)
    cut = padded.crop((left, top, left + image.width, top + image.height))
    return ImageOps.mirror(cut) if mirrored else cut


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_augmented_as_pil_does_it(n: int, height: int, width: int, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pixels = torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8)
        draws = draw(n, True, CPU)
        chosen = torch.randperm(n)[: max(1, n - 1)]
    got = augment(pixels, chosen, draws)
    for image, i in zip(got, chosen.tolist(), strict=True):
        expected = by_pil(pixels[i], 4, int(draws.top[i]), int(draws.left[i]), bool(draws.mirrored[i]))
        np.testing.assert_array_equal(image.permute(1, 2, 0), np.asarray(expected))


def test_every_crop_is_drawn_and_every_second_image_mirrored() -> None:
    torch.manual_seed(0)
    draws = draw(8100, True, CPU)
    assert sorted(draws.order.tolist()) == list(range(8100))
    corners = torch.bincount(9 * draws.top + draws.left, minlength=81)
    assert len(corners) == 81
    assert 60 < corners.min() <= corners.max() < 145  # 100 each, give or take 4.5 standard deviations
    assert abs(draws.mirrored.float().mean() - 0.5) < 0.025
    assert not draw(1000, False, CPU).mirrored.any()


def test_every_epoch_of_every_seed_has_its_own_chance() -> None:
    assert len({epoch_seed(seed, epoch) for seed in range(30) for epoch in range(1, 101)}) == 3000


def plain_loop(network: models.Network, epochs: int, batch_size: int, limit: int) -> list[float]:
    """The recipe on the digits as one would write it with PIL, one image at a time; the learning rate falls fast."""
    net = network.module.train().requires_grad_(True)
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (network.preprocessing.mean, network.preprocessing.std)
    )
    source = open_dataset("digits", split="train")
    chosen = [i * len(source) // limit for i in range(limit)]
    images = [torch.from_numpy(np.array(source.load(i))).permute(2, 0, 1) for i in chosen]
    labels = torch.tensor([(source.labels or ())[i] for i in chosen])
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, foreach=False)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 1 / 3)
    losses = []
    for epoch in range(1, epochs + 1):
        torch.manual_seed(epoch_seed(0, epoch))
        draws = draw(limit, False, CPU)
        total = 0.0
        for start in range(0, limit, batch_size):
            batch = draws.order[start : start + batch_size].tolist()
            views = [by_pil(images[i], 4, int(draws.top[i]), int(draws.left[i]), False) for i in batch]
            inputs = torch.stack([(to_tensor(view) - mean) / std for view in views])
            optimizer.zero_grad()
            loss = cross_entropy(net(inputs), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        losses.append(total / limit)
    return losses


@pytest.mark.parametrize("name", ["tiny_vgg_10", "dropout"])
def test_is_the_plain_loop(tmp_path: Path, name: str, dropout: str) -> None:
    name = dropout if name == "dropout" else name
    seen: list[Epoch] = []
    course = resolve(Training.of(model=name, limit=48, batch_size=20, epochs=3, lr_every=1))
    (file,) = train(course, tmp_path, workers=2, report=seen.append)
    network = models.load(name, "none", seed=0)
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    losses = plain_loop(network, 3, 20, 48)
    assert [epoch.loss for epoch in seen] == pytest.approx(losses, rel=1e-4)
    trained = safetensors.torch.load_file(file)
    assert trained.keys() == before.keys()
    for key, tensor in network.module.state_dict().items():
        # Adam moves a weight whose gradient is all rounding error by as much as any other: few, and not far.
        moved = (tensor - before[key]).abs().float().mean()
        assert moved > 0
        assert (trained[key] - tensor).abs().float().mean() <= 0.01 * moved


@given(st.integers(1, 300), st.integers(1, 70))
def test_batches_are_of_the_size_asked_for_but_none_is_of_one_image(n: int, size: int) -> None:
    order = torch.arange(n)
    parts = batches(order, size)
    assert torch.equal(torch.cat(parts), order)
    rest = n % size
    whole = [size] * (n // size)
    if rest == 1 < size and whole:
        assert [len(part) for part in parts] == [*whole[:-1], size + 1]
    else:
        assert [len(part) for part in parts] == whole + [rest] * bool(rest)


SMALL_MAPS = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 32), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 10))

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3072, 10)
    def forward(self, x):
        if self.training:
            raise RuntimeError("a long story\\nno such tensor")
        return self.fc(x.flatten(1))
"""
"""Networks that take no batch of one, and none at all."""


def test_a_last_batch_of_one_image_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SMALL_MAPS)
    model = f"{tmp_path / 'net.py'}:net"
    (file,) = run(tmp_path / "out", model=model, limit=41, epochs=1)
    # The running averages have seen two batches: 20 and 21.
    assert int(safetensors.torch.load_file(file)["1.num_batches_tracked"]) == 2
    with pytest.raises(
        PurityError, match=r"net cannot be trained on a batch of 1 \(ValueError: Expected more than 1 value .*\[1, 4"
    ):
        run(tmp_path / "single", model=model, batch_size=1)


def test_what_a_network_says_as_it_fails_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SMALL_MAPS)
    with pytest.raises(
        PurityError,
        match=r"net\.py:Broken cannot be trained on a batch of 20 \(RuntimeError: .*\.\.\. no such tensor\): mend",
    ):
        run(tmp_path / "out", model=f"{tmp_path / 'net.py'}:Broken")


def test_the_seed_decides_and_nothing_else(tmp_path: Path, dropout: str) -> None:
    torch.manual_seed(5)
    first = run(tmp_path / "a", model=dropout, checkpoints=(1, 2))
    state = torch.get_rng_state()
    torch.manual_seed(6)
    again = run(tmp_path / "b", model=dropout, checkpoints=(1, 2))
    assert [file.name for file in first] == ["net_epoch001.safetensors", "net_epoch002.safetensors"]
    assert contents(first) == contents(again)
    assert contents(run(tmp_path / "c", model=dropout, checkpoints=(1, 2), seed=1)) != contents(first)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_goes_on_after_its_end_as_if_it_had_not_ended(tmp_path: Path, dropout: str) -> None:
    whole = run(tmp_path / "whole", model=dropout, epochs=4, checkpoints=(2, 4))
    for epochs in (1, 2, 2, 4, 2):  # also what is done already
        parts = run(tmp_path / "parts", model=dropout, epochs=epochs)
        assert parts == [tmp_path / f"parts/net_epoch00{epochs}.safetensors"]
    assert contents([tmp_path / "parts" / file.name for file in whole]) == contents(whole)


def test_two_trainings_do_not_write_into_one_folder(tmp_path: Path, dropout: str) -> None:
    (tmp_path / ".resume.pt.17.tmp").write_text("cut short by a kill")
    (tmp_path / ".notes.tmp").write_text("somebody's")
    with (
        locks.claim(tmp_path, "purity train"),
        pytest.raises(PurityError, match="Another `purity train` is writing into .*: wait for it, or give --output"),
    ):
        run(tmp_path, model=dropout)
    assert run(tmp_path, model=dropout)
    assert [file.name for file in tmp_path.glob(".*.tmp")] == [".notes.tmp"]


def start(folder: Path, model: str) -> subprocess.Popen[str]:
    """`purity train` in a process of its own."""
    root = Path(purity_cli.__file__).parents[1]
    code = (
        f"import sys, torch; sys.path.insert(0, {str(root)!r}); torch.set_num_threads({torch.get_num_threads()})\n"
        "from purity_cli.__main__ import main; main()"
    )
    settings = ["--limit", "64", "--batch-size", "20", "--epochs", "300", "--checkpoints", "3,300"]
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", "--model", model, *settings, "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_goes_on_after_it_was_killed_as_if_it_had_not_been(tmp_path: Path, dropout: str) -> None:
    with start(tmp_path / "killed", dropout) as killed:
        assert killed.stderr is not None
        said = [killed.stderr.readline() for _ in range(6)]  # the first line is a guess of preprocessing
        killed.send_signal(signal.SIGKILL)
        rest = killed.stderr.read()
    assert killed.returncode == -signal.SIGKILL
    assert said[5].startswith("epoch 5/300: loss")
    assert "epoch 300/300" not in rest
    assert [file.name for file in (tmp_path / "killed").glob("*.safetensors")] == ["net_epoch003.safetensors"]
    last = 5 + rest.count("\n") + 3
    course = resolve(Training.of(model=dropout, limit=64, batch_size=20, epochs=last, checkpoints=(3, last)))
    seen: list[Epoch] = []
    files = train(course, tmp_path / "killed", workers=1, report=seen.append)
    # One epoch less where it was killed between storing one and saying so.
    assert [epoch.epoch for epoch in seen] in ([last - 2, last - 1, last], [last - 1, last])
    assert contents(files) == contents(run(tmp_path / "whole", model=dropout, epochs=last, checkpoints=(3, last)))


def accuracy(net: nn.Module, limit: int | None = None) -> float:
    """Per cent of the digits' test split, by hand."""
    source = open_dataset("digits")
    chosen = [i * len(source) // (limit or len(source)) for i in range(limit or len(source))]
    images = np.stack([np.asarray(source.load(i), np.float32) / 255 for i in chosen])
    with torch.inference_mode():
        predicted = net(torch.from_numpy(images).permute(0, 3, 1, 2)).argmax(1).numpy()
    return float(100 * (predicted == np.array([(source.labels or ())[i] for i in chosen])).mean())


def test_a_checkpoint_says_how_it_came_about(tmp_path: Path) -> None:
    (file,) = run(tmp_path, model="tiny_vgg_10", lr=3e-3, epochs=3)
    about = json.loads(file.with_suffix(".json").read_text())
    net = models.load("tiny_vgg_10", str(file))
    assert about["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() == net.weights_sha256
    assert about["test_top1"] == pytest.approx(accuracy(net.module, 64))
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert about["device"] == f"cpu, {torch.get_num_threads()} threads"
    source = open_dataset("digits", split="train")
    expected = {
        "model": "bundled:tiny_vgg_10", "dataset": "digits", "train_images": 64, "seed": 0, "batch_size": 20,
        "train_fingerprint": source.fingerprint, "augmentation": {"pad": 4, "flip": False}, "lr": 3e-3,
    }  # fmt: skip
    assert expected.items() <= {**about["recipe"]}.items()
    assert (about["epoch"], about["model"]) == (3, "tiny_vgg_10")


def test_bf16_trains_as_well(tmp_path: Path, dropout: str) -> None:
    seen: list[Epoch] = []
    course = resolve(Training.of(model=dropout, precision="bf16", limit=200, batch_size=20, epochs=8, lr=3e-3))
    (file,) = train(course, tmp_path, workers=1, report=seen.append)
    assert seen[-1].loss < 0.8 * seen[0].loss
    assert {t.dtype for t in safetensors.torch.load_file(file).values() if t.ndim} == {torch.float32}
    with pytest.raises(PurityError, match=r"another recipe \(precision bf16, not fp32\)"):
        run(tmp_path, model=dropout, limit=200, lr=3e-3)


def test_settings_of_the_process_are_put_back() -> None:
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.get_rng_state().tolist())
    with repeatable(CPU, "fp32"):
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        torch.manual_seed(1)
    assert before == (
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.get_rng_state().tolist()
    )  # fmt: skip


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders of two splits: ten digits as PNG of 40x40, three images each."""
    for split in ("train", "val"):
        source = open_dataset("digits", split="train" if split == "train" else None)
        for label in range(10):
            of_class = [i for i, other in enumerate(source.labels or ()) if other == label][:3]
            place = tmp_path / "data" / split / f"class{label}"
            place.mkdir(parents=True)
            for i in of_class:
                source.load(i).resize((40, 40)).save(place / f"{i}.png")
    return tmp_path / "data"


def test_trains_on_class_folders_in_another_size(
    folders: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ["--resize", "32", "--epochs", "2", "--checkpoints", "1,2", "-o", str(tmp_path / "out")]
    assert purity(["train", "-d", str(folders), *settings]) == 0
    out, err = capfd.readouterr()
    assert out.split() == [str(tmp_path / f"out/tiny_vgg_10_epoch00{i}.safetensors") for i in (1, 2)]
    assert [line.split(":")[0] for line in err.splitlines()] == ["epoch 1/2", "epoch 2/2"]
    recipe = json.loads((tmp_path / "out/tiny_vgg_10_epoch001.json").read_text())["recipe"]
    assert (recipe["dataset"], recipe["train_images"], recipe["test_images"]) == ("data", 30, 30)
    assert recipe["augmentation"] == {"pad": 4, "flip": True}
    assert recipe["preprocessing"]["resize"] == 32


def remove_class(folders: Path) -> None:
    for split in folders.iterdir():
        for file in (split / "class9").iterdir():
            file.unlink()
        (split / "class9").rmdir()


def remove_class_of_val(folders: Path) -> None:
    for file in (folders / "val/class9").iterdir():
        file.unlink()
    (folders / "val/class9").rmdir()


def spoil(folders: Path) -> None:
    next((folders / "train/class3").iterdir()).write_bytes(b"no image")


def leave(folders: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "settings", "says"),
    [
        (remove_class, {}, r"data-train has 9 classes and tiny_vgg_10 10: give --model FILE\.py:FUNCTION .* 9 classes"),
        (remove_class_of_val, {}, "data-train and data differ in their classes"),
        (spoil, {"resize": 32}, r"class3/.+\.png in data-train cannot be read \(.+\): mend or remove it\.$"),
        (leave, {}, "data-train are 40x40, and the network takes 32x32: give --resize 32"),
        (leave, {"resize": 48}, "tiny_vgg_10 .*48x48"),
        (leave, {"precision": "fp16"}, "precision: .*bf16"),
        (leave, {"model": "tiny_vg"}, "Did you mean tiny_vgg"),
        (leave, {"epochs": 5, "checkpoints": (2, 9, 7)}, r"no epoch 9 .* 5 epochs were asked for; give --epochs 9"),
        (leave, {"lr": -1}, "lr: .*greater than 0"),
        (leave, {"lr": float("inf")}, "lr: .*finite"),
    ],
)
def test_refuses_what_does_not_fit(
    folders: Path, tmp_path: Path, damage: Callable[[Path], None], settings: dict[str, Any], says: str
) -> None:
    damage(folders)
    with pytest.raises(PurityError, match=says):
        run(tmp_path / "out", **{"dataset": str(folders), **settings})


def test_a_later_block_of_another_size_is_named(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purity_cli.train.TEST_BATCH", 3)
    for label in range(9):
        for file in (folders / "train" / f"class{label}").iterdir():
            Image.open(file).resize((32, 32)).save(file)
    with pytest.raises(PurityError, match="data-train are 40x40, and the network takes 32x32"):
        run(tmp_path / "out", dataset=str(folders))


def test_refuses_images_without_labels(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / split / "image.png")
    with pytest.raises(PurityError, match=r"cannot be trained on: .* has no class folders"):
        resolve(Training.of(dataset=str(tmp_path)))


@pytest.mark.parametrize("there", [("train",), ("test", "val"), ()])
def test_refuses_images_without_two_splits(folders: Path, tmp_path: Path, there: Sequence[str]) -> None:
    for split in there:
        shutil.copytree(folders / "train", tmp_path / "other" / split)
    place = tmp_path / "other" if there else folders / "train"
    with pytest.raises(PurityError, match="cannot be trained on: it needs a train split and a test or val split"):
        resolve(Training.of(dataset=str(place)))


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    with pytest.raises(PurityError, match=r"The loss became nan in epoch 1: give a smaller --lr than 1e\+30\."):
        run(tmp_path, lr=1e30)
    assert [file.name for file in tmp_path.iterdir()] == [locks.LOCK]


def test_refuses_the_folder_of_another_training(tmp_path: Path) -> None:
    run(tmp_path, epochs=2, checkpoints=(1, 2))
    for settings, says in (
        ({"seed": 1}, r"another recipe \(seed 0, not 1\): give another --output, or remove that folder"),
        ({"limit": 50}, r"another recipe \(train_images 64, not 50\)"),
        ({"model": "tiny_vgg"}, r"another recipe \(model bundled:tiny_vgg_10, not bundled:tiny_vgg\)"),
    ):
        with pytest.raises(PurityError, match=says):
            run(tmp_path, **settings)
    (tmp_path / "resume.pt").unlink()
    with pytest.raises(PurityError, match="another recipe"):
        run(tmp_path, seed=1)
    run(tmp_path, epochs=1)


def test_a_checkpoint_that_was_passed_or_lost_is_missed(tmp_path: Path) -> None:
    first, _ = run(tmp_path, epochs=3, checkpoints=(1, 3))
    with pytest.raises(PurityError, match=r"at epoch 3 and holds no checkpoint of epoch 2: leave that out"):
        run(tmp_path, epochs=3, checkpoints=(2, 3))
    first.unlink()
    with pytest.raises(PurityError, match="no checkpoint of epoch 1"):
        run(tmp_path, epochs=3, checkpoints=(1, 3))


def test_a_damaged_resume_file_is_named(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    file = tmp_path / "resume.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PurityError, match=r"resume\.pt is damaged, or of another network: remove it to train anew"):
        run(tmp_path)
    file.unlink()
    assert len(run(tmp_path)) == 1
    next(tmp_path.glob("*.json")).write_text("{}")
    with pytest.raises(PurityError, match="is not of a training"):
        run(tmp_path)


def test_nothing_half_written_is_left_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, epochs=1)

    def files() -> dict[str, bytes]:
        # But for the lock: it says since when it is held.
        return {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.name != locks.LOCK}

    before = files()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PurityError, match="No space left on device"):
        run(tmp_path, epochs=2)
    assert files() == before


def test_the_weights_that_ship() -> None:
    file = Path(purity_cli.__file__).parent / "assets/tiny_vgg_10_digits/tiny_vgg_10_epoch100.safetensors"
    about = json.loads(file.with_suffix(".json").read_text())
    assert file.stat().st_size < 100_000
    assert about["weights_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    net = nets.tiny_vgg_10().eval()
    net.load_state_dict(safetensors.torch.load_file(file))
    assert accuracy(net) == pytest.approx(about["test_top1"], abs=0.2)  # one image, on another machine
    assert accuracy(net) >= 97
