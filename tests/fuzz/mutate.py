"""Mutations: bytes and JSON values a little, or a lot, beside what was written."""

from __future__ import annotations

import json
import random
import string
from typing import Any

__all__ = ["any_json", "mutated", "mutated_json", "nudged_text"]

NUMBERS = [
    0,
    1,
    2,
    -1,
    7,
    63,
    64,
    127,
    128,
    255,
    256,
    65535,
    1 << 31,
    (1 << 31) - 1,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
]
SCALARS: list[Any] = [None, True, False, "", "a", "../../etc/passwd", "/etc/passwd", "\x00", "é\ud7ff", "$eq", 0, -1, 1,
                      1.5, 1e308, -1e-308, 10**20, [], {}, [[]], {"a": {}}, "x" * 5000]  # fmt: skip


def mutated(rng: random.Random, data: bytes, other: bytes = b"") -> bytes:
    """Return bytes with one to eight changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        size = len(out)
        at = rng.randrange(size) if size else 0
        span = min(size - at, 1 << rng.randrange(0, 9))
        kind = rng.randrange(10)
        if kind <= 2 and size:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 3 and size:
            out[at] = rng.choice((0, 1, 9, 10, 34, 44, 47, 91, 92, 123, 127, 128, 255))
        elif kind == 4:
            width = rng.choice((2, 4, 8))
            number = (rng.choice(NUMBERS) + rng.choice((-1, 0, 0, 1))) % (1 << 8 * width)
            out[at : at + width] = number.to_bytes(width, "little")
        elif kind == 5:
            del out[at : at + span]
        elif kind == 6:
            out[at:at] = rng.randbytes(span or 4)
        elif kind == 7:
            out[at:at] = out[at : at + span]
        elif kind == 8 and other:
            start = rng.randrange(len(other))
            out[at : at + span] = other[start : start + span]
        else:
            del out[rng.randrange(size + 1) :]
    return bytes(out)


def any_json(rng: random.Random, depth: int = 0) -> Any:
    """Return a made-up JSON value."""
    if depth > 4 or rng.random() < 0.5:
        return rng.choice(SCALARS)
    if rng.random() < 0.5:
        return [any_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {nudged_text(rng, rng.choice(("id", "n", "rows", "$and"))): any_json(rng, depth + 1) for _ in range(3)}


def mutated_json(rng: random.Random, value: Any) -> Any:
    """Return a copy of a JSON value in which some places hold something else, are gone, or are there twice."""
    places: list[tuple[Any, Any]] = []
    value = json.loads(json.dumps(value))

    def visit(part: Any) -> None:
        for key in list(part) if isinstance(part, dict) else range(len(part)):
            places.append((part, key))
            if isinstance(part[key], (dict, list)):
                visit(part[key])

    visit(value)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not places:
            return any_json(rng)
        part, key = rng.choice(places)
        kind = rng.randrange(6)
        try:
            old = part[key]
            if kind == 0:
                del part[key]
            elif kind == 1 and isinstance(part, dict):
                part[nudged_text(rng, str(key))] = old
            elif kind == 2 and isinstance(part, list):
                part.append(old)
            elif kind == 3 and isinstance(old, str):
                part[key] = nudged_text(rng, old)
            elif kind == 4 and isinstance(old, int):
                part[key] = rng.choice((old + 1, old - 1, rng.choice(NUMBERS), -old, float(old), str(old)))
            else:
                part[key] = any_json(rng)
        except (KeyError, IndexError):
            continue
    return value


def nudged_text(rng: random.Random, text: str) -> str:
    """Return text with a letter or a part of it changed."""
    at = rng.randrange(len(text) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:at] + rng.choice(string.printable + "é\u2028😀") + text[at:]
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + text[at + 1 :]
    if kind == 3:
        return text[:at] + str(rng.choice(NUMBERS)) + text[at + 1 :]
    if kind == 4:
        return text + text[:at]
    return text[:at] + rng.choice(("../", "//", ",", "(", ")", "=", "x", "-", " ", "\x00", "9" * 20)) + text[at:]
