#include "gateway/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <future>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gateway/engine/score_sequence.h"
#include "tests/gateway/engine_harness.h"

namespace isotherm::gateway {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

HarnessOptions SmallCache(uint32_t blocks) {
  HarnessOptions options;
  options.runner.blocks = blocks;
  return options;
}

// Slow enough for a test to act in mid-stream.
HarnessOptions Slow() {
  HarnessOptions options;
  options.runner.step_time = absl::Milliseconds(1);
  return options;
}

// Once a stream has read a token: returns when its next step waits at the gate.
void HoldStep(ToyRunner& runner) {
  runner.CloseGate();
  ASSERT_TRUE(WaitFor([&] { return runner.waiting_at_gate() > 0; }));
}

TEST(EngineTest, StreamsTheModelsTokensAndText) {
  EngineHarness harness;
  const GenerateTask task = harness.Task("the king said to his daughter", 40);
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->tokens, harness.Expected(task, 40));
  EXPECT_EQ(call->text, harness.ExpectedText(task, 40));
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, TheWorkerLearnsWhatWillFollowOnASequenceThatIsAlone) {
  EngineHarness harness;
  const GenerateTask greedy = harness.Task("the king said to his daughter", 40);
  ASSERT_TRUE(harness.Submit(greedy)->Finish().ok());
  const ToyRunner::Promises promises = harness.runner.promises();
  EXPECT_EQ(promises.made, 39) << "all but the last token's";
  EXPECT_EQ(promises.kept, 39);
  EXPECT_EQ(promises.with_room, 39) << "also where a block ends";
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, TheWorkerIsPromisedNothingThatChanceOrOthersDecide) {
  GenerateTask sampled, biased, penalized;
  EngineHarness harness;
  sampled = biased = penalized = harness.Task("the king said", 20);
  sampled.sampling = SamplingOptions();
  biased.sampling.logit_bias = {{kFirstToyPiece, 0.5}};
  penalized.sampling.repetition_penalty = 1.1;
  for (const GenerateTask& task : {sampled, biased, penalized}) {
    ASSERT_TRUE(harness.Submit(task)->Finish().ok());
    EXPECT_EQ(harness.runner.promises().made, 0);
  }
  harness.runner.CloseGate();
  auto one = harness.Submit(harness.Task("the king said", 40));
  auto other = harness.Submit(harness.Task("ab cd", 40));
  ASSERT_TRUE(WaitFor([&] { return harness.runner.waiting_at_gate() > 0; }));
  harness.runner.OpenGate();
  ASSERT_TRUE(one->Finish().ok());
  ASSERT_TRUE(other->Finish().ok());
  EXPECT_EQ(harness.runner.largest_batch(), 2);
  EXPECT_LT(harness.runner.promises().made, 20) << "while they run together";
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, NoPromiseGoesBeyondTheContext) {
  EngineHarness harness(SmallCache(3));
  GenerateTask task = harness.Task("ab cd", 1000);
  ASSERT_LT(task.prompt.size(), 8u);
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->finish_reason(), v1::FINISH_REASON_CONTEXT_FULL);
  EXPECT_EQ(harness.runner.promises().kept, harness.runner.promises().made);
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, TheWorkerLearnsWhoseSequencesBeginAndEnd) {
  EngineHarness harness(Slow());
  const observe::Trace trace = observe::BeginTrace("", "order-7");
  std::unique_ptr<TestCall> traced, untraced;
  {
    const observe::TraceScope scope(trace);
    traced = harness.Submit(harness.Task("ab cd", 3));
  }
  ASSERT_EQ(traced->Finish(), absl::OkStatus());
  EXPECT_TRUE(WaitFor([&] { return harness.runner.ended() == std::set<uint64_t>{1}; }))
      << "nothing else to do";
  untraced = harness.Submit(harness.Task("ab cd", 400));
  untraced->Read(1);
  untraced->Cancel();
  EXPECT_TRUE(absl::IsCancelled(untraced->Finish()));
  EXPECT_TRUE(WaitFor([&] { return harness.runner.ended() == std::set<uint64_t>{1, 2}; }));
  const ToyRunner::Traces traces = harness.runner.traces();
  ASSERT_EQ(traces.size(), 1u);
  ASSERT_EQ(traces.at(1).size(), 1u) << "once for all of its steps";
  EXPECT_EQ(traces.at(1)[0].traceparent(), trace.Traceparent());
  EXPECT_EQ(traces.at(1)[0].request_id(), "order-7");
}

