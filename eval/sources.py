"""Data sets from the catalogues of others: MTEB tasks and ir_datasets.

mteb takes seconds to import, so that every import is inside its function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ragq.errors import InvalidArgumentError, missing_extra
from ragq.eval.datasets import Dataset, read_folder

__all__ = ["ALIASES", "check_task", "from_ir_datasets", "from_mteb", "local_task"]

ALIASES = {"limit": "LIMITRetrieval", "limit-small": "LIMITSmallRetrieval"}


def check_task(name: str) -> Any:
    """Return the mteb task called `name`; raise `InvalidArgumentError` when it is unknown or not text retrieval."""
    try:
        import mteb
        from mteb.abstasks import AbsTaskRetrieval
    except ImportError:
        raise missing_extra("mteb", "eval") from None
    try:
        (task,) = mteb.get_tasks(tasks=[name])
    except (KeyError, ValueError) as error:
        hint = str(error.args[0] if error.args else error).rpartition("Did you mean")[2].strip(" :?'\"")
        nearest = f" Did you mean '{hint}'?" if hint and "not found" not in hint else ""
        raise InvalidArgumentError(
            f"'{name}' is neither a folder nor a task that mteb {mteb.__version__} knows.{nearest}"
        ) from None
    if not isinstance(task, AbsTaskRetrieval) or "text" not in task.metadata.modalities:
        raise InvalidArgumentError(f"The mteb task '{name}' is {task.metadata.type}; ragq evaluates text retrieval.")
    return task


def from_mteb(name: str, split: str = "test") -> list[Dataset]:
    """Load an MTEB retrieval task from the hub or its local cache, one data set for each of its subsets."""
    task = check_task(name)
    if split not in task.eval_splits:
        raise InvalidArgumentError(
            f"The mteb task '{name}' has no split '{split}'. Its splits: {', '.join(task.eval_splits)}."
        )
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(
            f"The data of the mteb task '{name}' cannot be loaded ({type(error).__name__}). "
            f"With a local copy: mteb:{name}=FOLDER."
        ) from error
    subsets = {subset: splits[split] for subset, splits in task.dataset.items() if split in splits}
    return [
        _from_split(name if len(subsets) == 1 else f"{name} ({subset})", data, split)
        for subset, data in subsets.items()
    ]


def _from_split(name: str, data: Any, split: str) -> Dataset:
    """Turn mteb's corpus, queries and relevant_docs into a `Dataset`."""
    corpus, queries = data["corpus"], data["queries"]
    texts = [str(text) for text in queries["text"]]
    if "instruction" in queries.column_names:
        texts = [f"{text} {more}".strip() for text, more in zip(texts, queries["instruction"], strict=True)]
    titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
    return Dataset(
        name=name,
        ids=list(corpus["id"]),
        titles=[title or "" for title in titles],
        texts=list(corpus["text"]),
        query_ids=list(queries["id"]),
        queries=texts,
        qrels={query: dict(judged) for query, judged in data["relevant_docs"].items() if judged},
        split=split,
    )


def from_ir_datasets(name: str) -> Dataset:
    """Load an ir_datasets id such as ``beir/scifact/test``."""
    try:
        import ir_datasets
    except ImportError:
        raise missing_extra("ir_datasets", "eval") from None
    try:
        source = ir_datasets.load(name)
    except KeyError:
        raise InvalidArgumentError(f"ir_datasets {ir_datasets.__version__} knows no data set '{name}'.") from None
    if not source.has_docs() or not source.has_queries():
        raise InvalidArgumentError(f"The ir_datasets id '{name}' has no documents or no queries; try one of its parts.")
    documents, queries = list(source.docs_iter()), list(source.queries_iter())
    qrels: dict[str, dict[str, int]] | None = None
    if source.has_qrels():
        qrels = {}
        for judgement in source.qrels_iter():
            qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = int(judgement.relevance)
    return Dataset(
        name=name,
        ids=[document.doc_id for document in documents],
        titles=[getattr(document, "title", "") or "" for document in documents],
        texts=[getattr(document, "text", None) or document.default_text() for document in documents],
        query_ids=[query.query_id for query in queries],
        queries=[query.default_text() for query in queries],
        qrels=qrels,
    )


def local_task(name: str, folder: str | Path, *, split: str = "test") -> Any:
    """Make an mteb task that reads a folder in BEIR's layout.

    Parameters
    ----------
    name : str
        A task that mteb knows, whose metadata is used (``SciFact``), or a new name.
    folder : path-like
    split : str

    Returns
    -------
    mteb.AbsTaskRetrieval
        For `mteb.evaluate`; loads no data from a hub.
    """
    from datasets import Dataset as Table
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    data = read_folder(Path(folder), split=split, name=name)
    if data.qrels is None:
        raise InvalidArgumentError(f"An mteb task needs judgements. '{folder}' has no qrels.")
    try:
        known = check_task(name)
        metadata = known.metadata.model_copy(update={"eval_splits": [split]})
        k_values = known.k_values
    except InvalidArgumentError:
        k_values = AbsTaskRetrieval.k_values
        metadata = TaskMetadata(
            name=name,
            dataset={"path": str(folder), "revision": data.fingerprint},
            description=f"A local data set: {name}.",
            type="Retrieval",
            category="t2t",
            modalities=["text"],
            eval_splits=[split],
            eval_langs=["und"],
            main_score="ndcg_at_10",
        )

    def load_data(self: Any, *args: Any, **kwargs: Any) -> None:
        corpus = {"id": data.ids, "title": data.titles, "text": data.texts}
        queries = {"id": data.query_ids, "text": data.queries}
        part = RetrievalSplitData(
            corpus=Table.from_dict(corpus), queries=Table.from_dict(queries), relevant_docs=data.qrels, top_ranked=None
        )
        self.dataset = {"default": {split: part}}
        self.data_loaded = True

    members = {"metadata": metadata, "load_data": load_data, "k_values": k_values}
    return type(f"Local{name}", (AbsTaskRetrieval,), members)()
