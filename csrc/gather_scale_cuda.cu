#include "cuda_launch.h"
#include "dispatch.h"
#include "kernels.h"

namespace n2n {
namespace {

// One block per tile. A warp's lanes take consecutive output elements, so stores are coalesced.
template <class S, Noise N>
__global__ void __launch_bounds__(kThreads) gather_scale_kernel(GatherScaleArgs args) {
  for (i64 tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    const Task& t = args.tasks[args.tile_task[tile]];
    const i64 begin = (tile - t.first_tile) * kTile;
    const i64 left = t.O * t.I * t.K - begin;
    const int count = static_cast<int>(left < kTile ? left : kTile);
    const NoiseKey key = noise_key(t, N, args.seed);
    const TileStart start = TileStart::of(t, begin);
    for (int e = static_cast<int>(threadIdx.x); e < count; e += kThreads) {
      const Cursor c = start.at(static_cast<u32>(e));
      *Element<S>::destination(t, c) = Element<S>::template compute<N>(t, key, c);
    }
  }
}

}  // namespace

void gather_scale_cuda(DType dtype, const GatherScaleArgs& args, void* stream) {
  if (args.tiles == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    const auto s = static_cast<cudaStream_t>(stream);
    const unsigned grid = grid_for(args.tiles);
    switch (args.noise) {
      case Noise::kNone: gather_scale_kernel<S, Noise::kNone><<<grid, kThreads, 0, s>>>(args); break;
      case Noise::kReplicas: gather_scale_kernel<S, Noise::kReplicas><<<grid, kThreads, 0, s>>>(args); break;
      case Noise::kCancelling: gather_scale_kernel<S, Noise::kCancelling><<<grid, kThreads, 0, s>>>(args); break;
    }
  });
  check_launch("gather_scale");
}

}  // namespace n2n
