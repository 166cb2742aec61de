"""All that is tried: `KINDS` has the attacks by name, and how many of a hundred inputs are of each."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.attack import world as whole
from tests.attack.mutate import damaged
from tests.attack.stage import Rows, Stage
from tests.attack.world import World, score

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
        stage.same(_counts(found), _counts(world.score), "a damaged picture changed the others' counts")
    elif images == {"10"}:
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
        stage.same(_counts(found), both, "counts are not the sum of the images'")
    else:
        stage.fell(f"{images} images of 9 or 10")


def _counts(found: Rows) -> Rows:
    return {key: {"activations": numbers["activations"]} for key, numbers in found.items()}


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
        read: Any = safetensors.torch.load_file(path) if name == "w.safetensors" else torch.load(path, weights_only=True)
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


ODD = (
    "", "null", "-1", "0", "1e999", ".nan", "true", "[]", "{}", "[1, [2, {a: b}]]", "'\\0'", "2001-01-01", "&a [*a]", "!!python/none",
    "!!binary aGk=", "99999999999999999999", "'" + "x" * 300 + "'", "../../..", "~nobody-of-this-name/x", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)  # fmt: skip


def suite(stage: Stage, world: World) -> None:
    """A damaged suite, or one with an odd value somewhere; what it can still do, it does."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth")
    text = whole.SUITE
    if stage.rng.random() < 0.5:
        how, content = damaged(text.encode(), stage.rng)
    else:
        words = ["photos", "[0, 0, 0]", "[32, 32]", "none", '"conv1,conv2"', "1", "cpu", '"net.py:net"', "w.pth", "2", "0.3"]
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


def partial(stage: Stage, world: World) -> None:
    """What an interrupted run left, damaged: the next run's numbers are right all the same."""
    stage.link("net.py", "photos", "w.safetensors")
    stage.run(*score(), kill=(signal.SIGINT, stage.rng.uniform(0.5, 1.0) * world.seconds["score"]))
    left = sorted((stage.folder / "out").glob("*")) if (stage.folder / "out").exists() else []
    files = [path for path in left if path.is_file() and path.stat().st_size]
    if files:
        path = stage.rng.choice(files)
        how, content = damaged(path.read_bytes(), stage.rng)
        path.write_bytes(content)
        stage.tried.append(f"{path.name}: {how}")
    stage.run(*score("-t", "0.5"), exits=(0, 1))
    if stage.rows() and not any(path.name == "purity.csv" for path in files):
        stage.same(stage.rows(), world.score)


def options(stage: Stage, world: World) -> None:
    """Odd values of options, of every command."""
    import click

    from purity_cli.cli import COMMANDS, cli

    stage.link("net.py", "photos", "w.safetensors", "score-out", "suite.yaml", "w.pth")
    name = stage.rng.choice(list(COMMANDS))
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    given = {"score": score(), "bench": [*whole.SUITE_RUN], "train": [*whole.TRAIN], "layers": ["layers", "net.py:net"],
             "diff": ["diff", "score-out", "score-out"], "epochs": ["epochs", "w.safetensors", *score()[1:3], *score()[5:]],
             "plot": ["plot", "score-out"], "cam": ["cam", *score()[1:-2], "-o", "cam.png"]}  # fmt: skip
    arguments = list(given.get(name, [name]))
    known = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in stage.rng.sample(known, min(len(known), stage.rng.choice([1, 1, 2]))):
        arguments.append(option.opts[0])
        if not option.is_flag:
            arguments.append(stage.rng.choice([*ODD, "nan", "inf", "-inf", "0x0", "1x", "0,0,0", "1,1", "cuda:99", "C9", "*", "\udcff\udcfe", "/dev/null", ".", "none", "a\nb"]).replace("\0", ""))
    arguments = [argument for argument in arguments if argument != "--download"]
    stage.run(*arguments)


