"""timm's networks: by name, with every set of weights that it names, and those that `timm.models.save_for_hf` or
`push_to_hf_hub` saved, a configuration and weights in a folder or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from purity_cli.errors import PurityError, said
from purity_cli.files import expanded
from purity_cli.models.base import Builder, ModelLibrary, ModelSpec, seeded
from purity_cli.models.caches import WEIGHTS, HubFile, HuggingFaceFile, LocalFile, WeightFile
from purity_cli.models.checkpoints import Checkpoint, StateDict, fit, unwrapped
from purity_cli.plan import Preprocessing, Size

CONFIG = "config.json"


class Timm(ModelLibrary):
    name = "timm"
    about = "timm's networks with every set of weights that it names, resnet50.tv_in1k"

    def names(self) -> list[str]:
        import timm

        return list(timm.list_models())

    def find(self, text: str) -> tuple[str, str | None] | None:
        from timm.models import get_deprecated_models, is_model, split_model_name_tag

        if not is_model(text):
            return None
        current = get_deprecated_models().get(split_model_name_tag(text)[0], text)
        if current is None:
            raise PurityError(f"timm has removed {text} and names no successor: see `purity models` for what there is.")
        name, tag = split_model_name_tag(current)
        return name, tag or None

    def tags(self, name: str) -> list[str]:
        return [tag for tag, cfg in _configurations(name).items() if cfg.has_weights]

    def tag_of(self, name: str, given: str) -> str | None:
        urls = {tag: _url(cfg.to_dict()) for tag, cfg in _configurations(name).items()}
        by_file = (tag for tag, url in urls.items() if url and url.name == given)
        return super().tag_of(name, given) or next(by_file, None)

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        found = _configurations(name)
        chosen = found.get(tag or "") or next(iter(found.values()), None)
        cfg = dict(chosen.to_dict()) if chosen else {}
        repo, url = cfg.get("hf_hub_id"), _url(cfg)
        other = f"`purity models '{name}.*'` lists other weights; or "
        make = partial(build, name, {"pretrained_cfg": tag or None}, f"timm's {name}")
        file = HuggingFaceFile(repo, url) if repo else url
        return _spec(make, cfg, file, f"{name}.{tag}" if tag else name, other)


class HuggingFace(ModelLibrary):
    name = "hf-hub"
    about = "networks that timm saved to the Hugging Face Hub, hf-hub:OWNER/NAME"
    by_prefix = True
    under = "timm"

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text) else None

    def shown(self, name: str) -> str:
        return name.partition("@")[0].rpartition("/")[2]

    def tags(self, name: str) -> list[str]:
        return [name.partition("@")[2] or "main"]

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        repo, _, revision = name.partition("@")
        config = HuggingFaceFile(repo, names=(CONFIG,), revision=revision or None).fetch(f"hf-hub:{name}")
        return _saved(config, self.shown(name), name, HuggingFaceFile(repo, revision=revision or None))


class LocalFolder(ModelLibrary):
    name = "local-dir"
    about = "a folder that timm.models.save_for_hf wrote, local-dir:PATH"
    by_prefix = True
    under = "timm"

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if text else None

    def shown(self, name: str) -> str:
        return expanded(name).resolve().name

    def tags(self, name: str) -> list[str]:
        return ["saved"]

    def spec(self, name: str, tag: str | None) -> ModelSpec:
        folder = expanded(name)
        if not (folder / CONFIG).is_file():
            there = "has none" if folder.is_dir() else "is not there"
            raise PurityError(
                f"local-dir: needs a folder with the {CONFIG} that timm.models.save_for_hf writes, and {folder} "
                f"{there}: check the path."
            )
        weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        missing = f"{folder} holds none of {', '.join(WEIGHTS)}; put one there, or pass --weights FILE or none."
        return _saved(folder / CONFIG, self.shown(name), name, LocalFile(weights, missing))


def _saved(config: Path, shown: str, name: str, file: WeightFile) -> ModelSpec:
    """The network that timm described in `config` as it saved it, with the weights in `file`."""
    from timm.models import is_model
    from timm.models._hub import load_model_config_from_path

    try:
        cfg, architecture, arguments = load_model_config_from_path(config.parent)
        known = is_model(architecture)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PurityError(
            f"{config} is no configuration of a timm network ({said(error)}): other libraries' networks are scored by "
            "a function of yours, FILE.py:FUNCTION."
        ) from None
    if not known:
        raise PurityError(f"{config} names the network {architecture!r}, which this timm does not have: update timm.")
    settings = {"pretrained_cfg": cfg, "num_classes": cfg.get("num_classes"), **(arguments or {})}
    return _spec(partial(build, architecture, settings, f"timm's {architecture} in {shown}"), cfg, file, name)


def _spec(make: Builder, cfg: Mapping[str, Any], file: WeightFile | None, name: str, other: str = "") -> ModelSpec:
    preprocessing, note = declared(cfg)
    headless = None
    if cfg.get("num_classes") == 0:
        headless = (
            f"{name} has no classifier and so predicts no class: {other}ask for --metrics that need none, such as "
            "rankme."
        )
    return ModelSpec(make, preprocessing, file, note, headless=headless)


def declared(cfg: Mapping[str, Any]) -> tuple[Preprocessing, str | None]:
    """timm's `pretrained_cfg` by its own `resolve_data_config`, as `timm.data.create_transform` applies it.

    The second value says in words where timm's transform cannot be followed exactly.
    """
    import timm.data

    data = timm.data.resolve_data_config(pretrained_cfg=dict(cfg))  # type: ignore[attr-defined]
    size: Size = tuple(data["input_size"][-2:])
    scaled = (math.floor(size[0] / data["crop_pct"]), math.floor(size[1] / data["crop_pct"]))
    resize: int | Size = scaled[0]
    note = None
    if data["crop_mode"] == "squash":
        resize = scaled
    elif data["crop_mode"] == "border":
        note = "timm pads these images to a square; here the short side is resized and the centre cropped instead."
    elif size[0] != size[1]:
        resize = scaled
        note = f"timm resizes to cover {scaled[0]}x{scaled[1]}; here images are resized to it exactly instead."
    interpolation, mean, std = data["interpolation"], tuple(data["mean"]), tuple(data["std"])
    return Preprocessing(resize=resize, crop=size, interpolation=interpolation, mean=mean, std=std), note


def _configurations(name: str) -> dict[str, Any]:
    """timm's configurations of a network by tag, the default first."""
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag

    found = {split_model_name_tag(full)[1]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}
    default = get_pretrained_cfg(name)
    if default is None:
        return found
    return {default.tag or "": default, **found}


