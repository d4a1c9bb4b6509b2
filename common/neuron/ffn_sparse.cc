#include <algorithm>
#include <array>
#include <utility>

#include "common/base/round_up.h"
#include "common/kernels/packed_row.h"
#include "common/neuron/ffn_internal.h"

namespace isotherm::neuron::internal {
namespace {

// Neurons whose rows are read side by side for one row of a request: two tiles of the kernels.
constexpr int64_t kBlock = 8;
// Different rows mostly want different neurons: more of them give each row enough to read side by side. Their
// rows stay in the second-level cache (64 of 16 KiB are half of it) for those that several rows want.
constexpr int64_t kLongestBlock = 64;

// What down rows are multiplied with, for a few neurons after another: their first rows, then the up rows of
// those that fire. While one stage computes, the kernels ask for the heads of the rows that are read next.
class SparseWalk {
 public:
  // `adds_down`: AddDown follows each Compute.
  SparseWalk(const Job& job, bool adds_down) : job_(job), layout_(*job.view->layout), adds_down_(adds_down) {}

  // For the first `count` positions(i), at most kLongestBlock; the next ones come afterwards, `count_next` of
  // them.
  template <typename Position>
  void Compute(int64_t count, int64_t count_next, const Position& position) {
    count_ = count;
    for (int64_t i = 0; i < count + kernels::kRowsAhead; ++i) {
      bundles_[i] = i < count + count_next ? job_.Bundle(position(i)) : bundles_[i - 1];
    }
    for (int64_t i = 0; i < count; ++i) neurons_[i] = job_.Neuron(position(i));
    SelectWanted();
    Activate();
    if (layout_.gated) MultiplyByUp();
    CountFirings();
  }

  // Into factors[rows, stride], the i-th neuron's at columns[i].
  void Store(const int32_t* columns, float* factors, int64_t stride) const {
    for (int64_t row = 0; row < job_.rows; ++row, factors += stride) {
      const Selection& selection = selections_[row];
      for (int64_t i = 0; i < count_; ++i) factors[columns[i]] = 0;
      for (int64_t i = 0; i < selection.count; ++i) {
        factors[columns[selection.index[i]]] = selection.value[i];
      }
    }
  }

  // The down rows times their factors.
  void AddDown(Partial* partial) {
    for (int64_t row = 0; row < job_.rows; ++row) {
      const Selection& selection = selections_[row];
      if (selection.count == 0) continue;
      float* const sums = partial->y + row * job_.hidden;
      if (!partial->touched[row]) std::fill_n(sums, job_.hidden, 0.0f);
      partial->touched[row] = 1;
      job_.down.add_scaled(ListRows(selection, layout_.down_offset, NextClaim()), selection.count,
                           selection.value.data(), job_.hidden, 0, job_.hidden, sums);
    }
  }

  const FfnStatistics& statistics() const { return statistics_; }

 private:
  // Those of the neurons that a row of the request computes.
  struct Selection {
    int64_t count = 0;
    std::array<int32_t, kLongestBlock> index;  // among them, ascending
    std::array<float, kLongestBlock> value;    // activation, then factor of the down row
  };
  using Products = std::array<std::array<float, kLongestBlock>, kSparseRows>;

  // Rows `offset` bytes into the bundles from `first` on, which are read after those being computed with.
  struct Next {
    int64_t first;
    int64_t offset;
  };
  Next ThisClaim(int64_t offset) const { return {0, offset}; }
  Next NextClaim() const {
    return {count_, job_.request->gate_values == nullptr ? 0 : layout_.second_offset()};
  }

  // After a good predictor most neurons fire; where every gate is computed few do.
  bool MostlyActive() const { return job_.request->dense || 2 * statistics_.active >= statistics_.computed; }

  void SelectWanted() {
    for (int64_t row = 0; row < job_.rows; ++row) {
      Selection& selection = selections_[row];
      selection.count = 0;
      for (int64_t i = 0; i < count_; ++i) {
        if (TestBit(job_.Mask(row), neurons_[i]))
          selection.index[selection.count++] = static_cast<int32_t>(i);
      }
      statistics_.computed += selection.count;
    }
  }

  // What the kernels take: the selected rows, then the next ones.
  const uint8_t* const* ListRows(const Selection& selection, int64_t offset, Next next) {
    for (int64_t i = 0; i < selection.count; ++i) list_[i] = bundles_[selection.index[i]] + offset;
    for (int64_t i = 0; i < kernels::kRowsAhead; ++i) {
      list_[selection.count + i] = bundles_[next.first + i] + next.offset;
    }
    return list_.data();
  }

