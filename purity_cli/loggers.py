"""Trackers: purity in TensorBoard, Weights & Biases or MLflow, and callbacks for Lightning and Hugging Face's Trainer.

On the command line `--log tensorboard:DIR`, `--log wandb:PROJECT` or `--log mlflow:URI`. In a training loop:

    logger = open_logger("tensorboard:runs", "resnet50")
    for epoch in range(epochs):
        ...
        logger.log(monitor.compute(), step=epoch)
    logger.close()

`PurityCallback` and `PurityTrainerCallback` write to the loggers that the trainer has anyway. Each library is imported
when it is asked for.
"""

from __future__ import annotations

import csv
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from purity_cli.errors import PurityError, did_you_mean
from purity_cli.metrics import columns
from purity_cli.naming import row_name


class Logger(Protocol):
    """One run in a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write values by their names, such as `purity/C3`, at a step, such as an epoch."""

    def close(self) -> None:
        """Write everything out, and end the run."""


class TensorBoard:
    """A folder of event files, `runs` where none is named; each run is a folder inside it."""

    needs = "torch.utils.tensorboard"

    def __init__(self, library: Any, place: str, run: str) -> None:
        self._writer = library.SummaryWriter(str(Path(place or "runs", run)))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of a W&B project; WANDB_PROJECT, else `purity`, where none is named.

    Nothing leaves this machine unless WANDB_MODE=online asks for it: `wandb sync` sends a run later.
    """

    needs = "wandb"

    def __init__(self, library: Any, place: str, run: str) -> None:
        project, mode = place or os.environ.get("WANDB_PROJECT", "purity"), os.environ.get("WANDB_MODE", "offline")
        self._run = library.init(project=project, name=run, mode=mode, reinit="create_new")

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run at a tracking URI, such as sqlite:///mlflow.db; MLflow's own default where none is named.

    Its experiment is MLFLOW_EXPERIMENT_NAME, else `purity`.
    """

    needs = "mlflow.tracking"

    def __init__(self, library: Any, place: str, run: str) -> None:
        self._client = library.MlflowClient(place or None)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "purity")
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=run).info.run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


LOGGERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
"""What `--log` takes before the colon -> the writer, which is given what stands behind it and the run's name."""


def check(target: str) -> tuple[Any, Any, str]:
    """The writer, library and place of `tensorboard:runs`; PurityError where there is no such tracker or library."""
    name, _, place = target.partition(":")
    if name not in LOGGERS:
        raise PurityError(f"There is no tracker {name!r}: take {', '.join(LOGGERS)}.{did_you_mean(name, LOGGERS)}")
    return LOGGERS[name], _library(LOGGERS[name].needs, f"The tracker {name}", f"'purity-cli[{name}]'"), place


def open_logger(target: str, run: str) -> Logger:
    """Begin a run in a tracker, e.g. in `tensorboard:runs`; PurityErrors are those of `check`."""
    writer, library, place = check(target)
    opened: Logger = writer(library, place, run)
    return opened


def log_results(targets: Sequence[str], run: str, results: Mapping[int, Path], threshold: float) -> None:
    """Write stored results into one run of each tracker: the folders of `results` by their step."""
    for target in targets:
        logger = open_logger(target, run)
        for step, folder in results.items():
            logger.log(stored_values(folder, threshold), step)
        logger.close()


def stored_values(folder: Path, threshold: float) -> dict[str, float]:
    """The values of a result's purity.csv at a threshold: `purity/C3`, `rankme/C3`, `top1`, ..., NaN included."""
    values: dict[str, float] = {}
    with (folder / "purity.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["threshold"] and abs(float(row["threshold"]) - threshold) > 1e-9:
                continue
            layer = row_name(row["layer"], row["stage"] or None, row["reading"] or None)
            names = {f"{column}/{layer}": column for column in ("purity", "purity_rate", "activations", *columns())}
            names |= {"top1": "top1", "top5": "top5"}
            values |= {name: float(row[column]) for name, column in names.items() if row.get(column)}
    return values


def images_of(batch: Any) -> Any:
    """The images of a batch: a dict's `pixel_values`, a list's or tuple's first part, or the batch itself."""
    if isinstance(batch, Mapping):
        return batch["pixel_values"]
    return batch[0] if isinstance(batch, Sequence) else batch


@functools.cache
def _lightning_callback() -> type:
    packages = ("lightning.pytorch", "pytorch_lightning")
    used = next((name for name in packages if name in sys.modules), packages[0])
    base = _library(used, "PurityCallback", "lightning").Callback
    from purity_cli.monitor import PurityMonitor

    class PurityCallback(base):  # type: ignore[misc, valid-type]
        """Logs F of layers of a LightningModule after each validation, as `purity/<module>`.

        `layers` and `threshold` are those of PurityMonitor. `net` is the attribute that holds the network; without it
        the LightningModule is tapped itself. `images` takes the images out of a batch.
        """

        def __init__(
            self, layers: Any = ("last",), *, threshold: float = 0.5, net: str = "", images: Any = images_of
        ) -> None:
            self.layers, self.threshold, self.net, self.images = layers, threshold, net, images
            self.monitor: Any = None

        def on_validation_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
        ) -> None:
            if trainer.sanity_checking:
                return
            if self.monitor is None:
                self.monitor = PurityMonitor(pl_module.get_submodule(self.net), self.layers, threshold=self.threshold)
            self.monitor.update(self.images(batch))

        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if self.monitor is not None and not trainer.sanity_checking:
                pl_module.log_dict(self.monitor.compute())
                self.monitor.reset()

    return PurityCallback


@functools.cache
def _trainer_callback() -> type:
    base = _library("transformers", "PurityTrainerCallback", "transformers").TrainerCallback
    from purity_cli.monitor import PurityMonitor

    class PurityTrainerCallback(base):  # type: ignore[misc, valid-type]
        """Logs F of layers of a Hugging Face model after each evaluation, as `eval_purity/<module>`.

        Add it by `trainer.add_callback(PurityTrainerCallback(trainer))`. `layers` and `threshold` are those of
        PurityMonitor; the first `most` images of the evaluation set are read once more. `images` takes the images out
        of a batch.
        """

        def __init__(
            self, trainer: Any, layers: Any = ("last",), *, threshold: float = 0.5, most: int = 1000,
            images: Any = images_of,
        ) -> None:  # fmt: skip
            self.trainer, self.layers, self.threshold, self.most, self.images = trainer, layers, threshold, most, images

        def on_evaluate(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            model, done = given["model"], 0
            monitor = PurityMonitor(model, self.layers, threshold=self.threshold)
            with model.register_forward_hook(lambda module, inputs, output: getattr(output, "logits", output)):
                for batch in given["eval_dataloader"]:
                    images = self.images(batch)[: self.most - done]
                    monitor.update(images.to(args.device))
                    done += len(images)
                    if done >= self.most:
                        break
            self.trainer.log({f"eval_{name}": value for name, value in monitor.compute().items()})

    return PurityTrainerCallback


_CALLBACKS = {"PurityCallback": _lightning_callback, "PurityTrainerCallback": _trainer_callback}


def __getattr__(name: str) -> Any:
    if name in _CALLBACKS:
        return _CALLBACKS[name]()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _library(module: str, wanted_by: str, package: str) -> Any:
    """A library that is no requirement of this package; PurityError names the pip command where it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise PurityError(f"{wanted_by} needs a library that is missing: pip install {package}.") from error
