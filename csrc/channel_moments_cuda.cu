#include "channel_moments.h"

#include "cuda_launch.h"
#include "dispatch.h"
#include "kernels.h"

namespace n2n {
namespace {

static_assert(kThreads == kLanes, "a thread is a lane");

// One block per channel and chunk.
template <class S>
__global__ void __launch_bounds__(kThreads) channel_moments_kernel(MomentsArgs args) {
  __shared__ Sums lanes[kLanes];
  const int lane = static_cast<int>(threadIdx.x);
  for (i64 tile = blockIdx.x; tile < args.C * args.chunks; tile += gridDim.x) {
    const i64 channel = tile / args.chunks;
    const i64 chunk = tile - channel * args.chunks;
    lanes[lane] = lane_sums<S>(args, channel, chunk, lane, pivot<S>(args, channel));
    for (int half = kLanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) {
        lanes[lane].d += lanes[lane + half].d;
        lanes[lane].dd += lanes[lane + half].dd;
      }
    }
    if (lane == 0) {
      args.partials[2 * tile] = lanes[0].d;
      args.partials[2 * tile + 1] = lanes[0].dd;
    }
    __syncthreads();  // lane 0 has read lanes[0] before the next tile overwrites it
  }
}

}  // namespace

void channel_moments_cuda(DType dtype, const MomentsArgs& args, void* stream) {
  if (args.C * args.chunks == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    channel_moments_kernel<S>
        <<<grid_for(args.C * args.chunks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("channel_moments");
}

}  // namespace n2n
