"""Networks as people bring them: each is scored as the plain network that is in it, or refused in one sentence."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

from purity_cli import run
from purity_cli.cli import run as purity
from purity_cli.cli.layers import command as layers
from purity_cli.errors import PurityError
from purity_cli.models import load, validate
from purity_cli.plan import Job
from purity_cli.results import Result
from tests.logged import logged
from tests.models.test_models import classes

PLAIN = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 6, 3, stride=2)
        self.fc = nn.Linear(6, 5)

    def maps(self, x):
        return F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return self.fc(self.maps(x).mean((2, 3)))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with twelve images and the plain network, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        pixels = (rng.random((16, 16, 3)) * rng.uniform(60, 255, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
    (tmp_path / "plain.py").write_text(PLAIN + "\n\ndef make(): return Plain()\n")
    return tmp_path


def write(here: Path, body: str, name: str = "net.py") -> None:
    (here / name).write_text(PLAIN + dedent(body))


def scored(model: str, *, layers: str = "conv1,conv2", said: list[str] | None = None, **settings: object) -> Result:
    job = Job.of(
        model=model, dataset="images", layers=tuple(layers.split(",")), resize="none", crop="none",
        **{"batch_size": 5, **settings},
    )  # fmt: skip
    with logged() as heard:
        plan = run.resolve(job)
    if said is not None:
        said += [sentence for sentence in heard if "guess" not in sentence and "No accuracy" not in sentence]
    return run.score(plan, workers=1)


def same_counts(one: Result, other: Result) -> bool:
    return [layer.module for layer in one.layers] == [layer.module for layer in other.layers] and all(
        np.array_equal(a.counts, b.counts) for a, b in zip(one.layers, other.layers, strict=True)
    )


WRAPPED = {
    "DataParallel": "def make(): return nn.DataParallel(Plain())",
    "in a DataParallel inside": """
        class Outer(Plain):
            def __init__(self):
                super().__init__()
                self.conv1 = nn.DataParallel(self.conv1)
                self.conv2 = torch.compile(self.conv2)
        def make(): return Outer()
    """,
    "torch.compile": "def make(): return torch.compile(Plain())",
    "compiled in place": """
        def make():
            net = Plain()
            net.compile()
            return net
    """,
    "a compiled forward": """
        class Compiled(Plain):
            @torch.compile
            def forward(self, x):
                return self.fc(self.maps(x).mean((2, 3)))
        def make(): return Compiled()
    """,
    "a compiled forward of its own": """
        def make():
            net = Plain()
            net.forward = torch.compile(net.forward)
            return net
    """,
    "AveragedModel": "def make(): return torch.optim.swa_utils.AveragedModel(Plain())",
    "twice": "def make(): return nn.DataParallel(torch.compile(Plain()))",
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_a_wrapper_is_looked_through(wrapping: str, here: Path) -> None:
    write(here, WRAPPED[wrapping])
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))


def test_a_network_of_half_precision_is_run_in_float32(here: Path) -> None:
    """With the weights that it has, which are rounded."""
    write(here, "def make(): return Plain().bfloat16()")
    write(here, "def make(): return Plain().bfloat16().float()", "rounded.py")
    assert same_counts(scored("net.py:make"), scored("rounded.py:make"))


def test_a_distributed_network_is_looked_through() -> None:
    from purity_cli.models.from_file import unwrapped_module

    inner = nn.Conv2d(3, 4, 1)
    parallel = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(parallel)
    parallel.module = inner
    assert unwrapped_module(parallel, "net") is inner


def test_torchscript_is_refused(here: Path) -> None:
    write(here, "def make(): return torch.jit.trace(Plain().eval(), torch.zeros(1, 3, 8, 8))")
    with pytest.raises(PurityError, match=r"returned a TorchScript module.*before torch\.jit"):
        load("net.py:make")


OUTPUTS = {
    "a dict": ("return {'features': x, 'logits': y}", "a dict, of which logits"),
    "a dict of one": ("return {'prediction': y}", "a dict, of which prediction"),
    "a tuple": ("return y, x", r"a tuple, of which \[0\]"),
    "a list": ("return [x, y]", r"a list, of which \[1\]"),
    "a named tuple": ("return Answer(x, y)", r"a Answer, of which \[1\]"),
    "an object": ("return Holder(x, y)", "a Holder, of which logits"),
    "one among several": ("return {'logits': y, 'embedding': x.mean((2, 3))}", "a dict, of which logits"),
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_logits_are_found_in_what_a_network_gives(output: str, here: Path) -> None:
    returned, sentence = OUTPUTS[output]
    write(
        here,
        f"""
        from dataclasses import dataclass
        from typing import Any, NamedTuple

        class Answer(NamedTuple):
            features: Any
            logits: Any

        @dataclass
        class Holder:
            features: Any
            logits: Any

        class Other(Plain):
            def forward(self, x):
                x = self.maps(x)
                y = self.fc(x.mean((2, 3)))
                {returned}
        def make(): return Other()
    """,
    )
    said: list[str] = []
    result = scored("net.py:make", said=said)
    assert same_counts(result, scored("plain.py:make"))
    (heard,) = said
    assert re.search(sentence, heard), heard
    assert result.provenance["network_notes"] == [heard]


@pytest.mark.parametrize(
    ("returned", "answer"),
    [
        ("{'a': y, 'b': x.mean((2, 3))}", r"a dict, and a and b could each be the logits"),
        ("{'out': x}", r"a dict for one image and no logits.*the mean over a map"),
        ("y.argmax(1)", r"int64 for one image and no logits"),
        ("y.squeeze()", r"a tensor \(5,\) of float32 for one image.*flatten\(1\)"),
        ("'cat'", "gives a str"),
    ],
)
def test_an_output_without_clear_logits_gets_one_sentence(returned: str, answer: str, here: Path) -> None:
    write(
        here,
        f"""
        class Other(Plain):
            def forward(self, x):
                x = self.maps(x)
                y = self.fc(x.mean((2, 3)))
                return {returned}
        def make(): return Other()
    """,
    )
    with pytest.raises(PurityError, match=answer):
        scored("net.py:make")


CHECKPOINTED = {
    "reentrant": "checkpoint(self.maps, x, use_reentrant=True)",
    "not reentrant": "checkpoint(self.maps, x, use_reentrant=False)",
}


@pytest.mark.parametrize("kind", CHECKPOINTED)
def test_activation_checkpointing_changes_no_count(kind: str, here: Path) -> None:
    write(
        here,
        f"""
        class Saving(Plain):
            def forward(self, x):
                return self.fc({CHECKPOINTED[kind]}.mean((2, 3)))
        def make(): return Saving()
    """,
    )
    before = checkpoint_steps()
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))
    assert checkpoint_steps() == before  # it is back for whoever trains in this process


def checkpoint_steps() -> list[object]:
    import torch.utils.checkpoint as library

    from purity_cli.recomputing import STEPS

    return [vars(library).get(name) for name in STEPS]


def test_a_view_of_the_last_map_is_scored_in_another_memory_format(here: Path) -> None:
    body = """
        class Flat(Plain):
            def forward(self, x):
                x = self.maps(x)
                return x.{how}.sum(1).unsqueeze(1) * self.fc.weight[:, 0] + self.fc(x.mean((2, 3)))
        def make(): return Flat()
    """
    write(here, body.replace("{how}", "view(x.size(0), -1)"))
    write(here, body.replace("{how}", "reshape(x.size(0), -1)"), "other.py")
    said: list[str] = []
    result = scored("net.py:make", said=said)
    reference = scored("other.py:make")
    assert said == []  # nothing that changes how far the numbers can be trusted
    assert result.provenance["memory_format"] == "contiguous_format"
    assert "view size is not compatible" in result.provenance["memory_format_because"]
    assert reference.provenance["memory_format"] == "channels_last"
    for one, other in zip(result.layers, reference.layers, strict=True):
        assert np.abs(one.counts - other.counts).sum() <= 1


@pytest.mark.parametrize("name", ["timm:lambda_resnet26t"])
def test_weights_of_five_axes_run_without_channels_last(name: str) -> None:
    network = validate(load(name, "none"), (256, 256), batch_size=2)
    assert network.memory_format == torch.contiguous_format
    assert "rank 4" in (network.format_note or "")


LAZY = """
    class Lazy(Plain):
        def __init__(self):
            super().__init__()
            self.conv1, self.fc = nn.LazyConv2d(8, 3, padding=1), nn.LazyLinear(5)
        def forward(self, x):
            return self.fc(self.maps(x).flatten(1))
    def make(): return Lazy()
