#include "neighbours.hpp"

#include <utility>
#include <vector>

namespace ragq {

void exchange(const float* words, std::size_t width, int sweeps, std::int64_t* order) {
  constexpr std::size_t n = kNibbleWords, groups = n / kNibbleGroup;
  std::vector<std::size_t> place(n);
  for (std::size_t p = 0; p < n; ++p) place[order[p]] = p;
  std::vector<double> gram(n * n), toward(n * groups);  // products with each other, and with the sums of groups
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j <= i; ++j) {
      double product = 0;
      for (std::size_t d = 0; d < width; ++d) product += double{words[i * width + d]} * words[j * width + d];
      gram[i * n + j] = gram[j * n + i] = product;
    }
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t j = 0; j < n; ++j) toward[i * groups + place[j] / kNibbleGroup] += gram[i * n + j];
  for (bool moved = true; moved && sweeps > 0; --sweeps) {
    moved = false;
    for (std::size_t i = 0; i < n; ++i)
      for (std::size_t j = i + 1; j < n; ++j) {
        const std::size_t a = place[i] / kNibbleGroup, b = place[j] / kNibbleGroup;
        if (a == b) continue;
        // Half of what the squared sums of the two groups gain: (A + d)^2 + (B - d)^2 for d = j - i.
        const double apart = gram[i * n + i] + gram[j * n + j] - 2 * gram[i * n + j];
        const double gain = toward[j * groups + a] - toward[i * groups + a] - toward[j * groups + b] +
                            toward[i * groups + b] + apart;
        if (!(gain > 1e-9 * apart)) continue;
        std::swap(place[i], place[j]);
        for (std::size_t x = 0; x < n; ++x) {
          const double change = gram[x * n + j] - gram[x * n + i];
          toward[x * groups + a] += change, toward[x * groups + b] -= change;
        }
        moved = true;
      }
  }
  for (std::size_t i = 0; i < n; ++i) order[place[i]] = static_cast<std::int64_t>(i);
}

}  // namespace ragq
