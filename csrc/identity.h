// identity_: fills weights W[O, I, *K] with identity kernels, each element written once, for a whole list of tensors.
//
// With `groups` groups of O/groups output channels each, output channel o of its group passes input channel
// o mod (O/groups) through the centre of the kernel, where there is such an input channel: torch.nn.init.dirac_.
//
// A tensor is walked in the order of its memory, as a sequence of `elements`. In any such order its ones form two
// nested arithmetic progressions: number q lies at
//
//     first + (q / inner) * outer_step + (q % inner) * inner_step,
//
// which grows with q. One progression runs over the groups, the other over the channels of a group; which of them is
// inside depends on the layout. So a tile finds its ones with one division at either end and none per element: they
// are marked in a bitmap, from which the 16-byte vectors are made that are stored. n2n_kernels/ops/identity/tasks.py
// finds the walk and the progressions.
#pragma once

#include "vector.h"

namespace n2n {

// A tile is this many bytes of output, from a multiple of 16 on where the tensor is dense.
constexpr int kIdentityTileBytes = 16384;

// Elements of S in a tile.
template <class S>
constexpr int kIdentityTile = kIdentityTileBytes / static_cast<int>(sizeof(S));

// Eight-byte fields only, so that the table is an int64 matrix that NumPy writes and every backend reads.
struct IdentityTask {
  i64 dst;         // the address of element 0
  i64 lead;        // dense: elements from the last multiple of 16 bytes to dst, which the first tile leaves out
  i64 first_tile;
  i64 elements;
  i64 dense;       // whether element e lies at dst + e; if not, the extents and strides say where
  i64 extent_1, extent_2;            // of the walk's second and third dimension
  i64 stride_0, stride_1, stride_2;  // in elements, outermost dimension first
  i64 first, outer_step, inner_step, inner;
  i64 ones;  // how many there are
};
static_assert(sizeof(IdentityTask) == 15 * 8, "IdentityTask is a row of the int64 table");

struct IdentityArgs {
  const IdentityTask* tasks;
  const i32* tile_task;  // the task that a tile belongs to
  i64 tiles;
};

// The element at which one number q lies.
N2N_HD i64 position_of_one(const IdentityTask& t, i64 q) {
  if (t.inner == 1) return t.first + q * t.outer_step;
  const i64 outer = quotient(q, t.inner);
  return t.first + outer * t.outer_step + (q - outer * t.inner) * t.inner_step;
}

// How many ones lie before an element.
N2N_HD i64 ones_before(const IdentityTask& t, i64 element) {
  const i64 along = element - t.first;
  if (along <= 0) return 0;
  const i64 outer = quotient(along, t.outer_step);
  const i64 inner = quotient(along - outer * t.outer_step + t.inner_step - 1, t.inner_step);
  const i64 q = outer * t.inner + (inner < t.inner ? inner : t.inner);
  return q < t.ones ? q : t.ones;
}

template <class S>
N2N_HD S one_or_zero(bool one) {
  return Scalar<S>::store(one ? 1.0f : 0.0f);
}

// The vector of the elements whose bits are set, lowest bit first.
template <class S>
N2N_HD Vector vector_of_ones(u32 bits) {
  S values[kVectorOf<S>];
  for (int v = 0; v < kVectorOf<S>; ++v) values[v] = one_or_zero<S>((bits >> v & 1u) != 0);
  Vector vector;
  memcpy(&vector, values, sizeof vector);
  return vector;
}

// Where element e of a tensor that is not dense lies.
template <class S>
N2N_HD S* scattered(const IdentityTask& t, i64 e) {
  const i64 rows = quotient(e, t.extent_2);
  const i64 planes = quotient(rows, t.extent_1);
  return reinterpret_cast<S*>(t.dst) + planes * t.stride_0 + (rows - planes * t.extent_1) * t.stride_1 +
         (e - rows * t.extent_2) * t.stride_2;
}

// One tile, by `threads` threads that share `Shared`, in three phases. All threads have ended a phase before the next
// one begins: a GPU's block has a barrier there, and a test loops over the threads.
template <class S>
struct IdentityTile {
  static constexpr int kSlots = kIdentityTile<S>;  // slot s of the tile is element begin + s; a bit each
  static constexpr int kVector = kVectorOf<S>;

  struct Shared {
    i64 ones[2];  // the tile's first, and the one past its last
    u32 marks[kSlots / 32];
  };

  N2N_HD static i64 begin(const IdentityTask& t, i64 tile) { return (tile - t.first_tile) * kSlots - t.lead; }

  N2N_HD static void clear(const IdentityTask& t, i64 tile, int thread, int threads, Shared& shared) {
    for (int word = thread; word < kSlots / 32; word += threads) shared.marks[word] = 0;
    if (thread < 2) shared.ones[thread] = ones_before(t, begin(t, tile) + thread * kSlots);
  }

  N2N_HD static void mark(const IdentityTask& t, i64 tile, int thread, int threads, Shared& shared) {
    for (i64 q = shared.ones[0] + thread; q < shared.ones[1]; q += threads) {
      const u32 slot = static_cast<u32>(position_of_one(t, q) - begin(t, tile));
#if defined(__CUDA_ARCH__)
      atomicOr(&shared.marks[slot / 32], 1u << slot % 32);  // several threads may have bits of one word
#else
      shared.marks[slot / 32] |= 1u << slot % 32;
#endif
    }
  }

  N2N_HD static bool marked(const Shared& shared, int slot) { return (shared.marks[slot / 32] >> slot % 32 & 1u) != 0; }

  N2N_HD static void store(const IdentityTask& t, i64 tile, int thread, int threads, const Shared& shared) {
    const i64 first = begin(t, tile);
    if (!t.dense) {
      for (int slot = thread; slot < kSlots && first + slot < t.elements; slot += threads) {
        *global(scattered<S>(t, first + slot)) = one_or_zero<S>(marked(shared, slot));
      }
      return;
    }
    S* const dst = global(reinterpret_cast<S*>(t.dst) + first);  // a multiple of 16; may lie before the tensor
    for (int slot = thread * kVector; slot < kSlots; slot += threads * kVector) {
      const i64 e = first + slot;
      if (e >= 0 && e + kVector <= t.elements) {
        store_vector(dst + slot, vector_of_ones<S>(shared.marks[slot / 32] >> slot % 32 & ((1u << kVector) - 1)));
        continue;
      }
      for (int v = 0; v < kVector; ++v) {  // the tensor's ends
        if (e + v >= 0 && e + v < t.elements) dst[slot + v] = one_or_zero<S>(marked(shared, slot + v));
      }
    }
  }
};

}  // namespace n2n
