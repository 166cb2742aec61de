"""Text files as other systems write them, and names that are no UTF-8."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purity_cli.errors import PurityError
from purity_cli.files import epochs_of, expanded, natural, read_text, shown, to_text

LINES = ["name,value", "café,1", "", "名,2"]


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("tail", ["", "{0}", "{0}{0} {0}\t{0}"])
def test_marks_line_ends_and_blank_lines_at_the_end(
    mark: bytes, encoding: str, end: str, tail: str, tmp_path: Path
) -> None:
    (tmp_path / "x.csv").write_bytes(mark + (end.join(LINES) + tail.format(end)).encode(encoding))
    assert read_text(tmp_path / "x.csv") == "name,value\ncafé,1\n\n名,2\n"


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("a,é\n".encode("latin-1"))
    with pytest.raises(PurityError, match=r"^x\.csv is no text in UTF-8 \(at byte 2\): save it again as UTF-8\.$"):
        read_text(tmp_path / "x.csv")
    with pytest.raises(PurityError, match="no text"):
        to_text(codecs.BOM_UTF16_LE + b"abc", "x.csv")
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing.csv")
    assert to_text(b"", "x") == to_text(codecs.BOM_UTF8, "x") == ""


@given(st.binary())
def test_every_name_can_be_written(name: bytes) -> None:
    text = shown(os.fsdecode(name))
    text.encode("utf-8")
    if b"\\" not in name:
        assert (text == os.fsdecode(name)) == (text == name.decode("utf-8", "replace"))


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["a-10.tar", "a-9.tar", "a-010.tar", "b", "a", "2", "10", "a-9-x"]
    assert sorted(names, key=natural) == ["2", "10", "a", "a-9-x", "a-9.tar", "a-010.tar", "a-10.tar", "b"]


def test_a_home_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/some/where")
    assert expanded("~/x") == Path("/some/where/x")
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("stems", "expected"),
    [
        (["sweep_20_epoch2", "sweep_20_epoch10"], [2, 10]),  # not the `ep` of sweep
        (["step=500-epoch=2", "step=900-epoch=3"], [2, 3]),  # nor that of step
        (["epochs100_epoch2", "epochs100_epoch3"], [2, 3]),  # what they have in common is of the whole training
        (["lr0.1_ep3_acc91", "lr0.1_ep4_acc92"], [3, 4]),
        (["bestEpoch2", "bestEpoch31"], [2, 31]),
        (["EPOCH-03", "EPOCH-04"], [3, 4]),
        (["net_2ep", "net_10epochs"], [2, 10]),
        (["resnet18_epoch7"], [7]),
        (["checkpoint-0001", "checkpoint-0010"], [1, 10]),
        (["epoch1_seed1", "epoch1_seed2"], None),  # both are of epoch 1
        (["epoch1.5", "epoch2.5"], None),
        (["best", "last"], None),
    ],
)
def test_a_number_belongs_to_the_whole_word_before_it(stems: list[str], expected: list[int] | None) -> None:
    assert epochs_of(stems) == (expected, None)


@pytest.mark.parametrize(
    ("stems", "word"), [(["step_100", "step_200"], "step"), (["deep2", "deep3"], "deep"), (["seed1", "seed2"], "seed")]
)
def test_a_number_behind_another_word_is_taken_and_said(stems: list[str], word: str) -> None:
    told, doubt = epochs_of(stems)
    assert told is not None
    assert doubt == f"No name says the epoch: it is taken for the number behind {word!r}."
