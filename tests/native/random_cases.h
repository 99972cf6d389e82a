// What the fuzzed operations share: random numbers, arrays of exactly their size, and strides.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>

#include "common.h"

namespace n2n::tests {

inline std::mt19937_64 rng;

inline i64 pick(i64 low, i64 high) { return std::uniform_int_distribution<i64>(low, high)(rng); }
inline bool flip() { return pick(0, 1) == 1; }
inline double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(rng); }

// Ends the program with `what`, one after the other, if not `ok`: put into words only then, since most of the program is
// such questions.
template <class... What>
void require(bool ok, const What&... what) {
  if (ok) return;
  std::cerr << "FAILED: ";
  (std::cerr << ... << what) << '\n';
  std::exit(1);
}

// Poison is a NaN in every format, which no kernel makes of the numbers here.
template <class T>
void poison(T& x) {
  std::memset(static_cast<void*>(&x), 0xFF, sizeof(T));
}

// An array of exactly `size` elements, each byte of it poison.
template <class T>
struct Exactly {
  explicit Exactly(i64 n) : data(new T[static_cast<std::size_t>(n)]), first(data.get()), size(n) {
    std::memset(static_cast<void*>(first), 0xFF, static_cast<std::size_t>(n) * sizeof(T));
  }
  T& operator[](i64 i) { return first[i]; }
  i64 address() const { return reinterpret_cast<i64>(first); }
  std::unique_ptr<T[]> data;
  T* first;  // without optimisation a smart pointer is several calls
  i64 size;
};

template <class T>
bool is_poison(const T& x) {
  u64 bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  return bits == ~u64{0} >> (64 - 8 * sizeof(T));
}

// Three extents with strides in a random order, some with gaps. Returns the elements that they span.
inline i64 random_strides(const i64 (&extent)[3], i64 (&stride)[3]) {
  int order[3] = {0, 1, 2};
  std::shuffle(order, order + 3, rng);
  i64 reach = pick(1, 2);
  i64 last = 0;
  for (const int d : order) {
    stride[d] = reach;
    last += (extent[d] - 1) * reach;
    reach = reach * extent[d] + (flip() ? 0 : pick(0, 3));
  }
  return last + 1;
}

}  // namespace n2n::tests