"""


def test_a_lazy_network_takes_its_shapes_from_its_weights_or_from_the_images(here: Path) -> None:
    write(here, LAZY)
    result = scored("net.py:make")  # flattens 6 x 7 x 7: known only once the images are
    assert [layer.channels for layer in result.layers] == [8, 6]
    network = validate(load("net.py:make"), (16, 16), batch_size=5)
    assert network.module.get_parameter("fc.weight").shape == (5, 294)
    state = {key: tensor.contiguous() for key, tensor in network.module.state_dict().items()}
    safetensors.torch.save_file(state, here / "w.safetensors")
    assert same_counts(scored("net.py:make", weights="w.safetensors"), result)
    text = CliRunner().invoke(layers, ["net.py:make", "--format", "csv"])
    assert text.exit_code == 0
    assert "conv1,Conv2d,8," in text.stdout


def test_extra_state_counts_for_the_identity_and_is_loaded(here: Path) -> None:
    write(
        here,
        """
        class Versioned(Plain):
            scale = 1.0
            def get_extra_state(self): return {"scale": self.scale}
            def set_extra_state(self, state):
                if state["scale"] < 0: raise ValueError("a negative scale")
                self.scale = state["scale"]
            def forward(self, x): return super().forward(x) * self.scale
        def make(): return Versioned()
        def negative():
            net = Versioned()
            net.scale = -1.0
            return net
    """,
    )
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))
    torch.save(load("net.py:make").module.state_dict(), here / "w.pth")
    assert same_counts(scored("net.py:make", weights="w.pth"), scored("plain.py:make"))
    jobs = [Job.of(model=f"net.py:{name}", dataset="images", layers=("conv1",)) for name in ("make", "negative")]
    assert len({run.resolve(job).identity["network_sha256"] for job in jobs}) == 2
    torch.save(load("net.py:negative").module.state_dict(), here / "bad.pth")
    with pytest.raises(PurityError, match=r"does not take bad\.pth \(ValueError: a negative scale\)"):
        load("net.py:make", "bad.pth")


DEPENDENT = {
    "no running statistics": (
        "self.bn1 = nn.BatchNorm2d(8, track_running_stats=False)", "return super().forward(x)",
        "depend on the batch",
    ),
    "a functional normalisation": (
        "pass", "return self.fc(F.batch_norm(self.maps(x), None, None, training=True).mean((2, 3)) + x.mean())",
        "depend on the batch",
    ),
    "the batch's mean": ("pass", "y = super().forward(x); return y - y.mean(0)", "depend on the batch"),
    "always training": (
        "pass", "self.bn1.train(); return super().forward(x)",
        "depend on the batch",
    ),
    "functional dropout": (
        "pass", "return self.fc(F.dropout(self.maps(x).mean((2, 3)), 0.5, training=True))",
        "in each pass, whatever the batch",
    ),
    "noise by the place in a batch": (
        "pass",
        "y = super().forward(x); return y + torch.rand(y.shape, generator=torch.Generator().manual_seed(0))",
        "depend on the batch",
    ),
    "the first of a batch": ("pass", "return super().forward(x - x[:1].mean())", "depend on the batch"),
    "the last of a batch": ("pass", "return super().forward(x - x[-1:].mean())", "depend on the batch"),
    "a path that is seldom dropped": (
        "pass", "return self.fc(self.maps(x).mean((2, 3)) * (torch.rand(len(x), 1) > 0.2))",
        "in each pass, whatever the batch",
    ),
    "a batch that is seldom mirrored": (
        "import random; random.seed(0); self.draw = random.random",
        "return super().forward(x.flip(3) if self.draw() < 0.2 else x)",
        "in each pass, whatever the batch",
    ),
    "noise": ("pass", "return super().forward(x + 0.1 * torch.randn_like(x))", "in each pass, whatever the batch"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEPENDENT)
def test_values_that_depend_on_the_batch_or_on_chance_are_refused(kind: str, here: Path) -> None:
    change, forward, answer = DEPENDENT[kind]
    write(
        here,
        f"""
        class Other(Plain):
            def __init__(self):
                super().__init__()
                {change}
            def forward(self, x):
                {forward}
        def make(): return Other()
    """,
    )
    with pytest.raises(PurityError, match=answer):
        scored("net.py:make")


BRANCHES = {
    "the batch's mean": "x = self.maps(x); x = x * 2 if light < 0.4 else x; return self.fc(x.mean((2, 3)))",
    "the brightest of the batch": "y = super().forward(x); return y.flip(1) if x.max() < 0.9 else y",
    "the batch's confidence": "y = super().forward(x); p = y.softmax(1).amax(1); return -y if p.mean() > p[0] else y",
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_branch_that_only_real_images_take_is_refused(kind: str, here: Path) -> None:
    """Noise of the trial lies on one side of it, as 0.95 of these twelve images do alone."""
    for i, value in enumerate((5, 60, 120, 250)):
        Image.new("RGB", (16, 16), (value,) * 3).save(here / "images" / f"{i:02}.png")
    write(
        here,
        f"""
        class Other(Plain):
            def forward(self, x):
                light = x.mean()
                {BRANCHES[kind]}
        def make(): return Other()
    """,
    )
    pixels: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    with pytest.raises(PurityError, match="depend on the batch"):
        scored("net.py:make", **pixels)
    assert scored("net.py:make", batch_size=1, **pixels).n_images == 12


def test_random_numbers_that_change_nothing_are_no_matter(here: Path) -> None:
    write(
        here,
        """
        class Other(Plain):
            def forward(self, x):
                return super().forward(x) + 0 * torch.rand(len(x), 1)
        def make(): return Other()
    """,
    )
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        ("super().forward(x).softmax(1)", "gives probabilities in place of logits.*what goes into the softmax"),
        ("F.log_softmax(super().forward(x), 1)", "gives logarithms of prob.*what goes into the log_softmax"),
        ("{'out': super().forward(x).softmax(1)}", "gives probabilities in place of logits"),
        ("super().forward(x)[:, :1]", r"gives one value, .* return torch.cat\(\[-y, y\], 1\) in place of y"),
    ],
)
def test_what_is_no_logits_is_said(forward: str, says: str, here: Path) -> None:
    write(
        here,
        f"""
        class Other(Plain):
            def forward(self, x):
                return {forward}
        def make(): return Other()
    """,
    )
    said: list[str] = []
    scored("net.py:make", said=said)
    assert re.search(says, " ".join(said))
    said.clear()
    scored("plain.py:make", said=said)
    assert not said


def test_alone_each_image_has_values_of_its_own(here: Path) -> None:
    write(
        here,
        """
        class Other(Plain):
            def __init__(self):
                super().__init__()
                self.bn1 = nn.BatchNorm2d(8, track_running_stats=False)
        def make(): return Other()
    """,
    )
    said: list[str] = []
    assert scored("net.py:make", said=said, batch_size=1).n_images == 12
    assert "with a batch size of 1 each image is taken alone" in said[0]


def test_a_network_for_one_image_at_a_time_is_given_one_at_a_time(here: Path) -> None:
    write(
        here,
        """
        class One(Plain):
            def forward(self, x):
                return self.fc(self.maps(x).mean((2, 3)).view(1, 6))
        class Squeezing(Plain):
            def forward(self, x):
                return self.fc(self.maps(x).mean((2, 3)).reshape(-1)).reshape(1, -1)
        def make(): return One()
        def squeezing(): return Squeezing()
    """,
    )
    reference = scored("plain.py:make", batch_size=1)
    for function in ("make", "squeezing"):
        said: list[str] = []
        result = scored(f"net.py:{function}", said=said)
        assert same_counts(result, reference)
        assert "takes one image at a time" in said[0]
        assert result.provenance["batch_size"] == 1


def test_a_network_that_drops_the_batch_of_one_is_told_so(here: Path) -> None:
    write(
        here,
        """
        class Net(Plain):
            def forward(self, x):
                y = self.maps(x).mean((2, 3)).squeeze()
                return self.fc(y).softmax(1)
        def make(): return Net()
    """,
    )
    with pytest.raises(PurityError, match=r"runs on two images and not on one.*flatten\(1\) in place of squeeze"):
        scored("net.py:make")


@pytest.mark.parametrize(("channels", "named"), [(1, "1 channel,"), (4, "4 channels,"), (12, "12 channels,")])
def test_a_network_for_other_channels_is_told_so(channels: int, named: str, here: Path) -> None:
    write(
        here,
        f"""
        def make():
            net = Plain()
            net.conv1 = nn.Conv2d({channels}, 8, 3, padding=1)
            return net
    """,
    )
    with pytest.raises(PurityError, match=f"takes images of {named}") as caught:
        scored("net.py:make")
    assert "--resize" not in str(caught.value)


def test_a_wrong_size_is_answered_with_one_that_runs(here: Path) -> None:
    write(
        here,
        """
        class Net(Plain):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(6 * 15 * 15, 5)
            def forward(self, x): return self.fc(self.maps(x).flatten(1))
        def make(): return Net()
    """,
    )
    with pytest.raises(PurityError, match=r"image of 16x16 \(RuntimeError.*one of 32x32: give --resize 32 --crop 32"):
        scored("net.py:make")


@pytest.mark.parametrize("how", ["torch.no_grad()", "torch.inference_mode()"])
def test_a_forward_without_gradients_is_refused(how: str, here: Path) -> None:
    write(
        here,
        f"""
        class Net(Plain):
            @{how}
            def forward(self, x): return super().forward(x)
        def make(): return Net()
    """,
    )
    with pytest.raises(PurityError, match=r"have no gradient, because its forward runs under torch\.no_grad"):
        scored("net.py:make")


def test_behind_a_frozen_beginning_layers_can_be_read(here: Path) -> None:
    write(
        here,
        """
        class Net(Plain):
            def forward(self, x):
                with torch.no_grad():
                    x = F.relu(self.bn1(self.conv1(x)))
                return self.fc(F.relu(self.conv2(x)).mean((2, 3)))
        def make(): return Net()
    """,
    )
    assert same_counts(scored("net.py:make", layers="conv2"), scored("plain.py:make", layers="conv2"))
    with pytest.raises(PurityError, match="conv1 does not influence the logits, or not in a way that autograd follows"):
        scored("net.py:make", layers="conv1,conv2")


def test_a_nan_among_the_weights_is_named(here: Path) -> None:
    write(
        here,
        """
        def make():
            net = Plain()
            with torch.no_grad():
                net.conv2.weight[0, 1, 2, 2] = float("nan")
            return net
        def masked():
            net = Plain()
            net.register_buffer("mask", torch.full((2,), float("-inf")))
            return net
    """,
    )
    with pytest.raises(PurityError, match=r"conv2\.weight of make holds a NaN or an infinity in 1 of its 432 values"):
        load("net.py:make")
    assert classes(load("net.py:masked")) == 5
    bad = load("plain.py:make").module.state_dict()
    bad["bn1.running_var"][3] = float("nan")
    torch.save(bad, here / "w.pth")
    with pytest.raises(PurityError, match=r"bn1\.running_var of make holds a NaN.*weights: w\.pth"):
        load("plain.py:make", "w.pth")


PHASES = {
    "as it is imported": (
        "raise KeyError('colour')", "", "",
        r"net\.py cannot be used: as it is imported it fails in line \d+ of net\.py \(KeyError: 'colour'\)",
    ),
    "as it is called": (
        "", "raise OSError('no disk')", "",
        r"net\.py:make\(\), called without arguments, cannot be used: as it is called it fails in line \d+ of net\.py "
        r"\(OSError: no disk\)",
    ),
    "in forward": (
        "", "", "raise ZeroDivisionError('never')",
        r"make does not run on a float32 image of 16x16 \(ZeroDivisionError: never\): --debug",
    ),
    "later": (
        "", "", "if x.mean((1, 2, 3)).min() < 0.1: raise RuntimeError('too dark\\nby far')",
        r"make failed as it ran \(RuntimeError: too dark \.\.\. by far\): --debug",
    ),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
def test_what_a_user_s_code_raises_becomes_one_sentence(
    phase: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    importing, calling, running, answer = PHASES[phase]
    Image.new("RGB", (16, 16), (1, 1, 1)).save(here / "images" / "99.png")
    write(
        here,
        f"""
        {importing}
        class Net(Plain):
            def forward(self, x):
                {running}
                return super().forward(x)
        def make():
            {calling}
            return Net()
    """,
    )
    arguments = ["score", "-m", "net.py:make", "-d", "images", "-l", "conv1", "--resize", "none", "--crop", "none",
                 "--mean", "0,0,0", "--std", "1,1,1", "-o", "out"]  # fmt: skip
    assert purity(arguments) == 1
    text = capfd.readouterr().err
    (line,) = [line for line in text.splitlines() if line.startswith("Error:")]
    assert re.search(answer, line), line
    assert "Traceback" not in text
    assert "--resize" not in line
    with pytest.raises(PurityError) as caught:
        purity([*arguments, "--debug"])
    assert caught.value.__cause__ is not None


# The file itself


def test_a_file_is_run_once_with_no_options_and_its_prints_go_to_stderr(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["purity", "score", "--model", "net.py:make"])
    write(
        here,
        """
        import argparse, sys
        parser = argparse.ArgumentParser()
        parser.add_argument("--width", type=int, default=3)
        options = parser.parse_args()
        print("built with", options.width)
        with open("runs", "a") as file:
            file.write("x")
        def make(): return Plain()
    """,
    )
    scored("net.py:make")
    run.resolve(Job.of(model="net.py:make", dataset="images", layers=("conv1",)))
    assert (here / "runs").read_text() == "x"
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("built with 3")) == ("", 1)
    assert sys.argv[1:] == ["score", "--model", "net.py:make"]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('--data', required=True)\np.parse_args()",
            r"ends the program as it is imported \(exit code 2\): purity passes no command-line options, so give each",
        ),
        ("raise SystemExit(0)", r"ends the program as it is imported \(exit code 0\).*under `if __name__"),
        (
            "import no_such_module",
            "No module named 'no_such_module'.: install no_such_module where purity is installed",
        ),
        ("def broken(:", r"as it is imported it fails in line \d+ of net\.py \(SyntaxError"),
    ],
)
def test_a_file_that_cannot_be_imported_says_why_and_what_to_change(body: str, answer: str, here: Path) -> None:
    (here / "net.py").write_text(f"{body}\ndef make(): pass\n")
    with pytest.raises(PurityError, match=answer) as caught:
        load("net.py:make")
    assert "run first" not in str(caught.value)


def test_neighbours_are_found_whenever_they_are_imported(here: Path) -> None:
    (here / "pooling.py").write_text("from scale import SCALE\ndef pool(x): return x.mean((2, 3)) * SCALE\n")
    (here / "scale.py").write_text("SCALE = 1.0\n")
    (here / "parts").mkdir()
    (here / "parts" / "__init__.py").write_text("")
    (here / "parts" / "head.py").write_text("from . import unused\nimport json\ndef head(net, x): return net.fc(x)\n")
    (here / "parts" / "unused.py").write_text("")
    (here / "stranger.py").write_text("")
    write(
        here,
        """
        class Late(Plain):
            def forward(self, x):
                from pooling import pool
                import importlib
                return importlib.import_module("parts.head").head(self, pool(self.maps(x)))
        def make():
            import parts.head
            return Late()
    """,
    )
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))


CHANGED = {
    "the directory": "import os, tempfile\nos.chdir(tempfile.gettempdir())",
    "gradients": "torch.set_grad_enabled(False)",
    "the default type": "torch.set_default_dtype(torch.float64)",
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_a_file_changes_for_itself_changes_nothing_else(what: str, here: Path) -> None:
    safetensors.torch.save_file(load("plain.py:make").module.state_dict(), "w.safetensors")
    expected = scored("plain.py:make", weights="w.safetensors")
    write(here, f"\n{CHANGED[what]}\nplace = __import__('os').getcwd()\ndef make():\n    import os\n"
                "    assert os.getcwd() == place\n    return Plain()\n")  # fmt: skip
    assert same_counts(scored("net.py:make", weights="w.safetensors"), expected)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert Path.cwd() == here


def test_what_a_network_prints_as_it_runs_is_no_result(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        here,
        """
        class Net(Plain):
            def forward(self, x):
                print("talk")
                return super().forward(x)
        def make(): return Net()
    """,
    )
    scored("net.py:make")
    out, err = capsys.readouterr()
    assert out == ""
    assert "talk" in err


UNFIT = {
    "made by torch.export": (
        "class Net(Plain):\n    def eval(self): raise NotImplementedError('Calling eval() is not supported yet.')\n"
        "def make(): return Net()",
        r"cannot be put into eval mode and float32 \(NotImplementedError: .*before torch\.export",
    ),
    "in a circle": (
        "def make():\n    net = Plain()\n    net.child = nn.Module()\n    net.child.parent = net\n    return net",
        r"cannot be put into eval mode and float32 \(RecursionError",
    ),
    "without values": (
        "def make():\n    with torch.device('meta'):\n        return Plain()",
        r"conv1\.weight of make is on the device meta and has no values",
    ),
    "with an odd configuration": (
        "class Net(Plain):\n    default_cfg = {'input_size': 'x'}\ndef make(): return Net()",
        r"The pretrained_cfg of make is not as timm's are \(TypeError",
    ),
    "with stages that are none": (
        "class Net(Plain):\n    purity_stages = 5\ndef make(): return Net()",
        r"purity_stages of make is a int: give module paths in order",
    ),
    "with statistics that have run away": (
        "def make():\n    net = Plain()\n    net.bn1.running_var.fill_(float('inf'))\n    return net",
        r"bn1\.running_var of make holds a NaN or an infinity in 8 of its 8 values",
    ),
}


@pytest.mark.parametrize("how", UNFIT)
def test_a_network_that_cannot_be_scored_says_why(how: str, here: Path) -> None:
    body, says = UNFIT[how]
    (here / "net.py").write_text(f"{PLAIN}\n\n{body}\n")
    with pytest.raises(PurityError, match=says):
        scored("net.py:make")


def test_a_configuration_that_is_none_is_no_obstacle(here: Path) -> None:
    write(here, "class Net(Plain):\n    default_cfg = True\ndef make(): return Net()")
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))


def test_memory_that_ran_out_is_no_fault_of_the_network(here: Path) -> None:
    write(
        here,
        """
        class Net(Plain):
            def forward(self, x):
                raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        def make(): return Net()
    """,
    )
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        scored("net.py:make")


def test_two_files_of_one_name_with_neighbours_of_one_name_live_side_by_side(here: Path) -> None:
    names = []
    for folder, width in (("first", 3), ("second", 4)):
        (here / folder).mkdir()
        (here / folder / "utils.py").write_text(f"WIDTH = {width}\ndef widen(x): return x * {width}\n")
        (here / folder / "late.py").write_text(f"SCALE = {width}.0\n")
        write(
            here / folder,
            """
            import utils
            class Net(Plain):
                def forward(self, x):
                    from late import SCALE
                    import utils as again
                    assert again is utils
                    return super().forward(x) * SCALE
            def make(): return Net()
        """,
        )
        names.append(f"{folder}/net.py:make")
    networks = [validate(load(name), (16, 16), batch_size=5) for name in names]
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        outputs = [network.module(image) for network in (*networks, *networks)]
    assert torch.allclose(outputs[0] * 4, outputs[1] * 3)
    assert all(torch.equal(outputs[i], outputs[i + 2]) for i in range(2))


def test_a_neighbour_hides_no_installed_library(here: Path) -> None:
    (here / "timm.py").write_text("raise RuntimeError('the wrong timm')\n")
    (here / "safetensors.py").write_text("raise RuntimeError('the wrong safetensors')\n")
    write(here, "def make():\n    import timm\n    return timm.create_model('test_resnet')\n")
    assert classes(load("net.py:make")) == 1000
    assert classes(load("timm:test_resnet", "none")) == 1000


def test_a_file_that_changed_is_run_again_with_its_neighbours(here: Path) -> None:
    (here / "neighbour.py").write_text("WIDTH = 4\n")
    write(
        here,
        """
        from neighbour import WIDTH
        def make():
            net = Plain()
            net.fc = nn.Linear(6, WIDTH)
            return net
    """,
    )
    assert classes(load("net.py:make")) == 4
    (here / "neighbour.py").write_text("WIDTH = 9\n")
    assert classes(load("net.py:make")) == 9


def test_wrong_weights_are_found_before_the_images_are_looked_for(here: Path) -> None:
    torch.save({"a.weight": torch.ones(3)}, here / "w.pth")
    with pytest.raises(PurityError, match=r"w\.pth does not fit plain\.py:make"):
        run.resolve(Job.of(model="plain.py:make", weights="w.pth", dataset="no/such/folder"))


def test_a_module_with_two_names_is_whole_after_every_look_at_it(here: Path) -> None:
    write(
        here,
        """
        class Net(Plain):
            def __init__(self):
                super().__init__()
                self.trunk = nn.Sequential(self.conv1, self.bn1, nn.ReLU(), self.conv2, nn.ReLU())
                self.head = nn.Linear(6, 5)
                self.head.weight, self.head.bias = self.fc.weight, self.fc.bias
            def maps(self, x): return self.trunk(x)
        def make(): return Net()
    """,
    )
    network = load("net.py:make")
    assert not any(tensor.is_meta for tensor in network.module.state_dict().values())
    assert classes(network) == 5
    assert same_counts(scored("net.py:make"), scored("plain.py:make"))
    assert same_counts(scored("net.py:make", layers="trunk.0,trunk.3"), scored("plain.py:make"))
    assert [layer.module for layer in scored("net.py:make", layers="trunk.*").layers] == [
        "conv1", "bn1", "conv2", "trunk.2", "trunk.4"
    ]  # fmt: skip
