"""What a reading of a stage is called, by whoever taps it, stores it or shows it."""

from __future__ import annotations

ACTIVATION = "activation"
"""The reading that is meant where nothing is said."""
READINGS = (ACTIVATION, "conv", "block", "pool")
"""What of a stage a tapped module is (SPEC, Readings)."""


def label(reading: str | None, stage: str) -> str:
    """`C3`, `conv:C3`."""
    return stage if reading in (None, ACTIVATION) else f"{reading}:{stage}"


def row_name(module: str, stage: str | None, reading: str | None) -> str:
    """`C3`, `conv:C3`, or the path of a module that is no stage."""
    return module if stage is None else label(reading, stage)
