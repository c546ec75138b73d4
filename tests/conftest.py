"""What every test shares: the data folder, and no network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data (`beir/`, `scale/`): `$RAGQ_SHARED/data`, or `../shared/data` beside the repository."""
    root = os.environ.get("RAGQ_SHARED")
    folder = (Path(root) if root else REPOSITORY.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.fail(f"No shared data at {folder}. Set RAGQ_SHARED to the folder that holds data/.", pytrace=False)
    return folder
