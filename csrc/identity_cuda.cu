#include "cuda_launch.h"
#include "dispatch.h"
#include "kernels.h"

namespace n2n {
namespace {

template <class S>
__global__ void __launch_bounds__(kThreads) identity_kernel(IdentityArgs args) {
  for (i64 tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    const IdentityTask& t = args.tasks[args.tile_task[tile]];
    const i64 begin = (tile - t.first_tile) * kTile;
    const i64 left = t.O * t.I * t.K - begin;
    const int count = static_cast<int>(left < kTile ? left : kTile);
    const TileStart start = TileStart::of(t, begin);
    for (int e = static_cast<int>(threadIdx.x); e < count; e += kThreads) {
      write_identity<S>(t, start.at(static_cast<u32>(e)));
    }
  }
}

}  // namespace

void identity_cuda(DType dtype, const IdentityArgs& args, void* stream) {
  if (args.tiles == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    identity_kernel<S><<<grid_for(args.tiles), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("identity_");
}

}  // namespace n2n
