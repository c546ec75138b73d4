"""Write golden files of codecs, on purpose: ``python -m tests.regenerate_golden FP8 PQ``.

A golden file pins what a codec's bytes mean: a fitted state, seeded embeddings, their codes, and what the codes decode
to. The tests only read it. Writing one again says that codes on disk have changed their meaning: bump the index format.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
from safetensors.numpy import save_file

from ragq.compressors import stage_classes
from ragq.compressors.base import Stage
from tests.compressors.conftest import documents, fit

FOLDER = Path(__file__).parent / "golden"
DIM = 32
ROWS = 16
MAX_BYTES = 30_000


def golden_file(cls: type[Stage]) -> Path:
    return FOLDER / f"{cls.__name__}.safetensors"


def write_golden(cls: type[Stage]) -> Path:
    """Fit the class's first example on 32-dimensional embeddings and store what it does to 16 of them."""
    sample = np.ascontiguousarray(documents()[:, :DIM])
    compressor = fit(cls.examples[0], sample)
    x = sample[:ROWS].copy()
    x[1], x[2] = 0, 3 * x[2]  # a zero row, and one longer than the sample showed
    codes = compressor.encode(x)
    arrays = {f"state.{name}": array for name, array in compressor.state.items()}
    arrays |= {"x": x, "codes": codes, "decoded": compressor.decode(codes)}
    path = golden_file(cls)
    save_file(arrays, path, {"spec": compressor.spec, "config": json.dumps(compressor.config, sort_keys=True)})
    return path


@click.command()
@click.argument("names", nargs=-1, required=True)
def main(names: tuple[str, ...]) -> None:
    """Write the golden files of the codec classes NAMES."""
    classes = {cls.__name__: cls for cls in stage_classes()}
    for name in names:
        if name not in classes:
            raise click.BadParameter(f"no codec class '{name}'; there are {', '.join(classes)}")
        path = write_golden(classes[name])
        size = path.stat().st_size
        click.echo(f"{path.name}: {size} bytes" + (f", over {MAX_BYTES}: shrink examples[0]" * (size > MAX_BYTES)))


if __name__ == "__main__":
    main()
