"""Networks that timm saved, by `timm.models.save_for_hf` or `push_to_hf_hub`: a configuration and weights, in a folder
or in a repository of the Hugging Face Hub."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from purity_cli.errors import PurityError, said
from purity_cli.files import expanded
from purity_cli.models.base import Recipe, Source
from purity_cli.models.caches import WEIGHTS, HuggingFaceFile, LocalFile
from purity_cli.models.checkpoints import Checkpoint
from purity_cli.models.declared import from_timm
from purity_cli.models.fitting import fit
from purity_cli.models.from_timm import create

CONFIG = "config.json"


class HuggingFace(Source):
    name = "hf-hub"
    about = "networks that timm saved to the Hugging Face Hub, hf-hub:OWNER/NAME"
    by_prefix = True
    under = "timm"

    def names(self) -> list[str]:
        return []

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text) else None

    def shown(self, name: str) -> str:
        return name.partition("@")[0].rpartition("/")[2]

    def tags(self, name: str) -> list[str]:
        return [name.partition("@")[2] or "main"]

    def recipe(self, name: str, tag: str | None) -> Recipe:
        repo, _, revision = name.partition("@")
        config = HuggingFaceFile(repo, names=(CONFIG,), revision=revision or None).fetch(f"hf-hub:{name}")
        cfg, build = _read(config, self.shown(name))
        preprocessing, note = from_timm(cfg)
        return Recipe(
            build, preprocessing, HuggingFaceFile(repo, revision=revision or None), note, headless=_headless(cfg, name)
        )


class LocalFolder(Source):
    name = "local-dir"
    about = "a folder that timm.models.save_for_hf wrote, local-dir:PATH"
    by_prefix = True
    under = "timm"

    def names(self) -> list[str]:
        return []

    def find(self, text: str) -> tuple[str, str | None] | None:
        return (text, None) if text else None

    def shown(self, name: str) -> str:
        return expanded(name).resolve().name

    def tags(self, name: str) -> list[str]:
        return ["saved"]

    def recipe(self, name: str, tag: str | None) -> Recipe:
        folder = expanded(name)
        if not (folder / CONFIG).is_file():
            there = "has none" if folder.is_dir() else "is not there"
            raise PurityError(
                f"local-dir: needs a folder with the {CONFIG} that timm.models.save_for_hf writes, and {folder} "
                f"{there}: check the path."
            )
        cfg, build = _read(folder / CONFIG, self.shown(name))
        preprocessing, note = from_timm(cfg)
        weights = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
        missing = f"{folder} holds none of {', '.join(WEIGHTS)}; put one there, or pass --weights FILE or none."
        return Recipe(build, preprocessing, LocalFile(weights, missing), note, headless=_headless(cfg, name))


def _headless(cfg: dict[str, Any], name: str) -> str | None:
    if cfg.get("num_classes") != 0:
        return None
    return f"{name} has no classifier and so predicts no class: ask for --metrics that need none, such as rankme."


def _read(config: Path, shown: str) -> tuple[dict[str, Any], Any]:
    """timm's configuration of the weights, and how to build their network."""
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
    return cfg, partial(_build, shown, architecture, cfg, arguments or {})


def _build(
    shown: str, architecture: str, cfg: dict[str, Any], arguments: dict[str, Any], checkpoint: Checkpoint | None
) -> nn.Module:
    settings = {"num_classes": cfg.get("num_classes"), **arguments}
    module = create(architecture, pretrained_cfg=cfg, **settings)
    if checkpoint is not None:
        fit(module, checkpoint, f"timm's {architecture} in {shown}")
    return module
