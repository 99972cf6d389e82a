// A random tensor of a gather_scale, and what becomes of each of its elements, in plain loops.
#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "formats_once_more.h"
#include "gather_scale.h"
#include "noise_once_more.h"
#include "random_cases.h"
#include "vector.h"

namespace n2n::tests {

// Strides of rows that are dense, [I, K] or [K, I] within each o. Returns the elements that they span.
inline i64 dense_strides(const i64 (&extent)[3], bool k_outer, i64 gap, i64 (&stride)[3]) {
  stride[1] = k_outer ? 1 : extent[2];
  stride[2] = k_outer ? extent[1] : 1;
  stride[0] = extent[1] * extent[2] + gap;
  return (extent[0] - 1) * stride[0] + extent[1] * extent[2];
}

// One tensor of a launch, with everything that its task points to.
template <class S>
struct Tensor {
  using C = typename Scalar<S>::compute;

  i64 teacher[3], student[3], src_stride[3], dst_stride[3];
  i64 src_begin, dst_begin;  // elements of the allocation before the tensor: an address that is not aligned to a vector
  std::unique_ptr<Exactly<S>> src, dst;
  std::vector<i64> map[2];  // empty: the identity
  std::vector<C> scale[2];  // empty: none
  std::vector<i32> index[2], row_begin, row_list, seen, next, order, in_begin, in_list;
  std::vector<UnitEntry> in_units;
  std::vector<C> total;
  double sigma = 0;
  Task task{};

  explicit Tensor(Noise noise, bool large) {
    for (int d = 0; d < 3; ++d) teacher[d] = student[d] = pick(1, large ? 24 : 5);
    if (large && flip()) teacher[1] = student[1] = pick(1, 300);
    for (int d = 0; d < 2; ++d) {
      if (flip()) continue;
      student[d] = teacher[d] + pick(0, d == 1 && flip() ? teacher[d] : 6);
      for (i64 u = 0; u < student[d]; ++u) map[d].push_back(u < teacher[d] ? u : pick(0, teacher[d] - 1));
      if (flip()) std::shuffle(map[d].begin(), map[d].end(), rng);
      index[d].assign(map[d].begin(), map[d].end());
    }
    for (int d = 0; d < 2; ++d) {
      if (flip()) continue;
      for (i64 u = 0; u < student[d]; ++u) scale[d].push_back(static_cast<C>(uniform(-2, 2)));
    }
    task.k_outer = flip();
    task.rows = pick(0, 3) != 0;
    // Of every second dense tensor the rows lie at multiples of a vector.
    const i64 step = flip() ? kVectorOf<S> : 1;
    const auto gap = [&](i64 row) { return step > 1 ? (step - row % step) % step : flip() * pick(0, 3); };
    const i64 src_size = task.rows ? dense_strides(teacher, task.k_outer != 0, gap(teacher[1] * teacher[2]), src_stride)
                                   : random_strides(teacher, src_stride);
    const i64 dst_size = task.rows ? dense_strides(student, task.k_outer != 0, gap(student[1] * student[2]), dst_stride)
                                   : random_strides(student, dst_stride);
    src_begin = pick(0, 2) * step, dst_begin = pick(0, 2) * step;
    src = std::make_unique<Exactly<S>>(src_begin + src_size);
    dst = std::make_unique<Exactly<S>>(dst_begin + dst_size);
    for (i64 i = 0; i < src->size; ++i) (*src)[i] = random_scalar<S>();
    fill_task(noise);
    if (task.rows) cut();
  }

  i64 elements() const { return student[0] * student[1] * student[2]; }
  i64 unit(int d, i64 u) const { return map[d].empty() ? u : map[d][static_cast<std::size_t>(u)]; }
  S& at(i64 o, i64 i, i64 k) {
    return (*dst)[dst_begin + o * dst_stride[0] + i * dst_stride[1] + k * dst_stride[2]];
  }

