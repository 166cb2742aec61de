"""C1..C5, `last`, `conv:C3`, module paths and globs -> the modules to tap, and the listing behind `purity layers`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from purity_cli.errors import PurityError, UnsuitableLayer, did_you_mean
from purity_cli.layouts import FIRST, Layout
from purity_cli.naming import ACTIVATION, row_name
from purity_cli.stages import families, trunk
from purity_cli.stages.probe import LayerInfo, Layers, Size, probe
from purity_cli.stages.readings import FINDERS, RunOrder

__all__ = ["ALL", "FINDERS", "LayerInfo", "NoStages", "Tap", "layers", "probe", "resolve", "stages"]

STAGE = r"C\d+|last"
ALL = "all"
"""Before a stage: every reading that it has."""


@dataclass(frozen=True)
class Tap:
    """A module to read."""

    module: str
    """Dotted path."""
    stage: str | None
    """`C3` if the module is one of the network's stages, or a reading of one."""
    reading: str | None = None
    """Which reading of `stage` it is: `activation` or a key of `readings.FINDERS`; None where `stage` is."""
    layout: Layout = FIRST
    """Where in its output the channels and the places are."""

    @property
    def name(self) -> str:
        """What it is called: `C3`, `conv:C3`, or the module's path."""
        return row_name(self.module, self.stage, self.reading)


class NoStages(PurityError):
    """A network without stages C1..Ck."""


def stages(net: nn.Module, source: str, name: str, seen: Layers) -> dict[str, str]:
    """`{"C1": "relu", "C2": "layer1", ...}`, shallow to deep; `seen` comes from `probe`.

    In this order: the network's own attribute `purity_stages` (module paths in order, or a dict from C1..Ck to them),
    the few families where the paper or a library names other modules, timm's `feature_info`, the rule of `trunk`. Of a
    network that predicts from its class token the last stage stands before the last attention. Raises NoStages where no
    module gives a map of the image.
    """
    own = getattr(net, "purity_stages", None)
    if own is not None:
        return _own_stages(own, source, name, seen)
    found = families.find(net, seen) or families.feature_info(net, seen) or trunk.find(net, seen)
    if not found:
        raise NoStages(
            f"{name} has no stages C1..Ck, because none of its modules runs once and gives one map of the image: "
            f"{_listing(source, name)} shows what they give."
        )
    readable = trunk.before_attention(seen)
    if readable and (layout := seen[found[-1]].layout) and layout.prefix:
        found[-1] = readable
    return _number(found)


def _own_stages(own: object, source: str, name: str, seen: Layers) -> dict[str, str]:
    if isinstance(own, str) or not isinstance(own, Sequence | Mapping):
        raise PurityError(
            f"purity_stages of {name} is a {type(own).__name__}: give module paths in order, or a dict from C1..Ck."
        )
    found = dict(own) if isinstance(own, Mapping) else _number(own)
    if not found or list(found) != list(_number(found)):
        raise PurityError(f"purity_stages of {name} has {', '.join(map(str, found))}: name its stages C1, C2, ...")
    for stage, module in found.items():
        problem = seen[module].problem if module in seen else "is not there"
        if problem:
            raise NoStages(
                f"{name} has no stages C1..Ck, because {module}, where {stage} would be, {problem}: give --layers with "
                f"module paths, which {_listing(source, name)} shows."
            )
    return found


def resolve(net: nn.Module, source: str, name: str, specs: Sequence[str], input_size: Size) -> list[Tap]:
    """The modules that `specs` ask for, as which reading of which stage, in that order, each once.

    A spec is one of

    - a stage (`C3`, `last`) or a range of stages (`C1..C5`, `C2..last`): their activations;
    - `conv:`, `block:` or `pool:` before one of these: the last convolution that runs before or at the stage on maps
      of its size, the container whose output it is, the pooling that follows it (see `readings`); PurityError where a
      stage has no such module;
    - `all:` before one of these: the activations, then each of those readings where there is one;
    - a module path, or a glob over the paths of modules that can be tapped (`layer4.*.conv2`; `*` also matches dots).

    One module may come of it as several readings, as `layer3` of a ResNet is both C4 and block:C4, but not by its path
    as well. Stages are what a network of any size calls C1, C2, ..., whatever else a module is called. `source` and
    `name` are for messages.

    Raises UnsuitableLayer for a module that does not give one map per image, PurityError for a spec that names nothing.
    """
    seen = probe(net, input_size)
    taps = dict.fromkeys(tap for spec in specs for tap in _expand(spec, net, source, name, seen))
    read = {tap.module for tap in taps if tap.stage}
    return [tap for tap in taps if tap.stage or tap.module not in read]


def layers(net: nn.Module, source: str, name: str, input_size: Size) -> list[LayerInfo]:
    """Every module, in the order of `named_modules`, with all that it is called, and why a stage is one."""
    seen = probe(net, input_size)
    known = _known(net, source, name, seen)
    taps = _read(ALL, list(known), RunOrder(net, seen, known))
    called = {module: tuple(tap.name for tap in taps if tap.module == module) for module in seen}
    reasons = {module: trunk.behind(module, seen) for module in known.values()}
    return [replace(layer, readings=called[layer.module], reason=reasons.get(layer.module)) for layer in seen.values()]


