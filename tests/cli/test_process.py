"""The command line as a process: its streams, its signals, its errors, and its help."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import types
from pathlib import Path
from typing import Any

import click
import pytest

from purity_cli import cli, machine
from purity_cli.cli import datasets, progress
from purity_cli.errors import PurityError, log
from purity_cli.process import Stream

CHECKOUT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="streams and signals are POSIX's")


def test_a_stream_drops_what_a_full_disk_does_not_take() -> None:
    stream = Stream(os.open("/dev/full", os.O_WRONLY), "w")
    assert stream.write(b"four") == 4
    assert stream.failed
    assert stream.failed.errno == errno.ENOSPC
    assert stream.write(b"more!") == 5


def test_a_stream_that_nobody_reads_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = Stream(writing, "w")
    assert stream.write(b"four") == 4
    assert stream.failed
    assert stream.failed.errno == errno.EPIPE


def test_a_stream_that_would_block_is_waited_for() -> None:
    """As a terminal's is that another program has made so: nothing of a long table may be lost."""
    code = """
    import os, sys
    os.set_blocking(1, False)
    from purity_cli.process import run
    run(lambda: print("x" * 300_000) or 0)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, cwd=CHECKOUT) as ran:
        assert ran.stdout
        time.sleep(0.5)
        assert len(ran.stdout.read()) == 300_001
    assert ran.returncode == 0


def purity(*arguments: str, stdout: str, stderr: str = "file", **environment: str) -> tuple[int, str]:
    """The exit code and what stands on stderr of a command with such streams."""
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    sinks: dict[str, int] = {"file": subprocess.DEVNULL, "full": full, "broken": writing, "closed": subprocess.DEVNULL}
    closing = " ".join(f"{n}>&-" for n, how in ((1, stdout), (2, stderr)) if how == "closed")
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", sys.executable, "-m", "purity_cli", *arguments],
        stdout=sinks[stdout],
        stderr=subprocess.PIPE if stderr == "file" else sinks[stderr],
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, **environment},
        check=False,
    )
    os.close(full)
    os.close(writing)
    return done.returncode, done.stderr or ""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["score", "-h"]], ids=" ".join)
@pytest.mark.parametrize(("stdout", "code"), [("closed", 0), ("broken", 0), ("full", 1)])
def test_the_exit_code_tells_whether_all_was_printed(arguments: list[str], stdout: str, code: int) -> None:
    said = purity(*arguments, stdout=stdout)
    assert said[0] == code
    if stdout == "full":
        assert re.fullmatch(r"Error: Not all of the output could be printed \(No space left on device\).*\n", said[1])
    else:
        assert said[1] == ""


@pytest.mark.parametrize("stderr", ["closed", "full", "broken"])
def test_messages_that_go_nowhere_change_nothing(stderr: str) -> None:
    assert purity("--version", stdout="file", stderr=stderr)[0] == 0
    assert purity("--version", stdout="full", stderr=stderr)[0] == 1
    assert purity("nonsense", stdout="closed", stderr=stderr)[0] == 2


def test_names_that_no_encoding_has_are_printed() -> None:
    code, said = purity("no-\udcff\xe9-such", stdout="file", PYTHONIOENCODING="ascii")
    assert code == 2
    assert "No such command" in said
    assert "Traceback" not in said


# Without torch, which the package around it imports.
LOAD = """
import hashlib, logging, signal, sys, time
logging.basicConfig(level=logging.INFO, format="%(message)s")
from purity_cli import process

def c_code():
    "One operation that lets no signal handler run, as a backward pass does."
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)

def say(text):
    print(text, file=sys.stderr, flush=True)

def last_word():
    say("last word")
    return True
