"""Embeddings to codes and back: one module a method, `base.py` is the contract, `spec.py` the grammar."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ragq.compressors.base import Chain, Compressor, Quantizer, Transform
from ragq.compressors.registry import MODULES, register, stage_classes
from ragq.compressors.spec import from_spec

__all__ = ["Chain", "Compressor", "Quantizer", "Transform", "from_spec", "register", "stage_classes", *MODULES]


def __getattr__(name: str) -> Any:
    if name in MODULES:
        return getattr(import_module(f"ragq.compressors.{MODULES[name]}"), name)
    raise AttributeError(f"module 'ragq.compressors' has no attribute '{name}'")
