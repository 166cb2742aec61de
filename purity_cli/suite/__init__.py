"""A suite: models x datasets x settings, from YAML to Jobs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from purity_cli import datasets, models
from purity_cli.errors import PurityError, first_line, log
from purity_cli.files import read_text
from purity_cli.models import listing
from purity_cli.plan import Frozen, Job, complaint
from purity_cli.stats import RATE
from purity_cli.store import slug

NAMED = 8
"""Models of those left out that a sentence names."""


class SuiteEntry(Job):
    """One model or data set of a suite: the settings of a Job that it gives, and what has to be at hand for it."""

    needs: str | None = None
    """A file or folder; where it is not there, the entry is left out, and shown as such."""
    pretrained: bool = False
    """Of a model that is a pattern: each set of weights that has a classifier, instead of the default one."""

    OWN: ClassVar[frozenset[str]] = frozenset({"needs", "pretrained"})

    @property
    def given(self) -> dict[str, Any]:
        """The settings of a Job that were written, not their defaults."""
        return self.model_dump(exclude_unset=True, exclude=set(self.OWN))

    @property
    def pattern(self) -> bool:
        """Whether it stands for many models, see `Suite.expanded`."""
        return self.pretrained or bool(set(self.model) & set("*?"))


def _called(name: str) -> BeforeValidator:
    """A bare string stands for `{name: string}`."""
    return BeforeValidator(lambda value: {name: value} if isinstance(value, str) else value)


@dataclass(frozen=True)
class Task:
    """One Job of a suite."""

    name: str
    """Of its folder: unlike any other Job's, and the same in every suite."""
    job: Job
    absent: str | None = None
    """What it needs and is not there."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else its result's provenance says."""


class Suite(Frozen):
    """models x datasets x settings. A setting counts for more the later it stands in: defaults, datasets, settings,
    models. Paths are relative to the folder of the suite's file."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """Of the files with its tables; the YAML file's own name by default."""
    models: Annotated[tuple[Annotated[SuiteEntry, _called("model")], ...], Field(min_length=1)]
    datasets: Annotated[tuple[Annotated[SuiteEntry, _called("dataset")], ...], Field(min_length=1)] = (SuiteEntry(),)
    settings: Annotated[tuple[SuiteEntry, ...], Field(min_length=1)] = (SuiteEntry(),)
    defaults: SuiteEntry = SuiteEntry()
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """At which the tables are read."""
    rate: Annotated[float, Field(gt=0, lt=1)] = RATE
    """The share of firings at which F stands in a second column."""
    layout: Literal["stages", "last"] = "stages"
    """Of the table: a row per stage as in the paper's Table 1, or accuracy and purity as in its Table 2."""
    reference: str | None = None
    """What to compare with: `table1` or `table2` of the paper, or a CSV file laid out as those."""

    _base: Path = PrivateAttr(Path())
    """The folder of its file."""
    _data_dir: str | None = PrivateAttr(None)
    """What stands for every data_dir."""
    _for_all: SuiteEntry = PrivateAttr(SuiteEntry())
    """Settings that hold for every job, whatever else is given."""

    @model_validator(mode="after")
    def _patterns_are_models(self) -> Self:
        if any(part.pattern for part in (self.defaults, *self.datasets, *self.settings)):
            raise ValueError("patterns and pretrained belong to the models.")
        return self

    def moved(self, data_dir: str) -> Suite:
        """The suite with another place for every `data_dir` that it gives; PurityError where it gives none.

        That place is relative to where the command runs, as in options.
        """
        if all(entry.data_dir is None for entry in (self.defaults, *self.datasets, *self.settings, *self.models)):
            raise PurityError(f"The suite {self.name} gives no data_dir that --data-dir could stand for: add it there.")
        moved = self.model_copy()
        moved._data_dir = data_dir
        return moved

    def changed(self, changes: Sequence[str]) -> Suite:
        """The suite with `key=value` for each of `changes`, written as in its file; PurityError as for its file.

        A setting of models holds for every job, whatever the file says.
        """
        given: dict[str, Any] = {}
        for text in changes:
            key, equals, value = text.partition("=")
            if not equals:
                raise PurityError(f"--set {text} gives no value: write key=value, as in limit=100.")
            try:
                given[key.strip()] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise PurityError(f"--set {text}: this is not YAML: {first_line(error)}.") from None
        own = {key: given.pop(key) for key in [*given] if key in Suite.model_fields}
        try:
            for_all = SuiteEntry.model_validate(given)
            suite = Suite.model_validate({**self.model_dump(exclude_unset=True), **own})
        except ValidationError as error:
            key = ".".join(map(str, error.errors()[0]["loc"]))
            raise PurityError(f"--set {key}: {complaint(error, SuiteEntry.model_fields)}") from None
        suite._base, suite._data_dir, suite._for_all = self._base, self._data_dir, for_all
        return suite

    def expanded(self) -> Suite:
        """The suite with the models that its patterns mean in their place; those without a classifier are left out."""
        chosen: list[SuiteEntry] = []
        headless: list[str] = []
        for entry in self.models:
            shared = entry.model_dump(exclude_unset=True, exclude={"model", "pretrained"})
            for name in listing.matching(entry.model, pretrained=entry.pretrained) if entry.pattern else ():
                if models.preview(name, entry.weights).headless:
                    headless.append(name)
                else:
                    chosen.append(SuiteEntry(**shared, model=name))
            chosen += [] if entry.pattern else [entry]
        if headless:
            more = f" and {len(headless) - NAMED} more" if len(headless) > NAMED else ""
            log.info(f"Left out without a classifier: {', '.join(headless[:NAMED])}{more}.")
        if not chosen:
            raise PurityError(f"The patterns of the suite {self.name} leave no model: see `purity models`.")
        return self.model_copy(update={"models": tuple(chosen)})

    def tasks(self) -> list[Task]:
        """The Jobs, each once, in the order of the models; PurityError where two models give the same Job."""
        tasks: dict[str, Task] = {}
        owner: dict[str, int] = {}
        for number, model in enumerate(self.models, 1):
            for dataset in self.datasets:
                for settings in self.settings:
                    parts = (self.defaults, dataset, settings, model, self._for_all)
                    job = self.job_of(*parts)
                    # Of the paths as they are written: a folder's name does not depend on where the suite is run.
                    key = job.key()
                    if owner.setdefault(key, number) != number:
                        raise PurityError(
                            f"Models {owner[key]} and {number} of the suite {self.name} are the same job "
                            f"({job.model} on {job.dataset}): leave one of them out."
                        )
                    needs = [beside(self._base, part.needs) for part in parts if part.needs]
                    absent = next((path for path in needs if not os.path.exists(path)), None)
                    job = located(job, self._base)
                    if job.data_dir and self._data_dir:
                        job = job.model_copy(update={"data_dir": self._data_dir})
                    tasks[key] = Task(f"{slug(job)}_{key[:8]}", job, absent)
        return list(tasks.values())

    def job_of(self, *parts: SuiteEntry) -> Job:
        """What entries give together, the later before the earlier, with its paths as they are written."""
        given = {name: value for part in parts for name, value in part.given.items()}
        grid = {*given.get("thresholds", Job().thresholds), round(self.threshold, 6)}
        return Job.of(**{**given, "thresholds": tuple(grid)})


