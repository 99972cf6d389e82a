// Runs the CPU kernels on random shapes, layouts and options against plain loops in wider arithmetic. No Python: built
// with the address and undefined-behaviour sanitizers, which Python's own memory would blind.
//
//     fuzz_kernels ROUNDS SEED
//
// Every array is an allocation of exactly its size, so that one element too far is an error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gather_scale_block.h"
#include "kernels.h"

namespace {

using namespace n2n;

std::mt19937_64 rng;

i64 pick(i64 low, i64 high) { return std::uniform_int_distribution<i64>(low, high)(rng); }
bool flip() { return pick(0, 1) == 1; }
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(rng); }

void require(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
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
  explicit Exactly(i64 n) : data(new T[static_cast<std::size_t>(n)]), size(n) {
    for (i64 i = 0; i < n; ++i) poison(data[static_cast<std::size_t>(i)]);
  }
  T& operator[](i64 i) { return data[static_cast<std::size_t>(i)]; }
  i64 address() const { return reinterpret_cast<i64>(data.get()); }
  std::unique_ptr<T[]> data;
  i64 size;
};

template <class T>
bool is_poison(T x) {
  unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, &x, sizeof(T));
  for (const unsigned char b : bytes) {
    if (b != 0xFF) return false;
  }
  return true;
}

// The formats once more, by arithmetic instead of by bits.

struct Format {
  int precision;  // bits of the significand
  int smallest;   // exponent of the smallest normal number
  double largest;
};

template <class S>
Format format();
template <>
Format format<float>() { return {24, -126, std::numeric_limits<float>::max()}; }
template <>
Format format<double>() { return {53, -1022, std::numeric_limits<double>::max()}; }
template <>
Format format<bf16>() { return {8, -126, std::ldexp(255.0, 120)}; }
template <>
Format format<f16>() { return {11, -14, 65504.0}; }

// `x` to the nearest number of the format, to the even one of two.
double rounded(double x, const Format& f) {
  if (f.precision == 53 || x == 0 || !std::isfinite(x)) return x;
  int exponent;
  std::frexp(x, &exponent);
  const int unit = std::max(exponent - 1, f.smallest) - (f.precision - 1);
  const double r = std::ldexp(std::nearbyint(std::ldexp(x, -unit)), unit);
  return std::fabs(r) > f.largest ? std::copysign(std::numeric_limits<double>::infinity(), x) : r;
}

