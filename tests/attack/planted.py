"""Faults to be planted, each of another kind: the attack is worth what it finds of them."""

from __future__ import annotations

PLANTED: dict[str, object] = {}
