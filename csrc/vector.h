// Several elements at a time: 16 bytes, the widest access that a GPU's threads have.
#pragma once

#include "common.h"

namespace n2n {

constexpr int kVectorBytes = 16;

template <class S>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(S));

N2N_HD bool is_vector_aligned(i64 bytes) { return (bytes & (kVectorBytes - 1)) == 0; }

template <class S, int V>
struct alignas(V * sizeof(S)) Vector {
  S e[V];
};

// `streaming`: data that nobody needs again soon does not push other data out of the caches.
template <class S, int V>
N2N_HD Vector<S, V> load_vector(const S* from, bool streaming = false) {
#if defined(__CUDA_ARCH__)
  if constexpr (V * sizeof(S) == kVectorBytes) {
    const uint4 raw = streaming ? __ldcs(reinterpret_cast<const uint4*>(from)) : *reinterpret_cast<const uint4*>(from);
    return bit_cast<Vector<S, V>>(raw);
  }
#endif
  static_cast<void>(streaming);
  return *reinterpret_cast<const Vector<S, V>*>(from);
}

template <class S, int V>
N2N_HD void store_vector(S* to, const Vector<S, V>& v, bool streaming) {
#if defined(__CUDA_ARCH__)
  if constexpr (V * sizeof(S) == kVectorBytes) {
    const uint4 raw = bit_cast<uint4>(v);
    if (streaming) {
      __stcs(reinterpret_cast<uint4*>(to), raw);
    } else {
      *reinterpret_cast<uint4*>(to) = raw;
    }
    return;
  }
#endif
  static_cast<void>(streaming);
  *reinterpret_cast<Vector<S, V>*>(to) = v;
}

}  // namespace n2n
