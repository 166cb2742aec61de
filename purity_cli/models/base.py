"""What every library of networks gives: a `ModelSpec`, and the loaded `Network` that comes of it, frozen and finite."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from purity_cli.errors import PurityError, said
from purity_cli.models.caches import WeightFile
from purity_cli.models.checkpoints import LAZY, Checkpoint
from purity_cli.models.identity import digest_of_parts, replaced
from purity_cli.plan import Preprocessing, Size

# Of ImageNet's photographs, per channel.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Network:
    """A loaded network: in eval mode, frozen, float32, on the CPU. `trial.validate` makes it ready to score."""

    module: nn.Module
    name: str
    """Canonical bare name, e.g. `resnet50`."""
    source: str
    """The name of its library."""
    weights: str
    """What was loaded: `IMAGENET1K_V1`, `tv_in1k`, a file's name, `none`, or what its library calls its own."""
    weights_sha256: str | None
    """SHA-256 of the weight file; None where none was read."""
    preprocessing: Preprocessing
    """What the weights declare."""
    preprocessing_note: str | None
    """A warning where `preprocessing` is a guess or not quite what the weights declare."""
    input_size: Size
    """(h, w) after preprocessing."""
    num_classes: int | None = None
    """The width of its logits, 0 where it gives none; None until `trial.validate` looked."""
    notes: tuple[str, ...] = ()
    """What has to be said of it, one sentence each, apart from `preprocessing_note`."""
    memory_format: torch.memory_format = torch.channels_last
    """In which it runs: channels last, or the contiguous one where it does not bear that."""
    format_note: str | None = None
    """Why it does not bear channels last."""
    without_logits: str | None = None
    """What it gives in place of logits, and the way out; None where it gives those, or nobody looked."""
    largest_batch: int | None = None
    """1 where it takes one image at a time."""
    outputs: str = ""
    """Digest of what it gave in its trial; empty before that."""

    def digest(self) -> str:
        """SHA-256 of what was built: modules and their settings, all tensors, and the outputs of the trial.

        Two networks of one digest give one another's numbers, whatever file or code they came from.
        """
        return hashlib.sha256(f"{digest_of_parts(self.module)} {self.outputs}".encode()).hexdigest()


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a network before it is loaded."""

    preprocessing: Preprocessing
    """What the weights declare."""
    weights_here: bool
    """Whether the weights are on this machine, or none are needed."""
    input_size: Size = (224, 224)
    headless: str | None = None
    """Where it has no classifier: that it has none, and the way to one, in a sentence."""


Builder = Callable[[Checkpoint | None], nn.Module]
"""Gives a network with these tensors, or freshly initialised where None; PurityError where they do not fit."""


@dataclass(frozen=True)
class ModelSpec:
    """How one network is made with one set of weights; making a spec downloads nothing."""

    build: Builder
    preprocessing: Preprocessing
    file: WeightFile | None
    """Where the weights lie; None where the library has none for it."""
    note: str | None = None
    size: Size | None = None
    """(h, w) of the input where `preprocessing` does not say."""
    headless: str | None = None
    """Where it has no classifier: that it has none, and the way to one, in a sentence."""

    @property
    def input_size(self) -> Size:
        crop, resize = self.preprocessing.crop, self.preprocessing.resize
        size = self.size or crop or resize
        return size if isinstance(size, tuple) else (size or 224,) * 2


class ModelLibrary(ABC):
    """Where networks come from. Heavy libraries are imported when asked, not when this package is."""

    name: ClassVar[str]
    about: ClassVar[str]
    """What there is, for `purity models --help`."""
    own_weights: ClassVar[str | None] = None
    """What results call the weights that its networks have as they are built; None where these are random."""
    by_prefix: ClassVar[bool] = False
    """Whether its names are only known behind its own and a colon."""
    under: ClassVar[str | None] = None
    """The library whose prefix may stand before its own."""

    def names(self) -> list[str]:
        """Every network that can be listed: none where names are paths or the like."""
        return []

    def find(self, text: str) -> tuple[str, str | None] | None:
        """The canonical name and the weights named along with it (`resnet50.tv_in1k`); None if it is not here."""
        return (text, None) if text in self.names() else None

    def shown(self, name: str) -> str:
        """What results call a network: its name without where it lies."""
        return name

    def tags(self, name: str) -> list[str]:
        """Names of a network's weights, the default first; empty where it can only be random or read a file."""
        return []

    def tag_of(self, name: str, given: str) -> str | None:
        """The tag that the user means by `given`: its name, or the name of the file it comes in."""
        return given if given in self.tags(name) else None

    @abstractmethod
    def spec(self, name: str, tag: str | None) -> ModelSpec:
        """How to make `name` with the weights `tag`, one of `tags(name)`, or None where there are none."""


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Initialisation from a seed, with the global random state left as it was."""
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would seed every GPU as well, and nothing would set those back.
        torch.default_generator.manual_seed(seed)
        yield


class ShapesOnly(TorchFunctionMode):
    """Has networks built and run on the meta device, without memory for their weights.

    `torch.device("meta")` would do it too, but is several times slower, and some networks compute with a few values as
    they are built (torchvision's RegNets): what comes of `torch.arange`, `torch.tensor` and the like stays here.
    """

    FILLED = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)
    INITIAL = (Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # These take PyTorch milliseconds each on no values at all, and networks have hundreds of them.
        if func in self.INITIAL and args[0].is_meta:
            return args[0]
        if func is F.batch_norm and args[0].is_meta:
            return torch.empty_like(args[0])
        if func in self.FILLED and "generator" not in kwargs:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def output_shape(module: nn.Module, size: Size) -> torch.Size | None:
    """Shape of the output for one image of `size`; None where the network takes no such image or gives no tensor."""
    try:
        shapes = replaced(module, lambda tensor: torch.empty_like(tensor, device="meta"))
        with torch.inference_mode(), ShapesOnly():
            images = torch.empty(1, 3, *size, device="meta")
            # Not tying the weights: of a module with two names PyTorch would put back the first, then the stand-in.
            output = torch.func.functional_call(module, shapes, images, tie_weights=False)
    except Exception:  # anything can go wrong in a user's forward, and on the meta device
        return None
    return output.shape if isinstance(output, Tensor) else None


def is_lazy(module: nn.Module) -> bool:
    """Whether some shapes are open until weights are loaded or the network runs."""
    return any(isinstance(tensor, LAZY) for tensor in (*module.parameters(), *module.buffers()))


def freeze(module: nn.Module, name: str) -> None:
    """Eval mode, float32, and no parameter that asks for a gradient; PurityError where that cannot be had."""
    try:
        module.eval().float()
    except Exception as error:  # a user's own methods, and PyTorch's for what torch.export made
        raise PurityError(
            f"{name} cannot be put into eval mode and float32 ({said(error)}): return a module that can be, "
            "as it was before torch.export."
        ) from error
    for parameter in module.parameters():
        if not isinstance(parameter, LAZY):
            parameter.requires_grad_(False)


def check_finite(module: nn.Module, name: str, weights: str) -> None:
    """PurityError where a weight has no value, is NaN or infinite, or a buffer NaN (one may well hold -inf, as masks
    do)."""
    parameters = dict(module.named_parameters())
    for key, tensor in (*parameters.items(), *module.named_buffers()):
        if tensor.is_meta and not isinstance(tensor, LAZY):
            raise PurityError(f"{key} of {name} is on the device meta and has no values: build the network on the CPU.")
        if isinstance(tensor, LAZY) or not tensor.is_floating_point():
            continue
        # One pass: a sum is NaN or infinite where any value is, and otherwise only where finite ones overflow.
        if tensor.sum(dtype=torch.float64).isfinite():
            continue
        bad = ~tensor.isfinite() if key in parameters or key.endswith(STATISTICS) else tensor.isnan()
        if bad.any():
            raise PurityError(
                f"{key} of {name} holds a NaN or an infinity in {int(bad.sum())} of its {tensor.numel()} values "
                f"(weights: {weights}): no number can come of it; take weights from before the training diverged."
            )