PHASES = {
    "import": "{fault}",
    "call": "def net():\n    {fault}",
    "first image": "class Own(Net):\n    def forward(self, x):\n        {fault}\ndef net(): return Own()",
    "a later image": "class Own(Net):\n    n = 0\n    def forward(self, x):\n        Own.n += 1\n        if Own.n > 6:\n            {fault}\n        return super().forward(x)\ndef net(): return Own()",
    "backward": "class Bad(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x): return x.clone()\n    @staticmethod\n    def backward(ctx, g):\n        {fault}\nclass Own(Net):\n    def forward(self, x): return Bad.apply(super().forward(x))\ndef net(): return Own()",
    "state_dict": "class Own(Net):\n    def state_dict(self, *a, **k):\n        {fault}\ndef net(): return Own()",
    "load_state_dict": "class Own(Net):\n    def load_state_dict(self, *a, **k):\n        {fault}\ndef net(): return Own()",
    "named_modules": "class Own(Net):\n    def named_modules(self, *a, **k):\n        {fault}\ndef net(): return Own()",
    "parameters": "class Own(Net):\n    def named_parameters(self, *a, **k):\n        {fault}\ndef net(): return Own()",
    "train": "class Own(Net):\n    def train(self, mode=True):\n        {fault}\ndef net(): return Own()",
    "to": "class Own(Net):\n    def _apply(self, *a, **k):\n        {fault}\ndef net(): return Own()",
    "__getattr__": "class Own(Net):\n    def __getattr__(self, name):\n        if name in ('pretrained_cfg', 'default_cfg', 'num_classes', 'logits'):\n            {fault}\n        return super().__getattr__(name)\ndef net(): return Own()",
    "__call__": "class Own(Net):\n    def __call__(self, x):\n        {fault}\ndef net(): return Own()",
    "__deepcopy__": "class Own(Net):\n    def __deepcopy__(self, memo):\n        {fault}\ndef net(): return Own()",
    "__repr__": "class Own(Net):\n    def __repr__(self):\n        {fault}\ndef net(): return Own()",
    "another batch size": "class Own(Net):\n    def forward(self, x):\n        if len(x) > 1:\n            {fault}\n        return super().forward(x)\ndef net(): return Own()",
}  # fmt: skip
FAULTS = (
    "raise ValueError('seventeen')", "raise KeyError('seventeen')", "raise SystemExit(0)", "raise SystemExit('seventeen')",
    "raise MemoryError()", "raise RecursionError('seventeen')", "raise OSError(28, 'seventeen', '/x')", "raise StopIteration",
    "raise AssertionError", "raise RuntimeError('seven\\nteen')", "raise Weird()", "raise Unprintable()", "return None + 1",
    "import not_there_at_all", "raise NotImplementedError", "raise UnicodeDecodeError('utf-8', b'\\xff', 0, 1, 'seventeen')",
    "raise AttributeError('seventeen')", "raise ImportError('seventeen')", "raise TypeError('seventeen')", "raise GeneratorExit",
)  # fmt: skip
HOSTILE = """
class Weird(BaseException):
    pass


class Unprintable(Exception):
    def __str__(self):
        raise ValueError('no text')


"""


def user_file(stage: Stage, world: World) -> None:
    """A network that raises: one sentence that names it; where it never comes to that, the right numbers."""
    phase, fault = stage.rng.choice(list(PHASES)), stage.rng.choice(FAULTS)
    if phase == "import" and fault.startswith("return"):
        fault = "None + 1"
    own = PHASES[phase].replace("{fault}", fault)
    (stage.folder / "own.py").write_text(f"{whole.NET}{HOSTILE}{own}\n")
    stage.link("photos", "w.safetensors")
    stage.tried.append(f"a network that does `{fault}` in {phase}")
    command = score(model="own.py:net")
    ran = stage.run(*command if stage.rng.random() < 0.8 else ["layers", "own.py:net"])
    if ran.code == 1 and not any(word in ran.err for word in ("own.py", "net", "w.safetensors")):
        stage.fell("the sentence does not name the network")
    if ran.code == 0 and ran.arguments[0] == "score":
        stage.same(stage.rows(), world.score)


