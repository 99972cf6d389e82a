// gather_scale as a block of GPU threads does it: what each thread does between barriers.
//
// A tile of teacher rows goes in two phases. `stage`: the block copies the rows once, sixteen bytes at a time and without
// waiting for each, into its shared memory. Barrier. `emit`: each thread takes a few neighbouring columns of the output
// (columns.h), finds once where they come from, and then makes them for every teacher row and every replica of it, with
// 16-byte stores. So a weight is read from memory once however often it is copied, and no division is left in the loop
// over rows. Rows too long for the stage are read where they lie, through the caches. Whatever is not made of dense rows
// goes element by element. Rows with cancelling noise, and rows that do not begin at multiples of sixteen bytes, are made
// in shared memory and stored from there (unit_rows.h).
//
// These are host-device functions of a thread's number, so that tests run all threads of all blocks on a CPU.
#pragma once

#include "columns.h"
#include "finite.h"
#include "unit_rows.h"

namespace n2n {

constexpr int kBlockThreads = 256;

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
  N2N_HD void stage(const SharedRow<S>& shared, int thread) const {
    if (!t.rows || !t.staged) return;
    if (source_aligned()) {
      copy_in<kVectorOf<S>>(shared, thread);
    } else {
      copy_in<1>(shared, thread);
    }
  }

  // The second, after a barrier.
  N2N_HD void emit(const SharedRow<S>& shared, int thread, u64 seed) const {
    if constexpr (N != Noise::kNone) {
      if (!noisy()) return without_noise().emit(shared, thread, seed);
    }
    const Element<S> element = Element<S>::template of<N>(t, seed);
    if constexpr (N == Noise::kCancelling) {
      emit_elements(element, thread);  // rows are made `by_rows`
    } else if (!t.rows) {
      emit_elements(element, thread);
    } else if (!target_aligned()) {
      emit_staged<1>(element, shared, thread);
    } else {
      emit_staged<kVectorOf<S>>(element, shared, thread);
    }
  }

  // Nothing is looked up for the noise of a tensor that has none.
  N2N_HD bool noisy() const {
    return N != Noise::kNone && (N == Noise::kReplicas ? t.out_seen : t.in_next) && sigma_of(t) != 0.0;
  }
  N2N_HD BlockTile<S, Noise::kNone> without_noise() const { return BlockTile<S, Noise::kNone>{args, tile, t}; }

  template <int V>
  N2N_HD void emit_staged(const Element<S>& element, const SharedRow<S>& shared, int thread) const {
    if (t.staged) {
      emit_scaled<V, true>(element, shared, thread);
    } else {
      emit_scaled<V, false>(element, shared, thread);
    }
  }

  template <int V, bool Staged>
  N2N_HD void emit_scaled(const Element<S>& element, const SharedRow<S>& shared, int thread) const {
    if constexpr (N == Noise::kNone) {
      if (element.plain) return emit_rows<V, Staged, true>(element, shared, thread);
    }
    emit_rows<V, Staged, false>(element, shared, thread);
  }

  template <int V>
  N2N_HD void copy_in(const SharedRow<S>& shared, int thread) const {
    const u32 line = pitch();
    // Rows may be one piece of memory.
    const bool one_piece = t.src_stride_o == teacher_row() && line == teacher_row();
    const u32 count = teacher_row() / V * static_cast<u32>(one_piece ? rows() : 1);
    const i64 pieces = one_piece ? 1 : rows();
    for (i64 r = 0; r < pieces; ++r) {
      for (u32 v = static_cast<u32>(thread); v < count; v += kBlockThreads) {
        shared.template stage<V>(static_cast<u32>(sizeof(S)) * (static_cast<u32>(r) * line + v * V), source(r) + v * V);
      }
    }
  }

  // Instead of `emit`, for each row of the student: it is made in shared memory, and stored from there in whole vectors,
  // with a barrier before each. Several rows at a time, if they are short. For cancelling noise, and for rows that do not
  // all begin at a multiple of a vector. Of a row that does not fit there a tile makes a part, with cancelling noise.
  N2N_HD bool by_rows() const {
    return t.row_room && ((N == Noise::kCancelling && noisy()) || (t.staged && !target_aligned()));
  }

