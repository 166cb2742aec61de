"""Damage, as disks, networks and editors do it, and worse."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

LINES = (
    b"\xef\xbb\xbf", b"\r", b"\x00", b",,,,", b'"', b"\n\n\n", b"\xff\xfe", b"\xe9", b"1e999", b"-0", b"nan",
)  # fmt: skip


def _flip(data: bytearray, rng: Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _flip_early(data: bytearray, rng: Random) -> bytearray:
    """Most of what a file says about itself stands at its beginning."""
    for _ in range(rng.choice([1, 2, 4])):
        data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
    return data


def _number(data: bytearray, rng: Random) -> bytearray:
    """A length or a size that is as large or as small as can be."""
    start = rng.randrange(min(256, len(data)))
    value = rng.choice([b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 4, b"\x00\x00\xff\xff", b"\xff" * 8, b"\x00" * 8])
    data[start : start + len(value)] = value
    return data


def _cut(data: bytearray, rng: Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _zeros(data: bytearray, rng: Random) -> bytearray:
    """A block that was never written."""
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice([16, 512, 4096]))
    data[start:end] = bytes(end - start)
    return data


def _repeat(data: bytearray, rng: Random) -> bytearray:
    start = rng.randrange(len(data))
    return data[: start + rng.randrange(64)] + data[start:]


def _remove(data: bytearray, rng: Random) -> bytearray:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice([1, 4, 32, 1024])]
    return data


def _insert(data: bytearray, rng: Random) -> bytearray:
    start = rng.randrange(len(data) + 1)
    return data[:start] + rng.choice(LINES) + data[start:]


def _noise(data: bytearray, rng: Random) -> bytearray:
    return bytearray(rng.randbytes(rng.choice([1, 7, 100, len(data)])))


def _nothing(data: bytearray, rng: Random) -> bytearray:
    return bytearray()


def _longer(data: bytearray, rng: Random) -> bytearray:
    return data + rng.randbytes(rng.choice([1, 100]))


WAYS: tuple[Callable[[bytearray, Random], bytearray], ...] = (
    _flip, _flip, _flip_early, _flip_early, _number, _cut, _cut, _zeros, _repeat, _remove, _insert, _noise, _nothing,
    _longer,
)  # fmt: skip


def damaged(data: bytes, rng: Random) -> tuple[str, bytes]:
    """How it was damaged, and what came of it; never the same bytes."""
    changed = bytearray(data)
    way = rng.choice(WAYS)
    for _ in range(8):
        changed = way(bytearray(data), rng)
        if bytes(changed) != data:
            break
    else:
        changed = bytearray(data[:-1])
    return way.__name__.strip("_"), bytes(changed)


ODD = (
    *("", "null", "-1", "0", "1e999", ".nan", "true", "[]", "{}", "[1, [2, {a: b}]]", "'\\0'", "2001-01-01", "&a [*a]"),
    *("!!python/none", "!!binary aGk=", "99999999999999999999", "'" + "x" * 300 + "'", "../../..", "\U0001f600"),
    "~nobody-of-this-name/x",
)
"""Values in place of others."""
