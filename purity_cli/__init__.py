"""Feature purity of the layers of CNNs. In Python: `score`, `Scores`, `PurityMonitor`, `FeaturePurity`, `Taps`.

These are loaded when they are first asked for: importing this package imports no torch.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

__all__ = ["FeaturePurity", "PurityMonitor", "Scores", "Taps", "__version__", "score"]

_PLACES = {
    "FeaturePurity": "purity_cli.metrics.feature_purity",
    "PurityMonitor": "purity_cli.monitor",
    "Scores": "purity_cli.scores",
    "Taps": "purity_cli.taps",
    "score": "purity_cli.scores",
}
"""What is offered here -> the module it comes from; `__init__.pyi` says the same to type checkers."""


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
