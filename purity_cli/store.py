"""The only code that touches a results folder, its lock aside: finished results, unfinished ones; files atomically.

`states.safetensors` alone holds all of a Result; `run.json`, `purity.csv` and `purity.md` are views of it for people
and other programs. What an unfinished job has so far lies in `partial-*.safetensors`, in the same form.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from purity_cli.errors import PurityError, log
from purity_cli.files import finite
from purity_cli.locks import prepare
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Layer, Result
from purity_cli.states import States, Unusable, describe, unpack
from purity_cli.views import layers
from purity_cli.views.cells import bare

STATES, RUN, CSV, MARKDOWN = "states.safetensors", "run.json", "purity.csv", "purity.md"
VIEWS = (RUN, CSV, MARKDOWN)
TAR = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2|txz)$", re.IGNORECASE)
BEFORE = "counts.safetensors"
"""What versions up to 0.1 called it, in another form."""
PARTIAL = "partial*.safetensors"
FAILED = "failed.json"
"""What `purity bench` leaves of a job that failed."""


def slug(job: Job) -> str:
    """A Job's model and data set in a form that any file system takes."""
    return _plain_name(bare(job), job.dataset)


def folder_names(jobs: Sequence[Job]) -> list[str]:
    """A folder's name for each Job: that of its model, with what stands before it where two would have one name.

    PurityError where a Job stands there twice.
    """
    names = [slug(job) for job in jobs]
    longer = [_plain_name(job.model, job.dataset) for job in jobs]
    chosen = [name if names.count(name) == 1 else long for name, long in zip(names, longer, strict=True)]
    twice = next((job for job, name in zip(jobs, chosen, strict=True) if chosen.count(name) > 1), None)
    if twice:
        raise PurityError(f"{twice.model} is given twice: name every model once.")
    return chosen


def _plain_name(model: str, dataset: str) -> str:
    place = os.path.basename(os.path.abspath(re.sub(r"^\w+:", "", dataset)))
    return re.sub(r"[^\w.-]+", "-", f"{model}_{TAR.sub('', place)}")


def write(result: Result, folder: Path, threshold: float = 0.5) -> None:
    """Write the four files; the tables in `purity.md` are those at `threshold`.

    Each file appears whole or not at all. The states come first, since they hold everything, and the other files go as
    soon as they are there: after a crash in between, no file of another result stands beside them.
    """
    write_bytes(prepare(folder) / STATES, _pack(result))
    for name in (*VIEWS, BEFORE):
        (folder / name).unlink(missing_ok=True)
    write_views(result, folder, threshold)


def write_views(result: Result, folder: Path, threshold: float) -> None:
    """Write what people and other programs read: what the result says of itself, and its numbers as CSV and Markdown.

    The CSV has every threshold, the Markdown one.
    """
    record = {"key": result.job.key(), **result.provenance, "job": result.job.model_dump(mode="json")}
    rows, page = layers.stored(result, threshold)
    write_text(folder / RUN, json.dumps(finite(record), indent=2, allow_nan=False) + "\n")
    write_text(folder / CSV, FORMATS["csv"](rows))
    write_text(folder / MARKDOWN, FORMATS["md"](page))


def read(folder: Path) -> Result:
    """The Result in a folder that `write` filled, without its states; PurityError where there is none."""
    path = folder / STATES if folder.name != STATES else folder
    try:
        return _read(path)
    except FileNotFoundError:
        if path.with_name(BEFORE).exists():
            raise PurityError(f"{folder} holds results of an older version: score these images again.") from None
        raise PurityError(
            f"{folder} holds no results: give a folder that `purity score` has written, with {STATES} in it."
        ) from None
    except Unusable as error:
        raise PurityError(f"{path} cannot be used, for {error}: score these images again.") from None


