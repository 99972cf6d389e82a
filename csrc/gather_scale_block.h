// gather_scale as a block of GPU threads does it: what each thread does between barriers.
//
// A tile of teacher rows goes in two phases. `stage`: the block reads the rows once, with 16-byte loads, into its shared
// memory. Barrier. `emit`: each thread takes a few neighbouring columns of the output, finds once where they come from,
// and then makes them for every teacher row and every replica of it, with 16-byte stores. So a weight is read from
// memory once however often it is copied, and no division is left in the loop over rows. Rows too long for the stage are
// read where they lie, through the caches. Whatever is not made of dense rows goes element by element. Rows with
// cancelling noise are made in shared memory, if there is room (unit_rows.h).
//
// These are host-device functions of a thread's number, so that tests run all threads of all blocks on a CPU.
#pragma once

#include "gather_scale.h"
#include "pack.h"
#include "unit_rows.h"

namespace n2n {

constexpr int kBlockThreads = 256;

// V neighbouring elements of a row of the output, from position e: where they come from and what they are scaled by.
template <class S, Noise N, int V>
struct Columns {
  using C = typename Scalar<S>::compute;

  u32 offset[V];   // within the teacher's row
  C scale[V];
  bool adjacent;   // the offsets are consecutive, and the first one is a multiple of V
  // For noise only.
  u32 logical[V];  // what it is counted by: the place in the student's row, or in the teacher's (cancelling)
  bool counted;    // `logical` is consecutive
  i32 role[V];     // for cancelling noise, as are the others
  C first[V];      // the scale of the unit's first replica
  C total[V];      // and of all together
  bool linked;     // a unit has more than one replica
  bool crowded;    // a unit has more than two

  N2N_HD static Columns of(const Task& t, u32 e) {
    Columns c;
    const u32 inner = static_cast<u32>(t.k_outer ? t.I : t.K);
    const u32 units = static_cast<u32>(t.src_I), kernel = static_cast<u32>(t.K);
    u32 outer = divide(e, static_cast<u32>(t.magic), static_cast<u32>(t.shift));
    u32 within = e - outer * inner;
    const u32 prefix = static_cast<u32>(t.in_prefix);
    // In the map's identity prefix nothing is looked up, and a vector's elements lie side by side.
    if (t.k_outer) {
      c.adjacent = within + V <= prefix && (outer * units + within) % V == 0;
    } else {
      c.adjacent = e + V <= prefix * kernel;
    }
    c.counted = !t.k_outer && (N != Noise::kCancelling || c.adjacent);
    c.linked = c.crowded = false;
    u32 unit = 0;
    N2N_UNROLL
    for (int j = 0; j < V; ++j) {
      const u32 i = t.k_outer ? within : outer;
      const u32 k = t.k_outer ? outer : within;
      if (j == 0 || t.k_outer || within == 0) {
        unit = !c.adjacent && t.in_map ? static_cast<u32>(table<i32>(t.in_map, i)) : i;
      }
      c.offset[j] = t.k_outer ? k * units + unit : unit * kernel + k;
      c.scale[j] = t.in_scale ? table<C>(t.in_scale, i) : C(1);
      if (N == Noise::kReplicas) c.logical[j] = i * kernel + k;
      if (N == Noise::kCancelling) {
        c.logical[j] = unit * kernel + k;
        c.role[j] = t.in_next ? table<i32>(t.in_role, i) : kAlone;
        c.linked = c.linked || c.role[j] != kAlone;
        c.crowded = c.crowded || c.role[j] == kOneOfMore;
        const bool last = c.role[j] == kLastOfTwo;
        c.first[j] = last && t.in_scale ? table<C>(t.in_scale, table<i32>(t.in_next, i)) : c.scale[j];
        c.total[j] = last ? table<C>(t.in_total, i) : C(0);
      }
      if (++within == inner) within = 0, ++outer;
    }
    return c;
  }

