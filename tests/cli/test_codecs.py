"""`ragq codecs` prices every codec before anything is fitted."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from ragq.cli.codecs import codecs
from ragq.compressors import from_spec, stage_classes
from ragq.compressors.catalogue import catalogue
from ragq.errors import InvalidArgumentError


@pytest.mark.slow
def test_the_price_is_what_encoding_takes() -> None:
    x = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    for offer in catalogue(64):
        if from_spec(offer.spec).minimum_rows <= len(x) and "AE" not in offer.spec:
            assert from_spec(offer.spec).fit(x).encode(x[:2]).nbytes == 2 * offer.code_bytes
        assert offer.ratio == pytest.approx(4 * 64 / offer.code_bytes)
        assert offer.bits_per_dim == pytest.approx(8 * offer.code_bytes / 64)
        assert offer.summary


def test_every_class_is_listed_at_common_dimensions() -> None:
    for dim in (384, 768, 1024):
        offers = catalogue(dim)
        assert [o.code_bytes for o in offers] == sorted((o.code_bytes for o in offers), reverse=True)
        assert len({o.spec for o in offers}) == len(offers)
        for cls in stage_classes():
            stages = [stage for o in offers for stage in getattr(from_spec(o.spec), "stages", [from_spec(o.spec)])]
            assert any(type(stage) is cls for stage in stages), f"{cls.__name__} is on no menu at {dim}"


def test_odd_dimensions_leave_out_what_cannot_work() -> None:
    assert {"F32", "FP8", "BIN"} <= {offer.spec for offer in catalogue(7)}
    assert catalogue(1)
    with pytest.raises(InvalidArgumentError, match="dim"):
        catalogue(0)


def test_json_and_table_say_the_same() -> None:
    runner = CliRunner()
    result = runner.invoke(codecs, ["--dim", "384", "--budget", "192", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.output)
    assert max(row["code_bytes"] for row in rows) == 192
    assert {"spec", "code_bytes", "ratio", "bits_per_dim", "summary"} <= rows[0].keys()
    table = runner.invoke(codecs, ["--dim", "384"], env={"COLUMNS": None}).output
    assert "1,536 bytes as float32" in table
    assert all(row["summary"][:60] in table for row in rows)  # nothing is cut where there is no terminal
    narrow = runner.invoke(codecs, ["--dim", "384"], env={"COLUMNS": "80"}).output
    for row in rows:
        assert re.search(rf"^ {re.escape(row['spec'])} +{row['code_bytes']} ", table, re.MULTILINE)
        assert re.search(rf"^ {re.escape(row['spec'])} +{row['code_bytes']} ", narrow, re.MULTILINE)


def test_a_dimension_of_nothing_is_a_usage_error() -> None:
    result = CliRunner().invoke(codecs, ["--dim", "0"])
    assert result.exit_code == 2
    assert "--dim" in result.output
