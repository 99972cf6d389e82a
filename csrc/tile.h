// Tiles: how a launch over many tensors is cut into equal pieces of work, and how a tile is walked.
#pragma once

#include "common.h"

namespace n2n {

// Output elements per tile.
constexpr i64 kTile = 4096;

// A position in a task's output, found by division once and then stepped.
struct Cursor {
  i64 o;
  u32 i, k;  // a row of the output has fewer than 2^31 elements (the API checks)

  // T is any task with O, I, K and k_outer.
  template <class T>
  N2N_HD static Cursor at(const T& t, i64 element) {
    const i64 row = t.I * t.K;
    Cursor c;
    c.o = element / row;
    const u32 rest = static_cast<u32>(element - c.o * row);
    const u32 inner = static_cast<u32>(t.k_outer ? t.I : t.K);
    const u32 outer = rest / inner;
    const u32 within = rest - outer * inner;
    c.i = t.k_outer ? within : outer;
    c.k = t.k_outer ? outer : within;
    return c;
  }

  template <class T>
  N2N_HD void step(const T& t) {
    u32& inner = t.k_outer ? i : k;
    u32& outer = t.k_outer ? k : i;
    if (++inner < static_cast<u32>(t.k_outer ? t.I : t.K)) return;
    inner = 0;
    if (++outer < static_cast<u32>(t.k_outer ? t.K : t.I)) return;
    outer = 0;
    ++o;
  }
};

}  // namespace n2n
