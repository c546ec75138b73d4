// The loops of tiles.hpp, included once by the file of each instruction set with LANES floats to a vector and NAME the
// table to define. Everything here has internal linkage: no wide instruction can leak into another file through a
// shared inline function.
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "tiles.hpp"

namespace ragq {
namespace {

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef std::int32_t Int __attribute__((vector_size(LANES * 4)));

constexpr int kVecs = kTile / LANES;                 // vectors to a tile
constexpr int kRows = kVecs < 8 ? 8 / kVecs : 1;     // rows at once, so that eight sums hide the latency of an addition

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// Whether `half` is given says which of the two measures of tiles.hpp is lowest.
template <int Rows, bool Score>
inline void nearest_rows(const float* x, std::size_t stride, std::size_t dim, const float* tiles, const float* half,
                         std::size_t n_tiles, float* distance, std::uint32_t* index) {
  Vec lowest[Rows];
  Int where[Rows];
  Int lane;
  for (int l = 0; l < LANES; ++l) lane[l] = l;
  for (int r = 0; r < Rows; ++r) {
    lowest[r] = Vec{} + kWorst;
    where[r] = Int{};
  }
  for (std::size_t t = 0; t < n_tiles; ++t) {
    const float* c = tiles + t * dim * kTile;
    Vec sum[Rows][kVecs] = {};
    for (int v = 0; Score && v < kVecs; ++v)
      for (int r = 0; r < Rows; ++r) sum[r][v] = load(half + t * kTile + v * LANES);
    for (std::size_t j = 0; j < dim; ++j) {
      for (int v = 0; v < kVecs; ++v) {
        const Vec center = load(c + j * kTile + v * LANES);
        for (int r = 0; r < Rows; ++r) {
          if constexpr (Score) {
            sum[r][v] -= x[r * stride + j] * center;
          } else {
            const Vec difference = x[r * stride + j] - center;
            sum[r][v] += difference * difference;
          }
        }
      }
    }
    for (int v = 0; v < kVecs; ++v) {
      const Int id = lane + static_cast<std::int32_t>(t * kTile + v * LANES);
      for (int r = 0; r < Rows; ++r) {
        const Int closer = sum[r][v] < lowest[r];
        lowest[r] = closer ? sum[r][v] : lowest[r];
        where[r] = closer ? id : where[r];
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float best = lowest[r][0];
    std::int32_t id = where[r][0];
    for (int l = 1; l < LANES; ++l) {
      if (lowest[r][l] < best || (lowest[r][l] == best && where[r][l] < id)) {
        best = lowest[r][l];
        id = where[r][l];
      }
    }
    distance[r] = best;
    index[r] = static_cast<std::uint32_t>(id);
  }
}

template <bool Score>
inline void nearest_of(const float* x, std::size_t rows, std::size_t stride, std::size_t dim, const float* tiles,
                       const float* half, std::size_t n_tiles, float* distance, std::uint32_t* index) {
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    nearest_rows<kRows, Score>(x + i * stride, stride, dim, tiles, half, n_tiles, distance + i, index + i);
  for (; i < rows; ++i)
    nearest_rows<1, Score>(x + i * stride, stride, dim, tiles, half, n_tiles, distance + i, index + i);
}

void nearest(const float* x, std::size_t rows, std::size_t stride, std::size_t dim, const float* tiles,
             std::size_t n_tiles, float* distance, std::uint32_t* index) {
  nearest_of<false>(x, rows, stride, dim, tiles, nullptr, n_tiles, distance, index);
}

void nearest_score(const float* x, std::size_t rows, std::size_t dim, const float* tiles, const float* half,
                   std::size_t n_tiles, float* score, std::uint32_t* index) {
  nearest_of<true>(x, rows, dim, dim, tiles, half, n_tiles, score, index);
}

inline Int load(const std::int32_t* p) {
  Int v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Sums of the products of 16-bit pairs.
inline Int multiply_pairs(Int a, Int b) {
#if defined(__x86_64__) && LANES == 16
  return (Int)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__x86_64__) && LANES == 8
  return (Int)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
  return (Int)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

inline Int larger(Int a, Int b) { return a > b ? a : b; }

template <int Rows>
inline void nearest_fixed_rows(const std::int16_t* x, std::size_t pairs, const std::int16_t* tiles,
                               const std::int32_t* start, std::size_t n_tiles, std::uint8_t* index) {
  Int highest[Rows];
  for (int r = 0; r < Rows; ++r) highest[r] = Int{} + INT32_MIN;
  for (std::size_t t = 0; t < n_tiles; ++t) {
    Int sum[Rows][kVecs];
    for (int v = 0; v < kVecs; ++v)
      for (int r = 0; r < Rows; ++r) sum[r][v] = load(start + t * kTile + v * LANES);
    for (std::size_t p = 0; p < pairs; ++p) {
      const std::int16_t* c = tiles + (t * pairs + p) * kTile * 2;
      std::int32_t pair[Rows];
      for (int r = 0; r < Rows; ++r) std::memcpy(&pair[r], x + (r * pairs + p) * 2, sizeof pair[r]);
      for (int v = 0; v < kVecs; ++v) {
        Int center;
        std::memcpy(&center, c + v * LANES * 2, sizeof center);
        for (int r = 0; r < Rows; ++r) sum[r][v] += multiply_pairs(Int{} + pair[r], center);
      }
    }
    for (int v = 0; v < kVecs; ++v)
      for (int r = 0; r < Rows; ++r) highest[r] = larger(highest[r], sum[r][v]);
  }
  for (int r = 0; r < Rows; ++r) {
    std::int32_t best = highest[r][0];
    for (int l = 1; l < LANES; ++l) best = best < highest[r][l] ? highest[r][l] : best;
    index[r] = static_cast<std::uint8_t>(255 - (best & 255));
  }
}

void nearest_fixed(const std::int16_t* x, std::size_t rows, std::size_t pairs, const std::int16_t* tiles,
                   const std::int32_t* start, std::size_t n_tiles, std::uint8_t* index) {
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    nearest_fixed_rows<kRows>(x + 2 * i * pairs, pairs, tiles, start, n_tiles, index + i);
  for (; i < rows; ++i) nearest_fixed_rows<1>(x + 2 * i * pairs, pairs, tiles, start, n_tiles, index + i);
}

template <int Rows>
inline void products_rows(const float* x, std::size_t stride, std::size_t dim, const float* tiles, std::size_t n_tiles,
                          float* out) {
  for (std::size_t t = 0; t < n_tiles; ++t) {
    const float* c = tiles + t * dim * kTile;
    Vec sum[Rows][kVecs] = {};
    for (std::size_t j = 0; j < dim; ++j) {
      for (int v = 0; v < kVecs; ++v) {
        const Vec center = load(c + j * kTile + v * LANES);
        for (int r = 0; r < Rows; ++r) sum[r][v] += x[r * stride + j] * center;
      }
    }
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVecs; ++v) store(out + (r * n_tiles + t) * kTile + v * LANES, sum[r][v]);
  }
}

void products(const float* x, std::size_t rows, std::size_t stride, std::size_t dim, const float* tiles,
              std::size_t n_tiles, float* out) {
  std::size_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    products_rows<kRows>(x + i * stride, stride, dim, tiles, n_tiles, out + i * n_tiles * kTile);
  for (; i < rows; ++i) products_rows<1>(x + i * stride, stride, dim, tiles, n_tiles, out + i * n_tiles * kTile);
}

float closer(const float* xt, std::size_t n, std::size_t dim, const float* center, float* distance) {
  Vec total[16 / LANES] = {};
  for (std::size_t i = 0; i < n; i += 16)
    for (int v = 0; v < 16 / LANES; ++v) {
      const std::size_t at = i + v * LANES;
      Vec sum{};
      for (std::size_t j = 0; j < dim; ++j) {
        const Vec difference = load(xt + j * n + at) - center[j];
        sum += difference * difference;
      }
      const Vec known = load(distance + at), low = sum < known ? sum : known;
      store(distance + at, low);
      total[v] += low;
    }
  float all = 0;
  for (int l = 0; l < 16; ++l) all += total[l / LANES][l % LANES];
  return all;
}

template <int Vecs>
inline void min_plus_columns(const float* cost, const float* pair, std::size_t k, float* best, std::uint8_t* from) {
  Vec lowest[Vecs];
  Int where[Vecs];
  for (int v = 0; v < Vecs; ++v) {
    lowest[v] = Vec{} + kWorst;
    where[v] = Int{};
  }
  for (std::size_t a = 0; a < k; ++a) {
    for (int v = 0; v < Vecs; ++v) {
      const Vec sum = load(pair + a * k + v * LANES) + cost[a];
      const Int lower = sum < lowest[v];
      lowest[v] = lower ? sum : lowest[v];
      where[v] = lower ? Int{} + static_cast<std::int32_t>(a) : where[v];
    }
  }
  for (int v = 0; v < Vecs; ++v) {
    store(best + v * LANES, lowest[v]);
    for (int l = 0; l < LANES; ++l) from[v * LANES + l] = static_cast<std::uint8_t>(where[v][l]);
  }
}

void min_plus(const float* cost, const float* pair, std::size_t k, float* best, std::uint8_t* from) {
  std::size_t b = 0;
  for (; b + 4 * LANES <= k; b += 4 * LANES) min_plus_columns<4>(cost, pair + b, k, best + b, from + b);
  for (; b < k; b += LANES) min_plus_columns<1>(cost, pair + b, k, best + b, from + b);
}

#include "lattice_body.hpp"

}  // namespace

extern const TileKernels NAME;
const TileKernels NAME = {LABEL, nearest, nearest_score, nearest_fixed, products, min_plus, closer, nearest_pair};

}  // namespace ragq
