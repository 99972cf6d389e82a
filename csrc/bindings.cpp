// The binding: addresses, extents and the current stream come in as integers; neither torch nor a GPU is needed to
// build it. Callers hold the tensors alive and have checked everything.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "host.h"
#include "kernels.h"
#include "parallel.h"
#include "simd.h"

namespace py = pybind11;

namespace {

using n2n::i64;

#if N2N_WITH_CUDA
#define N2N_ON_CUDA(call) call
#else
#define N2N_ON_CUDA(call) throw std::runtime_error("n2n_kernels was built without CUDA")
#endif

// What identity_ writes on a CPU, if it is more, is in no cache afterwards anyway.
constexpr i64 kStreamFrom = i64{32} << 20;

// Where a kernel runs. `kBlocks` is the CUDA kernel's code, thread by thread on the CPU, for tests.
enum class Target : int { kCpu = 0, kCuda = 1, kBlocks = 2 };

void gather_scale(int target, int dtype, i64 tasks, i64 tiles, i64 count, n2n::u64 seed, int noise, i64 stage_bytes,
                  i64 output_bytes, bool large, int threads, i64 stream) {
  const auto on = static_cast<Target>(target);
  const n2n::GatherScaleArgs args{reinterpret_cast<const n2n::Task*>(tasks),
                                  reinterpret_cast<const n2n::Tile*>(tiles),
                                  count,
                                  seed,
                                  static_cast<n2n::Noise>(noise),
                                  stage_bytes,
                                  output_bytes,
                                  large && (on != Target::kCpu || n2n::streaming_pays(threads)),
                                  large};
  const auto type = static_cast<n2n::DType>(dtype);
  switch (on) {
    case Target::kCpu: return n2n::gather_scale_cpu(type, args, threads);
    case Target::kCuda: N2N_ON_CUDA(return n2n::gather_scale_cuda(type, args, reinterpret_cast<void*>(stream)));
    case Target::kBlocks: return n2n::gather_scale_blocks(type, args);
  }
}

void identity(bool cuda, int dtype, i64 tasks, i64 tile_task, i64 tiles, int threads, i64 stream) {
  const n2n::IdentityArgs args{reinterpret_cast<const n2n::IdentityTask*>(tasks),
                               reinterpret_cast<const n2n::i32*>(tile_task), tiles};
  const auto type = static_cast<n2n::DType>(dtype);
  if (cuda) {
    N2N_ON_CUDA(n2n::identity_cuda(type, args, reinterpret_cast<void*>(stream)));
  } else {
    const bool large = tiles * n2n::kIdentityTileBytes >= kStreamFrom;
    n2n::identity_cpu(type, args, large && n2n::streaming_pays(threads), threads);
  }
}

// `scratch` is room for the pivots, then for the partial sums.
void channel_moments(bool cuda, int dtype, i64 src, std::vector<i64> sizes, std::vector<i64> strides, i64 chunk,
                     i64 chunks, i64 scratch, i64 mean, i64 var, int threads, i64 stream) {
  const i64 channels = sizes.at(1), elements = sizes.at(0) * sizes.at(2);
  const auto type = static_cast<n2n::DType>(dtype);
  double* const pivots = reinterpret_cast<double*>(scratch);
  n2n::Sums* const partials = reinterpret_cast<n2n::Sums*>(pivots + channels);
  const n2n::MomentsArgs args{src,           sizes.at(0),   channels, sizes.at(2), strides.at(0), strides.at(1),
                              strides.at(2), chunk, chunks,   pivots,      partials};
  const n2n::FinishArgs finish{channels, elements, chunks, nullptr, pivots,
                               partials, mean,     var,    type != n2n::DType::kFloat64};
  if (cuda) {
    N2N_ON_CUDA(n2n::channel_moments_cuda(type, args, reinterpret_cast<void*>(stream)));
    N2N_ON_CUDA(n2n::finish_moments_cuda(finish, reinterpret_cast<void*>(stream)));
  } else {
    n2n::channel_moments_cpu(type, args, threads);
    n2n::finish_moments_cpu(finish);
  }
}

// The sums of those of the table's tensors that are in `block_task`, all of one dtype. `scratch` as above.
void tensor_moments(bool cuda, int dtype, i64 tasks, i64 tensors, i64 block_task, i64 blocks, i64 scratch, int threads,
                    i64 stream) {
  double* const pivots = reinterpret_cast<double*>(scratch);
  const n2n::TensorMomentsArgs args{reinterpret_cast<const n2n::TensorTask*>(tasks),
                                    reinterpret_cast<const n2n::i32*>(block_task), blocks, pivots,
                                    reinterpret_cast<n2n::Sums*>(pivots + tensors)};
  const auto type = static_cast<n2n::DType>(dtype);
  if (cuda) {
    N2N_ON_CUDA(n2n::tensor_moments_cuda(type, args, reinterpret_cast<void*>(stream)));
  } else {
    n2n::tensor_moments_cpu(type, args, threads);
  }
}

// The moments of all tensors of the table, float64.
void finish_tensor_moments(bool cuda, i64 tasks, i64 tensors, i64 scratch, i64 mean, i64 var, i64 stream) {
  const double* const pivots = reinterpret_cast<const double*>(scratch);
  const n2n::FinishArgs finish{tensors,
                               0,
                               0,
                               reinterpret_cast<const n2n::TensorTask*>(tasks),
                               pivots,
                               reinterpret_cast<const n2n::Sums*>(pivots + tensors),
                               mean,
                               var,
                               false};
  if (cuda) {
    N2N_ON_CUDA(n2n::finish_moments_cuda(finish, reinterpret_cast<void*>(stream)));
  } else {
    n2n::finish_moments_cpu(finish);
  }
}

std::vector<n2n::u32> philox(int rounds, std::vector<n2n::u32> counter, std::vector<n2n::u32> key) {
  const auto run = [&](auto f) {
    const n2n::Philox p = f(counter.at(0), counter.at(1), counter.at(2), counter.at(3), key.at(0), key.at(1));
    return std::vector<n2n::u32>(p.word, p.word + 4);
  };
  if (rounds == 7) return run(n2n::philox4x32<7>);
  if (rounds == 10) return run(n2n::philox4x32<10>);
  throw std::invalid_argument("rounds (=" + std::to_string(rounds) + ") must be 7 or 10");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of n2n_kernels. Use the functions of the n2n_kernels package, which check their arguments.";
#if N2N_WITH_CUDA
  m.attr("cuda_runtime_version") = N2N_CUDA_VERSION;
  m.attr("cuda_architectures") = N2N_CUDA_ARCHS;
#else
  m.attr("cuda_runtime_version") = py::none();
  m.attr("cuda_architectures") = py::none();
#endif
  m.attr("TILE") = n2n::kTile;
  m.attr("TASK_WORDS") = sizeof(n2n::Task) / 8;
  m.attr("IDENTITY_TASK_WORDS") = sizeof(n2n::IdentityTask) / 8;
  m.attr("IDENTITY_TILE_BYTES") = n2n::kIdentityTileBytes;
  m.attr("TENSOR_TASK_WORDS") = sizeof(n2n::TensorTask) / 8;
  m.attr("VECTOR_BYTES") = n2n::kVectorBytes;
  m.attr("LANES") = n2n::kLanes;
  m.attr("FOLD_LANES") = n2n::kFoldLanes;
  m.attr("MOMENTS_THREADS") = n2n::kMomentsThreads;
  m.def("share_threads", [](i64 team) { n2n::shared_team = reinterpret_cast<n2n::Team>(team); },
        "The address of GOMP_parallel in the runtime whose threads loops shall run on; 0 for threads of their own.");
  const auto unlocked = py::call_guard<py::gil_scoped_release>();
  n2n::bind_describe(m);
  n2n::bind_copy_values(m);
  m.def("gather_scale", &gather_scale, unlocked);
  m.def("identity", &identity, unlocked);
  m.def("channel_moments", &channel_moments, unlocked);
  m.def("tensor_moments", &tensor_moments, unlocked);
  m.def("finish_tensor_moments", &finish_tensor_moments, unlocked);
  m.def("philox", &philox, "Philox4x32 of a counter of four words and a key of two, for tests against known answers.");
}
