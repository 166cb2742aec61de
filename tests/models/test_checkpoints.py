"""Weight files as training scripts leave them: which tensors are taken, under which keys, and what is said of it."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from purity_cli.errors import PurityError
from purity_cli.models import Network, load

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.conv2 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.conv2(self.bn1(self.conv1(x))).mean((2, 3)))
"""
StateDict = dict[str, Any]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def drawn(seed: int = 1) -> StateDict:
    """Weights of the network that no initialisation gives."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "conv1.weight": (4, 3, 3, 3), "conv1.bias": (4,),
        "bn1.weight": (4,), "bn1.bias": (4,), "bn1.running_mean": (4,), "bn1.running_var": (4,),
        "conv2.weight": (4, 4, 3, 3), "conv2.bias": (4,), "fc.weight": (5, 4), "fc.bias": (5,),
    }  # fmt: skip
    state: StateDict = {key: torch.rand(shape, generator=generator) + seed for key, shape in shapes.items()}
    return {**state, "bn1.num_batches_tracked": torch.tensor(7)}


def behind(prefix: str, state: StateDict) -> StateDict:
    return {f"{prefix}{key}": value for key, value in state.items()}


def loaded(content: Any, model: str = "net.py:Net") -> Network:
    torch.save(content, "w.pth")
    return load(model, "w.pth")


def holds(network: Network, state: StateDict, prefix: str = "") -> bool:
    own = network.module.state_dict()
    return all(torch.equal(own[prefix + key], value) for key, value in state.items() if "num_batches" not in key)


PREFIXES = [
    "model.", "net.", "backbone.", "module.", "_orig_mod.", "model.module._orig_mod.", "student.encoder.", "m/", "x_",
    "conv1.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_one_prefix_before_all_keys_is_seen_through(prefix: str, here: Path) -> None:
    network = loaded({"state_dict": behind(prefix, drawn()), "epoch": 3})
    assert holds(network, drawn())
    assert network.notes == ()


@pytest.mark.parametrize("wrapper", ["conv2.module.", "conv2._orig_mod."])
def test_a_wrapper_inside_the_network_is_seen_through(wrapper: str, here: Path) -> None:
    state = {key.replace("conv2.", wrapper): value for key, value in drawn().items()}
    assert holds(loaded(state), drawn())
    assert holds(loaded(behind("module.", state)), drawn())


def test_a_network_that_wraps_another_takes_that_one_s_file(here: Path) -> None:
    (here / "outer.py").write_text(NET + dedent("""
        class Outer(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = Net()
            def forward(self, x): return self.inner(x)
    """))  # fmt: skip
    assert holds(loaded(drawn(), "outer.py:Outer"), drawn(), "inner.")
    assert holds(loaded(behind("net.", drawn()), "outer.py:Outer"), drawn(), "inner.")


@pytest.mark.parametrize("beside", ["criterion.weight", "loss.centers"])
def test_what_belongs_to_no_part_of_the_network_is_left_over_and_said(beside: str, here: Path) -> None:
    network = loaded({"state_dict": {**behind("model.", drawn()), beside: torch.ones(5)}})
    assert holds(network, drawn())
    assert network.notes == (f"w.pth also holds {beside}: only what is under model. is taken.",)


@pytest.mark.parametrize("key", ["conv2.extra", "conv3.weight", "bn2.weight"])
def test_more_of_a_part_that_the_network_has_is_another_network(key: str, here: Path) -> None:
    for prefix in ("", "model."):
        with pytest.raises(PurityError, match=f"the network lacks the file's {key}"):
            loaded(behind(prefix, {**drawn(), key: torch.ones(4)}))


def test_a_part_that_is_missing_is_never_left_random(here: Path) -> None:
    for prefix in ("", "backbone."):
        state = drawn()
        del state["fc.weight"], state["fc.bias"]
        with pytest.raises(
            PurityError, match=r"the file lacks the network's fc\.weight, fc\.bias; pass the whole weights"
        ):
            loaded(behind(prefix, {**state, "head.weight": torch.ones(5, 4), "head.bias": torch.ones(5)}))


AVERAGED: dict[str, Any] = {
    "timm's": lambda last, mean: {"state_dict": last, "state_dict_ema": mean},
    "ema": lambda last, mean: {"model": last, "ema": mean},
    "model_ema": lambda last, mean: {"model": last, "model_ema": mean, "optimizer": {"state": {}}},
    "averaged_model": lambda last, mean: {
        "model": last, "averaged_model": {**behind("module.", mean), "n_averaged": torch.tensor(9)}
    },
    "with steps": lambda last, mean: {"net": last, "ema_state_dict": {**mean, "steps": torch.tensor(1000)}},
    "nested": lambda last, mean: {"model": last, "ema": {"decay": 0.99, "updates": 5, "module": mean}},
    "a callback's": lambda last, mean: {"state_dict": last, "callbacks": {"EMA": {"ema_state_dict": mean}}},
    "in one dict": lambda last, mean: {"state_dict": {**behind("model.", last), **behind("ema_model.module.", mean)}},
}  # fmt: skip


@pytest.mark.parametrize("container", AVERAGED)
def test_averaged_weights_are_taken_and_that_is_said(container: str, here: Path) -> None:
    network = loaded({"epoch": 4, **AVERAGED[container](drawn(1), drawn(2))})
    assert holds(network, drawn(2))
    assert re.search("(ema|averaged).* taken", network.notes[0])


@pytest.mark.parametrize(
    "nothing",
    [
        {},
        [torch.ones(3)],
        {"decay": 0.9, "shadow_params": [torch.ones(3)]},
        {"shadow": {"other.weight": torch.ones(3)}},
    ],
)
def test_averaged_weights_that_are_none_give_way_to_the_others(nothing: Any, here: Path) -> None:
    network = loaded({"state_dict": drawn(), "ema": nothing})
    assert holds(network, drawn())
    assert network.weights == "w.pth"
    assert "under state_dict and under ema" in network.notes[0] if nothing else network.notes == ()


def test_of_two_sets_the_first_is_taken_and_the_other_is_named(here: Path) -> None:
    network = loaded({"student": drawn(1), "teacher": drawn(2)})
    assert holds(network, drawn(1))
    assert (network.weights, network.notes) == (
        "w.pth[student]", ("w.pth holds weights under student and under teacher: the former are taken.",)
    )  # fmt: skip
    network = loaded({**behind("student.", drawn(1)), **behind("teacher.", drawn(2))})
    assert holds(network, drawn(1))
    assert "also holds teacher.conv1.weight" in network.notes[0]


def test_what_is_averaged_in_one_dict_is_said_once(here: Path) -> None:
    network = loaded({**behind("model.", drawn(1)), **behind("ema.", drawn(2))})
    assert holds(network, drawn(2))
    assert not any("none that fit" in note for note in network.notes)


def test_weights_beside_those_that_are_taken_are_named(here: Path) -> None:
    network = loaded({"state_dict": drawn(1), "best_state_dict": drawn(2)})
    assert holds(network, drawn(1))
    assert network.notes == ("w.pth holds weights under state_dict and under best_state_dict: the former are taken.",)


def test_values_that_training_scripts_keep_beside_the_weights_do_no_harm(here: Path) -> None:
    content = {
        "state_dict": OrderedDict(drawn()), "best_acc": np.float64(0.9), "epoch": np.int64(3), "seen": torch.ones(3),
        "history": np.arange(3.0), "out": Path("runs"), "scaler": {"scale": torch.tensor(2.0)}, "callbacks": {"a": {}},
    }  # fmt: skip
    assert holds(loaded(content), drawn())


TIED = (
    NET
    + """

class Tied(Net):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 5)
        self.head.weight, self.head.bias = self.fc.weight, self.fc.bias
        self.trunk = nn.Sequential(self.conv1, self.bn1)