"""
WORK = {
    "an import": ("time.sleep(60)", ""),
    "c code": ("c_code()", ""),
    "code that catches everything": (
        """
        while True:
            try:
                time.sleep(60)
            except BaseException:
                pass
        """, "",
    ),
    "code that makes an error of it": (
        """
        try:
            time.sleep(60)
        except BaseException:
            raise ImportError("numpy.core failed to import")
        """, "",
    ),
    "a thread that goes on": (
        """
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        time.sleep(60)
        """, "",
    ),
    "short blocks": (
        """
        with process.saving(last_word) as stop_if_asked:
            for block in range(1000):
                for part in range(20):
                    time.sleep(0.01)
                say("whole")
                stop_if_asked()
        """, "whole",
    ),
    "long blocks in pieces": (
        """
        with process.saving(last_word):
            for part in range(6000):
                time.sleep(0.01)
        """, "stopping after this batch",
    ),
    "a long block in one piece": (
        """
        with process.saving(last_word):
            c_code()
        """, "last word\nInterrupted. The same command goes on where this stopped.\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("work", WORK)
def test_a_signal_is_answered_within_two_seconds(work: str, number: signal.Signals) -> None:
    body, expected = WORK[work]
    body = textwrap.indent(textwrap.dedent(body), "    ")
    program = f"{LOAD}\ndef work():\n    say('ready')\n{body}\nprocess.run(work)\n"
    with subprocess.Popen([sys.executable, "-c", program], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        assert running.stderr.readline() == "ready\n"
        time.sleep(0.3)
        sent = time.monotonic()
        running.send_signal(number)
        said = running.stderr.read()
        assert running.wait() == 130
    assert time.monotonic() - sent < 2
    assert "Traceback" not in said
    assert expected in said
    if work == "short blocks":
        assert "last word" not in said


SLOW = """
import os, signal, time
import torch
from torch import nn

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 10)

    def forward(self, x):
        if "STRIKE" in os.environ and torch.is_grad_enabled():
            with open(os.environ["STRIKE"], "a+") as file:
                file.write("x")
                blocks = file.tell()
            time.sleep(0.5)
            if blocks >= 4:
                signal.raise_signal(signal.SIGINT)
                for _ in range(3000):
                    time.sleep(0.01)
        return self.fc(self.conv(x).mean((2, 3)))

def slow():
    return Slow()
"""


def test_ctrl_c_within_a_long_block_keeps_the_blocks_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(SLOW)
    how = ["-m", "net.py:slow", "-d", "digits", "--limit", "8", "-b", "1", "-l", "conv", "--resize", "none"]
    command = ["score", *how, "--crop", "none", "--mean", "0,0,0", "--std", "1,1,1", "--workers", "1"]
    assert cli.run([*command, "-o", "calm"]) == 0
    monkeypatch.setenv("STRIKE", "struck")
    assert cli.run([*command, "-o", "wild"]) == 130
    assert "The same command goes on where this stopped." in capsys.readouterr().err
    assert list(Path("wild").glob("partial*"))
    monkeypatch.delenv("STRIKE")
    assert cli.run([*command, "-o", "wild"]) == 0
    assert Path("wild/purity.csv").read_bytes() == Path("calm/purity.csv").read_bytes()
    assert not list(Path("wild").glob("partial*"))


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under nohup, and in the background of a shell's script."""
    program = f"{LOAD}\nprocess.run(lambda: signal.raise_signal(signal.SIGINT) or 0)\n"
    command = ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", program]
    assert subprocess.run(command, cwd=CHECKOUT, check=False).returncode == 0


def _command(name: str) -> click.Command:
    command = cli.cli.get_command(click.Context(cli.cli), name)
    assert command
    return command


