"""The only code that touches a results folder, its lock aside: finished results, unfinished ones; files atomically.

`states.safetensors` alone holds all of a Result; `run.json`, `purity.csv` and `purity.md` are views of it for people
and other programs. What an unfinished job has so far lies in `partial-*.safetensors`, in the same form.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from purity_cli.errors import PurityError, log
from purity_cli.files import finite
from purity_cli.locks import prepare
from purity_cli.plan import Job
from purity_cli.report import FORMATS
from purity_cli.results import Layer, Result
from purity_cli.states import States, Unusable, describe, unpack
from purity_cli.views import layers

STATES, RUN, CSV, MARKDOWN = "states.safetensors", "run.json", "purity.csv", "purity.md"
BEFORE = "counts.safetensors"
"""What versions up to 0.1 called it, in another form."""
PARTIAL = "partial*.safetensors"
FAILED = "failed.json"
"""What `purity bench` leaves of a job that failed."""


def write(result: Result, folder: Path, threshold: float = 0.5) -> None:
    """Write the four files; the tables in `purity.md` are those at `threshold`.

    Each file appears whole or not at all, the states last, so that a folder with states is complete.
    """
    prepare(folder)
    record = {"key": result.job.key(), **result.provenance, "job": result.job.model_dump(mode="json")}
    write_text(folder / RUN, json.dumps(finite(record), indent=2, allow_nan=False) + "\n")
    write_tables(result, folder, threshold)
    write_bytes(folder / STATES, _pack(result))
    (folder / BEFORE).unlink(missing_ok=True)


def write_tables(result: Result, folder: Path, threshold: float) -> None:
    """Write what people read of a result: every threshold as CSV, and one as Markdown."""
    rows, page = layers.stored(result, threshold)
    write_text(folder / CSV, FORMATS["csv"](rows))
    write_text(folder / MARKDOWN, FORMATS["md"](page))


def read(folder: Path) -> Result:
    """The Result in a folder that `write` filled, without its states; PurityError where there is none."""
    path = folder / STATES if folder.name != STATES else folder
    try:
        states, about = unpack(path, lambda name: name.endswith("/purity/counts"))
        return _result(states, about)
    except FileNotFoundError:
        if path.with_name(BEFORE).exists():
            raise PurityError(f"{folder} holds results of an older version: score these images again.") from None
        raise PurityError(
            f"{folder} holds no results: give a folder that `purity score` has written, with {STATES} in it."
        ) from None
    except Unusable as error:
        raise PurityError(f"{path} cannot be used, for {error}: score these images again.") from None
    except (KeyError, TypeError, ValueError) as error:
        raise PurityError(f"{path} is damaged ({error}): score these images again.") from None


def kept(folder: Path, identity: Mapping[str, Any]) -> tuple[Result | None, str | None]:
    """The folder's result if it is of this identity; else None, and why it is not, None where there is no result."""
    try:
        stored = describe(folder / STATES).get("identity") or {}
    except FileNotFoundError:
        return None, None
    except Unusable as error:
        return None, f"{folder / STATES} cannot be used, for {error}"
    if why := unlike(stored, identity):
        return None, why
    return read(folder), None


SHOWN_AS = {
    "dataset_fingerprint": "images",
    "selection": "choice of images",
    "weights_sha256": "weights",
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

    `identity` is everything that decides the numbers, and what the images of each block are: `images` has a digest of
    every block. A process saves at most every `every` seconds. Without a folder nothing is kept. Files of other jobs
    stay as they are: their names differ.
    """

    def __init__(
        self,
        folder: Path | None,
        identity: Mapping[str, Any],
        images: Sequence[str],
        *,
        rank: int = 0,
        every: float = 60.0,
    ) -> None:
        self.folder, self.every, self.images = folder, every, images
        self.identity = json.loads(json.dumps(identity))
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
        return total

    def due(self) -> bool:
        """Whether it is time to save."""
        return self.folder is not None and monotonic() - self._saved >= self.every

    def save(self, states: States) -> None:
        """Replace what this process has saved."""
        if self.folder is None:
            return
        images = {number: self.images[number] for number in sorted(states.blocks)}
        write_bytes(self.folder / self.name, states.pack(identity=self.identity, images=images))
        self._saved, self.blocks = monotonic(), len(states.blocks)

    def clear(self) -> None:
        """Remove what this job left, once its result is there."""
        for path in self.folder.glob(f"{self.stem}*.safetensors") if self.folder else ():
            path.unlink(missing_ok=True)

    def _read(self, path: Path) -> tuple[States | None, str | None]:
        try:
            about = describe(path)
            why = unlike({**about["identity"], "selection": 0}, {**self.identity, "selection": 0})
            here = dict(enumerate(self.images))
            if not why and any(here.get(int(number)) != digest for number, digest in about["images"].items()):
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
