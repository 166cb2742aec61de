"""Plug-ins: what other installed packages add to the tables of metrics, model libraries, data sets and formats.

A package offers something by an entry point in its pyproject.toml. The name on the left is what users write:

    [project.entry-points."purity_cli.metrics"]
    brightness = "my_package:brightness"

`GROUPS` says what stands behind each name. A plug-in that cannot be used is named in one warning, and is left out.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Collection, Mapping
from importlib import metadata
from typing import TypeVar

from purity_cli.errors import first_line, log

T = TypeVar("T")

GROUPS = {
    "purity_cli.metrics": "a purity_cli.metrics.Measure",
    "purity_cli.models": "a purity_cli.models.base.ModelLibrary",
    "purity_cli.datasets": "a purity_cli.datasets.DatasetKind",
    "purity_cli.formats": "a function from a purity_cli.report.Report to a text",
}
"""The groups of entry points -> what an entry of each is."""


class Registry(UserDict[str, T]):
    """A dict of our own entries; those of plug-ins come behind them when the dict is first read.

    Importing this package therefore imports no plug-in. A plug-in cannot replace an entry that is there already.
    """

    def __init__(self, group: str, kind: type[T] | None, own: Mapping[str, T]) -> None:
        """`kind` is the class of the entries; None where they are functions."""
        self._group, self._kind, self._entries, self._read = group, kind, dict(own), False

    @property
    def data(self) -> dict[str, T]:  # type: ignore[override]  # where UserDict keeps what it holds
        if not self._read:
            self._read = True  # before a plug-in is imported: its own code may read this dict
            for point in installed(self._group):
                self._add(point)
        return self._entries

    def _add(self, point: metadata.EntryPoint) -> None:
        try:
            if point.name in self._entries:
                raise ValueError(f"there is a {point.name!r} already")
            value = point.load()
            if isinstance(value, type):
                value = value()
            if not (isinstance(value, self._kind) if self._kind else callable(value)):
                raise TypeError(f"it is not {GROUPS[self._group]}")
            called = getattr(value, "name", point.name).partition(":")[0] if self._kind else point.name
            if called != point.name:
                raise ValueError(f"its own name is {called!r}")
        except Exception as error:  # importing somebody else's code may raise anything
            log.warning(
                f"The plug-in {point.name} of {origin(point)} cannot be used ({first_line(error)}): "
                "mend that package, or uninstall it."
            )
        else:
            self._entries[point.name] = value


def installed(group: str) -> list[metadata.EntryPoint]:
    """The entry points of a group, by name."""
    return sorted(metadata.entry_points(group=group), key=lambda point: point.name)


def origin(point: metadata.EntryPoint) -> str:
    """The package that an entry point comes from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def listed() -> list[str]:
    """A line for each plug-in that is installed, for `purity --version --verbose`; nothing is imported for it."""
    return [
        f"{group.partition('.')[2]}: {point.name} ({origin(point)}, {point.value})"
        for group in GROUPS
        for point in installed(group)
    ]


def versions(group: str, names: Collection[str]) -> dict[str, str]:
    """The packages and versions behind those of `names` that come from plug-ins: what a result's identity needs."""
    return {point.name: origin(point) for point in installed(group) if point.name in names}
