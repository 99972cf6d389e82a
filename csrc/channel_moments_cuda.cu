#include "channel_moments.h"

#include "cuda_launch.h"
#include "dispatch.h"
#include "kernels.h"

namespace n2n {
namespace {

static_assert(kThreads == kMomentsThreads && kThreads == kFoldLanes, "a thread is a thread");

template <class Block>
__device__ void run_block(const MomentsArgs& args, bool wide, i64 block) {
  __shared__ Sums shared[Block::kShared];
  const int thread = static_cast<int>(threadIdx.x);
  Block::accumulate(args, wide, block, thread, shared);
  for (int width = 1; width < Block::kParts; width *= 2) {
    __syncthreads();
    Block::fold(width, thread, shared);
  }
  __syncthreads();
  Block::write(args, block, thread, shared);
  __syncthreads();  // everything is read before the next block's sums are written
}

template <class Block>
__global__ void __launch_bounds__(kThreads) channel_moments_kernel(MomentsArgs args) {
  for (i64 block = blockIdx.x; block < Block::blocks(args); block += gridDim.x) run_block<Block>(args, true, block);
}

template <class S>
__global__ void __launch_bounds__(kThreads) tensor_moments_kernel(TensorMomentsArgs args) {
  for (i64 block = blockIdx.x; block < args.blocks; block += gridDim.x) {
    const i64 task = args.block_task[block];
    const MomentsArgs mine = args_of(args, task);
    run_block<TensorBlock<S>>(mine, mine.src % kVectorBytes == 0, block - args.tasks[task].first_block);
  }
}

__global__ void __launch_bounds__(kThreads) finish_kernel(FinishArgs args) {
  __shared__ Sums shared[kFoldLanes];
  const int lane = static_cast<int>(threadIdx.x);
  for (i64 c = blockIdx.x; c < args.channels; c += gridDim.x) {
    shared[lane] = Finish::lane(args, c, lane);
    for (int width = 1; width < kFoldLanes; width *= 2) {
      __syncthreads();
      if (lane % (2 * width) == 0) shared[lane] = shared[lane] + shared[lane + width];
    }
    if (lane == 0) Finish::write(args, c, shared[0]);
    __syncthreads();
  }
}

template <class S, int V, bool kAlongChannels>
void launch(const MomentsArgs& args, cudaStream_t stream) {
  using Block = MomentsBlock<S, V, kAlongChannels>;
  channel_moments_kernel<Block><<<grid_for(Block::blocks(args)), kThreads, 0, stream>>>(args);
}

}  // namespace

void channel_moments_cuda(DType dtype, const MomentsArgs& args, void* stream) {
  if (args.C * args.chunks == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    constexpr int kWide = kVectorOf<S>;
    const auto s = static_cast<cudaStream_t>(stream);
    const MomentsPlan plan = plan_of<S>(args);
    if (plan.along_channels) return plan.wide ? launch<S, kWide, true>(args, s) : launch<S, 1, true>(args, s);
    return plan.wide ? launch<S, kWide, false>(args, s) : launch<S, 1, false>(args, s);
  });
  check_launch("channel_moments");
}

void tensor_moments_cuda(DType dtype, const TensorMomentsArgs& args, void* stream) {
  if (args.blocks == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    tensor_moments_kernel<S><<<grid_for(args.blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("tensor_moments");
}

void finish_moments_cuda(const FinishArgs& args, void* stream) {
  if (args.channels == 0) return;
  finish_kernel<<<grid_for(args.channels), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  check_launch("the end of channel_moments");
}

}  // namespace n2n
