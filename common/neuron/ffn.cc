#include "common/neuron/ffn.h"

#include <algorithm>
#include <atomic>

#include "common/kernels/ops.h"
#include "common/neuron/ffn_internal.h"
#include "common/neuron/ffn_queues.h"

namespace isotherm::neuron {
namespace {

using internal::AlignedFloats;
using internal::GateIndex;
using internal::Job;
using internal::kTiledRows;
using internal::Partial;
using internal::Queues;
using internal::TileScratch;

// Up to so many threads, they take partitions of the view as they become free. With more, the partial sums
// of enough partitions would take as long as the wait for the longest of few: each has one of its own, and
// helps the others.
constexpr int64_t kFewThreads = 4;
// Enough for each of few threads that one slow partition is a small part of its share, few enough that adding
// them up (one F32 vector a partition) stays below 2 % of a layer.
constexpr int64_t kPartitionsPerThread = 8;
constexpr int64_t kMinPartitionNeurons = 16;
// Sums are added up in parts of whole cache lines and panels, one part a thread.
constexpr int64_t kLineFloats = 16;

// A counter on a cache line of its own.
struct alignas(64) Ticket {
  std::atomic<int64_t> value{0};
  int64_t Take() { return value.fetch_add(1, std::memory_order_relaxed); }
  void Reset() { value.store(0, std::memory_order_relaxed); }

  // A stage that ends when all its parts are done; what was written in them is then seen by those who waited.
  void Arrive() { value.fetch_add(1, std::memory_order_release); }
  void AwaitArrivals(int64_t parts) const {
    internal::AwaitTrue([&] { return value.load(std::memory_order_acquire) >= parts; });
  }
};

}  // namespace

struct FfnExecutor::Workspace {
  Workspace(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows);

  // y[rows of the job] for up to kSparseRows or kTiledRows rows.
  FfnStatistics RunSparse(Job job, float* y) {
    PrepareInputs(&job);
    return threads <= kFewThreads ? RunPartitions(job, y) : RunOwned(job, y);
  }
  FfnStatistics RunTiled(const Job& job, float* y);
  // The neurons of the job's union.
  void Prefetch(const Job& job, absl::FunctionRef<bool()> stop) const;
  void BuildUnion(Job* job);
  Job MakeJob(const BundleView& view) const;

  base::ThreadPool* const pool;
  const int64_t threads;
  const int64_t hidden;
  const int64_t ffn;
  const int64_t words;
  GateIndex gate_index;

 private:
  int64_t CollectWanted(const Job& job);
  FfnStatistics RunOwned(const Job& job, float* y);
  FfnStatistics RunPartitions(const Job& job, float* y);
  // Calls compute(partition, member, partial) for every partition, then adds the partials up into y in the
  // partitions' order. One fork-join: members take partitions, then parts of the sums, as they become free;
  // which member did what leaves no trace in the result.
  template <typename Compute>
  FfnStatistics ComputeAndReduce(int64_t partitions, int64_t rows, const kernels::RowKernels* order, float* y,
                                 const Compute& compute);
  void PrepareInputs(Job* job);
  void ClearPartials(int64_t partitions, int64_t rows);
  // A member's part of adding up, when every partition has arrived: sums in the columns' order, or as `order`
  // has them.
  void ReduceFinished(int64_t partitions, int64_t rows, const kernels::RowKernels* order, float* y);
  // y[columns] of one row from `column` on.
  void Reduce(int64_t partitions, int64_t row, int64_t column, int64_t columns, float* y) const;
  FfnStatistics Total(int64_t partials) const;

