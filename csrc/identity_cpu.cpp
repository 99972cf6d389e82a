#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"

namespace n2n {

void identity_cpu(DType dtype, const IdentityArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    parallel_for(args.tiles, threads, [&](i64 tile) {
      const IdentityTask& t = args.tasks[args.tile_task[tile]];
      const i64 begin = (tile - t.first_tile) * kTile;
      const i64 end = std::min(begin + kTile, t.O * t.I * t.K);
      Cursor c = TileStart::of(t, begin).at(0);
      for (i64 e = begin; e < end; ++e, c.step(t)) write_identity<S>(t, c);
    });
  });
}

}  // namespace n2n