  // products[row][i] = the row of the i-th selected neuron . input. Where all rows want the same neurons in
  // one go, which is bit-equal.
  void Multiply(const kernels::RowKernels& kernels, const kernels::RowInputs& inputs, int64_t offset,
                Next next, Products& products) {
    const bool all = std::all_of(selections_.begin(), selections_.begin() + job_.rows,
                                 [&](const Selection& selection) { return selection.count == count_; });
    const int64_t batch = all ? job_.rows : 1;
    for (int64_t row = 0; row < job_.rows; row += batch) {
      const Selection& selection = selections_[row];
      kernels.mat_mul_listed(ListRows(selection, offset, next), selection.count, inputs.From(row), batch,
                             job_.hidden, products[row].data(), kLongestBlock);
    }
  }

  void Activate() {
    const bool given = job_.request->gate_values != nullptr;
    if (!given) {
      Multiply(job_.gate, job_.gate_inputs, 0,
               MostlyActive() ? ThisClaim(layout_.second_offset()) : NextClaim(), products_);
    }
    for (int64_t row = 0; row < job_.rows; ++row) {
      Selection& selection = selections_[row];
      for (int64_t i = 0; i < selection.count; ++i) {
        const int32_t index = selection.index[i];
        selection.value[i] = job_.Activate(given ? job_.GateValue(row, neurons_[index])
                                                 : products_[row][i] + layout_.Bias(bundles_[index]));
      }
      KeepActive(selection);
    }
  }

  void MultiplyByUp() {
    Multiply(job_.up, job_.up_inputs, layout_.up_offset,
             adds_down_ ? ThisClaim(layout_.down_offset) : NextClaim(), products_);
    const bool double_relu = job_.double_relu();
    for (int64_t row = 0; row < job_.rows; ++row) {
      Selection& selection = selections_[row];
      for (int64_t i = 0; i < selection.count; ++i) {
        selection.value[i] *= double_relu ? Relu(products_[row][i]) : products_[row][i];
      }
      // With dReLU the second factor decides, too.
      if (double_relu) KeepActive(selection);
    }
  }

  // Drops the neurons whose value is zero.
  void KeepActive(Selection& selection) const {
    if (job_.request->dense) return;
    int64_t kept = 0;
    for (int64_t i = 0; i < selection.count; ++i) {
      if (selection.value[i] == 0) continue;
      selection.index[kept] = selection.index[i];
      selection.value[kept++] = selection.value[i];
    }
    selection.count = kept;
  }

  void CountFirings() {
    for (int64_t row = 0; row < job_.rows; ++row) {
      const Selection& selection = selections_[row];
      for (int64_t i = 0; i < selection.count; ++i) {
        const bool active = selection.value[i] != 0;
        statistics_.active += active;
        if (job_.request->firings != nullptr) job_.request->firings[neurons_[selection.index[i]]] += active;
      }
    }
  }

  const Job& job_;
  const BundleLayout& layout_;
  const bool adds_down_;
  FfnStatistics statistics_;
  // The neurons at hand and the bundles after them.
  int64_t count_ = 0;
  std::array<int64_t, kLongestBlock> neurons_;
  std::array<const uint8_t*, kLongestBlock + kernels::kRowsAhead> bundles_;
  std::array<Selection, kSparseRows> selections_;
  std::array<const uint8_t*, kLongestBlock + kernels::kRowsAhead> list_;
  Products products_;
};

}  // namespace

int64_t CollectWanted(const Job& job, int64_t begin, int64_t end, int32_t* wanted) {
  int64_t count = 0;
  for (int64_t k = begin; k < end; ++k) {
    wanted[count] = static_cast<int32_t>(k);
    count += TestBit(job.union_mask, job.Neuron(k));
  }
  return count;
}

template <typename Function>
void Queues::ForEachOwned(const int32_t* wanted, int64_t count, const Function& function) {
  const auto members = static_cast<int64_t>(queues_.size());
  int64_t block = 0, owner = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t next = wanted[i] / kBlock;
    owner += next - std::exchange(block, next);
    if (owner >= members) owner %= members;
    function(queues_[owner], i);
  }
}