// The toy model likes padding as much as any piece, so among this much of it only a filter explains the text.
TEST(EngineTest, APaddedVocabularyYieldsOnlyTokens) {
  HarnessOptions options;
  options.padding = 1000;
  EngineHarness harness(options);
  const GenerateTask greedy = harness.Task("the king said", 40);
  auto call = harness.Submit(greedy);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->tokens, harness.Expected(greedy, 40));
  EXPECT_EQ(harness.runner.promises().kept, harness.runner.promises().made) << "among tokens, not padding";
  EXPECT_EQ(harness.runner.promises().made, 39);

  GenerateTask sampled = greedy;
  sampled.sampling = SamplingOptions();
  auto draws = harness.Submit(sampled);
  ASSERT_TRUE(draws->Finish().ok());
  for (const uint32_t token : draws->tokens) EXPECT_LT(token, harness.tokenizer->vocabulary_size());
}

TEST(EngineTest, CompleteSaysWhatHappened) {
  EngineHarness harness;
  GenerateTask task = harness.Task("a long enough prompt for more than one chunk", 5);
  task.seed = 77;
  ASSERT_GT(task.prompt.size(), 16u);
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  ASSERT_TRUE(call->complete.has_value());
  const v1::GenerateComplete& complete = *call->complete;
  EXPECT_EQ(complete.finish_reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(complete.usage().prompt_tokens(), task.prompt.size());
  EXPECT_EQ(complete.usage().completion_tokens(), 5u);
  EXPECT_EQ(complete.seed(), 77u);
  EXPECT_EQ(complete.rebuilds(), 0u);
  const uint64_t prefill_steps = (task.prompt.size() + 15) / 16;
  const v1::ExecutionStatistics& execution = complete.execution();
  EXPECT_EQ(execution.mode(), v1::EXECUTION_MODE_PREDICTED);
  EXPECT_NEAR(execution.computed_share(), 0.1, 1e-9);
  EXPECT_NEAR(execution.hot_share(), 0.6, 1e-9);
  EXPECT_EQ(execution.cold_neurons_computed(), 40 * (task.prompt.size() + 4));
  EXPECT_EQ(execution.exchanges(), 4 * (prefill_steps + 4));
  EXPECT_EQ(execution.exchange_latency().nanos(), 20000);
  EXPECT_EQ(execution.transport(), "shm");
  EXPECT_EQ(execution.predictor(), "sketch");
  EXPECT_EQ(complete.timings().cpu_worker_wait().nanos(), static_cast<int64_t>(500000 * (prefill_steps + 4)));
}

TEST(EngineTest, ABatchSaysTheSameAsEachAlone) {
  HarnessOptions options;
  options.runner.step_time = absl::Milliseconds(1);
  EngineHarness harness(options);
  std::vector<std::unique_ptr<TestCall>> calls;
  std::vector<GenerateTask> tasks;
  for (int i = 0; i < 16; ++i) {  // twice as many as decode at a time
    tasks.push_back(harness.Task(std::string(1 + 3 * i, static_cast<char>('a' + i)), 20 + i));
    calls.push_back(harness.Submit(tasks.back()));
  }
  for (int i = 0; i < 16; ++i) {
    ASSERT_TRUE(calls[i]->Finish().ok());
    EXPECT_EQ(calls[i]->tokens, harness.Expected(tasks[i], 20 + i)) << i;
  }
  EXPECT_GT(harness.runner.largest_batch(), 4);
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, ASampledStreamIsTheSameAloneAndInABatch) {
  const auto sampled = [](EngineHarness& harness, int i) {
    GenerateTask task = harness.Task("once upon a time " + std::string(1, static_cast<char>('a' + i)), 30);
    task.sampling = SamplingOptions();
    task.sampling.repetition_penalty = 1.3;
    task.seed = 1000 + i;
    return harness.Submit(task);
  };
  EngineHarness together, alone;
  std::vector<std::unique_ptr<TestCall>> calls;
  for (int i = 0; i < 8; ++i) calls.push_back(sampled(together, i));
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(calls[i]->Finish().ok());
    auto single = sampled(alone, i);
    ASSERT_TRUE(single->Finish().ok());
    EXPECT_EQ(calls[i]->tokens, single->tokens);
  }
  EXPECT_NE(calls[0]->tokens, calls[1]->tokens);
}

