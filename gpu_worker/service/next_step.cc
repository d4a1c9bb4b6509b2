#include "gpu_worker/service/next_step.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

// The first of the largest, as the gateway's sampler takes it. What no sampler takes, NaN among it, needs no
// guess.
std::optional<uint32_t> FirstLargest(const std::string& logits, int64_t count) {
  constexpr int64_t kLanes = 16;  // as many as the compiler takes together, where their order is none
  if (count < 1 || logits.size() < count * sizeof(float)) return std::nullopt;
  const auto at = [&](int64_t i) {
    float value;
    std::memcpy(&value, logits.data() + i * sizeof(float), sizeof(float));
    return value;
  };
  float most[kLanes];
  std::fill_n(most, kLanes, at(0));
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t first = 0; first < whole; first += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float value = at(first + lane);
      most[lane] = value > most[lane] ? value : most[lane];
    }
  }
  float largest = *std::max_element(most, most + kLanes);
  for (int64_t i = whole; i < count; ++i) largest = std::max(largest, at(i));
  for (int64_t i = 0; i < count; ++i) {
    if (at(i) == largest) return static_cast<uint32_t>(i);
  }
  return std::nullopt;
}

}  // namespace

std::optional<v1::StepRequest> GuessNextStep(const v1::StepRequest& request, const v1::StepSuccess& success,
                                             int64_t kv_block_size) {
  if (request.slices_size() != 1 || success.outputs_size() != 1) return std::nullopt;
  const v1::SequenceSlice& slice = request.slices(0);
  const int64_t position = int64_t{slice.position()} + slice.tokens_size();
  if (slice.greedy_choices() == 0 || slice.output() != v1::STEP_OUTPUT_LAST_LOGITS ||
      position >= slice.block_table_size() * kv_block_size) {
    return std::nullopt;
  }
  const std::optional<uint32_t> token = FirstLargest(success.outputs(0).logits(), slice.greedy_choices());
  if (!token.has_value()) return std::nullopt;
  v1::StepRequest guess;
  guess.set_step_id(request.step_id() + 1);
  v1::SequenceSlice& next = *guess.add_slices();
  next.set_sequence_id(slice.sequence_id());
  next.set_position(static_cast<uint32_t>(position));
  next.add_tokens(*token);
  *next.mutable_block_table() = slice.block_table();
  next.set_output(v1::STEP_OUTPUT_LAST_LOGITS);
  return guess;
}

bool IsGuessed(const v1::StepRequest& guess, const v1::StepRequest& request) {
  if (request.slices_size() != 1) return false;
  const v1::SequenceSlice& guessed = guess.slices(0);
  const v1::SequenceSlice& asked = request.slices(0);
  // Blocks that the request has in addition are of later rows.
  return asked.sequence_id() == guessed.sequence_id() && asked.position() == guessed.position() &&
         asked.tokens_size() == 1 && asked.tokens(0) == guessed.tokens(0) &&
         asked.output() == guessed.output() && asked.block_table_size() >= guessed.block_table_size() &&
         std::equal(guessed.block_table().begin(), guessed.block_table().end(), asked.block_table().begin());
}

}  // namespace isotherm::gpu_worker
