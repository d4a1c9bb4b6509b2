#include "common/neuron/ffn.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "common/kernels/ops.h"
#include "common/neuron/ffn_internal.h"

namespace isotherm::neuron {
namespace {

using internal::AlignedFloats;
using internal::GateIndex;
using internal::Job;
using internal::kTiledRows;
using internal::Partial;
using internal::TileScratch;

// Sparse partitions: enough for each thread that one slow partition is a small part of its share, few enough
// that adding them up (one F32 vector a partition) stays below 2 % of a layer.
constexpr int64_t kPartitionsPerThread = 8;
constexpr int64_t kMaxPartitions = 64;
constexpr int64_t kMinPartitionNeurons = 16;
// Columns summed at a time, 4 KiB.
constexpr int64_t kReduceColumns = 1024;

int64_t MostSparsePartitions(int64_t threads) {
  return std::min(threads * kPartitionsPerThread, kMaxPartitions);
}

// A function of the view alone, never of the batch: a row's sums must not depend on what shares its request.
int64_t SparsePartitions(int64_t threads, int64_t neurons) {
  return std::clamp<int64_t>(neurons / kMinPartitionNeurons, 1, MostSparsePartitions(threads));
}

// A counter on a cache line of its own.
struct alignas(64) Ticket {
  std::atomic<int64_t> value{0};
  int64_t Take() { return value.fetch_add(1, std::memory_order_relaxed); }
  void Reset() { value.store(0, std::memory_order_relaxed); }
};

}  // namespace

struct FfnExecutor::Workspace {
  Workspace(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows);

  // y[rows of the job] for up to kSparseRows or kTiledRows rows.
  FfnStatistics RunSparse(const Job& job, float* y);
  FfnStatistics RunTiled(const Job& job, float* y);
  void BuildUnion(Job* job);

  base::ThreadPool* const pool;
  const int64_t threads;
  const int64_t hidden;
  const int64_t ffn;
  const int64_t words;
  GateIndex gate_index;

 private:
  // Calls compute(partition, member, partial) for every partition, then adds the partials up into y in the
  // partitions' order. One fork-join: members take partitions, then column blocks, as they become free; which
  // member did what leaves no trace in the result.
  template <typename Compute>
  FfnStatistics ComputeAndReduce(int64_t partitions, int64_t rows, float* y, const Compute& compute);
  void Reduce(int64_t partitions, int64_t row, int64_t column, float* y) const;