TEST(EngineTest, PreemptedSequencesAreRebuiltAndSayTheSame) {
  EngineHarness harness(SmallCache(16));  // 64 rows for 8 sequences of up to 40
  std::vector<std::unique_ptr<TestCall>> calls;
  std::vector<GenerateTask> tasks;
  for (int i = 0; i < 8; ++i) {
    tasks.push_back(harness.Task(std::string(5, static_cast<char>('a' + i)), 32));
    calls.push_back(harness.Submit(tasks.back()));
  }
  uint32_t rebuilds = 0;
  for (int i = 0; i < 8; ++i) {
    ASSERT_TRUE(calls[i]->Finish().ok());
    EXPECT_EQ(calls[i]->tokens, harness.Expected(tasks[i], 32)) << i;
    EXPECT_EQ(calls[i]->text, harness.ExpectedText(tasks[i], 32)) << i;
    rebuilds += calls[i]->complete->rebuilds();
  }
  EXPECT_GT(rebuilds, 0u);
  EXPECT_EQ(calls[0]->complete->rebuilds(), 0u) << "the oldest is never preempted";
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, EndsWhenTheContextIsFull) {
  HarnessOptions options;
  options.runner.context = 32;
  EngineHarness harness(options);
  auto call = harness.Submit(harness.Task("hello", 1000000000));
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->finish_reason(), v1::FINISH_REASON_CONTEXT_FULL);
  EXPECT_EQ(call->complete->usage().prompt_tokens() + call->complete->usage().completion_tokens(), 32u);
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, TheCacheBoundsTheContextToo) {
  EngineHarness harness(SmallCache(5));
  auto call = harness.Submit(harness.Task("hello", 100));
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->usage().prompt_tokens() + call->complete->usage().completion_tokens(), 20u);
}

TEST(EngineTest, APromptOverTheContextIsRefusedWithTheNumbers) {
  HarnessOptions options;
  options.runner.context = 32;
  EngineHarness harness(options);
  GenerateTask task = harness.Task("x", 1);
  task.prompt.assign(32, kFirstToyPiece);
  auto call = harness.Submit(task);  // refused at once, or by the engine if no runner was known yet
  const absl::Status status = call->Finish();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("32 tokens"));
  task.prompt.assign(31, kFirstToyPiece);
  auto fits = harness.Submit(task);
  EXPECT_TRUE(fits->Finish().ok());
  EXPECT_EQ(fits->tokens.size(), 1u);
}

TEST(EngineTest, EndOfSequenceEndsUnlessIgnored) {
  EngineHarness harness;
  GenerateTask task = harness.Task("the end", 6);
  task.sampling.logit_bias = {{kToyEos, 1000}};
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->finish_reason(), v1::FINISH_REASON_END_OF_SEQUENCE);
  EXPECT_THAT(call->tokens, IsEmpty());
  EXPECT_EQ(call->complete->usage().completion_tokens(), 0u);

  task.ignore_eos = true;
  auto ignoring = harness.Submit(task);
  ASSERT_TRUE(ignoring->Finish().ok());
  EXPECT_EQ(ignoring->complete->finish_reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(ignoring->tokens, std::vector<uint32_t>(6, kToyEos));
}

TEST(EngineTest, AStopStringAcrossTokensEndsTheTextBeforeIt) {
  EngineHarness harness;
  GenerateTask task = harness.Task("stop here", 40);
  const std::string whole = harness.ExpectedText(task, 40);
  ASSERT_GT(whole.size(), 24u);
  const std::string stop = whole.substr(15, 6);  // spans several tokens: pieces have at most three letters
  task.stop = {"never said", stop};
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->finish_reason(), v1::FINISH_REASON_STOP_STRING);
  EXPECT_EQ(call->text, whole.substr(0, whole.find(stop)));
  EXPECT_LT(call->tokens.size(), 40u);
}

TEST(EngineTest, TextHeldBackForAStopStringComesAtTheEnd) {
  EngineHarness harness;
  GenerateTask task = harness.Task("stop here", 12);
  const std::string whole = harness.ExpectedText(task, 12);
  task.stop = {whole.substr(whole.size() - 4) + "\x01"};  // begins, but never completes
  auto call = harness.Submit(task);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->complete->finish_reason(), v1::FINISH_REASON_MAX_TOKENS);
  EXPECT_EQ(call->text, whole);
}

