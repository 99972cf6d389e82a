// The GPU's kernel, thread by thread on the CPU: slow, and the proof that its code is right where there is no GPU.
#include <algorithm>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "dispatch.h"
#include "gather_scale_block.h"
#include "kernels.h"

namespace n2n {
namespace {

template <class S, Noise N>
void run_blocks(const GatherScaleArgs& args) {
  // Exactly as large as what the launch asks for, so that a sanitizer sees an element too far. Without one, what is
  // written beyond shall at least be seen, and be nobody else's memory.
#if defined(N2N_SANITIZED)
  constexpr std::size_t kBeyond = 0;
#else
  constexpr std::size_t kBeyond = 64 * 1024;
#endif
  const std::size_t vectors = static_cast<std::size_t>((args.stage_bytes + kVectorBytes - 1) / kVectorBytes);
  const std::unique_ptr<Pack<S, kVectorOf<S>>[]> stage(new Pack<S, kVectorOf<S>>[vectors + kBeyond]);
  unsigned char* const beyond = reinterpret_cast<unsigned char*>(stage.get() + vectors);
  constexpr unsigned char kUntouched = 0xC3;
  std::fill_n(beyond, kBeyond * kVectorBytes, kUntouched);
  const SharedRow<S> shared(stage.get());
  for (i64 number = 0; number < args.count; ++number) {
    const auto tile = BlockTile<S, N>::of(args, number);
    // What is not staged must not be read; finite numbers, because others are made from the tensor instead.
    std::memset(static_cast<void*>(stage.get()), 0x5A, vectors * kVectorBytes);
    for (int thread = 0; thread < kBlockThreads; ++thread) tile.stage(shared, thread);
    if (!tile.by_rows()) {
      for (int thread = 0; thread < kBlockThreads; ++thread) tile.emit(shared, thread, args.seed);
      continue;
    }
    const auto all = tile.all_outputs();
    const i32 at_once = static_cast<i32>(tile.t.row_room);
    const auto make_words = [&](i32 first) {
      for (int thread = 0; thread < kBlockThreads && tile.has_words(); ++thread) {
        const auto team = tile.storing_team(thread);
        if (first + team.row < all.last) tile.make_words(shared, team, args.seed, first + team.row);
      }
    };
    make_words(all.first);
    i32 made = -1;
    for (i32 n = all.first; n < all.last; n += at_once) {
      if (!tile.alike() || tile.row_at(n) != made) {
        for (int thread = 0; thread < kBlockThreads; ++thread) {
          const auto team = tile.making_team(thread);
          if (n + team.row < all.last) tile.make_row(shared, team, args.seed, n + team.row);
        }
        made = tile.row_at(n);
      }
      for (int thread = 0; thread < kBlockThreads; ++thread) {
        const auto team = tile.storing_team(thread);
        if (n + team.row < all.last) tile.store_row(shared, team, n + team.row);
      }
      make_words(n + at_once);
    }
  }
  if (std::any_of(beyond, beyond + kBeyond * kVectorBytes, [](unsigned char byte) { return byte != kUntouched; })) {
    throw std::runtime_error("the launch asked for too little shared memory: it was written beyond");
  }
}

}  // namespace

void gather_scale_blocks(DType dtype, const GatherScaleArgs& args) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    switch (args.noise) {
      case Noise::kNone: return run_blocks<S, Noise::kNone>(args);
      case Noise::kReplicas: return run_blocks<S, Noise::kReplicas>(args);
      case Noise::kCancelling: return run_blocks<S, Noise::kCancelling>(args);
    }
  });
}

}  // namespace n2n
