// Cancelling noise on the CPU, a row of the student at a time (DESIGN 2.9; `Element::cancelling` is the definition).
//
// Units with replicas are put side by side, those with most replicas first: then the elements of all units that have an
// m-th replica are the first so many, and each step of the definition is one loop that the compiler vectorises. Only
// they cost anything, and only their words are made.
#pragma once

#include <algorithm>
#include <array>
#include <vector>

#include "gather_scale.h"
#include "runs.h"
#include "words.h"

namespace n2n {
namespace {

// A unit's m-th replica, which is not its last, rounded; `others` is the sum of those before it. The words are those of
// stream m / 2: an even replica takes both halves of its word, an odd one the second and the next word's first. Whether
// all was finite: if not, the definition has to be asked.
template <class S, bool Even>
N2N_SIMD bool perturb_piece(S* __restrict out, typename Scalar<S>::compute* __restrict others, const S* __restrict in,
                            const typename Scalar<S>::compute* __restrict scale, typename Scalar<S>::compute c_out,
                            const u32* __restrict words, const u32* __restrict next_words,
                            typename Scalar<S>::compute sigma, i64 n) {
  using C = typename Scalar<S>::compute;
  int bad = 0;
  for (i64 e = 0; e < n; ++e) {
    const i32 z = Even ? half_noise_from_word(words[e], 0) - half_noise_from_word(words[e], 1)
                       : half_noise_from_word(words[e], 1) - half_noise_from_word(next_words[e], 0);
    const C w = Scalar<S>::load(in[e]);
    const C x = w * scale[e] * c_out + static_cast<C>(z) * sigma;
    bad |= !(w - w == C(0)) | !(x == x);
    out[e] = Scalar<S>::store(x);
    others[e] = others[e] + Scalar<S>::load(out[e]);
  }
  return !bad;
}

// A unit's last replica: what the others leave.
template <class S>
N2N_SIMD bool remainder_piece(S* __restrict out, const typename Scalar<S>::compute* __restrict others,
                              const S* __restrict in, const typename Scalar<S>::compute* __restrict total,
                              typename Scalar<S>::compute c_out, i64 n) {
  using C = typename Scalar<S>::compute;
  int bad = 0;
  for (i64 e = 0; e < n; ++e) {
    const C x = Scalar<S>::load(in[e]) * total[e] * c_out - others[e];
    bad |= !(x == x);
    out[e] = Scalar<S>::store(x);
  }
  return !bad;
}

template <class S>
class CancellingRows {
  using C = typename Scalar<S>::compute;

 public:
  // For rows of this task, which has `in_next`.
  void prepare(const Element<S>& element) {
    const Task& t = element.t;
    k_ = t.K, columns_ = t.I, units_in_row_ = t.src_I, k_outer_ = t.k_outer != 0;
    steps_.clear(), units_.clear(), last_.clear(), total_.clear();
    const auto k = static_cast<std::size_t>(k_);
    for (i64 place = 0; place < t.src_I; ++place) {
      const UnitEntry entry = unit_entry(t, place);
      if (entry.copies == 1) break;
      if (steps_.empty()) steps_.resize(static_cast<std::size_t>(entry.copies - 1));
      const i32 begin = table<i32>(t.in_begin, entry.unit);
      for (i32 m = 0; m + 1 < entry.copies; ++m) {
        Step& step = steps_[static_cast<std::size_t>(m)];
        step.columns.push_back(table<i32>(t.in_list, begin + m));
        step.scale.insert(step.scale.end(), k, element.scale_in(step.columns.back()));
      }
      units_.push_back(entry.unit);
      last_.push_back(entry.last);
      total_.insert(total_.end(), k, table<C>(t.in_total, last_.back()));
    }
    for (Listing& listing : listings_) listing.made = false;
    at_once_ = std::max<i64>(1, kElements / k_);
    const auto most = static_cast<std::size_t>(at_once_ * k_);
    in_.resize(most), made_.resize(most), others_.resize(most);
    for (auto& words : words_) words.resize(most);
  }

