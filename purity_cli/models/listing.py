"""Which models there are: for `purity models`, and for the patterns in suites."""

from __future__ import annotations

import fnmatch
from contextlib import suppress
from dataclasses import dataclass, replace

from purity_cli import stages
from purity_cli.errors import PurityError
from purity_cli.models import LIBRARIES, near_names
from purity_cli.models.base import ModelLibrary, ModelSpec, ShapesOnly, seeded
from purity_cli.plan import Size

COUNTED = 50
"""Networks that `catalogue` looks into at most: timm's take some 0.3 s each even without their tensors."""

Match = tuple[ModelLibrary, str, str | None]
"""A library, a name in it, and weights where the pattern names them."""


@dataclass(frozen=True)
class ModelEntry:
    """One row of `purity models`."""

    name: str
    source: str
    parameters: int | None
    """None where it was not counted: that takes building the network."""
    input_size: Size | None
    stages: tuple[str, ...] | None
    """C1, C2, ...; empty where it has none, None where nobody looked."""
    weights: tuple[str, ...]
    """Names of the weights that are on this machine."""
    classifies: bool
    """False where all its weights lack a classifier, so that it cannot be scored."""

    @property
    def scorable(self) -> bool:
        """False where it is known that `purity score` has no stages or no classes to work with."""
        return self.classifies and self.stages != ()


def catalogue(pattern: str | None = None, *, here: bool = False) -> list[ModelEntry]:
    """The models whose names match, library by library; without a pattern all of them; `here`, those whose weights are
    on this machine.

    A pattern is a glob (`resnet*`), a part of a name, either after a library and a colon, or has a dot, where timm's
    weights are listed one by one (`resnet50.*`). Where at most `COUNTED` are found, their parameters are counted and
    their stages looked for.
    """
    found = [(name, *_entry(library, name, tag)) for library, name, tag in _all_matches(pattern)]
    found = [each for each in found if each[1].weights or not here]
    if (pattern is None and not here) or len(found) > COUNTED:
        return [entry for _, entry, _ in found]
    return [_counted(entry, name, spec) for name, entry, spec in found]


def matching(pattern: str, *, pretrained: bool = False) -> list[str]:
    """The models that a glob means, or a name, as `load` takes them; `pretrained`, each set of weights of theirs."""
    found = []
    wanted = pattern.rpartition(":")[2]
    for library, name, tag in _all_matches(pattern):
        if not _is_glob(wanted) and wanted not in (name, f"{name}.{tag}"):
            continue
        for one in [tag] if tag or not pretrained else library.tags(name):
            with suppress(PurityError):  # of a name that a library lists and cannot make
                if library.spec(name, one).file or not pretrained:
                    found.append(f"{library.name}:{name}.{one}" if one else f"{library.name}:{name}")
    return found


def _is_glob(text: str) -> bool:
    return not set("*?[").isdisjoint(text)


def _all_matches(pattern: str | None) -> list[Match]:
    matches = [match for library in LIBRARIES.values() for match in _matches(library, pattern)]
    if pattern and not matches:
        raise PurityError(f"No model matches {pattern!r}: try a shorter pattern.{near_names(pattern.strip('*'))}")
    return matches


def _matches(library: ModelLibrary, pattern: str | None) -> list[Match]:
    prefix, colon, rest = (pattern or "*").partition(":")
    if colon and prefix != library.name:
        return []
    wanted = rest if colon else prefix
    glob = wanted if _is_glob(wanted) else f"*{wanted}*"
    if "." in wanted:
        weights = [(name, tag) for name in library.names() for tag in library.tags(name)]
        return [(library, name, tag) for name, tag in weights if fnmatch.fnmatch(f"{name}.{tag}", glob)]
    return [(library, name, None) for name in library.names() if fnmatch.fnmatch(name, glob)]


def _entry(library: ModelLibrary, name: str, tag: str | None) -> tuple[ModelEntry, ModelSpec | None]:
    specs: dict[str | None, ModelSpec] = {}
    tags: list[str | None] = [tag] if tag else [*library.tags(name)] or [None]
    for candidate in tags:
        with suppress(PurityError):
            made = library.spec(name, candidate)
            if not made.headless:
                specs[candidate] = made
    spec = next(iter(specs.values()), None)
    entry = ModelEntry(
        name=f"{name}.{tag}" if tag else name,
        source=library.name,
        parameters=None,
        input_size=spec.input_size if spec else None,
        stages=None,
        weights=tuple(known for known, made in specs.items() if known and made.file and made.file.cached()),
        classifies=spec is not None,
    )
    return entry, spec


def _counted(entry: ModelEntry, name: str, spec: ModelSpec | None) -> ModelEntry:
    """With what only the network itself can say, built and run without memory for its weights."""
    if spec is None:
        return entry
    parameters, found = None, None
    try:
        with seeded(), ShapesOnly():
            module = spec.build(None)
            parameters = sum(parameter.numel() for parameter in module.parameters())
            seen = stages.probe(module, spec.input_size)
            found = tuple(stages.stages(module, entry.source, name, seen))
    except stages.NoStages:
        found = ()
    except (PurityError, RuntimeError, NotImplementedError):  # a few networks compute with values
        pass
    return replace(entry, parameters=parameters, stages=found)
