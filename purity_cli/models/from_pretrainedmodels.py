"""The networks of pretrainedmodels 0.7.4, which nobody maintains: it builds them, and we read the files."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module, reload
from typing import Any

import torch.utils.model_zoo
from torch import nn

from purity_cli.errors import PurityError
from purity_cli.models.base import ModelLibrary, ModelSpec
from purity_cli.models.caches import HubFile
from purity_cli.models.checkpoints import Checkpoint, StateDict, fit, unwrapped
from purity_cli.plan import Preprocessing


class Pretrainedmodels(ModelLibrary):
    name = "pretrainedmodels"
    about = "the networks of pretrainedmodels 0.7.4, senet154"

    def names(self) -> list[str]:
        return sorted(_library().pretrained_settings)

    def tags(self, name: str) -> list[str]:
        return list(_library().pretrained_settings[name])

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        tag = tag or self.tags(name)[0]
        settings = _library().pretrained_settings[name][tag]
        build = partial(_build, name, tag, settings["num_classes"])
        return ModelSpec(build, _declared(settings), HubFile(settings["url"]))


def _declared(settings: Mapping[str, Any]) -> Preprocessing:
    """As the library's `TransformImage` and its ImageNet evaluation apply them.

    It normalises after reordering to BGR and on whichever scale `input_range` says; `Preprocessing` normalises RGB on
    0..1, hence the reversed order and the division.
    """
    size = max(settings["input_size"])
    bgr = settings["input_space"] == "BGR"
    order = -1 if bgr else 1
    scale = max(settings["input_range"])
    return Preprocessing(
        resize=math.floor(size / settings.get("scale", 0.875)),
        crop=(size, size),
        mean=tuple(value / scale for value in settings["mean"][::order]),
        std=tuple(value / scale for value in settings["std"][::order]),
        bgr=bgr,
    )


def _library() -> Any:
    import pretrainedmodels

    return pretrainedmodels


def _build(name: str, tag: str, classes: int, checkpoint: Checkpoint | None) -> nn.Module:
    factory = getattr(_library(), name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision as that was in 2018
        module: nn.Module = factory(num_classes=classes, pretrained=None)
        if name.startswith("resnext"):
            module.features = _features(name)
        if checkpoint is not None:
            try:
                fit(module, checkpoint, f"pretrainedmodels' {name}")
            except PurityError:
                published = _published(partial(factory, num_classes=classes, pretrained=tag), checkpoint)
                if published is None:
                    raise
                module = published
    if name.startswith("squeezenet"):
        # Its forward leaves the logits as (n, classes, 1, 1).
        module.register_forward_hook(lambda _module, _images, logits: logits.flatten(1))
    return module


def _features(name: str) -> nn.Module:
    """The convolutions of a ResNeXt: the library makes them as it is imported, and all its networks share them."""
    # Its package holds the layers under the same name as the module.
    made = reload(import_module(f"pretrainedmodels.models.resnext_features.{name}_features"))
    features: nn.Module = vars(made)[f"{name}_features"]
    return features


def _published(factory: Callable[[], nn.Module], checkpoint: Checkpoint) -> nn.Module | None:
    """The network with a file as its authors published it: with a background class too many or torchvision's names.

    The library's factories know which, and put it right between downloading and returning.
    """
    try:
        with _in_place_of_download(unwrapped(checkpoint.state)):
            return factory()
    except RuntimeError:  # the file is another network's
        return None


@contextmanager
def _in_place_of_download(state: StateDict) -> Iterator[None]:
    """Have the factories take `state` instead of unpickling what they would download."""
    zoo: Any = torch.utils.model_zoo
    original = zoo.load_url
    zoo.load_url = lambda *_, **__: dict(state)
    try:
        yield
    finally:
        zoo.load_url = original
