// A few neighbouring columns of gather_scale's output: where they come from and what they are scaled by, found once and used
// for every row that a GPU's thread makes of them. Cancelling noise goes by units instead (unit_rows.h).
#pragma once

#include "gather_scale.h"
#include "rows.h"

namespace n2n {

// V neighbouring elements of a row of the output, from position e: where they come from and what they are scaled by.
template <class S, Noise N, int V>
struct Columns {
  using C = typename Scalar<S>::compute;
  static_assert(N != Noise::kCancelling, "goes by units");

  u32 offset[V];   // within the teacher's row, in bytes
  C scale[V];
  bool adjacent;   // the offsets are consecutive, and the first one is a multiple of V
  // For the paper's noise only: what it is counted by, the place in the student's row, and whether that is consecutive.
  u32 logical[V];
  bool counted;

  N2N_HD static Columns of(const Task& t, u32 e) {
    Columns c;
    const u32 prefix = static_cast<u32>(t.in_prefix), units = static_cast<u32>(t.src_I);
    // In the map's identity prefix nothing is looked up, and a vector's elements lie side by side.
    if (t.k_outer || t.K == 1) {
      const u32 inner = static_cast<u32>(t.I);
      const u32 k = t.K == 1 ? 0 : divide(e, static_cast<u32>(t.magic), static_cast<u32>(t.shift));
      const u32 i = e - k * inner;
      c.adjacent = i + V <= prefix && (k * units + i) % V == 0;
      c.counted = t.K == 1;
      if (i + V <= inner) {
        c.of_neighbours(t, k, i);
      } else {
        c.one_after_another<true>(t, i, k);
      }
    } else {
      const u32 kernel = static_cast<u32>(t.K);
      const u32 i = divide(e, static_cast<u32>(t.magic), static_cast<u32>(t.shift));
      const u32 k = e - i * kernel;
      c.adjacent = e + V <= prefix * kernel;
      c.counted = true;
      if (kernel >= V) {
        c.of_two_units(t, i, k);
      } else {
        c.one_after_another<false>(t, i, k);
      }
    }
    return c;
  }

  N2N_HD u32 unit_of(const Task& t, u32 i) const {
    return !adjacent && t.in_map ? static_cast<u32>(table<i32>(t.in_map, i)) : i;
  }
  N2N_HD static C scale_of(const Task& t, u32 i) { return t.in_scale ? table<C>(t.in_scale, i) : C(1); }

  // Of the units from i on, all at the kernel's element k.
  N2N_HD void of_neighbours(const Task& t, u32 k, u32 i) {
    const u32 origin = k * static_cast<u32>(t.src_I);
    i32 unit[V];
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      unit[j] = static_cast<i32>(i) + j;
      scale[j] = C(1);
    }
    if (!adjacent && t.in_map) neighbours(t.in_map, i, unit);
    if (t.in_scale) neighbours(t.in_scale, i, scale);
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      offset[j] = bytes_of<S>(origin + static_cast<u32>(unit[j]));
      if (N == Noise::kReplicas) logical[j] = (i + static_cast<u32>(j)) * static_cast<u32>(t.K) + k;
    }
  }

  // V entries of a table, which begins at a multiple of a vector.
  template <class T>
  N2N_HD static void neighbours(i64 address, u32 i, T (&entries)[V]) {
    if (V * sizeof(T) % kVectorBytes == 0 && i % V == 0) {
      N2N_UNROLL
      for (int j = 0; j < V; j += kVectorOf<T>) {
        const Vector v = load_vector(reinterpret_cast<const T*>(address) + i + j);
        memcpy(entries + j, &v, V * sizeof(T) < sizeof v ? V * sizeof(T) : sizeof v);
      }
    } else {
      N2N_UNROLL
      for (int j = 0; j < V; ++j) entries[j] = table<T>(address, i64{i} + j);
    }
  }

  // Of the kernel of unit i from its element k on, and of the next unit's, if it does not have as many.
  N2N_HD void of_two_units(const Task& t, u32 i, u32 k) {
    const u32 kernel = static_cast<u32>(t.K), left = kernel - k;
    const u32 next = left < V ? i + 1 : i;
    const u32 here = bytes_of<S>(unit_of(t, i) * kernel + k), there = bytes_of<S>(unit_of(t, next) * kernel - left);
    const C scale_here = scale_of(t, i), scale_there = scale_of(t, next);
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      const bool first = static_cast<u32>(j) < left;
      offset[j] = (first ? here : there) + bytes_of<S>(static_cast<u32>(j));
      scale[j] = first ? scale_here : scale_there;
      if (N == Noise::kReplicas) logical[j] = i * kernel + k + static_cast<u32>(j);
    }
  }

  // `UnitsInside`: the units are the row's inner extent.
  template <bool UnitsInside>
  N2N_HD void one_after_another(const Task& t, u32 i, u32 k) {
    const u32 units = static_cast<u32>(t.src_I), kernel = static_cast<u32>(t.K);
    u32 unit = 0;
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      if (j == 0 || UnitsInside || k == 0) unit = unit_of(t, i);
      offset[j] = bytes_of<S>(UnitsInside ? k * units + unit : unit * kernel + k);
      scale[j] = scale_of(t, i);
      if (N == Noise::kReplicas) logical[j] = i * kernel + k;
      if (UnitsInside) {
        if (++i == static_cast<u32>(t.I)) i = 0, ++k;
      } else {
        if (++k == kernel) k = 0, ++i;
      }
    }
  }

  // From a teacher row whose beginning is aligned to a vector where `aligned` says so.
  template <class Row>
  N2N_HD Pack<S, V> load(const Row& row, bool aligned) const {
    if (adjacent && aligned) return row.template get_pack<V>(offset[0]);
    Pack<S, V> s;
    N2N_UNROLL
    for (int j = 0; j < V; ++j) s.e[j] = row.get(offset[j]);
    return s;
  }

  // The same as numbers.
  template <class Row>
  N2N_HD void load_numbers(const Row& row, bool aligned, C (&w)[V]) const {
    if (adjacent && aligned) {
      numbers_of(row.template get_pack<V>(offset[0]), w);
    } else {
      N2N_UNROLL
      for (int j = 0; j < V; ++j) w[j] = Scalar<S>::load(row.get(offset[j]));
    }
  }

  // The noise's words, `base` being the index of the row's beginning. Four come from one computation.
  N2N_HD void words(const NoiseKey& key, i64 base, u32 (&w)[V]) const {
    constexpr int kTogether = V < 4 ? V : 4;
    if (counted && (base + logical[0]) % kTogether == 0) {
      N2N_UNROLL
      for (int j = 0; j < V; j += kTogether) {
        const i64 index = base + logical[j];
        const Philox p = words_of(key, static_cast<u64>(index) >> 2);
        const u32 first = kTogether == 4 ? 0 : static_cast<u32>(index) & 3u;
        N2N_UNROLL
        for (int q = 0; q < kTogether; ++q) w[j + q] = pick_word(p, first + static_cast<u32>(q));
      }
    } else {
      N2N_UNROLL
      for (int j = 0; j < V; ++j) w[j] = word_at(key, base + logical[j]);
    }
  }
};

}  // namespace n2n
