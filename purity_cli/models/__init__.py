"""Names become networks: `load` for one, `catalogue` for the list of them all."""

from __future__ import annotations

import fnmatch
import hashlib
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from torch import nn

from purity_cli import stages
from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import expanded
from purity_cli.models.base import (
    ModelEntry,
    ModelInfo,
    ModelLibrary,
    ModelSpec,
    Network,
    ShapesOnly,
    check_finite,
    freeze,
    seeded,
)
from purity_cli.models.bundled import Bundled
from purity_cli.models.checkpoints import Checkpoint, looks_like_file, read
from purity_cli.models.from_file import InMemory, UserFile, called
from purity_cli.models.from_pretrainedmodels import Pretrainedmodels
from purity_cli.models.from_timm import HuggingFace, LocalFolder, Timm
from purity_cli.models.from_torchvision import Torchvision
from purity_cli.models.trial import failed, tried
from purity_cli.plugins import Registry

__all__ = [
    "COUNTED",
    "SOURCES",
    "ModelEntry",
    "ModelInfo",
    "Network",
    "called",
    "catalogue",
    "failed",
    "load",
    "looks_like_file",
    "named",
    "preview",
    "sketch",
    "tried",
]  # fmt: skip

_OWN = (UserFile(), Bundled(), Torchvision(), Timm(), Pretrainedmodels(), HuggingFace(), LocalFolder())
SOURCES: Registry[ModelLibrary] = Registry("purity_cli.models", ModelLibrary, {one.name: one for one in _OWN})
"""Where names are looked up, in this order; a name may begin with one of these and a colon."""

COUNTED = 50
"""Networks that `catalogue` looks into at most: timm's take some 0.3 s each even without their tensors."""


def load(model: str | nn.Module, weights: str = "default", *, seed: int = 0, headless: bool = False) -> Network:
    """The network `model` with `weights`; `tried` makes it ready for images of one size.

    `model` is `resnet50`, `timm:resnet50.tv_in1k`, `path/to/net.py:function`, ..., or a network, of which a copy is
    taken; `weights` is `default`, the name of weights that the source knows, `none` (random, by `seed`) or a file.
    Raises PurityError for a name that is unknown, weights that are not at hand or do not fit, and files that hold
    anything but tensors; unless one that is `headless` will do, for a network without a classifier.
    """
    source, bare, written = _find(model) if isinstance(model, str) else (InMemory(model), called(model), None)
    tag = _choose(source, bare, written, weights)
    with seeded(seed):  # a user's function builds its network here
        recipe = source.recipe(bare, tag)
    if recipe.headless and not headless:
        raise PurityError(recipe.headless)
    path, label = _weight_file(source, recipe, bare, tag, weights)
    module, taken = _build(recipe, read(path) if path else [], seed)
    notes = tuple(taken.notes) if taken else ()
    if path is None and weights == "default" and not source.own_weights:
        notes = (f"{source.shown(bare)} has no weights of its own, so these are random: pass --weights FILE.",)
    if taken and taken.part:
        label = f"{label}[{taken.part}]"
    freeze(module, source.shown(bare))
    check_finite(module, source.shown(bare), label)
    return Network(
        module=module,
        name=source.shown(bare),
        source=source.name,
        weights=label,
        weights_sha256=_sha256(path) if path else None,
        preprocessing=recipe.preprocessing,
        preprocessing_note=recipe.note,
        input_size=recipe.input_size,
        notes=notes,
        code=recipe.code,
    )


def _build(recipe: ModelSpec, sets: list[Checkpoint], seed: int) -> tuple[nn.Module, Checkpoint | None]:
    """The network with the first set of weights that fits; PurityError, of the first, where none does."""
    refused: PurityError | None = None
    candidates: list[Checkpoint | None] = [*sets] or [None]
    for one in candidates:
        try:
            with seeded(seed):
                module = recipe.build(one)
        except PurityError as error:
            refused = refused or error
            continue
        if one and one.twin:
            raise PurityError(
                f"{one.file} holds two sets of weights that fit, {one.part} and {one.twin}: save those that are meant "
                "in a file of their own."
            )
        return module, one
    assert refused is not None
    raise refused


