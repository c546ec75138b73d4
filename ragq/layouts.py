"""How codes lie on disk and under the kernels, and how rows go in and come out.

A compressor's `encode` yields row codes: `width` bytes of codes, then `factors` fp16 numbers, one row a vector.
A shard holds the same bytes rearranged into columns that a kernel scans in place:

============  ==========================================================================================
kind          columns, each `(rows padded to 64, bytes)`
============  ==========================================================================================
``rows``      ``codes``: the row bytes as they are
``blocks``    ``codes``: 4-bit codes in blocks of 32 rows, see `to_blocks`
``nibbles``   ``high``, ``low``: the two nibbles of 8-bit codes, each in blocks of 32 rows
``planes``    ``plane0``: the most significant bits, four dimensions a nibble, in blocks of 32 rows; ``plane1`` ... :
              the other planes as rows, since a scan visits them only for the rows that can still enter the top k
============  ==========================================================================================

and ``factor0`` ... (fp16) for the per-row floats, ``fine`` for a second code of the row. Padding rows are zero.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.errors import InvalidArgumentError

__all__ = [
    "BLOCK_ROWS",
    "HAMMING_WORDS",
    "ROW_PADDING",
    "Block",
    "Layout",
    "from_blocks",
    "from_planes",
    "from_ragged_planes",
    "to_blocks",
    "to_planes",
]

BLOCK_ROWS = 32
LINE = 64  # bytes
ROW_PADDING = 64  # so that every column is a whole number of 64-byte lines
KINDS = ("rows", "blocks", "nibbles", "planes")

# The extended Hamming code: bit `j` of word `m` is its place `j`, and the first four places spell `m`. Any two words
# differ in four places or more, so codes whose last bits are held to it lie as far apart as points of the lattice E8.
HAMMING_WORDS = np.array(
    [0x00, 0xE1, 0xD2, 0x33, 0xB4, 0x55, 0x66, 0x87, 0x78, 0x99, 0xAA, 0x4B, 0xCC, 0x2D, 0x1E, 0xFF], np.uint8
)


def padded(rows: int) -> int:
    """Return `rows` rounded up to the padding of a shard."""
    return -(-rows // ROW_PADDING) * ROW_PADDING


def empty_lines(*shape: int) -> NDArray[np.uint8]:
    """Return room for bytes from the start of a cache line on, as a mapped shard has it: no vector load needs two."""
    size = int(np.prod(shape))
    room = np.empty(size + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + size].reshape(shape)


def copied(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rows, one behind the other, in `empty_lines`."""
    copy = empty_lines(*rows.shape)
    copy[:] = rows
    return copy


