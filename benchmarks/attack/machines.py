"""Odd options, names, environments and streams."""

from __future__ import annotations

import shutil

from benchmarks.attack import world as whole
from benchmarks.attack.mutate import ODD
from benchmarks.attack.stage import Stage
from benchmarks.attack.world import World, score

NAMES = (
    "plain", "two words", "été", "日本", "e\u0301", "\udcff\udcfe", "new\nline", "tab\there", "semi;colon", "quo'te",
    '"', "-dash", "#hash", "100%", "[brackets]", "{braces}", "a" * 200, "..hidden", "*", "\\back", "\x1b[31mred", "CON",
    "~", "$HOME",
)  # fmt: skip


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
    for name in stage.rng.sample(
        ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"], 3
    ):
        env[name] = stage.rng.choice(NUMBERS)
    more: dict[str, tuple[str | None, ...]] = {
        "HOME": (None, "/nowhere", "", "/proc", "relative"),
        "PATH": (None, "", "/nowhere"),
        "TMPDIR": ("/nowhere", ""),
        "LC_ALL": ("C", "POSIX", "xx_YY.none"),
        "PYTHONIOENCODING": ("ascii", "latin-1"),
        "COLUMNS": ("60", "1", "0", "x"),
        "LINES": ("1", "x"),
        "TERM": (None, "dumb", "xterm-256color", "nonsense"),
        "PURITY_CACHE": ("", "/proc/nowhere", "net.py", "\udcff"),
        "XDG_CACHE_HOME": ("", "relative", "/proc"),
        "TORCH_HOME": ("", "/proc"),
    }
    for name in stage.rng.sample(list(more), 3):
        env[name] = stage.rng.choice(more[name])
    # Of two processes, the second would be waited for.
    if env.get("WORLD_SIZE") == "2" and (env.get("RANK") or "").strip() in ("0", "1"):
        env["WORLD_SIZE"] = ""
    stage.tried.append(", ".join(f"{name}={value!r}" for name, value in env.items()))
    cached = ["--cache", "auto"] if stage.rng.random() < 0.5 else []
    if stage.run(*score(*cached), env=env).code == 0:
        stage.same(stage.rows(), world.score)


PRINTING = (
    score(), score("--format", "json"), [*whole.SUITE_RUN], ["diff", "score-out", "score-out"],
    ["layers", "net.py:net"], ["--help"], ["--version"], ["score", "--help"], ["datasets"], ["models", "tiny*"],
)  # fmt: skip
"""Commands that print something to stdout and exit with 0."""


def streams(stage: Stage, world: World) -> None:
    """stdout and stderr that are closed, full, or read by nobody: files are written, and the exit code tells."""
    stage.link("net.py", "photos", "w.safetensors", "w.pth", "score-out", "suite.yaml")
    out, err = (stage.rng.choice(["file", "closed", "full", "broken"]) for _ in range(2))
    silent = (["score", "--nonsense"], ["cache", "list"], ["sweep-threshold", "--from", "score-out", "-o", "s"])
    command = stage.rng.choice([*PRINTING, *silent])
    stage.tried.append(f"stdout {out}, stderr {err}")
    ran = stage.run(*command, stdout=out, stderr=err)
    if command[0] == "score" and "-o" in command:
        stage.same(stage.rows(), world.score)
    if command not in silent and ran.code != (1 if out == "full" else 0):
        stage.fell(f"exit code {ran.code} with stdout {out}")


GIVEN = {
    "score": score(),
    "bench": [*whole.SUITE_RUN],
    "train": [*whole.TRAIN],
    "layers": ["layers", "net.py:net"],
    "diff": ["diff", "score-out", "score-out"],
    "epochs": ["epochs", "w.safetensors", *score()[1:3], *score()[5:]],
    "plot": ["plot", "score-out"],
    "show": ["show", "score-out"],
    "report": ["report", "score-out"],
    "cam": ["cam", *score()[1:-2], "-o", "cam.png"],
}
"""What each command needs beside the odd options; nothing where it isn't named."""
VALUES = (
    "nan", "inf", "-inf", "0x0", "1x", "0,0,0", "1,1", "127,127,127", "0.9:0.1:0.1", "cuda:99", "C9", "*", "C1..",
    "last", "\udcff\udcfe", "/dev/null", ".", "none", "a\nb", "x" * 5000,
)  # fmt: skip


def options(stage: Stage, world: World) -> None:
    """Odd values of options, of every command."""
    import click

    from purity_cli.cli import COMMANDS, cli

    stage.link("net.py", "photos", "w.safetensors", "score-out", "suite.yaml", "w.pth")
    name = stage.rng.choice(list(COMMANDS))
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    arguments = list(GIVEN.get(name, [name]))
    if isinstance(command, click.Group):
        inner = stage.rng.choice(sorted({*command.commands} - {"clear"}))  # which asks whether it may
        command, arguments = command.commands[inner], [*arguments, inner]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    known = [option for option in options if not {"--download", "--debug"} & set(option.opts)]
    for option in stage.rng.sample(known, min(len(known), stage.rng.choice([1, 1, 2]))):
        arguments.append(option.opts[0])
        if not option.is_flag:
            arguments.append(stage.rng.choice([*ODD, *VALUES]))
    stage.run(*arguments)
