// Runs the CPU kernels on random shapes, layouts and options against plain loops in wider arithmetic. No Python: built
// with the address and undefined-behaviour sanitizers, which Python's own memory would blind.
//
//     fuzz_kernels ROUNDS SEED
//
// Every array is an allocation of exactly its size, so that one element too far is an error.
#include <cstdio>
#include <cstdlib>

#include "fuzz.h"
#include "random_cases.h"

namespace {

using namespace n2n;
using namespace n2n::tests;

template <class S>
void fuzz(DType dtype, i64 rounds) {
  i64 elements[4] = {0, stream_identity<S>(dtype), 0, 0};
  for (i64 round = 0; round < rounds; ++round) {
    elements[0] += fuzz_gather_scale<S>(dtype);
    elements[1] += fuzz_identity<S>(dtype);
    elements[2] += fuzz_channel_moments<S>(dtype);
    elements[3] += fuzz_tensor_moments<S>(dtype);
  }
  std::printf("dtype %d: %lld elements of gather_scale, %lld of identity_, %lld of channel_moments, %lld of "
              "tensor_moments\n",
              static_cast<int>(dtype), static_cast<long long>(elements[0]), static_cast<long long>(elements[1]),
              static_cast<long long>(elements[2]), static_cast<long long>(elements[3]));
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 3, "usage: fuzz_kernels ROUNDS SEED");
  const i64 rounds = std::atoll(argv[1]);
  rng.seed(static_cast<u64>(std::atoll(argv[2])));
  const i64 formats = check_format<bf16>() + check_format<f16>() + check_small_integers();
  std::printf("%lld roundings, %lld samples of noise, %lld rows of words\n", static_cast<long long>(formats),
              static_cast<long long>(check_noise()), static_cast<long long>(check_words()));
  fuzz<float>(DType::kFloat32, rounds);
  fuzz<double>(DType::kFloat64, rounds);
  fuzz<bf16>(DType::kBFloat16, rounds);
  fuzz<f16>(DType::kFloat16, rounds);
  std::puts("ok");
}
