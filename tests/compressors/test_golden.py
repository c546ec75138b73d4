"""Codes written by an earlier version keep their meaning."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from ragq.compressors import from_spec, stage_classes
from ragq.compressors.base import Stage
from tests.regenerate_golden import FOLDER, MAX_BYTES, golden_file


def test_golden_codes_encode_and_decode_as_ever(stage_class: type[Stage]) -> None:
    path = golden_file(stage_class)
    if not path.is_file():
        pytest.fail(f"{path.name} is missing; write it with: python -m tests.regenerate_golden {stage_class.__name__}")
    assert path.stat().st_size <= MAX_BYTES
    with safe_open(path, "np") as file:
        metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = {name.removeprefix("state."): a for name, a in arrays.items() if name.startswith("state.")}
    compressor = from_spec(metadata["spec"])
    assert compressor.spec == metadata["spec"] == stage_class.examples[0]
    assert json.loads(metadata["config"]) == compressor.config
    compressor.load_state(state)
    np.testing.assert_array_equal(compressor.encode(arrays["x"]), arrays["codes"])
    decoded = compressor.decode(arrays["codes"])
    np.testing.assert_allclose(decoded, arrays["decoded"], rtol=1e-5, atol=1e-5 * np.abs(arrays["decoded"]).max())


def test_no_golden_file_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {golden_file(cls).name for cls in stage_classes()}
