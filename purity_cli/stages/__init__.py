"""C1..C5, `last`, module paths and globs -> the modules to tap, and the listing behind `purity layers`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from purity_cli.errors import PurityError, UnsuitableLayer, did_you_mean
from purity_cli.stages.families import FAMILIES, find
from purity_cli.stages.probe import LayerInfo, Size, probe, weightless

__all__ = ["FAMILIES", "LayerInfo", "NoStages", "Tap", "layers", "probe", "resolve", "stages"]

STAGE = r"C\d+|last"


@dataclass(frozen=True)
class Tap:
    """A module to read."""

    module: str
    """Dotted path."""
    stage: str | None
    """`C3` if the module is one of the network's stages, or a reading of one."""
    reading: str | None = None
    """Which reading of `stage` it is: one of `results.READINGS`; None where `stage` is."""


class NoStages(PurityError):
    """A network without stages C1..Ck: its family is unknown, or gives no (n, c, h, w) maps where they would be."""


def stages(net: nn.Module, source: str, name: str, seen: Mapping[str, LayerInfo]) -> dict[str, str]:
    """`{"C1": "relu", "C2": "layer1", ...}`, shallow to deep; `seen` comes from `probe`.

    A network's own attribute `purity_stages` (module paths in order, or a dict from C1..Ck to them) goes before what
    `families` says. Raises NoStages where there are none, as in ViTs.
    """
    own = getattr(net, "purity_stages", None)
    found = dict(own) if isinstance(own, Mapping) else _number(find(net, seen) if own is None else own)
    if list(found) != list(_number(found)):
        raise PurityError(f"purity_stages of {name} has {', '.join(map(str, found))}: name its stages C1, C2, ...")
    reason = None if found else "it is of no known family"
    for stage, module in found.items():
        problem = seen[module].problem if module in seen else "is not there"
        reason = reason or (problem and f"{module}, where {stage} would be, {problem}")
    if reason:
        raise NoStages(
            f"{name} has no stages C1..Ck, because {reason}: give --layers with module paths, which "
            f"{_listing(source, name)} shows."
        )
    return found


def resolve(net: nn.Module, source: str, name: str, specs: Sequence[str], input_size: Size) -> list[Tap]:
    """The modules that `specs` ask for, in that order, each once.

    A spec is a stage (`C3`, `last`), a range of stages (`C1..C5`, `C2..last`), a module path, or a glob over the paths
    of modules that can be tapped (`layer4.*.conv2`; `*` also matches dots). Stages are what a network of any size
    calls C1, C2, ..., whatever else a module is called. `source` and `name` are for messages.

    Raises UnsuitableLayer for a module that does not give one (n, c, h, w) map per image, PurityError for a spec that
    names nothing.
    """
    seen = probe(net, input_size)
    modules = [module for spec in specs for module in _expand(spec, net, source, name, seen)]
    marks = _marks(net, source, name, seen)
    return [Tap(module, marks.get(module)) for module in dict.fromkeys(modules)]


def layers(net: nn.Module, source: str, name: str, input_size: Size) -> list[LayerInfo]:
    """Every module, in the order of `named_modules`; the forward pass computes shapes alone where the network can."""
    try:
        seen = probe(weightless(net), input_size)
    except Exception:  # it computes with values, or with tensors that are no buffers, or cannot be copied
        seen = probe(net, input_size)
    marks = _marks(net, source, name, seen)
    return [replace(layer, stage=marks.get(layer.module)) for layer in seen.values()]


def _number(modules: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return {f"C{i}": module for i, module in enumerate(modules, 1)}


def _marks(net: nn.Module, source: str, name: str, seen: Mapping[str, LayerInfo]) -> dict[str, str]:
    try:
        return {module: stage for stage, module in stages(net, source, name, seen).items()}
    except NoStages:
        return {}


def _expand(spec: str, net: nn.Module, source: str, name: str, seen: Mapping[str, LayerInfo]) -> list[str]:
    ends = re.fullmatch(rf"({STAGE})(?:\.\.({STAGE}))?", spec)
    if ends:
        return _stage_range(spec, ends[1], ends[2] or ends[1], name, stages(net, source, name, seen))
    if spec in seen:
        if problem := seen[spec].problem:
            raise UnsuitableLayer(
                f"{spec} {problem}, but a layer must run once per image and give one (n, c, h, w) map: choose another "
                f"from {_listing(source, name)}."
            )
        return [spec]
    matches = fnmatch.filter(seen, spec) if set(spec) & set("*?[") else []
    found = [module for module in matches if seen[module].problem is None]
    if matches and not found:
        raise UnsuitableLayer(
            f"{spec} matches {len(matches)} modules of {name} and none gives one (n, c, h, w) map per image: "
            f"{matches[0]} {seen[matches[0]].problem}."
        )
    if not found:
        near = did_you_mean(spec, [*_marks(net, source, name, seen).values(), *seen])
        raise PurityError(f"{name} has no layer {spec!r}: {_listing(source, name)} shows what it has.{near}")
    return found


def _stage_range(spec: str, first: str, last: str, name: str, known: Mapping[str, str]) -> list[str]:
    names = list(known)
    has = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
    first, last = (names[-1] if end == "last" else end for end in (first, last))
    for end in (first, last):
        if end not in known:
            raise PurityError(f"{name} has no stage {end}: it has {has}.")
    start, stop = names.index(first), names.index(last)
    if start > stop:
        raise PurityError(f"The stages {spec} run from deep to shallow: write {last}..{first}.")
    return [known[stage] for stage in names[start : stop + 1]]


def _listing(source: str, name: str) -> str:
    return f"`purity layers {'FILE.py:FUNCTION' if source == 'file' else f'{source}:{name}'}`"
