#include "gpu_worker/service/firing_log.h"

#include <algorithm>

namespace isotherm::gpu_worker {
namespace {

void Add(const FiringCounts& part, FiringCounts& sum) {
  for (size_t layer = 0; layer < part.size(); ++layer) {
    for (size_t neuron = 0; neuron < part[layer].size(); ++neuron) sum[layer][neuron] += part[layer][neuron];
  }
}

}  // namespace

FiringLog::FiringLog(int64_t layers, int64_t ffn) : hot_(layers, std::vector<uint64_t>(ffn)) {
  before_.counts = hot_;
  totals_.counts = hot_;
}

void FiringLog::OnExchangeOpened(int64_t rows) {
  for (std::vector<uint64_t>& layer : hot_) std::fill(layer.begin(), layer.end(), 0);
  before_ = totals_;
  rows_before_ = rows;
}

void FiringLog::AddHot(const FiringCounts& hot) { Add(hot, hot_); }

void FiringLog::Settle(const FiringCounts& cold, int64_t rows) {
  totals_ = before_;
  totals_.tokens += rows - rows_before_;
  Add(hot_, totals_.counts);
  Add(cold, totals_.counts);
  settled_rows_ = rows;
}

}  // namespace isotherm::gpu_worker
