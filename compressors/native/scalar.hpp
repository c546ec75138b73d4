// Scalar codes for many rows at once: a row a lane, so that a row's code never depends on its neighbours, on the
// instruction set or on the number of threads (see tiles.hpp for the rules that keep the bits equal).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ragq {

constexpr int kMaxBits = 16;
constexpr std::size_t kScalesAtOnce = 4;

// A randomised Hadamard rotation: each round permutes, flips signs, and applies the orthonormal Walsh-Hadamard
// transform to the power-of-two blocks that make up the dimension, largest first.
struct HadamardSpec {
  std::size_t dim, rounds;
  const std::int32_t* order;  // (rounds, dim): position j takes coordinate order[j]
  const float* signs;         // (rounds, dim): +1 or -1
  bool inverse;
};

// How rows become bit planes. Coordinate j has bits[j] bits (never more than coordinate j - 1) and the value
// levels[2^b - 2 + code] * step[j], b = bits[j].
struct PlanesSpec {
  std::size_t dim;
  const std::uint8_t* bits;     // (dim)
  const float* step;            // (dim)
  const float* levels;          // tables of 1, 2, ... bits, one after the other, ascending
  bool uniform;                 // levels are code + (1 - 2^b) / 2: no search needed
  bool coded;                   // the last bits of 8 coordinates form a word of the extended Hamming code, see kWords
  bool normalise;               // quantise the row divided by its length
  const float* scales;          // (n_scales) multiples of the row to try; the one of the best cosine wins
  std::size_t n_scales;
  const float* along;           // (dim) u: the factor is sum u z^2 / sum u z v, v the row's levels
  const float* noise;           // (dim) w: code adjustment lowers sum w (z - factor v)^2
  int rounds;                   // of code adjustment
  std::size_t width;            // bytes of a row's planes, and of its words when coded
  const float* edges;           // where the nearest level changes, filled in by encode_planes; tables as in `levels`
  const float* ratios;          // (n_scales, dim) scales over steps, filled in by encode_planes
};

// The extended Hamming code: word `m` has the bits of `m` in its first four places. With the last bits of 8 codes held to
// its words, 4 bits select among levels twice as fine: on an even grid the points are those of the lattice E8.
constexpr std::uint8_t kWords[16] = {0x00, 0xe1, 0xd2, 0x33, 0xb4, 0x55, 0x66, 0x87,
                                     0x78, 0x99, 0xaa, 0x4b, 0xcc, 0x2d, 0x1e, 0xff};

struct ScalarKernels {
  std::size_t lanes;
  // `rows` of at most `lanes` rows, the last one repeated in the lanes that are left; `scratch` holds 3 dim lanes floats.
  void (*hadamard)(const HadamardSpec& spec, const float* x, std::size_t rows, float* out, float* scratch);
  void (*planes)(const PlanesSpec& spec, const float* z, std::size_t rows, std::uint8_t* codes, float* factor,
                 float* scratch);
};

void hadamard(const HadamardSpec& spec, const float* x, std::size_t n, int threads, float* out);
void encode_planes(PlanesSpec spec, const float* z, std::size_t n, int threads, std::uint8_t* codes, float* factor);

extern const ScalarKernels kScalarBaseline;
#if defined(__x86_64__)
extern const ScalarKernels kScalarAvx2, kScalarAvx512;
#endif

}  // namespace ragq
