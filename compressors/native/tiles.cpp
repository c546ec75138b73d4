#include "tiles.hpp"

#include <cstdlib>
#include <cstring>

namespace ragq {

Tiles::Tiles(const float* vectors, std::size_t count, std::size_t dim, std::size_t stride, float padding)
    : count(count), dim(dim), tiles((count + kTile - 1) / kTile), data_(tiles * dim * kTile, padding) {
  for (std::size_t k = 0; k < count; ++k)
    for (std::size_t j = 0; j < dim; ++j)
      data_[((k / kTile) * dim + j) * kTile + k % kTile] = vectors[k * stride + j];
}

// RAGQ_CPU=baseline|avx2|avx512 lowers the choice, for tests and for comparing.
static const TileKernels& choose() {
#if defined(__x86_64__)
  const char* wanted = std::getenv("RAGQ_CPU");
  const bool any = wanted == nullptr;
  if ((any || std::strcmp(wanted, "avx512") == 0) && __builtin_cpu_supports("avx512bw")) return kAvx512;
  if ((any || std::strncmp(wanted, "avx", 3) == 0) && __builtin_cpu_supports("avx2")) return kAvx2;
#endif
  return kBaseline;
}

const TileKernels& tile_kernels() {
  static const TileKernels& chosen = choose();
  return chosen;
}

}  // namespace ragq
