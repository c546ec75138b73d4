"""The table of codecs: names are unique, and README.md knows every one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ragq.compressors import Quantizer, Transform, from_spec, register, registry, stage_classes
from ragq.compressors.base import Stage
from ragq.compressors.floats import F32
from ragq.errors import InvalidArgumentError

README = Path(__file__).resolve().parents[2] / "README.md"


def codec_section() -> str:
    return f"\n{README.read_text()}".partition("\n## Codecs\n")[2].partition("\n## ")[0]


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", [])


def test_readme_has_a_row_for_the_codec(stage_class: type[Stage]) -> None:
    rows = [line for line in codec_section().splitlines() if line.startswith("|")]
    assert any(f"`{form}`" in row for row in rows for form in stage_class.forms), (
        f"README.md, table of '## Codecs': add a row whose first cell is `{stage_class.forms[0]}`"
    )


def test_readme_names_no_codec_that_is_gone() -> None:
    named = re.findall(r"^\| `([^`]+)`", codec_section(), re.MULTILINE)
    assert set(named) <= {form for cls in stage_classes() for form in cls.forms}


def test_names_and_forms_are_unique() -> None:
    classes = stage_classes()
    forms = [form for cls in classes for form in cls.forms]
    assert len(set(forms)) == len(forms)
    assert len({cls.__name__ for cls in classes}) == len(classes)
    assert all(issubclass(cls, (Transform, Quantizer)) for cls in classes)


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_class_can_be_named_in_a_spec() -> None:
    @register
    class Mine(F32):
        forms = ("MINE",)

    assert type(from_spec("MINE")) is Mine


@pytest.mark.usefixtures("clean_registry")
def test_registering_a_taken_name_raises() -> None:
    with pytest.raises(InvalidArgumentError, match="'F32' is already registered"):
        register(F32)
    with pytest.raises(InvalidArgumentError, match="'F32' is already registered"):
        register(type("Other", (F32,), {}))
    register(type("Once", (F32,), {"forms": ("ONCE",)}))
    with pytest.raises(InvalidArgumentError, match="'Once' is already registered"):
        register(type("Once", (F32,), {"forms": ("TWICE",)}))
    with pytest.raises(InvalidArgumentError, match="'once' is already registered"):
        register(type("Lower", (F32,), {"forms": ("once",)}))