  std::vector<uint64_t> union_mask_;
  std::vector<int32_t> wanted_;  // positions in the view that some row wants
  AlignedFloats floats_;         // partial sums [partitions, rows, hidden], then RunOwned's factors
  // Vectors as gate rows and as up rows read them, in the sparse path.
  AlignedFloats gate_inputs_, up_inputs_;
  std::vector<uint8_t> touched_;  // [partitions, rows]
  std::vector<Partial> partials_;
  std::vector<TileScratch> scratch_;  // by thread
  Queues queues_;
  Ticket next_partition_, finished_, next_part_;
};

namespace {

int64_t MostPartials(int64_t threads) {
  return threads <= kFewThreads ? threads * kPartitionsPerThread : threads;
}

int64_t MostPartialRows(int64_t threads, int64_t max_rows) {
  const int64_t sparse = MostPartials(threads) * std::min(max_rows, kSparseRows);
  return max_rows > kSparseRows ? std::max(sparse, threads * std::min(max_rows, kTiledRows)) : sparse;
}

// Of the sparse path's vectors as rows of one type read them.
int64_t MostInputFloats(int64_t hidden, int64_t max_rows) {
  return std::min(max_rows, kSparseRows) * kernels::MostInputBytes(hidden) /
         static_cast<int64_t>(sizeof(float));
}

int64_t MostFloats(int64_t threads, int64_t hidden, int64_t ffn, int64_t max_rows) {
  const int64_t partials = MostPartialRows(threads, max_rows) * hidden;
  if (threads <= kFewThreads) return partials;
  const int64_t rows = std::min(max_rows, kSparseRows);
  return std::max(partials, rows * (threads * hidden + Queues::Entries(threads, ffn)));
}

}  // namespace

FfnExecutor::Workspace::Workspace(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows)
    : pool(pool),
      threads(pool->threads()),
      hidden(hidden),
      ffn(ffn),
      words(MaskWords(ffn)),
      gate_index(max_rows, words),
      union_mask_(words),
      wanted_(ffn),
      floats_(MostFloats(threads, hidden, ffn, max_rows)),
      gate_inputs_(MostInputFloats(hidden, max_rows)),
      up_inputs_(MostInputFloats(hidden, max_rows)),
      touched_(MostPartialRows(threads, max_rows)),
      partials_(MostPartials(threads)),
      queues_(threads, ffn) {
  if (max_rows <= kSparseRows) return;
  for (int64_t i = 0; i < threads; ++i) scratch_.emplace_back(hidden);
}

Job FfnExecutor::Workspace::MakeJob(const BundleView& view) const {
  Job job;
  job.view = &view;
  job.hidden = hidden;
  job.words = words;
  job.gate = kernels::GetRowKernels(view.layout->gate_type);
  job.up = kernels::GetRowKernels(view.layout->up_type);
  job.down = kernels::GetRowKernels(view.layout->down_type);
  job.shared_gate = kernels::GetSharedRowKernels(view.layout->gate_type);
  job.shared_up = kernels::GetSharedRowKernels(view.layout->up_type);
  job.shared_down = kernels::GetSharedRowKernels(view.layout->down_type);
  return job;
}

void FfnExecutor::Workspace::PrepareInputs(Job* job) {
  const auto prepare = [&](const kernels::RowKernels& kernels, const AlignedFloats& room) {
    return kernels::PrepareInputs(kernels, job->X(0), hidden, job->rows, hidden,
                                  reinterpret_cast<uint8_t*>(room.data()));
  };
  const BundleLayout& layout = *job->view->layout;
  if (job->request->gate_values == nullptr) job->gate_inputs = prepare(job->gate, gate_inputs_);
  if (!layout.gated) return;
  const bool same = job->request->gate_values == nullptr && layout.up_type == layout.gate_type;
  job->up_inputs = same ? job->gate_inputs : prepare(job->up, up_inputs_);
}

void FfnExecutor::Workspace::BuildUnion(Job* job) {
  std::copy_n(job->Mask(0), words, union_mask_.data());
  for (int64_t row = 1; row < job->rows; ++row) {
    const uint64_t* mask = job->Mask(row);
    for (int64_t w = 0; w < words; ++w) union_mask_[w] |= mask[w];
  }
  job->union_mask = union_mask_.data();
}

int64_t FfnExecutor::Workspace::CollectWanted(const Job& job) {
  if (job.view->neuron_ids != nullptr || job.view->count != ffn) {
    return internal::CollectWanted(job, 0, job.view->count, wanted_.data());
  }
  int64_t count = 0;
  ForEachSet(job.union_mask, words, [&](int64_t neuron) { wanted_[count++] = static_cast<int32_t>(neuron); });
  return count;
}

FfnStatistics FfnExecutor::Workspace::RunOwned(const Job& job, float* y) {
  queues_.Reset();
  ClearPartials(threads, job.rows);
  float* const factors = floats_.data() + threads * job.rows * hidden;
  pool->Run([&](int member) {
    internal::ComputeOwned(job, member, queues_, factors, &partials_[member]);
    finished_.Arrive();
    ReduceFinished(threads, job.rows, &job.down, y);
  });
  return Total(threads);
}

FfnStatistics FfnExecutor::Workspace::RunPartitions(const Job& job, float* y) {
  const int64_t positions = job.view->count;
  // A function of the view alone, never of the batch: a row's sums must not depend on what shares its
  // request.
  const int64_t partitions = std::clamp<int64_t>(positions / kMinPartitionNeurons, 1, MostPartials(threads));
  const int32_t* const wanted = wanted_.data();
  const int32_t* const wanted_end = wanted + CollectWanted(job);
  return ComputeAndReduce(partitions, job.rows, &job.down, y, [&](int64_t p, int, Partial* partial) {
    const int32_t* const begin = std::lower_bound(wanted, wanted_end, positions * p / partitions);
    const int32_t* const end = std::lower_bound(begin, wanted_end, positions * (p + 1) / partitions);
    internal::ComputePartition(job, begin, end - begin, partial);
  });
}

void FfnExecutor::Workspace::Prefetch(const Job& job, absl::FunctionRef<bool()> stop) const {
  pool->Run([&](int member) { internal::PrefetchOwned(job, member, threads, stop); });
}

void FfnExecutor::Workspace::Reduce(int64_t partitions, int64_t row, int64_t column, int64_t columns,
                                    float* y) const {
  // As many as a core has lines on their way at a time.
  constexpr int64_t kMostSummands = 16;
  const float* summands[kMostSummands];
  int64_t count = 0;
  for (int64_t p = 0; p < partitions; ++p) {
    if (!partials_[p].touched[row]) continue;
    if (count == kMostSummands) {
      kernels::Sum(summands, count, columns, y);
      summands[0] = y;
      count = 1;
    }
    summands[count++] = partials_[p].y + row * hidden + column;
  }
  kernels::Sum(summands, count, columns, y);
}

void FfnExecutor::Workspace::ClearPartials(int64_t partitions, int64_t rows) {
  for (int64_t p = 0; p < partitions; ++p) {
    partials_[p] = Partial{floats_.data() + p * rows * hidden, touched_.data() + p * rows, {}};
  }
  std::fill_n(touched_.data(), partitions * rows, uint8_t{0});
  finished_.Reset();
  next_part_.Reset();
}

void FfnExecutor::Workspace::ReduceFinished(int64_t partitions, int64_t rows,
                                            const kernels::RowKernels* order, float* y) {
  finished_.AwaitArrivals(partitions);
  const bool ordered = order == nullptr || order->order_sums == nullptr;
  const int64_t step = ordered ? kLineFloats : std::max(kLineFloats, order->panel_columns);
  const int64_t steps = (hidden + step - 1) / step;
  for (int64_t part; (part = next_part_.Take()) < threads;) {
    const int64_t end = rows * steps * (part + 1) / threads;
    for (int64_t i = rows * steps * part / threads; i < end;) {
      const int64_t row = i / steps;
      const int64_t row_end = std::min(end, (row + 1) * steps);
      const int64_t column = i % steps * step;
      const int64_t columns = std::min(hidden, column + (row_end - i) * step) - column;
      float* const to = y + row * hidden + column;
      Reduce(partitions, row, column, columns, to);
      if (!ordered) order->order_sums(columns, to);
      i = row_end;
    }
  }
}

template <typename Compute>
FfnStatistics FfnExecutor::Workspace::ComputeAndReduce(int64_t partitions, int64_t rows,
                                                       const kernels::RowKernels* order, float* y,
                                                       const Compute& compute) {
  ClearPartials(partitions, rows);
  next_partition_.Reset();
  pool->Run([&](int member) {
    for (int64_t p; (p = next_partition_.Take()) < partitions;) {
      compute(p, member, &partials_[p]);
      finished_.Arrive();
    }
    ReduceFinished(partitions, rows, order, y);
  });
  return Total(partitions);
}

FfnStatistics FfnExecutor::Workspace::RunTiled(const Job& job, float* y) {
  const int64_t count = CollectWanted(job);
  return ComputeAndReduce(threads, job.rows, nullptr, y, [&](int64_t p, int member, Partial* partial) {
    const int64_t begin = count * p / threads, end = count * (p + 1) / threads;
    internal::ComputeTiled(job, wanted_.data() + begin, end - begin, scratch_[member], partial);
  });
}

FfnStatistics FfnExecutor::Workspace::Total(int64_t partials) const {
  FfnStatistics total;
  for (int64_t p = 0; p < partials; ++p) total += partials_[p].statistics;
  return total;
}

FfnExecutor::FfnExecutor(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows)
    : workspace_(std::make_unique<Workspace>(pool, hidden, ffn, max_rows)) {}

FfnExecutor::~FfnExecutor() = default;

int64_t FfnExecutor::WorkspaceBytes(int threads, int64_t hidden, int64_t ffn, int64_t max_rows) {
  const int64_t sums = (MostFloats(threads, hidden, ffn, max_rows) + 2 * MostInputFloats(hidden, max_rows)) *
                       static_cast<int64_t>(sizeof(float));
  const int64_t lists = 2 * ffn * sizeof(int32_t) + max_rows * MaskWords(ffn) * sizeof(int64_t);
  const int64_t tiles = max_rows > kSparseRows ? threads * TileScratch::Bytes(hidden) : 0;
  return sums + lists + tiles;
}

FfnStatistics FfnExecutor::Run(const BundleView& view, const FfnRequest& request, float* y) {
  Workspace& workspace = *workspace_;
  Job job = workspace.MakeJob(view);
  job.request = &request;
  job.gate_index = &workspace.gate_index;
  if (request.gate_values != nullptr) workspace.gate_index.Build(request.masks, request.rows);

  const bool sparse = request.rows <= kSparseRows;
  FfnStatistics total;
  for (int64_t row = 0; row < request.rows; row += kTiledRows) {
    job.first_row = row;
    job.rows = std::min(kTiledRows, request.rows - row);
    workspace.BuildUnion(&job);
    float* rows_y = y + row * workspace.hidden;
    total += sparse ? workspace.RunSparse(job, rows_y) : workspace.RunTiled(job, rows_y);
  }
  return total;
}

void FfnExecutor::Prefetch(const BundleView& view, const uint64_t* mask, absl::FunctionRef<bool()> stop) {
  Job job = workspace_->MakeJob(view);
  job.union_mask = mask;
  workspace_->Prefetch(job, stop);
}

}  // namespace isotherm::neuron
