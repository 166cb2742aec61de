"""What users get wrong: one sentence with the way out, its exit code, and nothing on stdout."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import torchvision
from PIL import Image

from purity_cli import cli, store
from tests.views import made

Maker = Callable[[Path], object]


def text(content: str = "") -> Maker:
    return lambda path: path.write_text(content)


def image(path: Path) -> None:
    Image.new("RGB", (32, 32)).save(path)


def result(path: Path) -> None:
    store.write(made.result("net", made.stages(1)), path)


def other_version(path: Path) -> None:
    array = {"x": np.zeros(1, np.uint8)}
    path.write_bytes(safetensors.numpy.save(array, {"format": "purity counts 99"}))


def three_classes(path: Path) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), path)


TWICE: Mapping[str, Maker] = {"twice/a": result, "twice/b": result}
OTHER: Mapping[str, Maker] = {"other/states.safetensors": other_version}
FLAT: Mapping[str, Maker] = {"flat/a.png": image}
SUITE: Mapping[str, Maker] = {"s.yaml": text("defaults: {dataset: digits}\nmodels: [tiny_vgg_10]\n")}
MISTAKES: list[tuple[Mapping[str, Maker], str, int, str]] = [
    ({}, "scroe", 2, "Did you mean score"),
    ({}, "score -m resnt50", 1, "No model 'resnt50'.*Did you mean resnet50"),
    ({}, "score -d digts", 1, "No data set 'digts'.*Did you mean digits"),
    ({}, "score -d not/there", 1, "not/there.*no such file or folder"),
    ({"empty": Path.mkdir}, "score -d empty", 1, "empty"),
    ({}, "score -l C7", 1, r"no stage C7.*C1\.\.C4"),
    ({}, "score -l features.99", 1, "no layer 'features.99'.*purity layers"),
    ({"w.pth": text("x")}, "score -w w.pth", 1, r"w\.pth"),
    ({"three.pth": three_classes}, "score -m squeezenet1_1 -w three.pth", 1, r"does not fit .*\b3\b.*1000"),
    ({}, "score -t 1.5", 2, r"must lie in \[0, 1\)"),
    ({}, "score --rate 2", 2, "rate"),
    ({"file": text()}, "score -o file/out", 1, "file/out"),
    ({"texts/a.jpg": text("hello")}, "score -d texts", 1, r"None of the 1 images.*a\.jpg"),
    ({}, "score --modle x", 2, "--model"),
    ({}, "score --limit many", 2, "not a valid integer"),
    ({}, "score --crop big", 2, "'big' is no size"),
    ({}, "score --resize 20 --crop 32", 1, "crop of 32 does not fit .* 20"),
    ({}, "score --mean 127,127,127", 1, r"0 to 255.*0\.498"),
    ({}, "score --std 58,57,57", 1, "0 to 255"),
    ({}, "score --mean 1,2", 2, "three numbers"),
    ({}, "score --batch-size 0", 2, "no batch size"),
    ({}, "score --metrics rankm", 2, "Did you mean rankme"),
    ({}, "score --std 0,1,1", 1, "std must be positive"),
    ({}, "score --device tpu", 1, "tpu is not supported"),
    ({}, "score --device cpu --precision fp16", 1, "fp16 needs a CUDA device"),
    (FLAT, "score -d flat --per-class 2", 1, "--per-class needs labels"),
    ({}, "bench s.yaml", 1, r"s\.yaml cannot be read"),
    (SUITE, "bench s.yaml --shard 3/2", 1, "3/2"),
    (SUITE, "bench s.yaml --shard 1/2 --status", 2, "leave out --shard"),
    (SUITE, "bench s.yaml --set limit=-4", 1, "--set limit: .*greater"),
    (SUITE, "bench s.yaml --set limt=4", 1, "Did you mean limit"),
    (SUITE, "bench s.yaml --set limit", 1, "key=value"),
    ({}, "train --checkpoints 0,2", 2, "no list of epochs"),
    ({}, "train --checkpoints a", 2, "no list of epochs"),
    ({}, "train --checkpoints 1,,2", 2, "no list of epochs"),
    ({}, "epochs nothing*", 1, "no checkpoint nothing"),
    ({}, "show nowhere", 1, "nowhere is not there"),
    ({}, "show", 1, "run `purity score` first"),
    ({}, "sweep-threshold --from nowhere", 1, "nowhere is not there"),
    (OTHER, "sweep-threshold --from other", 1, "purity counts 99"),
    ({}, "sweep-threshold --from x --limit 3", 2, "which --limit cannot change"),
    ({}, "sweep-threshold --thresholds 0.1-0.9", 2, "start:stop:step"),
    ({}, "sweep-threshold --thresholds 0.5:1.5:0.5", 2, r"must lie in \[0, 1\)"),
    ({}, "sweep-threshold --plot f.docx", 1, r"\.png, \.svg, \.pdf"),
    ({}, "plot nowhere", 1, "nowhere is not there"),
    (OTHER, "plot other", 1, "purity counts 99"),
    (TWICE, "plot twice", 1, "twice/a and twice/b both hold net"),
    (TWICE, "plot twice/a -t 0.33", 1, "no counts of net at .* 0.33"),
    (TWICE, "plot twice/a -l C9", 1, "No layer 'C9' was scored"),
    ({"bad.jpg": text("no picture")}, "cam -i bad.jpg", 1, r"bad\.jpg cannot be read"),
    ({}, "cam -i none.jpg", 1, r"no image none\.jpg"),
    ({}, "cam -d digits -c nine", 1, "no class 'nine'.*0 to 9"),
    ({}, "cam -i 500", 1, "room for 16 rows"),
    ({}, "cam -i 0", 2, "--images 0 shows nothing"),
    ({}, "cam -m efficientnet_lite0 -w none -l blocks.*", 1, "room for 12 columns"),
    (TWICE, "cam --from twice/a", 1, "None of the results of --from is of layer1"),
    ({}, "cam --from nowhere", 1, "nowhere is not there"),
    ({}, "cam -m a -m b -w c -w d -w e", 2, "2 --model and 3 --weights do not"),
    ({}, "cam -i 3 -c 3", 2, "or else --class"),
    ({}, "cam --channels 2 -l C1,C2", 1, "one layer, not 2"),
    (FLAT, "cam --channels 2 -d flat", 1, "--channels counts .* of a class"),
    ({}, "cam --channels 2 --limit 1 -i 9", 1, "--limit leaves no image of class"),
]
if not torch.cuda.is_available():
    MISTAKES.append(({}, "score --device cuda", 1, "use --device cpu"))


@pytest.mark.parametrize(("files", "command", "code", "phrase"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_a_mistake_gets_one_sentence_and_its_exit_code(
    files: Mapping[str, Maker], command: str, code: int, phrase: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name, make in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        make(Path(name))
    assert cli.run(command.split()) == code
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert re.search(phrase, errors[0])
    assert "Traceback" not in err
    assert out == ""
