// identity_: fills weights W[O, I, *K] with identity kernels, one pass, for a whole list of tensors.
//
// With `groups` groups of O/groups output channels each, output channel o of its group passes input channel
// o mod (O/groups) through the centre of the kernel, where there is such an input channel: torch.nn.init.dirac_.
#pragma once

#include "tile.h"

namespace n2n {

// Eight-byte fields, for the same reason as Task.
struct IdentityTask {
  i64 dst;
  i64 O, I, K;
  i64 stride_o, stride_i, stride_k;  // in elements
  i64 k_outer;                       // as in Task
  i64 per_group;                     // O / groups
  i64 centre;                        // the centre's position among the K kernel elements
  i64 first_tile;
};
static_assert(sizeof(IdentityTask) == 11 * 8, "IdentityTask is a row of the int64 table");

struct IdentityArgs {
  const IdentityTask* tasks;
  const i32* tile_task;
  i64 tiles;
};

N2N_HD bool is_one(const IdentityTask& t, const Cursor& c) {
  return static_cast<i64>(c.k) == t.centre && static_cast<i64>(c.i) == c.o % t.per_group;
}

template <class S>
N2N_HD void write_identity(const IdentityTask& t, const Cursor& c) {
  S* const dst = reinterpret_cast<S*>(t.dst) + c.o * t.stride_o + c.i * t.stride_i + c.k * t.stride_k;
  *dst = Scalar<S>::store(is_one(t, c) ? 1.0f : 0.0f);
}

}  // namespace n2n
