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

// Calls body(worker, tile) for each tile in [0, tiles), in no particular order, on up to `threads` threads, this one
// included. Each thread makes one `worker` with make_worker(), for what it keeps from tile to tile. `bytes` is what all
// tiles together move: starting a thread costs about as much as writing a few hundred kilobytes.
template <class MakeWorker, class Body>
void parallel_for(i64 tiles, i64 bytes, int threads, const MakeWorker& make_worker, const Body& body) {
  constexpr i64 kBytesPerThread = 512 * 1024;
  const i64 useful = std::max<i64>(1, std::min({static_cast<i64>(threads), tiles, bytes / kBytesPerThread}));
  std::atomic<i64> next{0};
  const i64 chunk = std::max<i64>(1, tiles / (useful * 16));
  const auto work = [&] {
    auto worker = make_worker();
    for (;;) {
      const i64 begin = next.fetch_add(chunk, std::memory_order_relaxed);
      if (begin >= tiles) return;
      const i64 end = std::min(begin + chunk, tiles);
      for (i64 tile = begin; tile < end; ++tile) body(worker, tile);
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

// The same without workers.
template <class Body>
void parallel_for(i64 tiles, i64 bytes, int threads, const Body& body) {
  struct None {};
  parallel_for(tiles, bytes, threads, [] { return None{}; }, [&](None&, i64 tile) { body(tile); });
}

}  // namespace n2n
