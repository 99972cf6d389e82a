// Words shared by every kernel: integers, the host-device marker, and the floating-point types.
//
// Everything marked N2N_HD is compiled twice, by the host compiler for the CPU backend and by nvcc for the GPU, so
// that a test on a machine without a GPU runs the very arithmetic that the GPU runs.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#define N2N_HD __host__ __device__ __forceinline__
#else
#define N2N_HD inline
#endif

// Before a loop over the elements of a vector: on a GPU they must all be in registers, which have no run-time index.
// N2N_ROLL is for a loop whose body is long.
#if defined(__CUDA_ARCH__)
#define N2N_UNROLL _Pragma("unroll")
#define N2N_ROLL _Pragma("unroll 1")
#else
#define N2N_UNROLL
#define N2N_ROLL
#endif

// What came with the A100: copies to shared memory that nobody waits for, and conversions of two numbers at once.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define N2N_AMPERE 1
#endif

namespace n2n {

using i64 = std::int64_t;
using i32 = std::int32_t;
using u64 = std::uint64_t;
using u32 = std::uint32_t;
using u16 = std::uint16_t;

// The order is part of the binding's contract: n2n_kernels/dtypes.py holds the same codes.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

template <class To, class From>
N2N_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To out;
  memcpy(&out, &value, sizeof(To));
  return out;
}

struct bf16 {
  u16 bits;
};
struct f16 {
  u16 bits;
};

// A storage type S computes in Scalar<S>::compute: float for everything narrower than double. `store` rounds once, to
// nearest even. The 16-bit conversions are integer code because hosts disagree on what their compilers offer.
template <class S>
struct Scalar;

template <>
struct Scalar<float> {
  using compute = float;
  N2N_HD static float load(float s) { return s; }
  N2N_HD static float store(float x) { return x; }
  N2N_HD static float quiet_nan() { return bit_cast<float>(u32{0x7FC00000u}); }
};

template <>
struct Scalar<double> {
  using compute = double;
  N2N_HD static double load(double s) { return s; }
  N2N_HD static double store(double x) { return x; }
  N2N_HD static double quiet_nan() { return bit_cast<double>(u64{0x7FF8000000000000ull}); }
};

template <>
struct Scalar<bf16> {
  using compute = float;
  N2N_HD static float load(bf16 s) { return bit_cast<float>(static_cast<u32>(s.bits) << 16); }
  // The first and the second of two in a word.
  N2N_HD static float load_low(u32 word) { return bit_cast<float>(word << 16); }
  N2N_HD static float load_high(u32 word) { return bit_cast<float>(word & 0xFFFF0000u); }
  // For numbers and infinities; what may be NaN goes through `finish` below. Here on a CPU the carry can turn it into a
  // number. On a GPU it stays NaN, which unit_rows.h relies on, and whose bits differ from `quiet_nan`.
  N2N_HD static bf16 store(float x) {
#if defined(N2N_AMPERE)
    return bf16{static_cast<u16>(store_pair(x, 0.0f))};
#else
#if defined(__CUDA_ARCH__)
    if (x != x) return bf16{0x7FFF};  // as the instruction has it
#endif
    const u32 u = bit_cast<u32>(x);
    return bf16{static_cast<u16>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
#endif
  }
  // Two in a word. Of one alone the conversion takes four times as long on a GPU.
  N2N_HD static u32 store_pair(float low, float high) {
#if defined(N2N_AMPERE)
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return u32{store(low).bits} | u32{store(high).bits} << 16;
#endif
  }
  N2N_HD static bf16 quiet_nan() { return bf16{0x7FC0}; }
};

template <>
struct Scalar<f16> {
  using compute = float;
  N2N_HD static float load(f16 s) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(s.bits));
#else
    // Selects rather than branches, so that compilers can vectorise it.
    const u32 sign = static_cast<u32>(s.bits & 0x8000u) << 16;
    const u32 rest = s.bits & 0x7FFFu;
    const u32 normal = (rest << 13) + (112u << 23);
    // Subnormal halves are multiples of 2^-24, which float holds exactly.
    const u32 subnormal = bit_cast<u32>(static_cast<float>(static_cast<i32>(rest)) * bit_cast<float>(u32{103u << 23}));
    const u32 special = 0x7F800000u | ((rest & 0x3FFu) << 13);
    return bit_cast<float>(sign | (rest >= 0x7C00u ? special : rest >= 0x0400u ? normal : subnormal));
#endif
  }
  N2N_HD static float load_low(u32 word) { return load(f16{static_cast<u16>(word)}); }
  N2N_HD static float load_high(u32 word) { return load(f16{static_cast<u16>(word >> 16)}); }
  N2N_HD static f16 store(float x) {
#if defined(N2N_AMPERE)
    return f16{static_cast<u16>(store_pair(x, 0.0f))};
#elif defined(__CUDA_ARCH__)
    return f16{__half_as_ushort(__float2half_rn(x))};
#else
    const u32 u = bit_cast<u32>(x);
    const u32 sign = (u >> 16) & 0x8000u;
    const u32 mag = u & 0x7FFFFFFFu;
    // Rebias the exponent and round; a carry out of the largest half gives infinity, as it should.
    const u32 normal = (mag - (112u << 23) + 0xFFFu + ((mag >> 13) & 1u)) >> 13;
    // Below 2^-14 the half is subnormal. Adding 0.5 aligns its last bit with float's, so that the addition itself rounds
    // to nearest even.
    const u32 subnormal = bit_cast<u32>(bit_cast<float>(mag) + 0.5f) - 0x3F000000u;
    // 2^16 and more, infinity too, becomes infinity.
    const u32 half = mag >= 0x47800000u ? 0x7C00u : mag < 0x38800000u ? subnormal : normal;
    return f16{static_cast<u16>(sign | half)};
#endif
  }
  N2N_HD static u32 store_pair(float low, float high) {
#if defined(N2N_AMPERE)
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
#else
    return u32{store(low).bits} | u32{store(high).bits} << 16;
#endif
  }
  N2N_HD static f16 quiet_nan() { return f16{0x7E00}; }
};

// The same number, which a GPU's compiler shall keep in a register rather than find anew where it is used.
N2N_HD float kept(float x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
N2N_HD double kept(double x) { return x; }
N2N_HD u32 kept(u32 x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(x));
#endif
  return x;
}
N2N_HD u64 kept(u64 x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(x));
#endif
  return x;
}

template <class T>
N2N_HD bool is_finite(T x) {
  return x - x == T(0);
}

// The value `x` computed from the stored `source`, rounded to storage. A NaN of the source passes through bit for bit,
// and a NaN made here (infinity times zero) is one fixed pattern: processors would otherwise differ in its bits.
template <class S>
N2N_HD S finish(S source, typename Scalar<S>::compute x) {
  if (x == x) return Scalar<S>::store(x);
  const auto w = Scalar<S>::load(source);
  return w == w ? Scalar<S>::quiet_nan() : source;
}

}  // namespace n2n
