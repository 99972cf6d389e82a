// gather_scale: U[o, i, k] = W[g_o[o], g_i[i], k] * c_i[i] * c_o[o], with optional noise, for a whole list of tensors.
//
// One launch works on a table of tasks, one per tensor, cut into tiles. This file has the table and the arithmetic of
// one output element, which is the definition. How tiles are worked on is in gather_scale_block.h for the GPU and in
// gather_scale_cpu.cpp for the CPU. n2n_kernels/ops/gather_scale/tasks.py builds the table.
#pragma once

#include "philox.h"
#include "tile.h"
#include "vector.h"

namespace n2n {

enum class Noise : int { kNone = 0, kReplicas = 1, kCancelling = 2 };

// Eight-byte fields only, so that the table is an int64 matrix that NumPy writes and every backend reads, Triton's
// included. Addresses are 0 where a table is absent; maps are int32, scales have the compute type.
struct Task {
  i64 src, dst;
  i64 out_map, in_map;        // student index -> teacher index; absent: the identity
  i64 row_begin, row_list;    // int32 [src_O + 1], [O]: the rows that copy teacher row s are row_list[row_begin[s]...]
  i64 out_scale, in_scale;    // absent: no multiplication at all, so that bits pass through
  i64 out_seen;               // int32 [O]: 1 where the row's unit has occurred in an earlier row (noise on replicas)
  i64 in_next;                // int32 [I]: the next replica of the same unit, cyclically (cancelling noise)
  i64 in_order;               // int32 [I]: how many of the unit's replicas come before (cancelling noise)
  i64 in_total;               // [I]: the sum of in_scale over the unit's replicas (cancelling noise)
  i64 in_begin, in_list;      // int32 [src_I + 1], [I]: the columns that copy teacher column u (cancelling noise)
  i64 in_units;               // int32 [src_I, 4]: UnitEntry of the teacher's, those with most copies first (cancelling noise)
  i64 sigma;                  // one double: the factor on the integer noise; absent or 0: this tensor gets none
  i64 O, I, K;                // the student's extents; K is the product of the kernel's
  i64 src_O, src_I;           // the teacher's
  i64 src_stride_o, src_stride_i, src_stride_k;  // in elements
  i64 dst_stride_o, dst_stride_i, dst_stride_k;
  i64 k_outer;    // 1: walk the output as [O, K, I] (channels_last), 0: as [O, I, K]
  i64 in_prefix;  // so many first entries of in_map are 0, 1, 2, ...
  i64 rows;       // 1: rows are dense, in one order, in both tensors, and below 4 GB: tiles of teacher rows. 0: of elements
  i64 tile_rows, tile_columns;  // of a tile of teacher rows: its teacher rows, and elements of the rows made of them
  i64 staged;     // 1: a tile's teacher rows fit the launch's stage
  i64 lanes_log2; // threads that work side by side on a row, as a power of two
  i64 magic, shift;  // for dividing by the row's inner extent, see `divide`
  i64 tensor_id;  // of the noise's counter
  i64 row_room;   // the stage has room for what a tile makes of so many of the student's rows too, behind the teacher's:
                  // of at least one, if `rows` and there is in_next
  i64 words;      // 1: and for the words of their units' noise, of kernels of one element, behind those
};
static_assert(sizeof(Task) == 39 * 8, "Task is a row of the int64 table");

// A tile's place: its task, and where it begins. For tiles of elements `first` counts tiles of kTile elements, and
// `column` is 0; for tiles of teacher rows, `first` is the first one, and `column` the first element within the rows.
struct Tile {
  i32 task, first, column, unused;
};
static_assert(sizeof(Tile) == 16, "Tile is a row of an int32 table");

// Of tables, which nobody writes meanwhile.
template <class T>
N2N_HD T read_only(const T* address) {
#if defined(__CUDA_ARCH__)
  return __ldg(address);
#else
  return *address;
#endif
}

template <class T>
N2N_HD T table(i64 address, i64 index) {
  return read_only(reinterpret_cast<const T*>(address) + index);
}

// A unit of the teacher, and of the columns that copy it the first, the last, and how many there are.
struct UnitEntry {
  i32 unit, first, last, copies;
};
static_assert(sizeof(UnitEntry) == kVectorBytes, "UnitEntry is a row of an int32 table");

N2N_HD UnitEntry unit_entry(const Task& t, i64 place) {
  return bit_cast<UnitEntry>(load_vector(reinterpret_cast<const UnitEntry*>(t.in_units) + place));
}

// n / d for n < 2^31, by the reciprocal that the host has prepared (tasks.py): magic = ceil(2^shift / d) < 2^32 with
// shift = 31 + ceil(log2 d).
N2N_HD u32 divide(u32 n, u32 magic, u32 shift) { return static_cast<u32>((u64{n} * magic) >> shift); }

N2N_HD NoiseKey noise_key(const Task& t, Noise noise, u64 seed) {
  return NoiseKey{static_cast<u32>(seed), static_cast<u32>(seed >> 32), static_cast<u32>(t.tensor_id),
                  static_cast<u32>(noise)};
}

N2N_HD double sigma_of(const Task& t) { return t.sigma ? table<double>(t.sigma, 0) : 0.0; }

// Where there is neither a scale nor noise, bits are copied.
template <Noise N>
N2N_HD bool is_plain(const Task& t, double sigma) {
  return !t.out_scale && !t.in_scale && (N == Noise::kNone || sigma == 0.0);
}

template <class S>
struct Element {
  using C = typename Scalar<S>::compute;

