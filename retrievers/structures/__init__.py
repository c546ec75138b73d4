"""Structures: what lets a search look at a part of the rows instead of scanning them all.

A structure is built from the codes of an index, lies in the index folder as immutable files that the manifest names,
and covers the rows of the shards that there were. Deletes and filters reach it as masks; shards that came later are
scanned.

============  ==========================================================================================
``ivf``       the codes sorted into lists around centroids; a query scans the lists whose centroids suit it best
``hnsw``      a navigable graph over reduced embeddings for small indexes; its finds are ranked by the codes
``sm2graph``  a graph built and searched on two-bit codes; its finds are ranked by the codes
``flat``      none of these: a scan. For an index that only wants its neighbours stored
============  ==========================================================================================

Each may come with the nearest rows of every row (`neighbours`), which an expansion of a search looks up.

`auto.choose` picks one by what the scan costs.
"""
