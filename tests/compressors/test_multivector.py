"""Multi-vector codecs: MUVERA against its formula, the laws of its estimate, first stages, specs and states."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from ragq.compressors.centroids import CENTROIDS
from ragq.compressors.multivector import OFFSET_BYTES, MultiVectorCompressor
from ragq.compressors.muvera import MUVERA
from ragq.compressors.token_codecs import HPC, PLAID, hamming_order
from ragq.errors import CorruptIndexError, InvalidArgumentError, NotFittedError
from ragq.tokens import TokenEmbeddings
from tests.compressors.conftest import embeddings

DIM = 16


def tokens(n: int = 60, longest: int = 9, seed: int = 0, dim: int = DIM) -> TokenEmbeddings:
    """Documents of 0 to `longest` unit tokens, near a few topics; document 0 has one token and document 1 none."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, longest + 1, n)
    counts[:2] = 1, 0
    return TokenEmbeddings(embeddings(int(counts.sum()), dim, seed), np.concatenate([[0], np.cumsum(counts)]))


def maxsim(queries: TokenEmbeddings, documents: TokenEmbeddings) -> NDArray[np.float32]:
    scores = np.full((len(queries), len(documents)), -np.inf, np.float32)
    for a, query in enumerate(queries):
        for d, document in enumerate(documents):
            if len(document) and len(query):
                scores[a, d] = (query @ document.T).max(axis=1).sum()
    return scores


def naive(encoder: MUVERA, x: NDArray[np.float32], is_query: bool) -> NDArray[np.float32]:
    """MUVERA as section 2.1 tells it, one repetition and bucket at a time."""
    blocks = []
    for r in range(encoder.R):
        planes = encoder.planes_[r * encoder.k : (r + 1) * encoder.k]
        offsets = encoder.offsets_[r * encoder.k : (r + 1) * encoder.k]
        sketch = np.zeros((DIM, encoder.dim_block), np.float32)
        if encoder.p:
            for j in range(DIM):
                if encoder.axes:
                    sketch[j] = encoder.axes_[j, r * encoder.p : (r + 1) * encoder.p]
                else:
                    sketch[j, encoder.column_[r, j]] = encoder.signs_[r, j]
        else:
            sketch = np.eye(DIM, dtype=np.float32)
        sides = x @ planes.T > offsets
        for bucket in range(2**encoder.k):
            wanted = (bucket >> np.arange(encoder.k)) & 1
            differing = (sides != wanted).sum(axis=1)
            inside = x[differing == 0]
            if is_query:
                block = inside.sum(axis=0) / encoder.R
            elif len(inside):
                block = inside.mean(axis=0)
            else:  # of the tokens in the nearest buckets the first
                block = x[np.argmin(differing)]
            blocks.append(block @ sketch)
            if encoder.unit and not is_query and len(inside) > 1:
                lengths = np.linalg.norm(inside @ sketch, axis=1)
                blocks[-1] *= min(10, lengths.mean() / np.linalg.norm(blocks[-1]))
    return np.concatenate(blocks)


@pytest.mark.parametrize(
    "options", [{}, {"p": None}, {"axes": True}, {"unit": True}, {"p": None, "unit": True}], ids=str
)
@pytest.mark.parametrize("k", [0, 3])
def test_muvera_is_what_the_paper_says(options: dict[str, bool | None], k: int) -> None:
    documents = tokens()
    encoder = MUVERA(**{"R": 3, "k": k, "p": 4, "centred": k == 3, **options}).fit(documents)  # type: ignore[arg-type]
    encoded = encoder.encode_documents(documents)
    for d, document in enumerate(documents):
        expected = naive(encoder, document, is_query=False) if len(document) else np.zeros(encoder.dim_out)
        np.testing.assert_allclose(encoded[d], expected, atol=2e-6)
    for query, got in zip(documents, encoder.encode_queries(documents), strict=True):
        np.testing.assert_allclose(got, naive(encoder, query, is_query=True), atol=1e-6)


