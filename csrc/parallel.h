// A parallel loop over tiles for the CPU backend, on torch's threads where Python has found them. A copy of OpenMP's
// runtime of our own would fight with torch's over the cores, and a thread that is started for each loop may wait for
// milliseconds until it has a core (2.6 on a virtual machine that shares its cores), while torch's are awake.
#pragma once

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

#include "common.h"

namespace n2n {

// Runs a function with this argument on so many threads, the calling one included, and returns when all are done: what
// OpenMP's runtimes of GNU, LLVM and Intel call GOMP_parallel. (The last argument is for hints, of which 0 is none.)
using Team = void (*)(void (*function)(void*), void* argument, unsigned threads, unsigned hints);

// Torch's; null for threads that are started for each loop.
inline std::atomic<Team> shared_team{nullptr};

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
  if (const Team team = shared_team.load(); team && useful > 1) {
    const auto start = [](void* mine) { (*static_cast<decltype(work)*>(mine))(); };
    team(start, const_cast<void*>(static_cast<const void*>(&work)), static_cast<unsigned>(useful), 0);
    return;
  }
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
