// What the bindings may call: each kernel once per backend.
#pragma once

#include "channel_moments.h"
#include "gather_scale.h"
#include "identity.h"

namespace n2n {

void gather_scale_cpu(DType dtype, const GatherScaleArgs& args, int threads);
void gather_scale_blocks(DType dtype, const GatherScaleArgs& args);  // the CUDA kernel's code, on the CPU, for tests
void identity_cpu(DType dtype, const IdentityArgs& args, bool streaming, int threads);
void channel_moments_cpu(DType dtype, const MomentsArgs& args, int threads);
void tensor_moments_cpu(DType dtype, const TensorMomentsArgs& args, int threads);
void finish_moments_cpu(const FinishArgs& args);

#if N2N_WITH_CUDA
// `stream` is a cudaStream_t of the current device. These throw std::runtime_error if the launch is refused.
void gather_scale_cuda(DType dtype, const GatherScaleArgs& args, void* stream);
void identity_cuda(DType dtype, const IdentityArgs& args, void* stream);
void channel_moments_cuda(DType dtype, const MomentsArgs& args, void* stream);
void tensor_moments_cuda(DType dtype, const TensorMomentsArgs& args, void* stream);
void finish_moments_cuda(const FinishArgs& args, void* stream);
#endif

}  // namespace n2n
