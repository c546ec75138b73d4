"""`ragq.build`: from a source to an index in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragq.pipelines.build import SAMPLE, Recipe, build_index
from ragq.pipelines.engines import make_engine
from ragq.pipelines.fitting import SHARD_ROWS
from ragq.pipelines.index import Index
from ragq.pipelines.progress import Progress, silent

__all__ = ["DEFAULT_CODEC", "DEFAULT_TOKEN_CODEC", "build"]

DEFAULT_CODEC = "FP8"
DEFAULT_TOKEN_CODEC = "POOL32,FP8"


def build(
    source: Any = None,
    out: str | Path = "corpus.ragq",
    *,
    model: Any = None,
    codec: str | None = None,
    budget: int | None = None,
    embeddings: Any = None,
    ids: Any = None,
    metric: str = "cosine",
    chunk_tokens: int | None = None,
    chunk_overlap: int | None = None,
    sample: int = SAMPLE,
    shard_rows: int = SHARD_ROWS,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = True,
    lock_timeout: float = 0.0,
    strict: bool = False,
    progress: Progress = silent,
    engine: str = "local",
    address: str | None = None,
    workers: int | None = None,
    multi_vector: bool = False,
    first_stage: str | None = None,
    **model_options: Any,
) -> Index:
    """Build an index; an old one at `out` is replaced, and stays readable until the new one is whole.

    Parameters
    ----------
    source : str, Path or iterable, optional
        A folder of files, a JSONL, CSV, TSV, Parquet or Arrow file, a BEIR folder, or an iterable of str, dict,
        `Document` or LangChain documents; see `ragq.pipelines.readers.read`. Not needed with `embeddings` and `ids`.
    out : str or Path
        The index folder, or ``s3://bucket/path`` or ``gs://bucket/path``.
    model : str, Path, SentenceTransformer, callable, Embeddings or Embedder, optional
        What embeds; by default all-MiniLM-L6-v2. With `embeddings`, the model that made them: queries need it.
    codec : str, optional
        Compressor spec, ``FP8`` by default; ``ragq codecs`` lists them. Or the folder of a codec that ``ragq train``
        made. Of a multi-vector index, what becomes of the tokens of a passage: ``POOL32,PQ32x8``, by default
        ``POOL32,FP8``.
    budget : int, optional
        Code bytes a vector; chooses the codec instead of `codec`.
    embeddings : str, Path or ndarray, optional
        Ready embeddings, one a document: a ``.npy`` file, ``file.parquet:column``, or an array of shape (n, dim).
    ids : str, Path or sequence of str, optional
        The ids of `embeddings`, when there is no source.
    metric : {'cosine', 'ip', 'l2'}
        ``cosine`` scales embeddings and queries to unit length.
    chunk_tokens, chunk_overlap : int, optional
        Tokens a passage and tokens that neighbours share; by default what the model reads. 0 keeps documents whole.
    sample : int
        Most embeddings that the compressor is fitted on.
    shard_rows : int
        Passages a shard.
    seed : int
        Of the sample and the fit.
    resume : bool
        Go on after the last finished shard of an interrupted run with the same arguments.
    overwrite : bool
        Replace an index that is there already; False refuses to.
    lock_timeout : float
        Seconds to wait for another writer before `IndexLockedError`.
    strict : bool
        Fail on a file that cannot be read, where else it is skipped and counted.
    progress : callable
        ``progress(stage, done, total)``.
    engine : {'local', 'ray'}
        Where the work is done: in this process, or by the workers of a Ray cluster (extra ``ray``), which write the
        same index. They must all reach the source and `out`.
    address : str, optional
        Of the Ray cluster; without one, and without ``RAY_ADDRESS``, Ray is started on this machine.
    workers : int, optional
        Ray actors; by default one a GPU, or one a processor when there is none.
    multi_vector : bool
        Index all token embeddings of a passage and score by MaxSim: a late-interaction model, the token embeddings of
        any other one, or ready ones as `embeddings` (see `ragq.pipelines.readers.tokens.open_tokens`).
    first_stage : str, optional
        What finds the candidates for MaxSim in a multi-vector index: ``MUVERA(20,4,8),PQ256x8``. Without one, every
        passage is scored.
    **model_options
        ``device``, ``backend``, ``batch_size``, ``truncate_dim``, ``prompts`` …, see `ragq.embedders.load_embedder`.

    Returns
    -------
    Index
        Opened for writing; ``index.report`` says what the build did.

    Raises
    ------
    InvalidArgumentError
        A wrong argument, an empty source, embeddings that are not finite or do not fit, too few for the codec.
    IndexLockedError, StorageError
        Another writer has the index; the disk is full or read-only.

    Examples
    --------
    >>> index = ragq.build("corpus/", "corpus.ragq", codec="PCA128,FP8")  # doctest: +SKIP
    """
    default = DEFAULT_TOKEN_CODEC if multi_vector else DEFAULT_CODEC
    spec = codec or ("" if budget is not None else default)
    if codec and budget is not None:
        from ragq.errors import InvalidArgumentError

        raise InvalidArgumentError(f"Give either 'codec' or 'budget'. Got codec {codec!r} and budget {budget!r}.")
    chunking = (chunk_tokens, chunk_overlap)
    recipe = Recipe(spec, budget, metric, *chunking, sample, shard_rows, seed, multi_vector, first_stage)
    report, embedder = build_index(
        source,
        out,
        recipe,
        model=model,
        embeddings=embeddings,
        ids=ids,
        resume=resume,
        overwrite=overwrite,
        lock_timeout=lock_timeout,
        strict=strict,
        progress=progress,
        model_options=model_options,
        engine=make_engine(engine, address=address, workers=workers),
    )
    index = Index(out, mode="w", model=embedder, lock_timeout=lock_timeout, **({} if embedder else model_options))
    index.report = report
    return index