def _read(path: Path) -> Result:
    states, about = unpack(path, lambda name: name.endswith("/purity/counts"))
    try:
        return _result(states, about)
    except (PurityError, KeyError, TypeError, ValueError) as error:
        raise Unusable(f"it is damaged ({error})") from None


class Images(Protocol):
    """The images of a job in blocks, as they are now."""

    def __len__(self) -> int: ...
    def stamp(self, number: int, /) -> str:
        """Where the images of a block lie, and when they changed; equal ones mean equal images."""

    def digest(self, number: int, /) -> str:
        """What is in them, and their labels; this reads them."""


def kept(
    folder: Path, identity: Mapping[str, Any], images: Callable[[int], Images]
) -> tuple[Result | None, str | None]:
    """The folder's result if it is of this identity; else None, and why it is not, None where there is no result.

    `images` gives the images in blocks of a size. They are read where something changed in how they lie on the disk.
    """
    try:
        about = describe(folder / STATES)
        before = about.get("identity") or {}
        why = unlike(_without(before, "images"), _without(identity, "images"))
        if not why and before.get("images") != identity.get("images") and _others(about["states"], images):
            why = "other images"
        return (None, why) if why else (_read(folder / STATES), None)
    except FileNotFoundError:
        return None, None
    except Unusable as error:
        return None, f"{folder / STATES} cannot be used, for {error}"


def _others(heading: Mapping[str, Any], images: Callable[[int], Images]) -> bool:
    """Whether the states with this heading are of other images than there are now."""
    marks = heading.get("images")
    if not marks or not heading.get("block_size"):
        return True
    now = images(heading["block_size"])
    return any(
        int(number) >= len(now) or (now.stamp(int(number)) != stamp and now.digest(int(number)) != digest)
        for number, (stamp, digest) in marks.items()
    )


def _without(identity: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in names}


SHOWN_AS = {
    "selection": "choice of images",
    "network_sha256": "network",
}
"""What parts of an identity are called in sentences."""