  // The elements of a row that a tile makes.
  N2N_HD u32 row_begin() const { return static_cast<u32>(tile.column); }
  N2N_HD u32 row_end() const {
    const u32 end = row_begin() + static_cast<u32>(t.tile_columns);
    return end < student_row() ? end : student_row();
  }

  // Whether a teacher row's outputs are all the same, and one of them at a time: then one is made for all.
  N2N_HD bool alike() const { return t.row_room == 1 && !noisy() && !t.out_scale; }

  // The threads that make a row, and which of the rows that are made at a time.
  struct Team {
    u32 thread, threads;
    i32 row;
  };
  // Neighbouring threads make the same units of different rows, which have as many replicas.
  N2N_HD Team making_team(int thread) const {
    const u32 rows = static_cast<u32>(t.row_room), number = static_cast<u32>(thread);
    return Team{number / rows, kBlockThreads / rows, static_cast<i32>(number % rows)};
  }
  // But they store what lies side by side.
  N2N_HD Team storing_team(int thread) const {
    const u32 threads = kBlockThreads / static_cast<u32>(t.row_room), number = static_cast<u32>(thread);
    return Team{number % threads, threads, static_cast<i32>(number / threads)};
  }

  // The rows of the student that are made of a teacher row: output(row, n) for n in [first, last).
  struct Outputs {
    i32 first, last;
  };
  N2N_HD Outputs outputs(i64 row) const {
    if (!t.row_begin) return Outputs{0, 1};
    const i32* const begin = reinterpret_cast<const i32*>(t.row_begin) + tile.first + row;
    return Outputs{read_only(begin), read_only(begin + 1)};
  }
  N2N_HD u32 output(i64 row, i32 n) const {
    return static_cast<u32>(t.row_begin ? table<i32>(t.row_list, n) : static_cast<i32>(tile.first + row));
  }
  // The same for all teacher rows of the tile, and the teacher row of one.
  N2N_HD Outputs all_outputs() const {
    if (!t.row_begin) return Outputs{0, static_cast<i32>(rows())};
    const i32* const begin = reinterpret_cast<const i32*>(t.row_begin) + tile.first;
    return Outputs{read_only(begin), read_only(begin + rows())};
  }
  N2N_HD u32 output_at(i32 n) const {
    return static_cast<u32>(t.row_begin ? table<i32>(t.row_list, n) : tile.first + n);
  }
  N2N_HD i32 row_at(i32 n) const { return t.row_begin ? table<i32>(t.out_map, output_at(n)) - tile.first : n; }

  // The student's row o, from element e on.
  N2N_HD S* target(u32 o, u32 e) const {
    const u64 stride = static_cast<u64>(t.dst_stride_o) * sizeof(S);
    return reinterpret_cast<S*>(static_cast<u64>(t.dst) + u64{e} * sizeof(S) + u64{o} * stride);
  }

  // Behind the staged rows.
  N2N_HD SharedRow<S> made(const SharedRow<S>& shared, const Team& team) const {
    // An odd number, so that the same place of several rows is not in the same bank of memory.
    const i64 vectors = (t.tile_columns + kVectorOf<S> - 1) / kVectorOf<S> | 1;
    return shared + (t.staged ? t.tile_rows * row_bytes<true>() : 0) + team.row * vectors * kVectorBytes;
  }