void Queues::Fill(const int32_t* wanted, int64_t count) {
  for (Queue& queue : queues_) queue.end = 0;
  ForEachOwned(wanted, count, [](Queue& queue, int64_t) { ++queue.end; });
  int64_t begin = 0;
  for (Queue& queue : queues_) {
    queue.begin = begin;
    begin += std::exchange(queue.end, begin);
    queue.next.store(queue.begin, std::memory_order_relaxed);
  }
  ForEachOwned(wanted, count,
               [&](Queue& queue, int64_t i) { entries_[queue.end++] = static_cast<int32_t>(i); });
}

Queues::Claim Queues::Take(int64_t member, int64_t longest) {
  const auto members = static_cast<int64_t>(queues_.size());
  for (int64_t i = 0; i < members; ++i) {
    Queue& queue = queues_[(member + i) % members];
    int64_t next = queue.next.load(std::memory_order_relaxed);
    while (next < queue.end) {
      const int64_t count = std::clamp<int64_t>((queue.end - next) / 2, 1, longest);
      if (queue.next.compare_exchange_weak(next, next + count, std::memory_order_relaxed)) {
        return {&entries_[next], count};
      }
    }
  }
  return {};
}

int64_t LongestClaim(int64_t rows) { return std::min(kBlock * rows, kLongestBlock); }

FfnStatistics ComputeFactors(const Job& job, const SparseWork& work, int64_t member, Queues& queues) {
  const int64_t longest = LongestClaim(job.rows);
  SparseWalk walk(job, /*adds_down=*/false);
  // One claim ahead, so that its rows are on their way before this one's are used up.
  for (Queues::Claim claim = queues.Take(member, longest); claim.count > 0;) {
    const Queues::Claim next = queues.Take(member, longest);
    walk.Compute(claim.count, next.count, [&](int64_t i) {
      return work.wanted[i < claim.count ? claim.entries[i] : next.entries[i - claim.count]];
    });
    walk.Store(claim.entries, work.factors, work.count);
    claim = next;
  }
  return walk.statistics();
}

void ComputePartition(const Job& job, const int32_t* wanted, int64_t count, Partial* partial) {
  SparseWalk walk(job, /*adds_down=*/true);
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t block = std::min(kBlock, count - first);
    walk.Compute(block, count - first - block, [&](int64_t i) { return wanted[first + i]; });
    walk.AddDown(partial);
  }
  partial->statistics = walk.statistics();
}

Columns OwnColumns(const BundleLayout& layout, int64_t member, int64_t members) {
  constexpr int64_t kLeast = 32;  // a line of F16
  const int64_t unit = std::max(kLeast, kernels::BlockColumns(layout.down_type));
  const int64_t units = (layout.hidden + unit - 1) / unit;
  return {units * member / members * unit, std::min(units * (member + 1) / members * unit, layout.hidden)};
}

int64_t MostOwnColumns(int64_t hidden, int64_t members) {
  constexpr int64_t kMostUnit = 256;
  return base::RoundUp(hidden / members, kMostUnit) + 2 * kMostUnit;
}

void AddDownColumns(const Job& job, const SparseWork& work, const Columns& columns, float* sums, float* y) {
  const auto [begin, end] = columns;
  if (begin >= end) return;
  const int64_t width = end - begin;
  std::fill_n(sums, job.rows * width, 0.0f);
  // The pieces of so many neurons stay in the second-level cache while the rows of the request take theirs.
  constexpr int64_t kNeurons = 512;
  std::array<const uint8_t*, kNeurons + kernels::kRowsAhead> rows;
  std::array<float, kNeurons> factors;
  for (int64_t first = 0; first < work.count; first += kNeurons) {
    const int64_t last = std::min(first + kNeurons, work.count);
    for (int64_t row = 0; row < job.rows; ++row) {
      const float* const values = work.factors + row * work.count;
      int64_t count = 0;
      for (int64_t i = first; i < last; ++i) {
        if (values[i] == 0 && !job.request->dense) continue;
        rows[count] = job.view->layout->Down(job.Bundle(work.wanted[i]));
        factors[count++] = values[i];
      }
      if (count == 0) continue;
      std::fill_n(&rows[count], kernels::kRowsAhead, rows[count - 1]);
      job.down.add_scaled(rows.data(), count, factors.data(), job.hidden, begin, end, sums + row * width);
    }
  }
  for (int64_t row = 0; row < job.rows; ++row) {
    std::copy_n(sums + row * width, width, y + row * job.hidden + begin);
  }
}

}  // namespace isotherm::neuron::internal