TEST(EngineTest, ScoresEveryTokenUnderThoseBeforeIt) {
  EngineHarness harness;
  const std::vector<uint32_t> tokens =
      harness.tokenizer->Encode("a text of several chunks to be scored").value();
  ASSERT_GT(tokens.size(), 20u);
  const auto caller = std::make_shared<Caller>([] { return false; }, absl::InfiniteFuture());
  auto sequence = std::make_unique<ScoreSequence>(tokens, &harness.metrics, caller);
  auto result = sequence->Result();
  auto neighbour = harness.Submit(harness.Task("a neighbour", 30));
  ASSERT_TRUE(harness.engine->Submit(std::move(sequence)).ok());
  const absl::StatusOr<v1::ScoreResponse> scored = result.get();
  ASSERT_TRUE(scored.ok()) << scored.status();
  ASSERT_EQ(static_cast<size_t>(scored->log_probabilities_size()), tokens.size() - 1);
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const std::vector<float> logits = ToyModel::Logits(
        ToyModel::StateOf({tokens.begin(), tokens.begin() + i + 1}), harness.tokenizer->vocabulary_size());
    double total = 0;
    for (const float logit : logits) total += std::exp(logit);
    EXPECT_NEAR(scored->log_probabilities(i), logits[tokens[i + 1]] - std::log(total), 1e-4) << i;
  }
  EXPECT_TRUE(neighbour->Finish().ok());
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, ACancelledStreamGivesItsBlocksToTheNext) {
  HarnessOptions options = SmallCache(8);  // room for one
  options.runner.step_time = absl::Milliseconds(2);
  EngineHarness harness(options);
  auto first = harness.Submit(harness.Task("abcdefghijklmnop", 1000));
  first->Read(3);
  auto second = harness.Submit(harness.Task("ponmlkjihgfedcba", 4));
  first->Cancel();
  EXPECT_EQ(first->Finish().code(), absl::StatusCode::kCancelled);
  ASSERT_TRUE(second->Finish().ok());
  EXPECT_LT(first->tokens.size(), 13u);
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, ACancelledStreamLeavesTheQueue) {
  HarnessOptions options;
  options.runner.max_decode_rows = 1;
  options.runner.step_time = absl::Milliseconds(1);
  EngineHarness harness(options);
  auto running = harness.Submit(harness.Task("one", 1000));
  running->Read(1);
  auto queued = harness.Submit(harness.Task("two", 10));
  queued->Cancel();
  EXPECT_EQ(queued->Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(queued->tokens, IsEmpty());
  running->Cancel();
}

TEST(EngineTest, WhoLeavesDuringAStepIsAnsweredBeforeItEnds) {
  EngineHarness harness(Slow());
  const GenerateTask task = harness.Task("the one that stays", 300);
  auto staying = harness.Submit(task);
  auto leaving = harness.Submit(harness.Task("the one that leaves", 300));
  staying->Read(1);
  leaving->Read(1);
  HoldStep(harness.runner);
  leaving->Cancel();
  EXPECT_EQ(leaving->Finish().code(), absl::StatusCode::kCancelled);
  auto late = harness.Submit(harness.Task("late", 5), absl::Now() + absl::Milliseconds(100));
  EXPECT_EQ(late->Finish().code(), absl::StatusCode::kDeadlineExceeded);
  auto next = harness.Submit(harness.Task("the next in its blocks", 10));
  harness.runner.OpenGate();
  EXPECT_TRUE(next->Finish().ok());
  ASSERT_TRUE(staying->Finish().ok());
  EXPECT_EQ(staying->tokens, harness.Expected(task, 300));
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineTest, AStepWhoseCallersAllLeftMayBeRefused) {
  EngineHarness harness(Slow());
  auto call = harness.Submit(harness.Task("refused", 400));
  call->Read(1);
  HoldStep(harness.runner);
  call->Cancel();
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kCancelled);
  harness.runner.FailSteps(1, false);
  harness.runner.OpenGate();
  EXPECT_TRUE(harness.Submit(harness.Task("next", 5))->Finish().ok());
}

TEST(EngineTest, StopDoesNotWaitForAHungStep) {
  EngineHarness harness(Slow());
  auto call = harness.Submit(harness.Task("hung", 400));
  call->Read(1);
  HoldStep(harness.runner);
  const absl::Time start = absl::Now();
  harness.engine->Stop();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(call->Finish().code(), absl::StatusCode::kUnavailable);
}