  std::vector<uint64_t> union_mask_;
  std::vector<int32_t> wanted_;   // positions in the view: a list for each thread, or one of the whole view
  AlignedFloats partial_sums_;    // [partitions, rows, hidden]
  std::vector<uint8_t> touched_;  // [partitions, rows]
  std::vector<Partial> partials_;
  std::vector<TileScratch> scratch_;  // by thread
  Ticket next_partition_, finished_partitions_, next_block_;
};

namespace {

int64_t MostPartialRows(int64_t threads, int64_t max_rows) {
  const int64_t sparse = MostSparsePartitions(threads) * std::min(max_rows, kSparseRows);
  return max_rows > kSparseRows ? std::max(sparse, threads * std::min(max_rows, kTiledRows)) : sparse;
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
      wanted_(threads * ffn),
      partial_sums_(MostPartialRows(threads, max_rows) * hidden),
      touched_(MostPartialRows(threads, max_rows)),
      partials_(std::max(threads, kMaxPartitions)) {
  if (max_rows <= kSparseRows) return;
  for (int64_t i = 0; i < threads; ++i) scratch_.emplace_back(hidden);
}

void FfnExecutor::Workspace::BuildUnion(Job* job) {
  std::copy_n(job->Mask(0), words, union_mask_.data());
  for (int64_t row = 1; row < job->rows; ++row) {
    const uint64_t* mask = job->Mask(row);
    for (int64_t w = 0; w < words; ++w) union_mask_[w] |= mask[w];
  }
  job->union_mask = union_mask_.data();
}

void FfnExecutor::Workspace::Reduce(int64_t partitions, int64_t row, int64_t column, float* y) const {
  const int64_t columns = std::min(kReduceColumns, hidden - column);
  bool first = true;
  for (int64_t p = 0; p < partitions; ++p) {
    if (!partials_[p].touched[row]) continue;
    const float* partial = partials_[p].y + row * hidden + column;
    first ? static_cast<void>(std::copy_n(partial, columns, y)) : kernels::Add(partial, y, columns);
    first = false;
  }
  if (first) std::fill_n(y, columns, 0.0f);
}

template <typename Compute>
FfnStatistics FfnExecutor::Workspace::ComputeAndReduce(int64_t partitions, int64_t rows, float* y,
                                                       const Compute& compute) {
  for (int64_t p = 0; p < partitions; ++p) {
    partials_[p] = Partial{partial_sums_.data() + p * rows * hidden, touched_.data() + p * rows, {}};
  }
  std::fill_n(touched_.data(), partitions * rows, uint8_t{0});
  next_partition_.Reset();
  finished_partitions_.Reset();
  next_block_.Reset();

  const int64_t row_blocks = (hidden + kReduceColumns - 1) / kReduceColumns;
  pool->Run([&](int member) {
    for (int64_t p; (p = next_partition_.Take()) < partitions;) {
      compute(p, member, &partials_[p]);
      finished_partitions_.value.fetch_add(1, std::memory_order_release);
    }
    while (finished_partitions_.value.load(std::memory_order_acquire) < partitions) std::this_thread::yield();
    for (int64_t block; (block = next_block_.Take()) < rows * row_blocks;) {
      const int64_t row = block / row_blocks;
      const int64_t column = block % row_blocks * kReduceColumns;
      Reduce(partitions, row, column, y + row * hidden + column);
    }
  });

  FfnStatistics total;
  for (int64_t p = 0; p < partitions; ++p) {
    total.computed += partials_[p].statistics.computed;
    total.active += partials_[p].statistics.active;
  }
  return total;
}

FfnStatistics FfnExecutor::Workspace::RunSparse(const Job& job, float* y) {
  const int64_t count = job.view->count;
  const int64_t partitions = SparsePartitions(threads, count);
  return ComputeAndReduce(partitions, job.rows, y, [&](int64_t p, int member, Partial* partial) {
    internal::ComputeSparse(job, count * p / partitions, count * (p + 1) / partitions, &wanted_[member * ffn],
                            partial);
  });
}

FfnStatistics FfnExecutor::Workspace::RunTiled(const Job& job, float* y) {
  const int64_t count = internal::CollectWanted(job, 0, job.view->count, wanted_.data());
  return ComputeAndReduce(threads, job.rows, y, [&](int64_t p, int member, Partial* partial) {
    const int64_t begin = count * p / threads;
    const int64_t end = count * (p + 1) / threads;
    internal::ComputeTiled(job, wanted_.data() + begin, end - begin, scratch_[member], partial);
  });
}

FfnExecutor::FfnExecutor(base::ThreadPool* pool, int64_t hidden, int64_t ffn, int64_t max_rows)
    : workspace_(std::make_unique<Workspace>(pool, hidden, ffn, max_rows)) {}

FfnExecutor::~FfnExecutor() = default;

int64_t FfnExecutor::WorkspaceBytes(int threads, int64_t hidden, int64_t ffn, int64_t max_rows) {
  const int64_t partial_sums = MostPartialRows(threads, max_rows) * hidden * sizeof(float);
  const int64_t lists = threads * ffn * sizeof(int32_t) + max_rows * MaskWords(ffn) * sizeof(int64_t);
  const int64_t tiles = max_rows > kSparseRows ? threads * TileScratch::Bytes(hidden) : 0;
  return partial_sums + lists + tiles;
}

FfnStatistics FfnExecutor::Run(const BundleView& view, const FfnRequest& request, float* y) {
  Workspace& workspace = *workspace_;
  Job job;
  job.view = &view;
  job.request = &request;
  job.hidden = workspace.hidden;
  job.words = workspace.words;
  job.gate = kernels::GetRowKernels(view.layout->gate_type);
  job.up = kernels::GetRowKernels(view.layout->up_type);
  job.down = kernels::GetRowKernels(view.layout->down_type);
  job.gate_index = &workspace.gate_index;
  if (request.gate_values != nullptr) workspace.gate_index.Build(request.masks, request.rows);

  const bool sparse = request.rows <= kSparseRows;
  FfnStatistics total;
  for (int64_t row = 0; row < request.rows; row += kTiledRows) {
    job.first_row = row;
    job.rows = std::min(kTiledRows, request.rows - row);
    workspace.BuildUnion(&job);
    float* rows_y = y + row * workspace.hidden;
    const FfnStatistics part = sparse ? workspace.RunSparse(job, rows_y) : workspace.RunTiled(job, rows_y);
    total.computed += part.computed;
    total.active += part.active;
  }
  return total;
}

}  // namespace isotherm::neuron
