"""What `purity score` without options has scored before, found without the seconds that PyTorch takes to start."""

from __future__ import annotations

import hashlib
import os
from importlib import metadata, resources
from pathlib import Path

import purity_cli
from purity_cli import store
from purity_cli.datasets import open_dataset
from purity_cli.errors import PurityError
from purity_cli.plan import Job
from purity_cli.results import Result

ROUNDING = ("torch", "torchvision", "pillow")
"""What another version of may round otherwise, as may this tool's: no job goes on with it, and no result is kept."""


def scored(job: Job, folder: Path) -> Result | None:
    """The result in `folder` of this very job, where all that decides its numbers came with this package; else None.

    That is: the network, weights and images of `Job()`, and every other setting as it was. The weights, the images and
    the versions are compared by content; `run.score_into` does that for all other jobs, once they are resolved.
    """
    default = Job()
    if (job.model, job.weights, job.dataset) != (default.model, default.weights, default.dataset) or job.data_dir:
        return None
    if not (folder / store.STATES).is_file() or "RANK" in os.environ:
        return None
    known = {"purity": purity_cli.__version__, **{name: metadata.version(name) for name in ROUNDING}}
    weights = resources.files("purity_cli") / "assets" / f"{job.model}.safetensors"
    known["weights_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    try:
        result = store.read(folder)
    except PurityError:  # scored again, and said there
        return None
    if result.job != job or any(result.identity.get(name) != value for name, value in known.items()):
        return None
    images = open_dataset(job.dataset, split=job.split)
    return result if result.identity.get("dataset_fingerprint") == images.fingerprint else None
