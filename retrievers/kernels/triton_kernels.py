"""The scans as Triton kernels: device code only; `ragq.retrievers.kernels.triton_scan` launches it.

`scan_kernel` is one program per (span of rows, tile of queries). A program walks its span in tiles of `N` rows, turns
each tile into scores ``(Q, N)`` and keeps the best `K` of each query in registers as 64-bit keys:

    key = order(score) << 32 | (2^31 - 1 - row)

where ``order`` maps float32 to int32 monotonically. A larger key is a higher score, then a lower row, so the tie rule
of `ragq.select.topk` holds through every merge, and only ``K`` keys per program and query leave the chip. A tile is
sorted only when one of its keys beats the K-th so far. With ``K == 0`` all scores are written instead.

What differs between the forms is one function each, which turns a tile of codes into raw scores: `_hamming`, `_lookup`,
`_dense`, `_planes`. `maxsim_kernel` runs the same functions over the tokens of documents.

Rows are counted in int32 within a launch (at most 2^31 - 1) and addressed in int64, so a column may hold more than 2^31
bytes; `start` shifts the launch to a range of rows. Bytes moved per row: the width of its code, two per factor and 1/8
for a mask; the query side stays in cache.
"""

# The arguments of device code have no Python types.
# mypy: disallow-untyped-defs = False

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError:  # the extra `gpu`
    from ragq.retrievers.kernels import triton_absent as tl
    from ragq.retrievers.kernels import triton_absent as triton

__all__ = ["FORMS", "VALUES", "maxsim_kernel", "scan_kernel"]

FORMS = {"hamming": 0, "lut4": 1, "lut8": 2, "dense": 3, "planes": 4}
HAMMING, LUT4, LUT8, DENSE, PLANES = (tl.constexpr(value) for value in FORMS.values())

# How a code becomes a number: taken as it is, E4M3 bits, or a table of levels. The first three are exact in fp16, so
# a query split into two halves (q = high + rest, 22 bits) makes the fp16 product as good as a float32 one.
VALUES = {"half": 0, "e4m3": 1, "half_levels": 2, "float": 3, "float_levels": 4}
HALF, E4M3, HALF_LEVELS, FLOAT, FLOAT_LEVELS = (tl.constexpr(value) for value in VALUES.values())

EMPTY_KEY = tl.constexpr(-(2**63))


@triton.jit
def _byte(column, at, j, WIDTH: tl.constexpr, BLOCKED: tl.constexpr):
    """Address byte `j` of rows `at` (int64): plain rows, or blocks of 32 rows with byte j of all 32 side by side."""
    if BLOCKED:
        return column + ((at >> 5) * WIDTH + j) * 32 + (at & 31)
    else:  # noqa: RET505  (Triton compiles both arms of an early return)
        return column + at * WIDTH + j


@triton.jit
def _popcount(x):
    """Count the bits set in each int32, in the form that LLVM turns into one instruction."""
    x = x.to(tl.uint32, bitcast=True)
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _hamming(codes, query, at, live, q, asked, DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCKED: tl.constexpr):
    """``DIM - 2 * popcount(code xor query)`` as (Q, N); codes and queries are bytes, or int32 words of plain rows."""
    distance = tl.zeros([q.shape[0], at.shape[0]], tl.int32)
    for j in range(WIDTH):
        word = tl.load(_byte(codes, at, j, WIDTH, BLOCKED), mask=live, other=0).to(tl.int32)
        mine = tl.load(query + q * WIDTH + j, mask=asked, other=0).to(tl.int32)
        distance += _popcount(word[None, :] ^ mine[:, None])
    return (DIM - 2 * distance).to(tl.float32)


