// Residual quantization: one stage of a beam search.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

// Extends the beams of every row by the codes of one more stage.
//
// x (n, dim); codebooks (m + 1, k, dim), the new stage last; beams (n, width, m): `width` choices of the first m codes.
// Writes extended (n, wider, m + 1): the `wider` <= width * k choices with the least |x - sum of codewords|^2, the best
// first; of equals the one from the earlier beam, then the lower code.
void extend_beams(const float* x, std::size_t n, std::size_t dim, const float* codebooks, std::size_t m, std::size_t k,
                  const std::uint8_t* beams, std::size_t width, std::size_t wider, int threads,
                  std::uint8_t* extended);

}  // namespace ragq