def unlike(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In what two identities differ, in a few words; empty where they are equal."""
    fields = Job.model_fields
    said = []
    for name in {**before, **now}:
        # A setting that there was not yet had what has become its default.
        default = fields[name].get_default() if name in fields else None
        a, b = (json.loads(json.dumps(one.get(name, default))) for one in (before, now))
        if a != b:
            plain = all(isinstance(value, (str, int, float, type(None))) and len(str(value)) < 40 for value in (a, b))
            called = SHOWN_AS.get(name, name.replace("_", " "))
            said.append(f"{called} {_plain(a)}, now {_plain(b)}" if plain else f"another {called}")
    return "; ".join(said[:3]) + ("; and more" if len(said) > 3 else "")


def _plain(value: Any) -> str:
    return "none" if value is None else str(value)


class Unfinished:
    """An unfinished job's states in its folder: a file of each process, each written whole or not at all.

    `identity` is everything that decides the numbers, and `images` what the images of each block are now. A process
    saves at most every `every` seconds. Without a folder nothing is kept. Files of other jobs stay as they are: their
    names differ.
    """

    def __init__(
        self, folder: Path | None, identity: Mapping[str, Any], images: Images, *, rank: int = 0, every: float = 60.0
    ) -> None:
        self.folder, self.every, self.images = folder, every, images
        # Which images there are is compared block by block.
        self.identity = json.loads(json.dumps(_without(identity, "images")))
        self.stem = f"partial-{hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]}"
        self.name = f"{self.stem}.safetensors" if rank == 0 else f"{self.stem}-{rank}.safetensors"
        self._saved = monotonic()
        self.blocks = 0
        """How many blocks this process has saved."""

    def restore(self, empty: States) -> States:
        """What earlier runs left, of one process or of several, in one file; `empty` if nothing. For rank 0 alone.

        A run over other images counts as far as its blocks are among this one's. Files that cannot be read are removed,
        after a warning; of those of other jobs one sentence says why they are not used.
        """
        if self.folder is None:
            return empty
        found, others = list[States](), dict[str, str]()
        for path in sorted(self.folder.glob(PARTIAL)):
            states, why = self._read(path)
            if states:
                found.append(states)
            elif why:
                others[path.name] = why
        total = empty
        # The whole of some parts may lie beside them: a kill can come before they are removed.
        for states in sorted(found, key=lambda states: -len(states.blocks)):
            if not states.blocks & total.blocks:
                total += states
        mine = [path for path in self.folder.glob(f"{self.stem}*") if path.suffix == ".safetensors"]
        if total.blocks and [path.name for path in mine] != [self.name]:
            self.save(total)
            for path in mine:
                if path.name != self.name:
                    path.unlink(missing_ok=True)
        if others and not total.blocks:
            name, why = next(iter(others.items()))
            more = f", and {len(others) - 1} more," if len(others) > 1 else ""
            log.warning(f"{self.folder / name}{more} is of another run ({why}) and stays; this one starts anew.")
        self.blocks = len(total.blocks)
        return total

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and monotonic() - self._saved >= self.every

    def save(self, states: States, is_whole: Callable[[], bool] = lambda: True) -> None:
        """Replace what this process has saved, unless `is_whole` says that the states changed as they were packed."""
        if self.folder is None:
            return
        content = states.pack(identity=self.identity)
        if is_whole():
            write_bytes(self.folder / self.name, content)
            self._saved, self.blocks = monotonic(), len(states.blocks)

    def clear(self) -> None:
        """Remove what this job left, once its result is there."""
        for path in self.folder.glob(f"{self.stem}*.safetensors") if self.folder else ():
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[States | None, str | None]:
        try:
            about = describe(path)
            why = unlike(_without(about["identity"], "selection"), _without(self.identity, "selection"))
            if not why and _others(about["states"], lambda size: self.images):
                why = "other images"
            return (None, why) if why else (unpack(path)[0], None)
        except (Unusable, FileNotFoundError, KeyError, TypeError, ValueError) as error:
            path.unlink(missing_ok=True)
            log.warning(f"{path} is removed, for {error if isinstance(error, Unusable) else 'it is damaged'}.")
            return None, None


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write under a temporary name in the same folder, flush to the disk, rename; PurityError where it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PurityError(
            f"Cannot write {path} ({error.strerror}): free some space or choose another --output."
        ) from None


APART = ("job", "layers", "identity", "states")
"""What of a Result does not stand in `result` of a file's metadata as it is."""


def _pack(result: Result) -> bytes:
    counts = {f"{layer.module}/purity/counts": layer.counts for layer in result.layers if layer.counts is not None}
    states = result.states or States(
        batch_size=0, arrays=counts, shapes={layer.module: _shape(layer) for layer in result.layers}
    )
    described = {
        **{name: value for name, value in vars(result).items() if name not in APART},
        "layers": [{name: value for name, value in vars(layer).items() if name != "counts"} for layer in result.layers],
    }
    return states.pack(identity=result.identity, job=result.job.model_dump(mode="json"), result=described)


def _shape(layer: Layer) -> tuple[int, int, int]:
    return layer.channels, layer.height, layer.width


def _result(states: States, about: dict[str, Any]) -> Result:
    described = about["result"]
    layers = []
    for layer in described.pop("layers"):
        measures = {name: math.nan if value is None else value for name, value in layer.pop("measures").items()}
        counts = states.arrays.get(f"{layer['module']}/purity/counts")
        layers.append(Layer(**layer, counts=counts, measures=measures))  # type: ignore[arg-type]
    return Result(
        **{
            **described,
            "thresholds": tuple(described["thresholds"]),
            "images_by_group": tuple(described.get("images_by_group", ())),
        },
        job=Job.of(**{**about["job"], "precision": described["provenance"].get("precision", "fp32")}),
        layers=tuple(layers),
        identity=about["identity"],
    )
