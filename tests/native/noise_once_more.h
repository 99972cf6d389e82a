// The noise once more, from the definition in philox.h.
#pragma once

#include <algorithm>

#include "common.h"

namespace n2n::tests {

inline u64 word_once_more(u64 seed, u32 tensor, u32 stream, u64 index) {
  u64 c[4] = {(index / 4) % (u64{1} << 32), (index / 4) >> 32, tensor, stream};
  u64 k[2] = {seed % (u64{1} << 32), seed >> 32};
  constexpr u64 kWord = 0xFFFFFFFF;
  for (int round = 0; round < 7; ++round) {
    const u64 p0 = 0xD2511F53 * c[0], p1 = 0xCD9E8D57 * c[2];
    const u64 next[4] = {(p1 >> 32) ^ c[1] ^ k[0], p1 & kWord, (p0 >> 32) ^ c[3] ^ k[1], p0 & kWord};
    std::copy(next, next + 4, c);
    k[0] = (k[0] + 0x9E3779B9) & kWord;
    k[1] = (k[1] + 0xBB67AE85) & kWord;
  }
  return c[index % 4];
}

inline i64 half_noise_once_more(u64 w, bool second) {
  const u64 half = second ? w / 65536 : w % 65536;
  return 254 * static_cast<i64>(half % 256) + 252 * static_cast<i64>(half / 256) - 64515 + (second ? 0 : 1);
}

inline i64 noise_once_more(u64 w) { return half_noise_once_more(w, false) + half_noise_once_more(w, true); }

}  // namespace n2n::tests
