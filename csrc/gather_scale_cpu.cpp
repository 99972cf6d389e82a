// gather_scale on the CPU. The same tiles as on a GPU; within a tile, rows are made a piece at a time, in the first-level
// cache, by loops that the compiler vectorises, and then copied to each place where they belong.
#include <memory>

#include "dispatch.h"
#include "gather_scale.h"
#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "simd.h"

namespace n2n {
namespace {

// Elements made at a time.
constexpr i64 kPiece = 2048;

// Outputs of at least this size have large pages among them.
constexpr i64 kHintedBytes = i64{8} << 20;

// Rows of at least this size are worth writing past the caches.
constexpr i64 kStreamedBytes = 1024;

// x = (w * scale) * c_out, rounded. Whether there was a NaN among them, for which rounding is not enough.
template <class S>
N2N_SIMD bool scale_piece(S* out, const S* in, const typename Scalar<S>::compute* scale,
                            typename Scalar<S>::compute c_out, bool has_out, i64 n) {
  using C = typename Scalar<S>::compute;
  int nan = 0;
  const auto put = [&](i64 e, C x) {
    nan |= !(x == x);
    out[e] = Scalar<S>::store(x);
  };
  if (has_out) {
    for (i64 e = 0; e < n; ++e) put(e, Scalar<S>::load(in[e]) * scale[e] * c_out);
  } else {
    for (i64 e = 0; e < n; ++e) put(e, Scalar<S>::load(in[e]) * scale[e]);
  }
  return nan != 0;
}

// The words of indices 4 * block and on, four per block; `out` has room for a multiple of kBlocks blocks.
constexpr i64 kBlocks = 16;
N2N_SIMD void make_words(u32* out, NoiseKey key, u64 block, i64 blocks) {
  for (i64 b = 0; b < blocks; b += kBlocks) {
    u32 word[4][kBlocks];
    for (i64 l = 0; l < kBlocks; ++l) {
      const Philox p = words_of(key, block + static_cast<u64>(b + l));
      for (int q = 0; q < 4; ++q) word[q][l] = p.word[q];
    }
    for (i64 l = 0; l < kBlocks; ++l) {
      for (int q = 0; q < 4; ++q) out[4 * (b + l) + q] = word[q][l];
    }
  }
}

// Words of consecutive indices.
struct Words {
  std::vector<u32> buffer;
  const u32* at = nullptr;

