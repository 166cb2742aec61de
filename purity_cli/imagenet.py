"""The 1,000 classes of ImageNet (ILSVRC2012), in the order in which networks give their logits."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def class_names() -> tuple[str, ...]:
    """`n01440764 tench`, ...: the id makes the two cranes and the two maillots differ."""
    return tuple((resources.files("purity_cli") / "assets" / "imagenet_classes.txt").read_text("utf-8").splitlines())


@cache
def wnids() -> tuple[str, ...]:
    """The WordNet ids of the classes, which are sorted."""
    return tuple(name.partition(" ")[0] for name in class_names())
