// Counter-based noise: Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//
// A sample depends on (seed, tensor id, stream, index) alone, never on a thread or a tile, and is made of integer
// operations until the last conversion, so every backend produces the same bits.
#pragma once

#include "common.h"

namespace n2n {

// Seven rounds are the fewest that pass the whole BigCrush battery (the paper's table 2).
constexpr int kPhiloxRounds = 7;

// What the counter is multiplied by, and what is added to the key after each round.
constexpr u32 kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr u32 kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;

struct Philox {
  u32 word[4];
};

N2N_HD u64 wide_product(u32 a, u32 b) {
#if defined(__CUDA_ARCH__)
  // Said outright: with a constant the compiler adds the high halves of both, which are zero.
  u64 product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
#else
  return u64{a} * b;
#endif
}

template <int Rounds>
N2N_HD Philox philox4x32(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
  for (int r = 0; r < Rounds; ++r) {
    const u64 p0 = wide_product(kPhiloxM0, c0);
    const u64 p1 = wide_product(kPhiloxM1, c2);
    c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<u32>(p1);
    c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<u32>(p0);
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return Philox{{c0, c1, c2, c3}};
}

struct NoiseKey {
  u32 k0, k1, tensor, stream;
};

// The four words of indices 4 * block to 4 * block + 3.
N2N_HD Philox words_of(const NoiseKey& key, u64 block) {
  return philox4x32<kPhiloxRounds>(static_cast<u32>(block), static_cast<u32>(block >> 32), key.tensor, key.stream,
                                   key.k0, key.k1);
}

// Selected rather than indexed: a run-time index would put the four words into a GPU's local memory.
N2N_HD u32 pick_word(const Philox& p, u32 which) {
  const u32 low = (which & 1u) ? p.word[1] : p.word[0];
  const u32 high = (which & 1u) ? p.word[3] : p.word[2];
  return (which & 2u) ? high : low;
}

N2N_HD u32 word_at(const NoiseKey& key, i64 index) {
  return pick_word(words_of(key, static_cast<u64>(index) >> 2), static_cast<u32>(index) & 3u);
}

// One 32-bit word to one centred integer, nearly normal: a sum of its four bytes (Irwin-Hall of order 4, excess kurtosis
// -0.3), whose weights differ a little, so that there are 113,281 values and not 1,021, and two samples practically never tie
// (replicas whose noise ties would stay alike for ever). Weights are even, and one is added: no sample is zero. Its
// standard deviation is NOISE_STD in n2n_kernels/rng.py. |z| < 2^17.
constexpr i32 kLargestNoise = 1 << 17;
constexpr u32 kEvenWeight = 254, kOddWeight = 252;  // of bytes 0 and 2, and 1 and 3
constexpr u32 kNoiseCentre = 255 * (kEvenWeight + kOddWeight);

// One word to two such integers, of two bytes each, for noise that is only ever used in differences: the difference of
// any two has four bytes again. Only the first half has the one added, so that the difference of the halves of two
// replicas in a row, which alternate, is never zero: two replicas never tie, and of more two do once in 77,000 elements.
// The standard deviation is HALF_STD in n2n_kernels/rng.py.
N2N_HD u32 half_sum_from_word(u32 w, u32 half) {
#if defined(__CUDA_ARCH__)
  constexpr u32 kWeights = kEvenWeight | kOddWeight << 8;
  return __dp4a(w, half ? kWeights << 16 : kWeights, half ^ 1u);
#else
  // Of both halves at once, without a multiplication, which vectors of a CPU are slow at.
  static_assert(kEvenWeight == 2 * 127 && kOddWeight == 2 * 126, "128 less one, and less two");
  const u32 even = w & 0x00FF00FFu, odd = w >> 8 & 0x00FF00FFu;
  const u32 sums = ((even + odd) << 7) - even - 2 * odd;
  return half ? sums >> 16 << 1 : (sums & 0xFFFFu) << 1 | 1u;
#endif
}

N2N_HD i32 noise_from_word(u32 w) {
#if defined(__CUDA_ARCH__)
  constexpr u32 kWeights = kEvenWeight | kOddWeight << 8 | kEvenWeight << 16 | kOddWeight << 24;
  return static_cast<i32>(__dp4a(w, kWeights, 1u - kNoiseCentre));
#else
  return static_cast<i32>(half_sum_from_word(w, 0) + half_sum_from_word(w, 1) - kNoiseCentre);
#endif
}

N2N_HD i32 half_noise_from_word(u32 w, u32 half) {
  return static_cast<i32>(half_sum_from_word(w, half) - kNoiseCentre / 2);
}

// The difference of two, from their sums.
N2N_HD i32 difference(u32 a, u32 b) { return static_cast<i32>(a - b); }

// For |z| <= 2^22. On a GPU a conversion takes the time of four additions; the floats from 2^23 to 2^24 are the integers, so
// this is exact.
N2N_HD float from_small_integer(i32 z) {
  return bit_cast<float>(static_cast<u32>(z) + 0x4B400000u) - 12582912.0f;  // 1.5 * 2^23
}

// An integer of noise, or the difference of two halves, as a number: |z| < 2^17.
template <class C>
N2N_HD C from_noise(i32 z) {
  return static_cast<C>(z);
}

template <>
N2N_HD float from_noise<float>(i32 z) {
#if defined(__CUDA_ARCH__)
  return from_small_integer(z);
#else
  return static_cast<float>(z);
#endif
}

}  // namespace n2n