  // Whether the words of noise are made first for all units of a row, behind the rows that are made (unit_rows.h). They are
  // whole blocks, of which the first may begin before the row.
  N2N_HD bool has_words() const { return N == Noise::kCancelling && t.words && noisy(); }
  N2N_HD SharedRow<u32> words(const SharedRow<S>& shared, const Team& team) const {
    const i64 blocks = (t.src_I + 2 * kBlockWords - 2) / kBlockWords | 1;
    return made(shared, {0, 0, static_cast<i32>(t.row_room)}).template of<u32>() + team.row * blocks * kVectorBytes;
  }
  // For the team's row, which is output `n` of the tile.
  N2N_HD void make_words(const SharedRow<S>& shared, const Team& team, u64 seed, i32 n) const {
    const Element<S> element = Element<S>::template of<N>(t, seed);
    const SharedRow<u32> to = words(shared, team);
    const u64 begin = static_cast<u64>(element.unit_index(output_at(n), 0, 0)), first = begin / kBlockWords;
    const u32 count = static_cast<u32>((begin + static_cast<u64>(t.src_I) + kBlockWords - 1) / kBlockWords - first);
    for (u32 block = team.thread; block < count; block += team.threads) {
      const Philox made = words_of(element.key, first + block);
      to.template put_pack<kBlockWords>(block * kVectorBytes, bit_cast<Pack<u32, kBlockWords>>(made));
    }
  }

  // The team's row, which is output `n` of the tile.
  N2N_HD void make_row(const SharedRow<S>& shared, const Team& team, u64 seed, i32 n) const {
    if constexpr (N != Noise::kNone) {
      if (!noisy()) return without_noise().make_row(shared, {team.thread, team.threads, team.row}, seed, n);
    }
    const Element<S> element = Element<S>::template of<N>(t, seed);
    const u32 o = output_at(n);
    const i64 row = row_at(n);
    if constexpr (N == Noise::kCancelling) {
      make_all_units(element, shared, team, row, o);
    } else {
      // The last elements of a row do not fill a vector.
      constexpr int V = kVectorOf<S>;
      const u32 end = student_row() / V * V;
      make_columns<V>(element, shared, team, team.thread * V, end, row, o);
      make_columns<1>(element, shared, team, end + team.thread, student_row(), row, o);
    }
  }

  // From column e on, with the team's other threads, up to `end`.
  template <int V>
  N2N_HD void make_columns(const Element<S>& element, const SharedRow<S>& shared, const Team& team, u32 e, u32 end,
                           i64 row, u32 o) const {
    const SharedRow<S> from = shared + row * row_bytes<true>(), to = made(shared, team);
    for (; e < end; e += team.threads * V) {
      const auto columns = Columns<S, N, V>::of(t, e);
      C w[V], x[V];
      columns.load_numbers(from, true, w);
      N2N_UNROLL
      for (int j = 0; j < V; ++j) x[j] = w[j] * columns.scale[j];
      if ((N == Noise::kNone || all_finite(w)) && finish_columns(element, columns, o, all_numbers(x), x)) {
        to.template put_pack<V>(bytes_of<S>(e), round_all<S, V>(x));
      } else {
        define(element, o, e, V, [&](u32 place, const Cursor&, S value) { to.put(bytes_of<S>(place), value); });
      }
    }
  }

  N2N_HD void make_all_units(const Element<S>& element, const SharedRow<S>& shared, const Team& team, i64 row,
                             u32 o) const {
    // Of doubles a whole kernel does not fit the registers of two blocks.
    constexpr int kWhole = sizeof(S) > 4 ? 1 : 9;
    const SharedRow<S> staged = shared + row * row_bytes<true>();
    if (!t.staged) {
      const GlobalRow<S> from(source(row));
      if (t.K == 1) {
        make_units<1, true>(element, from, shared, team, o);
      } else if (t.K == kWhole) {
        make_units<kWhole, true>(element, from, shared, team, o);
      } else {
        make_units<kBlockWords, false>(element, from, shared, team, o);
      }
    } else if (t.K == 1) {
      make_units<1, true>(element, staged, shared, team, o);
    } else if (t.K == 3) {
      make_units<3, true>(element, staged, shared, team, o);
    } else if (t.K == kWhole) {
      make_units<kWhole, true>(element, staged, shared, team, o);
    } else {
      make_units<kBlockWords, false>(element, staged, shared, team, o);
    }
  }