  void make(const NoiseKey& key, i64 index, i64 n) {
    const i64 first = index / 4, blocks = (index + n + 3) / 4 - first;
    buffer.resize(static_cast<std::size_t>((blocks + kBlocks - 1) / kBlocks * kBlocks * 4));
    make_words(buffer.data(), key, static_cast<u64>(first), blocks);
    at = buffer.data() + index % 4;
  }
};

template <class S>
N2N_SIMD bool replica_piece(S* out, const S* in, const typename Scalar<S>::compute* scale,
                              typename Scalar<S>::compute c_out, const u32* words,
                              typename Scalar<S>::compute sigma, i64 n) {
  using C = typename Scalar<S>::compute;
  int nan = 0;
  for (i64 e = 0; e < n; ++e) {
    const C w = Scalar<S>::load(in[e]);
    const C share = w * scale[e] * c_out;
    const C noisy = share + static_cast<C>(noise_from_word(words[e])) * sigma;
    const C x = w - w == C(0) ? noisy : share;
    nan |= !(x == x);
    out[e] = Scalar<S>::store(x);
  }
  return nan != 0;
}

// What cancelling noise has to know of an element of a row: which half of which word its replica takes, and the next.
enum Flag : u32 { kNoisy = 1, kSecondHalf = 2, kNextSecondHalf = 4 };

template <class S>
N2N_SIMD bool cancelling_piece(S* out, const S* in, const typename Scalar<S>::compute* scale,
                                 typename Scalar<S>::compute c_out, const u32* words, const u32* next_words,
                                 const u32* flags, typename Scalar<S>::compute sigma, i64 n) {
  using C = typename Scalar<S>::compute;
  int nan = 0;
  for (i64 e = 0; e < n; ++e) {
    const i32 z = half_noise_from_word(words[e], flags[e] & kSecondHalf) -
                  half_noise_from_word(next_words[e], flags[e] & kNextSecondHalf);
    const C w = Scalar<S>::load(in[e]);
    const C share = w * scale[e] * c_out;
    const C noisy = share + static_cast<C>(z) * sigma;
    const C x = (flags[e] & kNoisy) && w - w == C(0) ? noisy : share;
    nan |= !(x == x);
    out[e] = Scalar<S>::store(x);
  }
  return nan != 0;
}

// Copies runs of K elements, run `from[i]` of the source to run i of the target; K is known to the compiler if not 0.
template <int K, class T>
void copy_runs(T* to, const T* from, const i32* runs, i64 count, i64 k) {
  const i64 n = K ? K : k;
  for (i64 i = 0; i < count; ++i) std::memcpy(to + i * n, from + runs[i] * n, static_cast<std::size_t>(n) * sizeof(T));
}

template <class T>
void copy_runs(T* to, const T* from, const i32* runs, i64 count, i64 k) {
  switch (k) {
    case 1: return copy_runs<1>(to, from, runs, count, k);
    case 3: return copy_runs<3>(to, from, runs, count, k);
    case 5: return copy_runs<5>(to, from, runs, count, k);
    case 7: return copy_runs<7>(to, from, runs, count, k);
    case 9: return copy_runs<9>(to, from, runs, count, k);
    case 25: return copy_runs<25>(to, from, runs, count, k);
    case 49: return copy_runs<49>(to, from, runs, count, k);
    default: return copy_runs<0>(to, from, runs, count, k);
  }
}

// Elements [begin, end) of a row of the student, gathered from a row of the teacher's extents (a weight's or its noise's).
// Returns where they are: in `buffer`, or in the row itself where the map is the identity.
template <class T>
const T* gather_piece(const Task& t, const T* row, i64 begin, i64 end, T* buffer) {
  if (!t.in_map || (!t.k_outer && end <= t.in_prefix * t.K)) return row + begin;
  const auto* map = reinterpret_cast<const i32*>(t.in_map);
  const i64 inner = t.k_outer ? t.I : t.K;
  T* to = buffer;
  for (i64 e = begin; e < end;) {
    const i64 outer = e / inner, within = e - outer * inner;
    if (t.k_outer) {
      const i64 n = std::min(inner - within, end - e);
      copy_runs<1>(to, row + outer * t.src_I, map + within, n, 1);
      e += n, to += n;
    } else if (within != 0 || end - e < inner) {
      const i64 n = std::min(inner - within, end - e);
      std::memcpy(to, row + map[outer] * inner + within, static_cast<std::size_t>(n) * sizeof(T));
      e += n, to += n;
    } else {
      const i64 runs = (end - e) / inner;
      copy_runs(to, row, map + outer, runs, inner);
      e += runs * inner, to += runs * inner;
    }
  }
  return buffer;
}

// One thread's work on tiles.
template <class S, Noise N>
class Worker {
  using C = typename Scalar<S>::compute;

 public:
  explicit Worker(const GatherScaleArgs& args) : args_(args) {}
  ~Worker() { finish_streaming(); }

  void run(i64 number) {
    const Tile& tile = args_.tiles[number];
    const Task& t = args_.tasks[tile.task];
    const auto element = Element<S>::template of<N>(t, args_.seed);
    if (!t.rows) return elements(element, tile);
    const i64 begin = tile.column, end = std::min(begin + t.tile_columns, t.I * t.K);
    const bool whole = end - begin == t.I * t.K;
    prepare(element, tile, begin, end);
    for (i64 row = tile.first; row < std::min(tile.first + t.tile_rows, t.src_O); ++row) {
      const i32 self = static_cast<i32>(row);
      const i32* outputs = t.row_begin ? &reinterpret_cast<const i32*>(t.row_list)[table<i32>(t.row_begin, row)] : &self;
      const i64 count = t.row_begin ? table<i32>(t.row_begin, row + 1) - table<i32>(t.row_begin, row) : 1;
      if (N == Noise::kCancelling && element.noisy && t.in_next) {
        // A unit's last replica needs the others, which another tile may have.
        if (whole) {
          cancelling_rows(element, row, outputs, count);
        } else {
          one_by_one(element, begin, end, outputs, count);
        }
      } else {
        rows(element, row, begin, end, outputs, count, whole);
      }
    }
  }

 private:
  S* target(const Task& t, i64 o, i64 e) const { return reinterpret_cast<S*>(t.dst) + o * t.dst_stride_o + e; }

