// identity_ on random walks, and on tensors that are stored past the caches.
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "formats_once_more.h"
#include "fuzz.h"
#include "kernels.h"
#include "random_cases.h"

namespace n2n::tests {

namespace {

// A random dense or gapped walk for identity_, with the task that n2n_kernels/ops/identity/tasks.py would write.
template <class S>
struct IdentityCase {
  i64 groups = pick(1, 3);
  i64 extent[3] = {groups * pick(1, 8), pick(1, 10), pick(0, 3) ? pick(1, 9) : pick(60, 400)};
  i64 stride[3];
  i64 centre, offset = pick(0, 9);
  std::unique_ptr<Exactly<S>> dst;
  IdentityTask task{};

  IdentityCase() {
    if (pick(0, 3) == 0) extent[pick(0, 2)] = groups = 1;
    centre = pick(0, extent[2] - 1);
    int order[3] = {0, 1, 2};  // innermost first
    std::shuffle(order, order + 3, rng);
    const bool gaps = flip();
    i64 reach = gaps ? pick(1, 2) : 1, last = 0, step[3], walked = 1;
    for (const int d : order) {
      stride[d] = reach;
      step[d] = walked;
      last += (extent[d] - 1) * reach;
      reach = reach * extent[d] + (gaps ? pick(0, 3) : 0);
      walked *= extent[d];
    }
    dst = std::make_unique<Exactly<S>>(offset + last + 1);
    const i64 per_group = extent[0] / groups, channels = std::min(per_group, extent[1]);
    i64 outer_step = per_group * step[0], outer = groups, inner_step = step[0] + step[1], inner = channels;
    if (step[0] < step[1]) {
      std::swap(outer_step, inner_step);
      std::swap(outer, inner);
    }
    if (outer == 1) outer_step = walked + kVectorBytes;
    task.dst = dst->address() + offset * static_cast<i64>(sizeof(S));
    task.elements = walked;
    task.dense = stride[0] == step[0] && stride[1] == step[1] && stride[2] == step[2];
    task.lead = task.dense ? task.dst % kVectorBytes / static_cast<i64>(sizeof(S)) : 0;
    task.extent_1 = extent[order[1]], task.extent_2 = extent[order[0]];
    task.stride_0 = stride[order[2]], task.stride_1 = stride[order[1]], task.stride_2 = stride[order[0]];
    task.first = centre * step[2];
    task.outer_step = outer_step, task.inner_step = inner_step, task.inner = inner, task.ones = inner * outer;
  }

  i64 tiles() const { return (task.elements + task.lead + kIdentityTile<S> - 1) / kIdentityTile<S>; }
  i64 index(i64 o, i64 i, i64 k) const { return offset + o * stride[0] + i * stride[1] + k * stride[2]; }

