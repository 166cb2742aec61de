"""Trackers and callbacks against the real libraries; what is read back by the library's own API equals purity.csv."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from purity_cli import cli, loggers
from purity_cli.errors import PurityError
from purity_cli.monitor import PurityMonitor
from purity_cli.nets import resnet10_cifar

Series = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small result, with a measure beside purity and thresholds at which nothing fires."""
    folder = tmp_path_factory.mktemp("stored") / "result"
    options = ["--limit", "20", "-l", "block:C1,last", "--metrics", "rankme", "--batch-size", "10"]
    assert cli.run(["score", *options, "-o", str(folder)]) == 0
    return folder


def tensorboard(place: Path, run: str) -> Series:
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = module.EventAccumulator(str(place / run)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def mlflow(place: Path, run: str) -> Series:
    client = pytest.importorskip("mlflow").MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("purity")
    (found,) = (one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == run)
    assert found.info.status == "FINISHED"
    names = found.data.metrics
    return {name: {m.step: m.value for m in client.get_metric_history(found.info.run_id, name)} for name in names}


def wandb(place: Path, run: str) -> Series:
    """From the file of an offline run: LevelDB's log format, a protobuf Record in each entry."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    pytest.importorskip("wandb").teardown()  # its own process then has written everything, and lets go of the folder
    found: Series = {}
    for file in place.glob("wandb/offline-run-*/*.wandb"):
        values: Series = {}
        name = ""
        for record in map(pb.Record.FromString, entries(file.read_bytes())):
            name = record.run.display_name or name
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                values.setdefault(key, {})[record.history.step.num] = float(item.value_json.strip('"'))
        if name == run:
            found |= values
    return {name: steps for name, steps in found.items() if not name.startswith("_")}


def entries(data: bytes) -> list[bytes]:
    """The entries of a LevelDB log behind W&B's header of seven bytes; a block has 32 KiB."""
    found, part, at = [], b"", 7
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part, at = part + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or its last part
            found.append(part)
            part = b""
    return found


TRACKERS: dict[str, tuple[str, Callable[[Path], str], Callable[[Path, str], Series]]] = {
    "tensorboard": ("tensorboard", lambda place: f"tensorboard:{place}", tensorboard),
    "wandb": ("wandb", lambda place: "wandb:some-project", wandb),
    "mlflow": ("mlflow", lambda place: f"mlflow:sqlite:///{place}/mlflow.db", mlflow),
}


@pytest.fixture(params=TRACKERS)
def tracker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """(what `--log` takes, a function that reads a run back) of each library that is installed."""
    module, target, read = TRACKERS[request.param]
    pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    return target(tmp_path), lambda run: read(tmp_path, run)


def same(found: float, expected: float) -> bool:
    """Equal in float32, which is what TensorBoard keeps; NaN equals NaN."""
    return found == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_a_tracker_shows_the_values_of_purity_csv(stored: Path, tracker: Any) -> None:
    target, read = tracker
    table = pd.read_csv(stored / "purity.csv")
    for threshold in (0.5, 0.9):
        loggers.log_results([target], f"at {threshold}", {7: stored}, threshold)
        series, rows = read(f"at {threshold}"), table[table["threshold"] == threshold]
        assert len(rows) == 2
        for row in rows.to_dict("records"):
            name = "block:C1" if row["reading"] == "block" else row["stage"]
            for column in ("purity", "activations", "rankme"):
                assert list(series[f"{column}/{name}"]) == [7]
                assert same(series[f"{column}/{name}"][7], row[column]), (name, column)
        assert same(series["top1"][7], table["top1"][0])


def test_epochs_and_bench_log_what_they_store(tracker: Any, tmp_path: Path) -> None:
    target, read = tracker
    command = ["epochs", "--limit", "30", "-l", "last", "--cache", "none", "-o", "training", "--log", target]
    assert cli.run(command) == 0
    Path("suite.yaml").write_text("defaults: {limit: 20, layers: C1}\nmodels: [resnet10_cifar]\nthreshold: 0.4\n")
    assert cli.run(["bench", "suite.yaml", "-o", "suite", "--cache", "none", "--log", target]) == 0
    found = read("training")
    folders = {int(folder.name[5:]): folder for folder in Path("training").glob("epoch[0-9]*") if folder.is_dir()}
    assert len(folders) > 3
    (name,) = (name for name in found if name.startswith("purity/"))
    for epoch, folder in folders.items():
        assert same(found[name][epoch], at(folder, 0.5)["purity"])
    (job,) = (folder for folder in Path("suite").iterdir() if folder.is_dir())
    assert same(read(job.name)["purity/C1"][0], at(job, 0.4)["purity"])


def at(folder: Path, threshold: float) -> Any:
    """The only row of a purity.csv at a threshold."""
    table = pd.read_csv(folder / "purity.csv")
    (row,) = table[table["threshold"] == threshold].to_dict("records")
    return row


def test_a_monitor_is_logged_epoch_by_epoch(tracker: Any) -> None:
    target, read = tracker
    logger, expected = loggers.open_logger(target, "training"), {}
    monitor = PurityMonitor(resnet10_cifar(), ["last"], threshold=0.3)
    for epoch in (1, 2):
        monitor.update(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(epoch)))
        expected[epoch] = monitor.compute()["purity/layer4"]
        logger.log(monitor.compute(), step=epoch)
        monitor.reset()
    logger.close()
    found = read("training")["purity/layer4"]
    assert found.keys() == expected.keys()
    assert all(same(found[epoch], expected[epoch]) for epoch in expected)