  // A piece goes to its place, past the caches if the launch is large.
  void put(S* to, const S* from, i64 n, i64 row) const {
    const std::size_t bytes = static_cast<std::size_t>(n) * sizeof(S);
    if (args_.streaming && row * static_cast<i64>(sizeof(S)) >= kStreamedBytes) {
      stream_copy(to, from, bytes);
    } else {
      std::memcpy(to, from, bytes);
    }
  }

  // The input scale of each element of the tile's columns; tiles of one task come one after the other.
  void prepare(const Element<S>& element, const Tile& tile, i64 begin, i64 end) {
    if (tile.task == task_ && tile.column == column_) return;
    task_ = tile.task, column_ = tile.column;
    const Task& t = element.t;
    if (element.plain) return;
    scale_.resize(static_cast<std::size_t>(end - begin));
    spread(t, begin, end, scale_.data(), [&](i64 i) { return element.scale_in(i); });
    if (N != Noise::kCancelling || !element.noisy || !t.in_next) return;
    flags_.resize(scale_.size());
    stream_.assign(static_cast<std::size_t>(t.I), 0);
    next_stream_.assign(static_cast<std::size_t>(t.I), 0);
    streams_ = 1;
    for (i64 i = 0; i < t.I; ++i) {
      const auto at = static_cast<std::size_t>(i);
      stream_[at] = table<i32>(t.in_order, i) / 2;
      next_stream_[at] = table<i32>(t.in_order, table<i32>(t.in_next, i)) / 2;
      streams_ = std::max(streams_, stream_[at] + 1);
    }
    spread(t, begin, end, flags_.data(), [&](i64 i) {
      const i32 order = table<i32>(t.in_order, i), next = table<i32>(t.in_order, table<i32>(t.in_next, i));
      return (table<i32>(t.in_role, i) == kAlone ? 0u : kNoisy) | ((order & 1) ? kSecondHalf : 0u) |
             ((next & 1) ? kNextSecondHalf : 0u);
    });
  }

  // A value per column becomes a value per element of the row.
  template <class T, class Value>
  static void spread(const Task& t, i64 begin, i64 end, T* to, const Value& value) {
    const i64 inner = t.k_outer ? t.I : t.K;
    i64 outer = begin / inner, within = begin % inner;
    for (i64 e = begin; e < end; ++outer, within = 0) {
      if (t.k_outer) {
        for (; within < inner && e < end; ++within, ++e) *to++ = value(within);
      } else {
        const T v = value(outer);
        for (; within < inner && e < end; ++within, ++e) *to++ = v;
      }
    }
  }

  // Where the vectorised loop met a NaN, once more with care.
  void with_care(S* out, const S* in, const C* scale, C c_out, i64 n) const {
    for (i64 e = 0; e < n; ++e) out[e] = finish<S>(in[e], Scalar<S>::load(in[e]) * scale[e] * c_out);
  }

  void rows(const Element<S>& element, i64 row, i64 begin, i64 end, const i32* outputs, i64 count, bool whole) {
    const Task& t = element.t;
    const S* const source = reinterpret_cast<const S*>(t.src) + row * t.src_stride_o;
    const bool same = !t.out_scale;  // for every replica that has no noise
    for (i64 at = begin; at < end; at += kPiece) {
      const i64 n = std::min(kPiece, end - at);
      const S* const in = gather_piece(t, source, at, at + n, gathered_);
      const S* made = element.plain ? in : nullptr;
      for (i64 r = 0; r < count; ++r) {
        const i64 o = outputs[r];
        if (N == Noise::kReplicas && element.noisy && t.out_seen && table<i32>(t.out_seen, o)) {
          if (t.k_outer && !whole) {
            one_by_one(element, at, at + n, &outputs[r], 1);
          } else {
            replica(element, in, at, n, o);
            put(target(t, o, at), noisy_, n, end - begin);
          }
          continue;
        }
        if (!made || !same) made = scaled(element, in, at - begin, n, o);
        put(target(t, o, at), made, n, end - begin);
      }
    }
  }

  const S* scaled(const Element<S>& element, const S* in, i64 at, i64 n, i64 o) {
    const Task& t = element.t;
    const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    const C* const scale = scale_.data() + at;
    if (scale_piece<S>(made_, in, scale, c_out, t.out_scale != 0, n)) with_care(made_, in, scale, c_out, n);
    return made_;
  }

