"""From the names of classes to their numbers, and from a data set's classes to those of a network.

Nothing here is guessed silently: what was chosen is a sentence, and where nothing can be chosen there are no labels.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from purity_cli.datasets.base import ImageDataset
from purity_cli.files import natural, shown
from purity_cli.imagenet import class_names, wnids

WNID = re.compile(r"n\d{8}")
"""A WordNet id, as ImageNet's class folders are called."""
FEW = 10
"""Images below which an accuracy says nothing."""
COLUMNS = ("label", "labels", "fine_label", "class", "class_id", "cls", "target", "category")
"""What a label is called beside an image, in tables and JSON; the first preferred."""


class ClassOrder(NamedTuple):
    """Names of classes in the order of their numbers 0, 1, ..."""

    names: list[str]
    how: str
    """A clause."""
    note: str | None
    """A sentence, where another order could be meant."""


def in_order(names: Iterable[str], owner: str) -> ClassOrder:
    """By number where all names are whole numbers, else by text, as torchvision's ImageFolder sorts them."""
    by_text = sorted(names, key=os.fsencode)
    by_number = sorted(by_text, key=natural)
    if all(map(_is_number, by_text)):
        note = (
            f"The classes of {owner} are numbers and are taken in the order of these ({_some(by_number)}), not of text "
            f"({_some(by_text)}): a network trained in the order of text, as torchvision's ImageFolder gives it, has "
            "other labels."
        )
        return ClassOrder(by_number, "classes in the order of their numbers", note if by_number != by_text else None)
    alike = len({re.sub(r"\d+", "0", name) for name in by_text}) == 1
    numbers = [name for name in by_text if _is_number(name)]
    note = (
        f"The classes of {owner} are taken in the order of text ({_some(by_text)}), as torchvision's ImageFolder takes "
        f"them, not of the numbers in their names ({_some(by_number)})."
    )
    unclear = by_number != by_text and (alike or numbers != sorted(numbers, key=natural))
    return ClassOrder(by_text, "classes in the order of their names", note if unclear else None)


class Numbered(NamedTuple):
    """Labels as they were stored, numbered."""

    labels: list[int] | None
    names: list[str] | None
    order: str | None
    note: str | None
    """Why there are no labels."""
    said: tuple[str, ...]


def number(stored: Iterable[str | None], owner: str, lacks: str) -> Numbered:
    """Whole numbers from 0 are classes' numbers, as -1 is none; anything else is a class's name, and these are numbered
    in order. `lacks` says what an image without a label has in its place.
    """
    labels = [None if label == "-1" else label for label in stored]
    present = [label for label in labels if label is not None]
    if len(present) < len(labels):
        lacking = len(labels) - len(present)
        return Numbered(None, None, None, f"{lacking:,} of the {len(labels):,} images of {owner} have {lacks}", ())
    if all(map(_is_number, present)):
        return Numbered([int(label) for label in present], None, "classes by the numbers that are stored", None, ())
    order = in_order(set(present), owner)
    place = {name: k for k, name in enumerate(order.names)}
    said = (order.note,) if order.note else ()
    return Numbered([place[label] for label in present], [*map(shown, order.names)], order.how, None, said)


class LabelMatch(NamedTuple):
    """A data set's labels beside a network's classes."""

    source: ImageDataset
    """With labels that are numbers of the network's classes, where `note` is None."""
    note: str | None
    """Why the labels cannot be compared with the network's classes, as a clause."""
    said: tuple[str, ...] = ()
    """What was done so that they can, in sentences."""


def match_labels(  # noqa: PLR0911
    source: ImageDataset, network: str, classes: int | None, known: Sequence[str] | None = None
) -> LabelMatch:
    """A data set's labels as numbers of the `classes` of a network, whose names are `known` or not.

    Where both sides have names, these decide, whatever the order. WordNet ids are ImageNet's classes for any network
    of 1,000. Otherwise the numbers must agree. Classes without an image get in nobody's way.
    """
    if source.labels is None or classes is None:
        why = f"{network} has no classes" if source.labels else source.label_note
        return LabelMatch(source, why or f"{source.name} carries no labels")
    present, names = sorted(set(source.labels)), source.class_names
    if names is None:
        top = max(present, default=-1)
        upto = f"labels of {source.name} go up to {top} and"
        said = (f"The {upto} are taken for numbers of {network}'s {classes} classes.",) if top + 1 < classes else ()
        return LabelMatch(source, f"the {upto} {network} has {classes} classes" if top >= classes else None, said)
    used, empty = [names[k] for k in present], [name for k, name in enumerate(names) if k not in set(present)]
    if classes == 1000 != len(names) and all(map(WNID.fullmatch, used)) and set(used) <= set(wnids()):
        known = class_names()
    numbers = all(map(_is_number, used))
    if known is not None and not (numbers and not all(map(_is_number, known))):
        return _by_name(source, network, known, present)
    if len(names) == classes:
        return LabelMatch(source, None)
    if len(used) == classes:
        note = f"{listed(empty)} in {source.name}, without images, is no class of {network}, which has {classes}."
        return _relabelled(source, dict(zip(present, range(classes), strict=True)), used, note)
    if numbers:
        return _by_number(source, network, classes, dict(zip(present, map(int, used), strict=True)))
    without = f" ({listed(empty)} without any image)" if empty else ""
    return LabelMatch(source, f"{source.name} has {len(names)} classes{without} and {network} {classes}")


