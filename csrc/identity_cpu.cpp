#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace n2n {
namespace {

// Tiles that are stored past the caches before the thread waits for them to have arrived.
constexpr i64 kTilesAtOnce = 16;

// What one thread fills in less time than it takes to start another.
constexpr i64 kBytesPerThread = i64{4} << 20;

struct Ones {
  i64 next, end;
};

// What the compiler knows to be zeros it makes a memset of, which takes a third longer than a loop of wide stores does
// (glibc's, for 16 KB that are in no cache).
#if defined(__GNUC__)
#define N2N_HIDE(value) asm("" : "+r"(value))
#else
#define N2N_HIDE(value) static_cast<void>(value)
#endif

N2N_SIMD void zero(unsigned char* to, std::size_t bytes) {
  u64 nothing = 0;
  N2N_HIDE(nothing);
  u64 line[16];
  for (u64& word : line) word = nothing;
  for (; bytes >= sizeof line; bytes -= sizeof line, to += sizeof line) std::memcpy(to, line, sizeof line);
  std::memset(to, 0, bytes);
}

// Elements [begin, end) of a dense tensor, with plain stores: zeros first, while the tile stays in the first cache.
template <class S>
void fill(const IdentityTask& t, i64 begin, i64 end, Ones ones) {
  S* const dst = reinterpret_cast<S*>(t.dst);
  zero(reinterpret_cast<unsigned char*>(dst + begin), static_cast<std::size_t>(end - begin) * sizeof(S));
  for (; ones.next < ones.end; ++ones.next) dst[position_of_one(t, ones.next)] = one_or_zero<S>(true);
}

// The same past the caches, where each vector must be right when it is stored. `begin` and `end` lie at multiples of
// 16 bytes.
template <class S>
void stream(const IdentityTask& t, i64 begin, i64 end, Ones ones) {
  S* const dst = reinterpret_cast<S*>(t.dst);
  const Vector zero = vector_of_ones<S>(0);
  i64 e = begin;
  while (e < end) {
    const i64 one = ones.next < ones.end ? position_of_one(t, ones.next) : end;
    for (; e + 4 * kVectorOf<S> <= one; e += 4 * kVectorOf<S>) {  // a cache line
      for (int v = 0; v < 4; ++v) stream_vector(dst + e + v * kVectorOf<S>, zero);
    }
    for (; e + kVectorOf<S> <= one; e += kVectorOf<S>) stream_vector(dst + e, zero);
    if (e >= end) break;
    u32 bits = 0;
    for (; ones.next < ones.end && position_of_one(t, ones.next) < e + kVectorOf<S>; ++ones.next) {
      bits |= 1u << (position_of_one(t, ones.next) - e);
    }
    stream_vector(dst + e, vector_of_ones<S>(bits));
    e += kVectorOf<S>;
  }
}

// Elements [begin, end) of a tensor with gaps.
template <class S>
void scatter(const IdentityTask& t, i64 begin, i64 end, Ones ones) {
  for (i64 row = begin; row < end;) {
    const i64 row_end = std::min(end, (quotient(row, t.extent_2) + 1) * t.extent_2);
    S* dst = scattered<S>(t, row);
    for (; row < row_end; ++row, dst += t.stride_2) *dst = one_or_zero<S>(false);
  }
  for (; ones.next < ones.end; ++ones.next) {
    *scattered<S>(t, position_of_one(t, ones.next)) = one_or_zero<S>(true);
  }
}

template <class S>
void run_tile(const IdentityTask& t, i64 tile, bool streaming) {
  const i64 slot = IdentityTile<S>::begin(t, tile);
  const i64 begin = std::max<i64>(slot, 0), end = std::min<i64>(slot + IdentityTile<S>::kSlots, t.elements);
  const Ones ones{ones_before(t, begin), ones_before(t, end)};
  if (!t.dense) return scatter<S>(t, begin, end, ones);
  const bool whole = end - begin == IdentityTile<S>::kSlots;
  return streaming && whole ? stream<S>(t, begin, end, ones) : fill<S>(t, begin, end, ones);
}

}  // namespace

void identity_cpu(DType dtype, const IdentityArgs& args, bool streaming, int threads) {
  const i64 bytes = args.tiles * kIdentityTileBytes;
  threads = static_cast<int>(std::min<i64>(threads, bytes / kBytesPerThread));
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    const i64 at_once = streaming ? kTilesAtOnce : 1;
    parallel_for((args.tiles + at_once - 1) / at_once, bytes, threads, [&](i64 group) {
      const i64 end = std::min((group + 1) * at_once, args.tiles);
      for (i64 tile = group * at_once; tile < end; ++tile) {
        run_tile<S>(args.tasks[args.tile_task[tile]], tile, streaming);
      }
      if (streaming) finish_streaming();
    });
  });
}

}  // namespace n2n
