"""The trainable halves of the learned codecs, in torch: a codec's parameters out, and back in.

A student scores a batch of queries over a pool of documents as the codec will, differentiably, and writes what it has
learned into the codec (rounded as the codec stores it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from ragq.compressors import Compressor, codebooks
from ragq.compressors.exact import exact_matmul
from ragq.compressors.learned.base import LearnedPQ
from ragq.compressors.learned.bpr import BPR
from ragq.compressors.scorers import factor
from ragq.compressors.vtq import VTQ
from ragq.pipelines.training.health import reseed, rotation_trick, sinkhorn
from ragq.pipelines.training.settings import Settings

__all__ = ["BinaryStudent", "CodebookStudent", "Student", "make_student"]

Floats = NDArray[np.float32]
Codes = NDArray[np.uint8]


class Student(nn.Module, ABC):
    """A codec in training.

    Attributes
    ----------
    moves_documents : bool
        Whether codes change with the parameters, so that the documents must be encoded again.
    """

    moves_documents: bool

    @abstractmethod
    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups with their learning rates."""

    @abstractmethod
    def score(self, queries: Tensor, documents: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        """Score a pool.

        Parameters
        ----------
        queries : Tensor (B, dim)
        documents : Tensor (P, dim)
            Embeddings of the pool.
        codes : ndarray of uint8, shape (P, code_size)
            Their row codes in the current index.

        Returns
        -------
        scores : Tensor (B, P)
        reconstruction : Tensor ()
            What the method adds to its loss for the error of the codes, unweighted; 0 where it has none.
        """

    @abstractmethod
    def write(self, codec: Any) -> None:
        """Put the parameters into a codec of the same spec."""

    def after_epoch(self, codes: Codes, sample: Floats, rng: np.random.Generator) -> int:
        """Care for the codebook, given the codes of all documents and a sample of them; return what was re-seeded."""
        return 0


def parameter(x: NDArray[Any]) -> nn.Parameter:
    """Return a trainable copy of an array."""
    return nn.Parameter(torch.tensor(np.asarray(x, np.float32)))


class CodebookStudent(Student):
    """A `LearnedPQ` in training: query mean, query map and codewords; with `reassign`, also what makes the codes.

    With ``settings.simvq`` the codewords are a frozen codebook times a trained block-diagonal matrix (Zhu et al.,
    "Addressing representation collapse in vector quantized models with one linear layer", 2024): a step moves all
    codewords of a sub-quantizer at once, so that none is left behind.
    """

    def __init__(self, codec: LearnedPQ, settings: Settings) -> None:
        super().__init__()
        side = codec.documents
        self.settings, self.layout = settings, codec.layout
        self.offsets, self.m, self.bits = side.offsets_, side.m, side.bits
        self.moves_documents = settings.reassign
        groups = [slice(start, stop) for start, stop in pairwise(side.offsets_.tolist())]
        # by layer of the codebook: the columns, in order, and which code names their codewords
        self.layers = [list(enumerate(groups))]
        if isinstance(side, VTQ):
            left = list(enumerate(groups, side.first))
            clusters = [[(code, slice(None))] for code in range(side.first)]
            self.layers = [left, [(code + 1, columns) for code, columns in left], *clusters]
        self.query_mean, self.query_map = parameter(codec.query_mean_), parameter(codec.query_map_)
        first = codec.query_codebook_.reshape(-1, 2**self.bits, len(side.basis_))
        self.codewords = parameter(first)
        if settings.simvq:
            self.codewords.requires_grad_(False)
            self.blend = parameter(np.eye(len(side.basis_)))
            group = np.repeat(np.arange(side.groups), np.diff(side.offsets_))
            self.register_buffer("blocks", torch.tensor(group[:, None] == group))
        self.register_buffer("document_mean", torch.tensor(side.mean_))
        weights = side._weights[:, None]
        self.register_buffer("weights", torch.tensor(weights))
        self.document_map = parameter(side.basis_.astype(np.float32) * weights)

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        words = self.blend if settings.simvq else self.codewords
        size = self.codewords.detach().abs().mean().item()
        found = [
            {"params": [words], "lr": settings.codebook_rate * (1.0 if settings.simvq else size)},
            {"params": [self.query_map], "lr": settings.map_rate * self.query_map.detach().abs().mean().item()},
            {"params": [self.query_mean], "lr": settings.map_rate * self.query_mean.detach().abs().mean().item()},
        ]
        if self.moves_documents:
            typical = self.document_map.detach().abs().mean().item()
            found.append({"params": [self.document_map], "lr": settings.document_rate * typical})
        return found

    def codebook(self) -> Tensor:
        """Return the codewords, (layers, K, kept)."""
        return self.codewords @ (self.blend * self.blocks) if self.settings.simvq else self.codewords

    def gathered(self, book: Tensor, numbers: Codes) -> Tensor:
        """Return the codewords that codes (P, M) name, side by side: (P, kept)."""
        named = torch.from_numpy(numbers.T.astype(np.int64)).to(book.device)
        layers = [
            torch.cat([functional.embedding(named[code], words[:, columns]) for code, columns in layer], dim=1)
            for words, layer in zip(book, self.layers, strict=True)
        ]
        return torch.stack(layers).sum(dim=0)

    def score(self, queries: Tensor, documents: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        book = self.codebook()
        f = torch.from_numpy(factor(codes, -1)).to(book.device)
        loss = torch.zeros((), device=book.device)
        if self.moves_documents:
            y = (documents - self.document_mean) @ self.document_map.T
            z = self.gathered(book, self.assign(y, book[0]))
            loss = ((y - z) ** 2).sum(dim=1).mean()
            z = rotation_trick(y, z, self.offsets.tolist()) if self.settings.rotation_trick else z + (y - y.detach())
        else:
            body = codebooks.unpack_codes(codes[:, : self.layout.width], self.m, self.bits)
            z = self.gathered(book, body)
        products = (queries @ self.query_map.T) @ (z * f[:, None]).T
        return products + (queries @ self.query_mean)[:, None], loss

    def assign(self, y: Tensor, book: Tensor) -> Codes:
        """Return the codes (P, M) of coordinates: the nearest codewords, or evenly used ones with ``sinkhorn``."""
        rows, words = y.detach().cpu().numpy(), np.ascontiguousarray(book.detach().cpu().numpy())
        if not self.settings.sinkhorn:
            return codebooks.encode(np.ascontiguousarray(rows), words, self.offsets)
        codes = np.empty((len(rows), self.m), np.uint8)
        for m in range(self.m):
            part, of = rows[:, self.offsets[m] : self.offsets[m + 1]], words[:, self.offsets[m] : self.offsets[m + 1]]
            squares = (part**2).sum(1)[:, None] - 2 * part @ of.T + (of**2).sum(1)
            codes[:, m] = sinkhorn(squares, self.settings.epsilon, self.settings.sinkhorn)
        return codes

    @torch.no_grad()
    def write(self, codec: LearnedPQ) -> None:
        book = self.codebook().cpu().numpy()
        shaped = book.reshape(codec.query_codebook_.shape)
        codec.set_query_side(self.query_mean.cpu().numpy(), self.query_map.cpu().numpy(), shaped)
        if self.moves_documents:
            codec.documents.codebook_ = codec.query_codebook_.copy()
            codec.documents.basis_ = (self.document_map / self.weights).cpu().numpy().astype(np.float16)

    @torch.no_grad()
    def after_epoch(self, codes: Codes, sample: Floats, rng: np.random.Generator) -> int:
        if not self.moves_documents or self.settings.simvq:
            return 0
        y = exact_matmul(sample - self.document_mean.cpu().numpy(), self.document_map.cpu().numpy().T)
        book = self.codewords[0].cpu().numpy().copy()
        body = codebooks.unpack_codes(codes[:, : self.layout.width], self.m, self.bits)
        moved = reseed(book, body, y, self.offsets, rng)
        if moved:
            self.codewords[0] = torch.from_numpy(book)
        return moved


class BinaryStudent(Student):
    """A `BPR` in training: ``tanh(beta z)`` for the signs, with ``beta = sqrt(1 + step / 10)``."""

    def __init__(self, codec: BPR, settings: Settings) -> None:
        super().__init__()
        self.moves_documents, self.length = True, codec.length
        self.query_mean, self.query_map = parameter(codec.query_mean_), parameter(codec.query_map_)
        self.hash_map = parameter(codec.hash_map_)
        self.register_buffer("document_mean", torch.tensor(codec.mean_))
        self.register_buffer("steps", torch.zeros(()))

    def groups(self, settings: Settings) -> list[dict[str, Any]]:
        rates = [(self.query_map, settings.map_rate), (self.query_mean, settings.map_rate)]
        rates.append((self.hash_map, settings.document_rate))
        return [{"params": [p], "lr": rate * p.detach().abs().mean().item()} for p, rate in rates]

    def score(self, queries: Tensor, documents: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
        z = (documents - self.document_mean) @ self.hash_map.T
        size = z.detach().abs().mean(dim=1, keepdim=True)
        beta = torch.sqrt(1 + 0.1 * self.steps)
        bits = torch.tanh(beta * z / size.mean())
        self.steps += 1
        if self.length:
            bits = bits * size
        return (queries @ self.query_map.T) @ bits.T + (queries @ self.query_mean)[:, None], z.sum() * 0

    @torch.no_grad()
    def write(self, codec: BPR) -> None:
        codec.hash_map_ = self.hash_map.cpu().numpy().astype(np.float16)
        codec.set_query_side(self.query_mean.cpu().numpy(), self.query_map.cpu().numpy())


def make_student(codec: Compressor, settings: Settings) -> Student:
    """Return the student of a fitted codec."""
    if isinstance(codec, BPR):
        return BinaryStudent(codec, settings)
    assert isinstance(codec, LearnedPQ)
    return CodebookStudent(codec, settings)
