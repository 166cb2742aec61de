"""timm's networks, with every set of weights that it names."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from purity_cli.errors import PurityError
from purity_cli.models.base import Recipe, Source, seeded
from purity_cli.models.caches import HubFile, HuggingFaceFile, WeightFile
from purity_cli.models.checkpoints import Checkpoint, StateDict
from purity_cli.models.declared import from_timm
from purity_cli.models.fitting import fit


class Timm(Source):
    name = "timm"
    about = "timm's networks with every set of weights that it names, resnet50.tv_in1k"

    def names(self) -> list[str]:
        import timm

        return list(timm.list_models())

    def pretrained(self) -> list[str]:
        """Every `architecture.tag` that has weights."""
        import timm

        return list(timm.list_pretrained())

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

    def recipe(self, name: str, tag: str | None) -> Recipe:
        cfg = _configuration(name, tag)
        preprocessing, note = from_timm(cfg)
        headless = None
        if cfg.get("num_classes") == 0:
            full = f"{name}.{tag}" if tag else name
            headless = (
                f"{full} has no classifier and so predicts no class: `purity models '{name}.*'` lists other weights; "
                "or ask for --metrics that need none, such as rankme."
            )
        return Recipe(partial(build, name, tag), preprocessing, _file(cfg), note, headless=headless)


def _configurations(name: str) -> dict[str, Any]:
    """timm's configurations of a network by tag, the default first."""
    from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag

    found = {split_model_name_tag(full)[1]: cfg for full, cfg in get_arch_pretrained_cfgs(name).items()}
    default = get_pretrained_cfg(name)
    if default is None:
        return found
    return {default.tag or "": default, **found}


def _configuration(name: str, tag: str | None) -> dict[str, Any]:
    found = _configurations(name)
    cfg = found.get(tag or "") or next(iter(found.values()), None)
    return dict(cfg.to_dict()) if cfg else {}


def _file(cfg: dict[str, Any]) -> WeightFile | None:
    repo = cfg.get("hf_hub_id")
    return HuggingFaceFile(repo, _url(cfg)) if repo else _url(cfg)


def _url(cfg: dict[str, Any]) -> HubFile | None:
    url = cfg.get("url")
    return HubFile(url) if isinstance(url, str) and url else None


def build(name: str, tag: str | None, checkpoint: Checkpoint | None) -> nn.Module:
    """The network as `timm.create_model` makes it, with weights in its own layout or in one that timm converts."""
    module = create(name, pretrained_cfg=tag or None)
    if checkpoint is None:
        return module
    try:
        fit(module, checkpoint, f"timm's {name}")
    except PurityError:
        # Files in their authors' layout: timm has a filter for each, which it applies as it loads.
        converted = _converted(name, tag, checkpoint.stripped())
        if converted is None:
            raise
        return converted
    return module


def _converted(name: str, tag: str | None, state: StateDict) -> nn.Module | None:
    made = []
    for seed in (0, 1):
        try:
            with seeded(seed):
                overlay = {"state_dict": dict(state)}
                module = create(name, pretrained_cfg=tag or None, pretrained=True, pretrained_cfg_overlay=overlay)
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
