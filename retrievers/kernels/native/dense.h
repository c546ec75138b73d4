// Scans of one number a dimension, stored as floats, halves or bytes.
#pragma once

#include "common.h"

namespace ragq {

struct DenseCodes {
    Value value;
    const uint8_t* codes;  // rows of `stride` bytes
    int64_t stride, dim;
    const float* levels;   // see DenseRun
    const float* queries;  // (n_queries, dim)
};

// Queries padded with zeros, so that the loops read whole vectors, also those of a segment that ends early.
struct Queries {
    int64_t padded;
    Aligned<float> floats;

    Queries(const float* queries, int64_t n, int64_t dim);
};

// Dimensions that have the same number of bits, and the level of each of their codes.
struct Segment {
    int64_t first, stop;
    float levels[256];
};

// Add up the scores of segments of the dimensions, each with its own levels; none: the run as it is.
void dense_segments(const Loops& loops, const DenseRun& run, const std::vector<Segment>& segments);

// Where the codes of a chunk of rows are: in place, or unpacked into a buffer.
using Fetch = std::function<const uint8_t*(int64_t first, int64_t rows)>;

// Score all rows of a part, a chunk at a time.
void scan_dense(const Request& request, const Rows& rows, const DenseRun& run, const Fetch& fetch,
                const std::vector<Segment>& segments, TopK* best);
constexpr int64_t kChunkRows = 128;

void dense_topk(const Request& request, const DenseCodes& codes);

}  // namespace ragq
