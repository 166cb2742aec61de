"""Names become networks: `load` for one, `listing.catalogue` for the list of them all."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import nn

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.files import expanded
from purity_cli.models.base import ModelInfo, ModelLibrary, ModelSpec, Network, ShapesOnly, check_finite, freeze, seeded
from purity_cli.models.bundled import Bundled
from purity_cli.models.checkpoints import Checkpoint, looks_like_file, read
from purity_cli.models.from_file import InMemory, UserFile, bare, name_in_memory
from purity_cli.models.from_pretrainedmodels import Pretrainedmodels
from purity_cli.models.from_timm import HuggingFace, LocalFolder, Timm
from purity_cli.models.from_torchvision import Torchvision
from purity_cli.models.trial import check_independent, failed, validate
from purity_cli.plugins import Registry

__all__ = [
    "LIBRARIES",
    "ModelInfo",
    "Network",
    "bare",
    "build_on_meta",
    "check_independent",
    "failed",
    "load",
    "looks_like_file",
    "name_in_memory",
    "near_names",
    "preview",
    "validate",
]

_OWN = (UserFile(), Bundled(), Torchvision(), Timm(), Pretrainedmodels(), HuggingFace(), LocalFolder())
LIBRARIES: Registry[ModelLibrary] = Registry("purity_cli.models", ModelLibrary, {one.name: one for one in _OWN})
"""Where names are looked up, in this order; a name may begin with one of these and a colon."""


def load(model: str | nn.Module, weights: str = "default", *, seed: int = 0, headless: bool = False) -> Network:
    """The network `model` with `weights`; `validate` makes it ready for images of one size.

    `model` is `resnet50`, `timm:resnet50.tv_in1k`, `path/to/net.py:function`, ..., or a network, of which a copy is
    taken; `weights` is `default`, the name of weights that the library knows, `none` (random, by `seed`) or a file.
    Raises PurityError for a name that is unknown, weights that are not at hand or do not fit, and files that hold
    anything but tensors; unless one that is `headless` will do, for a network without a classifier.
    """
    found = _find(model) if isinstance(model, str) else (InMemory(model), name_in_memory(model), None)
    library, name, _ = found
    tag = _choose(*found, weights)
    with seeded(seed):  # a user's function builds its network here
        spec = library.spec(name, tag)
    if spec.headless and not headless:
        raise PurityError(spec.headless)
    path, label = _weight_file(library, spec, name, tag, weights)
    module, taken = _build(spec, read(path) if path else [], seed)
    notes = tuple(taken.notes) if taken else ()
    shown = library.shown(name)
    if path is None and weights == "default" and not library.own_weights:
        notes = (f"{shown} has no weights of its own, so these are random: pass --weights FILE.",)
    if taken and taken.is_named:
        label = f"{label}[{taken.part}]"
    freeze(module, shown)
    check_finite(module, shown, label)
    return Network(
        module=module,
        name=shown,
        source=library.name,
        weights=label,
        weights_sha256=_sha256(path) if path else None,
        preprocessing=spec.preprocessing,
        preprocessing_note=spec.note,
        input_size=spec.input_size,
        notes=notes,
    )


def preview(name: str, weights: str = "default") -> ModelInfo:
    """What `load` would start from, without reading or downloading weights; a user's function is run. PurityErrors of
    names are those of `load`."""
    found = _find(name)
    library, bare_name, _ = found
    with seeded():
        spec = library.spec(bare_name, _choose(*found, weights))
    if weights not in ("default", "none") and looks_like_file(weights):
        here = expanded(weights).is_file()
    else:
        here = bool(library.own_weights) or weights == "none" or spec.file is None or bool(spec.file.cached())
    return ModelInfo(spec.preprocessing, here, spec.input_size, spec.headless)


def build_on_meta(name: str) -> tuple[nn.Module, str, str]:
    """A network without memory for its weights, which gives shapes and no values; its library and its bare name."""
    found = _find(name)
    library, bare_name, _ = found
    with seeded(), ShapesOnly():
        return library.spec(bare_name, _choose(*found, "default")).build(None).eval(), library.name, bare_name


def near_names(name: str, *libraries: ModelLibrary) -> str:
    """`" Did you mean resnet50?"`, from the names of these libraries or of all."""
    known = {known for library in libraries or LIBRARIES.values() for known in library.names()}
    return did_you_mean(name, sorted(known))


def _build(spec: ModelSpec, sets: list[Checkpoint], seed: int) -> tuple[nn.Module, Checkpoint | None]:
    """The network with the first set of weights that fits; PurityError, of the first, where none does."""
    refused: PurityError | None = None
    candidates: list[Checkpoint | None] = [*sets] or [None]
    for one in candidates:
        try:
            with seeded(seed):
                return spec.build(one), one
        except PurityError as error:
            refused = refused or error
    assert refused is not None
    raise refused


def _find(text: str) -> tuple[ModelLibrary, str, str | None]:
    """The library, the canonical name in it, and the weights that stand behind the name."""
    prefix, colon, rest = text.partition(":")
    if colon and (library := _library(prefix)):
        inner, other_colon, last = rest.partition(":")
        if other_colon and (other := _library(inner)) and other.under == library.name:
            library, rest = other, last
        found = library.find(rest)
        if found is None:
            raise PurityError(f"{prefix} has no model {rest!r}: see `purity models`.{near_names(rest, library)}")
        return library, *found
    for library in LIBRARIES.values():
        if not library.by_prefix and (found := library.find(text)):
            return library, *found
    known = ", ".join(f"{name}:" for name in LIBRARIES if name != "file")
    hint = (
        f"names begin with {known} or are FILE.py:FUNCTION"
        if colon
        else "see `purity models`, or give FILE.py:FUNCTION"
    )
    raise PurityError(f"No model {text!r}: {hint}.{near_names(rest or text)}")


def _library(prefix: str) -> ModelLibrary | None:
    return LIBRARIES.get(prefix.replace("_", "-")) or LIBRARIES.get(prefix)


def _choose(library: ModelLibrary, name: str, written: str | None, weights: str) -> str | None:
    """The tag that decides preprocessing and, unless a file or none are asked for, the weights."""
    tags = library.tags(name)
    named = None if weights in ("default", "none") or looks_like_file(weights) else weights
    for wanted in filter(None, (written, named)):
        if library.tag_of(name, wanted) is None:
            raise PurityError(_no_such_weights(library, name, wanted, tags))
    if written and named and library.tag_of(name, named) != written:
        raise PurityError(f"{name}.{written} already names its weights: leave out one of the two.")
    # A published file, given by its path, is known by its name.
    given = named or (None if weights in ("default", "none") else Path(weights).name)
    tag = library.tag_of(name, given) if given else None
    return tag or written or (tags[0] if tags else None)


def _no_such_weights(library: ModelLibrary, name: str, wanted: str, tags: list[str]) -> str:
    shown = ", ".join(tags[:8]) + (f" and {len(tags) - 8} more" if len(tags) > 8 else "")
    there = f"it has {shown}" if tags else "it has none of its own"
    others = (other for other in LIBRARIES.values() if other is not library)
    other = next((other for other in others if (found := other.find(name)) and other.tag_of(found[0], wanted)), None)
    hint = f" {other.name}:{name} has them." if other else did_you_mean(wanted, tags)
    return f"{name} of {library.name} has no weights {wanted!r}: {there}; or give a file, or none.{hint}"


def _weight_file(
    library: ModelLibrary, spec: ModelSpec, name: str, tag: str | None, weights: str
) -> tuple[Path | None, str]:
    """The file to read and how results call it; no file for random weights."""
    if weights not in ("default", "none") and looks_like_file(weights):
        return expanded(weights), Path(weights).name
    if library.own_weights:
        return None, library.own_weights
    if weights == "none" or spec.file is None:
        return None, "none"
    return spec.file.fetch(f"{library.name}:{name} with weights {tag}"), tag or "default"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
