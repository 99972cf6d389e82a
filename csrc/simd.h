// Wider registers where the processor has them, from a build that does not ask for them: GCC compiles a function that
// is marked N2N_SIMD once more for AVX2, and the loader picks. The arithmetic is the same, product by product.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define N2N_SIMD __attribute__((target_clones("avx2", "default")))
#else
#define N2N_SIMD
#endif
