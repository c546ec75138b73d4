// Inner loops over tiles of 32 vectors, one build an instruction set, chosen at the first call.
//
// Every build adds in the same order and never contracts a product and a sum into one rounding (-ffp-contract=off), so
// that distances, and with them codebooks and codes, are the same bits on every processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ragq {

constexpr std::size_t kTile = 32;

// Vectors in tiles: tile t holds coordinate j of its 32 vectors at data[(t * dim + j) * 32 ...].
class Tiles {
 public:
  // `vectors`: count rows of `dim` floats, `stride` floats apart. The last tile is filled up with `padding`.
  Tiles(const float* vectors, std::size_t count, std::size_t dim, std::size_t stride, float padding);

  std::size_t count, dim, tiles;
  const float* data() const { return data_.data(); }

 private:
  std::vector<float> data_;
};

constexpr float kFar = 1e18f;     // padding that is nearest to nothing, its square still finite
constexpr float kWorst = 3.4e38f;  // a distance or score that none is above

struct TileKernels {
  const char* name;
  // For each of `rows` vectors, the nearest of the tiled vectors by squared distance; of equals the first.
  void (*nearest)(const float* x, std::size_t rows, std::size_t stride, std::size_t dim, const float* tiles,
                  std::size_t n_tiles, float* distance, std::uint32_t* index);
  // The same by |c|^2 / 2 - <x, c>, half the squared distance less |x|^2 / 2, with `half` the halves (n_tiles * 32): a
  // third fewer operations, and as exact where the mean of all is near 0. Writes that score.
  void (*nearest_score)(const float* x, std::size_t rows, std::size_t dim, const float* tiles, const float* half,
                        std::size_t n_tiles, float* score, std::uint32_t* index);
  // The low byte of the highest start[c] + <x[i], c> over the tiled vectors, subtracted from 255. Numbers of 16 bits lie in
  // pairs: x (rows, pairs, 2), a tile (pairs, 32, 2).
  void (*nearest_fixed)(const std::int16_t* x, std::size_t rows, std::size_t pairs, const std::int16_t* tiles,
                        const std::int32_t* start, std::size_t n_tiles, std::uint8_t* index);
  // out[i * n_tiles * 32 + k] = <x[i], tiled vector k>.
  void (*products)(const float* x, std::size_t rows, std::size_t stride, std::size_t dim, const float* tiles,
                   std::size_t n_tiles, float* out);
  // best[b] = min over a of cost[a] + pair[a * k + b], and in from[b] the first `a` that gives it; k a multiple of 16,
  // at most 256.
  void (*min_plus)(const float* cost, const float* pair, std::size_t k, float* best, std::uint8_t* from);
  // distance[i] = min(distance[i], |x[i] - center|^2) for the columns i of `xt`, (dim, n) with rows n apart, `n` a
  // multiple of 16; returns the sum of all distances.
  float (*closer)(const float* xt, std::size_t n, std::size_t dim, const float* center, float* distance);
  // codes[2 i ...] = the pattern and the signs of the point of E8P nearest to y (n, 8). `table` (8, 256) holds magnitudes,
  // `half` (256) half their squared lengths, `odd` (256) the parity of their signs.
  void (*nearest_pair)(const float* y, std::size_t n, const float* table, const float* half, const std::int32_t* odd,
                       std::uint8_t* codes);
};

const TileKernels& tile_kernels();

// One per build; null where the build cannot hold it.
extern const TileKernels kBaseline;
#if defined(__x86_64__)
extern const TileKernels kAvx2, kAvx512;
#endif

}  // namespace ragq
