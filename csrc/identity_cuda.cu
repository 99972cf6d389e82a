#include "cuda_launch.h"
#include "dispatch.h"
#include "kernels.h"

namespace n2n {
namespace {

// One block per tile.
template <class S>
__global__ void __launch_bounds__(kThreads) identity_kernel(IdentityArgs args) {
  using Tile = IdentityTile<S>;
  __shared__ typename Tile::Shared shared;
  const int thread = static_cast<int>(threadIdx.x);
  for (i64 tile = blockIdx.x; tile < args.tiles; tile += gridDim.x) {
    const IdentityTask& t = args.tasks[args.tile_task[tile]];
    Tile::clear(t, tile, thread, kThreads, shared);
    __syncthreads();
    Tile::mark(t, tile, thread, kThreads, shared);
    __syncthreads();
    Tile::store(t, tile, thread, kThreads, shared);
    __syncthreads();  // all marks are read before the next tile's are written
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
