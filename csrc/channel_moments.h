// channel_moments: per-channel sums of a tensor [N, C, S] that is read once.
//
// Sums of d and d*d, with d = x - pivot and the channel's first element as pivot (zero if that is not finite), in
// double. The pivot removes the cancellation that plain sums of squares suffer when the mean is large. The order of
// summation is part of the definition, so that every backend returns the same bits: a channel's elements, n-major, are
// cut into chunks of kChunk; in a chunk, lane l adds elements l, l + kLanes, ... in turn; then lanes are folded in
// halves. The few numbers per chunk are folded in n2n_kernels/ops/channel_moments/api.py.
#pragma once

#include "common.h"

namespace n2n {

constexpr int kLanes = 256;
constexpr i64 kChunk = 4096;

struct MomentsArgs {
  i64 src;
  i64 N, C, S;
  i64 stride_n, stride_c, stride_s;  // in elements
  double* partials;                  // [C, chunks, 2]
  i64 chunks;                        // ceil(N * S / kChunk)
};

struct Sums {
  double d, dd;
};

template <class S>
N2N_HD double value_at(const MomentsArgs& a, i64 channel, i64 j) {
  const i64 n = j / a.S;
  const i64 s = j - n * a.S;
  return static_cast<double>(
      Scalar<S>::load(reinterpret_cast<const S*>(a.src)[n * a.stride_n + channel * a.stride_c + s * a.stride_s]));
}

template <class S>
N2N_HD double pivot(const MomentsArgs& a, i64 channel) {
  const double x = value_at<S>(a, channel, 0);
  return is_finite(x) ? x : 0.0;
}

// One lane's share of one chunk.
template <class S>
N2N_HD Sums lane_sums(const MomentsArgs& a, i64 channel, i64 chunk, int lane, double shift) {
  const i64 total = a.N * a.S;
  const i64 end = (chunk + 1) * kChunk < total ? (chunk + 1) * kChunk : total;
  Sums sums{0.0, 0.0};
  for (i64 j = chunk * kChunk + lane; j < end; j += kLanes) {
    const double d = value_at<S>(a, channel, j) - shift;
    sums.d = sums.d + d;
    sums.dd = sums.dd + d * d;
  }
  return sums;
}

}  // namespace n2n