RETURNED = (
    "None", "'logits'", "17", "[]", "()", "{}", "y[0]", "y[:, :1]", "y[:, :0]", "y[None]", "y.mean()", "y.int()", "y.half()",
    "y * float('nan')", "y / 0", "y.detach()", "y.to_sparse()", "y.to('meta')", "y.requires_grad_(False)", "torch.zeros(len(x), 3)",
    "y[:-1]", "torch.cat([y, y])", "y.T", "y.numpy()", "(y,)", "{'logits': y}", "[y]", "y.double()", "torch.complex(y, y)", "x",
)  # fmt: skip


def returned(stage: Stage, world: World) -> None:
    """A network that gives something odd."""
    what = stage.rng.choice(RETURNED)
    own = f"class Own(Net):\n    def forward(self, x):\n        y = super().forward(x)\n        return {what}\ndef net(): return Own()\n"
    (stage.folder / "own.py").write_text(f"{whole.NET}\n\n{own}")
    stage.link("photos", "w.safetensors")
    stage.tried.append(f"a network that returns {what}")
    ran = stage.run(*score(model="own.py:net"))
    if ran.code == 0 and what in ("(y,)", "{'logits': y}", "[y]", "y.double()"):
        stage.same(_counts(stage.rows()), _counts(world.score))


NAMES = ("plain", "two words", "été", "日本", "e\u0301", "\udcff\udcfe", "new\nline", "tab\there", "semi;colon", "quo'te", '"', "-dash",
         "#hash", "100%", "[brackets]", "{braces}", "a" * 200, "..hidden", "*", "\\back", "\x1b[31mred", "CON", "~", "$HOME")  # fmt: skip


def names(stage: Stage, world: World) -> None:
    """Every name that a file system takes, for each thing of a job: the same numbers."""
    name = stage.rng.choice(NAMES)
    thing = stage.rng.choice(["model", "weights", "data", "class", "image", "out"])
    model, weights, data, out = "net.py:net", "w.safetensors", "photos", "out"
    if thing == "model":
        shutil.copy(world.folder / "net.py", stage.folder / f"{name}.py")
        model = f"./{name}.py:net"
    else:
        stage.link("net.py")
    if thing == "weights":
        shutil.copy(world.folder / "w.safetensors", stage.folder / f"{name}.safetensors")
        weights = f"./{name}.safetensors"
    else:
        stage.link("w.safetensors")
    if thing == "data":
        shutil.copytree(world.folder / "photos", stage.folder / name)
        data = f"./{name}"
    elif thing in ("class", "image"):
        shutil.copytree(world.folder / "photos", stage.folder / "photos")
        old = stage.folder / "photos" / "cat"
        if thing == "class":
            old.rename(old.with_name(f"z{name}"))  # still the last of them
        else:
            (old / "2.png").rename(old / f"z{name}.png")
    else:
        stage.link("photos")
    if thing == "out":
        out = f"./{name}"
    stage.tried.append(f"{thing} called {name!r}")
    layout = stage.rng.choice(["table", "csv", "md", "json"])
    ran = stage.run(*score("--format", layout, model=model, weights=weights, data=data, out=out))
    if ran.code != 0:
        stage.fell(f"a {thing} of that name is refused")
    stage.same(stage.rows(out), world.score)


NUMBERS = ("", "x", "-1", "0", "1", "2", "1e3", "999999999999", " 1 ", "0x1", "½")


