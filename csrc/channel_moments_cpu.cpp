#include "channel_moments.h"

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"

namespace n2n {

void channel_moments_cpu(DType dtype, const MomentsArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    parallel_for(args.C * args.chunks, threads, [&](i64 tile) {
      const i64 channel = tile / args.chunks;
      const i64 chunk = tile % args.chunks;
      const double shift = pivot<S>(args, channel);
      Sums lanes[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = lane_sums<S>(args, channel, chunk, lane, shift);
      for (int half = kLanes / 2; half > 0; half /= 2) {
        for (int lane = 0; lane < half; ++lane) {
          lanes[lane].d += lanes[lane + half].d;
          lanes[lane].dd += lanes[lane + half].dd;
        }
      }
      args.partials[2 * tile] = lanes[0].d;
      args.partials[2 * tile + 1] = lanes[0].dd;
    });
  });
}

}  // namespace n2n
