"""Evaluation: retrieval quality for each byte, on BEIR, MTEB and the user's own queries."""