def environment(stage: Stage, world: World) -> None:
    """An environment that somebody left: the right numbers, or one sentence."""
    stage.link("net.py", "photos", "w.safetensors")
    env: dict[str, str | None] = {}
    for name in stage.rng.sample(["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"], 3):
        env[name] = stage.rng.choice(NUMBERS)
    more: dict[str, tuple[str | None, ...]] = {
        "HOME": (None, "/nowhere", "", "/proc", "relative"), "PATH": (None, "", "/nowhere"), "TMPDIR": ("/nowhere", ""),
        "LC_ALL": ("C", "POSIX", "xx_YY.none"), "PYTHONIOENCODING": ("ascii", "latin-1"), "COLUMNS": ("60", "1", "0", "x"),
        "PURITY_CACHE": ("", "/proc/nowhere", "net.py", "\udcff"), "XDG_CACHE_HOME": ("", "relative", "/proc"),
        "OMP_NUM_THREADS": ("1",), "TERM": (None, "dumb", "xterm-256color", "nonsense"), "LINES": ("1", "x"), "TORCH_HOME": ("", "/proc"),
    }  # fmt: skip
    for name in stage.rng.sample(list(more), 3):
        env[name] = stage.rng.choice(more[name])
    # Of two processes, the second would be waited for.
    if env.get("WORLD_SIZE") == "2" and env.get("RANK", "").strip() in ("0", "1"):
        env["WORLD_SIZE"] = ""
    stage.tried.append(", ".join(f"{name}={value!r}" for name, value in env.items()))
    cached = ["--cache", "auto"] if stage.rng.random() < 0.5 else []
    if stage.run(*score(*cached), env=env).code == 0:
        stage.same(stage.rows(), world.score)


def streams(stage: Stage, world: World) -> None:
    """stdout and stderr that are closed, full, or read by nobody: files are written, and the exit code tells."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "score-out", "suite.yaml")
    out, err = (stage.rng.choice(["file", "closed", "full", "broken"]) for _ in range(2))
    commands = (score(), score("--format", "json"), ["--help"], ["--version"], ["score", "--help"], ["datasets"],
                ["models", "tiny*"], ["layers", "net.py:net"], [*whole.SUITE_RUN], ["diff", "score-out", "score-out"],
                ["cache", "list"], ["sweep-threshold", "--from", "score-out", "-o", "s"], ["score", "--nonsense"])  # fmt: skip
    command = stage.rng.choice(commands)
    stage.tried.append(f"stdout {out}, stderr {err}")
    ran = stage.run(*command, stdout=out, stderr=err)
    if command[0] == "score" and "-o" in command:
        stage.same(stage.rows(), world.score)
    quiet = command in (["score", "--nonsense"], ["cache", "list"], ["sweep-threshold", "--from", "score-out", "-o", "s"])
    if not quiet and ran.code != (1 if out == "full" else 0):
        stage.fell(f"exit code {ran.code} with stdout {out}")


def kill_score(stage: Stage, world: World) -> None:
    """Signals at random instants of `score`, into a folder with an earlier result: in the end the right numbers."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth")
    _killed(stage, world, "score", score())
    stage.same(stage.rows(), world.score)


