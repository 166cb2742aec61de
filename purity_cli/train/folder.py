"""The folder of one training: its checkpoints, and the one file from which it goes on after it was interrupted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor

from purity_cli import store
from purity_cli.errors import PurityError, no_memory

if TYPE_CHECKING:
    from purity_cli.train.loop import Loop

RESUME = "resume.pt"


class Folder:
    """`<model>_epoch010.safetensors` and `.json` for every checkpoint, and `resume.pt`, each written atomically.

    `recipe` is what decides the path of the weights. PurityError where the folder holds a training by another one.
    """

    def __init__(self, path: Path, model: str, recipe: Mapping[str, Any]) -> None:
        self.path, self.model = path, model
        self.recipe = json.loads(json.dumps(recipe))
        for file in sorted(path.glob("*_epoch*.json")):
            try:
                other = json.loads(file.read_text("utf-8"))["recipe"]
            except (ValueError, KeyError, TypeError, OSError):
                raise PurityError(f"{file} is not of a training: give another --output, or remove it.") from None
            self._compare(other)

    def weights(self, epoch: int) -> Path:
        """Where the checkpoint of this epoch is or will be."""
        return self.path / f"{self.model}_epoch{epoch:03}.safetensors"

    def write_checkpoint(self, epoch: int, weights: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Write the weights, and beside them a JSON of `record`, their SHA-256 and the recipe."""
        # Copies: safetensors takes no tensors that share memory, as tied weights do, or that lie channels last.
        plain = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in weights.items()
        }
        content = safetensors.torch.save(plain, {"format": "pt"})
        path = self.weights(epoch)
        store.write_bytes(path, content)
        sha256 = hashlib.sha256(content).hexdigest()
        about = {"model": self.model, "epoch": epoch, **record, "weights_sha256": sha256, "recipe": self.recipe}
        store.write_text(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")

    def write_resume(self, epoch: int, state: Mapping[str, Any]) -> None:
        """Replace what the training goes on from; `state` holds tensors and plain containers."""
        buffer = io.BytesIO()
        torch.save({"epoch": epoch, "recipe": json.dumps(self.recipe), "state": state}, buffer)
        store.write_bytes(self.path / RESUME, buffer.getvalue())

    def resume(self, loop: Loop, kept: Sequence[int], device: torch.device) -> int:
        """Bring `loop` to the end of the last epoch that was finished here, whose number is returned; 0 for none.

        PurityError where one of the `kept` epochs up to there left no checkpoint.
        """
        path = self.path / RESUME
        if not path.exists():
            return 0
        try:
            content = torch.load(path, map_location=device, weights_only=True)
            done, recipe, state = int(content["epoch"]), json.loads(content["recipe"]), content["state"]
        except Exception as error:  # a damaged pickle can raise anything
            if no_memory(error) or isinstance(error, OSError):
                raise
            raise PurityError(f"{path} is damaged: remove it to train from the beginning.") from None
        self._compare(recipe)
        for epoch in kept:
            if epoch <= done and not self.weights(epoch).exists():
                raise PurityError(
                    f"{self.path} is at epoch {done} and holds no checkpoint of epoch {epoch}: leave that out of "
                    f"--checkpoints, or remove {path} to train from the beginning."
                )
        try:
            loop.load(state)
        except (RuntimeError, KeyError, ValueError):
            raise PurityError(f"{path} is of another network: give another --output, or remove it.") from None
        return done

    def _compare(self, other: Mapping[str, Any]) -> None:
        key = next((key for key in {**self.recipe, **other} if self.recipe.get(key) != other.get(key)), None)
        if key is not None:
            raise PurityError(
                f"{self.path} holds a training by another recipe ({key} {other.get(key)}, not {self.recipe.get(key)}): "
                "give another --output, or remove that folder."
            )
