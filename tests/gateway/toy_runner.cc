#include "tests/gateway/toy_runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"

namespace isotherm::gateway {
namespace {

uint64_t Mix(uint64_t x) {  // the finaliser of SplitMix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

float LogProbability(const std::vector<float>& logits, uint32_t token) {
  double total = 0;
  for (const float logit : logits) total += std::exp(logit);
  return static_cast<float>(logits[token] - std::log(total));
}

}  // namespace

std::unique_ptr<text::Tokenizer> MakeToyTokenizer() {
  text::Vocabulary vocabulary;
  vocabulary.tokens = {{"<unk>", 0, text::TokenType::kUnknown},
                       {"<s>", 0, text::TokenType::kControl},
                       {"</s>", 0, text::TokenType::kControl}};
  for (int byte = 0; byte < 256; ++byte) {
    vocabulary.tokens.push_back({absl::StrFormat("<0x%02X>", byte), 0, text::TokenType::kByte});
  }
  for (const char* piece : {"\xE2\x96\x81", ".", ",", "\xC3\xA9"}) {
    vocabulary.tokens.push_back({piece, -100, text::TokenType::kNormal});
  }
  for (char letter = 'a'; letter <= 'z'; ++letter) {
    vocabulary.tokens.push_back({std::string(1, letter), -100, text::TokenType::kNormal});
  }
  for (const char* piece : {"th", "he", "in", "er", "an", "the", "ing"}) {
    vocabulary.tokens.push_back(
        {piece, -static_cast<float>(10 - std::strlen(piece)), text::TokenType::kNormal});
  }
  vocabulary.unknown = 0;
  vocabulary.bos = 1;
  vocabulary.eos = kToyEos;
  vocabulary.add_bos = true;
  vocabulary.add_space_prefix = false;
  return text::Tokenizer::Create(std::move(vocabulary)).value();
}

uint64_t ToyModel::Extend(uint64_t state, uint32_t token, uint32_t position) {
  return Mix(state ^ Mix(uint64_t{position} << 32 | token));
}

uint64_t ToyModel::StateOf(const std::vector<uint32_t>& tokens) {
  uint64_t state = 0;
  for (size_t i = 0; i < tokens.size(); ++i) state = Extend(state, tokens[i], static_cast<uint32_t>(i));
  return state;
}

std::vector<float> ToyModel::Logits(uint64_t state, int64_t vocabulary) {
  std::vector<float> logits(vocabulary, -30.0f);
  for (int64_t token = kFirstToyPiece; token < vocabulary; ++token) {
    logits[token] = static_cast<float>(static_cast<double>(Mix(state + token) >> 11) * 0x1p-53 * 8);
  }
  return logits;
}

std::vector<uint32_t> ToyModel::Continue(std::vector<uint32_t> tokens, int count, int64_t vocabulary) {
  const size_t prompt = tokens.size();
  for (int i = 0; i < count; ++i) {
    const std::vector<float> logits = Logits(StateOf(tokens), vocabulary);
    tokens.push_back(static_cast<uint32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  }
  return {tokens.begin() + prompt, tokens.end()};
}

ToyRunner::ToyRunner(const Options& options)
    : options_(options), cache_(size_t{options.blocks} * options.block_size) {}

worker::v1::GetRunnerResponse ToyRunner::Describe() const {
  base::MutexLock lock(&mutex_);
  worker::v1::GetRunnerResponse response;
  response.set_instance_id(absl::StrCat("instance-", instance_));
  response.set_model_digest(options_.digest);
  response.set_vocabulary_size(options_.vocabulary);
  response.set_context_length(options_.context);
  response.set_kv_block_size(options_.block_size);
  response.set_kv_blocks(claimed_blocks_.value_or(options_.blocks));
  response.set_max_prefill_rows(options_.max_prefill_rows);
  response.set_max_decode_rows(options_.max_decode_rows);
  response.set_predictor("sketch");
  response.set_mode("predicted");
  response.set_hot_share(0.25);
  response.set_transport("shm");
  response.set_ready(not_ready_.empty());
  response.set_not_ready_cause(not_ready_);
  return response;
}

worker::v1::StepResponse ToyRunner::Step(const worker::v1::StepRequest& request) {
  return *StepOn(std::nullopt, request, [] { return true; });
}

std::optional<worker::v1::StepResponse> ToyRunner::StepOn(const std::optional<std::string>& instance,
                                                          const worker::v1::StepRequest& request,
                                                          absl::FunctionRef<bool()> patient) {
  absl::Duration step_time;
  {
    base::MutexLock lock(&mutex_);
    step_time = options_.step_time;
  }
  if (step_time > absl::ZeroDuration()) absl::SleepFor(step_time);
  base::MutexLock lock(&mutex_);
  if (!PassGate(patient)) return std::nullopt;
  if (throws_ > 0) {
    --throws_;
    throw std::runtime_error("thrown on purpose");
  }
  if (instance.has_value() && *instance != absl::StrCat("instance-", instance_)) return std::nullopt;
  return StepLocked(request);
}

bool ToyRunner::PassGate(absl::FunctionRef<bool()> patient) {
  ++waiting_at_gate_;
  bool patience = patient();
  while (patience && !mutex_.AwaitWithTimeout(absl::Condition(this, &ToyRunner::GateOpen), kPatience)) {
    patience = patient();
  }
  --waiting_at_gate_;
  return patience;
}

worker::v1::StepResponse ToyRunner::StepLocked(const worker::v1::StepRequest& request) {
  worker::v1::StepResponse response;
  response.set_step_id(request.step_id());
  ended_.insert(request.ended().begin(), request.ended().end());
  if (request.slices().empty()) {
    response.mutable_success();
    return response;
  }
  ++steps_;
  CheckStep(request);
  CheckPromise(request);
  worker::v1::StepSuccess success;
  int64_t rows = 0;
  bool refused = false;
  for (const worker::v1::SequenceSlice& slice : request.slices()) {
    worker::v1::SliceOutput* output = success.add_outputs();
    output->set_sequence_id(slice.sequence_id());
    if (slice.has_trace()) traces_[slice.sequence_id()].push_back(slice.trace());
    ComputeSlice(slice, output);
    NotePromise(slice, *output);
    rows += slice.tokens_size();
    for (const uint32_t token : slice.tokens()) refused = refused || token == refused_;
  }
  largest_batch_ = std::max<int64_t>(largest_batch_, request.slices_size());
  if (refused || failures_ > 0) {
    const bool retryable = !refused && retryable_;
    if (!refused) --failures_;
    response.mutable_failure()->set_code(
        static_cast<int>(retryable ? absl::StatusCode::kUnavailable : absl::StatusCode::kInvalidArgument));
    response.mutable_failure()->set_message(refused ? "refused token" : "failed on purpose");
    response.mutable_failure()->set_retryable(retryable);
    return response;
  }
  worker::v1::StepStatistics* statistics = success.mutable_statistics();
  statistics->set_seconds(0.001);
  statistics->set_cpu_worker_wait_seconds(0.0005);
  statistics->set_neurons_total(1000 * rows);
  statistics->set_neurons_computed(100 * rows);
  statistics->set_hot_neurons_computed(60 * rows);
  statistics->set_exchanges(4);
  statistics->set_exchange_latency_seconds(20e-6);
  statistics->set_transport("shm");
  statistics->set_predictor("sketch");
  *response.mutable_success() = std::move(success);
  return response;
}

void ToyRunner::CheckStep(const worker::v1::StepRequest& request) {
  std::set<uint32_t> blocks;
  uint32_t prefill_rows = 0, decode_rows = 0;
  for (const worker::v1::SequenceSlice& slice : request.slices()) {
    const uint32_t rows = slice.tokens_size();
    (rows == 1 ? decode_rows : prefill_rows) += rows;
    if (rows == 0) violations_.push_back("a slice without tokens");
    if (slice.position() + rows > options_.context) violations_.push_back("past the context");
    if (slice.block_table_size() * options_.block_size < slice.position() + rows) {
      violations_.push_back("a block table too short");
    }
    for (const uint32_t block : slice.block_table()) {
      if (block >= options_.blocks) violations_.push_back("a block that does not exist");
      if (!blocks.insert(block).second)
        violations_.push_back(absl::StrCat("block ", block, " given out twice"));
    }
  }
  if (prefill_rows > options_.max_prefill_rows) violations_.push_back("too many prefill rows");
  if (decode_rows > options_.max_decode_rows) violations_.push_back("too many decode rows");
}

void ToyRunner::CheckPromise(const worker::v1::StepRequest& request) {
  const std::optional<worker::v1::SequenceSlice> promised = std::exchange(promised_, std::nullopt);
  if (!promised.has_value() || request.slices_size() != 1) return;
  const worker::v1::SequenceSlice& slice = request.slices(0);
  promises_.kept += slice.sequence_id() == promised->sequence_id() &&
                    slice.position() == promised->position() && slice.tokens_size() == 1 &&
                    slice.tokens(0) == promised->tokens(0);
}

void ToyRunner::NotePromise(const worker::v1::SequenceSlice& slice, const worker::v1::SliceOutput& output) {
  if (slice.greedy_choices() == 0) return;
  ++promises_.made;
  promised_.emplace();
  promised_->set_sequence_id(slice.sequence_id());
  promised_->set_position(slice.position() + slice.tokens_size());
  promises_.with_room += slice.block_table_size() * options_.block_size > promised_->position();
  std::vector<float> logits(slice.greedy_choices());
  std::memcpy(logits.data(), output.logits().data(),
              std::min(output.logits().size(), logits.size() * sizeof(float)));
  const auto largest = std::max_element(logits.begin(), logits.end());
  promised_->add_tokens(static_cast<uint32_t>(largest - logits.begin()));
}

std::optional<ToyRunner::Row>& ToyRunner::RowAt(const worker::v1::SequenceSlice& slice, uint32_t position) {
  const int entry = static_cast<int>(position / options_.block_size);
  const size_t index =
      entry < slice.block_table_size()
          ? size_t{slice.block_table(entry)} * options_.block_size + position % options_.block_size
          : cache_.size();
  return index < cache_.size() ? cache_[index] : scratch_;
}

void ToyRunner::ComputeSlice(const worker::v1::SequenceSlice& slice, worker::v1::SliceOutput* output) {
  uint64_t state = 0;
  for (uint32_t position = 0; position < slice.position(); ++position) {
    const std::optional<Row>& row = RowAt(slice, position);
    if (!row || row->sequence_id != slice.sequence_id() || row->position != position) {
      violations_.push_back(absl::StrCat("sequence ", slice.sequence_id(), " has lost its row ", position));
    }
    state = row ? row->state : 0;
  }
  for (int i = 0; i < slice.tokens_size(); ++i) {
    const uint32_t position = slice.position() + i;
    state = ToyModel::Extend(state, slice.tokens(i), position);
    RowAt(slice, position) = Row{slice.sequence_id(), state, position};
    if (slice.output() == worker::v1::STEP_OUTPUT_LOG_PROBABILITIES) {
      output->add_log_probabilities(
          LogProbability(ToyModel::Logits(state, options_.vocabulary), slice.targets(i)));
    }
  }
  if (slice.output() != worker::v1::STEP_OUTPUT_LAST_LOGITS) return;
  std::vector<float> logits = ToyModel::Logits(state, options_.vocabulary);
  if (!slice.tokens().empty() && *slice.tokens().rbegin() == broken_) {
    logits[7] = std::numeric_limits<float>::quiet_NaN();
  }
  output->set_logits(reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float));
}

void ToyRunner::Restart() {
  base::MutexLock lock(&mutex_);
  ++instance_;
  cache_.assign(size_t{options_.blocks} * options_.block_size, std::nullopt);
}

void ToyRunner::SetReachable(bool reachable) {
  base::MutexLock lock(&mutex_);
  reachable_ = reachable;
}

void ToyRunner::SetReady(bool ready, const std::string& cause) {
  base::MutexLock lock(&mutex_);
  not_ready_ = ready ? "" : cause;
}

void ToyRunner::FailSteps(int count, bool retryable) {
  base::MutexLock lock(&mutex_);
  failures_ = count;
  retryable_ = retryable;
}

void ToyRunner::ThrowInSteps(int count) {
  base::MutexLock lock(&mutex_);
  throws_ = count;
}

void ToyRunner::RefuseToken(uint32_t token) {
  base::MutexLock lock(&mutex_);
  refused_ = token;
}

void ToyRunner::BreakLogitsAfter(uint32_t token) {
  base::MutexLock lock(&mutex_);
  broken_ = token;
}

void ToyRunner::CloseGate() {
  base::MutexLock lock(&mutex_);
  gate_open_ = false;
}

void ToyRunner::OpenGate() {
  base::MutexLock lock(&mutex_);
  gate_open_ = true;
}

int ToyRunner::waiting_at_gate() const {
  base::MutexLock lock(&mutex_);
  return waiting_at_gate_;
}

void ToyRunner::SetBlocks(uint32_t blocks) {
  base::MutexLock lock(&mutex_);
  options_.blocks = blocks;
  cache_.assign(size_t{blocks} * options_.block_size, std::nullopt);
}

void ToyRunner::ClaimBlocks(uint32_t blocks) {
  base::MutexLock lock(&mutex_);
  claimed_blocks_ = blocks;
}

bool ToyRunner::reachable() const {
  base::MutexLock lock(&mutex_);
  return reachable_;
}

std::string ToyRunner::instance_id() const { return Describe().instance_id(); }

int64_t ToyRunner::steps() const {
  base::MutexLock lock(&mutex_);
  return steps_;
}

std::set<uint64_t> ToyRunner::ended() const {
  base::MutexLock lock(&mutex_);
  return ended_;
}

ToyRunner::Traces ToyRunner::traces() const {
  base::MutexLock lock(&mutex_);
  return traces_;
}

ToyRunner::Promises ToyRunner::promises() const {
  base::MutexLock lock(&mutex_);
  return promises_;
}

int64_t ToyRunner::largest_batch() const {
  base::MutexLock lock(&mutex_);
  return largest_batch_;
}

std::vector<std::string> ToyRunner::violations() const {
  base::MutexLock lock(&mutex_);
  return violations_;
}

namespace {

class ToyWorkerClient final : public WorkerClient {
 public:
  explicit ToyWorkerClient(ToyRunner* runner) : runner_(runner) {}