@triton.jit
def _lookup(codes, low, tables, at, live, q, asked, FORM: tl.constexpr, WIDTH: tl.constexpr):
    """``sum over m of tables[query, m, code[m]]`` as (Q, N), two codes a byte, an even number of tables.

    LUT4: 4-bit codes, 16 entries. LUT8: 8-bit codes as two columns of nibbles, `codes` (high) and `low`, 256 entries.
    """
    ENTRIES: tl.constexpr = 16 if FORM == LUT4 else 256
    table = tables + q.to(tl.int64)[:, None] * (2 * WIDTH * ENTRIES)
    raw = tl.zeros([q.shape[0], at.shape[0]], tl.float32)
    for j in range(WIDTH):
        byte = tl.load(_byte(codes, at, j, WIDTH, True), mask=live, other=0).to(tl.int32)
        first = byte & 15
        second = byte >> 4
        if FORM == LUT8:
            fine = tl.load(_byte(low, at, j, WIDTH, True), mask=live, other=0).to(tl.int32)
            first = (first << 4) | (fine & 15)
            second = (second << 4) | (fine >> 4)
        raw += tl.load(table + 2 * j * ENTRIES + first[None, :], mask=asked[:, None], other=0.0)
        raw += tl.load(table + (2 * j + 1) * ENTRIES + second[None, :], mask=asked[:, None], other=0.0)
    return raw


@triton.jit
def _number(code, levels, VALUE: tl.constexpr):
    """Turn codes into fp16 or fp32 numbers; E4M3 keeps its sign and puts its other bits where fp16 has them."""
    if VALUE == HALF:
        number = code.to(tl.float16)
    elif VALUE == E4M3:
        wide = code.to(tl.int16)
        bits = ((wide & 0x80) << 8) | (tl.minimum(wide & 0x7F, 0x7E) << 7)  # the code above 448 stands for 448
        number = bits.to(tl.float16, bitcast=True) * 256.0  # the exponent biases differ by 8
        number = number.to(tl.float16)
    elif VALUE == FLOAT:
        number = code.to(tl.float32)
    else:
        number = tl.load(levels + code.to(tl.int32))
    return number


@triton.jit
def _multiply(raw, query, rest, q, asked, d, numbers, DIM: tl.constexpr, VALUE: tl.constexpr):
    """Add ``query[:, d] @ numbers.T`` to (Q, N) raw scores."""
    inside = asked[:, None] & (d < DIM)[None, :]
    spot = q.to(tl.int64)[:, None] * DIM + d[None, :]
    high = tl.load(query + spot, mask=inside, other=0.0)
    if VALUE >= FLOAT:
        raw = tl.dot(high, tl.trans(numbers), raw, input_precision="ieee")
    else:
        raw = tl.dot(high, tl.trans(numbers), raw)
        raw = tl.dot(tl.load(rest + spot, mask=inside, other=0.0), tl.trans(numbers), raw)
    return raw


@triton.jit
def _dense(
    codes, query, rest, levels, at, live, q, asked, DIM: tl.constexpr, VALUE: tl.constexpr, STEP: tl.constexpr
):  # fmt: skip
    """``query @ numbers`` as (Q, N), a code a dimension."""
    raw = tl.zeros([q.shape[0], at.shape[0]], tl.float32)
    for first in range(0, DIM, STEP):
        d = first + tl.arange(0, STEP)
        inside = live[:, None] & (d < DIM)[None, :]
        numbers = _number(tl.load(codes + at[:, None] * DIM + d[None, :], mask=inside, other=0), levels, VALUE)
        raw = _multiply(raw, query, rest, q, asked, d, numbers, DIM, VALUE)
    return raw


@triton.jit
def _plane(c0, c1, c2, c3, c4, c5, c6, c7, b: tl.constexpr):
    """The b-th of eight pointers."""
    if b < 4:
        low = c0 if b == 0 else (c1 if b == 1 else (c2 if b == 2 else c3))
    else:
        low = c4 if b == 4 else (c5 if b == 5 else (c6 if b == 6 else c7))
    return low


