// A parallel loop over tiles for the CPU backend. Threads of our own rather than OpenMP's: torch brings its own copy of
// that runtime, and two in one process fight over the cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "common.h"

namespace n2n {

// Calls body(tile) for each tile in [0, tiles), in no particular order, on up to `threads` threads, this one included.
template <class Body>
void parallel_for(i64 tiles, int threads, const Body& body) {
  // Starting a thread costs about as much as a few tiles of work.
  constexpr i64 kTilesPerThread = 8;
  const i64 useful = std::min<i64>(threads, tiles / kTilesPerThread);
  if (useful <= 1) {
    for (i64 tile = 0; tile < tiles; ++tile) body(tile);
    return;
  }
  std::atomic<i64> next{0};
  const i64 chunk = std::max<i64>(1, tiles / (useful * 16));
  const auto work = [&] {
    for (;;) {
      const i64 begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= tiles) return;
      const i64 end = std::min(begin + chunk, tiles);
      for (i64 tile = begin; tile < end; ++tile) body(tile);
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(useful - 1));
  // A machine that is out of threads still gets the work done, on those that started.
  try {
    for (i64 i = 1; i < useful; ++i) others.emplace_back(work);
  } catch (const std::system_error&) {
  }
  work();
  for (auto& thread : others) thread.join();
}

}  // namespace n2n
