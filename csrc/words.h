// Random words on the CPU, many at a time. For one source file: its functions are compiled for several processors.
#pragma once

#include <vector>

#include "philox.h"
#include "simd.h"

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define N2N_WORDS_AVX2 1
#endif

namespace n2n {
namespace {

// Blocks made at a time, of four words each.
constexpr i64 kBlocks = 16;

inline i64 round_to_blocks(i64 blocks) { return (blocks + kBlocks - 1) / kBlocks * kBlocks; }

// The words of blocks first + offsets[0], first + offsets[1], ..., or of first, first + 1, ... without offsets.
N2N_SIMD void make_words_anywhere(u32* out, NoiseKey key, u64 first, const i32* offsets, i64 blocks) {
  for (i64 b = 0; b < blocks; b += kBlocks) {
    u32 word[4][kBlocks];
    for (i64 l = 0; l < kBlocks; ++l) {
      const Philox p = words_of(key, first + static_cast<u64>(offsets ? offsets[b + l] : b + l));
      for (int q = 0; q < 4; ++q) word[q][l] = p.word[q];
    }
    for (i64 l = 0; l < kBlocks; ++l) {
      for (int q = 0; q < 4; ++q) out[4 * (b + l) + q] = word[q][l];
    }
  }
}

#if N2N_WORDS_AVX2
__attribute__((target("avx2"))) inline __m256i all(u64 x) { return _mm256_set1_epi64x(static_cast<long long>(x)); }

// The same, four blocks at once. Each number has 64 bits to itself, of which the multiplication takes the lower 32: what
// is above them may be anything. Compilers put eight numbers into a register and move them to and fro for each product,
// which takes twice the time.
__attribute__((target("avx2"))) inline void make_words_avx2(u32* out, NoiseKey key, u64 first, const i32* offsets,
                                                            i64 blocks) {
  const __m256i four = _mm256_set_epi64x(3, 2, 1, 0);
  for (i64 b = 0; b < blocks; b += 4) {
    const __m256i on = offsets ? _mm256_cvtepi32_epi64(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets + b)))
                               : _mm256_add_epi64(four, all(static_cast<u64>(b)));
    __m256i c0 = _mm256_add_epi64(all(first), on);
    __m256i c1 = _mm256_srli_epi64(c0, 32), c2 = all(key.tensor), c3 = all(key.stream);
    u32 k0 = key.k0, k1 = key.k1;
    for (int r = 0; r < kPhiloxRounds; ++r) {
      const __m256i p0 = _mm256_mul_epu32(c0, all(kPhiloxM0)), p1 = _mm256_mul_epu32(c2, all(kPhiloxM1));
      c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p1, 32), c1), all(k0));
      c1 = p1;
      c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_srli_epi64(p0, 32), c3), all(k1));
      c3 = p0;
      k0 += kPhiloxW0, k1 += kPhiloxW1;
    }
    const __m256i low = _mm256_blend_epi32(c0, _mm256_slli_epi64(c1, 32), 0xAA);   // words 0 and 1 of each block
    const __m256i high = _mm256_blend_epi32(c2, _mm256_slli_epi64(c3, 32), 0xAA);  // words 2 and 3
    const __m256i even = _mm256_unpacklo_epi64(low, high), odd = _mm256_unpackhi_epi64(low, high);
    auto* const to = reinterpret_cast<__m256i*>(out + 4 * b);
    _mm256_storeu_si256(to, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(to + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
}
#endif

// A multiple of kBlocks blocks.
inline void make_words(u32* out, const NoiseKey& key, u64 first, const i32* offsets, i64 blocks) {
#if N2N_WORDS_AVX2
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2) return make_words_avx2(out, key, first, offsets, blocks);
#endif
  make_words_anywhere(out, key, first, offsets, blocks);
}

// Words of consecutive indices.
class Words {
 public:
  // Those of indices `index` to `index` + n - 1; they stay until the next call.
  const u32* make(const NoiseKey& key, i64 index, i64 n) {
    const i64 first = index / 4, blocks = round_to_blocks((index + n + 3) / 4 - first);
    if (static_cast<i64>(buffer_.size()) < 4 * blocks) buffer_.resize(static_cast<std::size_t>(4 * blocks));
    make_words(buffer_.data(), key, static_cast<u64>(first), nullptr, blocks);
    return buffer_.data() + index % 4;
  }

 private:
  std::vector<u32> buffer_;
};

}  // namespace
}  // namespace n2n
