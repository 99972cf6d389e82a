// What the CPU backend needs of a processor's vector unit, without asking the user which processor that is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "vector.h"

#if N2N_STREAMING_STORES && defined(__GNUC__)
#include <cpuid.h>
#endif

// Marks a function with a loop that the compiler vectorises: it is compiled twice, with the same arithmetic, product by
// product, and the processor at hand chooses. Not under sanitizers, whose runtime is not up yet when that choice is made.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define N2N_SIMD __attribute__((target_clones("avx2", "default")))
#else
#define N2N_SIMD
#endif

namespace n2n {

// Whether outputs that no cache holds are better stored past the caches. With two threads such stores took half of the
// plain ones' time on an EPYC (Zen) and 0.4 to 0.7 on a Xeon of 2023 (Emerald Rapids), but 1.1 to 1.7 times as long on one
// of 2019 (Cascade Lake), whose cores keep few of them in flight. So Intel's older cores, told by an instruction set that
// came with Sapphire Rapids, do so only where many threads keep the memory busy: from how many on was estimated.
inline bool streaming_pays(int threads) {
#if N2N_STREAMING_STORES && defined(__GNUC__)
  static const bool always = [] {
    __builtin_cpu_init();
    unsigned a = 0, b = 0, c = 0, d = 0;
    constexpr unsigned kAvx512Fp16 = 1u << 23;
    const bool recent = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAvx512Fp16);
    return !__builtin_cpu_is("intel") || recent;
  }();
  return always || threads >= 6;
#else
  static_cast<void>(threads);
  return true;
#endif
}

// Copies any number of bytes past the caches, as `stream_vector` does a vector: whole cache lines, since of a part the
// memory has to read the rest.
inline void stream_copy(void* to, const void* from, std::size_t bytes) {
#if N2N_STREAMING_STORES
  constexpr std::size_t kWidth = 64;
  auto* d = static_cast<unsigned char*>(to);
  const auto* s = static_cast<const unsigned char*>(from);
  const std::size_t head = std::min(bytes, (kWidth - reinterpret_cast<std::uintptr_t>(d) % kWidth) % kWidth);
  std::memcpy(d, s, head);
  d += head, s += head, bytes -= head;
  for (; bytes >= kWidth; bytes -= kWidth, d += kWidth, s += kWidth) {
    for (std::size_t v = 0; v < kWidth; v += kVectorBytes) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(d + v), _mm_loadu_si128(reinterpret_cast<const __m128i*>(s + v)));
    }
  }
  std::memcpy(d, s, bytes);
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace n2n
