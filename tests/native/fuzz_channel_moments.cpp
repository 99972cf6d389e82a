// channel_moments and tensor_moments: each sum against its order of summation, on the CPU and by the GPU's blocks.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "formats_once_more.h"
#include "fuzz.h"
#include "kernels.h"
#include "random_cases.h"

namespace n2n::tests {

namespace {

// A tensor [N, C, S] for channel_moments, and its definition in plain loops.
template <class S>
struct MomentsCase {
  i64 extent[3], stride[3];
  std::unique_ptr<Exactly<S>> src;
  i64 chunk = kLanes << pick(0, 6);
  i64 elements, chunks;
  std::vector<double> pivots;
  std::vector<Sums> partials;
  MomentsArgs args{};

  MomentsCase() {
    const bool large = pick(0, 9) == 0;
    extent[0] = pick(1, 6), extent[1] = pick(1, 4), extent[2] = large ? pick(1000, 5000) : pick(1, 90);
    if (pick(0, 2) == 0) extent[1] = 8 * pick(1, 9);  // for vectors along the channels
    if (pick(0, 2) == 0) extent[2] = 8 * pick(1, 20);
    i64 size, offset = 0;
    const auto gap = [] { return pick(0, 2) ? 0 : pick(1, 9); };  // parts of larger tensors
    switch (pick(0, 2)) {
      case 0:  // contiguous
        stride[2] = 1, stride[1] = extent[2] + gap(), stride[0] = extent[1] * stride[1] + gap();
        size = extent[0] * stride[0];
        break;
      case 1:  // channels_last
        stride[1] = 1, stride[2] = extent[1] + gap(), stride[0] = extent[2] * stride[2] + gap();
        size = extent[0] * stride[0];
        break;
      default: size = random_strides(extent, stride);
    }
    if (pick(0, 2) == 0) offset = pick(1, 9);
    src = std::make_unique<Exactly<S>>(size + offset);
    for (i64 e = 0; e < src->size; ++e) (*src)[e] = random_scalar<S>();
    elements = extent[0] * extent[2];
    chunks = (elements + chunk - 1) / chunk;
    pivots.assign(static_cast<std::size_t>(extent[1]), -1.0);
    partials.assign(static_cast<std::size_t>(extent[1] * chunks), Sums{-1.0, -1.0});
    const i64 address = src->address() + offset * static_cast<i64>(sizeof(S));
    args = {address,   extent[0], extent[1], extent[2],     stride[0],      stride[1],
            stride[2], chunk,     chunks,    pivots.data(), partials.data()};
  }

  double at(i64 channel, i64 j) const {
    return value(reinterpret_cast<const S*>(
        args.src)[j / extent[2] * stride[0] + channel * stride[1] + j % extent[2] * stride[2]]);
  }

  // The order of summation once more, from its description.
  Sums expected(i64 channel, i64 index) const {
    std::vector<Sums> lanes(kLanes, Sums{0.0, 0.0});
    for (i64 j = index * chunk; j < std::min((index + 1) * chunk, elements); ++j) {
      Sums& lane = lanes[static_cast<std::size_t>(j % kLanes)];
      const double d = at(channel, j) - at(channel, 0);
      lane.d += d;
      lane.dd += d * d;
    }
    while (lanes.size() > 1) {
      std::vector<Sums> pairs;
      for (std::size_t i = 0; i < lanes.size(); i += 2) pairs.push_back(lanes[i] + lanes[i + 1]);
      lanes = pairs;
    }
    return lanes[0];
  }

