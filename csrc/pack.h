// Several elements of a tensor at once, up to the sixteen bytes of a vector.
#pragma once

#include "vector.h"

namespace n2n {

N2N_HD bool is_vector_aligned(i64 bytes) { return (bytes & (kVectorBytes - 1)) == 0; }

template <class S, int V>
struct alignas(V * sizeof(S)) Pack {
  S e[V];
};

template <class S, int V>
N2N_HD void numbers_of(const Pack<S, V>& v, typename Scalar<S>::compute (&x)[V]) {
  if constexpr (sizeof(S) == 2 && V * sizeof(S) == kVectorBytes) {
    // Of whole words: a compiler otherwise moves each half to a register first.
    const Vector w = bit_cast<Vector>(v);
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      x[j] = j % 2 ? Scalar<S>::load_high(w.word[j / 2]) : Scalar<S>::load_low(w.word[j / 2]);
    }
  } else {
    N2N_UNROLL
    for (int j = 0; j < V; ++j) x[j] = Scalar<S>::load(v.e[j]);
  }
}

// Rounded to storage, where there is no NaN.
template <class S, int V>
N2N_HD Pack<S, V> round_all(const typename Scalar<S>::compute (&x)[V]) {
  if constexpr (sizeof(S) == 2 && V * sizeof(S) == kVectorBytes) {
    Vector w;
    N2N_UNROLL
    for (int j = 0; j < V; j += 2) w.word[j / 2] = Scalar<S>::store_pair(x[j], x[j + 1]);
    return bit_cast<Pack<S, V>>(w);
  } else {
    Pack<S, V> u;
    N2N_UNROLL
    for (int j = 0; j < V; ++j) u.e[j] = Scalar<S>::store(x[j]);
    return u;
  }
}

// To global memory. `streaming`: the caches shall not keep it.
template <class S, int V>
N2N_HD void store_pack(S* to, const Pack<S, V>& v, bool streaming) {
#if defined(__CUDA_ARCH__)
  if constexpr (V * sizeof(S) == kVectorBytes) {
    // Predicated rather than a branch, after which the compiler would move the words to other registers.
    const Vector w = bit_cast<Vector>(v);
    asm volatile(
        "{\n\t.reg .pred streaming;\n\tsetp.ne.u32 streaming, %5, 0;\n\t"
        "@streaming st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};\n\t"
        "@!streaming st.global.v4.u32 [%0], {%1, %2, %3, %4};\n\t}" ::"l"(__cvta_generic_to_global(to)),
        "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3]), "r"(static_cast<u32>(streaming))
        : "memory");
    return;
  }
#endif
  static_cast<void>(streaming);
  *reinterpret_cast<Pack<S, V>*>(global(to)) = v;
}

}  // namespace n2n
