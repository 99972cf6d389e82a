// What has to be looked at before elements are worked on together.
#pragma once

#include "common.h"

namespace n2n {

// A NaN asks for the care of `finish`.
template <class C, int V>
N2N_HD bool all_numbers(const C (&x)[V]) {
  bool numbers = true;
  N2N_UNROLL
  for (int j = 0; j < V; ++j) numbers = numbers && x[j] == x[j];
  return numbers;
}

template <class C, int V>
N2N_HD bool all_finite(const C (&w)[V]) {
  bool finite = true;
  N2N_UNROLL
  for (int j = 0; j < V; ++j) finite = finite && is_finite(w[j]);
  return finite;
}

}  // namespace n2n