TEST(EngineTest, DeadlinesEndRunningAndQueuedRequests) {
  HarnessOptions options;
  options.runner.max_decode_rows = 1;
  options.runner.step_time = absl::Milliseconds(2);
  EngineHarness harness(options);
  auto running = harness.Submit(harness.Task("one", 100000), absl::Now() + absl::Milliseconds(300));
  running->Read(1);
  auto queued = harness.Submit(harness.Task("two", 10), absl::Now() + absl::Milliseconds(50));
  const absl::Status queued_end = queued->Finish();
  EXPECT_EQ(queued_end.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(queued_end.message()), HasSubstr("queue"));
  EXPECT_EQ(running->Finish().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(EngineTest, AFullQueueRefuses) {
  HarnessOptions options = Slow();
  options.engine.max_queue = 2;
  options.runner.max_decode_rows = 1;
  EngineHarness harness(options);
  auto running = harness.Submit(harness.Task("one", 400));
  running->Read(1);
  HoldStep(harness.runner);
  auto second = harness.Submit(harness.Task("two", 1));
  auto third = harness.Submit(harness.Task("three", 1));
  auto fourth = harness.Submit(harness.Task("four", 1));
  EXPECT_TRUE(third->submitted.ok());
  EXPECT_EQ(fourth->submitted.code(), absl::StatusCode::kResourceExhausted);
  harness.runner.OpenGate();
  EXPECT_TRUE(third->Finish().ok());
  auto fifth = harness.Submit(harness.Task("five", 1));
  EXPECT_TRUE(fifth->submitted.ok());
  EXPECT_TRUE(fifth->Finish().ok());
}

TEST(EngineTest, OnlyTheSequenceAtFaultEnds) {
  EngineHarness harness;
  const GenerateTask good = harness.Task("innocent", 30);
  GenerateTask bad = harness.Task("abc", 30);
  bad.prompt.push_back(5);  // a byte token that greedy decoding never draws
  harness.runner.RefuseToken(5);
  harness.runner.CloseGate();
  auto neighbour = harness.Submit(good);
  auto culprit = harness.Submit(bad);
  harness.runner.OpenGate();
  EXPECT_EQ(culprit->Finish().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(neighbour->Finish().ok());
  EXPECT_EQ(neighbour->tokens, harness.Expected(good, 30));
}

TEST(EngineTest, NanLogitsEndTheirOwnStreamOnly) {
  EngineHarness harness;
  const GenerateTask good = harness.Task("innocent", 30);
  GenerateTask bad = harness.Task("abc", 30);
  bad.prompt.push_back(5);
  harness.runner.BreakLogitsAfter(5);
  auto neighbour = harness.Submit(good);
  auto culprit = harness.Submit(bad);
  EXPECT_EQ(culprit->Finish().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(neighbour->Finish().ok());
  EXPECT_EQ(neighbour->tokens, harness.Expected(good, 30));
}

TEST(EngineTest, ASlowReaderGetsEverythingInFewPieces) {
  EngineHarness harness;
  const GenerateTask task = harness.Task("slow", 300);
  auto slow = harness.Submit(task);
  auto fast = harness.Submit(harness.Task("fast", 310));
  ASSERT_TRUE(fast->Finish().ok());  // by now the slow one's stream is complete too
  ASSERT_TRUE(slow->Finish().ok());
  EXPECT_EQ(slow->tokens, harness.Expected(task, 300));
}

TEST(EngineTest, DrainRefusesNewRequestsAndFinishesRunningOnes) {
  HarnessOptions options;
  options.runner.step_time = absl::Milliseconds(1);
  EngineHarness harness(options);
  auto running = harness.Submit(harness.Task("one", 50));
  running->Read(1);
  harness.engine->Drain();
  auto late = harness.Submit(harness.Task("two", 1));
  EXPECT_EQ(late->submitted.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(late->submitted.message(), "draining");
  EXPECT_TRUE(running->Finish().ok());
  EXPECT_EQ(running->tokens.size(), 50u);
}

TEST(EngineTest, StopEndsWhatRunsAndWhatWaits) {
  HarnessOptions options;
  options.runner.max_decode_rows = 1;
  options.runner.step_time = absl::Milliseconds(1);
  EngineHarness harness(options);
  auto running = harness.Submit(harness.Task("one", 400));
  auto queued = harness.Submit(harness.Task("two", 400));
  running->Read(1);
  harness.engine->Stop();
  EXPECT_EQ(running->Finish().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(queued->Finish().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace isotherm::gateway
