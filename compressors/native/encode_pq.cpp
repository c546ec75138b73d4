#include "encode_pq.hpp"

#include <cstring>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {

constexpr std::size_t kRows = 128;  // rows a thread takes at once: they stay in cache while the codebooks pass by

void encode_pq(const float* x, std::size_t n, std::size_t dim, const float* codebook, std::size_t k,
               const std::int64_t* offsets, std::size_t m, int threads, std::uint8_t* codes) {
  std::vector<Tiles> tiles;
  for (std::size_t s = 0; s < m; ++s)
    tiles.emplace_back(codebook + offsets[s], k, static_cast<std::size_t>(offsets[s + 1] - offsets[s]), dim, kFar);
  const auto& kernels = tile_kernels();
  parallel_for(n, kRows, threads, [&](std::size_t begin, std::size_t end) {
    float distance[kRows];
    std::uint32_t index[kRows];
    for (std::size_t s = 0; s < m; ++s) {
      kernels.nearest(x + begin * dim + offsets[s], end - begin, dim, tiles[s].dim, tiles[s].data(), tiles[s].tiles,
                      distance, index);
      for (std::size_t i = begin; i < end; ++i) codes[i * m + s] = static_cast<std::uint8_t>(index[i - begin]);
    }
  });
}

void project(const float* x, std::size_t n, std::size_t dim, const float* matrix, std::size_t n_out, int threads,
             float* out) {
  const Tiles tiles(matrix, n_out, dim, dim, 0.0f);
  const auto& kernels = tile_kernels();
  const std::size_t wide = tiles.tiles * kTile;
  parallel_for(n, kRows, threads, [&](std::size_t begin, std::size_t end) {
    std::vector<float> products(kRows * wide);
    kernels.products(x + begin * dim, end - begin, dim, dim, tiles.data(), tiles.tiles, products.data());
    for (std::size_t i = begin; i < end; ++i)
      std::memcpy(out + i * n_out, products.data() + (i - begin) * wide, n_out * sizeof(float));
  });
}

}  // namespace ragq
