"""Epochs from file names: whole words and whole numbers only."""

from __future__ import annotations

from pathlib import Path

import pytest

from purity_cli import epochs
from purity_cli.epochs.numbering import epochs_of, natural


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


def test_names_that_tell_nothing_are_still_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("b10_x1", "b9_x3", "b9_x2", "a_0.5"):
        (tmp_path / f"{name}.pth").touch()
    assert [path.stem for path in epochs.find([f"{tmp_path}/*.pth"])] == ["a_0.5", "b9_x2", "b9_x3", "b10_x1"]
    assert sorted(["run10", "run9", "run"], key=natural) == ["run", "run9", "run10"]
