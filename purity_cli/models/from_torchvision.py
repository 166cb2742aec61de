"""torchvision's classification networks, with the weights that its enums name."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Any

from torch import nn

from purity_cli.models.base import ModelLibrary, ModelSpec
from purity_cli.models.caches import HubFile
from purity_cli.models.checkpoints import Checkpoint, fit
from purity_cli.plan import Preprocessing

# The keys of auxiliary heads, by network. Their builders reorder the input's channels' scale with pretrained weights.
AUXILIARY = {"googlenet": "aux1.", "inception_v3": "AuxLogits."}
# Module names held dots when the DenseNet files were made; torchvision renames them as it loads them.
OLD_DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))")


class Torchvision(ModelLibrary):
    name = "torchvision"
    about = "torchvision's classification networks, resnet50 with -w IMAGENET1K_V1"

    def names(self) -> list[str]:
        from torchvision import models

        return [str(name) for name in models.list_models(module=models)]

    def tags(self, name: str) -> list[str]:
        members = _members(name)
        default = getattr(members, "DEFAULT", None)
        return sorted((member.name for member in members), key=lambda tag: default is None or tag != default.name)

    def tag_of(self, name: str, given: str) -> str | None:
        members = _members(name)
        wanted = given.removeprefix(f"{members.__name__}.").upper()
        if wanted in members.__members__:
            return str(members[wanted].name)
        return next((member.name for member in members if HubFile(member.url).name == given), None)

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        weights = _members(name)[tag]
        preset = weights.transforms()
        height, width = (*preset.crop_size, *preset.crop_size)[:2]
        preprocessing = Preprocessing(
            resize=preset.resize_size[0],
            crop=(height, width),
            interpolation=preset.interpolation.value,
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )
        # A ViT holds a vector for every patch of its images, so their size belongs to the weights.
        settings = {"image_size": weights.meta["min_size"][0]} if name.startswith("vit_") else {}
        return ModelSpec(lambda checkpoint: _build(name, settings, checkpoint), preprocessing, HubFile(weights.url))


def _members(name: str) -> Any:
    from torchvision.models import get_model_weights

    return get_model_weights(name)


def _build(name: str, settings: dict[str, Any], checkpoint: Checkpoint | None) -> nn.Module:
    from torchvision.models import get_model

    if checkpoint is not None:
        state = {OLD_DENSENET.sub(r"\1\2", key): tensor for key, tensor in checkpoint.state.items()}
        checkpoint = replace(checkpoint, state=state)
        if name in AUXILIARY:
            auxiliary = any(AUXILIARY[name] in key for key in state)
            settings = {"transform_input": True, "aux_logits": auxiliary, "init_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the slow initialisation of the two Inceptions
        module: nn.Module = get_model(name, weights=None, **settings)
    return fit(module, checkpoint, f"torchvision's {name}")
