// Copies of many short runs of elements, for the CPU backend: columns of a row, each of a kernel's elements.
#pragma once

#include <type_traits>

#include "common.h"

namespace n2n {

// Calls body(length): an integral constant for the kernels that networks have, so that the compiler knows it, and 0 for
// all others.
template <class Body>
void with_length(i64 k, const Body& body) {
  switch (k) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 5: return body(std::integral_constant<int, 5>{});
    case 7: return body(std::integral_constant<int, 7>{});
    case 9: return body(std::integral_constant<int, 9>{});
    case 25: return body(std::integral_constant<int, 25>{});
    case 49: return body(std::integral_constant<int, 49>{});
    default: return body(std::integral_constant<int, 0>{});
  }
}

// `Length`, if not 0, is what the compiler knows of k.
template <int Length, class T>
void gather_runs_of(T* to, const T* from, const i32* at, i64 step, i64 count, i64 k) {
  const i64 n = Length ? Length : k;
  for (i64 i = 0; i < count; ++i) std::memcpy(to + i * n, from + at[i] * step, static_cast<std::size_t>(n) * sizeof(T));
}

template <int Length, class T>
void scatter_runs_of(T* to, const i32* at, i64 step, const T* from, i64 count, i64 k) {
  const i64 n = Length ? Length : k;
  for (i64 i = 0; i < count; ++i) std::memcpy(to + at[i] * step, from + i * n, static_cast<std::size_t>(n) * sizeof(T));
}

template <int Length, class T>
void gather_apart_of(T* to, const T* from, const i32* at, i64 apart, i64 count, i64 k) {
  const i64 n = Length ? Length : k;
  for (i64 i = 0; i < count; ++i) {
    for (i64 j = 0; j < n; ++j) to[i * n + j] = from[at[i] + j * apart];
  }
}

template <int Length, class T>
void scatter_apart_of(T* to, const i32* at, i64 apart, const T* from, i64 count, i64 k) {
  const i64 n = Length ? Length : k;
  for (i64 i = 0; i < count; ++i) {
    for (i64 j = 0; j < n; ++j) to[at[i] + j * apart] = from[i * n + j];
  }
}

// to[i, :] = from[at[i] * step...], runs of k elements.
template <class T>
void gather_runs(T* to, const T* from, const i32* at, i64 step, i64 count, i64 k) {
  with_length(k, [=](auto length) { gather_runs_of<length>(to, from, at, step, count, k); });
}

// to[at[i] * step...] = from[i, :], runs of k elements.
template <class T>
void scatter_runs(T* to, const i32* at, i64 step, const T* from, i64 count, i64 k) {
  with_length(k, [=](auto length) { scatter_runs_of<length>(to, at, step, from, count, k); });
}

// The same where the elements of a run lie `apart`: to[i, j] = from[at[i] + j * apart].
template <class T>
void gather_apart(T* to, const T* from, const i32* at, i64 apart, i64 count, i64 k) {
  with_length(k, [=](auto length) { gather_apart_of<length>(to, from, at, apart, count, k); });
}

template <class T>
void scatter_apart(T* to, const i32* at, i64 apart, const T* from, i64 count, i64 k) {
  with_length(k, [=](auto length) { scatter_apart_of<length>(to, at, apart, from, count, k); });
}

}  // namespace n2n
