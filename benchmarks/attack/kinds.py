"""All that is tried: `KINDS` has the attacks by name, and how many of a hundred inputs are of each."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from benchmarks.attack import kills, machines, networks
from benchmarks.attack import world as whole
from benchmarks.attack.mutate import ODD, damaged
from benchmarks.attack.stage import Stage, counts
from benchmarks.attack.world import World, score

FORMATS = {
    "jpg": "JPEG", "png": "PNG", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "ppm": "PPM",
}  # fmt: skip


def image(stage: Stage, world: World) -> None:
    """One more picture, damaged: left out by name, or counted as PIL reads it; the others keep their counts."""
    ending, kind = stage.rng.choice(list(FORMATS.items()))
    buffer = io.BytesIO()
    picture = whole.picture(np.random.default_rng(stage.rng.randrange(2**32)), 24)
    picture.save(buffer, kind)
    how, content = damaged(buffer.getvalue(), stage.rng)
    shutil.copytree(world.folder / "photos", stage.folder / "photos")
    stage.link("net.py", "w.safetensors")
    (stage.folder / "photos" / "bee" / f"9.{ending}").write_bytes(content)
    stage.tried.append(f"a {kind} picture, {how}")
    if stage.run(*score()).code != 0:
        return
    found = stage.rows()
    images = {numbers["n_images"] for numbers in found.values()}
    if images == {"9"}:
        if f"9.{ending}" not in whole.skipped(stage.record()):
            stage.fell("an image was left out, and is not named")
        stage.same(counts(found), counts(world.score), "a damaged picture changed the others' counts")
    elif images == {"10"}:
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # whatever purity, or a planted fault, has made of it
        try:
            alone = Image.open(io.BytesIO(content)).convert("RGB")
        except Exception:  # PIL's decoders raise anything
            stage.fell("an image was counted that PIL does not read")
            return
        (stage.folder / "alone" / "bee").mkdir(parents=True)
        alone.save(stage.folder / "alone" / "bee" / "9.png")
        stage.run(*score(data="alone", out="one"), exits=(0,))
        one = stage.rows("one")
        both = {
            key: {"activations": str(int(numbers["activations"]) + int(one[key]["activations"]))}
            for key, numbers in world.score.items()
            if key in one
        }
        stage.same(counts(found), both, "counts are not the sum of the images'")
    else:
        stage.fell(f"{images} images of 9 or 10")


def archive(stage: Stage, world: World) -> None:
    """A damaged tar of the pictures, or one with odd members."""
    stage.link("net.py", "w.safetensors")
    name = stage.rng.choice(["photos.tar", "photos.tar.gz"])
    if stage.rng.random() < 0.7:
        how, content = damaged((world.folder / name).read_bytes(), stage.rng)
        (stage.folder / name).write_bytes(content)
    else:
        how = stage.rng.choice(["twice", "a link outside", "a pipe", "an absolute name"])
        with tarfile.open(stage.folder / name, "w") as tar:
            tar.add(world.folder / "photos", "photos")
            member = tarfile.TarInfo("photos/bee/9.png")
            if how == "twice":
                tar.add(world.folder / "photos" / "ant" / "0.png", "photos/ant/0.png")
            elif how == "an absolute name":
                tar.add(world.folder / "photos" / "ant" / "0.png", "/photos/ant/8.png")
            else:
                member.type = tarfile.SYMTYPE if how == "a link outside" else tarfile.FIFOTYPE
                member.linkname = "../../../../etc/hostname"
                tar.addfile(member)
    stage.tried.append(f"{name}: {how}")
    stage.run(*score(data=name))


def checkpoint(stage: Stage, world: World) -> None:
    """Damaged weights: refused, or used as PyTorch reads them."""
    import safetensors.torch
    import torch

    stage.link("net.py", "photos")
    name = stage.rng.choice(["w.safetensors", "w.safetensors", "w.pth", "w.ckpt"])
    how, content = damaged((world.folder / name).read_bytes(), stage.rng)
    (stage.folder / name).write_bytes(content)
    stage.tried.append(f"{name}: {how}")
    if stage.run(*score(weights=name)).code != 0:
        return
    path = stage.folder / name
    try:
        read: Any = (
            safetensors.torch.load_file(path) if name == "w.safetensors" else torch.load(path, weights_only=True)
        )
        tensors = {key.removeprefix("module."): value for key, value in read.get("state_dict", read).items()}
        safetensors.torch.save_file(tensors, stage.folder / "again.safetensors")
    except Exception as error:
        stage.fell(f"weights were used that PyTorch does not read ({type(error).__name__})")
        return
    if stage.run(*score(weights="again.safetensors", out="again")).code == 0:
        stage.same(stage.rows(), stage.rows("again"), "damaged weights were not used as PyTorch reads them")


TABLES = {
    "suite.csv": ("stage,net\nC1,0.5\nC2,0.6\n", ["bench", "suite.yaml", "--dry-run"]),
    "more.csv": ("model,depth\nnet,18\nother,34\n", ["correlate", "score-out", "job1", "job2", "--with", "more.csv"]),
}


def table(stage: Stage, world: World) -> None:
    """A damaged CSV: a reference that a suite is compared with, or a column to correlate with."""
    name = stage.rng.choice(list(TABLES))
    text, command = TABLES[name]
    how, content = damaged(text.encode(), stage.rng)
    (stage.folder / name).write_bytes(content)
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "score-out")
    for number, job in enumerate(world.jobs, 1):
        (stage.folder / f"job{number}").symlink_to(world.folder / "bench-out" / job)
    (stage.folder / "suite.yaml").write_text(whole.SUITE + "reference: suite.csv\n")
    stage.tried.append(f"{name}: {how}")
    stage.run(*command)


def suite(stage: Stage, world: World) -> None:
    """A damaged suite, or one with an odd value somewhere; what it can still do, it does."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth")
    text = whole.SUITE
    if stage.rng.random() < 0.5:
        how, content = damaged(text.encode(), stage.rng)
    else:
        words = ["photos", "[0, 0, 0]", "[32, 32]", "none", "1", "cpu", '"net.py:net"', "w.pth", "2", "0.3"]
        word, odd = stage.rng.choice(words), stage.rng.choice(ODD)
        how, content = f"{word} became {odd[:40]}", text.replace(f" {word}", f" {odd}", 1).encode()
    (stage.folder / "suite.yaml").write_bytes(content)
    stage.tried.append(f"a suite: {how}")
    dry = ["--dry-run"] if stage.rng.random() < 0.5 else []
    stage.run("bench", "suite.yaml", "--workers", "1", "--cache", "none", "-o", "out", *dry)