  void check(const char* what) {
    for (i64 c = 0; c < extent[1]; ++c) {
      require(same(pivots[static_cast<std::size_t>(c)], at(c, 0)), "channel_moments: the pivot, ", what);
      for (i64 i = 0; i < chunks; ++i) {
        const Sums got = partials[static_cast<std::size_t>(c * chunks + i)], wanted = expected(c, i);
        require(same(got.d, wanted.d) && same(got.dd, wanted.dd), "channel_moments: a wrong sum, ", what);
      }
    }
    std::fill(pivots.begin(), pivots.end(), -1.0);
    std::fill(partials.begin(), partials.end(), Sums{-1.0, -1.0});
  }
};

// The GPU's blocks by hand, phase by phase and thread by thread.
template <class Block>
void moments_as_block(const MomentsArgs& args, bool wide, i64 block) {
  std::vector<Sums> shared(Block::kShared, Sums{-1.0, -1.0});
  for (int t = 0; t < kMomentsThreads; ++t) Block::accumulate(args, wide, block, t, shared.data());
  for (int width = 1; width < Block::kParts; width *= 2) {
    for (int t = 0; t < kMomentsThreads; ++t) Block::fold(width, t, shared.data());
  }
  for (int t = 0; t < kMomentsThreads; ++t) Block::write(args, block, t, shared.data());
}

template <class Block, class S>
void moments_as_blocks(MomentsCase<S>& c, const char* what) {
  for (i64 block = 0; block < Block::blocks(c.args); ++block) moments_as_block<Block>(c.args, true, block);
  c.check(what);
}

}  // namespace

template <class S>
i64 one_channel_moments(DType dtype) {
  MomentsCase<S> c;
  channel_moments_cpu(dtype, c.args, static_cast<int>(pick(1, 3)));
  c.check("on the CPU");
  const MomentsPlan plan = plan_of<S>(c.args);
  moments_as_blocks<MomentsBlock<S, 1, false>>(c, "along elements");
  moments_as_blocks<MomentsBlock<S, 1, true>>(c, "along channels");
  constexpr int kWide = kVectorOf<S>;
  if (plan.wide && plan.along_channels) moments_as_blocks<MomentsBlock<S, kWide, true>>(c, "wide along channels");
  if (plan.wide && !plan.along_channels) moments_as_blocks<MomentsBlock<S, kWide, false>>(c, "wide along elements");
  return c.elements * c.extent[1];
}

// Several, since whether vectors may be read depends on many numbers.
template <class S>
i64 fuzz_channel_moments(DType dtype) {
  i64 elements = 0;
  for (int n = 0; n < 6; ++n) elements += one_channel_moments<S>(dtype);
  return elements;
}

// tensor_moments: runs of any length at any address, sums and moments.
template <class S>
i64 fuzz_tensor_moments(DType dtype) {
  std::vector<std::unique_ptr<Exactly<S>>> runs;
  std::vector<TensorTask> tasks;
  std::vector<i32> block_task;
  i64 partials = 0, elements = 0;
  for (i64 n = pick(1, 5); n > 0; --n) {
    const i64 offset = pick(0, 3), size = pick(0, 5) ? pick(0, 300) : pick(3000, 40000), chunk = kLanes << pick(0, 5);
    runs.push_back(std::make_unique<Exactly<S>>(offset + size));
    for (i64 e = 0; e < runs.back()->size; ++e) (*runs.back())[e] = random_scalar<S>();
    const i64 chunks = (size + chunk - 1) / chunk, units = TensorBlock<S>::kUnits;
    tasks.push_back({runs.back()->address() + offset * static_cast<i64>(sizeof(S)), size, chunk, chunks, partials,
                     static_cast<i64>(block_task.size())});
    block_task.insert(block_task.end(), static_cast<std::size_t>((chunks + units - 1) / units),
                      static_cast<i32>(tasks.size() - 1));
    partials += chunks;
    elements += size;
  }
  const i64 count = static_cast<i64>(tasks.size());
  std::vector<double> pivots(tasks.size()), block_pivots(tasks.size()), mean(tasks.size()), var(tasks.size());
  std::vector<Sums> sums(static_cast<std::size_t>(partials)), block_sums(static_cast<std::size_t>(partials));
  TensorMomentsArgs args{tasks.data(), block_task.data(), static_cast<i64>(block_task.size()), pivots.data(),
                         sums.data()};
  tensor_moments_cpu(dtype, args, static_cast<int>(pick(1, 3)));
  args.pivots = block_pivots.data(), args.partials = block_sums.data();
  for (i64 block = 0; block < args.blocks; ++block) {
    const i64 task = block_task[static_cast<std::size_t>(block)];
    const MomentsArgs mine = args_of(args, task);
    moments_as_block<TensorBlock<S>>(mine, mine.src % kVectorBytes == 0,
                                     block - tasks[static_cast<std::size_t>(task)].first_block);
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    require(same(sums[i].d, block_sums[i].d) && same(sums[i].dd, block_sums[i].dd), "tensor_moments: block and CPU");
  }
  const FinishArgs finish{count, 0, 0, tasks.data(), pivots.data(), sums.data(),
                          reinterpret_cast<i64>(mean.data()), reinterpret_cast<i64>(var.data()), false};
  finish_moments_cpu(finish);
  for (i64 i = 0; i < count; ++i) {
    const TensorTask& t = tasks[static_cast<std::size_t>(i)];
    const double got_mean = mean[static_cast<std::size_t>(i)], got_var = var[static_cast<std::size_t>(i)];
    if (t.elements == 0) {
      require(got_mean != got_mean && got_var != got_var, "tensor_moments: nothing has moments");
      continue;
    }
    long double sum = 0, squares = 0, size = 0;
    const S* const x = reinterpret_cast<const S*>(t.src);
    for (i64 e = 0; e < t.elements; ++e) sum += value(x[e]);
    const long double wanted = sum / t.elements;
    for (i64 e = 0; e < t.elements; ++e) {
      squares += (value(x[e]) - wanted) * (value(x[e]) - wanted);
      size = std::max<long double>(size, std::fabs(value(x[e])));
    }
    const long double bound = 100 * std::numeric_limits<double>::epsilon();
    require(std::fabs(got_mean - wanted) <= bound * size, "tensor_moments: a wrong mean");
    require(std::fabs(got_var - squares / t.elements) <= bound * size * size, "tensor_moments: a wrong variance");
    // The GPU's last step, by lanes.
    std::vector<Sums> lanes;
    for (int lane = 0; lane < kFoldLanes; ++lane) lanes.push_back(Finish::lane(finish, i, lane));
    for (int width = 1; width < kFoldLanes; width *= 2) {
      for (int lane = 0; lane < kFoldLanes; lane += 2 * width) {
        const auto at = static_cast<std::size_t>(lane);
        lanes[at] = lanes[at] + lanes[at + static_cast<std::size_t>(width)];
      }
    }
    Finish::write(finish, i, lanes[0]);
    require(same(got_mean, mean[static_cast<std::size_t>(i)]) && same(got_var, var[static_cast<std::size_t>(i)]),
            "tensor_moments: the last step by lanes and on the CPU");
  }
  return elements;
}

template i64 fuzz_channel_moments<float>(DType);
template i64 fuzz_channel_moments<double>(DType);
template i64 fuzz_channel_moments<bf16>(DType);
template i64 fuzz_channel_moments<f16>(DType);
template i64 fuzz_tensor_moments<float>(DType);
template i64 fuzz_tensor_moments<double>(DType);
template i64 fuzz_tensor_moments<bf16>(DType);
template i64 fuzz_tensor_moments<f16>(DType);

}  // namespace n2n::tests
