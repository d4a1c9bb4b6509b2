#include <algorithm>
#include <array>

#include "common/neuron/ffn_internal.h"
#include "common/neuron/ffn_queues.h"

namespace isotherm::neuron::internal {
namespace {

// Neurons that are computed together: their first rows, then the up rows of those that fire. While one stage
// computes, the kernels ask for the heads of the rows that are read next.
class SparseWalk {
 public:
  // `adds_down`: AddDown follows each Compute.
  SparseWalk(const Job& job, bool adds_down) : job_(job), layout_(*job.view->layout), adds_down_(adds_down) {}
  void AddsDown(bool adds_down) { adds_down_ = adds_down; }

  // What each row's down rows are multiplied with, for `count` positions, at most kBlock; `next` come
  // afterwards.
  void Compute(const int32_t* positions, int64_t count, const int32_t* next, int64_t next_count) {
    Enter(positions, count, next, next_count);
    SelectWanted();
    Activate();
    if (layout_.gated) MultiplyByUp();
    CountFirings();
  }

  // Into factors[count, rows], 0 where the row leaves the neuron out.
  void Store(float* factors) const {
    std::fill_n(factors, count_ * job_.rows, 0.0f);
    for (int64_t i = 0; i < wanted_; ++i) {
      for (int64_t use = Begin(i); use < ends_[i]; ++use) {
        factors[index_[i] * job_.rows + rows_[use]] = values_[use];
      }
    }
  }

  // What Store left there.
  void Load(const int32_t* positions, int64_t count, const float* factors) {
    Enter(positions, count, nullptr, 0);
    SelectWanted();
    for (int64_t i = 0; i < wanted_; ++i) {
      for (int64_t use = Begin(i); use < ends_[i]; ++use) {
        values_[use] = factors[index_[i] * job_.rows + rows_[use]];
      }
    }
    KeepActive();
  }

  // The down rows times their factors. FinishDown follows the last.
  void AddDown(Partial* partial) {
    if (wanted_ == 0) return;
    for (int64_t use = 0; use < Begin(wanted_); ++use) {
      const int32_t row = rows_[use];
      if (partial->touched[row]) continue;
      std::fill_n(partial->y + row * job_.hidden, job_.hidden, 0.0f);
      partial->touched[row] = 1;
    }
    statistics_.bytes += wanted_ * layout_.down_bytes();
    if (job_.down.rows_together > 1) {
      GatherDown(partial);
      return;
    }
    const uint8_t* const* const rows = ListRows(layout_.down_offset, NextNeurons());
    if (job_.rows == 1 && TakesWholeRows(job_.down)) {
      job_.down.add_scaled(rows, wanted_, values_.data(), job_.hidden, partial->y);
    } else {
      job_.shared_down.add_scaled(Uses(rows), values_.data(), job_.hidden, partial->y, job_.hidden);
    }
  }

  void FinishDown(Partial* partial) {
    for (int64_t row = 0; row < job_.rows; ++row) {
      if (gathered_[row].count > 0) AddGathered(row, partial);
    }
  }

  // Of those computed.
  const FfnStatistics& statistics() const { return statistics_; }

 private:
  static constexpr int64_t kMostUses = kBlock * kSparseRows;
  static_assert(kernels::kRowsAhead <= kBlock && kMostUses <= kernels::kMostRowUses);

  // Rows `offset` bytes into these neurons' bundles or the next ones', which are read after those being
  // computed with.
  struct Next {
    bool same;
    int64_t offset;
  };
  static Next SameNeurons(int64_t offset) { return {true, offset}; }
  Next NextNeurons() const {
    return {false, job_.request->gate_values == nullptr ? 0 : layout_.second_offset()};
  }

  // After a good predictor most neurons fire; where every gate is computed few do.
  bool MostlyActive() const { return job_.request->dense || 2 * statistics_.active >= statistics_.computed; }

  void Enter(const int32_t* positions, int64_t count, const int32_t* next, int64_t next_count) {
    count_ = count;
    for (int64_t i = 0; i < count; ++i) {
      neurons_[i] = job_.Neuron(positions[i]);
      bundles_[i] = job_.Bundle(positions[i]);
    }
    for (int64_t i = 0; i < kBlock; ++i)
      next_bundles_[i] = i < next_count ? job_.Bundle(next[i]) : bundles_[0];
  }

  int64_t Begin(int64_t i) const { return i == 0 ? 0 : ends_[i - 1]; }

  void SelectWanted() {
    wanted_ = 0;
    int32_t uses = 0;
    for (int64_t i = 0; i < count_; ++i) {
      const int32_t before = uses;
      for (int64_t row = 0; row < job_.rows; ++row) {
        rows_[uses] = static_cast<int32_t>(row);
        uses += TestBit(job_.Mask(row), neurons_[i]);
      }
      index_[wanted_] = static_cast<int32_t>(i);
      ends_[wanted_] = uses;
      wanted_ += uses > before;
    }
  }

