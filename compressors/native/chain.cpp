#include "chain.hpp"

#include <algorithm>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

constexpr std::size_t kRows = 16;  // rows that share a pass over the pair tables

// One side of a group: its codewords in tiles, and their squared lengths.
struct Side {
  Tiles tiles;
  std::vector<float> squares;
  Side(const float* words, std::size_t k, std::size_t width, std::size_t stride)
      : tiles(words, k, width, stride, 0.0f), squares(k, 0.0f) {
    for (std::size_t c = 0; c < k; ++c)
      for (std::size_t j = 0; j < width; ++j) squares[c] += words[c * stride + j] * words[c * stride + j];
  }
  // cost[c] += |word|^2 - 2 <x, word>
  void add(const float* x, std::size_t dim, std::vector<float>& products, float* cost) const {
    tile_kernels().products(x, 1, dim, tiles.dim, tiles.data(), tiles.tiles, products.data());
    for (std::size_t c = 0; c < squares.size(); ++c) cost[c] += squares[c] - 2 * products[c];
  }
};

}  // namespace

void encode_chain(const float* x, std::size_t n, std::size_t dim, const float* codebooks, std::size_t k,
                  const std::int64_t* offsets, std::size_t groups, int threads, std::uint8_t* codes) {
  std::vector<Side> left, right;
  std::vector<float> pairs(groups * k * k, 0.0f);  // 2 <left[a], right[b]> of each group
  for (std::size_t g = 0; g < groups; ++g) {
    const std::size_t start = offsets[g], width = offsets[g + 1] - offsets[g];
    const float *words = codebooks + start, *others = codebooks + k * dim + start;
    left.emplace_back(words, k, width, dim);
    right.emplace_back(others, k, width, dim);
    for (std::size_t a = 0; a < k; ++a)
      for (std::size_t b = 0; b < k; ++b) {
        float sum = 0;
        for (std::size_t j = 0; j < width; ++j) sum += words[a * dim + j] * others[b * dim + j];
        pairs[(g * k + a) * k + b] = 2 * sum;
      }
  }
  parallel_for(n, kRows, threads, [&](std::size_t begin, std::size_t end) {
    const std::size_t rows = end - begin;
    std::vector<float> cost(rows * k, 0.0f), best(k), products(left[0].tiles.tiles * kTile);
    std::vector<std::uint8_t> from(rows * groups * k);  // the code before each code, on its best path
    for (std::size_t g = 0; g < groups; ++g) {
      for (std::size_t i = 0; i < rows; ++i) {
        const float* group = x + (begin + i) * dim + offsets[g];
        left[g].add(group, dim, products, &cost[i * k]);
        tile_kernels().min_plus(&cost[i * k], &pairs[g * k * k], k, best.data(), &from[(i * groups + g) * k]);
        std::copy(best.begin(), best.end(), &cost[i * k]);
        right[g].add(group, dim, products, &cost[i * k]);
      }
    }
    for (std::size_t i = 0; i < rows; ++i) {
      std::uint8_t* row = codes + (begin + i) * (groups + 1);
      const float* last = &cost[i * k];
      row[groups] = static_cast<std::uint8_t>(std::min_element(last, last + k) - last);
      for (std::size_t g = groups; g-- > 0;) row[g] = from[(i * groups + g) * k + row[g + 1]];
    }
  });
}

}  // namespace ragq