def _url(cfg: dict[str, Any]) -> HubFile | None:
    url = cfg.get("url")
    return HubFile(url) if isinstance(url, str) and url else None


def build(name: str, settings: dict[str, Any], shown: str, checkpoint: Checkpoint | None) -> nn.Module:
    """The network as `timm.create_model` makes it, with weights in its own layout or in one that timm converts."""
    module = create(name, **settings)
    if checkpoint is None:
        return module
    try:
        fit(module, checkpoint, shown)
    except PurityError:
        # Files in their authors' layout: timm has a filter for each, which it applies as it loads.
        converted = _converted(name, settings, unwrapped(checkpoint.state))
        if converted is None:
            raise
        return converted
    return module


def _converted(name: str, settings: dict[str, Any], state: StateDict) -> nn.Module | None:
    made = []
    for seed in (0, 1):
        try:
            with seeded(seed):
                overlay = {"state_dict": dict(state)}
                module = create(name, **settings, pretrained=True, pretrained_cfg_overlay=overlay)
        except Exception:  # whatever a filter meets in a file that it was not written for
            return None
        cast(dict[str, Any], module.pretrained_cfg).pop("state_dict", None)
        made.append(module)
    # Some families load without insisting on every key; what stayed random differs between the seeds.
    first, second = (module.state_dict() for module in made)
    return made[0] if all(torch.equal(first[key], second[key]) for key in first) else None


def create(name: str, **settings: Any) -> nn.Module:
    """`timm.create_model`, without its warnings."""
    import timm

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, **settings)
