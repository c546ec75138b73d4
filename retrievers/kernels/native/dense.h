// Scans of one number a dimension, stored as floats, halves, bytes or bit planes.
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

// A `bits`-bit code a dimension; plane 0 in blocks of 32 rows, the others as rows of `width` bytes.
struct PlaneCodes {
    const uint8_t* planes[8];
    int bits;
    int64_t width, dim;
    const float* levels;   // 256 entries, the first 2^bits count
    const float* queries;  // (n_queries, dim)

    // Bytes of an unpacked row: a code a dimension, and room for whole vectors.
    int64_t stride() const { return (width + 7) / 8 * 64; }
    void unpack(const Loops& loops, int64_t row, uint8_t* codes) const;
};

void dense_topk(const Request& request, const DenseCodes& codes);

// `margin` > 0: candidates come from the first plane alone, see `measure_bounds`.
void planes_topk(const Request& request, const PlaneCodes& codes, double margin);

}  // namespace ragq
