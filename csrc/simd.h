// What the CPU backend needs of a processor's vector unit, without asking the user which processor that is.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "vector.h"

// Marks a function with a loop that the compiler vectorises: it is compiled twice, with the same arithmetic, product by
// product, and the processor at hand chooses. Not under sanitizers, whose runtime is not up yet when that choice is made.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define N2N_SIMD __attribute__((target_clones("avx2", "default")))
#else
#define N2N_SIMD
#endif

namespace n2n {

// Whether outputs that no cache holds are better stored past the caches. Intel's cores keep few such stores in flight: two
// threads on a Xeon (Cascade Lake) took 0.6 to 0.9 of the time with plain ones, two on an EPYC nearly twice. From how many
// on they pay there, because the memory is busy and a plain store reads first, was not measured but estimated.
inline bool streaming_pays(int threads) {
#if N2N_STREAMING_STORES && defined(__GNUC__)
  static const bool intel = (__builtin_cpu_init(), __builtin_cpu_is("intel") != 0);
  return !intel || threads >= 6;
#else
  static_cast<void>(threads);
  return true;
#endif
}

// Copies any number of bytes past the caches, as `stream_vector` does a vector.
inline void stream_copy(void* to, const void* from, std::size_t bytes) {
#if N2N_STREAMING_STORES
  constexpr std::size_t kWidth = kVectorBytes;
  auto* d = static_cast<unsigned char*>(to);
  const auto* s = static_cast<const unsigned char*>(from);
  const std::size_t head = std::min(bytes, (kWidth - reinterpret_cast<std::uintptr_t>(d) % kWidth) % kWidth);
  std::memcpy(d, s, head);
  d += head, s += head, bytes -= head;
  for (; bytes >= kWidth; bytes -= kWidth, d += kWidth, s += kWidth) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(d), _mm_loadu_si128(reinterpret_cast<const __m128i*>(s)));
  }
  std::memcpy(d, s, bytes);
#else
  std::memcpy(to, from, bytes);
#endif
}

}  // namespace n2n
