"""The golden values of what ships with this package, by the oracle alone: no taps, no engine, no pixels of purity's.

python -m tests.core.golden.make
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from purity_cli import nets
from tests.core import oracle

ASSETS = Path(nets.__file__).parent / "assets"
GOLDEN = Path(__file__).with_name("resnet10_cifar-cifar10-sample.json")
PER_CLASS = 10
"""Of 100 images, the first by name."""
THRESHOLDS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def main() -> None:
    net = nets.resnet10_cifar().eval()
    weights = (ASSETS / "resnet10_cifar.safetensors").read_bytes()
    net.load_state_dict(safetensors.torch.load(weights))
    with tarfile.open(ASSETS / "cifar10-sample.tar.gz") as tar:
        files = {member.name: file.read() for member in tar if (file := tar.extractfile(member))}
    names = [name for number, name in enumerate(sorted(files)) if number % 100 < PER_CLASS]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB")) for name in names])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    classes = sorted({name.partition("/")[0] for name in names})
    labels = torch.tensor([classes.index(name.partition("/")[0]) for name in names])
    with torch.no_grad():
        top1 = 100 * float((net(images).argmax(1) == labels).float().mean())
    layers = {}
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        counts = oracle.counts(net, images, layer, THRESHOLDS)
        values = [oracle.purity(count) for count in counts]
        layers[layer] = {
            "shape": list(oracle.map_and_gradient(net, images[:1], layer)[0].shape),
            "purity": {str(t): None if np.isnan(f) else round(f, 6) for t, f in zip(THRESHOLDS, values, strict=True)},
            "activations": {str(t): int(count.sum()) for t, count in zip(THRESHOLDS, counts, strict=True)},
        }
    sha256 = hashlib.sha256(weights).hexdigest()
    golden = {"weights_sha256": sha256, "n": len(names), "top1": round(top1, 4), "layers": layers}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