def _number(modules: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    return {f"C{i}": module for i, module in enumerate(modules, 1)}


def _known(net: nn.Module, source: str, name: str, seen: Layers) -> dict[str, str]:
    """The stages, and none where there are none."""
    try:
        return stages(net, source, name, seen)
    except NoStages:
        return {}


def _expand(spec: str, net: nn.Module, source: str, name: str, seen: Layers) -> list[Tap]:
    ends = re.fullmatch(rf"(?:(\w+):)?({STAGE})(?:\.\.({STAGE}))?", spec)
    if ends and ends[1] in (None, ALL, *FINDERS):
        known = stages(net, source, name, seen)
        asked = _range(spec, ends[2], ends[3] or ends[2], name, known)
        order = RunOrder(net, seen, known)
        taps = _read(ends[1] or ACTIVATION, asked, order)
        if ends[1] in FINDERS and len(taps) < len(asked):
            raise PurityError(_lacks(ends[1], name, asked, taps, order))
        return taps
    _check_colon(spec, seen)
    marks = {module: stage for stage, module in _known(net, source, name, seen).items()}
    return [
        Tap(module, marks.get(module), ACTIVATION if module in marks else None, seen[module].layout or FIRST)
        for module in _paths(spec, source, name, {**seen, **_other_names(net, seen)}, marks)
    ]


def _other_names(net: nn.Module, seen: Mapping[str, LayerInfo]) -> dict[str, LayerInfo]:
    """Modules by further paths that lead to them, as where a network keeps a layer by itself and in a Sequential."""
    first = {module: path for path, module in net.named_modules()}
    every = {path: first[module] for path, module in net.named_modules(remove_duplicate=False)}
    return {path: seen[own] for path, own in every.items() if path != own and own in seen}


def _check_colon(spec: str, seen: Mapping[str, LayerInfo]) -> None:
    """PurityError where a spec looks like a reading and is none."""
    reading, colon, rest = spec.partition(":")
    if not colon or spec in seen:
        return
    if reading in (ALL, *FINDERS):
        raise PurityError(f"{reading}: stands before stages (C3, last, C1..C5), not before {rest!r}.")
    if reading == ACTIVATION:
        raise PurityError(f"The activation of a stage has nothing before it: write {rest} for {spec}.")
    known = [*FINDERS, ALL]
    raise PurityError(
        f"There is no reading {reading!r}: before a stage may stand {':, '.join(known[:-1])}: or {ALL}:."
        f"{did_you_mean(reading, known)}"
    )


def _read(reading: str, asked: Sequence[str], order: RunOrder) -> list[Tap]:
    """This reading, or ALL, of these stages, where they have it."""
    if reading == ALL:
        return [tap for each in (ACTIVATION, *FINDERS) for tap in _read(each, asked, order)]
    if reading == ACTIVATION:
        found = [(order.known[stage], stage) for stage in asked]
    else:
        found = [(module, stage) for stage in asked if (module := FINDERS[reading](order, stage))]
    return [Tap(module, stage, reading, order.seen[module].layout or FIRST) for module, stage in found]


def _lacks(reading: str, name: str, asked: Sequence[str], taps: Sequence[Tap], order: RunOrder) -> str:
    """What to say of a reading that not all stages have."""
    has = {tap.stage for tap in taps}
    lack = [stage for stage in asked if stage not in has]
    if len(asked) == 1:
        there = ", ".join(f"{tap.name} = {tap.module}" for tap in _read(ALL, asked, order))
        return f"{name} has no {reading}:{asked[0]}; of this stage there is {there}."
    both = f"{asked[0]}..{asked[-1]}"
    every = f"{ALL}:{both} for every reading that there is"
    if not taps:
        return f"{name} has no {reading}: of any stage in {both}: leave it out, or write {every}."
    runs: list[list[str]] = []
    for before, stage in zip([None, *asked], asked, strict=False):
        if stage in has:
            runs[-1].append(stage) if before in has else runs.append([stage])
    rest = ",".join(f"{reading}:{run[0]}" + (f"..{run[-1]}" if run[1:] else "") for run in runs)
    return f"{name} has no {reading}: of {', '.join(lack)}: write {rest}, or {every}."


def _paths(spec: str, source: str, name: str, seen: Mapping[str, LayerInfo], stages_first: Iterable[str]) -> list[str]:
    """What a module path or a glob names, each by its first path."""
    if spec in seen:
        if problem := seen[spec].problem:
            raise UnsuitableLayer(
                f"{spec} {problem}, but a layer must run once per image and give one map of it: choose another from "
                f" {_listing(source, name)}."
            )
        return [seen[spec].module]
    matches = fnmatch.filter(seen, spec) if set(spec) & set("*?[") else []
    good = {seen[path].module for path in matches if seen[path].problem is None}
    found = [path for path in seen if path in good]
    if matches and not found:
        raise UnsuitableLayer(
            f"{spec} matches {len(matches)} modules of {name} and none gives one map per image: "
            f"{matches[0]} {seen[matches[0]].problem}."
        )
    if not found:
        near = did_you_mean(spec, [*stages_first, *seen])
        raise PurityError(f"{name} has no layer {spec!r}: {_listing(source, name)} shows what it has.{near}")
    return found


def _range(spec: str, first: str, last: str, name: str, known: Mapping[str, str]) -> list[str]:
    """The stages from one to another."""
    names = list(known)
    has = names[0] if len(names) == 1 else f"{names[0]}..{names[-1]}"
    first, last = (names[-1] if end == "last" else end for end in (first, last))
    for end in (first, last):
        if end not in known:
            raise PurityError(f"{name} has no stage {end}: it has {has}.")
    start, stop = names.index(first), names.index(last)
    if start > stop:
        reading = spec[: spec.find(":") + 1]
        raise PurityError(f"The stages {spec} run from deep to shallow: write {reading}{last}..{first}.")
    return names[start : stop + 1]


def _listing(source: str, name: str) -> str:
    if source == "memory":
        return "its named_modules()"
    return f"`purity layers {'FILE.py:FUNCTION' if source == 'file' else f'{source}:{name}'}`"