  void replica(const Element<S>& element, const S* in, i64 at, i64 n, i64 o) {
    const Task& t = element.t;
    const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    const u32* words;
    if (t.k_outer) {
      // The noise is counted in the contiguous order.
      if (at == 0) words_.make(element.key, o * t.I * t.K, t.I * t.K);
      ordered_.resize(kPiece);
      for (i64 e = 0; e < n; ++e) {
        const i64 k = (at + e) / t.I, i = (at + e) % t.I;
        ordered_[static_cast<std::size_t>(e)] = words_.at[i * t.K + k];
      }
      words = ordered_.data();
    } else {
      words_.make(element.key, o * t.I * t.K + at, n);
      words = words_.at;
    }
    const C* const scale = scale_.data() + at - column_;
    if (!replica_piece<S>(noisy_, in, scale, c_out, words, element.sigma, n)) return;
    for (i64 e = 0; e < n; ++e) {
      const C w = Scalar<S>::load(in[e]), share = w * scale[e] * c_out;
      noisy_[e] = is_finite(w) ? element.on_replica(in[e], share, words[e]) : finish<S>(in[e], share);
    }
  }

  // Whole rows with cancelling noise: first every element as if it were not its unit's last replica, then those.
  void cancelling_rows(const Element<S>& element, i64 row, const i32* outputs, i64 count) {
    const Task& t = element.t;
    const i64 length = t.I * t.K, teacher_length = t.src_I * t.K;
    const auto size = static_cast<std::size_t>(length);
    whole_in_.resize(size), whole_out_.resize(size), wa_.resize(size), wb_.resize(size);
    const S* const source = reinterpret_cast<const S*>(t.src) + row * t.src_stride_o;
    const S* const in = gather_piece(t, source, 0, length, whole_in_.data());
    if (stream_words_.size() < static_cast<std::size_t>(streams_)) {
      stream_words_.resize(static_cast<std::size_t>(streams_));
    }
    for (i64 r = 0; r < count; ++r) {
      const i64 o = outputs[r];
      const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
      for (i32 m = 0; m < streams_; ++m) {
        NoiseKey key = element.key;
        key.stream += static_cast<u32>(m);
        stream_words_[static_cast<std::size_t>(m)].make(key, o * teacher_length, teacher_length);
      }
      gather_words(t, stream_, wa_.data());
      gather_words(t, next_stream_, wb_.data());
      S* const out = whole_out_.data();
      if (cancelling_piece<S>(out, in, scale_.data(), c_out, wa_.data(), wb_.data(), flags_.data(), element.sigma,
                              length)) {
        one_by_one(element, 0, length, &outputs[r], 1);
        continue;
      }
      for (i64 i = 0; i < t.I; ++i) last_replica(element, in, out, o, i);
      put(target(t, o, 0), out, length, length);
    }
  }

  void gather_words(const Task& t, const std::vector<i32>& streams, u32* to) const {
    if (!t.k_outer && streams_ == 1) {
      gather_piece(t, stream_words_[0].at, 0, t.I * t.K, to);
      return;
    }
    const i64 step = t.k_outer ? t.I : 1;
    for (i64 i = 0; i < t.I; ++i) {
      const i64 unit = t.in_map ? table<i32>(t.in_map, i) : i;
      const u32* from = stream_words_[static_cast<std::size_t>(streams[static_cast<std::size_t>(i)])].at + unit * t.K;
      u32* at = to + (t.k_outer ? i : i * t.K);
      for (i64 k = 0; k < t.K; ++k) at[k * step] = from[k];
    }
  }

  void last_replica(const Element<S>& element, const S* in, S* out, i64 o, i64 i) {
    const Task& t = element.t;
    const i64 first = table<i32>(t.in_next, i);
    if (first >= i) return;
    const i64 step = t.k_outer ? t.I : 1, per_column = t.k_outer ? 1 : t.K;
    others_.assign(static_cast<std::size_t>(t.K), C(0));
    C* const others = others_.data();
    for (i64 j = first; j != i; j = table<i32>(t.in_next, j)) {
      const S* const other = out + j * per_column;
      for (i64 k = 0; k < t.K; ++k) others[k] = others[k] + Scalar<S>::load(other[k * step]);
    }
    const C total = table<C>(t.in_total, i), c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    for (i64 k = 0; k < t.K; ++k) {
      const i64 e = i * per_column + k * step;
      const C w = Scalar<S>::load(in[e]);
      if (is_finite(w)) out[e] = finish<S>(in[e], w * total * c_out - others[k]);
    }
  }

