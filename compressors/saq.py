"""SAQ: PCA, more bits for the dimensions that matter, adjusted codes, one corrected length.

Li et al., "SAQ: pushing the limits of vector quantization through code adjustment and dimension segmentation" (SIGMOD
2026), arXiv 2509.12086; what differs from it is named below and was measured to be better per byte.

With ``z = V'(x - mean)``, `V` the eigenvectors of the covariance and `lambda` its eigenvalues:

1. *Segment plan.* A segment is 8 dimensions, a byte of a bit plane. `b` bits leave a share ``D(b)`` of its variance as
   error, and a query ``<q, z>`` weighs dimension `j` by ``m_j = E q_j^2``; the plan minimises ``sum_j m_j lambda_j
   D(b_j)`` under the byte budget. `D` is convex, so giving the next bit to whatever gains most is the optimum that a
   dynamic program would find, with numbers of bits that fall along the PCA order down to 0. The queries given to `fit`
   say what `m` is; without them they are taken to vary like the documents, ``m = lambda``. (Reverse water-filling is
   ``m = 1``; it loses 1.5 points of recall at 192 bytes.)
2. *Levels.* Lloyd-Max for the normal law, times ``sqrt(lambda_j)``. (SAQ has uniform levels: 0.5 points less.)
3. *Coupled last bits.* The last bits of a segment's 8 codes form a word of the extended Hamming code, which takes 4
   bits instead of 8: on an even grid these points are the lattice E8, and here too they save a sixth of the error at
   equal bytes (0.4 points of recall at 192 bytes). ``coded=false`` leaves it out.
4. *Code adjustment.* `rounds` passes over the coordinates: each moves to a neighbouring level if that lowers the error
   of the scores ``sum_j m_j (z_j - g v_j)^2``, with O(1) updates of the sums.
5. *Length correction.* One fp16 factor for the whole row instead of two floats a segment: ``g = sum_j u_j z_j^2 / sum_j
   u_j z_j v_j`` with ``u = sqrt(m)``. A query whose answer is `x` shares more of x's leading coordinates than of
   its tail, and its score, not the score of `x` with itself, is what has to be unbiased. (``u = 1``, the usual
   correction: 6 points less at 24 bytes, 3 at 48, 0.1 at 192.)

``<q, x> ~ <q, mean> + g <V'q, v>``.

Bytes per vector: ``floor(bits dim / 8)``, the factor included: `bits` may be fractional, ``SAQ0.5`` is 24 bytes at 384
dimensions.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ragq.checks import check_bool, check_int
from ragq.compressors import _cpu
from ragq.compressors.base import Codes, Floats, Quantizer
from ragq.compressors.codebooks import cpu_threads
from ragq.compressors.reduction import second_moment
from ragq.compressors.scalar import append_factors, distortion, encode_planes, sphere_levels, stack_tables
from ragq.compressors.scorers import RaggedPlanesScorer, factor
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.layouts import Layout

__all__ = ["SAQ", "plan"]

MAX_BITS = 8  # of a dimension
SEGMENT = 8  # dimensions: a byte of a plane
FLOOR = 1e-6  # of the mean variance: what a constant dimension is taken to vary by
# Error of b-bit levels with coded last bits, relative to the geometric mean of the distortions of b - 1 and b bits: on
# normal variables; more bits are as the last.
CODING = (1.0, 0.90, 0.85, 0.82, 0.80)
WORD_LEVEL = 0.631  # of variance 1: what a sign stands for where the word is all that a segment has


def error_share(bits: int, coded: bool) -> float:
    """Return ``D(b)``: the share of a variance that levels of `bits` bits leave, their last bits `coded` or not."""
    if not coded or not bits:
        return distortion(bits)
    return CODING[min(bits, len(CODING)) - 1] * float(np.sqrt(distortion(bits - 1) * distortion(bits)))


def plan(cost: NDArray[np.float64], total: int, coded: bool = False) -> NDArray[np.uint8]:
    """Give out `total` bytes.

    Parameters
    ----------
    cost : ndarray of float64, shape (dim,)
        What dimension `j` costs without any bit; descending.
    total : int
    coded : bool
        A segment's first bit is a Hamming word, half a byte instead of one.

    Returns
    -------
    ndarray of uint8, shape (dim,)
        Bits of each dimension, not increasing, the same within a segment; they fill exactly `total` bytes.
    """
    segments = [cost[start : start + SEGMENT].sum() for start in range(0, len(cost), SEGMENT)]
    size = [1 if coded and b == 0 else 2 for b in range(MAX_BITS)]  # half bytes of bit b + 1 of a segment
    gain = [(error_share(b, coded) - error_share(b + 1, coded)) / size[b] for b in range(MAX_BITS)]
    bits, left = np.zeros(len(segments), np.uint8), 2 * total
    queue = [(-cost * gain[0], 0, s) for s, cost in enumerate(segments)]
    heapq.heapify(queue)
    while queue and left:
        _, b, s = heapq.heappop(queue)
        if size[b] > left:
            continue
        bits[s], left = b + 1, left - size[b]
        if b + 1 < MAX_BITS:
            heapq.heappush(queue, (-segments[s] * gain[b + 1], b + 1, s))
    return np.sort(np.repeat(bits, SEGMENT)[: len(cost)])[::-1].astype(np.uint8)


class SAQ(Quantizer):
    """Segmented, adjusted scalar quantization.

    Parameters
    ----------
    bits : float
        Bits a dimension on average, the factor of the row included; at most 8.
    rounds : int
        Passes of code adjustment.
    coded : bool
        Couple the last bits of 8 dimensions, see the module; up to 7 bits.
    """

    forms = ("SAQ{bits}",)
    examples = ("SAQ4", "SAQ0.5", "SAQ1.5", "SAQ8", "SAQ2(rounds=0)", "SAQ2(coded=false)")
    menu = ("SAQ0.5", "SAQ1", "SAQ2", "SAQ4")
    state_names = ("mean_", "components_", "bits_", "step_", "along_", "noise_", "levels_")
    state_dtypes = {"bits_": "uint8"}  # noqa: RUF012

    mean_: Floats  # (dim,)
    components_: Floats  # (dim, dim), a row a principal component, the one that gets most bits first
    bits_: NDArray[np.uint8]  # (dim,) of each component, not increasing
    step_: Floats  # (dim,) sqrt(lambda)
    along_: Floats  # (dim,) u, weights of the length correction
    noise_: Floats  # (dim,) m, weights of the error
    levels_: Floats  # (2**(bits_[0] + 1) - 2,), tables of 1, 2, ... bits

    def __init__(self, bits: float, rounds: int = 1, coded: bool = True) -> None:
        if isinstance(bits, bool) or not isinstance(bits, (int, float)) or not 0 < bits <= MAX_BITS:
            raise InvalidArgumentError(f"The 'bits' parameter of SAQ must be a number in 0..{MAX_BITS}. Got {bits!r}.")
        self.bits = bits
        self.rounds = check_int(rounds, "rounds", 0, 20)
        self.coded = check_bool(coded, "coded")

    @property
    def code_size(self) -> int:
        return int(self.bits * self.dim / 8 + 1e-9)

    @property
    def _coded(self) -> bool:
        return self.coded and self.bits <= MAX_BITS - 1  # words leave too little room for more

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(int((self.bits_ > p).sum()) for p in range(int(self._coded), int(self.bits_[0])))

    @property
    def _live(self) -> int:
        """Dimensions with at least one bit."""
        return int((self.bits_ > 0).sum())

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        coded = self._live if self._coded else 0
        return Layout("planes", self._live, len(self._widths), 1, self._widths, coded=coded)

    def _check_dim(self, dim: int) -> None:
        if int(self.bits * dim / 8 + 1e-9) < 3:
            least = np.ceil(24 / dim * 100) / 100
            raise InvalidArgumentError(
                f"{self} leaves no byte for codes beside the factor at {dim} dimensions. Use SAQ{least:g} or more."
            )

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        self.mean_ = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        variances, vectors = np.linalg.eigh(second_moment(x - self.mean_))
        floor = max(FLOOR * variances.mean(), np.finfo(np.float32).tiny)
        variances = np.maximum(variances, floor)
        weights = variances
        if queries is not None:
            seen, shrink = np.square(queries @ vectors).mean(axis=0, dtype=np.float64), self.dim / len(queries)
            seen = seen * variances.sum() / max(seen.sum(), floor)
            weights = (seen + shrink * variances) / (1 + shrink)
        order = np.argsort(-weights * variances, kind="stable")
        variances, weights, vectors = variances[order], weights[order], vectors[:, order]
        signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(self.dim)])  # eigenvectors have no sign
        self.components_ = np.ascontiguousarray((vectors * signs).T, np.float32)
        self.bits_ = plan(weights * variances, self.code_size - 2, self._coded)
        self.step_ = np.sqrt(variances).astype(np.float32)
        self.along_ = np.sqrt(weights / weights.max()).astype(np.float32)
        self.noise_ = (weights / weights.max()).astype(np.float32)
        tables = {b: sphere_levels(b) for b in range(1, int(self.bits_[0]) + 1)}
        if self._coded:
            tables[1] = np.array([-WORD_LEVEL, WORD_LEVEL], np.float32)
        self.levels_ = stack_tables(tables)

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        dim = self.dim
        tables = 2 ** (int(np.ravel(self.bits_)[0]) + 1) - 2
        vectors = dict.fromkeys(("mean_", "bits_", "step_", "along_", "noise_"), (dim,))
        return {**vectors, "components_": (dim, dim), "levels_": (tables,)}

    def _check_state(self, arrays: dict[str, NDArray[Any]]) -> None:
        super()._check_state(arrays)
        bits = self.bits_.astype(int)
        if bits[0] > MAX_BITS or (np.diff(bits) > 0).any() or self.layout.code_size != self.code_size:
            raise CorruptIndexError(f"'bits_' of {self} must fall and fill {self.code_size} bytes. Got {bits}.")
        if (self.step_ <= 0).any():
            raise CorruptIndexError(f"'step_' of {self} must be positive.")

    def _encode(self, x: Floats) -> Codes:
        z = _cpu.project(x - self.mean_, self.components_, threads=cpu_threads())
        body, g = encode_planes(
            z,
            self.bits_,
            self.step_,
            self.levels_,
            along=self.along_,
            noise=self.noise_,
            rounds=self.rounds,
            coded=self._coded,
        )
        return append_factors(body, g)

    def _decode(self, codes: Codes) -> Floats:
        live = self._live
        scorer = self._scorer(np.zeros((0, self.dim), np.float32))
        v = scorer.values(codes[:, :-2]) * self.step_[:live]
        z: Floats = v * factor(codes, -1)[:, None]
        return self.mean_ + z @ self.components_[:live]

    def _scorer(self, queries: Floats) -> RaggedPlanesScorer:
        live = self._live
        folded = (queries @ self.components_[:live].T) * self.step_[:live]
        return RaggedPlanesScorer(
            queries @ self.mean_, folded, self.levels_, self._widths, live * self._coded, factors=1
        )
