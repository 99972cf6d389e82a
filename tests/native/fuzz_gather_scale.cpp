// gather_scale on random tensors and tiles: on the CPU, and as the code of the CUDA kernel.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "fuzz.h"
#include "gather_scale_case.h"
#include "kernels.h"

namespace n2n::tests {

namespace {

// Both ways to walk a task's tiles visit each element exactly once, and the same one.
template <class T>
void check_walk(const T& t) {
  const i64 elements = t.O * t.I * t.K;
  std::vector<int> visits(static_cast<std::size_t>(elements), 0);
  for (i64 begin = 0; begin < elements; begin += kTile) {
    const TileStart start = TileStart::of(t, begin);
    Cursor stepped = start.at(0);
    for (i64 e = 0; e < std::min(kTile, elements - begin); ++e, stepped.step(t)) {
      const Cursor c = start.at(static_cast<u32>(e));
      require(c.o == stepped.o && c.i == stepped.i && c.k == stepped.k, "the two walks part");
      ++visits[static_cast<std::size_t>((c.o * t.I + c.i) * t.K + c.k)];
    }
  }
  for (const int n : visits) require(n == 1, "an element is visited ", n, " times");
}

// Each tile alone: together they write every element once, and nothing but elements.
template <class S, class Run>
void check_tiles(Tensor<S>& t, const std::vector<Tile>& tiles, const Run& run) {
  Exactly<S>& dst = *t.dst;
  std::vector<int> writes(static_cast<std::size_t>(dst.size), 0);
  for (const Tile& tile : tiles) {
    run(&tile, 1);
    for (i64 e = 0; e < dst.size; ++e) {
      if (is_poison(dst[e])) continue;
      ++writes[static_cast<std::size_t>(e)];
      poison(dst[e]);
    }
  }
  i64 once = 0;
  for (const int n : writes) {
    require(n <= 1, "an element is written ", n, " times");
    once += n;
  }
  require(once == t.elements(), "not every element is written");
}

}  // namespace

template <class S>
i64 fuzz_gather_scale(DType dtype) {
  const Noise noise = static_cast<Noise>(pick(0, 2));
  const u64 seed = rng() >> 1;
  std::vector<std::unique_ptr<Tensor<S>>> tensors;
  std::vector<Task> tasks;
  std::vector<Tile> tiles;
  i64 stage_bytes = 0, output_bytes = 0;
  const bool streaming = flip();
  const i64 count = pick(1, 4);
  // The CPU backend, or the CUDA kernel's code.
  const auto run = [&](bool blocks, const Tile* first, i64 n) {
    const GatherScaleArgs args{tasks.data(), first, n, seed, noise, stage_bytes, output_bytes, streaming, streaming};
    if (blocks) {
      gather_scale_blocks(dtype, args);
    } else {
      gather_scale_cpu(dtype, args, static_cast<int>(pick(1, 3)));
    }
  };
  for (i64 i = 0; i < count; ++i) {
    tensors.push_back(std::make_unique<Tensor<S>>(noise, pick(0, 7) == 0));
    Tensor<S>& t = *tensors.back();
    tasks.push_back(t.task);
    check_walk(t.task);
    stage_bytes = std::max(stage_bytes, t.stage_bytes());
    output_bytes += pick(0, 1) * (1 << 20);
    const std::vector<Tile> mine = t.tiles(static_cast<i32>(i));
    tiles.insert(tiles.end(), mine.begin(), mine.end());
    for (const bool blocks : {false, true}) {
      check_tiles(t, mine, [&](const Tile* tile, i64 n) { run(blocks, tile, n); });
    }
  }
  std::shuffle(tiles.begin(), tiles.end(), rng);
  const bool blocks = flip();
  run(blocks, tiles.data(), static_cast<i64>(tiles.size()));
  i64 elements = 0;
  for (auto& t : tensors) {
    for (i64 o = 0; o < t->student[0]; ++o) {
      for (i64 i = 0; i < t->student[1]; ++i) {
        for (i64 k = 0; k < t->student[2]; ++k) {
          const double got = value(t->at(o, i, k)), wanted = t->expected(seed, o, i, k);
          require(same(got, wanted), "gather_scale", blocks ? " in blocks" : "", ": dtype ", static_cast<int>(dtype),
                  ", noise ", static_cast<int>(noise), ": got ", got, ", expected ", wanted);
          poison(t->at(o, i, k));
          ++elements;
        }
      }
    }
    for (i64 e = 0; e < t->dst->size; ++e) {
      require(is_poison((*t->dst)[e]), "gather_scale wrote between the tensor's elements");
    }
  }
  return elements;
}

template i64 fuzz_gather_scale<float>(DType);
template i64 fuzz_gather_scale<double>(DType);
template i64 fuzz_gather_scale<bf16>(DType);
template i64 fuzz_gather_scale<f16>(DType);

}  // namespace n2n::tests
