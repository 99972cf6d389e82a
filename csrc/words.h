// Random words on the CPU, many at a time. For one source file: its functions are compiled for several processors.
#pragma once

#include <vector>

#include "philox.h"
#include "simd.h"

namespace n2n {
namespace {

// Blocks made at a time, of four words each.
constexpr i64 kBlocks = 16;

inline i64 round_to_blocks(i64 blocks) { return (blocks + kBlocks - 1) / kBlocks * kBlocks; }

// The words of blocks first, first + 1, ...; `out` has room for a multiple of kBlocks blocks.
N2N_SIMD void make_words(u32* out, NoiseKey key, u64 first, i64 blocks) {
  for (i64 b = 0; b < blocks; b += kBlocks) {
    u32 word[4][kBlocks];
    for (i64 l = 0; l < kBlocks; ++l) {
      const Philox p = words_of(key, first + static_cast<u64>(b + l));
      for (int q = 0; q < 4; ++q) word[q][l] = p.word[q];
    }
    for (i64 l = 0; l < kBlocks; ++l) {
      for (int q = 0; q < 4; ++q) out[4 * (b + l) + q] = word[q][l];
    }
  }
}

// The words of blocks first + offsets[0], first + offsets[1], ..., of which there are a multiple of kBlocks too.
N2N_SIMD void make_listed_words(u32* out, NoiseKey key, u64 first, const i32* offsets, i64 blocks) {
  for (i64 b = 0; b < blocks; b += kBlocks) {
    u32 word[4][kBlocks];
    for (i64 l = 0; l < kBlocks; ++l) {
      const Philox p = words_of(key, first + static_cast<u64>(static_cast<i64>(offsets[b + l])));
      for (int q = 0; q < 4; ++q) word[q][l] = p.word[q];
    }
    for (i64 l = 0; l < kBlocks; ++l) {
      for (int q = 0; q < 4; ++q) out[4 * (b + l) + q] = word[q][l];
    }
  }
}

// Words of consecutive indices.
class Words {
 public:
  // Those of indices `index` to `index` + n - 1; they stay until the next call.
  const u32* make(const NoiseKey& key, i64 index, i64 n) {
    const i64 first = index / 4, blocks = (index + n + 3) / 4 - first;
    buffer_.resize(static_cast<std::size_t>(4 * round_to_blocks(blocks)));
    make_words(buffer_.data(), key, static_cast<u64>(first), blocks);
    return buffer_.data() + index % 4;
  }

 private:
  std::vector<u32> buffer_;
};

}  // namespace
}  // namespace n2n