def beside(base: Path, path: str) -> str:
    """A path that a file in the folder `base` writes, as it is from here."""
    path = os.path.expanduser(path)
    return path if base == Path() or os.path.isabs(path) else os.path.normpath(base / path)


def located(job: Job, base: Path) -> Job:
    """The Job with its paths, which are relative to `base`, as they are from here; names stay names."""
    changes = {}
    if job.data_dir:
        changes["data_dir"] = beside(base, job.data_dir)
    kind, path = datasets.path_of(job.dataset)
    if path and (kind or "/" in path or os.path.exists(base / path)):
        changes["dataset"] = kind + beside(base, path)
    if found := re.fullmatch(r"(file:)?(.+\.py)(:.*)?", job.model):
        changes["model"] = (found[1] or "") + beside(base, found[2]) + (found[3] or "")
    if models.looks_like_file(job.weights) or os.path.exists(base / job.weights):
        changes["weights"] = beside(base, job.weights)
    return job.model_copy(update=changes)


def read(path: Path) -> Suite:
    """The suite in a YAML file; PurityError names the line of what is wrong with it."""
    try:
        text = read_text(path).rstrip("\n")  # or an error at the end would be told of a line that is not there
    except OSError as error:
        raise PurityError(f"{path} cannot be read ({error.strerror}): give the YAML file of a suite.") from None
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise PurityError(f"{path} is no suite: it must be a mapping, with the models under `models:`.")
        _refuse_repeats(root, path)
        content = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PurityError(f"{path}{line}: this is not YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:  # a character that YAML forbids
        raise PurityError(f"{path}: this is not YAML: {first_line(error)}.") from None
    finally:
        if loader:
            loader.dispose()
    try:
        suite = Suite.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        number, shown = _locate(root, place)
        known = SuiteEntry.model_fields if len(place) > 1 else Suite.model_fields
        if len(place) == 1 and place[0] in SuiteEntry.model_fields:
            raise PurityError(
                f"{path}, line {number}: {shown} is a setting of models: write it under `defaults:`, for all of them, "
                "or into a model."
            ) from None
        raise PurityError(f"{path}, line {number}: {shown}: {complaint(error, known)}") from None
    suite._base = path.parent
    if suite.reference and (suite.reference.endswith(".csv") or "/" in suite.reference):
        return suite.model_copy(update={"reference": beside(path.parent, suite.reference)})
    return suite


def _locate(node: yaml.Node, place: Sequence[int | str]) -> tuple[int, str]:
    """The line, from 1, of what pydantic calls `place`, and how to call it; what only pydantic knows is left out."""
    line, shown = 1, list[str]()
    for part in place:
        if isinstance(node, yaml.MappingNode):
            key, value = next(((key, value) for key, value in node.value if key.value == part), (node, node))
            line, node = key.start_mark.line + 1, value
            shown.append(str(part))
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            shown.append(str(part + 1))
    return line, ".".join(shown)


def _refuse_repeats(root: yaml.Node, path: Path) -> None:
    """PurityError where a key stands twice in one place: PyYAML takes the last one without a word."""
    todo, seen = [root], set[int]()
    while todo:
        node = todo.pop()
        if id(node) in seen:  # an alias names it again
            continue
        seen.add(id(node))
        keys: set[str] = set()
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key.value, str) and key.value in keys:
                raise PurityError(f"{path}, line {key.start_mark.line + 1}: {key.value} stands twice here.")
            keys.add(str(key.value))
            todo.append(value)
        todo += node.value if isinstance(node, yaml.SequenceNode) else []