  template <int G, bool Whole, class Row>
  N2N_HD void make_units(const Element<S>& element, const Row& from, const SharedRow<S>& shared, const Team& team,
                         u32 o) const {
    using Units = UnitRow<S, G, Whole, Row>;
    const u32 made_of_row = row_end() - row_begin();
    const Window window{bytes_of<S>(row_begin()), bytes_of<S>(made_of_row), made_of_row == student_row()};
    const auto units = Units::of(element, from, made(shared, team), words(shared, team), window, o);
    const u32 count = static_cast<u32>(t.src_I), parts = Units::parts(t);
    const u32 places = team.threads / parts, left = team.threads % parts;
    u32 place = team.thread / parts, part = team.thread % parts;
    while (place < count) {
      units.make(place, part);
      place += places;
      part += left;
      if (part >= parts) part -= parts, ++place;
    }
  }

  // Vectors of the student's memory, which may begin within a vector of the row.
  N2N_HD void store_row(const SharedRow<S>& shared, const Team& team, i32 n) const {
    constexpr u32 V = kVectorOf<S>;
    const SharedRow<S> from = made(shared, team);
    S* const to = target(output_at(n), row_begin());
    const u32 row = row_end() - row_begin();
    const u32 past = static_cast<u32>(reinterpret_cast<u64>(to) % kVectorBytes / sizeof(S));
    const u32 head = past == 0 ? 0 : V - past < row ? V - past : row;
    const u32 tail = head + (row - head) / V * V;
    const u32 first = head + team.thread * V;
    if (head == 0) {
      for (u32 e = first; e < tail; e += team.threads * V) {
        store_pack<S, V>(to + e, from.template get_pack<V>(bytes_of<S>(e)), args.streaming);
      }
    } else {
      for (u32 e = first; e < tail; e += team.threads * V) {
        Pack<S, V> v;
        N2N_UNROLL
        for (u32 j = 0; j < V; ++j) v.e[j] = from.get(bytes_of<S>(e + j));
        store_pack<S, V>(to + e, v, args.streaming);
      }
    }
    const u32 edge = team.thread < head ? team.thread : tail + team.thread - head;
    if (edge < head || (team.thread >= head && edge < row)) *global(to + edge) = from.get(bytes_of<S>(edge));
  }

  // The first of the tile's teacher rows, and the bytes from one to the next.
  template <bool Staged>
  N2N_HD auto start(const SharedRow<S>& shared) const {
    if constexpr (Staged) {
      return shared;
    } else {
      return GlobalRow<S>(source(0));
    }
  }
  template <bool Staged>
  N2N_HD i64 row_bytes() const {
    return static_cast<i64>(sizeof(S)) * (Staged ? static_cast<i64>(pitch()) : t.src_stride_o);
  }

  // 2^lanes_log2 threads go along a row, and the block's threads beyond take other rows.
  template <int V, bool Staged, bool Plain>
  N2N_HD void emit_rows(const Element<S>& element, const SharedRow<S>& shared, int thread) const {
    const u32 lanes = 1u << t.lanes_log2;
    const u32 lane = static_cast<u32>(thread) & (lanes - 1u);
    const i32 line = thread >> t.lanes_log2, lines = kBlockThreads >> t.lanes_log2;
    const u32 begin = row_begin(), end = row_end();
    const bool from_aligned = Staged || source_aligned();
    const auto first_row = start<Staged>(shared) + line * row_bytes<Staged>();
    const i64 step = lines * row_bytes<Staged>();
    const i32 count = static_cast<i32>(rows());
    for (u32 e = begin + lane * V; e < end; e += lanes * V) {
      const auto columns = Columns<S, N, V>::of(t, e);
      auto row = first_row;
      for (i32 r = line; r < count; r += lines, row = row + step) {
        bool good = true;
        if constexpr (Plain) {
          store_replicas<V>(r, e, columns.load(row, from_aligned));
        } else {
          C w[V], x[V];
          columns.load_numbers(row, from_aligned, w);
          N2N_UNROLL
          for (int j = 0; j < V; ++j) x[j] = w[j] * columns.scale[j];
          if (N == Noise::kNone && !t.out_scale) {
            good = all_numbers(x);
            if (good) store_replicas<V>(r, e, round_all<S, V>(x));
          } else {
            // Noise is for finite weights.
            good = N == Noise::kNone || all_finite(w);
            if (good) make_replicas<V>(element, columns, r, e, x);
          }
        }
        if (!good) define_replicas(element, r, e, V);
      }
    }
  }

