"""The spec grammar: text that names a compressor reads and prints to itself, and a bad one says how to mend it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragq.compressors import Chain, from_spec, registry, stage_classes
from ragq.compressors.floats import F32
from ragq.compressors.spec import print_value, read_value
from ragq.errors import InvalidArgumentError
from tests.compressors.conftest import all_specs


def suggested(text: str) -> str:
    """Return the spec that the error about `text` suggests."""
    with pytest.raises(InvalidArgumentError) as caught:
        from_spec(text)
    message = str(caught.value)
    assert "\n" not in message
    match = re.search(r"Nearest valid spec: '(.*)'\.$", message)
    assert match, message
    return match[1]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("FP8", "FP8"),
        ("  PCA192 ,  FP8 ", "PCA192,FP8"),
        ("PCA050.0%,FP8", "PCA50%,FP8"),
        ("PCA12.5%,FP8", "PCA12.5%,FP8"),
        ("FP4()", "FP4"),
        ("FP4(32)", "FP4"),
        ("FP4 ( 16 )", "FP4(block=16)"),
        ("FP4(block = 16)", "FP4(block=16)"),
        ("BIN(symmetric=true, centred=false)", "BIN(symmetric)"),
        ("BIN(false,true)", "BIN(centred)"),
        ("PCA16(centred=false),RP8,INT8", "PCA16(centred=false),RP8,INT8"),
    ],
)
def test_a_spec_prints_in_its_canonical_spelling(text: str, canonical: str) -> None:
    assert str(from_spec(text)) == canonical
    assert str(from_spec(canonical)) == canonical


@pytest.mark.parametrize(
    ("text", "position", "reason", "instead"),
    [
        ("fp8", 1, "names no known codec", "FP8"),
        ("F8", 1, "names no known codec", "FP8"),
        ("PCA192,INT9", 8, "names no known codec", "PCA192,INT8"),
        ("PCA192", 1, "a quantizer must end the spec", "PCA192,F32"),
        ("PCA64,F16,FP8", 7, "must be the last stage", "PCA64,F16"),
        ("PCA0,FP8", 1, "must be an integer of at least 1", "PCA1,FP8"),
        ("PCA64,FP4(block=1)", 7, "must be an integer in 2..256", "PCA64,FP4"),
        ("FP4(blok=16)", 1, "has no option 'blok'", "FP4"),
        ("FP4(16,32)", 1, "takes at most 1 options", "FP4"),
        ("FP4(16,block=32)", 1, "given twice", "FP4"),
        ("BIN(symmetric=7)", 1, "must be true or false", "BIN"),
        ("PCA64(,FP8", 6, "parenthesis", "PCA64,F32"),
        ("PCA64),FP8", 6, "parenthesis", "PCA64,FP8"),
        ("FP4((16))", 5, "parenthesis", "FP4"),
        ("PCA64,,FP8", 7, "a stage is empty", "PCA64,FP8"),
        ("PCA64,FP8,", 7, "must be the last stage", "PCA64,FP8"),
    ],
)
def test_an_error_names_the_position_the_reason_and_a_valid_spec(
    text: str, position: int, reason: str, instead: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(reason)) as caught:
        from_spec(text)
    assert f"at position {position}:" in str(caught.value)
    assert suggested(text) == instead
    from_spec(instead)


@pytest.mark.parametrize("text", ["", "  ", None, 8, "F" * 5000])
def test_what_is_no_spec_is_refused(text: object) -> None:
    with pytest.raises(InvalidArgumentError, match="A spec must be"):
        from_spec(text)  # type: ignore[arg-type]


def test_several_stages_make_a_chain() -> None:
    chain = from_spec("PCA16,RP8,FP8")
    assert isinstance(chain, Chain)
    assert [stage.spec for stage in chain.stages] == ["PCA16", "RP8", "FP8"]


def words() -> st.SearchStrategy[str]:
    """Text near the grammar: pieces of real specs, numbers and punctuation."""
    pieces = re.findall(r"[A-Za-z]+|\d+|\W", ",".join(all_specs()))
    return st.lists(st.sampled_from([*pieces, "", "-1", "1e9", "0", "9" * 30, "²", "=", "{n}", "'", "\n"])).map("".join)


@settings(max_examples=150, deadline=None)
@given(st.one_of(words(), st.text(max_size=30)))
def test_any_text_is_a_spec_or_gets_a_suggestion_that_is_one(text: str) -> None:
    try:
        compressor = from_spec(text)
    except InvalidArgumentError as error:
        match = re.search(r"Nearest valid spec: '(.*)'\.$", str(error))
        if match:
            assert str(from_spec(match[1])) == match[1]
        else:
            assert not text.strip()
    else:
        assert str(from_spec(str(compressor))) == str(compressor)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_an_argument_prints_and_reads_to_itself(value: object) -> None:
    assert read_value(print_value(value)) == value


def test_a_suggestion_needs_no_class_of_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_built_in", lambda: (F32,))
    assert stage_classes() == [F32]
    assert suggested("PCB9,F33") == "F32"
