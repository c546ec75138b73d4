"""A first search from a cold process waits for nothing that it does not need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import ragq

COLD = """
import sys
import numpy as np, ragq
index = ragq.open(sys.argv[1])
assert index.search_embeddings(np.eye(1, 8, dtype=np.float32), 3).ids[0, 0] == "0"
heavy = {"torch", "pandas", "sentence_transformers", "langchain_text_splitters", "rich", "scipy"} & set(sys.modules)
sys.exit(f"imported {sorted(heavy)}" if heavy else 0)
"""


def test_a_search_by_embedding_imports_nothing_heavy(tmp_path: Path) -> None:
    x = np.eye(8, dtype=np.float32)
    ragq.build(None, tmp_path / "i.ragq", embeddings=x, ids=[str(i) for i in range(8)]).delete("3")
    done = subprocess.run([sys.executable, "-c", COLD, str(tmp_path / "i.ragq")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
