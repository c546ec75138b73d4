// Product quantization: the nearest codeword of every sub-quantizer.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

// codes[i * m + s] = the codeword nearest to x[i, offsets[s] .. offsets[s + 1]) in the same columns of `codebook`,
// (k, dim) with k <= 256; of equals the first.
void encode_pq(const float* x, std::size_t n, std::size_t dim, const float* codebook, std::size_t k,
               const std::int64_t* offsets, std::size_t m, int threads, std::uint8_t* codes);

// out (n, n_out) = x (n, dim) times the transpose of `matrix` (n_out, dim), every row by itself: one row alone gives
// the same bits as in a batch, which a BLAS does not promise.
void project(const float* x, std::size_t n, std::size_t dim, const float* matrix, std::size_t n_out, int threads,
             float* out);

}  // namespace ragq