@pytest.mark.parametrize(
    ("target", "module", "phrase"),
    [
        ("tensorboard:runs", "tensorboard", "pip install 'purity-cli[tensorboard]'"),
        ("wandb", "wandb", "pip install 'purity-cli[wandb]'"),
        ("mlflow", "mlflow", "pip install 'purity-cli[mlflow]'"),
        ("tensorbord:runs", "", "Did you mean tensorboard"),
    ],
)
def test_what_is_missing_is_one_sentence_with_the_pip_command(
    target: str, module: str, phrase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if module and name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PurityError) as refused:
        loggers.open_logger(target, "run")
    assert phrase in str(refused.value)


def test_the_callback_of_lightning_logs_what_a_monitor_counts(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = resnet10_cifar()

        def training_step(self, batch: Any, _: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, _: int) -> None: ...

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.0)

    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pairs: Any = [(image, 0) for image in images]
    data: Any = torch.utils.data.DataLoader(pairs, batch_size=4)
    module = Module()
    expected = PurityMonitor(module.net, ["C1", "last"])
    expected.update(images)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[loggers.PurityCallback(["C1", "last"], net="net")],
    )  # fmt: skip
    trainer.validate(module, data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert found == pytest.approx(expected.compute(), rel=1e-6, nan_ok=True)
    trainer.fit(module, data, data)
    assert set(trainer.callback_metrics) == {*found}


def test_the_callback_of_hugging_face_logs_what_a_monitor_counts(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3
    )
    model = transformers.ResNetForImageClassification(config)
    images = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    data = [{"pixel_values": image, "labels": 0} for image in images]
    args = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=4, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = transformers.Trainer(model, args, eval_dataset=data)
    layers = ["resnet.encoder.stages.1"]
    trainer.add_callback(loggers.PurityTrainerCallback(trainer, layers, threshold=0.2, most=6))
    trainer.evaluate()
    expected = PurityMonitor(model, layers, threshold=0.2)
    with model.register_forward_hook(lambda module, inputs, output: output.logits):
        expected.update(images[:6])
    (found,) = (entry for entry in trainer.state.log_history if f"eval_purity/{layers[0]}" in entry)
    assert found[f"eval_purity/{layers[0]}"] == pytest.approx(expected.compute()[f"purity/{layers[0]}"], rel=1e-6)
