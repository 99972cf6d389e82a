// Where a row of a tensor lies for a GPU's thread: in global memory, or in its block's shared memory. Places within a
// row are in bytes, so that no address has to be multiplied out.
#pragma once

#include "pack.h"

namespace n2n {

template <class S>
N2N_HD u32 bytes_of(u32 elements) {
  return elements * static_cast<u32>(sizeof(S));
}

template <class S>
class GlobalRow {
 public:
  N2N_HD explicit GlobalRow(const S* begin) : begin_(reinterpret_cast<const char*>(begin)) {}

  N2N_HD GlobalRow operator+(i64 bytes) const { return GlobalRow(reinterpret_cast<const S*>(begin_ + bytes)); }
  N2N_HD S get(u32 place) const { return *global(reinterpret_cast<const S*>(begin_ + place)); }
  // The address must be a multiple of the pack's size.
  template <int V>
  N2N_HD Pack<S, V> get_pack(u32 place) const {
    return *global(reinterpret_cast<const Pack<S, V>*>(begin_ + place));
  }

 private:
  const char* begin_;
};

// By its 32-bit address, said outright: the compiler computes that of a pointer anew at each use, which takes an
// instruction of long latency on Hopper.
template <class S>
class SharedRow {
 public:
#if defined(__CUDA_ARCH__)
  N2N_HD explicit SharedRow(void* begin) : at_(static_cast<u32>(__cvta_generic_to_shared(begin))) {
    asm volatile("" : "+r"(at_));
  }
  N2N_HD explicit SharedRow(u32 at) : at_(at) {}
  N2N_HD SharedRow operator+(i64 bytes) const { return SharedRow(at_ + static_cast<u32>(bytes)); }
  template <class T>
  N2N_HD SharedRow<T> of() const {
    return SharedRow<T>(at_);
  }
  // Not computed anew at each use.
  N2N_HD SharedRow kept() const { return SharedRow(n2n::kept(at_)); }

  N2N_HD S get(u32 place) const {
    if constexpr (sizeof(S) == 2) {
      u16 bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(at_ + place));
      return bit_cast<S>(bits);
    } else if constexpr (sizeof(S) == 4) {
      u32 bits;
      asm volatile("ld.shared.u32 %0, [%1];" : "=r"(bits) : "r"(at_ + place));
      return bit_cast<S>(bits);
    } else {
      u64 bits;
      asm volatile("ld.shared.u64 %0, [%1];" : "=l"(bits) : "r"(at_ + place));
      return bit_cast<S>(bits);
    }
  }

  template <int V>
  N2N_HD Pack<S, V> get_pack(u32 place) const {
    if constexpr (V * sizeof(S) == kVectorBytes) {
      Vector v;
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                   : "r"(at_ + place));
      return bit_cast<Pack<S, V>>(v);
    } else {
      Pack<S, V> v;
      N2N_UNROLL
      for (int j = 0; j < V; ++j) v.e[j] = get(place + j * static_cast<u32>(sizeof(S)));
      return v;
    }
  }

  N2N_HD void put(u32 place, S value) const {
    if constexpr (sizeof(S) == 2) {
      asm volatile("st.shared.u16 [%0], %1;" ::"r"(at_ + place), "h"(bit_cast<u16>(value)));
    } else if constexpr (sizeof(S) == 4) {
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(at_ + place), "r"(bit_cast<u32>(value)));
    } else {
      asm volatile("st.shared.u64 [%0], %1;" ::"r"(at_ + place), "l"(bit_cast<u64>(value)));
    }
  }

  template <int V>
  N2N_HD void put_pack(u32 place, const Pack<S, V>& v) const {
    if constexpr (V * sizeof(S) == kVectorBytes) {
      const Vector w = bit_cast<Vector>(v);
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(at_ + place), "r"(w.word[0]), "r"(w.word[1]),
                   "r"(w.word[2]), "r"(w.word[3]));
    } else {
      N2N_UNROLL
      for (int j = 0; j < V; ++j) put(place + j * static_cast<u32>(sizeof(S)), v.e[j]);
    }
  }

  // V elements from global memory. A GPU does not wait for four bytes and more: `finish_staging` does.
  template <int V>
  N2N_HD void stage(u32 place, const S* from) const {
#if defined(N2N_AMPERE)
    constexpr int kBytes = V * static_cast<int>(sizeof(S));
    if constexpr (kBytes == kVectorBytes) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(at_ + place), "l"(__cvta_generic_to_global(from))
                   : "memory");
      return;
    } else if constexpr (kBytes >= 4) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at_ + place), "l"(__cvta_generic_to_global(from)),
                   "n"(kBytes)
                   : "memory");
      return;
    }
#endif
    put_pack<V>(place, *global(reinterpret_cast<const Pack<S, V>*>(from)));
  }

 private:
  u32 at_;
#else
  explicit SharedRow(void* begin) : begin_(static_cast<char*>(begin)) {}
  SharedRow operator+(i64 bytes) const { return SharedRow(begin_ + bytes); }
  template <class T>
  SharedRow<T> of() const {
    return SharedRow<T>(begin_);
  }
  SharedRow kept() const { return *this; }
  S get(u32 place) const { return *reinterpret_cast<const S*>(begin_ + place); }
  template <int V>
  Pack<S, V> get_pack(u32 place) const {
    return *reinterpret_cast<const Pack<S, V>*>(begin_ + place);
  }
  void put(u32 place, S value) const { *reinterpret_cast<S*>(begin_ + place) = value; }
  template <int V>
  void put_pack(u32 place, const Pack<S, V>& v) const {
    *reinterpret_cast<Pack<S, V>*>(begin_ + place) = v;
  }
  template <int V>
  void stage(u32 place, const S* from) const {
    *reinterpret_cast<Pack<S, V>*>(begin_ + place) = *reinterpret_cast<const Pack<S, V>*>(from);
  }

 private:
  char* begin_;
#endif
};

// What this thread has staged. A barrier has to follow before other threads read it.
N2N_HD void finish_staging() {
#if defined(N2N_AMPERE)
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

}  // namespace n2n
