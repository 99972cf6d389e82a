// Several elements of a tensor at once, up to the sixteen bytes of a vector.
#pragma once

#include "vector.h"

namespace n2n {

N2N_HD bool is_vector_aligned(i64 bytes) { return (bytes & (kVectorBytes - 1)) == 0; }

template <class S, int V>
struct alignas(V * sizeof(S)) Pack {
  S e[V];
};

// From any memory. `streaming`: from global memory, and nobody needs it again soon.
template <class S, int V>
N2N_HD Pack<S, V> load_pack(const S* from, bool streaming = false) {
#if defined(__CUDA_ARCH__)
  if constexpr (V * sizeof(S) == kVectorBytes) {
    const uint4 raw = streaming ? __ldcs(reinterpret_cast<const uint4*>(from)) : *reinterpret_cast<const uint4*>(from);
    return bit_cast<Pack<S, V>>(raw);
  }
#endif
  static_cast<void>(streaming);
  return *reinterpret_cast<const Pack<S, V>*>(from);
}

// To global memory. `streaming`: the caches shall not keep it.
template <class S, int V>
N2N_HD void store_pack(S* to, const Pack<S, V>& v, bool streaming) {
#if defined(__CUDA_ARCH__)
  if constexpr (V * sizeof(S) == kVectorBytes) {
    if (streaming) {
      __stcs(reinterpret_cast<uint4*>(to), bit_cast<uint4>(v));
    } else {
      store_vector(to, bit_cast<Vector>(v));
    }
    return;
  }
#endif
  static_cast<void>(streaming);
  *reinterpret_cast<Pack<S, V>*>(global(to)) = v;
}

// To shared memory.
template <class S, int V>
N2N_HD void stage_pack(S* to, const Pack<S, V>& v) {
  *reinterpret_cast<Pack<S, V>*>(to) = v;
}

}  // namespace n2n
