// gather_scale on the CPU. The same tiles as on a GPU; within a tile, rows are made a piece at a time, in the first-level
// cache, by loops that the compiler vectorises, and then copied to each place where they belong.
#include <memory>

#include "cancelling_rows.h"
#include "dispatch.h"
#include "gather_scale.h"
#include "kernels.h"
#include "pages.h"
#include "parallel.h"
#include "runs.h"
#include "simd.h"
#include "words.h"

namespace n2n {
namespace {

// Elements made at a time.
constexpr i64 kPiece = 2048;

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
      gather_runs(to, row + outer * t.src_I, map + within, 1, n, 1);
      e += n, to += n;
    } else if (within != 0 || end - e < inner) {
      const i64 n = std::min(inner - within, end - e);
      std::memcpy(to, row + map[outer] * inner + within, static_cast<std::size_t>(n) * sizeof(T));
      e += n, to += n;
    } else {
      const i64 runs = (end - e) / inner;
      gather_runs(to, row, map + outer, inner, runs, inner);
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
    const bool perturbed = N == Noise::kCancelling && element.noisy && t.in_next;
    const bool replicas = N == Noise::kReplicas && element.noisy && t.out_seen;
    i64 begin = tile.column, end = std::min(begin + t.tile_columns, t.I * t.K);
    if (perturbed || (replicas && t.k_outer)) {
      // A unit's columns lie anywhere in a row, and the words of a channels_last one too: its first tile makes all.
      if (tile.column != 0) return;
      end = t.I * t.K;
    }
    prepare(element, tile, begin, end);
    for (i64 row = tile.first; row < std::min(tile.first + t.tile_rows, t.src_O); ++row) {
      const i32 self = static_cast<i32>(row);
      const i32* outputs = t.row_begin ? &reinterpret_cast<const i32*>(t.row_list)[table<i32>(t.row_begin, row)] : &self;
      const i64 count = t.row_begin ? table<i32>(t.row_begin, row + 1) - table<i32>(t.row_begin, row) : 1;
      if (perturbed) {
        cancelling_rows(element, row, outputs, count);
      } else {
        rows(element, row, begin, end, outputs, count);
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
    if (N == Noise::kCancelling && element.noisy && t.in_next) cancelling_.prepare(element);
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

  void rows(const Element<S>& element, i64 row, i64 begin, i64 end, const i32* outputs, i64 count) {
    const Task& t = element.t;
    const S* const source = reinterpret_cast<const S*>(t.src) + row * t.src_stride_o;
    const auto is_noisy = [&](i64 o) {
      return N == Noise::kReplicas && element.noisy && t.out_seen && table<i32>(t.out_seen, o);
    };
    const bool same = !t.out_scale;  // for every replica that has no noise
    for (i64 at = begin; at < end; at += kPiece) {
      const i64 n = std::min(kPiece, end - at);
      const S* const in = gather_piece(t, source, at, at + n, gathered_);
      const S* made = element.plain ? in : nullptr;
      for (i64 r = 0; r < count; ++r) {
        const i64 o = outputs[r];
        if (is_noisy(o)) continue;
        if (!made || !same) {
          scaled(element, in, at - begin, n, o, made_);
          made = made_;
        }
        put(target(t, o, at), made, n, end - begin);
      }
    }
    for (i64 r = 0; r < count; ++r) {
      if (is_noisy(outputs[r])) replica(element, source, begin, end, outputs[r]);
    }
  }

  void scaled(const Element<S>& element, const S* in, i64 at, i64 n, i64 o, S* out) const {
    const Task& t = element.t;
    const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    const C* const scale = scale_.data() + at;
    if (scale_piece<S>(out, in, scale, c_out, t.out_scale != 0, n)) with_care(out, in, scale, c_out, n);
  }

  // Elements [begin, end) of row o, which has noise; if the kernel is outermost in memory, all of the row.
  void replica(const Element<S>& element, const S* source, i64 begin, i64 end, i64 o) {
    const Task& t = element.t;
    const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    const i64 first = o * t.I * t.K;  // the noise is counted in the contiguous order
    const u32* const row_words = t.k_outer ? words_.make(element.key, first, t.I * t.K) : nullptr;
    u32 ordered[kPiece];
    i64 k = 0, i = 0;
    for (i64 at = begin; at < end; at += kPiece) {
      const i64 n = std::min(kPiece, end - at);
      const u32* words = ordered;
      if (t.k_outer) {
        for (i64 e = 0; e < n; ++e) {
          ordered[e] = row_words[i * t.K + k];
          if (++i == t.I) i = 0, ++k;
        }
      } else {
        words = words_.make(element.key, first + at, n);
      }
      const S* const in = gather_piece(t, source, at, at + n, gathered_);
      const C* const scale = scale_.data() + at - begin;
      if (replica_piece<S>(made_, in, scale, c_out, words, element.sigma, n)) {
        for (i64 e = 0; e < n; ++e) {
          const C w = Scalar<S>::load(in[e]), share = w * scale[e] * c_out;
          made_[e] = is_finite(w) ? element.on_replica(in[e], share, words[e]) : finish<S>(in[e], share);
        }
      }
      put(target(t, o, at), made_, n, end - begin);
    }
  }

  // Whole rows with cancelling noise: everyone's share first, and then what differs from row to row.
  void cancelling_rows(const Element<S>& element, i64 row, const i32* outputs, i64 count) {
    const Task& t = element.t;
    const i64 length = t.I * t.K;
    const S* const source = reinterpret_cast<const S*>(t.src) + row * t.src_stride_o;
    for (i64 r = 0; r < count; ++r) {
      const i64 o = outputs[r];
      if (r == 0 || t.out_scale) shares(element, source, o);
      if (cancelling_.perturb(element, row_.data(), source, o)) {
        put(target(t, o, 0), row_.data(), length, length);
      } else {
        one_by_one(element, o);
      }
    }
  }

  // The same for rows that are not dense: they are made as if they were, by the tile that they begin in.
  void scattered_rows(const Tile& tile) {
    Task t = args_.tasks[tile.task];
    t.k_outer = 0;
    const auto element = Element<S>::template of<N>(t, args_.seed);
    const i64 length = t.I * t.K;
    prepare(element, tile, 0, length);
    source_.resize(static_cast<std::size_t>(t.src_I * t.K));
    const i64 begin = tile.first * kTile, end = std::min(begin + kTile, t.O * length);
    for (i64 o = (begin + length - 1) / length; o * length < end; ++o) {
      const S* const from = reinterpret_cast<const S*>(t.src) + element.teacher_row(o) * t.src_stride_o;
      S* at = source_.data();
      for (i64 i = 0; i < t.src_I; ++i) {
        for (i64 k = 0; k < t.K; ++k) *at++ = from[i * t.src_stride_i + k * t.src_stride_k];
      }
      shares(element, source_.data(), o);
      if (!cancelling_.perturb(element, row_.data(), source_.data(), o)) {
        one_by_one(element, o);
        continue;
      }
      S* const to = reinterpret_cast<S*>(t.dst) + o * t.dst_stride_o;
      const S* made = row_.data();
      for (i64 i = 0; i < t.I; ++i) {
        for (i64 k = 0; k < t.K; ++k) to[i * t.dst_stride_i + k * t.dst_stride_k] = *made++;
      }
    }
  }

  // Row `o` without noise, into `row_`, of the teacher's dense row.
  void shares(const Element<S>& element, const S* source, i64 o) {
    const i64 length = element.t.I * element.t.K;
    row_.resize(static_cast<std::size_t>(length));
    for (i64 at = 0; at < length; at += kPiece) {
      const i64 n = std::min(kPiece, length - at);
      scaled(element, gather_piece(element.t, source, at, at + n, gathered_), at, n, o, row_.data() + at);
    }
  }

  // A row by definition.
  void one_by_one(const Element<S>& element, i64 o) const {
    Cursor c{o, 0, 0};
    for (i64 e = 0; e < element.t.I * element.t.K; ++e, c.step(element.t)) {
      *element.destination(c) = element.template compute<N>(c);
    }
  }

  void elements(const Element<S>& element, const Tile& tile) {
    const Task& t = element.t;
    if (N == Noise::kCancelling && element.noisy && t.in_next) return scattered_rows(tile);
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
      return gather_runs(dst + begin, src, reinterpret_cast<const i32*>(t.out_map) + begin, 1, end - begin, 1);
    }
    for (i64 o = begin; o < end; ++o) {
      const S s = src[element.teacher_row(o) * t.src_stride_o];
      dst[o * t.dst_stride_o] = element.plain ? s : finish<S>(s, element.share(Scalar<S>::load(s), o, 0));
    }
  }

  const GatherScaleArgs& args_;
  i32 task_ = -1, column_ = -1;
  std::vector<C> scale_;  // of each element of the tile's columns
  std::vector<S> row_, source_;  // of the student and of the teacher
  CancellingRows<S> cancelling_;
  Words words_;
  alignas(64) S gathered_[kPiece];
  alignas(64) S made_[kPiece];
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
  if (args.large) hint_outputs<S>(args);
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
