#include "gpu_worker/graph/runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

bool IsDecode(const v1::SequenceSlice& slice) { return slice.tokens_size() == 1; }

// The slices of each pass. Decode rows share one. A prefill chunk has its own: how the sums over many rows
// are ordered depends on the rows, and nobody's text shall depend on who else is in the step.
std::vector<std::vector<int>> DivideIntoPasses(const v1::StepRequest& request) {
  std::vector<int> decode;
  std::vector<std::vector<int>> passes;
  for (int i = 0; i < request.slices_size(); ++i) {
    if (IsDecode(request.slices(i))) {
      decode.push_back(i);
    } else {
      passes.push_back({i});
    }
  }
  if (!decode.empty()) passes.insert(passes.begin(), std::move(decode));
  return passes;
}

absl::Status Invalid(const std::string& where, const std::string& problem) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", problem));
}

absl::Duration Median(std::vector<absl::Duration> values) {
  if (values.empty()) return absl::ZeroDuration();
  auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

Runner::Runner(const model::Hyperparameters& hyperparameters, const RunnerOptions& options,
               Pipeline* pipeline)
    : h_(hyperparameters),
      options_(options),
      pipeline_(pipeline),
      micro_batch_policy_(options.micro_batches, pipeline->most_micro_batches()),
      layer_totals_(hyperparameters.layers) {}

absl::StatusOr<v1::StepSuccess> Runner::Run(const v1::StepRequest& request) {
  ISOTHERM_RETURN_IF_ERROR(Validate(request));
  const absl::Time start = absl::Now();
  micro_batches_ = 0;
  Tally tally;
  tally.layers.resize(h_.layers);
  v1::StepSuccess success;
  for (int i = 0; i < request.slices_size(); ++i) {
    success.add_outputs()->set_sequence_id(request.slices(i).sequence_id());
  }
  const bool exact_before = pipeline_->exact();
  for (const std::vector<int>& slices : DivideIntoPasses(request)) {
    if (absl::Status status = RunPass(request, slices, success, tally); !status.ok()) {
      pipeline_->TakeStatistics();  // a failed step's counts are discarded
      return status;
    }
  }
  v1::StepStatistics& statistics = *success.mutable_statistics();
  Account(std::move(tally), statistics);
  statistics.set_seconds(absl::ToDoubleSeconds(absl::Now() - start));
  statistics.set_exact(exact_before && pipeline_->exact());
  statistics.set_predictor(pipeline_->predictor_name());
  statistics.set_exchange_latency_seconds(absl::ToDoubleSeconds(Median(exchange_latencies_)));
  return success;
}

absl::Status Runner::Validate(const v1::StepRequest& request) const {
  if (request.slices().empty()) return Invalid("slices", "empty step");
  int64_t decode_rows = 0, prefill_rows = 0, logit_rows = 0;
  for (int i = 0; i < request.slices_size(); ++i) {
    const v1::SequenceSlice& slice = request.slices(i);
    ISOTHERM_RETURN_IF_ERROR(ValidateSlice(slice, absl::StrCat("slices[", i, "]")));
    (IsDecode(slice) ? decode_rows : prefill_rows) += slice.tokens_size();
    if (slice.output() == v1::STEP_OUTPUT_LAST_LOGITS) ++logit_rows;
  }
  if (decode_rows > options_.max_decode_rows || logit_rows > options_.max_decode_rows) {
    return Invalid("slices", absl::StrCat(decode_rows, " decode rows and ", logit_rows,
                                          " rows of logits; at most ", options_.max_decode_rows, " of each"));
  }
  if (prefill_rows > options_.max_prefill_rows) {
    return Invalid("slices",
                   absl::StrCat(prefill_rows, " prefill rows; at most ", options_.max_prefill_rows));
  }
  return absl::OkStatus();
}

absl::Status Runner::ValidateSlice(const v1::SequenceSlice& slice, const std::string& where) const {
  if (slice.tokens().empty()) return Invalid(absl::StrCat(where, ".tokens"), "empty");
  const int64_t end = int64_t{slice.position()} + slice.tokens_size();
  if (end > options_.context) {
    return Invalid(absl::StrCat(where, ".position"),
                   absl::StrCat("rows up to ", end, " exceed the context of ", options_.context, " tokens"));
  }
  for (uint32_t token : slice.tokens()) {
    if (token >= h_.vocabulary) {
      return Invalid(absl::StrCat(where, ".tokens"),
                     absl::StrCat("token ", token, " is outside the vocabulary of ", h_.vocabulary));
    }
  }
  if (slice.block_table_size() * options_.kv_block_size < end) {
    return Invalid(absl::StrCat(where, ".block_table"),
                   absl::StrCat(slice.block_table_size(), " blocks of ", options_.kv_block_size,
                                " tokens cannot hold ", end, " rows"));
  }
  for (uint32_t block : slice.block_table()) {
    if (block >= options_.kv_blocks()) {
      return Invalid(absl::StrCat(where, ".block_table"),
                     absl::StrCat("block ", block, " of ", options_.kv_blocks()));
    }
  }
  if (slice.output() == v1::STEP_OUTPUT_LOG_PROBABILITIES) {
    if (slice.targets_size() != slice.tokens_size()) {
      return Invalid(absl::StrCat(where, ".targets"),
                     absl::StrCat(slice.targets_size(), " targets for ", slice.tokens_size(), " tokens"));
    }
    for (uint32_t target : slice.targets()) {
      if (target >= h_.vocabulary) {
        return Invalid(absl::StrCat(where, ".targets"),
                       absl::StrCat("token ", target, " is outside the vocabulary of ", h_.vocabulary));
      }
    }
  } else if (slice.output() != v1::STEP_OUTPUT_NONE && slice.output() != v1::STEP_OUTPUT_LAST_LOGITS) {
    return Invalid(absl::StrCat(where, ".output"), "unspecified or unknown");
  }
  return absl::OkStatus();
}

absl::Status Runner::RunPass(const v1::StepRequest& request, const std::vector<int>& slices,
                             v1::StepSuccess& success, Tally& tally) {
  Pass pass;
  pass.input.step = request.step_id();
  std::vector<Output> logits, scored;
  for (const int i : slices) {
    const v1::SequenceSlice& slice = request.slices(i);
    const auto table = static_cast<int32_t>(pass.input.block_tables.size());
    pass.input.block_tables.insert(pass.input.block_tables.end(), slice.block_table().begin(),
                                   slice.block_table().end());
    for (int t = 0; t < slice.tokens_size(); ++t) {
      const auto row = static_cast<int32_t>(pass.input.rows());
      pass.input.tokens.push_back(slice.tokens(t));
      pass.input.positions.push_back(static_cast<int32_t>(slice.position()) + t);
      pass.input.table_offsets.push_back(table);
      if (slice.output() == v1::STEP_OUTPUT_LOG_PROBABILITIES)
        scored.push_back({i, row, true, slice.targets(t)});
    }
    if (slice.output() == v1::STEP_OUTPUT_LAST_LOGITS) {
      logits.push_back({i, static_cast<int32_t>(pass.input.rows()) - 1});
    }
  }

  pass.logit_rows = static_cast<int64_t>(logits.size());
  std::vector<Output> outputs = std::move(logits);
  outputs.insert(outputs.end(), scored.begin(), scored.end());
  for (const Output& output : outputs) {
    pass.input.output_rows.push_back(output.row);
    if (output.scored) pass.targets.push_back(output.target);
  }
  pass.input.scored_rows = static_cast<int64_t>(pass.targets.size());
  if (options_.planned_fault.has_value() && ++passes_ == options_.planned_fault->pass) {
    pipeline_->BreakNext(options_.planned_fault->fault);
  }
  const bool decode = IsDecode(request.slices(slices.front()));
  ISOTHERM_RETURN_IF_ERROR(decode ? RunDecode(pass, tally) : RunPrefill(pass, tally));
  return Collect(outputs, pass.logit_rows, success);
}

absl::Status Runner::RunPrefill(const Pass& pass, Tally& tally) {
  ISOTHERM_RETURN_IF_ERROR(pipeline_->Run(pass));
  TakePass(pass.input.rows(), tally);
  return absl::OkStatus();
}

absl::Status Runner::RunDecode(Pass& pass, Tally& tally) {
  const int64_t rows = pass.input.rows();
  pass.micro_batches = micro_batches_ = micro_batch_policy_.Choose(rows);
  const absl::Time start = absl::Now();
  ISOTHERM_RETURN_IF_ERROR(pipeline_->Run(pass));
  const absl::Duration taken = absl::Now() - start;
  micro_batch_policy_.Record(rows, taken, TakePass(rows, tally));
  return absl::OkStatus();
}

absl::Status Runner::Collect(const std::vector<Output>& outputs, int64_t logit_rows,
                             v1::StepSuccess& success) {
  for (int64_t i = 0; i < logit_rows; ++i) {
    std::string& bytes = *success.mutable_outputs(static_cast<int>(outputs[i].slice))->mutable_logits();
    bytes.resize(h_.vocabulary * sizeof(float));
    ISOTHERM_RETURN_IF_ERROR(pipeline_->ReadLogits(i, 1, reinterpret_cast<float*>(bytes.data())));
  }
  const int64_t scored = static_cast<int64_t>(outputs.size()) - logit_rows;
  std::vector<float> values(scored);
  if (scored > 0) ISOTHERM_RETURN_IF_ERROR(pipeline_->ReadLogProbabilities(scored, values.data()));
  for (int64_t i = 0; i < scored; ++i) {
    success.mutable_outputs(static_cast<int>(outputs[logit_rows + i].slice))
        ->add_log_probabilities(values[i]);
  }
  return absl::OkStatus();
}

absl::Duration Runner::TakePass(int64_t rows, Tally& tally) {
  PassStatistics pass = pipeline_->TakeStatistics();
  tally.rows += rows;
  tally.cpu_worker_wait += pass.cpu_worker_wait;
  tally.exchange_latencies.insert(tally.exchange_latencies.end(), pass.exchange_latencies.begin(),
                                  pass.exchange_latencies.end());
  for (int64_t l = 0; l < h_.layers; ++l) tally.layers[l] += pass.layers[l];
  return pass.cpu_worker_wait;
}

void Runner::Account(Tally tally, v1::StepStatistics& statistics) {
  LayerStatistics sum;
  for (int64_t l = 0; l < h_.layers; ++l) {
    sum += tally.layers[l];
    layer_totals_[l] += tally.layers[l];
  }
  rows_total_ += tally.rows;
  statistics.set_neurons_total(tally.rows * h_.layers * h_.ffn);
  statistics.set_neurons_computed(sum.hot_computed + sum.cold_computed);
  statistics.set_hot_neurons_computed(sum.hot_computed);
  statistics.set_neurons_active(sum.active);
  statistics.set_exchanges(tally.exchange_latencies.size());
  statistics.set_cpu_worker_wait_seconds(absl::ToDoubleSeconds(tally.cpu_worker_wait));
  exchange_latencies_ = std::move(tally.exchange_latencies);
}

}  // namespace isotherm::gpu_worker