  // All rows of the student that are made of a teacher row have `u` from position e on.
  template <int V>
  N2N_HD void store_replicas(i32 row, u32 e, const Pack<S, V>& u) const {
    const Outputs made = outputs(row);
    N2N_ROLL
    for (i32 n = made.first; n < made.last; ++n) store_pack<S, V>(target(output(row, n), e), u, args.streaming);
  }

  // The same where each has a scale or noise of its own: `x` is what they have without.
  template <int V>
  N2N_HD void make_replicas(const Element<S>& element, const Columns<S, N, V>& columns, i32 row, u32 e,
                            const C (&x)[V]) const {
    const Pack<S, V> same = round_all<S, V>(x);
    const bool numbers = all_numbers(x);
    const Outputs made = outputs(row);
    N2N_ROLL
    for (i32 n = made.first; n < made.last; ++n) {
      const u32 o = output(row, n);
      Pack<S, V> u = same;
      bool good = numbers;
      if (t.out_scale || has_noise(element, o)) {
        C y[V];
        N2N_UNROLL
        for (int j = 0; j < V; ++j) y[j] = x[j];
        good = finish_columns(element, columns, o, numbers, y);
        u = round_all<S, V>(y);
      }
      if (good) {
        store_pack<S, V>(target(o, e), u, args.streaming);
      } else {
        define_row(element, o, e, V);
      }
    }
  }

  // Makes x, which is what all replicas have, what row o has: false if that needs the care of `finish`, as x does if it is
  // not of `numbers`.
  template <int V>
  N2N_HD bool finish_columns(const Element<S>& element, const Columns<S, N, V>& columns, u32 o, bool numbers,
                             C (&x)[V]) const {
    bool good = numbers;
    if (t.out_scale) {
      const C c_out = table<C>(t.out_scale, o);
      N2N_UNROLL
      for (int j = 0; j < V; ++j) x[j] = x[j] * c_out;
      good = all_numbers(x);
    }
    if (has_noise(element, o)) {
      u32 word[V];
      columns.words(element.key, static_cast<i64>(o) * t.I * t.K, word);
      N2N_UNROLL
      for (int j = 0; j < V; ++j) x[j] = x[j] + from_noise<C>(noise_from_word(word[j])) * element.sigma;
      // A number and a finite one do not make a NaN.
      good = good && is_finite(element.sigma * C(kLargestNoise));
    }
    return good;
  }

  N2N_HD bool has_noise(const Element<S>& element, u32 o) const {
    return N == Noise::kReplicas && element.noisy && t.out_seen && table<i32>(t.out_seen, o);
  }

  // The definition, where a NaN is made.
  N2N_HD void define_replicas(const Element<S>& element, i32 row, u32 e, int count) const {
    const Outputs made = outputs(row);
    N2N_ROLL
    for (i32 n = made.first; n < made.last; ++n) define_row(element, output(row, n), e, count);
  }

  N2N_HD void define_row(const Element<S>& element, u32 o, u32 e, int count) const {
    define(element, o, e, count, [&](u32, const Cursor& c, S value) { *element.destination(c) = value; });
  }

  // Gives `put` the elements of row o from e on: place in the row, and value.
  template <class Put>
  N2N_HD void define(const Element<S>& element, u32 o, u32 e, int count, const Put& put) const {
    const u32 inner = static_cast<u32>(t.k_outer ? t.I : t.K);
    N2N_ROLL
    for (const u32 end = e + static_cast<u32>(count); e < end; ++e) {
      const u32 outer = divide(e, static_cast<u32>(t.magic), static_cast<u32>(t.shift));
      const u32 within = e - outer * inner;
      const Cursor c = t.k_outer ? Cursor{o, within, outer} : Cursor{o, outer, within};
      put(e, c, element.template compute<N>(c));
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