  // Any way to cut the rows into tiles must do; so many bytes of stage are needed.
  void cut() {
    const i64 row = student[1] * student[2];
    const i64 inner = task.k_outer ? student[1] : student[2];
    for (task.shift = 31; (i64{1} << (task.shift - 31)) < inner; ++task.shift) {
    }
    task.magic = ((i64{1} << task.shift) + inner - 1) / inner;
    task.in_prefix = 0;
    while (task.in_prefix < student[1] && unit(1, task.in_prefix) == task.in_prefix) ++task.in_prefix;
    task.tile_rows = pick(1, teacher[0]);
    task.tile_columns = flip() ? row : std::min(row, pick(1, 6) * kVectorOf<S>);
    task.staged = flip();
    task.lanes_log2 = pick(0, 8);
    if (task.in_next) {
      // Cancelling noise: some whole rows beside the teacher's, or a window of one row.
      if (task.staged) task.tile_columns = row;
      if (!task.staged) task.tile_rows = 1;
      task.row_room = task.staged ? i64{1} << pick(0, 4) : 1;
      task.words = teacher[2] == 1 && flip();
    } else {
      task.row_room = task.staged && task.tile_columns == row && flip();
    }
  }

  i64 stage_bytes() const {
    const i64 vectors = (teacher[1] * teacher[2] + kVectorOf<S> - 1) / kVectorOf<S>;
    const i64 made = (task.tile_columns + kVectorOf<S> - 1) / kVectorOf<S> | 1;
    const i64 each = made + task.words * ((teacher[1] + 6) / 4 | 1);
    return task.rows ? (task.staged * task.tile_rows * vectors + task.row_room * each) * kVectorBytes : 0;
  }

  std::vector<Tile> tiles(i32 number) const {
    std::vector<Tile> made;
    if (!task.rows) {
      for (i64 first = 0; first * kTile < elements(); ++first) made.push_back({number, static_cast<i32>(first), 0, 0});
      return made;
    }
    for (i64 row = 0; row < teacher[0]; row += task.tile_rows) {
      for (i64 column = 0; column < student[1] * student[2]; column += task.tile_columns) {
        made.push_back({number, static_cast<i32>(row), static_cast<i32>(column), 0});
      }
    }
    return made;
  }

  void fill_task(Noise noise) {
    task.src = src->address() + src_begin * static_cast<i64>(sizeof(S));
    task.dst = dst->address() + dst_begin * static_cast<i64>(sizeof(S));
    task.O = student[0], task.I = student[1], task.K = student[2];
    task.src_O = teacher[0], task.src_I = teacher[1];
    task.src_stride_o = src_stride[0], task.src_stride_i = src_stride[1], task.src_stride_k = src_stride[2];
    task.dst_stride_o = dst_stride[0], task.dst_stride_i = dst_stride[1], task.dst_stride_k = dst_stride[2];
    task.tensor_id = pick(0, 0xFFFFFFFF);
    sigma = pick(0, 3) ? uniform(0, 3e-5) : 0.0;
    if (sigma != 0 || flip()) task.sigma = reinterpret_cast<i64>(&sigma);
    for (i64 u = 0; u < teacher[0]; ++u) {
      row_begin.push_back(static_cast<i32>(row_list.size()));
      for (i64 o = 0; o < student[0]; ++o) {
        if (unit(0, o) == u) row_list.push_back(static_cast<i32>(o));
      }
    }
    row_begin.push_back(static_cast<i32>(row_list.size()));
    if (!map[0].empty()) {
      task.row_begin = reinterpret_cast<i64>(row_begin.data());
      task.row_list = reinterpret_cast<i64>(row_list.data());
    }
    if (!map[0].empty()) task.out_map = reinterpret_cast<i64>(index[0].data());
    if (!map[1].empty()) task.in_map = reinterpret_cast<i64>(index[1].data());
    if (!scale[0].empty()) task.out_scale = reinterpret_cast<i64>(scale[0].data());
    if (!scale[1].empty()) task.in_scale = reinterpret_cast<i64>(scale[1].data());
    if (noise == Noise::kReplicas && !map[0].empty()) {
      for (i64 o = 0; o < student[0]; ++o) {
        seen.push_back(std::count(map[0].begin(), map[0].begin() + o, unit(0, o)) > 0);
      }
      task.out_seen = reinterpret_cast<i64>(seen.data());
    }
    if (noise == Noise::kCancelling && !map[1].empty()) {
      for (i64 i = 0; i < student[1]; ++i) {
        i64 j = i;
        double sum = 0;
        do j = (j + 1) % student[1];
        while (unit(1, j) != unit(1, i));
        i32 before = 0;
        for (i64 u = 0; u < student[1]; ++u) {
          if (unit(1, u) != unit(1, i)) continue;
          sum += static_cast<double>(factor(1, u));
          before += u < i;
        }
        next.push_back(static_cast<i32>(j));
        order.push_back(before);
        total.push_back(static_cast<C>(sum));
      }
      for (i64 u = 0; u <= teacher[1]; ++u) {
        in_begin.push_back(static_cast<i32>(in_list.size()));
        for (i64 i = 0; i < student[1]; ++i) {
          if (unit(1, i) == u) in_list.push_back(static_cast<i32>(i));
        }
      }
      for (i64 u = 0; u < teacher[1]; ++u) {
        const i32 begin = in_begin[static_cast<std::size_t>(u)], end = in_begin[static_cast<std::size_t>(u) + 1];
        in_units.push_back({static_cast<i32>(u), in_list[static_cast<std::size_t>(begin)],
                            in_list[static_cast<std::size_t>(end) - 1], end - begin});
      }
      std::shuffle(in_units.begin(), in_units.end(), rng);  // any order will do for those with as many copies
      std::sort(in_units.begin(), in_units.end(), [](auto& a, auto& b) { return a.copies > b.copies; });
      task.in_units = reinterpret_cast<i64>(in_units.data());
      task.in_begin = reinterpret_cast<i64>(in_begin.data());
      task.in_list = reinterpret_cast<i64>(in_list.data());
      task.in_next = reinterpret_cast<i64>(next.data());
      task.in_order = reinterpret_cast<i64>(order.data());
      task.in_total = reinterpret_cast<i64>(total.data());
    }
  }

