"""The README and the pages say what the commands say, and what they show runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from purity_cli import cli
from purity_cli.cli import COMMANDS
from tests.cli.reference import PAGES, REFERENCE, ROOT, Shown, example, shown

LINES = list(shown())
README = ROOT / "README.md"
NET = """
from purity_cli.nets import tiny_vgg_10

make_net = tiny_vgg_10
"""


def test_reference_is_that_of_the_commands() -> None:
    # In a process of its own, since click remembers how a command's help was first asked for; and words alone, since
    # how it breaks lines differs between its versions.
    code = "from tests.cli.reference import reference; print(reference())"
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert REFERENCE.read_text("utf-8").split() == fresh.stdout.split(), "run `make docs`"


def test_every_command_is_mentioned_outside_its_reference() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert not [name for name in COMMANDS if f"purity {name}" not in text]


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = README.read_text("utf-8")
    assert len(text.splitlines()) <= 200
    assert re.search(r"```\w*\nmake demo\b.*\nmake test\b.*\n```", text[:2500])


def test_every_link_leads_somewhere() -> None:
    for page in (*PAGES, ROOT / "purity_cli/assets/README.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: the checkout's results and suites, and a network, its weights and images of their own."""
    here = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "results"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("nightly", "smoke", "gpu"))
    (here / "net.py").write_text(NET)
    shutil.copy(
        ROOT / "purity_cli/assets/tiny_vgg_10_digits/tiny_vgg_10_epoch100.safetensors", here / "checkpoint.safetensors"
    )
    from purity_cli.datasets import open_dataset

    digits = open_dataset("digits")
    for i in range(0, len(digits), 30):
        place = here / "photos" / str((digits.labels or ())[i])
        place.mkdir(parents=True, exist_ok=True)
        digits.load(i).save(place / f"{i}.png")
    return here


@pytest.mark.parametrize("shown", [line for line in LINES if line.needs is None], ids=lambda shown: shown.text[:70])
def test_what_is_shown_runs(
    shown: Shown, checkout: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In the order of the pages, each in the folder that those before it have written into."""
    monkeypatch.chdir(checkout)
    program, *words = shlex.split(shown.text)
    if program == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    assert program == "purity", f"{shown.page}:{shown.line}: say what `{program}` needs, or run it here"
    assert cli.run(words) == 0, capfd.readouterr().err


@pytest.mark.parametrize("shown", [line for line in LINES if line.needs is not None], ids=lambda shown: shown.text[:70])
def test_what_cannot_run_here_is_at_least_understood(shown: Shown) -> None:
    words = shlex.split(shown.text)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif "purity_cli" in words or words[0] == "purity":
        name, *options = words[words.index("purity_cli" if "purity_cli" in words else "purity") + 1 :]
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        command.make_context(name, options)
        for suite in (word for word in options if word.startswith("configs/")):
            assert (ROOT / suite).exists()


def test_the_example_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.run(["score"]) == 0
    out, err = capfd.readouterr()
    # Numbers alone, and those of the table: how a terminal breaks lines differs.
    written = example()
    assert written, "run `make docs`"
    for line in out.splitlines():
        if re.match(r"\s*(C\d|Average)\b", line):
            assert line.split() in [other.split() for other in written.splitlines()], "run `make docs`"
    assert "Warning" not in err
    assert "F is NaN" not in out
    assert ("NaN" in out) == ("F 1% is NaN, because" in out)
