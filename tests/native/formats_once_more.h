// The floating-point formats once more, by arithmetic instead of by bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common.h"
#include "random_cases.h"

namespace n2n::tests {

struct Format {
  int precision;  // bits of the significand
  int smallest;   // exponent of the smallest normal number
  double largest;
};

template <class S>
Format format();
template <>
inline Format format<float>() { return {24, -126, std::numeric_limits<float>::max()}; }
template <>
inline Format format<double>() { return {53, -1022, std::numeric_limits<double>::max()}; }
template <>
inline Format format<bf16>() { return {8, -126, std::ldexp(255.0, 120)}; }
template <>
inline Format format<f16>() { return {11, -14, 65504.0}; }

// `x` to the nearest number of the format, to the even one of two.
inline double rounded(double x, const Format& f) {
  if (f.precision == 53 || x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - 1, f.smallest) - (f.precision - 1);
  const double r = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  return std::fabs(r) > f.largest ? std::copysign(std::numeric_limits<double>::infinity(), x) : r;
}

inline double value(float s) { return static_cast<double>(s); }
inline double value(double s) { return s; }
inline double value(bf16 s) {
  const double sign = s.bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (s.bits >> 7) & 0xFF;
  const double fraction = s.bits & 0x7F;
  if (exponent == 0xFF) return sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(128 + fraction, exponent - 134) : std::ldexp(fraction, -133));
}
inline double value(f16 s) {
  const double sign = s.bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (s.bits >> 10) & 0x1F;
  const double fraction = s.bits & 0x3FF;
  if (exponent == 0x1F) return sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

inline bool same(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

// A sum or product of two numbers of the compute type, rounded to it. For float the argument, in double, is exact or
// rounded so finely that rounding it again is harmless (53 >= 2 * 24 + 2 bits); for double it is the result.
template <class C>
double in_compute(double x) {
  return static_cast<double>(static_cast<C>(x));
}

template <class S>
S random_scalar() {
  const double x = pick(0, 9) ? uniform(-2, 2) : uniform(-1, 1) * std::ldexp(1.0, static_cast<int>(pick(-20, -10)));
  return Scalar<S>::store(static_cast<typename Scalar<S>::compute>(x));
}

}  // namespace n2n::tests
