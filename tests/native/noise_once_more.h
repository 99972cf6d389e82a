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

inline i64 noise_once_more(u64 w) {
  const u64 sum = w % 256 + (w >> 8) % 256 + (w >> 16) % 256 + (w >> 24);
  const u64 hash = (w * 0x9E3779B1 % (u64{1} << 32)) >> 20;
  return 2 * static_cast<i64>(4096 * sum + hash) - (2 * 510 * 4096 + 4095);
}

inline i64 half_noise_once_more(u64 w, bool second) {
  const u64 half = second ? w / 65536 : w % 65536;
  const u64 hash = (w * (second ? 0x85EBCA77 : 0x9E3779B1) % (u64{1} << 32)) >> 20;
  return 2 * static_cast<i64>(4096 * (half % 256 + half / 256) + hash) - (2 * 255 * 4096 + 4095);
}

}  // namespace n2n::tests
