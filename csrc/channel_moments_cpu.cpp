#include "channel_moments.h"

#include <algorithm>

#include "dispatch.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace n2n {
namespace {

// Elements that are gathered at once where they do not lie side by side.
constexpr int kStage = 1024;

// Channels at once where they lie side by side: their lanes' sums stay in the first cache.
constexpr int kAcross = 32;

// `to_double`, without branches, which a vector cannot take.
template <class S>
double widened(S s) {
  return to_double(s);
}

inline double widened(f16 s) {
  const u32 rest = (s.bits & 0x7FFFu) << 13;
  // A number of this exponent field, one exponent higher if it is subnormal; the difference makes up for the leading
  // one that subnormal numbers do not have. Masks, because the compiler would make branches of conditions.
  const u32 is_subnormal = 0u - static_cast<u32>(rest < (0x0400u << 13));
  const u32 is_special = 0u - static_cast<u32>(rest >= (0x7C00u << 13));
  const float raised = bit_cast<float>(rest + (112u << 23) + (is_subnormal & (1u << 23)));
  const float magnitude = raised - bit_cast<float>(is_subnormal & (113u << 23));
  const u32 sign = static_cast<u32>(s.bits & 0x8000u) << 16;
  return static_cast<double>(bit_cast<float>(bit_cast<u32>(magnitude) | (is_special & 0x7F800000u) | sign));
}

template <int Width>
struct Lanes {
  alignas(64) double d[kLanes * Width];  // [lane, channel]
  alignas(64) double dd[kLanes * Width];

  void clear() {
    std::fill(d, d + kLanes * Width, 0.0);
    std::fill(dd, dd + kLanes * Width, 0.0);
  }
};

// The sum of `count` sums that lie `step` apart, a power of two of them: neighbours first. Overwrites them.
double fold_lanes(double* sums, int count, int step) {
  for (int width = 1; width < count; width *= 2) {
    for (int lane = 0; lane < count; lane += 2 * width) sums[lane * step] += sums[(lane + width) * step];
  }
  return sums[0];
}

// Adds `count` elements; the first is lane 0's.
template <class S>
N2N_SIMD void add_elements(const S* x, i64 count, double pivot, Lanes<1>& sums) {
  double* const d_sums = sums.d;
  double* const dd_sums = sums.dd;
  for (; count >= kLanes; count -= kLanes, x += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double d = widened(x[lane]) - pivot;
      d_sums[lane] += d;
      dd_sums[lane] += d * d;
    }
  }
  for (int lane = 0; lane < static_cast<int>(count); ++lane) {
    const double d = widened(x[lane]) - pivot;
    d_sums[lane] += d;
    dd_sums[lane] += d * d;
  }
}

// Adds `rows` rows of kAcross channels; the first row is of lane `lane`.
template <class S>
N2N_SIMD void add_rows(const S* x, i64 rows, i64 stride, int lane, const double* pivots, Lanes<kAcross>& sums) {
  for (i64 row = 0; row < rows; ++row, x += stride, lane = (lane + 1) % kLanes) {
    double* const d_sums = sums.d + lane * kAcross;
    double* const dd_sums = sums.dd + lane * kAcross;
    for (int c = 0; c < kAcross; ++c) {
      const double d = widened(x[c]) - pivots[c];
      d_sums[c] += d;
      dd_sums[c] += d * d;
    }
  }
}

template <class S>
void channel_chunk(const MomentsArgs& a, i64 channel, i64 chunk) {
  const S* const src = reinterpret_cast<const S*>(a.src) + channel * a.stride_c;
  const double pivot = pivot_of(src[0]);
  const i64 end = std::min((chunk + 1) * a.chunk, a.elements());
  Lanes<1> sums;
  sums.clear();
  for (i64 j = chunk * a.chunk; j < end;) {
    const i64 n = j / a.S, s = j - n * a.S;
    const S* from = src + n * a.stride_n + s * a.stride_s;
    const i64 run = std::min(a.S - s, end - j);
    if (a.stride_s == 1 && (run % kLanes == 0 || j + run == end)) {
      add_elements(from, run, pivot, sums);
      j += run;
      continue;
    }
    S staged[kStage];
    const i64 count = std::min<i64>(kStage, end - j);
    i64 at = s;
    const S* row = from - s * a.stride_s;
    for (i64 i = 0; i < count;) {
      const i64 here = std::min(a.S - at, count - i);
      const S* x = row + at * a.stride_s;
      if (a.stride_s == 1) {
        std::copy(x, x + here, staged + i);
      } else {
        for (i64 k = 0; k < here; ++k) staged[i + k] = x[k * a.stride_s];
      }
      i += here;
      at = 0;
      row += a.stride_n;
    }
    add_elements(staged, count, pivot, sums);
    j += count;
  }
  a.partials[channel * a.chunks + chunk] = Sums{fold_lanes(sums.d, kLanes, 1), fold_lanes(sums.dd, kLanes, 1)};
  if (chunk == 0) a.pivots[channel] = pivot;
}

