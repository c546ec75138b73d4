"""ragq: a retrieval index for RAG that is as small as the answers allow."""

__version__ = "0.1.0"
