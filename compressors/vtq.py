"""Variance-balanced tree quantization: VPQ whose neighbouring codewords overlap.

As in `ragq.compressors.vpq`, the embedding is centred, turned to its principal axes, weighted, and the coordinates are
dealt to groups of equal rate. Here the M codes form a chain over ``M - 1`` groups, and group `g` decodes to the sum of
two codewords,

    y^_g = left_g[k_g] + right_g[k_(g+1)],

so that each code speaks for two groups and each coordinate is told by 16 bits that it shares instead of 8 of its own.
The best codes of a chain are found exactly by dynamic programming (Viterbi), 256^2 steps a group.

Embeddings lie in clusters, which principal axes do not tell: the first codes (`clusters`) are those of a residual
quantizer of all coordinates, k-means upon k-means, and the groups are dealt for, and code, what these leave over.

Fit: k-means on pairs of groups, every second code first and the others on what is left, then in turns the best codes
and, with the codes fixed, the codewords by least squares, a linear system of 256 unknowns a group.

Babenko and Lempitsky, "Tree quantization for large-scale similarity search and classification", CVPR 2015, for a tree
that is a chain. The score is still a table entry a code, so that it scans like PQ; fitting and encoding take longer,
and codebooks are twice as large.

Bytes per vector: `size`, 2 of them the factor of VPQ.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_int
from ragq.compressors import _cpu, codebooks
from ragq.compressors.base import Codes, Floats
from ragq.compressors.exact import exact_matmul
from ragq.compressors.vpq import VPQ, WEIGHT_POWER, water_fill
from ragq.errors import InvalidArgumentError

__all__ = ["VTQ"]

ROWS_PER_CODEWORD = 128  # fitting encodes the sample in every turn
FIRST_ITERATIONS = 10  # of k-means, before the turns
CLUSTERS = 2  # codes for the whole vector, by default
BEAM = 5  # choices of clusters kept between their codes
RIDGE = 1.0  # rows that hold a codeword where it was


class VTQ(VPQ):
    """Variance-balanced tree quantization: VPQ with overlapping codewords, better and slower to encode.

    Parameters
    ----------
    size : int
        Bytes of a code: ``size - 2`` bytes of codewords and an fp16 factor.
    bits : int
        8, or 4 for codes that a byte shuffle looks up.
    iterations : int
        Turns of codes and codewords.
    clusters : int
        Codes that come before the chain, each with codewords for the whole vector; fewer where `size` has no room.
    """

    forms = ("VTQ{size}",)
    examples = ("VTQ6(bits=4,iterations=2)", "VTQ6(iterations=1)")
    menu = ("VTQ{8}", "VTQ{12}", "VTQ{16}")

    codebook_: NDArray[np.float16]  # (2 + first, 2**bits, kept): left and right codewords of the groups, then clusters

    _separate = False

    def __init__(self, size: int, bits: int = 8, iterations: int = 5, clusters: int = CLUSTERS) -> None:
        super().__init__(size, bits, iterations)
        if self.m < 2:
            raise InvalidArgumentError(f"VTQ needs two codes, a size of {3 if bits == 4 else 4} bytes. Got {size}.")
        self.clusters = check_int(clusters, "clusters", 0)

    @property
    def first(self) -> int:
        """Codes that name clusters; the chain needs two."""
        return min(self.clusters, self.m - 2)

    @property
    def groups(self) -> int:
        return self.m - self.first - 1

    def _codebook_shape(self, kept: int) -> tuple[int, ...]:
        return 2 + self.first, 2**self.bits, kept

    def _fit_clusters(
        self, rows: Floats, variances: NDArray[np.float64], axes: NDArray[np.float64], rng: np.random.Generator
    ) -> tuple[NDArray[np.float64], Floats]:
        spread, _ = super()._fit_clusters(rows, variances, axes, rng)
        words = np.zeros((self.first, 2**self.bits, len(axes)), np.float32)
        if not self.first:
            return spread, words
        seen = max(1, int((water_fill(spread, self.m * self.bits) > 0).sum()))  # what lies below tells no clusters
        weighted = axes[:seen] * variances[:seen, None] ** WEIGHT_POWER
        y = exact_matmul(codebooks.sample_rows(rows, self._rows, rng) - self.mean_, weighted.astype(np.float32).T)
        left = y
        for code in range(self.first):
            seed = int(rng.integers(2**63))
            found = codebooks.kmeans(left, 2**self.bits, iterations=FIRST_ITERATIONS, seed=seed)
            whole = np.array([0, seen])
            words[code, :, :seen] = codebooks.in_nibble_order(found, whole)
            known = np.ascontiguousarray(words[: code + 1, :, :seen])
            left = y - total(nearest_clusters(y, known), known)
        spread[:seen] = np.maximum(np.square(left, dtype=np.float64).mean(axis=0), spread[-1])
        return spread, words

    @property
    def _rows(self) -> int:
        return ROWS_PER_CODEWORD * int(2**self.bits)

    def _fit_codebook(self, y: Floats, words: Floats, rng: np.random.Generator) -> Floats:
        y = codebooks.sample_rows(y, self._rows, rng)
        y = y - total(nearest_clusters(y, words), words)
        codebook = self._first_codebook(y, rng)
        for _ in range(self.iterations):
            codes = _cpu.encode_chain(y, codebook, self.offsets_, codebooks.cpu_threads())
            for group in range(self.groups):
                columns = slice(*self.offsets_[group : group + 2])
                codebook[:, :, columns] = least_squares(
                    y[:, columns], codes[:, group], codes[:, group + 1], codebook[:, :, columns]
                )
        return np.concatenate([self._in_nibble_order(codebook), words])

    def _spans(self, code: int) -> list[tuple[int, slice]]:
        """Return where codewords of the chain lie: (side, columns), right of the group before, left of its own."""
        groups = [(1, code - 1), (0, code)]
        return [(side, slice(*self.offsets_[g : g + 2])) for side, g in groups if 0 <= g < self.groups]

    def _first_codebook(self, y: Floats, rng: np.random.Generator) -> Floats:
        """Run k-means on what each code spans: the even codes first, then the odd ones on what they leave."""
        codebook = np.zeros((2, 2**self.bits, y.shape[1]), np.float32)
        left = y.copy()
        chain = self.groups + 1
        for code in [*range(0, chain, 2), *range(1, chain, 2)]:
            spans = self._spans(code)
            part = np.concatenate([left[:, columns] for _, columns in spans], axis=1)
            seed = int(rng.integers(2**63))
            words = codebooks.kmeans(part, 2**self.bits, iterations=FIRST_ITERATIONS, seed=seed)
            nearest, _ = _cpu.assign(part, words, codebooks.cpu_threads())
            start = 0
            for side, columns in spans:
                stop = start + columns.stop - columns.start
                codebook[side, :, columns] = words[:, start:stop]
                left[:, columns] -= words[nearest, start:stop]
                start = stop
        return codebook

    def _in_nibble_order(self, codebook: Floats) -> Floats:
        if self.bits == 4:
            return codebook
        ordered = codebook.copy()
        for code in range(self.groups + 1):
            spans = self._spans(code)
            order = codebooks.nibble_order(np.concatenate([codebook[s, :, columns] for s, columns in spans], axis=1))
            for side, columns in spans:
                ordered[side, :, columns] = codebook[side, order, columns]
        return ordered

    def _nearest(self, y: Floats, codebook: Floats) -> Codes:
        sides, words = codebook[:2], codebook[2:]
        first = nearest_clusters(y, words)
        left = np.ascontiguousarray(y - total(first, words))
        chain = _cpu.encode_chain(left, np.ascontiguousarray(sides), self.offsets_, codebooks.cpu_threads())
        return np.concatenate([first, chain], axis=1)

    def _decoded(self, codes: Codes, codebook: Floats) -> Floats:
        sides, words = codebook[:2], codebook[2:]
        first, chain = np.split(codes, [self.first], axis=1)
        left = codebooks.decode(chain[:, :-1], sides[0], self.offsets_)
        return total(first, words) + left + codebooks.decode(chain[:, 1:], sides[1], self.offsets_)

    def _tables(self, queries: Floats, codebook: Floats) -> Floats:
        tables = np.zeros((len(queries), self.m, 2**self.bits), np.float32)
        for code, words in enumerate(codebook[2:]):
            tables[:, code] = queries @ words.T
        chain = tables[:, self.first :]
        chain[:, :-1] += codebooks.tables(queries, codebook[0], self.offsets_)
        chain[:, 1:] += codebooks.tables(queries, codebook[1], self.offsets_)
        return tables


def nearest_clusters(y: Floats, words: Floats) -> Codes:
    """Return the codes (n, clusters) whose codewords, in all columns, add up to nearly each row: residual, by beams."""
    beams = np.empty((len(y), 1, 0), np.uint8)
    y = np.ascontiguousarray(y)
    for code in range(len(words)):
        width = BEAM if code + 1 < len(words) else 1
        known = np.ascontiguousarray(words[: code + 1])
        beams = _cpu.extend_beams(y, known, beams, min(width, beams.shape[1] * words.shape[1]), codebooks.cpu_threads())
    return np.ascontiguousarray(beams[:, 0])


def total(codes: Codes, words: Floats) -> Floats:
    """Add up the codewords (clusters, k, kept) that codes (n, clusters) name."""
    z = np.zeros((len(codes), words.shape[2]), np.float32)
    for column, each in zip(codes.T, words, strict=True):
        z += each[column]
    return z


def least_squares(y: Floats, left: Codes, right: Codes, known: Floats) -> Floats:
    """Return the codewords, left and right, whose sums are nearest to the rows of a group.

    Parameters
    ----------
    y : ndarray of float32, shape (n, width)
    left, right : ndarray of uint8, shape (n,)
        The codes of each row.
    known : ndarray of float32, shape (2, k, width)
        Where codewords stay that few rows use.
    """
    k = known.shape[1]
    pairs = np.bincount(left.astype(np.int64) * k + right, minlength=k * k).reshape(k, k).astype(np.float64)
    used_left, used_right = pairs.sum(axis=1) + RIDGE, pairs.sum(axis=0) + RIDGE
    sums = [np.stack([np.bincount(codes, column, k) for column in y.T], axis=1) for codes in (left, right)]
    wanted_left, wanted_right = (total + RIDGE * words for total, words in zip(sums, known, strict=True))
    # each side alone is diagonal: eliminate the left one
    share = pairs / used_left[:, None]
    words_right = np.linalg.solve(np.diag(used_right) - pairs.T @ share, wanted_right - share.T @ wanted_left)
    words_left = (wanted_left - pairs @ words_right) / used_left[:, None]
    return np.stack([words_left, words_right]).astype(np.float32)