def bytes_to_blocks(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put byte `j` of 32 rows side by side: `(n, width)` to the same shape, `n` a multiple of 32."""
    n, width = rows.shape
    blocks = empty_lines(n // BLOCK_ROWS, width, BLOCK_ROWS)
    blocks[:] = rows.reshape(n // BLOCK_ROWS, BLOCK_ROWS, width).transpose(0, 2, 1)
    return blocks.reshape(n, width)


def bytes_from_blocks(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Undo `bytes_to_blocks`."""
    n, width = blocks.shape
    rows = np.empty((n // BLOCK_ROWS, BLOCK_ROWS, width), np.uint8)
    rows[:] = blocks.reshape(n // BLOCK_ROWS, width, BLOCK_ROWS).transpose(0, 2, 1)
    return rows.reshape(n, width)


def to_blocks(nibbles: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Interleave 4-bit codes for byte shuffles.

    Parameters
    ----------
    nibbles : ndarray of uint8, shape (n, m)
        One code below 16 an element; `n` a multiple of 32.

    Returns
    -------
    ndarray of uint8, shape (n, ceil(m / 2))
        Block `b` holds, for each pair of sub-quantizers `(2j, 2j + 1)`, 32 bytes: byte `r` has code `2j` of row
        `32 b + r` in its low nibble and code `2j + 1` in its high one (0 when `m` is odd).
    """
    n, m = nibbles.shape
    if m % 2:
        nibbles = np.concatenate([nibbles, np.zeros((n, 1), np.uint8)], axis=1)
    return bytes_to_blocks(nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4)))


def from_blocks(blocks: NDArray[np.uint8], m: int) -> NDArray[np.uint8]:
    """Undo `to_blocks`: return the `(n, m)` codes."""
    pairs = bytes_from_blocks(blocks)
    nibbles = np.empty((len(pairs), 2 * pairs.shape[1]), np.uint8)
    nibbles[:, 0::2] = pairs & 15
    nibbles[:, 1::2] = pairs >> 4
    return nibbles[:, :m]


def to_planes(codes: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Cut `bits`-bit codes into bit planes, the row code of the layout ``planes``.

    Parameters
    ----------
    codes : ndarray of uint8 (or uint16 above 8 bits), shape (n, dim)
        One code below ``2**bits`` an element.
    bits : int

    Returns
    -------
    ndarray of uint8, shape (n, bits * ceil(dim / 8))
        Plane by plane, the most significant bit first; bit `j % 8` of byte `j // 8` of a plane is dimension `j`.
    """
    planes = [np.packbits((codes >> b) & 1, axis=1, bitorder="little") for b in reversed(range(bits))]
    return np.concatenate(planes, axis=1)


def from_planes(body: NDArray[np.uint8], dim: int, bits: int) -> NDArray[Any]:
    """Undo `to_planes`: return the `(n, dim)` codes, uint8 (uint16 above 8 bits)."""
    return from_ragged_planes(body, (dim,) * bits)


def from_ragged_planes(body: NDArray[np.uint8], widths: tuple[int, ...], coded: int = 0) -> NDArray[Any]:
    """Return codes of which plane `p` holds a bit for the first ``widths[p]`` dimensions only.

    Parameters
    ----------
    body : ndarray of uint8, shape (n, sum of ceil(width / 8))
        Plane by plane, the most significant bit first.
    widths : tuple of int
        Descending; a dimension has as many bits as there are widths above it.
    coded : int
        Dimensions that have one bit more, the last; at least ``widths[0]``, or 0 for none. Behind the planes, a nibble
        for 8 of them names their word of `HAMMING_WORDS`, two to a byte, the first in the low half.

    Returns
    -------
    ndarray of uint8 (uint16 above 8 bits), shape (n, max(coded, widths[0]))
    """
    count = max(coded, *widths, 0)
    codes = np.zeros((len(body), count), np.uint8 if len(widths) + (coded > 0) <= 8 else np.uint16)
    at = 0
    for width in widths:
        plane = body[:, at : at + -(-width // 8)]
        part = codes[:, :width]
        part[:] = (part << 1) | np.unpackbits(plane, axis=1, count=width, bitorder="little")
        at += plane.shape[1]
    if coded:
        words = body[:, at : at + -(-coded // 16)]
        bits = HAMMING_WORDS[np.stack([words & 15, words >> 4], axis=2)].reshape(len(body), 2 * words.shape[1])
        codes = (codes << 1) | np.unpackbits(bits, axis=1, count=count, bitorder="little")
    return codes


@dataclass(frozen=True)
class Layout:
    """The arrangement of one compressor's codes.

    Parameters
    ----------
    kind : str
        ``rows``, ``blocks``, ``nibbles`` or ``planes``.
    count : int
        Codes a row: bytes for ``rows`` and ``nibbles``, 4-bit codes for ``blocks``, dimensions for ``planes``.
    bits : int
        Bits a code; 8 for ``rows`` and ``nibbles``, 4 for ``blocks``.
    factors : int
        fp16 numbers a row, after the codes.
    widths : tuple of int
        For ``planes`` whose dimensions have different numbers of bits: the dimensions of each plane, descending from
        `count`. Empty when every plane holds all.
    fine : int
        Bytes of a second, finer code of the same row, after the factors. They are stored as the column ``fine``, a row
        after the other: a scan reads the other columns, and of this one only the rows that it returns candidates for.
    coded : int
        For ``planes``: how many dimensions have their last bits behind the planes, in the column ``words``, as Hamming
        words of a nibble for 8 dimensions; see `from_ragged_planes`.
    """

    kind: str
    count: int
    bits: int = 8
    factors: int = 0
    widths: tuple[int, ...] = ()
    fine: int = 0
    coded: int = 0

    def __str__(self) -> str:
        widths = "@" + "/".join(map(str, self.widths)) if self.widths else ""
        widths += f"*{self.coded}" if self.coded else ""
        fine = f"~{self.fine}" if self.fine else ""
        return f"{self.kind}:{self.count}x{self.bits}+{self.factors}{widths}{fine}"

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Read what `str` printed; raise `InvalidArgumentError` on anything else."""
        widths_and_fine = r"(?:@(\d{1,9}(?:/\d{1,9}){0,98}))?(?:\*(\d{1,9}))?(?:~(\d{1,9}))?"
        match = re.fullmatch(r"(\w+):(\d{1,9})x(\d{1,2})\+(\d{1,2})" + widths_and_fine, text)
        if not match or match[1] not in KINDS:
            raise InvalidArgumentError(f"Unknown code layout '{text}'; expected one of {', '.join(KINDS)}.")
        widths = tuple(map(int, match[5].split("/"))) if match[5] else ()
        if widths and (
            match[1] != "planes"
            or len(widths) != int(match[3])
            or sorted((int(match[2]), *widths))[::-1][1:] != [*widths]
        ):
            raise InvalidArgumentError(
                f"Bad code layout '{text}': the widths of its planes must descend from the count."
            )
        layout = cls(
            match[1], int(match[2]), int(match[3]), int(match[4]), widths, int(match[7] or 0), int(match[6] or 0)
        )
        if str(layout) != text:  # leading zeros, or other alphabets' digits
            raise InvalidArgumentError(f"Bad code layout '{text}'; did you mean '{layout}'?")
        return layout

    @property
    def coarse(self) -> Layout:
        """The layout of the first code alone."""
        return replace(self, fine=0)

    @property
    def plane_bytes(self) -> tuple[int, ...]:
        """Bytes a row of each bit plane, for ``planes``."""
        return tuple(-(-width // 8) for width in self.widths or (self.count,) * self.bits)

    @property
    def word_bytes(self) -> int:
        """Bytes a row of the Hamming words, for coded ``planes``."""
        return -(-self.coded // 16)

    @property
    def width(self) -> int:
        """Bytes of codes in a row code, factors apart."""
        if self.kind == "planes":
            return sum(self.plane_bytes) + self.word_bytes
        return -(-self.count * self.bits // 8)

    @property
    def code_size(self) -> int:
        """Bytes of a row code."""
        return self.width + 2 * self.factors + self.fine

    @property
    def columns(self) -> dict[str, int]:
        """Names of the stored columns and their bytes a row."""
        if self.kind == "nibbles":
            codes = dict.fromkeys(("high", "low"), -(-self.count // 2))
        elif self.kind == "planes":
            codes = {f"plane{b}": width for b, width in enumerate(self.plane_bytes)}
            codes |= {"words": self.word_bytes} if self.coded else {}
        else:
            codes = {"codes": self.width}
        factors = {f"factor{i}": 2 for i in range(self.factors)}
        return codes | factors | ({"fine": self.fine} if self.fine else {})

    def _planes(self, body: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        """Return views on the parts of row codes, `(n, width)`, by the names of their columns."""
        names = [name for name in self.columns if name.startswith("plane") or name == "words"]
        ends = np.cumsum([self.columns[name] for name in names])
        return dict(zip(names, np.split(body, ends[:-1], axis=1), strict=True))

    def pack(self, codes: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        """Rearrange row codes `(n, code_size)` into the stored columns, `(n padded to 64, bytes)` each."""
        n, rows = len(codes), padded(len(codes))
        full = np.zeros((rows, self.code_size), np.uint8)
        full[:n] = codes
        body = full[:, : self.width]
        packed: dict[str, NDArray[np.uint8]] = {}
        if self.kind == "rows":
            packed["codes"] = copied(body)
        elif self.kind == "blocks":
            packed["codes"] = bytes_to_blocks(body)
        elif self.kind == "nibbles":
            packed["high"], packed["low"] = to_blocks(body >> np.uint8(4)), to_blocks(body & np.uint8(15))
        else:
            for name, part in self._planes(body).items():
                packed[name] = bytes_to_blocks(part) if name == "plane0" else copied(part)
        for i in range(self.factors):
            at = self.width + 2 * i
            packed[f"factor{i}"] = copied(full[:, at : at + 2])
        if self.fine:
            packed["fine"] = copied(full[:, -self.fine :])
        return packed

    def unpack(self, columns: dict[str, NDArray[np.uint8]], start: int, stop: int) -> NDArray[np.uint8]:
        """Return the row codes `(stop - start, code_size)` of a range of stored rows."""
        first = start // BLOCK_ROWS * BLOCK_ROWS
        last = -(-stop // BLOCK_ROWS) * BLOCK_ROWS
        codes = np.empty((last - first, self.code_size), np.uint8)
        body = codes[:, : self.width]
        part = {name: column[first:last] for name, column in columns.items()}
        if self.kind == "rows":
            body[:] = part["codes"]
        elif self.kind == "blocks":
            body[:] = bytes_from_blocks(part["codes"])
        elif self.kind == "nibbles":
            body[:] = (from_blocks(part["high"], self.width) << 4) | from_blocks(part["low"], self.width)
        else:
            for name, rows in self._planes(body).items():
                rows[:] = bytes_from_blocks(part[name]) if name == "plane0" else part[name]
        for i in range(self.factors):
            at = self.width + 2 * i
            codes[:, at : at + 2] = part[f"factor{i}"]
        if self.fine:
            codes[:, -self.fine :] = part["fine"]
        return codes[start - first : stop - first]


@dataclass(frozen=True)
class Block:
    """Codes of consecutive rows in kernel layout: a view on a shard, usually memory-mapped.

    Attributes
    ----------
    layout : Layout
    columns : dict of str to ndarray of uint8, shape (rows padded to 64, bytes)
        As `Layout.pack` makes them; read-only.
    rows : int
        How many are real; the rest is padding.
    """

    layout: Layout
    columns: dict[str, NDArray[np.uint8]]
    rows: int

    @classmethod
    def from_codes(cls, layout: Layout, codes: NDArray[np.uint8]) -> Block:
        """Pack row codes in memory."""
        return cls(layout, layout.pack(codes), len(codes))

    @property
    def coarse(self) -> Block:
        """The first codes alone, of a layout with finer ones."""
        columns = {name: column for name, column in self.columns.items() if name != "fine"}
        return Block(self.layout.coarse, columns, self.rows)

    def codes(self, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the row codes of rows `start` to `stop`, `(n, code_size)`."""
        return self.layout.unpack(self.columns, start, self.rows if stop is None else stop)
