"""Two codes a vector: a coarse one that every search reads, and a finer one that refines its best rows.

``coarse + fine``, as in ``RBQ1+INT8``. A search takes the ``10 k`` best rows by their coarse codes, scores those by
their fine codes and returns the best `k`. The coarse codes lie together, in memory; the fine ones are a column of their
own in the shard, memory-mapped, of which a search touches only the candidates' rows. The two sizes are therefore told
apart: `Refined.coarse_size` is what a scan costs, `Refined.code_size` what the disk holds.

Encoding is both codes of the same embedding, one after the other; decoding reads the fine one, and the law of
compressors holds for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragq.checks import check_embeddings, check_metric
from ragq.compressors.base import Chain, Codes, Compressor, Floats
from ragq.compressors.scorers import LinearScorer, Scorer
from ragq.errors import CorruptIndexError
from ragq.layouts import Block, Layout
from ragq.select import topk

__all__ = ["Refined", "RefinedScorer"]

OVERSAMPLE = 10  # candidates an answer


class Refined(Compressor):
    """A coarse compressor, and a finer one for the candidates that it finds.

    Parameters
    ----------
    coarse, fine : Compressor
    """

    def __init__(self, coarse: Compressor, fine: Compressor) -> None:
        self.coarse = coarse
        self.fine = fine

    @property
    def config(self) -> dict[str, Any]:
        return {"coarse": self.coarse.spec, "fine": self.fine.spec}

    @property
    def spec(self) -> str:
        return f"{self.coarse}+{self.fine}"

    @property
    def state(self) -> dict[str, NDArray[Any]]:
        self._check_fitted()
        return {f"{side}.{name}": array for side, part in self._parts.items() for name, array in part.state.items()}

    def load_state(self, state: dict[str, NDArray[Any]]) -> Self:
        self.dim_ = None
        parts: dict[str, dict[str, NDArray[Any]]] = {side: {} for side in self._parts}
        for key, array in state.items():
            side, _, name = key.partition(".")
            if side not in parts:
                raise CorruptIndexError(f"The state of {self} is 'coarse' and 'fine'. Got an array named '{key}'.")
            parts[side][name] = array
        for side, part in self._parts.items():
            part.load_state(parts[side])
        if self.coarse.dim != self.fine.dim:
            raise CorruptIndexError(f"The parts of {self} differ: {self.coarse.dim} and {self.fine.dim} dimensions.")
        self.dim_ = self.coarse.dim
        return self

    @property
    def state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        parts = [part.stages if isinstance(part, Chain) else [part] for part in self._parts.values()]
        return tuple(name for stages in parts for stage in stages for name in stage.state_names)

    @property
    def _parts(self) -> dict[str, Compressor]:
        return {"coarse": self.coarse, "fine": self.fine}

    @property
    def minimum_rows(self) -> int:  # type: ignore[override]
        return max(part.minimum_rows for part in self._parts.values())

    @property
    def tolerance(self) -> float:  # type: ignore[override]
        return self.fine.tolerance

    @property
    def coarse_size(self) -> int:
        """Bytes a vector that every search reads."""
        return self.coarse.code_size

    @property
    def layout(self) -> Layout:
        self._check_fitted()
        return replace(self.coarse.layout, fine=self.fine.code_size)

    def _check_dim(self, dim: int) -> None:
        self._at(dim)

    def _at(self, dim: int) -> Self:
        sized = type(self)(self.coarse._at(dim), self.fine._at(dim))
        sized.dim_ = dim
        return sized

    def _fit(self, x: Floats, queries: Floats | None, qrels: Any, rng: np.random.Generator) -> None:
        for part in self._parts.values():
            part.fit(x, queries=queries, qrels=qrels, seed=int(rng.integers(2**31)))

    def _encode(self, x: Floats) -> Codes:
        return np.concatenate([self.coarse._encode(x), self.fine._encode(x)], axis=1)

    def _decode(self, codes: Codes) -> Floats:
        return self.fine._decode(np.ascontiguousarray(codes[:, self.coarse_size :]))

    def _scorer(self, queries: Floats) -> LinearScorer:
        return self.fine._scorer(queries)

    def scorer(self, queries: ArrayLike, metric: str = "ip") -> Scorer:
        floats = check_embeddings(queries, self.dim, name="queries")
        return RefinedScorer(self, floats, check_metric(metric))


class RefinedScorer(Scorer):
    """Queries prepared for both codes: `score` reads the fine ones, `topk` the coarse ones first.

    Parameters
    ----------
    compressor : Refined
    queries : ndarray of float32, shape (n_queries, dim)
    metric : str
    """

    oversample = OVERSAMPLE

    def __init__(self, compressor: Refined, queries: Floats, metric: str) -> None:
        self.coarse = compressor.coarse.scorer(queries, metric)
        self.fine = compressor.fine.scorer(queries, metric)
        self._each = [compressor.fine.scorer(query[None], metric) for query in queries]
        self._fine_size = compressor.fine.code_size

    @property
    def n_queries(self) -> int:
        return len(self._each)

    def score(self, codes: Codes) -> Floats:
        return self.fine.score(np.ascontiguousarray(codes[:, codes.shape[1] - self._fine_size :]))

    def topk(self, block: Block, k: int, mask: NDArray[np.uint8] | None = None) -> tuple[Floats, NDArray[np.int64]]:
        _, rows = self.coarse.topk(block.coarse, k * self.oversample, mask)
        return self.refine(block, rows, k)

    def refine(self, block: Block, rows: NDArray[np.int64], k: int) -> tuple[Floats, NDArray[np.int64]]:
        """Score candidates by their fine codes and return the best.

        Parameters
        ----------
        block : Block
        rows : ndarray of int64, shape (n_queries, candidates)
            Row numbers in the block; -1 where there are fewer.
        k : int

        Returns
        -------
        scores, rows : ndarray, shape (n_queries, k)
            As `ragq.select.topk` gives them.
        """
        scores = np.full((self.n_queries, k), -np.inf, np.float32)
        best = np.full((self.n_queries, k), -1, np.int64)
        for query, (scorer, found) in enumerate(zip(self._each, rows, strict=True)):
            candidates = np.sort(found[found >= 0])  # in row order, which settles ties
            scores[query], order = (part[0] for part in topk(scorer.score(block.columns["fine"][candidates]), k))
            best[query, order >= 0] = candidates[order[order >= 0]]
        return scores, best