def test_the_sketches_of_muvera_are_unbiased() -> None:
    documents, queries = tokens(n=12, seed=1), tokens(n=6, seed=2)
    exact = MUVERA(R=1, k=2, p=None).fit(documents)
    truth = exact.encode_queries(queries) @ exact.encode_documents(documents).T
    sketched = MUVERA(R=600, k=2, p=4).fit(documents)
    sketched.planes_ = np.tile(exact.planes_, (600, 1))  # 600 sketches of the same buckets
    blocks = [
        side.reshape(-1, 600, 4 * 4)
        for side in (sketched.encode_queries(queries), sketched.encode_documents(documents))
    ]
    each = np.einsum("arj,drj->adr", *blocks) * 600
    error = np.abs(each.mean(axis=2) - truth) / (each.std(axis=2) / np.sqrt(600) + 1e-9)
    assert error.max() < 4.5
    assert (each.std(axis=2) > 0).any()


def test_as_many_axes_as_dimensions_lose_nothing() -> None:
    documents, queries = tokens(n=12, seed=1), tokens(n=6, seed=2)
    for repetitions, p in ((4, 4), (8, 6)):  # 16 axes, each once; 48, each three times
        encoder = MUVERA(R=repetitions, k=0, p=p, axes=True).fit(documents)
        got = encoder.encode_queries(queries) @ encoder.encode_documents(documents).T
        for a, query in enumerate(queries):
            for d, document in enumerate(documents):
                expected = query.sum(axis=0) @ document.mean(axis=0) if len(document) else 0
                assert got[a, d] == pytest.approx(expected, abs=1e-5)


def test_the_last_sketch_keeps_inner_products_on_average() -> None:
    documents, queries = tokens(n=40, seed=1), tokens(n=10, seed=2)
    whole, short = MUVERA(R=10, k=2, p=None), MUVERA(R=10, k=2, p=None, final=512)
    truth = whole.fit(documents).encode_queries(queries) @ whole.encode_documents(documents).T
    got = short.fit(documents).encode_queries(queries) @ short.encode_documents(documents).T
    assert short.dim_out == 512 and np.corrcoef(truth.ravel(), got.ravel())[0, 1] > 0.95


def test_queries_are_linear_in_their_tokens_and_order_means_nothing() -> None:
    documents = tokens()
    encoder = MUVERA(R=5, k=3, p=4).fit(documents)
    a, b = documents[5:6], documents[9:10]
    joined = TokenEmbeddings.from_list([np.concatenate([b.values, a.values])])
    both = encoder.encode_queries(a) + encoder.encode_queries(b)
    np.testing.assert_allclose(encoder.encode_queries(joined), both, atol=1e-6)


def test_the_estimate_nears_maxsim_as_repetitions_rise() -> None:
    documents, queries = tokens(n=200, seed=3), tokens(n=30, seed=4)
    truth = maxsim(queries, documents)
    some = np.isfinite(truth)
    correlations = []
    for repetitions in (1, 4, 16, 64):
        encoder = MUVERA(R=repetitions, k=4, p=8).fit(documents)
        estimate = encoder.encode_queries(queries) @ encoder.encode_documents(documents).T
        correlations.append(np.corrcoef(estimate[some], truth[some])[0, 1])
    assert correlations == sorted(correlations) and correlations[-1] > 0.9


def test_muvera_refuses_what_would_fill_the_memory() -> None:
    with pytest.raises(InvalidArgumentError, match="Lower R, k or p"):
        MUVERA(R=1000, k=10, p=None).fit(tokens())