  // Perturbs row `o` of the student, which has its shares of the teacher's row. False if there is a weight, or a result,
  // that is not finite: then the row has to be made by definition.
  bool perturb(const Element<S>& element, S* out, const S* teacher, i64 o) {
    const Task& t = element.t;
    const C c_out = t.out_scale ? table<C>(t.out_scale, o) : C(1);
    const i64 index = o * units_in_row_ * k_, units = static_cast<i64>(units_.size());
    const Listing& listing = listed(index % 4);
    bool fine = true;
    for (i64 first = 0; first < units && fine; first += at_once_) {
      const i64 n = std::min(at_once_, units - first);
      gather(in_.data(), teacher, units_.data() + first, n);
      std::fill_n(others_.begin(), n * k_, C(0));
      make(listing, element.key, index / 4, first, n, 0);
      for (std::size_t m = 0; m < steps_.size() && static_cast<i64>(steps_[m].columns.size()) > first; ++m) {
        const Step& step = steps_[m];
        const i64 count = std::min(n, static_cast<i64>(step.columns.size()) - first);
        const u32* const words = words_[m / 2 % 2].data();
        const C* const scale = step.scale.data() + first * k_;
        if (m % 2 == 0) {
          fine &= perturb_piece<S, true>(made_.data(), others_.data(), in_.data(), scale, c_out, words, nullptr,
                                         element.sigma, count * k_);
        } else {
          const u32* const next = make(listing, element.key, index / 4, first, count, static_cast<u32>(m / 2 + 1));
          fine &= perturb_piece<S, false>(made_.data(), others_.data(), in_.data(), scale, c_out, words, next,
                                          element.sigma, count * k_);
        }
        scatter(out, step.columns.data() + first, count);
      }
      fine &= remainder_piece<S>(made_.data(), others_.data(), in_.data(), total_.data() + first * k_, c_out, n * k_);
      scatter(out, last_.data() + first, n);
    }
    return fine;
  }

 private:
  // What a unit's m-th replica is made with, for all units of which it is not the last.
  struct Step {
    std::vector<i32> columns;
    std::vector<C> scale;  // of each element
  };

  // Which blocks of words hold the units' words, for rows that begin at the same place within a block.
  struct Listing {
    bool made = false;
    std::vector<i32> offsets;  // blocks from the row's first on; those of units that are worked on together, side by side
    std::vector<i64> begins;   // where the blocks of each such group of units begin in `offsets`
    std::vector<i32> starts;   // where a unit's words begin among its group's
  };

  // Elements worked on together: what they need fits the first-level cache.
  static constexpr i64 kElements = 1024;

  const Listing& listed(i64 phase) {
    Listing& listing = listings_[static_cast<std::size_t>(phase)];
    if (listing.made) return listing;
    listing.made = true;
    listing.offsets.clear(), listing.begins.clear(), listing.starts.clear();
    for (std::size_t p = 0; p < units_.size(); ++p) {
      if (static_cast<i64>(p) % at_once_ == 0) listing.begins.push_back(static_cast<i64>(listing.offsets.size()));
      const i64 begin = phase + units_[p] * k_, group = listing.begins.back();
      i64 block = begin / 4;
      // Neighbours share a block.
      const bool shared = static_cast<i64>(listing.offsets.size()) > group && listing.offsets.back() == block;
      const i64 slot = static_cast<i64>(listing.offsets.size()) - group - (shared ? 1 : 0);
      listing.starts.push_back(static_cast<i32>(4 * slot + begin % 4));
      for (block += shared ? 1 : 0; 4 * block < begin + k_; ++block) listing.offsets.push_back(static_cast<i32>(block));
    }
    listing.offsets.resize(listing.offsets.size() + kBlocks, 0);  // what is made beyond the last
    return listing;
  }

  // The words of a stream for n units, which begin a group.
  const u32* make(const Listing& listing, NoiseKey key, i64 row, i64 first, i64 n, u32 stream) {
    key.stream += stream;
    const i32* const starts = listing.starts.data() + first;
    const i64 blocks = round_to_blocks((starts[n - 1] + k_ + 3) / 4);
    if (static_cast<i64>(raw_.size()) < 4 * blocks) raw_.resize(static_cast<std::size_t>(4 * blocks));
    make_words(raw_.data(), key, static_cast<u64>(row),
               listing.offsets.data() + listing.begins[static_cast<std::size_t>(first / at_once_)], blocks);
    u32* const to = words_[stream % 2].data();
    gather_runs(to, raw_.data(), starts, 1, n, k_);
    return to;
  }

  // A unit's elements of the teacher's row, and a column's of the student's.
  void gather(S* to, const S* row, const i32* units, i64 n) const {
    k_outer_ ? gather_apart(to, row, units, units_in_row_, n, k_) : gather_runs(to, row, units, k_, n, k_);
  }
  void scatter(S* row, const i32* columns, i64 n) const {
    k_outer_ ? scatter_apart(row, columns, columns_, made_.data(), n, k_)
             : scatter_runs(row, columns, k_, made_.data(), n, k_);
  }

  i64 k_ = 1, columns_ = 0, units_in_row_ = 0, at_once_ = 1;
  bool k_outer_ = false;
  std::vector<i32> units_, last_;  // of units with replicas: the unit, and its last column
  std::vector<C> total_;           // the sum of its columns' scales, for each element
  std::vector<Step> steps_;
  std::array<Listing, 4> listings_;
  std::vector<S> in_, made_;
  std::vector<C> others_;
  std::vector<u32> raw_;
  std::array<std::vector<u32>, 2> words_;  // of a stream and of the one before it
};

}  // namespace
}  // namespace n2n