@triton.jit
def _planes(
    c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, at, live, q, asked,
    DIM: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, VALUE: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """The same from `BITS` bit planes, 8 dimensions a byte: the most significant one blocked, the others as rows."""
    N: tl.constexpr = at.shape[0]
    raw = tl.zeros([q.shape[0], N], tl.float32)
    for first in range(0, WIDTH, STEP // 8):
        j = first + tl.arange(0, STEP // 8)
        inside = live[:, None] & (j < WIDTH)[None, :]
        code = tl.zeros([N, STEP // 8, 8], tl.int32)
        for b in tl.static_range(BITS):
            plane = _plane(c0, c1, c2, c3, c4, c5, c6, c7, b)
            byte = tl.load(_byte(plane, at[:, None], j[None, :], WIDTH, b == 0), mask=inside, other=0).to(tl.int32)
            code = 2 * code + ((byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1)
        numbers = _number(tl.reshape(code, [N, STEP]), levels, VALUE)
        d = first * 8 + tl.arange(0, STEP)
        raw = _multiply(raw, query, rest, q, asked, d, numbers, DIM, VALUE)
    return raw


@triton.jit
def _raw(
    c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, gain, at, live, q, asked,
    FORM: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, VALUE: tl.constexpr,
    BLOCKED: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Raw scores of rows `at` (int64) for queries `q`: (Q, N)."""
    if FORM == HAMMING:
        raw = _hamming(c0, query, at, live, q, asked, DIM, WIDTH, BLOCKED)
    elif FORM == DENSE:
        raw = _dense(c0, query, rest, levels, at, live, q, asked, DIM, VALUE, STEP)
    elif FORM == PLANES:
        raw = _planes(
            c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, at, live, q, asked, DIM, WIDTH, BITS, VALUE, STEP
        )
    else:
        raw = _lookup(c0, c1, query, at, live, q, asked, FORM, WIDTH)
    return raw * tl.load(gain + q, mask=asked, other=0.0)[:, None]


@triton.jit
def _allowed(mask, at, live):
    """The bits of the bitset `mask` at `at`."""
    byte = tl.load(mask + (at >> 3), mask=live, other=0).to(tl.int32)
    return live & (((byte >> (at & 7).to(tl.int32)) & 1) != 0)


@triton.jit
def _finish(raw, at, live, q, asked, scale, shift, weight, bias, mask, FACTORS: tl.constexpr, MASKED: tl.constexpr):
    """Raw scores (Q, N) to scores: row factors and query bias, -inf where a row is not live or masked out."""
    finite = raw > float("-inf")
    scores = tl.where(finite, raw, 0.0)
    if FACTORS >= 1:
        scores *= tl.load(scale + at, mask=live, other=0.0).to(tl.float32)[None, :]
    if FACTORS == 2:
        by_row = tl.load(shift + at, mask=live, other=0.0).to(tl.float32)
        scores += by_row[None, :] * tl.load(weight + q, mask=asked, other=0.0)[:, None]
    scores += tl.load(bias + q, mask=asked, other=0.0)[:, None]
    keep = live
    if MASKED:
        keep = _allowed(mask, at, live)
    return tl.where(keep[None, :] & finite & (scores == scores), scores, float("-inf"))


@triton.jit
def _keep_best(best, scores, rows, K: tl.constexpr):
    """Merge a tile of scores (Q, N) of the int32 `rows` into the best keys (Q, K)."""
    scores = tl.where(scores == 0.0, 0.0, scores)  # -0.0 ties with 0.0
    bits = scores.to(tl.int32, bitcast=True)
    order = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    keys = (order.to(tl.int64) << 32) | (0x7FFFFFFF - rows).to(tl.int64)[None, :]
    worst = tl.min(best, axis=1)
    beats = tl.max(tl.max((keys > worst[:, None]).to(tl.int32), axis=1), axis=0)
    if beats > 0:
        both = tl.join(best, tl.topk(keys, K))
        best = tl.topk(tl.reshape(both, [best.shape[0], 2 * K]), K)
    return best


@triton.jit
def _write_scores(out, scores, rows, live, q, asked, n_rows):
    """Store scores at ``out[query, row]``."""
    to = q.to(tl.int64)[:, None] * n_rows + rows[None, :]
    tl.store(out + to, scores, mask=asked[:, None] & live[None, :])


@triton.jit
def _write_best(out, best, q, asked, K: tl.constexpr):
    """Store keys at ``out[query, program, :]``."""
    to = (q.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * K
    tl.store(out + to[:, None] + tl.arange(0, K)[None, :], best, mask=asked[:, None])


@triton.jit(do_not_specialize=["start", "n_rows", "n_queries", "tiles"])
def scan_kernel(
    c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, gain, scale, shift, weight, bias, mask, out,
    start, n_rows, n_queries, tiles,
    FORM: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, VALUE: tl.constexpr,
    BLOCKED: tl.constexpr, FACTORS: tl.constexpr, MASKED: tl.constexpr,
    K: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Scan rows `start` to ``start + n_rows`` for the best `K` of each query, or write all scores when `K` is 0.

    Grid: (ceil(n_rows / (tiles * N)), ceil(n_queries / Q)). `out` is int64 keys (n_queries, programs, K), or float32
    scores (n_queries, n_rows).
    """
    q = tl.program_id(1) * Q + tl.arange(0, Q)
    asked = q < n_queries
    best = tl.full([Q, K if K > 0 else 1], EMPTY_KEY, tl.int64)
    for tile in range(tiles):
        rows = (tl.program_id(0) * tiles + tile) * N + tl.arange(0, N)
        live = rows < n_rows
        at = start + rows.to(tl.int64)
        raw = _raw(
            c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, gain, at, live, q, asked,
            FORM, DIM, WIDTH, BITS, VALUE, BLOCKED, STEP,
        )  # fmt: skip
        scores = _finish(raw, at, live, q, asked, scale, shift, weight, bias, mask, FACTORS, MASKED)
        if K == 0:
            _write_scores(out, scores, rows, live, q, asked, n_rows)
        else:
            best = _keep_best(best, scores, rows, K)
    if K > 0:
        _write_best(out, best, q, asked, K)


@triton.jit(do_not_specialize=["start", "n_docs"])
def maxsim_kernel(
    c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, gain, scale, shift, weight, bias, mask, out,
    offsets, q_offsets, token_mask, start, n_docs,
    FORM: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, BITS: tl.constexpr, VALUE: tl.constexpr,
    BLOCKED: tl.constexpr, FACTORS: tl.constexpr, MASKED: tl.constexpr, TOKENS_MASKED: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, N: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Score `D` documents a program by ``sum over query tokens of max over document tokens``, and keep the best `K`.

    Document i holds rows ``offsets[i] .. offsets[i + 1]``, query a holds queries ``q_offsets[a] .. q_offsets[a + 1]``.
    A masked token is -inf before the maximum; a document without a token left scores -inf. Factors, bias and `mask`
    are those of documents and queries. Grid: (ceil(n_docs / D), n_queries); `out` as in `scan_kernel`.
    """
    slots = tl.arange(0, D)
    q_first = tl.load(q_offsets + tl.program_id(1)).to(tl.int32)
    q_last = tl.load(q_offsets + tl.program_id(1) + 1).to(tl.int32)
    found = tl.full([D], float("-inf"), tl.float32)
    for slot in range(D):
        doc = tl.program_id(0) * D + slot
        inside = doc < n_docs
        first = tl.load(offsets + start + doc, mask=inside, other=0)
        length = (tl.load(offsets + start + doc + 1, mask=inside, other=0) - first).to(tl.int32)
        total = 0.0
        for q0 in range(q_first, q_last, Q):
            q = q0 + tl.arange(0, Q)
            asked = q < q_last
            nearest = tl.full([Q], float("-inf"), tl.float32)
            for token in range(0, length, N):
                rows = token + tl.arange(0, N)
                live = rows < length
                at = first + rows.to(tl.int64)
                raw = _raw(
                    c0, c1, c2, c3, c4, c5, c6, c7, query, rest, levels, gain, at, live, q, asked,
                    FORM, DIM, WIDTH, BITS, VALUE, BLOCKED, STEP,
                )  # fmt: skip
                if TOKENS_MASKED:
                    live = _allowed(token_mask, at, live)
                nearest = tl.maximum(nearest, tl.max(tl.where(live[None, :], raw, float("-inf")), axis=1))
            total += tl.sum(tl.where(asked, nearest, 0.0), axis=0)
        found = tl.where((slots == slot) & (length > 0), total, found)
    rows = tl.program_id(0) * D + slots
    live = rows < n_docs
    q = tl.program_id(1) + tl.zeros([1], tl.int32)
    asked = q >= 0
    scores = _finish(
        found[None, :], start + rows.to(tl.int64), live, q, asked, scale, shift, weight, bias, mask, FACTORS, MASKED
    )
    if K == 0:
        _write_scores(out, scores, rows, live, q, asked, n_docs)
    else:
        best = _keep_best(tl.full([1, K], EMPTY_KEY, tl.int64), scores, rows, K)
        _write_best(out, best, q, asked, K)
