// Mean and biased variance in one reading: of the channels of a tensor [N, C, S] (channel_moments), or of all elements
// of each tensor of a list (tensor_moments).
//
// Summed are d and d*d, with d = x - pivot and the first element as pivot (zero if that is not finite), in double. The
// pivot removes the cancellation that plain sums of squares suffer when the mean is large.
//
// The order of summation is part of the definition, so that every backend returns the same bits, in every layout:
//
// 1. A channel's n elements, n-major, are cut into chunks; n2n_kernels/ops/channel_moments/order.py says how large.
// 2. In a chunk, lane l of kLanes adds elements l, l + kLanes, ... in turn. Lanes are then added in pairs of
//    neighbours, these in pairs again, until one sum is left.
// 3. The chunks' sums are added in the same way, with kFoldLanes lanes.
//
// kLanes is small enough that a thread which reads 16 bytes along the channels, in channels_last, can keep one lane of
// each of them in registers, and large enough to fill a processor's vectors.
#pragma once

#include "vector.h"

namespace n2n {

constexpr int kLanes = 32;
constexpr int kFoldLanes = 256;
constexpr int kMomentsThreads = 256;  // per block

struct Sums {
  double d, dd;
};

N2N_HD Sums operator+(const Sums& a, const Sums& b) { return Sums{a.d + b.d, a.dd + b.dd}; }

N2N_HD Sums plus_element(const Sums& sums, double x, double pivot) {
  const double d = x - pivot;
  return Sums{sums.d + d, sums.dd + d * d};
}

struct MomentsArgs {
  i64 src;
  i64 N, C, S;
  i64 stride_n, stride_c, stride_s;  // in elements
  i64 chunk;                         // elements, a multiple of kLanes
  i64 chunks;                        // ceil(N * S / chunk)
  double* pivots;                    // [C]
  Sums* partials;                    // [C, chunks]

  N2N_HD i64 elements() const { return N * S; }
};

template <class S>
N2N_HD double to_double(S s) {
  return static_cast<double>(Scalar<S>::load(s));
}

template <class S>
N2N_HD double pivot_of(S first) {
  const double x = to_double(first);
  return is_finite(x) ? x : 0.0;
}

// Where element j of a channel lies, in elements from the channel's first, and the way to the one kLanes on: sums and a
// comparison, no division.
struct Walk {
  i64 s, offset;
  i64 step_s, step, wrap, S;

  N2N_HD static Walk from(const MomentsArgs& a, i64 j) {
    const i64 n = quotient(j, a.S), step_n = quotient(kLanes, a.S), step_s = kLanes - step_n * a.S;
    return Walk{j - n * a.S,
                n * a.stride_n + (j - n * a.S) * a.stride_s,
                step_s,
                step_n * a.stride_n + step_s * a.stride_s,
                a.stride_n - a.S * a.stride_s,
                a.S};
  }

  N2N_HD void advance() {
    s += step_s;
    offset += step;
    if (s >= S) {
      s -= S;
      offset += wrap;
    }
  }
};

// A vector's elements, or a single one.
template <class S, int V>
struct Elements {
  S value[V];

  N2N_HD static Elements load(const S* address) {
    Elements e;
    if (V == 1) {
      e.value[0] = *global(address);
    } else {
      const Vector v = load_vector(address);
      memcpy(e.value, &v, sizeof v);
    }
    return e;
  }
};

// A block's work, by kMomentsThreads threads that share an array of Sums, in phases: accumulate, then fold with widths
// 1, 2, ... below kParts, then write. All threads have ended a phase before the next one begins: a GPU's block has a
// barrier there, and a test loops over the threads.
//
// A unit is what shares its walk over one chunk: a channel, or where channels are neighbours in memory V of them. Its
// lanes are the parts of its threads; a thread has one lane, or where elements are neighbours V of them. V is 1 or a
// vector's elements.
template <class S, int V, bool kAlongChannels>
struct MomentsBlock {
  static constexpr int kParts = kAlongChannels ? kLanes : kLanes / V;  // threads per unit
  static constexpr int kUnits = kMomentsThreads / kParts;              // per block
  static constexpr int kKept = kAlongChannels ? V : 1;                 // sums that a thread ends up with
  static constexpr int kShared = kKept * kMomentsThreads;
  static constexpr int kUnroll = 4;  // loads on their way at once

