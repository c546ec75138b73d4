// Codes in a chain, each group of dimensions the sum of two neighbouring codewords: the best codes by dynamic programming.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

// Group g of the dimensions, offsets[g] .. offsets[g + 1], decodes to left[codes[g]] + right[codes[g + 1]] in its
// columns, `codebooks` being left and right, (2, k, dim). Writes the codes (n, groups + 1) of the least squared error.
void encode_chain(const float* x, std::size_t n, std::size_t dim, const float* codebooks, std::size_t k,
                  const std::int64_t* offsets, std::size_t groups, int threads, std::uint8_t* codes);

}  // namespace ragq
