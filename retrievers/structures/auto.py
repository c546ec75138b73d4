"""`auto`: the scan until it would be slow, then IVF; and the numbers that the choice rests on."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Choice", "choose"]

SCAN_BYTES = 16 << 20  # of codes that every search reads: from here on a scan takes five milliseconds or more
SCAN_BYTES_A_SECOND = 3e9  # of a core: 46 MB of 4-bit codes took 10 to 15 ms a query on an AVX-512 machine


class Choice(NamedTuple):
    """What was chosen: ``ivf`` or ``none`` (the scan), and why."""

    kind: str
    reason: str


def choose(rows: int, code_size: int) -> Choice:
    """Choose a structure for `rows` codes of `code_size` bytes."""
    size = rows * code_size
    milliseconds = size / SCAN_BYTES_A_SECOND * 1e3
    scale = f"a scan reads {size / 1e6:,.1f} MB of codes, about {milliseconds:.1f} ms a query on one core"
    if size <= SCAN_BYTES:
        return Choice("none", f"{scale}: fast enough, and exact")
    return Choice("ivf", f"{scale}: lists let a query skip most of it")