  struct Place {
    int part;
    i64 channel, chunk;
    bool exists;
  };

  N2N_HD static i64 units(const MomentsArgs& a) { return (kAlongChannels ? a.C / V : a.C) * a.chunks; }
  N2N_HD static i64 blocks(const MomentsArgs& a) { return (units(a) + kUnits - 1) / kUnits; }

  // Neighbouring threads take what is neighbouring in memory.
  N2N_HD static Place place(const MomentsArgs& a, i64 block, int thread) {
    if (kAlongChannels) {
      const i64 unit = block * kUnits + thread % kUnits, across = a.C / V, chunk = quotient(unit, across);
      return Place{thread / kUnits, (unit - chunk * across) * V, chunk, unit < units(a)};
    }
    const i64 unit = block * kUnits + thread / kParts, channel = quotient(unit, a.chunks);
    return Place{thread % kParts, channel, unit - channel * a.chunks, unit < units(a)};
  }

  // `wide`: 16 bytes may be read at once. Always so along channels if V > 1; along elements all of the walk must be
  // such vectors, but for elements at the end of a single run (N == 1).
  N2N_HD static void accumulate(const MomentsArgs& a, bool wide, i64 block, int thread, Sums* shared) {
    const Place p = place(a, block, thread);
    Sums sums[V];
    for (int v = 0; v < V; ++v) sums[v] = Sums{0.0, 0.0};
    if (p.exists) {
      const S* const src = reinterpret_cast<const S*>(a.src) + p.channel * a.stride_c;
      double pivot[kKept];
      for (int v = 0; v < kKept; ++v) pivot[v] = pivot_of(global(src)[v]);
      const i64 n = a.elements(), end = (p.chunk + 1) * a.chunk < n ? (p.chunk + 1) * a.chunk : n;
      constexpr int kAtOnce = kAlongChannels ? 1 : V;  // elements of a channel
      i64 j = p.chunk * a.chunk + p.part * kAtOnce;
      Walk walk = Walk::from(a, j);
      if (wide || V == 1) {
        for (; j + (kUnroll - 1) * kLanes + kAtOnce <= end; j += kUnroll * kLanes) {
          Elements<S, V> x[kUnroll];
          for (int u = 0; u < kUnroll; ++u, walk.advance()) x[u] = Elements<S, V>::load(src + walk.offset);
          for (int u = 0; u < kUnroll; ++u) add(sums, x[u], pivot);
        }
        for (; j + kAtOnce <= end; j += kLanes, walk.advance()) {
          add(sums, Elements<S, V>::load(src + walk.offset), pivot);
        }
      }
      for (; !kAlongChannels && V > 1 && j < end; j += kLanes, walk.advance()) {
        for (int v = 0; v < V; ++v) {
          if (j + v < end) sums[v] = plus_element(sums[v], to_double(global(src)[walk.offset + v]), pivot[0]);
        }
      }
    }
    if (!kAlongChannels) {  // the first widths of neighbours are in this thread
      for (int width = 1; width < V; width *= 2) {
        for (int v = 0; v < V; v += 2 * width) sums[v] = sums[v] + sums[v + width];
      }
    }
    for (int v = 0; v < kKept; ++v) shared[v * kMomentsThreads + thread] = sums[v];
  }

  N2N_HD static void add(Sums (&sums)[V], const Elements<S, V>& x, const double (&pivot)[kKept]) {
    for (int v = 0; v < V; ++v) {
      sums[v] = plus_element(sums[v], to_double(x.value[v]), pivot[kAlongChannels ? v : 0]);
    }
  }

  N2N_HD static void fold(int width, int thread, Sums* shared) {
    constexpr int kNext = kAlongChannels ? kUnits : 1;  // threads from one part to the next
    if (thread / kNext % kParts % (2 * width) != 0) return;
    for (int v = 0; v < kKept; ++v) {
      Sums* const mine = shared + v * kMomentsThreads + thread;
      *mine = *mine + mine[width * kNext];
    }
  }

