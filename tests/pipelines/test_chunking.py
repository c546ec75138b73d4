"""Laws of chunking: exact substrings, nothing lost, nothing too long, short documents untouched."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.embedders import CallableEmbedder, load_embedder
from ragq.errors import InvalidArgumentError
from ragq.pipelines.chunking import Splitter
from ragq.types import Document, Passage

SENTENCES = [
    f"Sentence number {i} tells of bees, and of what they do in the {i}th week of the year." for i in range(60)
]
PROSE = " ".join(SENTENCES)
ODD = {
    "one word": "x" * 20_000,
    "Chinese": "蜜蜂在春天飞行。" * 200,
    "newlines": "\n" * 500 + "a b " * 900,
    "spaces": " " * 20_000 + "end",
    "base64": "aGVsbG8gd29ybGQ+" * 800,
    "emoji": "🐝" * 700,
    "CRLF": "a line\r\n" * 400,
    "one line a paragraph": "\n\n".join(SENTENCES),
}


@pytest.fixture(scope="module")
def model():
    return load_embedder()


def tokens(model, passage: Passage) -> int:
    return len(model.tokenizer(passage.embedded_text, verbose=False)["input_ids"])


def check_cover(document: Document, passages: list[Passage]) -> None:
    """Passages are substrings in order that cover the text without a gap."""
    end = 0
    for number, passage in enumerate(passages):
        assert passage.id == f"{document.id}#{number}"
        assert passage.text == document.text[passage.start : passage.start + len(passage.text)]
        assert passage.start <= end < passage.start + len(passage.text)
        end = passage.start + len(passage.text)
    assert end == len(document.text)


def test_a_document_that_fits_is_one_passage(model):
    document = Document("d", " ".join(SENTENCES[:10]), "Bees", {"a": 1}, "x.txt")
    assert Splitter(model).split(document) == [Passage("d", 0, document.text, "Bees", {"a": 1}, "x.txt", 0)]


def test_a_document_fits_up_to_the_last_token_of_the_model(model):
    splitter = Splitter(model)
    assert len(splitter.split(Document("d", "bee " * 254))) == 1
    assert len(splitter.split(Document("d", "bee " * 255))) == 2
    assert len(splitter.split(Document("d", "bee " * 253, title="bee"))) == 1
    assert len(splitter.split(Document("d", "bee " * 253, title="bee hive"))) == 2


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("size", [None, 64])
def test_passages_cover_any_text_and_are_never_cut_off(model, name, size):
    document = Document("d", ODD[name], title="A title")
    passages = Splitter(model, size).split(document)
    check_cover(document, passages)
    assert max(tokens(model, passage) for passage in passages) <= (size or 256)
    assert max(sum(map(len, passage.text.split())) for passage in passages) <= 32 * 257


@settings(max_examples=25, deadline=None)
@given(st.text(st.sampled_from("ab \n.,é漢"), max_size=400), st.integers(16, 60), st.integers(0, 5))
def test_any_text_is_covered(text, size, overlap):
    document = Document("d", text)
    passages = Splitter(CallableEmbedder(lambda texts: [[0.0]] * len(texts)), size, overlap).split(document)
    if text:
        check_cover(document, passages)
    assert all(passage.document_id == "d" for passage in passages)


def test_neighbours_share_whole_words_up_to_the_overlap(model):
    passages = Splitter(model, 128, 24).split(Document("d", PROSE))
    assert len(passages) > 3
    for before, after in pairwise(passages):
        shared = PROSE[after.start : before.start + len(before.text)]
        assert 0 < len(model.tokenizer.tokenize(shared)) <= 24
        assert PROSE[after.start - 1].isspace()
    apart = Splitter(model, 128, 0).split(Document("d", PROSE))
    assert "".join(passage.text for passage in apart) == PROSE


def test_passages_are_nearly_full(model):
    passages = Splitter(model, 128, 0).split(Document("d", PROSE))
    assert all(tokens(model, passage) > 96 for passage in passages[:-1])


def test_cuts_follow_sentences_and_structure(model):
    passages = Splitter(model, 128, 0).split(Document("d", PROSE))
    assert all(passage.text.startswith("Sentence number") for passage in passages)
    code = "\n\n".join(f"def function_{i}(x):\n    y = x + {i}\n\n    return y * {i}" for i in range(40))
    passages = Splitter(model, 64, 0).split(Document("d.py", code, metadata={"suffix": ".py"}))
    assert all(passage.text.startswith("def ") for passage in passages)
    page = "".join(f"## Part {i}\n\n{SENTENCES[i]}\n\n{SENTENCES[i]}\n\n" for i in range(12))
    passages = Splitter(model, 72, 0).split(Document("d.md", page, metadata={"suffix": ".md"}))
    assert all(passage.text.startswith("## Part") for passage in passages)


def test_the_prompt_of_documents_takes_its_part():
    prompted = load_embedder(
        prompts={"document": "one two three four: ", "query": "a much longer prompt for queries: "}
    )
    splitter = Splitter(prompted)
    assert len(splitter.split(Document("d", "bee " * 249))) == 1
    assert len(splitter.split(Document("d", "bee " * 250))) == 2


def test_zero_tokens_keep_every_document_whole(model):
    document = Document("d", PROSE * 3)
    assert [passage.text for passage in Splitter(model, 0).split(document)] == [document.text]


def test_without_a_tokenizer_words_are_counted():
    splitter = Splitter(CallableEmbedder(lambda texts: [[0.0]] * len(texts)), 50, 0)
    passages = splitter.split(Document("d", PROSE))
    check_cover(Document("d", PROSE), passages)
    assert all(len(passage.text.split()) <= 50 for passage in passages)


def test_a_text_of_megabytes_is_cut_block_by_block(model):
    document = Document("d", (PROSE + "\n\n") * 60)
    check_cover(document, Splitter(model).split(document))


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        (257, None, "at most 256"),
        (-1, None, "chunk_tokens"),
        (40, 20, "more than 42"),
        (None, -1, "overlap"),
        (2, None, "more"),
    ],
)
def test_impossible_sizes_are_refused(model, size, overlap, message):
    with pytest.raises(InvalidArgumentError, match=message):
        Splitter(model, size, overlap)
