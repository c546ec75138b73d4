// The nearest point of the E8P codebook, for lattice.py; included by tiles_body.hpp for each instruction set.

// Of 256 patterns, as vectors of patterns side by side: those whose signs have the wrong parity pay for the flip of the
// coordinate where it costs least. Sums run as in NumPy, so that a reference there finds the same codes.
void nearest_pair(const float* y, std::size_t n, const float* table, const float* half, const std::int32_t* odd,
                  std::uint8_t* codes) {
  constexpr std::size_t kPatterns = 256;
  Int lane;
  for (int l = 0; l < LANES; ++l) lane[l] = l;
  for (std::size_t i = 0; i < n; ++i) {
    float best = -3.4e38f;
    for (int high = 0; high < 2; ++high) {
      float shifted[8], size[8], square[8];
      std::uint32_t minus = 0;
      for (int j = 0; j < 8; ++j) {
        shifted[j] = y[i * 8 + j] - (high ? 0.25f : -0.25f);
        size[j] = shifted[j] < 0 ? -shifted[j] : shifted[j];
        square[j] = shifted[j] * shifted[j];
        minus |= static_cast<std::uint32_t>(shifted[j] < 0) << j;
      }
      const int parity = __builtin_popcount(minus) & 1;
      Vec highest = Vec{} - 3.4e38f;
      Int where{};
      for (std::size_t p = 0; p < kPatterns; p += LANES) {
        Vec sum{}, cheapest = Vec{} + 3.4e38f;
        for (std::size_t j = 0; j < 8; ++j) {
          const Vec product = size[j] * load(table + j * kPatterns + p);
          sum += product;
          cheapest = product < cheapest ? product : cheapest;
        }
        Int parities;
        std::memcpy(&parities, odd + p, sizeof parities);
        const Vec score = sum - load(half + p) - (parities != parity ? 2.0f * cheapest : Vec{});
        const Int better = score > highest;
        highest = better ? score : highest;
        where = better ? lane + static_cast<std::int32_t>(p) : where;
      }
      float top = highest[0];
      std::int32_t index = where[0];
      for (int l = 1; l < LANES; ++l)
        if (highest[l] > top || (highest[l] == top && where[l] < index)) {
          top = highest[l];
          index = where[l];
        }
      const float length = ((square[0] + square[1]) + (square[2] + square[3])) +
                           ((square[4] + square[5]) + (square[6] + square[7]));
      const float value = top - length / 2;
      if (!(value > best)) continue;
      best = value;
      if (odd[index] != parity) {
        int flip = 0;
        for (int j = 1; j < 8; ++j)
          if (size[j] * table[j * kPatterns + index] < size[flip] * table[flip * kPatterns + index]) flip = j;
        minus ^= 1u << flip;
      }
      codes[2 * i] = static_cast<std::uint8_t>(index);
      codes[2 * i + 1] = static_cast<std::uint8_t>((minus & 0x7f) | (high << 7));
    }
  }
}