double value(float s) { return static_cast<double>(s); }
double value(double s) { return s; }
double value(bf16 s) {
  const double sign = s.bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (s.bits >> 7) & 0xFF;
  const double fraction = s.bits & 0x7F;
  if (exponent == 0xFF) return sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(128 + fraction, exponent - 134) : std::ldexp(fraction, -133));
}
double value(f16 s) {
  const double sign = s.bits & 0x8000 ? -1.0 : 1.0;
  const int exponent = (s.bits >> 10) & 0x1F;
  const double fraction = s.bits & 0x3FF;
  if (exponent == 0x1F) return sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

bool same(double a, double b) { return a == b && std::signbit(a) == std::signbit(b); }

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

// The noise once more, from the definition in philox.h.

u64 word_once_more(u64 seed, u32 tensor, u32 stream, u64 index) {
  u64 c[4] = {(index / 4) % (u64{1} << 32), (index / 4) >> 32, tensor, stream};
  u64 k[2] = {seed % (u64{1} << 32), seed >> 32};
  constexpr u64 kWord = 0xFFFFFFFF;
  for (int round = 0; round < 7; ++round) {
    const u64 p0 = 0xD2511F53 * c[0], p1 = 0xCD9E8D57 * c[2];
    const u64 next[4] = {(p1 >> 32) ^ c[1] ^ k[0], p1 & kWord, (p0 >> 32) ^ c[3] ^ k[1], p0 & kWord};
    std::copy(next, next + 4, c);
    k[0] = (k[0] + 0x9E3779B9) & kWord;
    k[1] = (k[1] + 0xBB67AE85) & kWord;
  }
  return c[index % 4];
}

i64 noise_once_more(u64 w) {
  const u64 sum = w % 256 + (w >> 8) % 256 + (w >> 16) % 256 + (w >> 24);
  const u64 hash = (w * 0x9E3779B1 % (u64{1} << 32)) >> 20;
  return 2 * static_cast<i64>(4096 * sum + hash) - (2 * 510 * 4096 + 4095);
}

i64 half_noise_once_more(u64 w, bool second) {
  const u64 half = second ? w / 65536 : w % 65536;
  const u64 hash = (w * (second ? 0x85EBCA77 : 0x9E3779B1) % (u64{1} << 32)) >> 20;
  return 2 * static_cast<i64>(4096 * (half % 256 + half / 256) + hash) - (2 * 255 * 4096 + 4095);
}

// Three extents with strides in a random order, some with gaps. Returns the elements that they span.
i64 random_strides(const i64 (&extent)[3], i64 (&stride)[3]) {
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

// The same for rows that are dense: [I, K] or [K, I] within each o.
i64 dense_strides(const i64 (&extent)[3], bool k_outer, i64 gap, i64 (&stride)[3]) {
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
  std::vector<i32> index[2], row_begin, row_list, seen, next, order, role;
  std::vector<C> total;
  double sigma = 0;
  Task task{};

  explicit Tensor(Noise noise, bool large) {
    for (int d = 0; d < 3; ++d) teacher[d] = student[d] = pick(1, large ? 24 : 5);
    if (large && flip()) teacher[1] = student[1] = pick(1, 300);
    for (int d = 0; d < 2; ++d) {
      if (flip()) continue;
      student[d] = teacher[d] + pick(0, 6);
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
  }

  i64 stage_bytes() const {
    const i64 vectors = (teacher[1] * teacher[2] + kVectorOf<S> - 1) / kVectorOf<S>;
    return task.rows && task.staged ? task.tile_rows * vectors * kVectorBytes : 0;
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
    sigma = pick(0, 3) ? uniform(0, 1e-6) : 0.0;
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
        i32 before = 0, replicas = 0;
        for (i64 u = 0; u < student[1]; ++u) {
          if (unit(1, u) != unit(1, i)) continue;
          sum += static_cast<double>(factor(1, u));
          before += u < i;
          ++replicas;
        }
        next.push_back(static_cast<i32>(j));
        order.push_back(before);
        role.push_back(replicas == 1 ? kAlone : replicas > 2 ? kOneOfMore : before == 0 ? kFirstOfTwo : kLastOfTwo);
        total.push_back(static_cast<C>(sum));
      }
      task.in_next = reinterpret_cast<i64>(next.data());
      task.in_order = reinterpret_cast<i64>(order.data());
      task.in_role = reinterpret_cast<i64>(role.data());
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
  for (const int n : visits) require(n == 1, "an element is visited " + std::to_string(n) + " times");
}

// Launched alone, one after the other, a task's tiles write each of its elements once: `run_tile(task)` launches one
// tile, and `at(o, i, k)` is an element. A tile beyond the first is had by moving the task's beginning before the
// launch's.
template <class T, class RunTile, class At>
void check_writes(T task, const RunTile& run_tile, const At& at) {
  const i64 row = task.I * task.K, elements = task.O * row;
  std::vector<int> writes(static_cast<std::size_t>(elements), 0);
  for (task.first_tile = 0; -task.first_tile * kTile < elements; --task.first_tile) {
    run_tile(task);
    for (i64 e = 0; e < elements; ++e) {
      auto& element = at(e / row, e % row / task.K, e % task.K);
      writes[static_cast<std::size_t>(e)] += !is_poison(element);
      poison(element);
    }
  }
  for (const int n : writes) require(n == 1, "an element is written " + std::to_string(n) + " times");
}

// Each tile alone: together they write every element once, and nothing but elements.
template <class S, class Run>
void check_tiles(Tensor<S>& t, const std::vector<Tile>& tiles, const Run& run) {
  std::vector<int> writes(static_cast<std::size_t>(t.dst->size), 0);
  for (const Tile& tile : tiles) {
    run(&tile, 1);
    for (i64 e = 0; e < t.dst->size; ++e) {
      writes[static_cast<std::size_t>(e)] += !is_poison((*t.dst)[e]);
      poison((*t.dst)[e]);
    }
  }
  i64 once = 0;
  for (const int n : writes) {
    require(n <= 1, "an element is written " + std::to_string(n) + " times");
    once += n;
  }
  require(once == t.elements(), "not every element is written");
}

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
    const GatherScaleArgs args{tasks.data(), first, n, seed, noise, stage_bytes, output_bytes, streaming};
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
          require(same(got, wanted), std::string("gather_scale") + (blocks ? " in blocks" : "") + ": dtype " + std::to_string(static_cast<int>(dtype)) + ", noise " +
                                         std::to_string(static_cast<int>(noise)) + ": got " + std::to_string(got) +
                                         ", expected " + std::to_string(wanted));
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
    for (i64 o = 0; o < extent[0]; ++o) {
      for (i64 i = 0; i < extent[1]; ++i) {
        for (i64 k = 0; k < extent[2]; ++k) {
          const double wanted = k == centre && i == o % (extent[0] / groups) ? 1.0 : 0.0;
          S& element = (*dst)[index(o, i, k)];
          require(same(value(element), wanted), std::string("identity_: a wrong value, ") + what);
          poison(element);
        }
      }
    }
    for (i64 e = 0; e < dst->size; ++e) require(is_poison((*dst)[e]), "identity_ wrote between the tensor's elements");
  }
};

// The GPU's block by hand, phase by phase and thread by thread; each thread's stores are looked at before the next's.
template <class S>
void identity_as_blocks(IdentityCase<S>& c) {
  using Tile = IdentityTile<S>;
  constexpr int kThreads = 256;
  std::vector<int> writes(static_cast<std::size_t>(c.dst->size), 0);
  Exactly<S> kept(c.dst->size);
  for (i64 tile = 0; tile < c.tiles(); ++tile) {
    auto shared = std::make_unique<typename Tile::Shared>();
    std::memset(shared.get(), 0xFF, sizeof *shared);
    for (int t = 0; t < kThreads; ++t) Tile::clear(c.task, tile, t, kThreads, *shared);
    for (int t = 0; t < kThreads; ++t) Tile::mark(c.task, tile, t, kThreads, *shared);
    for (int t = 0; t < kThreads; ++t) {
      Tile::store(c.task, tile, t, kThreads, *shared);
      if (c.dst->size > 2000 && t % 16 != 15) continue;  // in larger tensors 16 threads' at once: looking takes time
      for (i64 e = 0; e < c.dst->size; ++e) {
        if (is_poison((*c.dst)[e])) continue;
        ++writes[static_cast<std::size_t>(e)];
        kept[e] = (*c.dst)[e];
        poison((*c.dst)[e]);
      }
    }
  }
  i64 written = 0;
  for (i64 e = 0; e < c.dst->size; ++e) {
    require(writes[static_cast<std::size_t>(e)] <= 1, "identity_ writes an element twice");
    written += writes[static_cast<std::size_t>(e)];
    (*c.dst)[e] = kept[e];
  }
  require(written == c.task.elements, "identity_ leaves elements out");
  c.check("as blocks");
}

template <class S>
i64 fuzz_identity(DType dtype) {
  std::vector<std::unique_ptr<IdentityCase<S>>> cases;
  std::vector<IdentityTask> tasks;
  std::vector<i32> tile_task;
  i64 elements = 0;
  for (i64 n = pick(1, 4); n > 0; --n) {
    cases.push_back(std::make_unique<IdentityCase<S>>());
    IdentityCase<S>& c = *cases.back();
    identity_as_blocks(c);
    // Tile by tile: a tile beyond the first is had by moving the task's beginning before the launch's.
    std::vector<int> writes(static_cast<std::size_t>(c.dst->size), 0);
    for (i64 tile = 0; tile < c.tiles(); ++tile) {
      IdentityTask moved = c.task;
      moved.first_tile = -tile;
      const i32 first = 0;
      identity_cpu(dtype, {&moved, &first, 1}, 1);
      for (i64 e = 0; e < c.dst->size; ++e) {
        writes[static_cast<std::size_t>(e)] += !is_poison((*c.dst)[e]);
        poison((*c.dst)[e]);
      }
    }
    for (const int w : writes) require(w <= 1, "two tiles of identity_ write the same element");
    tasks.push_back(c.task);
    tasks.back().first_tile = static_cast<i64>(tile_task.size());
    tile_task.insert(tile_task.end(), static_cast<std::size_t>(c.tiles()), static_cast<i32>(tasks.size() - 1));
    elements += c.task.elements;
  }
  identity_cpu(dtype, {tasks.data(), tile_task.data(), static_cast<i64>(tile_task.size())},
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
  identity_cpu(dtype, {&task, tile_task.data(), tiles}, 2);
  for (i64 e = 0; e < task.elements; ++e) {
    const bool one = e % (columns + 1) == 0 && e / (columns + 1) < channels;
    require(same(value(dst[offset + e]), one ? 1.0 : 0.0), "identity_: a wrong value, past the caches");
  }
  require(is_poison(dst[offset ? 0 : task.elements]), "identity_ wrote beside the tensor, past the caches");
  return task.elements;
}

// A tensor [N, C, S] for channel_moments, and its definition in plain loops.
template <class S>
struct MomentsCase {
  i64 extent[3], stride[3];
  std::unique_ptr<Exactly<S>> src;
  i64 chunk = kLanes << pick(0, 6);
  i64 elements, chunks;
  std::vector<double> pivots;
  std::vector<Sums> partials;
  MomentsArgs args{};

  MomentsCase() {
    const bool large = pick(0, 9) == 0;
    extent[0] = pick(1, 6), extent[1] = pick(1, 4), extent[2] = large ? pick(1000, 5000) : pick(1, 90);
    if (pick(0, 2) == 0) extent[1] = 8 * pick(1, 9);  // for vectors along the channels
    if (pick(0, 2) == 0) extent[2] = 8 * pick(1, 20);
    i64 size, offset = 0;
    switch (pick(0, 2)) {
      case 0:  // contiguous
        stride[2] = 1, stride[1] = extent[2], stride[0] = extent[1] * extent[2];
        size = extent[0] * stride[0];
        break;
      case 1:  // channels_last
        stride[1] = 1, stride[2] = extent[1], stride[0] = extent[1] * extent[2];
        size = extent[0] * stride[0];
        break;
      default: size = random_strides(extent, stride);
    }
    if (pick(0, 2) == 0) offset = pick(1, 9);
    src = std::make_unique<Exactly<S>>(size + offset);
    for (i64 e = 0; e < src->size; ++e) (*src)[e] = random_scalar<S>();
    elements = extent[0] * extent[2];
    chunks = (elements + chunk - 1) / chunk;
    pivots.assign(static_cast<std::size_t>(extent[1]), -1.0);
    partials.assign(static_cast<std::size_t>(extent[1] * chunks), Sums{-1.0, -1.0});
    const i64 address = src->address() + offset * static_cast<i64>(sizeof(S));
    args = {address,   extent[0], extent[1], extent[2],     stride[0],      stride[1],
            stride[2], chunk,     chunks,    pivots.data(), partials.data()};
  }

  double at(i64 channel, i64 j) const {
    return value(reinterpret_cast<const S*>(
        args.src)[j / extent[2] * stride[0] + channel * stride[1] + j % extent[2] * stride[2]]);
  }

  // The order of summation once more, from its description.
  Sums expected(i64 channel, i64 index) const {
    std::vector<Sums> lanes(kLanes, Sums{0.0, 0.0});
    for (i64 j = index * chunk; j < std::min((index + 1) * chunk, elements); ++j) {
      Sums& lane = lanes[static_cast<std::size_t>(j % kLanes)];
      const double d = at(channel, j) - at(channel, 0);
      lane.d += d;
      lane.dd += d * d;
    }
    while (lanes.size() > 1) {
      std::vector<Sums> pairs;
      for (std::size_t i = 0; i < lanes.size(); i += 2) pairs.push_back(lanes[i] + lanes[i + 1]);
      lanes = pairs;
    }
    return lanes[0];
  }

  void check(const char* what) {
    for (i64 c = 0; c < extent[1]; ++c) {
      require(same(pivots[static_cast<std::size_t>(c)], at(c, 0)), std::string("channel_moments: the pivot, ") + what);
      for (i64 i = 0; i < chunks; ++i) {
        const Sums got = partials[static_cast<std::size_t>(c * chunks + i)], wanted = expected(c, i);
        require(same(got.d, wanted.d) && same(got.dd, wanted.dd), std::string("channel_moments: a wrong sum, ") + what);
      }
    }
    std::fill(pivots.begin(), pivots.end(), -1.0);
    std::fill(partials.begin(), partials.end(), Sums{-1.0, -1.0});
  }
};

// The GPU's blocks by hand, phase by phase and thread by thread.
template <class Block>
void moments_as_block(const MomentsArgs& args, bool wide, i64 block) {
  std::vector<Sums> shared(Block::kShared, Sums{-1.0, -1.0});
  for (int t = 0; t < kMomentsThreads; ++t) Block::accumulate(args, wide, block, t, shared.data());
  for (int width = 1; width < Block::kParts; width *= 2) {
    for (int t = 0; t < kMomentsThreads; ++t) Block::fold(width, t, shared.data());
  }
  for (int t = 0; t < kMomentsThreads; ++t) Block::write(args, block, t, shared.data());
}

template <class Block, class S>
void moments_as_blocks(MomentsCase<S>& c, const char* what) {
  for (i64 block = 0; block < Block::blocks(c.args); ++block) moments_as_block<Block>(c.args, true, block);
  c.check(what);
}

template <class S>
i64 fuzz_channel_moments(DType dtype) {
  MomentsCase<S> c;
  channel_moments_cpu(dtype, c.args, static_cast<int>(pick(1, 3)));
  c.check("on the CPU");
  const MomentsPlan plan = plan_of<S>(c.args);
  moments_as_blocks<MomentsBlock<S, 1, false>>(c, "along elements");
  moments_as_blocks<MomentsBlock<S, 1, true>>(c, "along channels");
  constexpr int kWide = kVectorOf<S>;
  if (plan.wide && plan.along_channels) moments_as_blocks<MomentsBlock<S, kWide, true>>(c, "wide along channels");
  if (plan.wide && !plan.along_channels) moments_as_blocks<MomentsBlock<S, kWide, false>>(c, "wide along elements");
  return c.elements * c.extent[1];
}

// tensor_moments: runs of any length at any address, sums and moments.
template <class S>
i64 fuzz_tensor_moments(DType dtype) {
  std::vector<std::unique_ptr<Exactly<S>>> runs;
  std::vector<TensorTask> tasks;
  std::vector<i32> block_task;
  i64 partials = 0, elements = 0;
  for (i64 n = pick(1, 5); n > 0; --n) {
    const i64 offset = pick(0, 3), size = pick(0, 5) ? pick(0, 300) : pick(3000, 40000), chunk = kLanes << pick(0, 5);
    runs.push_back(std::make_unique<Exactly<S>>(offset + size));
    for (i64 e = 0; e < runs.back()->size; ++e) (*runs.back())[e] = random_scalar<S>();
    const i64 chunks = (size + chunk - 1) / chunk, units = TensorBlock<S>::kUnits;
    tasks.push_back({runs.back()->address() + offset * static_cast<i64>(sizeof(S)), size, chunk, chunks, partials,
                     static_cast<i64>(block_task.size())});
    block_task.insert(block_task.end(), static_cast<std::size_t>((chunks + units - 1) / units),
                      static_cast<i32>(tasks.size() - 1));
    partials += chunks;
    elements += size;
  }
  const i64 count = static_cast<i64>(tasks.size());
  std::vector<double> pivots(tasks.size()), block_pivots(tasks.size()), mean(tasks.size()), var(tasks.size());
  std::vector<Sums> sums(static_cast<std::size_t>(partials)), block_sums(static_cast<std::size_t>(partials));
  TensorMomentsArgs args{tasks.data(), block_task.data(), static_cast<i64>(block_task.size()), pivots.data(),
                         sums.data()};
  tensor_moments_cpu(dtype, args, static_cast<int>(pick(1, 3)));
  args.pivots = block_pivots.data(), args.partials = block_sums.data();
  for (i64 block = 0; block < args.blocks; ++block) {
    const i64 task = block_task[static_cast<std::size_t>(block)];
    const MomentsArgs mine = args_of(args, task);
    moments_as_block<TensorBlock<S>>(mine, mine.src % kVectorBytes == 0,
                                     block - tasks[static_cast<std::size_t>(task)].first_block);
  }
  for (std::size_t i = 0; i < sums.size(); ++i) {
    require(same(sums[i].d, block_sums[i].d) && same(sums[i].dd, block_sums[i].dd), "tensor_moments: block and CPU");
  }
  const FinishArgs finish{count, 0, 0, tasks.data(), pivots.data(), sums.data(),
                          reinterpret_cast<i64>(mean.data()), reinterpret_cast<i64>(var.data()), false};
  finish_moments_cpu(finish);
  for (i64 i = 0; i < count; ++i) {
    const TensorTask& t = tasks[static_cast<std::size_t>(i)];
    const double got_mean = mean[static_cast<std::size_t>(i)], got_var = var[static_cast<std::size_t>(i)];
    if (t.elements == 0) {
      require(got_mean != got_mean && got_var != got_var, "tensor_moments: nothing has moments");
      continue;
    }
    long double sum = 0, squares = 0, size = 0;
    const S* const x = reinterpret_cast<const S*>(t.src);
    for (i64 e = 0; e < t.elements; ++e) sum += value(x[e]);
    const long double wanted = sum / t.elements;
    for (i64 e = 0; e < t.elements; ++e) {
      squares += (value(x[e]) - wanted) * (value(x[e]) - wanted);
      size = std::max<long double>(size, std::fabs(value(x[e])));
    }
    const long double bound = 100 * std::numeric_limits<double>::epsilon();
    require(std::fabs(got_mean - wanted) <= bound * size, "tensor_moments: a wrong mean");
    require(std::fabs(got_var - squares / t.elements) <= bound * size * size, "tensor_moments: a wrong variance");
    // The GPU's last step, by lanes.
    std::vector<Sums> lanes;
    for (int lane = 0; lane < kFoldLanes; ++lane) lanes.push_back(Finish::lane(finish, i, lane));
    for (int width = 1; width < kFoldLanes; width *= 2) {
      for (int lane = 0; lane < kFoldLanes; lane += 2 * width) {
        const auto at = static_cast<std::size_t>(lane);
        lanes[at] = lanes[at] + lanes[at + static_cast<std::size_t>(width)];
      }
    }
    Finish::write(finish, i, lanes[0]);
    require(same(got_mean, mean[static_cast<std::size_t>(i)]) && same(got_var, var[static_cast<std::size_t>(i)]),
            "tensor_moments: the last step by lanes and on the CPU");
  }
  return elements;
}

// Every 16-bit pattern both ways, and a sample of floats, ties among them, into both 16-bit types.
template <class S>
i64 check_format() {
  const Format f = format<S>();
  i64 checked = 0;
  for (u32 bits = 0; bits < 0x10000; ++bits) {
    const S s{static_cast<u16>(bits)};
    const float loaded = Scalar<S>::load(s);
    if (loaded != loaded) continue;
    require(same(static_cast<double>(loaded), value(s)), "load of " + std::to_string(bits));
    require(Scalar<S>::store(loaded).bits == s.bits, "store of what was loaded from " + std::to_string(bits));
    // The floats around the midpoint to the next number: two of them are its neighbours' own, one is a tie.
    const double middle = (value(s) + value(S{static_cast<u16>(bits + 1)})) / 2;
    for (const float x : {std::nextafterf(static_cast<float>(middle), -1e38f), static_cast<float>(middle),
                          std::nextafterf(static_cast<float>(middle), 1e38f)}) {
      if (!std::isfinite(x)) continue;
      require(same(value(Scalar<S>::store(x)), rounded(static_cast<double>(x), f)), "store of " + std::to_string(x));
      ++checked;
    }
  }
  for (u64 bits = 0; bits < (u64{1} << 32); bits += 9973) {
    const float x = bit_cast<float>(static_cast<u32>(bits));
    if (!std::isfinite(x)) continue;
    require(same(value(Scalar<S>::store(x)), rounded(static_cast<double>(x), f)), "store of " + std::to_string(x));
    ++checked;
  }
  return checked;
}

i64 check_noise() {
  for (i64 i = 0; i < 20000; ++i) {
    const u64 seed = rng() >> 1;
    const u32 tensor = static_cast<u32>(rng()), stream = static_cast<u32>(pick(1, 2));
    const i64 index = static_cast<i64>(rng() >> pick(2, 62));
    const NoiseKey key{static_cast<u32>(seed), static_cast<u32>(seed >> 32), tensor, stream};
    const u32 word = word_at(key, index);
    require(word == word_once_more(seed, tensor, stream, static_cast<u64>(index)), "the noise's words");
    require(noise_from_word(word) == noise_once_more(word), "the noise");
    for (const u32 half : {0u, 1u}) {
      require(half_noise_from_word(word, half) == half_noise_once_more(word, half == 1), "the noise of halves");
    }
  }
  return 20000;
}

template <class S>
void fuzz(DType dtype, i64 rounds) {
  i64 elements[4] = {0, stream_identity<S>(dtype), 0, 0};
  for (i64 round = 0; round < rounds; ++round) {
    elements[0] += fuzz_gather_scale<S>(dtype);
    elements[1] += fuzz_identity<S>(dtype);
    elements[2] += fuzz_channel_moments<S>(dtype);
    elements[3] += fuzz_tensor_moments<S>(dtype);
  }
  std::printf("dtype %d: %lld elements of gather_scale, %lld of identity_, %lld of channel_moments, %lld of "
              "tensor_moments\n",
              static_cast<int>(dtype), static_cast<long long>(elements[0]), static_cast<long long>(elements[1]),
              static_cast<long long>(elements[2]), static_cast<long long>(elements[3]));
}

}  // namespace

int main(int argc, char** argv) {
  require(argc == 3, "usage: fuzz_kernels ROUNDS SEED");
  const i64 rounds = std::atoll(argv[1]);
  rng.seed(static_cast<u64>(std::atoll(argv[2])));
  const i64 formats = check_format<bf16>() + check_format<f16>();
  std::printf("%lld roundings, %lld samples of noise\n", static_cast<long long>(formats),
              static_cast<long long>(check_noise()));
  fuzz<float>(DType::kFloat32, rounds);
  fuzz<double>(DType::kFloat64, rounds);
  fuzz<bf16>(DType::kBFloat16, rounds);
  fuzz<f16>(DType::kFloat16, rounds);
  std::puts("ok");
}
