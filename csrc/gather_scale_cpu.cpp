#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"

namespace n2n {
namespace {

template <class S, Noise N>
void run_tile(const GatherScaleArgs& args, i64 tile) {
  const Task& t = args.tasks[args.tile_task[tile]];
  const i64 begin = (tile - t.first_tile) * kTile;
  const i64 end = std::min(begin + kTile, t.O * t.I * t.K);
  const NoiseKey key = noise_key(t, N, args.seed);
  Cursor c = TileStart::of(t, begin).at(0);
  for (i64 e = begin; e < end; ++e, c.step(t)) {
    *Element<S>::destination(t, c) = Element<S>::template compute<N>(t, key, c);
  }
}

}  // namespace

void gather_scale_cpu(DType dtype, const GatherScaleArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    parallel_for(args.tiles, threads, [&](i64 tile) {
      switch (args.noise) {
        case Noise::kNone: return run_tile<S, Noise::kNone>(args, tile);
        case Noise::kReplicas: return run_tile<S, Noise::kReplicas>(args, tile);
        case Noise::kCancelling: return run_tile<S, Noise::kCancelling>(args, tile);
      }
    });
  });
}

}  // namespace n2n
