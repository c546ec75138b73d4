#include "scalar.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "parallel.hpp"
#include "tiles.hpp"

namespace ragq {
namespace {

const ScalarKernels& kernels() {
#if defined(__x86_64__)
  if (std::strcmp(tile_kernels().name, "avx512") == 0) return kScalarAvx512;
  if (std::strcmp(tile_kernels().name, "avx2") == 0) return kScalarAvx2;
#endif
  return kScalarBaseline;
}

// Calls body(first row, rows, scratch) for groups of `lanes` rows, the scratch aligned for the widest vectors.
template <class Body>
void by_lanes(std::size_t n, std::size_t dim, int threads, const Body& body) {
  const std::size_t lanes = kernels().lanes;
  constexpr std::align_val_t line{64};
  parallel_for(n, 16 * lanes, threads, [&](std::size_t begin, std::size_t end) {
    const auto release = [&](float* p) { ::operator delete[](p, line); };
    const std::unique_ptr<float[], decltype(release)> scratch(
        static_cast<float*>(::operator new[](3 * dim * lanes * sizeof(float), line)), release);
    for (std::size_t i = begin; i < end; i += lanes) body(i, std::min(lanes, end - i), scratch.get());
  });
}

}  // namespace

void hadamard(const HadamardSpec& spec, const float* x, std::size_t n, int threads, float* out) {
  by_lanes(n, spec.dim, threads, [&](std::size_t i, std::size_t rows, float* scratch) {
    kernels().hadamard(spec, x + i * spec.dim, rows, out + i * spec.dim, scratch);
  });
}

void encode_planes(PlanesSpec spec, const float* z, std::size_t n, int threads, std::uint8_t* codes, float* factor) {
  std::vector<float> edges(spec.uniform ? 0 : std::size_t{2} << spec.bits[0]);
  for (std::size_t i = 0; !spec.uniform && i + 3 < edges.size(); ++i)
    edges[i] = 0.5f * (spec.levels[i] + spec.levels[i + 1]);
  spec.edges = edges.data();
  std::vector<float> ratios;  // whole groups of scales: the last repeated
  for (std::size_t t = 0; t < spec.n_scales || t % kScalesAtOnce != 0; ++t)
    for (std::size_t j = 0; j < spec.dim; ++j)
      ratios.push_back(spec.scales[std::min(t, spec.n_scales - 1)] / spec.step[j]);
  spec.ratios = ratios.data();
  by_lanes(n, spec.dim, threads, [&](std::size_t i, std::size_t rows, float* scratch) {
    kernels().planes(spec, z + i * spec.dim, rows, codes + i * spec.width, factor + i, scratch);
  });
}

}  // namespace ragq