def stored(stage: Stage, world: World) -> None:
    """Damaged files of a result: said, by whatever reads them; scoring into their folder gives the right numbers."""
    stage.link("net.py", "photos", "w.safetensors")
    shutil.copytree(world.folder / "score-out", stage.folder / "out")
    files = sorted(path.name for path in (stage.folder / "out").iterdir() if path.is_file() and path.stat().st_size)
    counts = [name for name in files if name.endswith(".safetensors")]
    name = stage.rng.choice([*counts, *counts, *files])
    how, content = damaged((stage.folder / "out" / name).read_bytes(), stage.rng)
    (stage.folder / "out" / name).write_bytes(content)
    stage.tried.append(f"{name} of a result: {how}")
    first = str(world.folder / "score-out")
    reads = (["diff", first, "out"], ["sweep-threshold", "--from", "out"], ["diff", "out", first, "--format", "md"])
    stage.run(*stage.rng.choice(reads))
    if stage.run(*score()).code == 0 and counts and name in counts:
        stage.same(stage.rows(), world.score)


def cache(stage: Stage, world: World) -> None:
    """Damaged files of the cache: never a wrong pixel, and no run ends for them."""
    stage.link("net.py", "photos", "w.safetensors")
    shutil.copytree(world.folder / "cache", stage.folder / "cache")
    files = sorted(path for path in (stage.folder / "cache").rglob("*") if path.is_file() and path.stat().st_size)
    path = stage.rng.choice(files)
    how, content = damaged(path.read_bytes(), stage.rng)
    path.write_bytes(content)
    stage.tried.append(f"{path.name} of a cache: {how}")
    stage.run(*score("--cache", "cache"), exits=(0,))
    stage.same(stage.rows(), world.score)
    stage.run("cache", "list", "--cache", "cache")
    stage.run("cache", "clear", "--yes", "--cache", "cache")


