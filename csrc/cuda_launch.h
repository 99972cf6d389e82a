// What every CUDA launch needs around it.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "common.h"

namespace n2n {

constexpr int kThreads = 256;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("n2n_kernels: ") + what + " failed: " + cudaGetErrorString(error));
  }
}

inline void check_launch(const char* kernel) { check(cudaGetLastError(), (std::string("launching ") + kernel).c_str()); }

// A grid's first extent reaches 2^31 - 1 blocks; kernels stride over what is beyond.
inline unsigned grid_for(i64 tiles) {
  constexpr i64 kLargest = 0x7FFFFFFF;
  return static_cast<unsigned>(tiles < kLargest ? tiles : kLargest);
}

}  // namespace n2n
