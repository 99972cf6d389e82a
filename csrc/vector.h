// What kernels at memory speed share: sixteen bytes at once, which is the widest access that a GPU's thread makes and
// SSE2's register, and a division that is not slow.
#pragma once

#include "common.h"

#if defined(N2N_SANITIZED)
#include <cstdio>
#include <cstdlib>
#endif

#if defined(__SSE2__) && !defined(__CUDACC__)
#include <emmintrin.h>
#define N2N_STREAMING_STORES 1
#endif

namespace n2n {

// For numbers that are not negative. Most fit 32 bits, which a GPU divides in a fifth of the time.
N2N_HD i64 quotient(i64 a, i64 b) {
  return ((a | b) >> 32) == 0 ? static_cast<i64>(static_cast<u32>(a) / static_cast<u32>(b)) : a / b;
}

constexpr int kVectorBytes = 16;

// Elements of S in a vector.
template <class S>
constexpr int kVectorOf = kVectorBytes / static_cast<int>(sizeof(S));

struct alignas(16) Vector {
  u32 word[4];
};

// Addresses come from tables of integers, so a GPU's compiler has to be told that they are of global memory.
template <class P>
N2N_HD P* global(P* address) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// An address that is not a multiple of 16 stops a GPU, and in tests with sanitizers (which define N2N_SANITIZED) the CPU,
// which would not mind it.
inline void require_aligned(const void* address) {
#if defined(N2N_SANITIZED)
  if (reinterpret_cast<u64>(address) % kVectorBytes == 0) return;
  std::fputs("a vector's address is not a multiple of 16\n", stderr);
  std::abort();
#else
  static_cast<void>(address);
#endif
}

// The address must be a multiple of 16, and nobody may write there meanwhile.
template <class S>
N2N_HD Vector load_vector(const S* address) {
#if defined(__CUDA_ARCH__)
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(address));
  return Vector{{v.x, v.y, v.z, v.w}};
#else
  require_aligned(address);
  Vector v;
  memcpy(&v, address, sizeof v);
  return v;
#endif
}

// The address must be a multiple of 16.
template <class S>
N2N_HD void store_vector(S* address, const Vector& v) {
#if defined(__CUDA_ARCH__)
  // Said outright: the compiler cuts a store of uint4 into words where it knows some of them to be zero.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(address)), "r"(v.word[0]),
               "r"(v.word[1]), "r"(v.word[2]), "r"(v.word[3])
               : "memory");
#else
  require_aligned(address);
  memcpy(static_cast<void*>(address), &v, sizeof v);
#endif
}

// The same past the caches, where the processor can, for what is larger than they are: a plain store would first read
// the line that it overwrites. `finish_streaming` orders these stores before what other threads do afterwards.
template <class S>
inline void stream_vector(S* address, const Vector& v) {
#if N2N_STREAMING_STORES
  _mm_stream_si128(reinterpret_cast<__m128i*>(address), _mm_load_si128(reinterpret_cast<const __m128i*>(&v)));
#else
  store_vector(address, v);
#endif
}

inline void finish_streaming() {
#if N2N_STREAMING_STORES
  _mm_sfence();
#endif
}

}  // namespace n2n