  absl::StatusOr<worker::v1::GetRunnerResponse> Connect(absl::Duration timeout) override {
    instance_id_ = runner_->reachable() ? runner_->instance_id() : "";
    return GetRunner(timeout);
  }

  absl::StatusOr<worker::v1::GetRunnerResponse> GetRunner(absl::Duration) override {
    if (!runner_->reachable()) return absl::UnavailableError("nobody listens");
    return runner_->Describe();
  }

  absl::StatusOr<worker::v1::StepSuccess> Step(const worker::v1::StepRequest& request, absl::Duration timeout,
                                               absl::FunctionRef<bool()> keep_waiting) override {
    if (!Connected()) return absl::UnavailableError("the stream is broken");
    const absl::Time deadline = absl::Now() + timeout;
    std::optional<worker::v1::StepResponse> response =
        runner_->StepOn(instance_id_, request, [&] { return absl::Now() < deadline && keep_waiting(); });
    // Lost with its answer.
    if (!response.has_value() || !Connected()) {
      instance_id_.clear();
      return absl::UnavailableError("the stream broke");
    }
    if (response->has_success()) return std::move(*response->mutable_success());
    const worker::v1::StepFailure& failure = response->failure();
    if (failure.retryable()) return absl::UnavailableError(failure.message());
    return absl::Status(static_cast<absl::StatusCode>(failure.code()), failure.message());
  }