  // From a teacher row whose beginning is aligned to a vector where `aligned` says so.
  N2N_HD Pack<S, V> load(const S* row, bool aligned) const {
    if (adjacent && aligned) return load_pack<S, V>(row + offset[0]);
    Pack<S, V> s;
    N2N_UNROLL
    for (int j = 0; j < V; ++j) s.e[j] = row[offset[j]];
    return s;
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

// Rounds x to storage. False if there is a NaN among them, which asks for the care of `finish`.
template <class S, int V>
N2N_HD bool round_all(const typename Scalar<S>::compute (&x)[V], Pack<S, V>& u) {
  bool numbers = true;
  N2N_UNROLL
  for (int j = 0; j < V; ++j) {
    numbers = numbers && x[j] == x[j];
    u.e[j] = Scalar<S>::store(x[j]);
  }
  return numbers;
}

// Adds the noise of row o to the shares x of the elements `s` of the teacher's row. False, as above, if `u` is not good.
template <class S, Noise N, int V>
N2N_HD bool add_noise(const Element<S>& element, const Columns<S, N, V>& columns, const Pack<S, V>& s,
                      const typename Scalar<S>::compute (&x)[V], typename Scalar<S>::compute c_out, i64 o,
                      Pack<S, V>& u) {
  using C = typename Scalar<S>::compute;
  const Task& t = element.t;
  u32 word[V];
  columns.words(element.key, o * (N == Noise::kReplicas ? t.I : t.src_I) * t.K, word);
  C y[V];
  bool numbers = true;
  N2N_UNROLL
  for (int j = 0; j < V; ++j) {
    const C w = Scalar<S>::load(s.e[j]);
    if (N == Noise::kReplicas) {
      const C noisy = x[j] + from_noise<C>(noise_from_word(word[j])) * element.sigma;
      y[j] = is_finite(w) ? noisy : x[j];
    } else {
      const i32 z = half_noise_from_word(word[j], 0) - half_noise_from_word(word[j], 1);
      const C first = w * columns.first[j] * c_out + from_noise<C>(z) * element.sigma;
      const C rest = w * columns.total[j] * c_out - (C(0) + Scalar<S>::load(Scalar<S>::store(first)));
      const bool noisy = columns.role[j] != kAlone && is_finite(w);
      y[j] = !noisy ? x[j] : columns.role[j] == kLastOfTwo ? rest : first;
      numbers = numbers && first == first;
    }
  }
  return round_all<S, V>(y, u) && numbers;
}

// A tile as its block sees it.
template <class S, Noise N>
struct BlockTile {
  using C = typename Scalar<S>::compute;

  const GatherScaleArgs& args;
  Tile tile;
  Task t;  // a copy, so that stores to the output do not make a GPU read it again

  N2N_HD static BlockTile of(const GatherScaleArgs& args, i64 number) {
    const Tile tile = args.tiles[number];
    return BlockTile{args, tile, args.tasks[tile.task]};
  }

  N2N_HD i64 rows() const { return t.tile_rows < t.src_O - tile.first ? t.tile_rows : t.src_O - tile.first; }
  N2N_HD u32 teacher_row() const { return static_cast<u32>(t.src_I * t.K); }
  N2N_HD u32 student_row() const { return static_cast<u32>(t.I * t.K); }
  // Elements from one staged row to the next: each begins at a multiple of a vector.
  N2N_HD u32 pitch() const { return (teacher_row() + kVectorOf<S> - 1) / kVectorOf<S> * kVectorOf<S>; }

  N2N_HD const S* source(i64 row) const {
    return reinterpret_cast<const S*>(t.src) + (tile.first + row) * t.src_stride_o;
  }

  N2N_HD static bool aligned(i64 address, i64 stride, i64 row) {
    const i64 size = static_cast<i64>(sizeof(S));
    return is_vector_aligned(address | (stride * size) | (row * size));
  }
  N2N_HD bool source_aligned() const { return aligned(t.src, t.src_stride_o, teacher_row()); }
  N2N_HD bool target_aligned() const { return aligned(t.dst, t.dst_stride_o, student_row()); }

  // The first phase, of a block's thread number `thread`.
  N2N_HD void stage(S* shared, int thread) const {
    if (!t.rows || !t.staged) return;
    if (source_aligned()) {
      copy_in<kVectorOf<S>>(shared, thread);
    } else {
      copy_in<1>(shared, thread);
    }
  }

  // The second, after a barrier.
  N2N_HD void emit(const S* shared, int thread, u64 seed) const {
    if constexpr (N != Noise::kNone) {
      // Nothing is looked up for the noise of a tensor that has none.
      if (sigma_of(t) == 0.0) return BlockTile<S, Noise::kNone>{args, tile, t}.emit(shared, thread, seed);
    }
    // For eight elements at once, what the noise looks up does not fit the registers of two blocks.
    constexpr int kWide = N == Noise::kCancelling && kVectorOf<S> > 4 ? 4 : kVectorOf<S>;
    const Element<S> element = Element<S>::template of<N>(t, seed);
    if (!t.rows) {
      emit_elements(element, thread);
    } else if (!target_aligned()) {
      if (t.staged) {
        emit_rows<1, true>(element, shared, thread);
      } else {
        emit_rows<1, false>(element, shared, thread);
      }
    } else if (t.staged) {
      emit_rows<kWide, true>(element, shared, thread);
    } else {
      emit_rows<kWide, false>(element, shared, thread);
    }
  }

  template <int V>
  N2N_HD void copy_in(S* shared, int thread) const {
    const u32 per_row = teacher_row() / V;
    const u32 line = pitch();
    if (t.src_stride_o == teacher_row() && line == teacher_row()) {
      // The rows are one piece of memory.
      const u32 count = per_row * static_cast<u32>(rows());
      for (u32 v = static_cast<u32>(thread); v < count; v += kBlockThreads) {
        stage_pack<S, V>(shared + v * V, load_pack<S, V>(source(0) + v * V, args.streaming));
      }
      return;
    }
    for (i64 r = 0; r < rows(); ++r) {
      for (u32 v = static_cast<u32>(thread); v < per_row; v += kBlockThreads) {
        stage_pack<S, V>(shared + r * line + v * V, load_pack<S, V>(source(r) + v * V, args.streaming));
      }
    }
  }

  // Cancelling noise takes other phases than `emit`, two for each row of the student, with a barrier after each.
  N2N_HD bool by_units() const { return N == Noise::kCancelling && t.by_units && sigma_of(t) != 0.0; }

  // The rows of the student that are made of a teacher row: output(row, n) for n in [first_output, last_output).
  N2N_HD i32 first_output(i64 row) const { return t.row_begin ? table<i32>(t.row_begin, tile.first + row) : 0; }
  N2N_HD i32 last_output(i64 row) const { return t.row_begin ? table<i32>(t.row_begin, tile.first + row + 1) : 1; }
  N2N_HD i64 output(i64 row, i32 n) const { return t.row_begin ? table<i32>(t.row_list, n) : tile.first + row; }

  // Behind the staged rows.
  N2N_HD i64 made() const { return t.tile_rows * pitch(); }

  N2N_HD void make_row(S* shared, int thread, u64 seed, i64 row, i64 o) const {
    const Element<S> element = Element<S>::template of<N>(t, seed);
    if (t.K < kBlockWords) {
      make_units<1>(element, shared, thread, row, o);
    } else {
      make_units<kBlockWords>(element, shared, thread, row, o);
    }
  }

  template <int G>
  N2N_HD void make_units(const Element<S>& element, S* shared, int thread, i64 row, i64 o) const {
    const UnitRow<S, G> units{element, shared + row * pitch(), shared + made(), o};
    const u32 items = static_cast<u32>(t.src_I) * UnitRow<S, G>::items_of_unit(t);
    for (u32 item = static_cast<u32>(thread); item < items; item += kBlockThreads) units.make(item);
  }

  N2N_HD void store_row(const S* shared, int thread, i64 o) const {
    if (target_aligned()) {
      copy_out<kVectorOf<S>>(shared + made(), thread, o);
    } else {
      copy_out<1>(shared + made(), thread, o);
    }
  }

  template <int V>
  N2N_HD void copy_out(const S* from, int thread, i64 o) const {
    S* const to = reinterpret_cast<S*>(t.dst) + o * t.dst_stride_o;
    for (u32 e = static_cast<u32>(thread) * V; e < student_row(); e += kBlockThreads * V) {
      store_pack<S, V>(to + e, load_pack<S, V>(from + e), args.streaming);
    }
  }

  // 2^lanes_log2 threads go along a row, and the block's threads beyond take other rows.
  template <int V, bool Staged>
  N2N_HD void emit_rows(const Element<S>& element, const S* shared, int thread) const {
    const u32 lanes = 1u << t.lanes_log2;
    const u32 lane = static_cast<u32>(thread) & (lanes - 1u);
    const i64 line = thread >> t.lanes_log2, lines = kBlockThreads >> t.lanes_log2;
    const u32 begin = static_cast<u32>(tile.column);
    const u32 end = begin + t.tile_columns < student_row() ? begin + static_cast<u32>(t.tile_columns) : student_row();
    const bool from_aligned = Staged || source_aligned();
    const i64 count = rows();
    for (u32 e = begin + lane * V; e < end; e += lanes * V) {
      const auto columns = Columns<S, N, V>::of(t, e);
      for (i64 r = line; r < count; r += lines) {
        const Pack<S, V> s = columns.load(Staged ? shared + r * pitch() : source(r), from_aligned);
        C x[V];
        N2N_UNROLL
        for (int j = 0; j < V; ++j) x[j] = Scalar<S>::load(s.e[j]) * columns.scale[j];
        // What every replica has that has neither a scale of its own nor noise.
        Pack<S, V> same = s;
        const bool numbers = element.plain || round_all<S, V>(x, same);
        const i32 last = last_output(r);
        for (i32 n = first_output(r); n < last; ++n) {
          const i64 o = output(r, n);
          const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
          Pack<S, V> u = same;
          bool good = numbers;
          if (t.out_scale || (N != Noise::kNone && has_noise(element, columns, o))) {
            C y[V];
            N2N_UNROLL
            for (int j = 0; j < V; ++j) y[j] = x[j] * c_out;
            if (N != Noise::kNone && has_noise(element, columns, o)) {
              good = !columns.crowded && add_noise<S, N, V>(element, columns, s, y, c_out, o, u);
            } else {
              good = round_all<S, V>(y, u);
            }
          }
          if (good) {
            store_pack<S, V>(reinterpret_cast<S*>(t.dst) + o * t.dst_stride_o + e, u, args.streaming);
          } else {
            one_by_one(element, o, e, V);
          }
        }
      }
    }
  }

  template <int V>
  N2N_HD bool has_noise(const Element<S>& element, const Columns<S, N, V>& columns, i64 o) const {
    if (!element.noisy) return false;
    return N == Noise::kReplicas ? t.out_seen && table<i32>(t.out_seen, o) : columns.linked;
  }

  // The definition, where a NaN is made and for the columns of units that have more than two replicas.
  N2N_HD void one_by_one(const Element<S>& element, i64 o, u32 e, int count) const {
    const u32 inner = static_cast<u32>(t.k_outer ? t.I : t.K);
    N2N_ROLL
    for (const u32 end = e + static_cast<u32>(count); e < end; ++e) {
      const u32 outer = divide(e, static_cast<u32>(t.magic), static_cast<u32>(t.shift));
      const u32 within = e - outer * inner;
      const Cursor c = t.k_outer ? Cursor{o, within, outer} : Cursor{o, outer, within};
      *element.destination(c) = element.template compute<N>(c);
    }
  }

  // Neighbouring threads take neighbouring elements, so that stores of a dense output fill whole lines.
  N2N_HD void emit_elements(const Element<S>& element, int thread) const {
    const i64 begin = tile.first * kTile;
    const i64 left = t.O * t.I * t.K - begin;
    const int count = static_cast<int>(left < kTile ? left : kTile);
    const TileStart start = TileStart::of(t, begin);
    for (int e = thread; e < count; e += kBlockThreads) {
      const Cursor c = start.at(static_cast<u32>(e));
      *element.destination(c) = element.template compute<N>(c);
    }
  }
};

}  // namespace n2n
