// What the program runs: each function goes through random cases of an operation and returns how many elements it
// looked at, or ends the program with what is wrong.
#pragma once

#include "common.h"

namespace n2n::tests {

template <class S>
i64 fuzz_gather_scale(DType dtype);
template <class S>
i64 fuzz_identity(DType dtype);
template <class S>
i64 stream_identity(DType dtype);
template <class S>
i64 fuzz_channel_moments(DType dtype);
template <class S>
i64 fuzz_tensor_moments(DType dtype);

// Every 16-bit pattern both ways, and a sample of floats, ties among them, into a 16-bit type.
template <class S>
i64 check_format();

i64 check_noise();
i64 check_words();
i64 check_small_integers();

}  // namespace n2n::tests
