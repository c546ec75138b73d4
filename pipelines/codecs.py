"""Fitted codecs as folders: what `ragq train` writes and ``--codec trained/`` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import xxhash

from ragq.compressors import Chain, Compressor, from_spec
from ragq.compressors.learned.base import LearnedPQ
from ragq.compressors.learned.bpr import BPR
from ragq.compressors.refine import Refined
from ragq.errors import CorruptIndexError, InvalidArgumentError
from ragq.storage import write_bytes

__all__ = ["codec_digest", "is_codec_folder", "load_codec", "open_codec", "save_codec", "untrained"]

CODEC = "codec.safetensors"
MAX_BYTES = 1 << 30  # of a state that somebody else wrote


def is_codec_folder(text: str | Path) -> bool:
    """Tell whether `text` names a folder that holds a fitted codec."""
    return bool(text) and (Path(text).expanduser() / CODEC).is_file()


def save_codec(folder: Path, codec: Compressor) -> Path:
    """Write a fitted codec to a folder, durably; return the file."""
    arrays = {name: np.ascontiguousarray(array) for name, array in codec.state.items()}
    path = folder / CODEC
    write_bytes(path, safetensors.numpy.save(arrays, {"spec": codec.spec}))
    return path


def load_codec(folder: str | Path) -> Compressor:
    """Read a fitted codec.

    Raises
    ------
    InvalidArgumentError
        There is none in the folder.
    CorruptIndexError
        The file is damaged.
    """
    path = Path(folder).expanduser() / CODEC
    if not path.is_file():
        raise InvalidArgumentError(f"{folder} holds no trained codec: there is no {CODEC}. Make one with 'ragq train'.")
    if path.stat().st_size > MAX_BYTES:
        raise CorruptIndexError(f"{path} is larger than {MAX_BYTES:,} bytes, more than any codec's state.")
    try:
        with safetensors.safe_open(path, "numpy") as file:
            spec = (file.metadata() or {})["spec"]
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, KeyError, ValueError) as error:
        raise CorruptIndexError(f"{path} cannot be read: {error}. Train again.") from None
    try:
        return from_spec(spec).load_state(arrays)
    except InvalidArgumentError as error:
        raise CorruptIndexError(f"{path} names a codec that this ragq does not know: {error}") from None
    except CorruptIndexError as error:
        raise CorruptIndexError(f"{path}: {error}") from None


def codec_digest(folder: str | Path) -> str:
    """Return the hash of the codec in a folder."""
    return xxhash.xxh3_128_hexdigest((Path(folder).expanduser() / CODEC).read_bytes())


def open_codec(text: str) -> Compressor:
    """Return the fitted codec of a folder, or the unfitted one that a spec names."""
    return load_codec(text) if is_codec_folder(text) else from_spec(text)


def untrained(codec: Compressor) -> list[str]:
    """Return what is to be said of a codec that was fitted, but whose point is to be trained; nothing of others."""
    if isinstance(codec, Refined):
        return untrained(codec.coarse) + untrained(codec.fine)
    learned = [s for s in (codec.stages if isinstance(codec, Chain) else [codec]) if isinstance(s, (LearnedPQ, BPR))]
    return [
        f"{stage} is not trained: it ranks as what its training starts from does. Train it with 'ragq train SOURCE "
        f'--codec "{stage}" -o trained\', and give --codec trained.'
        for stage in learned
    ]