def _by_name(source: ImageDataset, network: str, known: Sequence[str], present: Sequence[int]) -> LabelMatch:
    """Classes of the same number that share a name need not be told from others of that name."""
    names = source.class_names or ()
    ours, theirs = [_aliases(name) for name in names], [_aliases(name) for name in known]
    if len(ours) == len(theirs) and all(a & b for a, b in zip(ours, theirs, strict=True)):
        return LabelMatch(source, None)
    places: dict[str, set[int]] = {}
    for k, aliases in enumerate(theirs):
        for alias in aliases:
            places.setdefault(alias, set()).add(k)
    found: dict[int, int] = {}
    for k in present:
        candidates = set().union(*(places.get(alias, ()) for alias in ours[k]))
        if len(candidates) != 1:
            what = "knows no such class" if not candidates else "has several of this name"
            theirs_are = f"its {len(known)} classes are {_some(known)}"
            return LabelMatch(source, f"{source.name} has the class {names[k]!r} and {network} {what}: {theirs_are}")
        found[k] = candidates.pop()
    if len(set(found.values())) < len(found):
        return LabelMatch(source, f"several classes of {source.name} have the name of one of {network}'s")
    order = f"The classes of {source.name} were matched with those of {network} by their names, not by their order."
    part = _part(source, network, len(found), len(known))
    return _relabelled(source, found, known, part if len(found) < len(known) else order)


def _by_number(source: ImageDataset, network: str, classes: int, numbers: dict[int, int]) -> LabelMatch:
    """Numbers of a part of the classes: from 0 where it is there, from 1 where the highest is there."""
    low, high = min(numbers.values()), max(numbers.values())
    start = 0 if low == 0 and high < classes else 1 if low > 0 and high == classes else None
    if start is None or len(set(numbers.values())) < len(numbers):
        unclear = start is None and low > 0 and high < classes
        why = "; whether its numbers begin at 0 or 1 cannot be told" if unclear else ""
        count = len(source.class_names or ())
        return LabelMatch(source, f"{source.name} has {count} classes and {network} {classes}{why}")
    found, texts = {k: number - start for k, number in numbers.items()}, [str(k + start) for k in range(classes)]
    return _relabelled(source, found, texts, _part(source, network, len(found), classes))


def _relabelled(source: ImageDataset, found: dict[int, int], names: Sequence[str], said: str) -> LabelMatch:
    return LabelMatch(source.relabelled([found[label] for label in source.labels or ()], names), None, (said,))


def _part(source: ImageDataset, network: str, part: int, classes: int) -> str:
    return (
        f"{source.name} has {part:,} of {network}'s {classes:,} classes, found by their names: top-1 is that among all "
        f"{classes:,}."
    )


def chance_note(top1: float, n: int, classes: int, order: str | None) -> str | None:
    """A sentence where a top-1 accuracy (in percent, of n images) is no better than chance among `classes`.

    That is: within two standard errors above it. `order` says how the labels came about (`ImageDataset.order`).
    """
    chance = 1 / classes
    if n < FEW or classes < 2 or top1 / 100 > chance + 2 * math.sqrt(chance * (1 - chance) / n):
        return None
    taken = f" ({order})" if order else ""
    return (
        f"Top-1 {top1:.2f} % of {n:,} images is no better than chance ({100 * chance:.3g} %): the labels{taken} may be "
        "in another order than the network's, its pixels be prepared in another way, or its weights not be trained."
    )


def limit_note(source: ImageDataset, selection: Sequence[int], limit: int | None) -> str | None:
    """A sentence where `limit` took images of some classes only."""
    if limit is None or source.labels is None or len(selection) == len(source):
        return None
    taken, there = len({source.labels[i] for i in selection}), len(set(source.labels))
    if taken == there:
        return None
    return (
        f"--limit {limit} takes the first images of {source.name}, and with them {taken:,} of its {there:,} classes: "
        "use --per-class alone to take some of each."
    )


def _aliases(name: str) -> set[str]:
    """What a class may be called: `n01440764 tench, Tinca tinca` by the id, by all its words and by the first."""
    wnid, words = (name[:9], name[10:]) if re.match(r"n\d{8}( |$)", name) else ("", name)
    texts = {wnid, words, words.split(",")[0]}
    return {re.sub(r"[\s_-]+", " ", text).strip().casefold() for text in texts} - {""}


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal()


def _some(names: Sequence[str]) -> str:
    """The first three, and that there are more."""
    return ", ".join([*map(shown, names[:3]), *(["..."] if len(names) > 3 else [])])


def listed(names: Sequence[str]) -> str:
    """`a, b and c`; of many the first five."""
    if len(names) > 5:
        return f"{', '.join(map(shown, names[:5]))} and {len(names) - 5} more"
    return " and ".join(filter(None, [", ".join(map(shown, names[:-1])), *map(shown, names[-1:])]))