  // The definition, for what the loops above do not do.
  void one_by_one(const Element<S>& element, i64 begin, i64 end, const i32* outputs, i64 count) const {
    const Task& t = element.t;
    for (i64 r = 0; r < count; ++r) {
      for (i64 e = begin; e < end; ++e) {
        const i64 inner = t.k_outer ? t.I : t.K;
        const u32 outer = static_cast<u32>(e / inner), within = static_cast<u32>(e % inner);
        const Cursor c = t.k_outer ? Cursor{outputs[r], within, outer} : Cursor{outputs[r], outer, within};
        *target(t, outputs[r], e) = element.template compute<N>(c);
      }
    }
  }

  void elements(const Element<S>& element, const Tile& tile) const {
    const Task& t = element.t;
    const i64 begin = tile.first * kTile, end = std::min(begin + kTile, t.O * t.I * t.K);
    if (N == Noise::kNone && t.I * t.K == 1) return vector(element, begin, end);
    Cursor c = TileStart::of(t, begin).at(0);
    for (i64 e = begin; e < end; ++e, c.step(t)) *element.destination(c) = element.template compute<N>(c);
  }

  // A bias or a norm's parameter: no columns to find.
  void vector(const Element<S>& element, i64 begin, i64 end) const {
    const Task& t = element.t;
    const S* const src = reinterpret_cast<const S*>(t.src);
    S* const dst = reinterpret_cast<S*>(t.dst);
    if (element.plain && t.out_map && t.src_stride_o == 1 && t.dst_stride_o == 1) {
      return copy_runs<1>(dst + begin, src, reinterpret_cast<const i32*>(t.out_map) + begin, end - begin, 1);
    }
    for (i64 o = begin; o < end; ++o) {
      const S s = src[element.teacher_row(o) * t.src_stride_o];
      dst[o * t.dst_stride_o] = element.plain ? s : finish<S>(s, element.share(Scalar<S>::load(s), o, 0));
    }
  }

  const GatherScaleArgs& args_;
  i32 task_ = -1, column_ = -1;
  i32 streams_ = 1;
  std::vector<C> scale_;                         // of each element of the tile's columns
  std::vector<u32> flags_, ordered_, wa_, wb_;   // likewise, for noise
  std::vector<i32> stream_, next_stream_;        // of each column
  std::vector<Words> stream_words_;
  std::vector<S> whole_in_, whole_out_;
  std::vector<C> others_;
  Words words_;
  alignas(64) S gathered_[kPiece];
  alignas(64) S made_[kPiece];
  alignas(64) S noisy_[kPiece];
};

// Before outputs are first written: those of dense rows, which are one piece of memory.
template <class S>
void hint_outputs(const GatherScaleArgs& args) {
  i32 last = -1;
  for (i64 number = 0; number < args.count; ++number) {
    const i32 task = args.tiles[number].task;
    if (task == last) continue;
    last = task;
    const Task& t = args.tasks[task];
    if (t.rows && t.dst_stride_o == t.I * t.K) {
      hint_large_pages(t.dst, t.O * t.dst_stride_o * static_cast<i64>(sizeof(S)));
    }
  }
}

template <class S, Noise N>
void run(const GatherScaleArgs& args, int threads) {
  if (args.output_bytes >= kHintedBytes) hint_outputs<S>(args);
  parallel_for(
      args.count, args.output_bytes, threads, [&] { return std::make_unique<Worker<S, N>>(args); },
      [](std::unique_ptr<Worker<S, N>>& worker, i64 tile) { worker->run(tile); });
}

}  // namespace

void gather_scale_cpu(DType dtype, const GatherScaleArgs& args, int threads) {
  dispatch(dtype, [&](auto type) {
    using S = typename decltype(type)::storage;
    switch (args.noise) {
      case Noise::kNone: return run<S, Noise::kNone>(args, threads);
      case Noise::kReplicas: return run<S, Noise::kReplicas>(args, threads);
      case Noise::kCancelling: return run<S, Noise::kCancelling>(args, threads);
    }
  });
}

}  // namespace n2n