  double weight(i64 o, i64 i, i64 k) const {
    return value((*src)[src_begin + unit(0, o) * src_stride[0] + unit(1, i) * src_stride[1] + k * src_stride[2]]);
  }

  C factor(int d, i64 u) const { return scale[d].empty() ? C(1) : scale[d][static_cast<std::size_t>(u)]; }

  double times(double x, C c) const { return in_compute<C>(x * static_cast<double>(c)); }

  u64 word_of(u64 seed, i64 stream, i64 element) const {
    return word_once_more(seed, static_cast<u32>(task.tensor_id), static_cast<u32>(stream), static_cast<u64>(element));
  }

  // Of replica number `m` of the unit of column i.
  double replica_noise(u64 seed, i64 o, i64 i, i64 k, i32 m) const {
    const i64 element = (o * teacher[1] + unit(1, i)) * student[2] + k;
    return static_cast<double>(half_noise_once_more(word_of(seed, 2 + m / 2, element), m % 2 == 1));
  }

  // share + z * sigma, each product and sum rounded.
  double plus_noise(double share, double z) const {
    const double delta = in_compute<C>(z * static_cast<double>(static_cast<C>(sigma)));
    return in_compute<C>(share + delta);
  }

  double expected(u64 seed, i64 o, i64 i, i64 k) const {
    const double w = weight(o, i, k);
    const auto share = [&](i64 column) { return times(times(w, factor(1, column)), factor(0, o)); };
    double x = share(i);
    if (sigma != 0 && !seen.empty() && seen[static_cast<std::size_t>(o)]) {
      const u64 word = word_of(seed, 1, (o * student[1] + i) * student[2] + k);
      x = plus_noise(x, static_cast<double>(noise_once_more(word)));
    }
    if (sigma != 0 && !next.empty()) {
      const auto perturbed = [&](i64 column) {
        const auto at = static_cast<std::size_t>(column);
        const double z = replica_noise(seed, o, column, k, order[at]);
        const double z_next = replica_noise(seed, o, column, k, order[static_cast<std::size_t>(next[at])]);
        return rounded(plus_noise(share(column), z - z_next), format<S>());
      };
      std::vector<i64> replicas;  // in the order of their columns
      for (i64 j = 0; j < student[1]; ++j) {
        if (unit(1, j) == unit(1, i)) replicas.push_back(j);
      }
      if (replicas.size() > 1 && i != replicas.back()) x = perturbed(i);
      if (replicas.size() > 1 && i == replicas.back()) {
        double others = 0;
        for (const i64 j : replicas) {
          if (j != i) others = in_compute<C>(others + perturbed(j));
        }
        const double whole = times(times(w, total[static_cast<std::size_t>(i)]), factor(0, o));
        x = in_compute<C>(whole - others);
      }
    }
    return rounded(x, format<S>());
  }
};

}  // namespace n2n::tests