  // What the kernels take: the rows of the neurons that some row of the request wants, then the next ones.
  const uint8_t* const* ListRows(int64_t offset, Next next) {
    for (int64_t i = 0; i < wanted_; ++i) list_[i] = bundles_[index_[i]] + offset;
    for (int64_t i = 0; i < kBlock; ++i) {
      const uint8_t* const bundle = next.same ? bundles_[index_[i < wanted_ ? i : 0]] : next_bundles_[i];
      list_[wanted_ + i] = bundle + next.offset;
    }
    return list_.data();
  }
  kernels::RowUses Uses(const uint8_t* const* rows) const {
    return {wanted_, rows, rows + wanted_, ends_.data(), rows_.data()};
  }

  // Where each row of the request wants each of the neurons, as one row always does, products in integers are
  // faster with whole rows: in the second-level cache Q4_0 in parts took 1.4 times as long. So are those of
  // one row in F32: 1.2 times as long for F16 that was asked for in advance; what a dense run reads comes
  // from memory, where parts were 3 % faster.
  bool TakesWholeRows(const kernels::RowKernels& kernels) const {
    if (Begin(wanted_) != wanted_ * job_.rows) return false;
    return kernels.input_bytes(job_.hidden) > 0 || (job_.rows == 1 && !job_.request->dense);
  }

  // products_[use] = the neuron's row, `offset` bytes into its bundle, . the input of the use's row.
  void Multiply(const kernels::RowKernels& kernels, const kernels::SharedRowKernels& shared,
                const kernels::RowInputs& inputs, int64_t offset, Next next) {
    if (wanted_ == 0) return;
    const uint8_t* const* const rows = ListRows(offset, next);
    if (!TakesWholeRows(kernels)) {
      shared.multiply(Uses(rows), inputs, job_.hidden, products_.data());
      return;
    }
    std::array<float, kMostUses> by_row;
    kernels.mat_mul_listed(rows, wanted_, inputs, job_.rows, job_.hidden, by_row.data(), kBlock);
    for (int64_t use = 0; use < Begin(wanted_); ++use) {
      products_[use] = by_row[use % job_.rows * kBlock + use / job_.rows];
    }
  }

  // Where down rows are rounded together, those of each row of the request are added as soon as there are
  // enough of them: which ones share a call depends on that row alone, and so does the result.
  void GatherDown(Partial* partial) {
    for (int64_t i = 0, use = 0; i < wanted_; ++i) {
      const uint8_t* const down = bundles_[index_[i]] + layout_.down_offset;
      for (; use < ends_[i]; ++use) {
        Gathered& gathered = gathered_[rows_[use]];
        gathered.down[gathered.count] = down;
        gathered.factors[gathered.count] = values_[use];
        if (++gathered.count == job_.down.rows_together) AddGathered(rows_[use], partial);
      }
    }
  }

  void AddGathered(int64_t row, Partial* partial) {
    Gathered& gathered = gathered_[row];
    for (int64_t i = 0; i < kernels::kRowsAhead; ++i) {
      gathered.down[gathered.count + i] = next_bundles_[i] + NextNeurons().offset;
    }
    job_.down.add_scaled(gathered.down.data(), gathered.count, gathered.factors.data(), job_.hidden,
                         partial->y + row * job_.hidden);
    gathered.count = 0;
  }

  void Activate() {
    statistics_.computed += Begin(wanted_);
    const bool given = job_.request->gate_values != nullptr;
    if (!given) {
      statistics_.bytes += wanted_ * layout_.first_bytes();
      Multiply(job_.gate, job_.shared_gate, job_.gate_inputs, 0,
               MostlyActive() ? SameNeurons(layout_.second_offset()) : NextNeurons());
    }
    for (int64_t i = 0; i < wanted_; ++i) {
      const float bias = layout_.Bias(bundles_[index_[i]]);
      for (int64_t use = Begin(i); use < ends_[i]; ++use) {
        values_[use] =
            job_.Activate(given ? job_.GateValue(rows_[use], neurons_[index_[i]]) : products_[use] + bias);
      }
    }
    KeepActive();
  }

  void MultiplyByUp() {
    statistics_.bytes += wanted_ * layout_.up_bytes();
    Multiply(job_.up, job_.shared_up, job_.up_inputs, layout_.up_offset,
             adds_down_ ? SameNeurons(layout_.down_offset) : NextNeurons());
    const bool double_relu = job_.double_relu();
    for (int64_t use = 0; use < Begin(wanted_); ++use) {
      values_[use] *= double_relu ? Relu(products_[use]) : products_[use];
    }
    // With dReLU the second factor decides, too.
    if (double_relu) KeepActive();
  }