// kAcross channels from `first` on, or as many as there are.
template <class S>
void channels_chunk(const MomentsArgs& a, i64 first, i64 chunk) {
  const S* const src = reinterpret_cast<const S*>(a.src) + first;
  const int width = static_cast<int>(std::min<i64>(kAcross, a.C - first));
  double pivots[kAcross] = {};
  for (int c = 0; c < width; ++c) pivots[c] = pivot_of(src[c]);
  const i64 end = std::min((chunk + 1) * a.chunk, a.elements());
  Lanes<kAcross> sums;
  sums.clear();
  for (i64 j = chunk * a.chunk; j < end;) {
    const i64 n = j / a.S, s = j - n * a.S;
    const S* const from = src + n * a.stride_n + s * a.stride_s;
    i64 rows = std::min(a.S - s, end - j);
    const int lane = static_cast<int>(j % kLanes);
    if (width == kAcross) {
      add_rows(from, rows, a.stride_s, lane, pivots, sums);
    } else {  // one row at a time, filled up
      S staged[kAcross] = {};
      std::copy(from, from + width, staged);
      add_rows(staged, rows = 1, 0, lane, pivots, sums);
    }
    j += rows;
  }
  for (int c = 0; c < width; ++c) {
    a.partials[(first + c) * a.chunks + chunk] =
        Sums{fold_lanes(sums.d + c, kLanes, kAcross), fold_lanes(sums.dd + c, kLanes, kAcross)};
    if (chunk == 0) a.pivots[first + c] = pivots[c];
  }
}

}  // namespace

void channel_moments_cpu(DType dtype, const MomentsArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    const i64 bytes = args.C * args.elements() * static_cast<i64>(sizeof(S));
    if (plan_of<S>(args).along_channels) {
      const i64 across = (args.C + kAcross - 1) / kAcross;
      parallel_for(across * args.chunks, bytes, threads,
                   [&](i64 tile) { channels_chunk<S>(args, tile % across * kAcross, tile / across); });
    } else {
      parallel_for(args.C * args.chunks, bytes, threads,
                   [&](i64 tile) { channel_chunk<S>(args, tile / args.chunks, tile % args.chunks); });
    }
  });
}

void tensor_moments_cpu(DType dtype, const TensorMomentsArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    constexpr i64 kBlockBytes = i64{kMomentsThreads} * kVectorBytes * 8;  // or more: a lane has 8 elements of a chunk or more
    parallel_for(args.blocks, args.blocks * kBlockBytes, threads, [&](i64 block) {
      const i64 task = args.block_task[block];
      const MomentsArgs mine = args_of(args, task);
      const i64 first = (block - args.tasks[task].first_block) * TensorBlock<S>::kUnits;
      const i64 end = std::min(first + TensorBlock<S>::kUnits, mine.chunks);
      for (i64 chunk = first; chunk < end; ++chunk) channel_chunk<S>(mine, 0, chunk);
    });
  });
}

void finish_moments_cpu(const FinishArgs& args) {
  for (i64 c = 0; c < args.channels; ++c) {
    double d[kFoldLanes], dd[kFoldLanes];
    // Lanes that have no chunk are zero, and change nothing.
    int lanes = 1;
    while (lanes < kFoldLanes && lanes < Finish::chunks(args, c)) lanes *= 2;
    for (int lane = 0; lane < lanes; ++lane) {
      const Sums sums = Finish::lane(args, c, lane);
      d[lane] = sums.d;
      dd[lane] = sums.dd;
    }
    Finish::write(args, c, Sums{fold_lanes(d, lanes, 1), fold_lanes(dd, lanes, 1)});
  }
}

}  // namespace n2n