def folders(stage: Stage, world: World) -> None:
    """What else lies where images are looked for: empty and hidden folders, links, text, system files, one image."""
    stage.link("net.py", "w.safetensors")
    shutil.copytree(world.folder / "photos", stage.folder / "photos")
    photos = stage.folder / "photos"
    things: dict[str, Callable[[Path], object]] = {
        "Thumbs.db": lambda p: (p / "ant" / "Thumbs.db").write_bytes(b"x"),
        ".DS_Store": lambda p: (p / ".DS_Store").write_bytes(b"x"),
        "an apple double": lambda p: (p / "ant" / "._0.png").write_bytes(b"x"),
        "a hidden folder": lambda p: (p / ".git").mkdir(),
        "an empty folder": lambda p: (p / "dog").mkdir(),
        "a link to a picture": lambda p: (p / "ant" / "l.txt").symlink_to("0.png"),
        "a broken link": lambda p: (p / "ant" / "b.png").symlink_to("nowhere.png"),
        "a link in a circle": lambda p: (p / "ant" / "round").symlink_to(p, target_is_directory=True),
        "a folder called like a picture": lambda p: (p / "ant" / "x.png").mkdir(),
        "a pipe called like a picture": lambda p: os.mkfifo(p / "ant" / "y.png"),
        "a text": lambda p: (p / "README.txt").write_text("text"),
        "a picture that may not be read": lambda p: (p / "ant" / "r.png").touch(0),
        "a table of labels": lambda p: (p / "labels.csv").write_text("file,label\n"),
    }  # fmt: skip
    chosen = stage.rng.sample(list(things), stage.rng.choice([1, 2, 3]))
    for name in chosen:
        things[name](photos)
    stage.tried.append(" and ".join(chosen))
    if stage.run(*score()).code == 0:
        images = {numbers["n_images"] for numbers in stage.rows().values()}
        if images == {"9"}:
            stage.same(counts(stage.rows()), counts(world.score))


def numbers_in_json(stage: Stage, world: World) -> None:
    """Damaged JSON and CSV beside a result: what reads them says so."""
    shutil.copytree(world.folder / "bench-out", stage.folder / "bench-out")
    path = stage.rng.choice(
        [p for p in sorted((stage.folder / "bench-out").rglob("*")) if p.is_file() and p.stat().st_size]
    )
    how, content = damaged(path.read_bytes(), stage.rng)
    if path.suffix == ".json" and stage.rng.random() < 0.5:
        record = json.loads(path.read_text())
        key = stage.rng.choice(sorted(record))
        record[key] = stage.rng.choice([None, [], {}, "text", -1, 1e300, True])
        how, content = f"{key} is {record[key]!r}", json.dumps(record).encode()
    path.write_bytes(content)
    stage.tried.append(f"{path.name} of a suite: {how}")
    first = str(world.folder / "bench-out")
    reads = (["diff", first, "bench-out"], ["correlate", "bench-out"], ["sweep-threshold", "--from", "bench-out"],
             ["plot", "bench-out", "-o", "figures"])  # fmt: skip
    stage.run(*stage.rng.choice(reads))


@dataclass(frozen=True)
class Kind:
    """One kind of attack."""

    attack: Callable[[Stage, World], None]
    share: int
    """Of a hundred or so inputs."""


# Those that kill depend on instants, so that a seed repeats them only roughly.
KINDS: dict[str, Kind] = {
    "image": Kind(image, 16),
    "archive": Kind(archive, 5),
    "folder": Kind(folders, 5),
    "checkpoint": Kind(checkpoint, 10),
    "table": Kind(table, 4),
    "suite": Kind(suite, 6),
    "stored": Kind(stored, 6),
    "suite-stored": Kind(numbers_in_json, 4),
    "cache": Kind(cache, 5),
    "partial": Kind(kills.partial, 3),
    "options": Kind(machines.options, 9),
    "user-file": Kind(networks.user_file, 10),
    "returned": Kind(networks.returned, 3),
    "names": Kind(machines.names, 4),
    "environment": Kind(machines.environment, 5),
    "streams": Kind(machines.streams, 4),
    "kill-score": Kind(kills.kill_score, 2),
    "writers": Kind(kills.writers, 2),
}
