"""Serving an index over HTTP: a front that batches, and replicas that hold the shards."""
