// Rounding to the 16-bit formats, and the noise, against their definitions.
#include <cmath>
#include <string>

#include "formats_once_more.h"
#include "fuzz.h"
#include "noise_once_more.h"
#include "philox.h"
#include "words.h"

namespace n2n::tests {

template <class S>
i64 check_format() {
  const Format f = format<S>();
  i64 checked = 0;
  for (u32 bits = 0; bits < 0x10000; ++bits) {
    const S s{static_cast<u16>(bits)};
    const float loaded = Scalar<S>::load(s);
    if (loaded != loaded) continue;
    require(same(static_cast<double>(loaded), value(s)), "load of ", bits);
    require(Scalar<S>::store(loaded).bits == s.bits, "store of what was loaded from ", bits);
    // The floats around the midpoint to the next number: two of them are its neighbours' own, one is a tie.
    const double middle = (value(s) + value(S{static_cast<u16>(bits + 1)})) / 2;
    for (const float x : {std::nextafterf(static_cast<float>(middle), -1e38f), static_cast<float>(middle),
                          std::nextafterf(static_cast<float>(middle), 1e38f)}) {
      if (!std::isfinite(x)) continue;
      require(same(value(Scalar<S>::store(x)), rounded(static_cast<double>(x), f)), "store of ", x);
      ++checked;
    }
  }
  for (u64 bits = 0; bits < (u64{1} << 32); bits += 9973) {
    const float x = bit_cast<float>(static_cast<u32>(bits));
    if (!std::isfinite(x)) continue;
    require(same(value(Scalar<S>::store(x)), rounded(static_cast<double>(x), f)), "store of ", x);
    ++checked;
  }
  return checked;
}

i64 check_noise() {
  for (i64 i = 0; i < 20000; ++i) {
    const u64 seed = rng() >> 1;
    const u32 tensor = static_cast<u32>(rng()), stream = static_cast<u32>(pick(1, 2));
    const i64 index = static_cast<i64>(rng() >> pick(2, 62));
    const NoiseKey key{static_cast<u32>(seed), static_cast<u32>(seed >> 32), tensor, stream};
    const u32 word = word_at(key, index);
    require(word == word_once_more(seed, tensor, stream, static_cast<u64>(index)), "the noise's words");
    require(noise_from_word(word) == noise_once_more(word), "the noise");
    for (const u32 half : {0u, 1u}) {
      require(half_noise_from_word(word, half) == half_noise_once_more(word, half == 1), "the noise of halves");
    }
  }
  // Each value of either half, beside the least and the most of the other.
  for (u32 half = 0; half < 0x10000; ++half) {
    for (const u32 word : {half, half << 16, half | 0xFFFF0000u, half << 16 | 0xFFFFu}) {
      require(noise_from_word(word) == noise_once_more(word), "the noise of ", word);
      for (const u32 which : {0u, 1u}) {
        const bool second = which == 1;
        require(half_noise_from_word(word, which) == half_noise_once_more(word, second), "the noise of a half of ", word);
      }
    }
  }
  return 20000;
}

// What a GPU does in the place of a conversion.
i64 check_small_integers() {
  constexpr i32 kMost = 1 << 22;
  for (i32 z = -kMost; z <= kMost; ++z) require(from_small_integer(z) == static_cast<float>(z), "the float of ", z);
  return 2 * kMost + 1;
}

// However they are made: block by block, and with each of the CPU backend's loops.
i64 check_words() {
  constexpr i64 kMost = 3 * kBlocks;
  for (i64 n = 0; n < 2000; ++n) {
    const NoiseKey key{static_cast<u32>(rng()), static_cast<u32>(rng()), static_cast<u32>(rng()), static_cast<u32>(rng())};
    const u64 first = flip() ? (u64{1} << 32) - static_cast<u64>(pick(0, 40)) : rng() >> pick(3, 62);
    const i64 blocks = pick(1, 3) * kBlocks;
    Exactly<i32> offsets(kMost);
    for (i64 b = 0; b < kMost; ++b) offsets[b] = static_cast<i32>(pick(0, (i64{1} << 31) - 1));
    const i32* const listed = flip() ? &offsets[0] : nullptr;
    const auto check = [&](const char* what, const auto& make) {
      Exactly<u32> words(4 * blocks);
      make(&words[0], key, first, listed, blocks);
      for (i64 b = 0; b < blocks; ++b) {
        const Philox p = words_of(key, first + static_cast<u64>(listed ? listed[b] : b));
        for (int q = 0; q < 4; ++q) require(words[4 * b + q] == p.word[q], "many words at once, ", what);
      }
    };
    check("as they are made here", make_words);
    check("on any processor", make_words_anywhere);
  }
  return 2000;
}

template i64 check_format<bf16>();
template i64 check_format<f16>();

}  // namespace n2n::tests
