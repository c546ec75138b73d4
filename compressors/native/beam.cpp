#include "beam.hpp"

#include <algorithm>
#include <utility>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {

void extend_beams(const float* x, std::size_t n, std::size_t dim, const float* codebooks, std::size_t m, std::size_t k,
                  const std::uint8_t* beams, std::size_t width, std::size_t wider, int threads,
                  std::uint8_t* extended) {
  const float* stage = codebooks + m * k * dim;
  const Tiles tiles(stage, k, dim, dim, 0.0f);
  const std::size_t wide = tiles.tiles * kTile;
  std::vector<float> squares(k, 0.0f);
  for (std::size_t c = 0; c < k; ++c)
    for (std::size_t j = 0; j < dim; ++j) squares[c] += stage[c * dim + j] * stage[c * dim + j];

  parallel_for(n, 16, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> residuals(width * dim), products(width * wide);
    std::vector<std::pair<float, std::uint32_t>> choices(width * k);
    for (std::size_t i = begin; i < end; ++i) {
      for (std::size_t b = 0; b < width; ++b) {
        float* r = residuals.data() + b * dim;
        const std::uint8_t* codes = beams + (i * width + b) * m;
        std::copy_n(x + i * dim, dim, r);
        for (std::size_t s = 0; s < m; ++s) {
          const float* word = codebooks + (s * k + codes[s]) * dim;
          for (std::size_t j = 0; j < dim; ++j) r[j] -= word[j];
        }
      }
      tile_kernels().products(residuals.data(), width, dim, dim, tiles.data(), tiles.tiles, products.data());
      for (std::size_t b = 0; b < width; ++b) {
        float square = 0;
        for (std::size_t j = 0; j < dim; ++j) square += residuals[b * dim + j] * residuals[b * dim + j];
        for (std::size_t c = 0; c < k; ++c)
          choices[b * k + c] = {square + squares[c] - 2 * products[b * wide + c], static_cast<std::uint32_t>(b * k + c)};
      }
      std::partial_sort(choices.begin(), choices.begin() + static_cast<std::ptrdiff_t>(wider), choices.end());
      for (std::size_t b = 0; b < wider; ++b) {
        const std::size_t from = choices[b].second / k;
        std::uint8_t* codes = extended + (i * wider + b) * (m + 1);
        std::copy_n(beams + (i * width + from) * m, m, codes);
        codes[m] = static_cast<std::uint8_t>(choices[b].second % k);
      }
    }
  });
}

}  // namespace ragq