"""
)


@pytest.mark.parametrize("kept", ["fc", "head"])
def test_a_shared_tensor_under_one_of_its_names_is_enough(kept: str, here: Path) -> None:
    (here / "tied.py").write_text(TIED)
    state = {key.replace("fc.", f"{kept}."): value for key, value in drawn().items()}
    safetensors.torch.save_file(state, here / "w.safetensors")
    network = load("tied.py:Tied", "w.safetensors")
    assert holds(network, drawn())
    assert torch.equal(network.module.state_dict()["trunk.0.weight"], drawn()["conv1.weight"])
    safetensors.torch.save_model(network.module, str(here / "whole.safetensors"))
    assert holds(load("tied.py:Tied", "whole.safetensors"), drawn())


HOOKED = (
    NET
    + """

class Hooked(Net):
    def __init__(self):
        super().__init__()
        self.register_load_state_dict_pre_hook(rename)

def rename(module, state, *_):
    for key in list(state):
        if key.startswith("old."):
            state[key.removeprefix("old.").replace("fully", "fc")] = state.pop(key)

class Lenient(Net):
    def load_state_dict(self, state, strict=False):
        return super().load_state_dict(state, strict=False)

class Silent(Net):
    def load_state_dict(self, state, strict=False):
        super().load_state_dict({k: v for k, v in state.items() if "fc" not in k}, strict=False)
