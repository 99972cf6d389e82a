// gather_scale: U[o, i, k] = W[g_o[o], g_i[i], k] * c_i[i] * c_o[o], with optional noise, for a whole list of tensors.
//
// The work of one launch is a table of tasks, one per tensor, cut into tiles of kTile consecutive output elements. This
// file is the arithmetic of one output element and the walk over a tile; gather_scale_cpu.cpp and gather_scale_cuda.cu
// only decide who takes which tile. n2n_kernels/ops/gather_scale/tasks.py builds the table.
#pragma once

#include "philox.h"
#include "tile.h"

namespace n2n {

enum class Noise : int { kNone = 0, kReplicas = 1, kCancelling = 2 };

// Eight-byte fields only, so that the table is an int64 matrix that NumPy writes and every backend reads, Triton's
// included. Addresses are 0 where a table is absent; maps are int32, scales have the compute type.
struct Task {
  i64 src, dst;
  i64 out_map, in_map;      // student index -> teacher index; absent: the identity
  i64 out_scale, in_scale;  // absent: no multiplication at all, so that bits pass through
  i64 out_seen;             // int32 [O]: 1 where the row's unit has occurred in an earlier row (noise on replicas)
  i64 in_next;              // int32 [I]: the next replica of the same unit, cyclically (cancelling noise)
  i64 in_total;             // [I]: the sum of in_scale over the unit's replicas (cancelling noise)
  i64 O, I, K;              // the student's extents; K is the product of the kernel's
  i64 src_stride_o, src_stride_i, src_stride_k;  // in elements
  i64 dst_stride_o, dst_stride_i, dst_stride_k;
  i64 k_outer;     // 1: walk the output as [O, K, I] (channels_last), 0: as [O, I, K]
  i64 tensor_id;   // of the noise's counter
  double sigma;    // the factor on the integer noise; 0: this tensor gets none
  i64 first_tile;  // where this task's tiles begin in the launch
};
static_assert(sizeof(Task) == 22 * 8, "Task is a row of the int64 table");

template <class T>
N2N_HD T table(i64 address, i64 index) {
  return reinterpret_cast<const T*>(address)[index];
}

template <class S>
struct Element {
  using C = typename Scalar<S>::compute;

  N2N_HD static S source(const Task& t, i64 o, i64 i, i64 k) {
    const i64 so = t.out_map ? table<i32>(t.out_map, o) : o;
    const i64 si = t.in_map ? table<i32>(t.in_map, i) : i;
    return table<S>(t.src, so * t.src_stride_o + si * t.src_stride_i + k * t.src_stride_k);
  }

  // (w * c_in) * c_out, in this order on every backend.
  N2N_HD static C scaled(const Task& t, C w, i64 o, C c_in, bool has_in) {
    C x = has_in ? w * c_in : w;
    if (t.out_scale) x = x * table<C>(t.out_scale, o);
    return x;
  }

  N2N_HD static i64 logical(const Task& t, i64 o, i64 i, i64 k) { return (o * t.I + i) * t.K + k; }

  N2N_HD static C scale_in(const Task& t, i64 i) { return t.in_scale ? table<C>(t.in_scale, i) : C(1); }

  // A replica that is not its unit's last: its share plus sigma * (z[i] - z[next]).
  N2N_HD static S perturbed(const Task& t, const NoiseKey& key, S s, C w, i64 o, i64 i, i64 next, i64 k) {
    const i32 z = noise_at(key, logical(t, o, i, k)) - noise_at(key, logical(t, o, next, k));
    const C share = scaled(t, w, o, scale_in(t, i), t.in_scale != 0);
    return finish<S>(s, share + static_cast<C>(z) * static_cast<C>(t.sigma));
  }

  // Cancelling noise (DESIGN 2.9). The last replica takes what the others, as stored, leave of the unit's whole weight,
  // so that the sum is off by one rounding at most, however coarse the format.
  N2N_HD static S cancelling(const Task& t, const NoiseKey& key, S s, C w, i64 o, i64 i, i64 k) {
    const i64 next = table<i32>(t.in_next, i);
    if (next > i) return perturbed(t, key, s, w, o, i, next, k);
    C others = C(0);
    for (i64 j = next; j != i;) {
      const i64 after = table<i32>(t.in_next, j);
      others = others + Scalar<S>::load(perturbed(t, key, s, w, o, j, after, k));
      j = after;
    }
    return finish<S>(s, scaled(t, w, o, table<C>(t.in_total, i), true) - others);
  }

  template <Noise N>
  N2N_HD static S compute(const Task& t, const NoiseKey& key, const Cursor& c) {
    const S s = source(t, c.o, c.i, c.k);
    if (N == Noise::kNone && !t.out_scale && !t.in_scale) return s;
    const C w = Scalar<S>::load(s);
    // Noise is for finite weights: infinity minus infinity would poison what was meant to stay the same.
    if (N == Noise::kReplicas && t.out_seen && is_finite(w) && table<i32>(t.out_seen, c.o)) {
      const C z = static_cast<C>(noise_at(key, logical(t, c.o, c.i, c.k)));
      const C x = scaled(t, w, c.o, scale_in(t, c.i), t.in_scale != 0);
      return finish<S>(s, x + z * static_cast<C>(t.sigma));
    }
    if (N == Noise::kCancelling && t.in_next && is_finite(w) &&
        table<i32>(t.in_next, c.i) != static_cast<i32>(c.i)) {
      return cancelling(t, key, s, w, c.o, c.i, c.k);
    }
    return finish<S>(s, scaled(t, w, c.o, scale_in(t, c.i), t.in_scale != 0));
  }

  N2N_HD static S* destination(const Task& t, const Cursor& c) {
    return reinterpret_cast<S*>(t.dst) + c.o * t.dst_stride_o + c.i * t.dst_stride_i + c.k * t.dst_stride_k;
  }
};

N2N_HD NoiseKey noise_key(const Task& t, Noise noise, u64 seed) {
  return NoiseKey{static_cast<u32>(seed), static_cast<u32>(seed >> 32), static_cast<u32>(t.tensor_id),
                  static_cast<u32>(noise)};
}

// One launch: `tile_task[tile]` names the task that a tile belongs to.
struct GatherScaleArgs {
  const Task* tasks;
  const i32* tile_task;
  i64 tiles;
  u64 seed;
  Noise noise;
};

}  // namespace n2n