  N2N_HD static void write(const MomentsArgs& a, i64 block, int thread, const Sums* shared) {
    if ((kAlongChannels ? thread / kUnits : thread % kParts) != 0) return;
    const Place p = place(a, block, thread);
    if (!p.exists) return;
    for (int v = 0; v < kKept; ++v) {
      a.partials[(p.channel + v) * a.chunks + p.chunk] = shared[v * kMomentsThreads + thread];
      if (p.chunk == 0) {
        a.pivots[p.channel + v] = pivot_of(global(reinterpret_cast<const S*>(a.src))[(p.channel + v) * a.stride_c]);
      }
    }
  }
};

// How a tensor is read.
struct MomentsPlan {
  bool along_channels;
  bool wide;
};

template <class S>
N2N_HD bool on_vectors(i64 elements) {
  return elements % kVectorOf<S> == 0;
}

template <class S>
inline MomentsPlan plan_of(const MomentsArgs& a) {
  const bool aligned = a.src % kVectorBytes == 0;
  if (a.stride_c == 1 && a.C > 1 && a.stride_s != 1) {
    return MomentsPlan{true, aligned && on_vectors<S>(a.C) && on_vectors<S>(a.stride_n) && on_vectors<S>(a.stride_s)};
  }
  const bool rows = a.N == 1 || (on_vectors<S>(a.S) && on_vectors<S>(a.stride_n));
  return MomentsPlan{false, aligned && a.stride_s == 1 && rows && (a.C == 1 || on_vectors<S>(a.stride_c))};
}

// One tensor of tensor_moments: a dense run of elements. A row of an int64 table.
struct TensorTask {
  i64 src;
  i64 elements;  // may be zero
  i64 chunk, chunks;
  i64 first_partial;
  i64 first_block;
};
static_assert(sizeof(TensorTask) == 6 * 8, "TensorTask is a row of the int64 table");

struct TensorMomentsArgs {
  const TensorTask* tasks;
  const i32* block_task;
  i64 blocks;
  double* pivots;  // [tasks]
  Sums* partials;
};

template <class S>
using TensorBlock = MomentsBlock<S, kVectorOf<S>, false>;

N2N_HD MomentsArgs args_of(const TensorMomentsArgs& a, i64 task) {
  const TensorTask& t = a.tasks[task];
  return MomentsArgs{t.src,   1,        1,           t.elements, 0, 0, 1, t.chunk,
                     t.chunks, a.pivots + task, a.partials + t.first_partial};
}

// From the sums to the moments. Channel c has `elements` elements in `chunks` chunks; or tensor c what its task says.
struct FinishArgs {
  i64 channels;
  i64 elements, chunks;
  const TensorTask* tasks;  // null for channel_moments
  const double* pivots;
  const Sums* partials;
  i64 mean, var;  // addresses, [channels]
  bool to_float;  // else double
};

struct Finish {
  N2N_HD static i64 chunks(const FinishArgs& a, i64 c) { return a.tasks ? a.tasks[c].chunks : a.chunks; }

  N2N_HD static Sums lane(const FinishArgs& a, i64 c, int lane) {
    const Sums* const partials = a.partials + (a.tasks ? a.tasks[c].first_partial : c * a.chunks);
    const i64 end = chunks(a, c);
    Sums sums{0.0, 0.0};
    for (i64 i = lane; i < end; i += kFoldLanes) sums = sums + partials[i];
    return sums;
  }

  N2N_HD static void write(const FinishArgs& a, i64 c, const Sums& sums) {
    const double n = static_cast<double>(a.tasks ? a.tasks[c].elements : a.elements);
    // Nothing has no moments: zero by zero, and no pivot.
    const double mean = (n > 0 ? a.pivots[c] : 0.0) + sums.d / n;
    const double squares = sums.dd - sums.d * sums.d / n;
    const double var = (squares < 0.0 ? 0.0 : squares) / n;
    store(a, a.mean, c, mean);
    store(a, a.var, c, var);
  }

  N2N_HD static void store(const FinishArgs& a, i64 to, i64 c, double x) {
    // Processors differ in the sign and the payload of the NaN that they make.
    if (a.to_float) {
      reinterpret_cast<float*>(to)[c] = x == x ? static_cast<float>(x) : Scalar<float>::quiet_nan();
    } else {
      reinterpret_cast<double*>(to)[c] = x == x ? x : Scalar<double>::quiet_nan();
    }
  }
};

}  // namespace n2n
