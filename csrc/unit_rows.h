// A row of the student with cancelling noise, as a block of GPU threads makes it: unit by unit, in shared memory.
//
// The replicas of a unit depend on each other, and on the same random words, of which four come from one computation. So
// a thread takes a unit, the whole of its kernel or four neighbouring elements of it, and makes all of their replicas,
// wherever in the student's row these are. Made element by element of the student, each would compute the words of all the others
// (`Element::cancelling`, the definition) for itself. Units are taken in the order of how many replicas they have, so
// that the threads of a warp do the same. Shared memory puts the row in order, so that it is stored in whole vectors.
// Where a unit has a single element (1x1, linear), the four words of a computation are of four units, so the whole row's
// are made first, in shared memory too, if they fit.
//
// Of a row that does not fit shared memory, a block makes a window: of all units that have a column there, all replicas,
// because each depends on the others, of which it keeps what lies in the window. The teacher's row is read where it lies.
#pragma once

#include <type_traits>

#include "finite.h"
#include "gather_scale.h"
#include "rows.h"

namespace n2n {

// Of the random words that come from one computation.
constexpr int kBlockWords = 4;

// The bytes of a student's row that are made.
struct Window {
  u32 begin, size;
  bool whole;  // they are the row
};

// G: elements of a unit's kernel that a thread takes at a time. All of them, if `Whole`; else a block of words. Row: where
// the teacher's row lies. If that is shared memory, the window is the whole row.
template <class S, int G, bool Whole, class Row>
struct UnitRow {
  using C = typename Scalar<S>::compute;
  static constexpr bool kWindowed = std::is_same<Row, GlobalRow<S>>::value;
  static_assert(Whole || G == kBlockWords, "a kernel or a block of words");

  const Element<S>& element;
  Row teacher;        // its row
  SharedRow<S> made;  // the student's, in the order of its memory
  SharedRow<u32> made_words;  // of the first stream, that of the row's first element first
  Window window;
  u32 o;
  C c_out, sigma;
  u64 index;  // of the noise, where the row begins

  N2N_HD static UnitRow of(const Element<S>& element, const Row& teacher, const SharedRow<S>& made,
                           const SharedRow<u32>& made_words, const Window& window, u32 o) {
    const C c_out = element.t.out_scale ? table<C>(element.t.out_scale, o) : C(1);
    const u64 index = static_cast<u64>(element.unit_index(o, 0, 0));
    const SharedRow<u32> from_first = (made_words + bytes_of<u32>(static_cast<u32>(index) % kBlockWords)).kept();
    return UnitRow{element, teacher, made, from_first, window, o, c_out, kept(element.sigma), kept(index)};
  }

  // Of a unit's kernel: the first and the last block of words may begin before it and end after it.
  N2N_HD static u32 parts(const Task& t) {
    return Whole ? 1 : static_cast<u32>((t.K + 2 * kBlockWords - 2) / kBlockWords);
  }

  // A part of the unit at `place` in the order.
  N2N_HD void make(u32 place, u32 part) const {
    const Task& t = element.t;
    const UnitEntry entry = unit_entry(t, place);
    if (kWindowed && !window.whole && !touches_window(entry)) return;
    const u32 kernel = Whole ? G : static_cast<u32>(t.K), unit = static_cast<u32>(entry.unit);
    const u64 at = index + u64{unit} * kernel;
    Part p;
    // It wraps around where a block of words begins before the kernel.
    p.first = Whole ? 0 : part * kBlockWords - static_cast<u32>(at) % kBlockWords;
    const u64 block = at / kBlockWords + part;
    const u32 origin = t.k_outer ? unit : unit * kernel, from_step = static_cast<u32>(t.k_outer ? t.src_I : 1);
    const u32 to_step = static_cast<u32>(t.k_outer ? t.I : 1);
    C w[G], others[G];
    N2N_UNROLL
    for (int j = 0; j < G; ++j) {
      const u32 k = p.first + static_cast<u32>(j);
      p.inside[j] = Whole || k < kernel;
      p.place[j] = bytes_of<S>(k * to_step);
      w[j] = p.inside[j] ? Scalar<S>::load(teacher.get(bytes_of<S>(origin + k * from_step))) : C(0);
      others[j] = C(0);
    }
    const bool finite = all_finite(w);
    const i32 others_count = entry.copies - 1;
    if (others_count > 0) {
      NoiseKey key = element.key;
      u32 word[G], sum[G];
      if (G == 1 && t.words) {
        word[0] = made_words.get(bytes_of<u32>(unit));
      } else {
        words(key, block, static_cast<u32>(at) % kBlockWords, word);
      }
      N2N_UNROLL
      for (int j = 0; j < G; ++j) sum[j] = half_sum_from_word(word[j], 0);
      u32 column = static_cast<u32>(entry.first);
      i32 n = 0, begin = 0;
      N2N_ROLL
      for (u32 half = 1;; half ^= 1u) {
        const C share = element.scale_in(column);
        C x[G];
        N2N_UNROLL
        for (int j = 0; j < G; ++j) {
          const u32 next = half_sum_from_word(word[j], half);
          x[j] = w[j] * share * c_out + from_noise<C>(difference(sum[j], next)) * sigma;
          others[j] = others[j] + Scalar<S>::load(Scalar<S>::store(x[j]));
          sum[j] = next;
        }
        put(p, column, x);
        if (++n == others_count) break;
        if (n == 1) begin = table<i32>(t.in_begin, unit);
        column = static_cast<u32>(table<i32>(t.in_list, i64{begin} + n));
        if (half == 1) {
          ++key.stream;
          words(key, block, static_cast<u32>(at) % kBlockWords, word);
        }
      }
    }
    const u32 column = static_cast<u32>(entry.last);
    const C whole = others_count > 0 ? table<C>(t.in_total, column) : element.scale_in(column);
    C x[G];
    N2N_UNROLL
    for (int j = 0; j < G; ++j) x[j] = w[j] * whole * c_out - others[j];
    put(p, column, x);
    // A NaN among the others makes one of the last.
    if (!(finite && all_numbers(x))) define(entry, p.first);
  }

