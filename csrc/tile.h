// Tiles: how a launch over many tensors is cut into equal pieces of work, and how a tile is walked.
#pragma once

#include "common.h"

namespace n2n {

// Output elements per tile.
constexpr i64 kTile = 4096;

// A position in a task's output.
struct Cursor {
  i64 o;
  u32 i, k;  // a row of the output has fewer than 2^31 elements (the API checks)

  // To the next one. T is any task with O, I, K and k_outer.
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

// Where a tile begins. Found with one 64-bit division, so that its elements are found with 32-bit ones.
struct TileStart {
  i64 o;
  u32 rest;  // elements of row o that come before
  u32 row, inner;
  bool k_outer;

  template <class T>
  N2N_HD static TileStart of(const T& t, i64 element) {
    const i64 row = t.I * t.K;
    const i64 o = element / row;
    return TileStart{o, static_cast<u32>(element - o * row), static_cast<u32>(row),
                     static_cast<u32>(t.k_outer ? t.I : t.K), t.k_outer != 0};
  }

  // The position `e` (< kTile) elements on.
  N2N_HD Cursor at(u32 e) const {
    const u32 element = rest + e;  // below 2^31 + kTile
    const u32 rows = element / row;
    const u32 in_row = element - rows * row;
    const u32 outer = in_row / inner;
    const u32 within = in_row - outer * inner;
    return k_outer ? Cursor{o + rows, within, outer} : Cursor{o + rows, outer, within};
  }
};

}  // namespace n2n