 private:
  bool Connected() const { return runner_->reachable() && runner_->instance_id() == instance_id_; }

  ToyRunner* const runner_;
  std::string instance_id_;
};

}  // namespace

std::unique_ptr<WorkerClient> NewToyWorkerClient(ToyRunner* runner) {
  return std::make_unique<ToyWorkerClient>(runner);
}

grpc::Status ToyRunnerService::GetRunner(grpc::ServerContext*, const worker::v1::GetRunnerRequest*,
                                         worker::v1::GetRunnerResponse* response) {
  *response = runner_->Describe();
  return grpc::Status::OK;
}

grpc::Status ToyRunnerService::GetFiringCounts(grpc::ServerContext*,
                                               const worker::v1::GetRunnerFiringCountsRequest*,
                                               worker::v1::GetRunnerFiringCountsResponse* response) {
  response->set_tokens(10);
  for (const std::vector<uint64_t>& layer : {std::vector<uint64_t>{1, 2}, {3, 4}}) {
    response->add_layers()->mutable_neurons()->Add(layer.begin(), layer.end());
  }
  return grpc::Status::OK;
}

grpc::Status ToyRunnerService::Step(
    grpc::ServerContext*,
    grpc::ServerReaderWriter<worker::v1::StepResponse, worker::v1::StepRequest>* stream) {
  worker::v1::StepRequest request;
  while (stream->Read(&request)) {
    if (!stream->Write(runner_->Step(request))) break;
  }
  return grpc::Status::OK;
}

}  // namespace isotherm::gateway
