"""Residual quantization with beam search.

``x^ = mean + c_1[k_1] + ... + c_M[k_M]``: each stage has a codebook in all dimensions for what the stages before left
over. Which codeword is best depends on those that follow, so encoding keeps the `beam` best choices of the first codes
and extends all of them; fitting does the same, each stage's k-means seeing the residuals that all its beams leave.

Chen, Guan and Wang, "Approximate nearest neighbor search by residual vector quantization", Sensors 2010; beam search:
Babenko and Lempitsky, "Additive quantization for extreme vector compression", CVPR 2014.

The inner product is a sum of M table entries, as with PQ. Codebooks are M 2^b dim fp16 numbers: M times those of PQ.

Bytes per vector: M b / 8, and 2 more with ``length`` (see `ragq.compressors.pq`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors import _cpu, codebooks
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.pq import least_squares_factor, with_factor
from ragq.compressors.scorers import LookupScorer, factor
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout

__all__ = ["RQ"]

ROWS_PER_CODEWORD = 64  # all dimensions at every stage, and a residual a beam: k-means takes long


class RQ(Quantizer):
    """Residual quantization: each codebook quantizes what the ones before left over.

    Parameters
    ----------
    m : int
        Stages.
    bits : int
        4 or 8 bits a code.
    length : bool
        Store the least-squares factor of each vector around the mean, 2 bytes.
    beam : int
        Choices kept between stages. More is a little better and as much slower; 1 is the greedy search.
    iterations : int
        Of k-means, at most.
    """

    forms = ("RQ{m}x{bits}",)
    examples = ("RQ4x4", "RQ3x8(length)")
    menu = ("RQ{12}x8", "RQ{16}x8")
    state_names = ("mean_", "codebook_", "scale_")
    state_dtypes = {"codebook_": "float16"}  # noqa: RUF012

    mean_: Floats  # (dim,)
    codebook_: NDArray[np.float16]  # (m, 2**bits, dim), in units of scale_
    scale_: Floats  # (1,)

    def __init__(self, m: int, bits: int = 8, length: bool = False, beam: int = 5, iterations: int = 10) -> None:
        self.m = check_int(m, "m", 1)
        if bits not in (4, 8):
            raise InvalidArgumentError(f"'bits' of RQ must be 4 or 8. Got {bits!r}.")
        self.bits = int(bits)
        self.length = check_bool(length, "length")
        self.beam = check_int(beam, "beam", 1, 16)
        self.iterations = check_int(iterations, "iterations", 1)

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return int(2**self.bits)

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return Layout("nibbles" if self.bits == 8 else "blocks", self.m, self.bits, int(self.length))

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean_": (self.dim,), "codebook_": (self.m, 2**self.bits, self.dim), "scale_": (1,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        if not self.scale_[0] > 0:
            raise CorruptIndexError(f"'scale_' of {self} must be positive. Got {self.scale_[0]}.")

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        k = 2**self.bits
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        z = codebooks.sample_rows(x, ROWS_PER_CODEWORD * k, rng) - self.mean_
        self.scale_ = np.array([np.abs(z).max() or 1.0], np.float32)
        self.codebook_ = np.zeros((self.m, k, self.dim), np.float16)
        beams, residuals = first_beams(len(z)), z
        for stage in range(self.m):
            seed = int(rng.integers(2**63))
            codebook = codebooks.progressive_kmeans(residuals, k, iterations=self.iterations, seed=seed)
            whole = np.array([0, self.dim])
            self.codebook_[stage] = codebooks.in_nibble_order(codebook, whole) / self.scale_
            beams = self._extend(z, beams)
            sums = self._sum(beams.reshape(-1, stage + 1)).reshape(len(z), -1, self.dim)
            residuals = (z[:, None] - sums).reshape(-1, self.dim)

    @property
    def _codewords(self) -> Floats:
        """The codebooks in the embedding's units, `(m, 2**bits, dim)`."""
        return self.codebook_.astype(np.float32) * self.scale_

    def _extend(self, z: Floats, beams: Codes) -> Codes:
        """Add one stage to the `(n, width, stages)` choices of codes."""
        stages = beams.shape[2] + 1
        wider = min(self.beam, beams.shape[1] * 2**self.bits) if stages < self.m else 1
        return _cpu.extend_beams(
            np.ascontiguousarray(z), self._codewords[:stages], beams, wider, codebooks.cpu_threads()
        )

    def _sum(self, codes: Codes) -> Floats:
        """Add up the codewords that `(n, stages)` codes name."""
        codewords, z = self._codewords, np.zeros((len(codes), self.dim), np.float32)
        for stage in range(codes.shape[1]):
            z += codewords[stage, codes[:, stage]]
        return z

    def _encode(self, x: Floats) -> Codes:
        z = x - self.mean_
        beams = first_beams(len(z))
        for _ in range(self.m):
            beams = self._extend(z, beams)
        codes = np.ascontiguousarray(beams[:, 0])
        body = codebooks.pack_codes(codes, self.bits)
        return with_factor(body, least_squares_factor(z, self._sum(codes))) if self.length else body

    def _decode(self, codes: Codes) -> Floats:
        z = self._sum(codebooks.unpack_codes(codes[:, : self.layout.width], self.m, self.bits))
        return codebooks.add_mean(self.mean_, factor(codes, -1)[:, None] * z if self.length else z)

    def _scorer(self, queries: Floats) -> LookupScorer:
        tables = queries @ self._codewords.reshape(-1, self.dim).T
        shape = (len(queries), self.m, 2**self.bits)
        return LookupScorer(queries @ self.mean_, tables.reshape(shape), factors=int(self.length))


def first_beams(n: int) -> Codes:
    """Return the one choice of no codes for `n` rows."""
    return np.empty((n, 1, 0), np.uint8)
