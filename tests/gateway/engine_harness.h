#ifndef ISOTHERM_TESTS_GATEWAY_ENGINE_HARNESS_H_
#define ISOTHERM_TESTS_GATEWAY_ENGINE_HARNESS_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gateway/engine/engine.h"
#include "gateway/engine/generate_sequence.h"
#include "gateway/engine/outbox.h"
#include "tests/gateway/toy_runner.h"

namespace isotherm::gateway {

inline bool WaitFor(const std::function<bool()>& condition, absl::Duration timeout = absl::Seconds(20)) {
  const absl::Time deadline = absl::Now() + timeout;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

// One Generate request as its client sees it.
class TestCall {
 public:
  explicit TestCall(absl::Time deadline)
      : caller_(std::make_shared<Caller>([this] { return cancelled_.load(); }, deadline)) {}
  ~TestCall() { caller_->Leave(); }

  void Cancel() { cancelled_ = true; }
  // Reads until `tokens` tokens came or the end.
  void Read(size_t wanted_tokens) {
    while (tokens.size() < wanted_tokens && ReadEvent()) {
    }
  }
  bool ReadUntilPhase(v1::GeneratePhase phase) {
    while (phases.empty() || phases.back() != phase) {
      if (!ReadEvent()) return false;
    }
    return true;
  }
  absl::Status Finish() {
    if (!submitted.ok()) return submitted;
    while (ReadEvent()) {
    }
    return outbox->status();
  }

  const std::shared_ptr<Outbox> outbox = std::make_shared<Outbox>();
  std::string text;
  std::vector<uint32_t> tokens;
  std::vector<v1::GeneratePhase> phases;
  std::optional<v1::GenerateComplete> complete;
  absl::Status submitted;
  const std::shared_ptr<Caller>& caller() const { return caller_; }

 private:
  bool ReadEvent() {
    const std::optional<v1::GenerateResponse> event = outbox->Next();
    if (!event) return false;
    if (event->has_progress()) phases.push_back(event->progress().phase());
    if (event->has_complete()) complete = event->complete();
    if (event->has_chunk()) {
      text += event->chunk().text();
      tokens.insert(tokens.end(), event->chunk().tokens().begin(), event->chunk().tokens().end());
    }
    return true;
  }

  std::atomic<bool> cancelled_ = false;
  const std::shared_ptr<Caller> caller_;
};

struct HarnessOptions {
  ToyRunner::Options runner;
  EngineOptions engine;
  int64_t padding = 0;  // of the model's vocabulary, beyond the tokenizer's
};

// An engine on a toy runner.
class EngineHarness {
 public:
  explicit EngineHarness(HarnessOptions options = {})
      : tokenizer(MakeToyTokenizer()), runner(WithVocabulary(options, *tokenizer)) {
    options.engine.worker.model_digest = "toy";
    options.engine.worker.vocabulary_size = tokenizer->vocabulary_size() + options.padding;
    engine = std::make_unique<Engine>(options.engine, NewToyWorkerClient(&runner), &metrics);
    engine->Start([this](bool serving, const std::string&) { is_serving = serving; });
  }
  ~EngineHarness() { engine->Stop(); }

  // Greedy, unless told otherwise.
  GenerateTask Task(const std::string& prompt, int64_t max_tokens) const {
    GenerateTask task;
    task.prompt = tokenizer->Encode(prompt).value();
    task.sampling.temperature = 0;
    task.max_tokens = max_tokens;
    return task;
  }

  std::unique_ptr<TestCall> Submit(const GenerateTask& task, absl::Time deadline = absl::InfiniteFuture()) {
    auto call = std::make_unique<TestCall>(deadline);
    call->submitted = engine->Submit(
        std::make_unique<GenerateSequence>(task, tokenizer.get(), &metrics, call->caller(), call->outbox));
    return call;
  }

  // What the model says, computed without an engine.
  std::vector<uint32_t> Expected(const GenerateTask& task, int count) const {
    return ToyModel::Continue(task.prompt, count, tokenizer->vocabulary_size());
  }
  std::string ExpectedText(const GenerateTask& task, int count) const {
    text::DecodeOptions options;
    options.continuation = true;
    return tokenizer->Decode(Expected(task, count), options).value();
  }

  const std::unique_ptr<text::Tokenizer> tokenizer;
  const GatewayMetrics metrics;
  ToyRunner runner;
  std::atomic<bool> is_serving = false;
  std::unique_ptr<Engine> engine;

 private:
  static ToyRunner::Options WithVocabulary(const HarnessOptions& options, const text::Tokenizer& tokenizer) {
    ToyRunner::Options runner = options.runner;
    runner.vocabulary = tokenizer.vocabulary_size() + options.padding;
    return runner;
  }
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_TESTS_GATEWAY_ENGINE_HARNESS_H_