def preview(name: str, weights: str = "default") -> ModelInfo:
    """What `load` would start from, without reading or downloading weights; a user's function is run. PurityErrors of
    names are those of `load`."""
    source, bare, written = _find(name)
    tag = _choose(source, bare, written, weights)
    with seeded():
        recipe = source.recipe(bare, tag)
    if weights not in ("default", "none") and looks_like_file(weights):
        here = expanded(weights).is_file()
    else:
        here = bool(source.own_weights) or weights == "none" or recipe.file is None or bool(recipe.file.cached())
    return ModelInfo(recipe.preprocessing, here, recipe.input_size, recipe.headless)


def catalogue(pattern: str | None = None, *, here: bool = False) -> list[ModelEntry]:
    """The models whose names match, source by source; without a pattern all of them; `here`, those whose weights are on
    this machine.

    A pattern is a glob (`resnet*`), a part of a name, either after a source and a colon, or has a dot, where timm's
    weights are listed one by one (`resnet50.*`). Where at most `COUNTED` are found, their parameters are counted and
    their stages looked for.
    """
    found = [(match, *_entry(*match)) for match in _all_matches(pattern)]
    found = [each for each in found if each[1].weights or not here]
    if (pattern is None and not here) or len(found) > COUNTED:
        return [entry for _, entry, _ in found]
    return [_counted(entry, match[1], recipe) for match, entry, recipe in found]


def named(pattern: str, *, pretrained: bool = False) -> list[str]:
    """The models that a glob means, or a name, as `load` takes them; `pretrained`, each set of weights of theirs."""
    found = []
    wanted = pattern.rpartition(":")[2]
    for source, name, tag in _all_matches(pattern):
        if not set(wanted) & set("*?[") and wanted not in (name, f"{name}.{tag}"):
            continue
        for one in [tag] if tag or not pretrained else source.tags(name):
            with suppress(PurityError):  # of a name that a library lists and cannot make
                if source.recipe(name, one).file or not pretrained:
                    found.append(f"{source.name}:{name}.{one}" if one else f"{source.name}:{name}")
    return found


def sketch(name: str) -> tuple[nn.Module, str, str]:
    """A network without memory for its weights, which gives shapes and no values; its source and its bare name."""
    source, bare, written = _find(name)
    with seeded(), ShapesOnly():
        return source.recipe(bare, _choose(source, bare, written, "default")).build(None).eval(), source.name, bare


def _find(text: str) -> tuple[ModelLibrary, str, str | None]:
    prefix, colon, rest = text.partition(":")
    if colon and (source := _source(prefix)):
        if (inner := rest.partition(":")) and inner[1] and (other := _source(inner[0])) and other.under == source.name:
            source, rest = other, inner[2]
        found = source.find(rest)
        if found is None:
            raise PurityError(f"{prefix} has no model {rest!r}: see `purity models`.{_near(rest, source)}")
        return source, *found
    for source in SOURCES.values():
        if not source.by_prefix and (found := source.find(text)):
            return source, *found
    if colon:
        known = ", ".join(f"{source}:" for source in SOURCES if source != "file")
        raise PurityError(f"No model {text!r}: names begin with {known} or are FILE.py:FUNCTION.{_near(rest)}")
    raise PurityError(f"No model {text!r}: see `purity models`, or give FILE.py:FUNCTION.{_near(text)}")


def _source(prefix: str) -> ModelLibrary | None:
    return SOURCES.get(prefix.replace("_", "-")) or SOURCES.get(prefix)


def _near(name: str, *sources: ModelLibrary) -> str:
    known = {known for source in sources or SOURCES.values() for known in source.names()}
    return did_you_mean(name, sorted(known))


def _choose(source: ModelLibrary, name: str, written: str | None, weights: str) -> str | None:
    """The tag that decides preprocessing and, unless a file or none are asked for, the weights."""
    tags = source.tags(name)
    if written is not None and source.tag_of(name, written) is None:
        raise PurityError(_no_such_weights(source, name, written, tags))
    default = written or (tags[0] if tags else None)
    if weights in ("default", "none"):
        return default
    if looks_like_file(weights):
        return source.tag_of(name, Path(weights).name) or default
    tag = source.tag_of(name, weights)
    if tag is None:
        raise PurityError(_no_such_weights(source, name, weights, tags))
    if written is not None and tag != written:
        raise PurityError(f"{name}.{written} already names its weights: leave out one of the two.")
    return tag