SPECS = [
    ("F32", None),
    ("POOL4,PQ4x4", "MUVERA(4,2,4),PQ8x4"),
    ("POOL33%(kmeans),PLAID20x2", "MUVERA(4,2,4)"),
    ("PRUNE3(idf,10),HPC16", "CENTROIDS16(4)"),
    ("CARVE0.6,PRUNE50%(norm),FP8", "MUVERA(R=2,k=3,p=none,final=32,centred),INT8"),
    ("PRUNE3(first),PCA8,INT8", None),
    ("PRUNE3(spread),HPC8(hamming)", None),
    ("MAP,POOL3,F16", "MUVERA(4,2,3,axes,unit)"),
    ("POOL3,F16", "LEMUR6(32),INT8"),
]


@pytest.mark.parametrize(("codec", "first"), SPECS)
def test_documents_are_encoded_each_by_itself(codec: str, first: str | None) -> None:
    documents = tokens()
    compressor = MultiVectorCompressor.from_spec(codec, first).fit(documents, queries=tokens(n=9, seed=5))
    whole = compressor.encode(documents)
    assert whole.codes.shape[1] == compressor.code_size and whole.counts[1] == 0
    for d in range(len(documents)):
        alone = compressor.encode(documents[d : d + 1])
        np.testing.assert_array_equal(alone.codes, whole[d : d + 1].codes)
        if first is not None:
            assert alone.first is not None and whole.first is not None
            np.testing.assert_array_equal(alone.first[0], whole.first[d])
    expected = compressor.code_size * whole.counts.mean() + compressor.first_code_size + OFFSET_BYTES
    assert compressor.bytes_per_document(whole) == pytest.approx(expected)
    assert len(compressor.encode(documents[:0])) == 0


@pytest.mark.parametrize(("codec", "first"), SPECS)
def test_specs_and_states_come_back(codec: str, first: str | None) -> None:
    documents = tokens()
    compressor = MultiVectorCompressor.from_spec(codec, first).fit(documents, seed=3)
    again = MultiVectorCompressor.from_spec(compressor.codec, compressor.first_stage)
    assert (again.codec, again.first_stage) == (compressor.codec, compressor.first_stage)
    with pytest.raises(NotFittedError):
        again.encode(documents)
    again.load_state(compressor.state)
    np.testing.assert_array_equal(again.encode(documents).codes, compressor.encode(documents).codes)
    refitted = MultiVectorCompressor.from_spec(codec, first).fit(documents, seed=3).state
    assert all(np.array_equal(array, refitted[name]) for name, array in compressor.state.items())


@pytest.mark.parametrize(("codec", "first"), SPECS[1:])
def test_a_state_that_lacks_or_bends_an_array_is_refused(codec: str, first: str | None) -> None:
    state = MultiVectorCompressor.from_spec(codec, first).fit(tokens()).state
    for name, array in state.items():
        for bent in (None, array[:-1]):
            changed = {key: value for key, value in state.items() if key != name}
            changed |= {} if bent is None else {name: bent}
            with pytest.raises(CorruptIndexError):
                MultiVectorCompressor.from_spec(codec, first).load_state(changed)


@pytest.mark.parametrize(
    ("codec", "first", "message"),
    [
        ("", None, "must be text"),
        ("POOL0,F32", None, "'size' must be an integer of at least 1"),
        ("POOL120%", None, "a share in 1%..100%"),
        ("POOL4(median)", None, "'median'"),
        ("F32,POOL4", None, "Bad spec"),
        ("PRUNE4(by=luck)", None, "must be first, spread, norm or idf"),
        ("PLAID16x3", None, "must be 1, 2 or 4"),
        ("HPC100", None, "power of two"),
        ("F32", "PQ8x8", "Bad first stage"),
        ("F32", "CENTROIDS16,F32", "Bad first stage"),
        ("F32", "CENTROIDS9", "multiple of 8"),
        ("F32", "MUVERA(R=0)", "'R' must be an integer in 1..1000"),
        ("F32", "MUVERA(20,4,8),PQ8x9", "must be 4 or 8"),
    ],
)
def test_impossible_specs_say_why(codec: str, first: str | None, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        MultiVectorCompressor.from_spec(codec, first)


def test_wrong_dimensions_and_arrays_are_refused() -> None:
    compressor = MultiVectorCompressor.from_spec("POOL4,F32", "MUVERA(2,2,4)").fit(tokens())
    for bad, message in ((tokens(dim=8), "must have 16 dimensions"), (np.zeros((3, DIM)), "must be TokenEmbeddings")):
        with pytest.raises(InvalidArgumentError, match=message):
            compressor.encode(bad)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=message):
            compressor.prepare_queries(bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="dimensions"):
        MultiVectorCompressor.from_spec("F32").fit(tokens(), queries=tokens(dim=8))
    with pytest.raises(InvalidArgumentError, match="at least 256"):
        MultiVectorCompressor.from_spec("F32", "MUVERA,PQ4x8").fit(tokens())


