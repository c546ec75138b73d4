// Codewords that are near each other share a high nibble.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

constexpr std::size_t kNibbleWords = 256, kNibbleGroup = 16;

// Exchange codewords between runs of 16 of `order` (256 rows of `words`, (256, width)) while that brings them nearer to
// the means of their runs, in at most `sweeps` sweeps over all pairs.
void exchange(const float* words, std::size_t width, int sweeps, std::int64_t* order);

}  // namespace ragq
