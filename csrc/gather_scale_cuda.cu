#include "cuda_launch.h"
#include "dispatch.h"
#include "gather_scale_block.h"
#include "kernels.h"

namespace n2n {
namespace {

// Blocks that a multiprocessor shall hold at least, which bounds a thread's registers: noise needs many, and what does
// not fit is spilled to memory. A stage of the largest size leaves room for three blocks, with a row of the student for two.
constexpr int kBlocks[] = {3, 2, 2};

template <class S, Noise N>
__global__ void __launch_bounds__(kBlockThreads, kBlocks[static_cast<int>(N)])
    gather_scale_kernel(const __grid_constant__ GatherScaleArgs args) {
  extern __shared__ __align__(16) unsigned char stage[];
  const SharedRow<S> shared(stage);
  const auto tile = BlockTile<S, N>::of(args, blockIdx.x);
  tile.stage(shared, static_cast<int>(threadIdx.x));
  finish_staging();
  __syncthreads();
  if (!tile.by_rows()) return tile.emit(shared, static_cast<int>(threadIdx.x), args.seed);
  const auto making = tile.making_team(static_cast<int>(threadIdx.x));
  const auto storing = tile.storing_team(static_cast<int>(threadIdx.x));
  const auto all = tile.all_outputs();
  const i32 at_once = static_cast<i32>(tile.t.row_room);
  if (tile.has_words() && all.first + storing.row < all.last) {
    tile.make_words(shared, storing, args.seed, all.first + storing.row);
  }
  i32 made = -1;
  for (i32 n = all.first; n < all.last; n += at_once) {
    if (!tile.alike() || tile.row_at(n) != made) {
      __syncthreads();  // the rows before have been stored
      if (n + making.row < all.last) tile.make_row(shared, making, args.seed, n + making.row);
      __syncthreads();
      made = tile.row_at(n);
    }
    if (n + storing.row < all.last) tile.store_row(shared, storing, n + storing.row);
    if (tile.has_words() && n + at_once + storing.row < all.last) {
      tile.make_words(shared, storing, args.seed, n + at_once + storing.row);
    }
  }
}

template <class S, Noise N>
void launch(const GatherScaleArgs& args, cudaStream_t stream) {
  // Beyond 48 KB a kernel's shared memory has to be asked for, on each device. All that there is, so that no other thread's
  // launch of the kernel takes any of it back.
  constexpr i64 kWithoutAsking = 48 * 1024;
  if (args.stage_bytes > kWithoutAsking) {
    constexpr const char* kWhat = "asking for the shared memory of gather_scale";
    int device = 0, most = 0;
    check(cudaGetDevice(&device), kWhat);
    check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), kWhat);
    check(cudaFuncSetAttribute(gather_scale_kernel<S, N>, cudaFuncAttributeMaxDynamicSharedMemorySize, most), kWhat);
  }
  gather_scale_kernel<S, N>
      <<<static_cast<unsigned>(args.count), kBlockThreads, static_cast<std::size_t>(args.stage_bytes), stream>>>(args);
}

}  // namespace

void gather_scale_cuda(DType dtype, const GatherScaleArgs& args, void* stream) {
  if (args.count == 0) return;
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    const auto s = static_cast<cudaStream_t>(stream);
    switch (args.noise) {
      case Noise::kNone: return launch<S, Noise::kNone>(args, s);
      case Noise::kReplicas: return launch<S, Noise::kReplicas>(args, s);
      case Noise::kCancelling: return launch<S, Noise::kCancelling>(args, s);
    }
  });
  check_launch("gather_scale");
}

}  // namespace n2n
