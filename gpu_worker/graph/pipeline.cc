#include "gpu_worker/graph/pipeline.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu_worker {

absl::StatusOr<std::unique_ptr<Pipeline>> Pipeline::Load(const model::Model& model,
                                                         const RunnerOptions& options,
                                                         const neuron::Placement& placement,
                                                         const std::vector<Stage>& stages,
                                                         const MakePredictor& make_predictor,
                                                         const std::function<absl::Status()>& progress) {
  std::unique_ptr<Pipeline> pipeline(new Pipeline(stages, model.hyperparameters().vocabulary));
  for (const Stage& stage : stages) {
    ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<Predictor> predictor, make_predictor(stage));
    ISOTHERM_ASSIGN_OR_RETURN(pipeline->decoders_.emplace_back(),
                              Decoder::Load(model, options, placement, stage.layers, std::move(predictor),
                                            *stage.device, progress));
  }
  return pipeline;
}

// A device starts when the one before has ended: the exchanges of a step follow one another in any case, and
// one wait a device is little beside its layers.
absl::Status Pipeline::Run(const Pass& pass) {
  const std::optional<DeviceFault> fault = std::exchange(fault_, std::nullopt);
  for (size_t i = 0; i < stages_.size(); ++i) {
    Device& device = *stages_[i].device;
    if (i > 0) ISOTHERM_RETURN_IF_ERROR(decoders_[i]->Continue(*decoders_[i - 1], pass.input.rows()));
    device.BeginPass(pass.input);
    decoders_[i]->Enqueue(pass);
    if (fault.has_value() && i + 1 == stages_.size()) device.Break(*fault);
    ISOTHERM_RETURN_IF_ERROR(device.EndPass());
  }
  return absl::OkStatus();
}

absl::Status Pipeline::ReadLogits(int64_t first, int64_t count, float* out) {
  return stages_.back().device->Read(decoders_.back()->logits() + first * vocabulary_, count * vocabulary_,
                                     out);
}

absl::Status Pipeline::ReadLogProbabilities(int64_t count, float* out) {
  return stages_.back().device->Read(decoders_.back()->log_probabilities(), count, out);
}

int64_t Pipeline::most_micro_batches() const {
  int64_t most = stages_.front().device->most_micro_batches();
  for (const Stage& stage : stages_) most = std::min(most, stage.device->most_micro_batches());
  return most;
}

void Pipeline::SetChannel(exchange::Channel* channel, uint64_t placement_epoch) {
  for (const Stage& stage : stages_) stage.device->SetChannel(channel, placement_epoch);
}

PassStatistics Pipeline::TakeStatistics() {
  PassStatistics sum;
  for (const Stage& stage : stages_) {
    PassStatistics taken = stage.device->TakeStatistics();
    sum.layers.resize(taken.layers.size());
    for (size_t l = 0; l < sum.layers.size(); ++l) sum.layers[l] += taken.layers[l];
    sum.exchange_latencies.insert(sum.exchange_latencies.end(), taken.exchange_latencies.begin(),
                                  taken.exchange_latencies.end());
    sum.cpu_worker_wait += taken.cpu_worker_wait;
  }
  return sum;
}

FiringCounts Pipeline::TakeFirings() {
  FiringCounts counts = stages_.front().device->TakeFirings();
  for (size_t i = 1; i < stages_.size(); ++i) {
    FiringCounts taken = stages_[i].device->TakeFirings();
    if (counts.empty() || taken.empty()) return {};
    const LayerRange layers = stages_[i].layers;
    std::move(taken.begin() + layers.begin, taken.begin() + layers.end, counts.begin() + layers.begin);
  }
  return counts;
}

double Pipeline::MeasureReadBandwidth() {
  return stages_.back().device->MeasureReadBandwidth(decoders_.back()->head());
}

std::string Pipeline::predictor_name() const {
  std::set<std::string> names;
  for (const auto& decoder : decoders_) names.insert(decoder->predictor().name());
  return absl::StrJoin(names, ", ");
}

bool Pipeline::exact() const {
  return std::all_of(decoders_.begin(), decoders_.end(),
                     [](const auto& decoder) { return decoder->predictor().exact(); });
}

}  // namespace isotherm::gpu_worker