  // Drops the rows whose value is zero, and the neurons that no row is left of.
  void KeepActive() {
    if (job_.request->dense) return;
    int64_t kept = 0;
    int32_t uses = 0;
    for (int64_t i = 0, use = 0; i < wanted_; ++i) {
      const int32_t before = uses;
      for (const int64_t end = ends_[i]; use < end; ++use) {
        rows_[uses] = rows_[use];
        values_[uses] = values_[use];
        uses += values_[use] != 0;
      }
      index_[kept] = index_[i];
      ends_[kept] = uses;
      kept += uses > before;
    }
    wanted_ = kept;
  }

  void CountFirings() {
    for (int64_t i = 0; i < wanted_; ++i) {
      int64_t active = 0;
      for (int64_t use = Begin(i); use < ends_[i]; ++use) active += values_[use] != 0;
      statistics_.active += active;
      if (job_.request->firings != nullptr) job_.request->firings[neurons_[index_[i]]] += active;
    }
  }

  const Job& job_;
  const BundleLayout& layout_;
  bool adds_down_;
  FfnStatistics statistics_;
  // The neurons at hand, and the bundles after them.
  int64_t count_ = 0;
  std::array<int64_t, kBlock> neurons_;
  std::array<const uint8_t*, kBlock> bundles_, next_bundles_;
  // Those of them that some row wants, as kernels::RowUses has it: with the rows of the request that do.
  int64_t wanted_ = 0;
  std::array<int32_t, kBlock> index_;  // among the neurons at hand
  std::array<int32_t, kBlock> ends_;
  std::array<int32_t, kMostUses> rows_;
  std::array<float, kMostUses> values_;  // by use: activation, then factor of the down row
  std::array<float, kMostUses> products_;
  std::array<const uint8_t*, 2 * kBlock> list_;
  // By row of the request: down rows to be added together, and those that are read afterwards.
  struct Gathered {
    int64_t count = 0;
    std::array<const uint8_t*, kernels::kMostRowsTogether + kernels::kRowsAhead> down;
    std::array<float, kernels::kMostRowsTogether> factors;
  };
  std::array<Gathered, kSparseRows> gathered_;
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

void ComputePartition(const Job& job, const int32_t* wanted, int64_t count, Partial* partial) {
  SparseWalk walk(job, /*adds_down=*/true);
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t block = std::min(kBlock, count - first);
    walk.Compute(wanted + first, block, wanted + first + block, count - first - block);
    walk.AddDown(partial);
  }
  walk.FinishDown(partial);
  partial->statistics = walk.statistics();
}

namespace {

// Computes for another member; false if there is nothing to be done.
bool Help(const Job& job, SparseWalk& walk, Queues& queues, float* factors) {
  const Queues::Claim claim = queues.Steal(job);
  if (claim.count == 0) return false;
  walk.Compute(claim.positions, claim.count, nullptr, 0);
  walk.Store(factors + claim.first * job.rows);
  queues.Finish(claim);
  return true;
}

}  // namespace

void ComputeOwned(const Job& job, int64_t member, Queues& queues, float* factors, Partial* partial) {
  SparseWalk walk(job, /*adds_down=*/true);
  // One claim ahead, so that its rows are on their way before this one's are used up.
  for (Queues::Claim claim = queues.Take(job, member); claim.count > 0;) {
    const Queues::Claim next = queues.Take(job, member);
    walk.Compute(claim.positions, claim.count, next.positions, next.count);
    walk.AddDown(partial);
    claim = next;
  }
  walk.AddsDown(false);
  Queues::Claim stolen;
  while (!queues.Stolen(member, &stolen)) {
    if (!Help(job, walk, queues, factors)) AwaitTrue([&] { return queues.Stolen(member, &stolen); });
  }
  for (int64_t first = 0; first < stolen.count; first += kBlock) {
    walk.Load(stolen.positions + first, std::min(kBlock, stolen.count - first),
              factors + (stolen.first + first) * job.rows);
    walk.AddDown(partial);
  }
  walk.FinishDown(partial);
  while (Help(job, walk, queues, factors)) {
  }
  partial->statistics = walk.statistics();
}

void PrefetchOwned(const Job& job, int64_t member, int64_t members, absl::FunctionRef<bool()> stop) {
  const BundleLayout& layout = *job.view->layout;
  ForEachOwned(job, member, members, [&](int64_t k) {
    if (stop()) return false;
    const uint8_t* const bundle = job.Bundle(k);
    job.gate.prefetch(layout.Gate(bundle), job.hidden);
    if (layout.gated) job.up.prefetch(layout.Up(bundle), job.hidden);
    job.down.prefetch(layout.Down(bundle), job.hidden);
    return true;
  });
}

}  // namespace isotherm::neuron::internal