 private:
  struct Part {
    u32 first;       // of the kernel's elements
    bool inside[G];  // the kernel
    u32 place[G];    // in a column of the student's row, in bytes
  };

  // Where a column of the student's row begins, in bytes.
  N2N_HD u32 column_at(u32 column) const {
    return bytes_of<S>(element.t.k_outer ? column : column * static_cast<u32>(element.t.K));
  }

  // The column that is replica number n.
  N2N_HD u32 replica(const UnitEntry& entry, i32 n) const {
    return static_cast<u32>(table<i32>(element.t.in_list, i64{table<i32>(element.t.in_begin, entry.unit)} + n));
  }

  N2N_HD bool touches_window(const UnitEntry& entry) const {
    if (element.t.k_outer) return true;  // a column is everywhere
    bool touches = false;
    N2N_ROLL
    for (i32 n = 0; n < entry.copies; ++n) {
      const u32 from = column_at(replica(entry, n));
      const u32 to = from + bytes_of<S>(static_cast<u32>(element.t.K));
      touches = touches || (from < window.begin + window.size && window.begin < to);
    }
    return touches;
  }

  N2N_HD void put_at(u32 place, S value) const {
    if (!kWindowed) {
      made.put(place, value);
    } else if (place - window.begin < window.size) {  // it wraps around before the window
      made.put(place - window.begin, value);
    }
  }

  N2N_HD void put(const Part& p, u32 column, const C (&x)[G]) const {
    const u32 to = column_at(column);
    N2N_UNROLL
    for (int j = 0; j < G; ++j) {
      if (p.inside[j]) put_at(to + p.place[j], Scalar<S>::store(x[j]));
    }
  }

  // The definition, where a weight is not finite or a NaN is made.
  N2N_HD void define(const UnitEntry& entry, u32 first) const {
    N2N_ROLL
    for (i32 n = 0; n < entry.copies; ++n) {
      const u32 column = replica(entry, n);
      N2N_ROLL
      for (u32 k = first; k != first + static_cast<u32>(G); ++k) {
        if (k >= static_cast<u32>(element.t.K)) continue;
        const u32 place = bytes_of<S>(k * static_cast<u32>(element.t.k_outer ? element.t.I : 1));
        put_at(column_at(column) + place, element.template compute<Noise::kCancelling>(Cursor{o, column, k}));
      }
    }
  }

  // Of a block, or from word `first` of it on.
  N2N_HD static void words(const NoiseKey& key, u64 block, u32 first, u32 (&w)[G]) {
    if constexpr (G == 1) {
      w[0] = pick_word(words_of(key, block), first);
    } else if constexpr (!Whole) {
      const Philox p = words_of(key, block);
      N2N_UNROLL
      for (int q = 0; q < G; ++q) w[q] = p.word[q];
    } else {
      constexpr int kBlocks = (G + 2 * kBlockWords - 2) / kBlockWords;
      u32 all[kBlocks * kBlockWords];
      N2N_UNROLL
      for (int b = 0; b < kBlocks; ++b) {
        const Philox p = words_of(key, block + b);
        N2N_UNROLL
        for (int q = 0; q < kBlockWords; ++q) all[b * kBlockWords + q] = p.word[q];
      }
      // Selected rather than indexed, see pick_word.
      N2N_UNROLL
      for (int q = 0; q < G + 2; ++q) all[q] = (first & 1u) ? all[q + 1] : all[q];
      N2N_UNROLL
      for (int q = 0; q < G; ++q) w[q] = (first & 2u) ? all[q + 2] : all[q];
    }
  }
};

}  // namespace n2n