  // Each element has its value, and what is between them, or before, is poison.
  void check(const char* what) {
    Exactly<S>& written = *dst;
    for (i64 o = 0; o < extent[0]; ++o) {
      for (i64 i = 0; i < extent[1]; ++i) {
        for (i64 k = 0; k < extent[2]; ++k) {
          const double wanted = k == centre && i == o % (extent[0] / groups) ? 1.0 : 0.0;
          S& element = written[index(o, i, k)];
          require(same(value(element), wanted), "identity_: a wrong value, ", what);
          poison(element);
        }
      }
    }
    for (i64 e = 0; e < written.size; ++e) require(is_poison(written[e]), "identity_ wrote between the tensor's elements");
  }
};

// The GPU's block by hand, phase by phase and thread by thread; each thread's stores are looked at before the next's.
template <class S>
void identity_as_blocks(IdentityCase<S>& c) {
  using Tile = IdentityTile<S>;
  constexpr int kThreads = 256;
  Exactly<S>& dst = *c.dst;
  Exactly<int> writes(dst.size);
  std::memset(writes.first, 0, static_cast<std::size_t>(dst.size) * sizeof(int));
  Exactly<S> kept(dst.size);
  for (i64 tile = 0; tile < c.tiles(); ++tile) {
    auto shared = std::make_unique<typename Tile::Shared>();
    std::memset(shared.get(), 0xFF, sizeof *shared);
    for (int t = 0; t < kThreads; ++t) Tile::clear(c.task, tile, t, kThreads, *shared);
    for (int t = 0; t < kThreads; ++t) Tile::mark(c.task, tile, t, kThreads, *shared);
    for (int t = 0; t < kThreads; ++t) {
      Tile::store(c.task, tile, t, kThreads, *shared);
      if (dst.size > 2000 && t % 16 != 15) continue;  // in larger tensors 16 threads' at once: looking takes time
      for (i64 e = 0; e < dst.size; ++e) {
        if (is_poison(dst[e])) continue;
        ++writes[e];
        kept[e] = dst[e];
        poison(dst[e]);
      }
    }
  }
  i64 written = 0;
  for (i64 e = 0; e < dst.size; ++e) {
    require(writes[e] <= 1, "identity_ writes an element twice");
    written += writes[e];
    dst[e] = kept[e];
  }
  require(written == c.task.elements, "identity_ leaves elements out");
  c.check("as blocks");
}

// The last tile of a tensor of gigabytes or terabytes, of which no other has memory.
template <class S>
void far_identity(DType dtype) {
  constexpr i64 kSlots = kIdentityTile<S>;
  const i64 tile = (i64{1} << pick(18, 27)) + pick(0, 1000), begin = tile * kSlots, count = kSlots - pick(0, 40);
  Exactly<S> memory(count + kVectorOf<S>);
  const i64 size = static_cast<i64>(sizeof(S)), skipped = (kVectorBytes - memory.address() % kVectorBytes) % kVectorBytes;
  IdentityTask task{};
  task.dst = memory.address() + skipped - begin * size;
  task.first_tile = -tile;
  task.elements = begin + count;
  task.dense = 1;
  task.first = pick(0, 50), task.inner_step = pick(1, 300), task.outer_step = task.elements + kVectorBytes;
  task.inner = task.ones = (task.elements - task.first + task.inner_step - 1) / task.inner_step;
  const i32 first = 0;
  identity_cpu(dtype, {&task, &first, 1}, flip(), 1);
  for (i64 e = 0; e < count; ++e) {
    const bool one = (begin + e - task.first) % task.inner_step == 0;
    require(same(value(memory[skipped / size + e]), one ? 1.0 : 0.0), "identity_: a wrong value, far away");
  }
}

}  // namespace

template <class S>
i64 fuzz_identity(DType dtype) {
  far_identity<S>(dtype);
  std::vector<std::unique_ptr<IdentityCase<S>>> cases;
  std::vector<IdentityTask> tasks;
  std::vector<i32> tile_task;
  i64 elements = 0;
  for (i64 n = pick(1, 4); n > 0; --n) {
    cases.push_back(std::make_unique<IdentityCase<S>>());
    IdentityCase<S>& c = *cases.back();
    identity_as_blocks(c);
    // Tile by tile: a tile beyond the first is had by moving the task's beginning before the launch's.
    Exactly<S>& dst = *c.dst;
    std::vector<int> writes(static_cast<std::size_t>(dst.size), 0);
    for (i64 tile = 0; tile < c.tiles(); ++tile) {
      IdentityTask moved = c.task;
      moved.first_tile = -tile;
      const i32 first = 0;
      identity_cpu(dtype, {&moved, &first, 1}, flip(), 1);
      for (i64 e = 0; e < dst.size; ++e) {
        if (is_poison(dst[e])) continue;
        ++writes[static_cast<std::size_t>(e)];
        poison(dst[e]);
      }
    }
    for (const int w : writes) require(w <= 1, "two tiles of identity_ write the same element");
    tasks.push_back(c.task);
    tasks.back().first_tile = static_cast<i64>(tile_task.size());
    tile_task.insert(tile_task.end(), static_cast<std::size_t>(c.tiles()), static_cast<i32>(tasks.size() - 1));
    elements += c.task.elements;
  }
  identity_cpu(dtype, {tasks.data(), tile_task.data(), static_cast<i64>(tile_task.size())}, flip(),
               static_cast<int>(pick(1, 3)));
  for (auto& c : cases) c->check("launched together");
  return elements;
}

// Large enough to be stored past the caches, with ones at every distance from each other.
template <class S>
i64 stream_identity(DType dtype) {
  const i64 side = pick(2900, 3100) * (sizeof(S) < 4 ? 2 : 1);
  const i64 columns = (i64{36} << 20) / side / static_cast<i64>(sizeof(S));
  Exactly<S> dst(side * columns + 1);
  IdentityTask task{};
  const i64 offset = pick(0, 1), channels = std::min(side, columns);
  task.dst = dst.address() + offset * static_cast<i64>(sizeof(S));
  task.elements = side * columns;
  task.dense = 1;
  task.lead = task.dst % kVectorBytes / static_cast<i64>(sizeof(S));
  task.extent_1 = columns, task.extent_2 = 1;
  task.stride_0 = columns, task.stride_1 = 1, task.stride_2 = 1;
  task.outer_step = task.elements + kVectorBytes, task.inner_step = columns + 1, task.inner = task.ones = channels;
  const i64 tiles = (task.elements + task.lead + kIdentityTile<S> - 1) / kIdentityTile<S>;
  const std::vector<i32> tile_task(static_cast<std::size_t>(tiles), 0);
  identity_cpu(dtype, {&task, tile_task.data(), tiles}, true, 2);
  // The ones; and with zeros in their places, nothing but zeros: each byte is what the element before has there.
  for (i64 one = 0; one < channels; ++one) {
    S& element = dst[offset + one * (columns + 1)];
    require(same(value(element), 1.0), "identity_: a one is missing, past the caches");
    element = one_or_zero<S>(false);
  }
  const S* const first = &dst[offset];
  const std::size_t others = static_cast<std::size_t>(task.elements - 1) * sizeof(S);
  require(same(value(*first), 0.0) && std::memcmp(first, first + 1, others) == 0,
          "identity_: a wrong value, past the caches");
  require(is_poison(dst[offset ? 0 : task.elements]), "identity_ wrote beside the tensor, past the caches");
  return task.elements;
}

template i64 fuzz_identity<float>(DType);
template i64 fuzz_identity<double>(DType);
template i64 fuzz_identity<bf16>(DType);
template i64 fuzz_identity<f16>(DType);
template i64 stream_identity<float>(DType);
template i64 stream_identity<double>(DType);
template i64 stream_identity<bf16>(DType);
template i64 stream_identity<f16>(DType);

}  // namespace n2n::tests