"""
)


def test_what_fits_is_for_the_network_to_say(here: Path) -> None:
    (here / "hooked.py").write_text(HOOKED)
    old = behind("old.", {key.replace("fc.", "fully."): value for key, value in drawn().items()})
    assert holds(loaded(old, "hooked.py:Hooked"), drawn())
    with pytest.raises(PurityError, match=r"does not fit net\.py:Net"):
        loaded(old)


@pytest.mark.parametrize("kind", ["Lenient", "Silent"])
def test_a_network_that_takes_anything_is_not_left_random(kind: str, here: Path) -> None:
    (here / "hooked.py").write_text(HOOKED)
    with pytest.raises(PurityError, match=r"w\.pth"):
        loaded({"other.weight": torch.ones(3)}, f"hooked.py:{kind}")
    assert holds(loaded(drawn(), "hooked.py:Lenient"), drawn())


def test_a_network_s_own_error_as_it_loads_is_quoted(here: Path) -> None:
    (here / "strict.py").write_text(NET + dedent("""
        class Strict(Net):
            def load_state_dict(self, state, strict=True):
                raise LookupError("no version in it")
    """))  # fmt: skip
    with pytest.raises(PurityError, match=r"does not take w\.pth \(LookupError: no version in it\)"):
        loaded(drawn(), "strict.py:Strict")


def test_half_precision_and_missing_counters_are_no_obstacle(here: Path) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in drawn().items()}
    del state["bn1.num_batches_tracked"]
    expected: dict[str, Tensor] = {key: value.float() for key, value in state.items()}
    assert holds(loaded(behind("net.", state)), expected)


def test_what_a_profiler_left_is_no_weight(here: Path) -> None:
    counted = {f"{part}.total_ops": torch.zeros(1, dtype=torch.float64) for part in ("conv1", "bn1", "fc")}
    network = loaded({**drawn(), **counted, "total_params": torch.zeros(1)})
    assert holds(network, drawn())
    assert network.notes == ()


@pytest.mark.parametrize("kind", [torch.int8, torch.complex64])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_that_are_no_real_numbers_are_refused(kind: torch.dtype, prefix: str, here: Path) -> None:
    """PyTorch would copy quantised ones as if they were the weights themselves."""
    state = {key: value.to(kind) if key == "conv2.weight" else value for key, value in drawn().items()}
    with pytest.raises(
        PurityError, match=f"w.pth holds conv2.weight in {str(kind)[6:]} and net.py:Net computes with floats"
    ):
        loaded(behind(prefix, state))


def test_weights_enter_a_network_of_float32_whatever_it_was_built_in(here: Path) -> None:
    (here / "half.py").write_text(NET + "\n\ndef half(): return Net().bfloat16()\n")
    assert holds(loaded(drawn(), "half.py:half"), drawn())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html>404", r"cannot be read as a file of tensors \(UnpicklingError: Unsupported operand 60\)"),
        (b"PK\x03\x04" + bytes(40) + b"PK\x05\x06" + bytes(18), "w.pth cannot be read as a file of tensors"),
    ],
)
def test_a_file_that_is_none_is_said_in_few_words(content: bytes, says: str, here: Path) -> None:
    (here / "w.pth").write_bytes(content)
    with pytest.raises(PurityError, match=says):
        load("net.py:Net", "w.pth")


def test_a_zip_with_a_damaged_directory_is_damaged(here: Path) -> None:
    torch.save(drawn(), "w.pth")
    content = (here / "w.pth").read_bytes()
    place = content.rindex(b"PK\x01\x02")
    (here / "w.pth").write_bytes(content[:place] + b"PK\x09\x02" + content[place + 4 :])
    with pytest.raises(PurityError, match="w.pth cannot be read as a file of tensors"):
        load("net.py:Net", "w.pth")