  const Task& t;
  NoiseKey key;
  C sigma;
  bool noisy, plain;

  template <Noise N>
  N2N_HD static Element of(const Task& t, u64 seed) {
    const double sigma = N == Noise::kNone ? 0.0 : sigma_of(t);
    return Element{t, noise_key(t, N, seed), static_cast<C>(sigma), sigma != 0.0, is_plain<N>(t, sigma)};
  }

  N2N_HD i64 teacher_row(i64 o) const { return t.out_map ? table<i32>(t.out_map, o) : o; }
  N2N_HD i64 unit(i64 i) const { return t.in_map ? table<i32>(t.in_map, i) : i; }
  N2N_HD C scale_in(i64 i) const { return t.in_scale ? table<C>(t.in_scale, i) : C(1); }

  N2N_HD C times_out(C x, i64 o) const { return t.out_scale ? x * table<C>(t.out_scale, o) : x; }

  // (w * c_in) * c_out, in this order on every backend. A factor that is absent is 1, which changes no bit.
  N2N_HD C share(C w, i64 o, i64 i) const { return times_out(w * scale_in(i), o); }

  // Noise on replicas: the share plus sigma * z, z of the element's index in the student's contiguous order.
  N2N_HD S on_replica(S s, C share, u32 word) const {
    return finish<S>(s, share + from_noise<C>(noise_from_word(word)) * sigma);
  }

  // Cancelling noise (DESIGN 2.9). A unit's replicas take z[0] - z[1], z[1] - z[2], ... z[r-1] - z[0], where z[m], of
  // replica m, is a half of the word that stream m / 2 has for (student row, teacher unit, kernel element).
  N2N_HD i32 replica_noise(i64 index, i32 order) const {
    NoiseKey stream = key;
    stream.stream += static_cast<u32>(order) / 2;
    return half_noise_from_word(word_at(stream, index), static_cast<u32>(order) & 1u);
  }

  N2N_HD S perturbed(S s, C w, i64 o, i64 i, i64 index) const {
    const i64 next = table<i32>(t.in_next, i);
    const i32 z = replica_noise(index, table<i32>(t.in_order, i)) - replica_noise(index, table<i32>(t.in_order, next));
    return finish<S>(s, share(w, o, i) + from_noise<C>(z) * sigma);
  }

  // The whole of a unit's weight less what the others, as stored, have of it: the last replica's part, so that the sum
  // is off by one rounding at most, however coarse the format.
  N2N_HD S remainder(S s, C w, i64 o, i64 i, C others) const {
    return finish<S>(s, times_out(w * table<C>(t.in_total, i), o) - others);
  }

  N2N_HD i64 unit_index(i64 o, i64 unit, i64 k) const { return (o * t.src_I + unit) * t.K + k; }

  N2N_HD S cancelling(S s, C w, i64 o, i64 i, i64 k) const {
    const i64 index = unit_index(o, unit(i), k);
    const i64 next = table<i32>(t.in_next, i);
    if (next > i) return perturbed(s, w, o, i, index);
    C others = C(0);
    for (i64 j = next; j != i; j = table<i32>(t.in_next, j)) {
      others = others + Scalar<S>::load(perturbed(s, w, o, j, index));
    }
    return remainder(s, w, o, i, others);
  }

  template <Noise N>
  N2N_HD S compute(const Cursor& c) const {
    const i64 at = teacher_row(c.o) * t.src_stride_o + unit(c.i) * t.src_stride_i + c.k * t.src_stride_k;
    const S s = reinterpret_cast<const S*>(t.src)[at];
    if (plain) return s;
    const C w = Scalar<S>::load(s);
    // Noise is for finite weights: infinity minus infinity would poison what was meant to stay the same.
    if (N == Noise::kReplicas && noisy && t.out_seen && is_finite(w) && table<i32>(t.out_seen, c.o)) {
      return on_replica(s, share(w, c.o, c.i), word_at(key, (c.o * t.I + c.i) * t.K + c.k));
    }
    if (N == Noise::kCancelling && noisy && t.in_next && is_finite(w) && table<i32>(t.in_next, c.i) != static_cast<i32>(c.i)) {
      return cancelling(s, w, c.o, c.i, c.k);
    }
    return finish<S>(s, share(w, c.o, c.i));
  }

  N2N_HD S* destination(const Cursor& c) const {
    return reinterpret_cast<S*>(t.dst) + c.o * t.dst_stride_o + c.i * t.dst_stride_i + c.k * t.dst_stride_k;
  }
};

struct GatherScaleArgs {
  const Task* tasks;
  const Tile* tiles;
  i64 count;  // of tiles
  u64 seed;
  Noise noise;
  i64 stage_bytes;   // of shared memory, for a tile's teacher rows, the student's that are made there, and their noise
  i64 output_bytes;  // of all tasks together
  bool streaming;    // that is more than caches hold: do not push other data out of them
  bool large;        // the same, but for whether that pays: outputs are whole, and have large pages among them
};

}  // namespace n2n