def kill_bench(stage: Stage, world: World) -> None:
    """The same of a suite."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "suite.yaml")
    _killed(stage, world, "bench", [*whole.SUITE_RUN])
    found = whole.jobs(stage.folder / "out")
    for job, expected in world.jobs.items():
        stage.same(found.get(job, {}), expected)


def kill_train(stage: Stage, world: World) -> None:
    """The same of a training: weights to the bit."""
    stage.link("net.py", "split")
    _killed(stage, world, "train", [*whole.TRAIN])
    if whole.checkpoints(stage.folder / "out") != world.weights:
        stage.fell("weights differ from those of an undisturbed training")


def kill_cache(stage: Stage, world: World) -> None:
    """The same of a cache being filled: what is scored from it is right."""
    stage.link("net.py", "photos", "w.safetensors")
    _killed(stage, world, "cache", [*whole.CACHE])
    stage.run(*score("--cache", "cache"), exits=(0,))
    stage.same(stage.rows(), world.score)


def _killed(stage: Stage, world: World, name: str, command: list[str]) -> None:
    for _ in range(stage.rng.choice([1, 2, 3])):
        number = stage.rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
        after = stage.rng.uniform(0.05, 1.0) * world.seconds[name]
        stage.tried.append(f"{number.name} after {after:.2f} s")
        stage.run(*command, kill=(number, after))
    stage.run(*command, exits=(0,))


def writers(stage: Stage, world: World) -> None:
    """Two at once in one folder: each ends well or in one sentence, and what lies there then is whole."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "suite.yaml", "split")
    name = stage.rng.choice(["score", "other", "bench", "train", "cache"])
    one = {"bench": [*whole.SUITE_RUN], "train": [*whole.TRAIN], "cache": [*whole.CACHE]}.get(name, score())
    two = score("--limit", "6") if name == "other" else one
    with stage.started(*one) as first, stage.started(*two) as second:
        ends = [first(None), second(None)]
    for ran in ends:
        stage.judge(ran, (0, 1))
    codes = {ran.code for ran in ends}
    if 0 not in codes:
        stage.fell("neither of two writers came to its end")
    if name == "score":
        stage.same(stage.rows(), world.score)
    elif name == "other":
        images = {numbers["n_images"] for numbers in stage.rows().values()}
        if images not in ({"9"}, {"6"}):
            stage.fell(f"a result of two writers is of {images} images")
        if images == {"9"}:
            stage.same(stage.rows(), world.score)
    elif name == "bench":
        for job, expected in world.jobs.items():
            stage.same(whole.jobs(stage.folder / "out").get(job, {}), expected)
    elif name == "train":
        if whole.checkpoints(stage.folder / "out") != world.weights:
            stage.fell("weights differ from those of an undisturbed training")
    else:
        stage.run(*score("--cache", "cache"), exits=(0,))
        stage.same(stage.rows(), world.score)


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
        "a picture that may not be read": lambda p: shutil.copy(p / "ant" / "0.png", p / "ant" / "r.png") and os.chmod(p / "ant" / "r.png", 0),
        "a table of labels": lambda p: (p / "labels.csv").write_text("file,label\n"),
    }  # fmt: skip
    chosen = stage.rng.sample(list(things), stage.rng.choice([1, 2, 3]))
    for name in chosen:
        things[name](photos)
    stage.tried.append(" and ".join(chosen))
    if stage.run(*score()).code == 0:
        images = {numbers["n_images"] for numbers in stage.rows().values()}
        if images == {"9"}:
            stage.same(_counts(stage.rows()), _counts(world.score))


def numbers_in_json(stage: Stage, world: World) -> None:
    """Damaged JSON and CSV beside a result: what reads them says so."""
    shutil.copytree(world.folder / "bench-out", stage.folder / "bench-out")
    path = stage.rng.choice([p for p in sorted((stage.folder / "bench-out").rglob("*")) if p.is_file() and p.stat().st_size])
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
    killing: bool = False
    """Whether it depends on instants, so that a seed repeats it only roughly."""


KINDS = {
    "image": Kind(image, 16),
    "archive": Kind(archive, 5),
    "folder": Kind(folders, 5),
    "checkpoint": Kind(checkpoint, 10),
    "table": Kind(table, 4),
    "suite": Kind(suite, 6),
    "stored": Kind(stored, 6),
    "suite-stored": Kind(numbers_in_json, 4),
    "cache": Kind(cache, 5),
    "partial": Kind(partial, 3, killing=True),
    "options": Kind(options, 9),
    "user-file": Kind(user_file, 10),
    "returned": Kind(returned, 3),
    "names": Kind(names, 4),
    "environment": Kind(environment, 5),
    "streams": Kind(streams, 4),
    "kill-score": Kind(kill_score, 2, killing=True),
    "kill-bench": Kind(kill_bench, 2, killing=True),
    "kill-train": Kind(kill_train, 2, killing=True),
    "kill-cache": Kind(kill_cache, 2, killing=True),
    "writers": Kind(writers, 2, killing=True),
}