def _no_such_weights(source: ModelLibrary, name: str, wanted: str, tags: list[str]) -> str:
    shown = ", ".join(tags[:8]) + (f" and {len(tags) - 8} more" if len(tags) > 8 else "")
    there = f"it has {shown}" if tags else "it has none of its own"
    other = next((s for s in SOURCES.values() if s is not source and _has(s, name, wanted)), None)
    hint = f" {other.name}:{name} has them." if other else did_you_mean(wanted, tags)
    return f"{name} of source {source.name} has no weights {wanted!r}: {there}; or give a file, or none.{hint}"


def _has(source: ModelLibrary, name: str, tag: str) -> bool:
    found = source.find(name)
    return found is not None and source.tag_of(found[0], tag) is not None


def _weight_file(
    source: ModelLibrary, recipe: ModelSpec, name: str, tag: str | None, weights: str
) -> tuple[Path | None, str]:
    """The file to read and how results call it; no file for random weights."""
    if weights not in ("default", "none") and looks_like_file(weights):
        return expanded(weights), Path(weights).name
    if source.own_weights:
        return None, source.own_weights
    if weights == "none" or recipe.file is None:
        return None, "none"
    return recipe.file.fetch(f"{source.name}:{name} with weights {tag}"), tag or "default"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all_matches(pattern: str | None) -> list[tuple[ModelLibrary, str, str | None]]:
    matches = [(source, name, tag) for source in SOURCES.values() for name, tag in _matches(source, pattern)]
    if pattern and not matches:
        raise PurityError(f"No model matches {pattern!r}: try a shorter pattern.{_near(pattern.strip('*'))}")
    return matches


def _matches(source: ModelLibrary, pattern: str | None) -> list[tuple[str, str | None]]:
    if pattern is None:
        return [(name, None) for name in source.names()]
    prefix, colon, rest = pattern.partition(":")
    if colon and prefix != source.name:
        return []
    wanted = rest if colon else pattern
    glob = wanted if set(wanted) & set("*?[") else f"*{wanted}*"
    names: list[tuple[str, str | None]] = [(name, None) for name in source.names()]
    if "." in wanted:
        names = [(name, tag) for name, _ in names for tag in source.tags(name)]
        return [(name, tag) for name, tag in names if fnmatch.fnmatch(f"{name}.{tag}", glob)]
    return [(name, tag) for name, tag in names if fnmatch.fnmatch(name, glob)]


def _entry(source: ModelLibrary, name: str, tag: str | None) -> tuple[ModelEntry, ModelSpec | None]:
    recipes: dict[str | None, ModelSpec] = {}
    tags: list[str | None] = [tag] if tag else [*source.tags(name)] or [None]
    for candidate in tags:
        with suppress(PurityError):
            made = source.recipe(name, candidate)
            if not made.headless:
                recipes[candidate] = made
    recipe = next(iter(recipes.values()), None)
    entry = ModelEntry(
        name=f"{name}.{tag}" if tag else name,
        source=source.name,
        parameters=None,
        input_size=recipe.input_size if recipe else None,
        stages=None,
        weights=tuple(known for known, made in recipes.items() if known and made.file and made.file.cached()),
        classifies=recipe is not None,
    )
    return entry, recipe


def _counted(entry: ModelEntry, name: str, recipe: ModelSpec | None) -> ModelEntry:
    """With what only the network itself can say, built and run without memory for its weights."""
    if recipe is None:
        return entry
    parameters, found = None, None
    try:
        with seeded(), ShapesOnly():
            module = recipe.build(None)
            parameters = sum(parameter.numel() for parameter in module.parameters())
            seen = stages.probe(module, recipe.input_size)
            found = tuple(stages.stages(module, entry.source, name, seen))
    except stages.NoStages:
        found = ()
    except (PurityError, RuntimeError, NotImplementedError):  # a few networks compute with values
        pass
    return replace(entry, parameters=parameters, stages=found)
