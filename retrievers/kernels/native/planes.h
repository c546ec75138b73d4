// Scans of one number a dimension, stored as bit planes.
#pragma once

#include "dense.h"

namespace ragq {

// Codes of up to `bits` bits as bit planes, most significant first: plane 0 in blocks of 32 rows, the others as rows.
// The first `dims[b]` dimensions, which descend, have more than b bits, and plane b holds the next one of each. With
// `words`, the last bit of every dimension is not in a plane: 8 dimensions share a nibble that names the Hamming word of
// theirs, two nibbles a byte, rows; then plane b holds a bit for the first `dims[b + 1]` dimensions.
struct PlaneCodes {
    const uint8_t* planes[8];
    int bits;
    int64_t dims[8];
    const float* levels;   // those of 1-bit codes, of 2-bit codes, ...: the table of n bits begins at 2^n - 2
    const float* queries;  // (n_queries, dims[0])
    const uint8_t* words = nullptr;

    int64_t dim() const { return dims[0]; }
    int stored() const { return bits - (words != nullptr); }  // planes
    int64_t covered(int plane) const { return dims[plane + (words != nullptr)]; }
    int64_t width(int plane) const { return (covered(plane) + 7) / 8; }
    // Bytes of an unpacked row: a code a dimension, and room for whole vectors.
    int64_t stride() const { return (dim() + 63) / 64 * 64; }
    // Write the codes of a row; the bits that a dimension lacks are zero.
    void unpack(const Loops& loops, int64_t row, uint8_t* codes) const;
};

// `margin` > 0: candidates come from the first plane alone, and then from a weighted sum of the bits of all planes; see
// `fit_estimate`.
void planes_topk(const Request& request, const PlaneCodes& codes, double margin);

}  // namespace ragq