class Odd(BaseException):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PurityError("a file called a\nb is damaged: mend it."), "a file called a b is damaged: mend it."),
        (MemoryError(), "Memory ran out: give a smaller --batch-size"),
        (RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried"), "Memory ran out"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x/y"), "x/y cannot be used (No space left on device)"),
        (OSError("odd"), "A file cannot be used (odd)"),
        (SystemExit(0), "Code that this ran wanted to end the program"),
        (KeyError("k"), "unexpected KeyError: 'k', datasets.py line"),
        (RuntimeError("one\ntwo"), "unexpected RuntimeError: one,"),
        (Odd(), "unexpected Odd: Odd"),
    ],
)
def test_whatever_goes_wrong_is_one_sentence(
    error: BaseException, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fails: dict[str, Any] = {"error": error}
    # As if it stood in the package itself.
    exec(compile("def fail(*_, **__): raise error", datasets.__file__, "exec"), fails)
    monkeypatch.setattr(_command("datasets"), "callback", fails["fail"])
    assert cli.run(["datasets"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"Error: {expected}")
    assert said.count("\n") == 1
    with pytest.raises(type(error)):
        cli.run(["datasets", "--debug"])


@pytest.mark.parametrize("error", [KeyError("k"), SystemExit(0), OSError(2, "no", "f"), Odd()])
def test_what_fails_in_a_user_s_file_is_said_of_it(
    error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(_command("datasets"), "callback", fail)
    assert cli.run(["datasets"]) == 1
    kind = type(error).__name__
    assert re.fullmatch(rf"Error: test_process.py, line \d+, failed with {kind}: .*\n", capsys.readouterr().err)


def test_help_has_every_command_in_its_group_and_its_sentence_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    sections = re.split(r"^(\w+):\n", capsys.readouterr().out, flags=re.MULTILINE)
    found = {title: " ".join(text.split()) for title, text in zip(sections[1::2], sections[2::2], strict=True)}
    for name, group in cli.COMMANDS.items():
        first = " ".join((_command(name).help or "").split("\n\n")[0].split()).partition(". ")[0].removesuffix(".")
        assert f"{name} {first}." in found[group]


def test_a_command_is_one_entry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = types.ModuleType("purity_cli.cli.new_one")
    module.command = click.Command("new-one", callback=lambda: click.echo("done"), help="Do it.")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "new-one", "Look")
    assert cli.run(["new-one"]) == 0
    assert cli.run(["--help"]) == 0
    assert cli.run(["new-on"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("done\n")
    assert re.search(r"Look:\n(  .*\n)+?  new-one +Do it\.", out)
    assert "Did you mean new-one" in err


def test_the_version_is_that_of_all_that_matters(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    assert cli.run(["--version"]) == 0
    said = capsys.readouterr().out
    assert f"torch {torch.__version__.partition('+')[0]}" in said
    assert f"Python {sys.version.split()[0]}" in said
    commit = machine.commit()
    assert (f"(git {commit})" in said) == bool(commit)


def test_the_tab_key_completes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_PURITY_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "purity sc")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert cli.run([]) == 0
    assert capsys.readouterr().out == "plain,score\n"
    monkeypatch.setenv("COMP_WORDS", "purity score --pre")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert cli.run([]) == 0
    assert "--precision" in capsys.readouterr().out


def test_what_is_said_beside_a_bar_stands_on_a_line_of_its_own() -> None:
    program = """
    from purity_cli.cli import progress
    from purity_cli.errors import log
    import time
    with progress.messages(), progress.images("net") as advance:
        for done in range(5):
            advance(done, 5)
            time.sleep(0.15)
            log.warning(f"number {done} [of] 5")
        print("result")
    """
    import pty

    seen = b""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stderr=follower, stdout=subprocess.PIPE, cwd=CHECKOUT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "60"},
    ) as running:  # fmt: skip
        os.close(follower)
        while True:
            try:
                seen += os.read(leader, 65536)
            except OSError:
                break
        assert running.stdout
        assert running.stdout.read() == b"result\n"
    os.close(leader)
    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", lambda code: b"\r" if code[0][-1:] in b"KA" else b"", seen)
    for done in range(5):
        assert re.search(rb"[\r\n]Warning: number %d \[of\] 5 *\r?\n" % done, plain), plain


def test_a_suite_says_how_many_jobs_it_has_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("defaults: {dataset: digits, limit: 6}\nmodels: [tiny_vgg_10]\n")
    assert cli.run(["bench", "mine.yaml", "--cache", "none", "--workers", "1"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "1 job."
    assert lines[-2].startswith("[1/1]")


def test_sentences_go_to_stderr_where_there_is_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.messages():
        log.warning("careful")
        log.info("by the way")
    assert capsys.readouterr() == ("", "Warning: careful\nby the way\n")