@pytest.mark.parametrize("codec", [PLAID(20, 1), PLAID(20, 4), PLAID(300, 2), HPC(64)], ids=str)
def test_scores_of_token_codecs_are_those_of_what_they_decode_to(codec: PLAID | HPC) -> None:
    x, queries = embeddings(400, DIM, seed=6), embeddings(9, DIM, seed=7)
    codes = codec.fit(x).encode(x)
    np.testing.assert_allclose(codec.scorer(queries).score(codes), queries @ codec.decode(codes).T, atol=1e-5)
    assert codes.shape[1] == codec.code_size


def test_more_bits_of_the_residual_leave_less_error() -> None:
    x = embeddings(600, DIM, seed=6)
    codecs = [HPC(16), *(PLAID(16, bits) for bits in (1, 2, 4))]
    errors = [np.square(codec.decode(codec.fit(x).encode(x)) - x).sum() for codec in codecs]
    assert all(b < 0.75 * a for a, b in pairwise(errors))


def test_a_centroid_that_does_not_exist_is_refused() -> None:
    x = embeddings(100, DIM, seed=6)
    for codec in (PLAID(20, 1).fit(x), HPC(16).fit(x)):
        codes = codec.encode(x)
        codes[3, 0] = 77
        with pytest.raises(CorruptIndexError, match="centroid 77 of"):
            codec.decode(codes)


def test_near_centroids_have_numbers_that_differ_in_few_bits() -> None:
    centroids = embeddings(64, DIM, seed=8)

    def rank_correlation(ordered: NDArray[np.float32]) -> float:
        rows = np.arange(64)
        differing = np.bitwise_count(rows[:, None] ^ rows).ravel()
        return float(np.corrcoef(differing, (ordered @ ordered.T).ravel())[0, 1])

    assert sorted(hamming_order(centroids)) == list(range(64))
    assert rank_correlation(centroids[hamming_order(centroids)]) < -0.4 < rank_correlation(centroids)


def test_all_centroids_probed_is_the_centroid_interaction() -> None:
    documents, queries = tokens(n=80, seed=1), tokens(n=7, seed=2)
    stage = CENTROIDS(32, nprobe=32).fit(documents)
    nearest = ((documents.values[:, None] - stage.centroids_) ** 2).sum(axis=2).argmin(axis=1)
    coded = TokenEmbeddings(stage.centroids_[nearest], documents.offsets)
    expected = maxsim(queries, coded)
    got = stage.scorer(queries).score(stage.encode(documents))
    some = np.isfinite(expected)
    np.testing.assert_allclose(got[some], expected[some], atol=1e-5)


def test_what_is_not_probed_counts_as_the_best_that_it_could_be() -> None:
    documents, queries = tokens(n=80, seed=1), tokens(n=7, seed=2)
    stage = CENTROIDS(32, nprobe=32).fit(documents)
    codes = stage.encode(documents)
    full = stage.scorer(queries).score(codes)[:, documents.counts > 0]
    for nprobe in (1, 4, 16):
        stage.nprobe = nprobe
        fewer = stage.scorer(queries).score(codes)[:, documents.counts > 0]
        assert (fewer >= full - 1e-5).all() and (fewer > full + 1e-3).any()
