// Scans of packed bits against packed bits, and top-k of given scores.
#pragma once

#include "common.h"

namespace ragq {

struct HammingCodes {
    const uint8_t* codes;    // rows of `width` bytes
    int64_t width, dim;
    bool blocked;            // byte j of 32 rows side by side, see ragq.layouts
    const uint8_t* queries;  // (n_queries, width)
    const float* weight;     // raw = weight * (dim - 2 * differing bits)
};

void hamming_topk(const Request& request, const HammingCodes& codes);

// Top-k of scores (n_queries, n) that are there already.
void select_topk(const Request& request, const float* scores, int64_t n);

}  // namespace ragq
