// Threads without OpenMP: a pool that outlives a fork deadlocks in the child, so every call joins what it starts.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace ragq {

// Calls body(begin, end) for consecutive chunks of `grain` items of 0 .. n. Which thread runs a chunk is left open, so
// a body may write only what belongs to its own items; then the result does not depend on the number of threads.
template <class Body>
void parallel_for(std::size_t n, std::size_t grain, int threads, const Body& body) {
  const std::size_t chunks = (n + grain - 1) / grain;
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t c = next++; c < chunks; c = next++) body(c * grain, std::min(n, (c + 1) * grain));
  };
  const std::size_t helpers = std::min<std::size_t>(std::max(threads, 1), chunks);
  std::vector<std::thread> started;
  for (std::size_t i = 1; i < helpers; ++i) started.emplace_back(work);
  work();
  for (auto& thread : started) thread.join();
}

}  // namespace ragq
