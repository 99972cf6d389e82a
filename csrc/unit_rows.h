// A row of the student with cancelling noise, as a block of GPU threads makes it: unit by unit, in shared memory.
//
// The replicas of a unit depend on each other, and on the same random words, of which four come from one computation. So
// a thread takes a unit and up to four neighbouring elements of its kernel, and makes all of their replicas, wherever in
// the student's row these are. Made element by element of the student, each would compute the words of all the others
// (`Element::cancelling`, the definition) for itself. Units are taken in the order of how many replicas they have, so
// that the threads of a warp do the same. Shared memory puts the row in order, so that it is stored in whole vectors.
#pragma once

#include "gather_scale.h"

namespace n2n {

// Of the random words that come from one computation.
constexpr int kBlockWords = 4;

// G: elements of a unit's kernel that a thread takes at a time, a block of words or, of small kernels, a single one.
template <class S, int G>
struct UnitRow {
  using C = typename Scalar<S>::compute;
  static_assert(G == 1 || G == kBlockWords, "a block of words or one");

  const Element<S>& element;
  const S* teacher;  // its row
  S* made;           // the student's, in the order of its memory
  i64 o;

  // Items of work that a unit's kernel makes: of its first and last block of words it may have a part.
  N2N_HD static u32 items_of_unit(const Task& t) {
    return static_cast<u32>(G == 1 ? t.K : (t.K + 2 * kBlockWords - 2) / kBlockWords);
  }

  N2N_HD void make(u32 item) const {
    const Task& t = element.t;
    const u32 kernel = static_cast<u32>(t.K), items = items_of_unit(t);
    const u32 place = item / items, part = item - place * items;
    const u32 unit = static_cast<u32>(table<i32>(t.in_units, place));
    const i32 begin = table<i32>(t.in_begin, unit), count = table<i32>(t.in_begin, unit + 1) - begin;
    const i64 index = element.unit_index(o, unit, 0);
    const i64 block = G == 1 ? (index + part) / kBlockWords : index / kBlockWords + part;
    const u32 step_k = static_cast<u32>(t.k_outer ? t.src_I : 1), origin = t.k_outer ? unit : unit * kernel;
    Part p;
    // It wraps around where the block begins before the kernel.
    p.first = G == 1 ? part : part * kBlockWords - static_cast<u32>(index % kBlockWords);
    p.c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    N2N_UNROLL
    for (int j = 0; j < G; ++j) {
      const u32 k = p.first + static_cast<u32>(j);
      p.s[j] = k < kernel ? teacher[origin + k * step_k] : S{};
      p.w[j] = Scalar<S>::load(p.s[j]);
      p.finite[j] = is_finite(p.w[j]);
      p.others[j] = C(0);
    }
    NoiseKey key = element.key;
    u32 now[G]{}, next[G]{};
    if (count > 1) words(key, block, index + part, now);
    N2N_ROLL
    for (i32 m = 0; m < count; m += 2) {
      replica<false>(p, begin, m, count, now, now);
      if (m + 1 == count) return;
      if (m + 2 < count) {
        ++key.stream;
        words(key, block, index + part, next);
      }
      replica<true>(p, begin, m + 1, count, now, next);
      N2N_UNROLL
      for (int j = 0; j < G; ++j) now[j] = next[j];
    }
  }

 private:
  // What a thread has of the teacher's row.
  struct Part {
    u32 first;  // of the kernel's elements
    C c_out;
    S s[G];
    C w[G];
    bool finite[G];
    C others[G];  // the sum of the replicas so far
  };

  // The m-th of `count` replicas, whose columns are listed from `begin` on: an even one takes both halves of its word, an
  // odd one the second and the first of the next stream's.
  template <bool Odd>
  N2N_HD void replica(Part& p, i32 begin, i32 m, i32 count, const u32 (&now)[G], const u32 (&next)[G]) const {
    const Task& t = element.t;
    const u32 kernel = static_cast<u32>(t.K), step_k = static_cast<u32>(t.k_outer ? t.I : 1);
    const u32 column = static_cast<u32>(table<i32>(t.in_list, begin + m));
    const bool more = m + 1 < count, last = m > 0 && !more;
    const C share = element.scale_in(column), whole = last ? table<C>(t.in_total, column) : share;
    S* const to = made + (t.k_outer ? column : column * kernel);
    N2N_UNROLL
    for (int j = 0; j < G; ++j) {
      const u32 k = p.first + static_cast<u32>(j);
      if (k >= kernel) continue;
      C x = p.w[j] * (p.finite[j] ? whole : share) * p.c_out;
      if (more && p.finite[j]) {
        const i32 z = half_noise_from_word(now[j], Odd) - half_noise_from_word(next[j], !Odd);
        x = x + from_noise<C>(z) * element.sigma;
      }
      if (last && p.finite[j]) x = x - p.others[j];
      const S u = finish<S>(p.s[j], x);
      p.others[j] = p.others[j] + Scalar<S>::load(u);
      to[k * step_k] = u;
    }
  }

  N2N_HD static void words(const NoiseKey& key, i64 block, i64 index, u32 (&w)[G]) {
    const Philox p = words_of(key, static_cast<u64>(block));
    if constexpr (G == 1) {
      w[0] = pick_word(p, static_cast<u32>(index) & 3u);
    } else {
      N2N_UNROLL
      for (int q = 0; q < G; ++q) w[q] = p.word[q];
    }
  }
};

}  // namespace n2n
