// Workers that fail, vanish and come back in mid-stream.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gateway/engine/engine.h"
#include "tests/gateway/engine_harness.h"

namespace isotherm::gateway {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

// Slow enough to be interrupted in mid-stream.
HarnessOptions Slow(absl::Duration grace = absl::Seconds(60)) {
  HarnessOptions options;
  options.runner.step_time = absl::Milliseconds(1);
  options.engine.worker.grace = grace;
  return options;
}

int64_t CountPhase(const TestCall& call, v1::GeneratePhase phase) {
  return std::count(call.phases.begin(), call.phases.end(), phase);
}

TEST(EngineOutageTest, AFailedStepIsSentAgainWithoutATrace) {
  EngineHarness harness(Slow());
  GenerateTask task = harness.Task("try again", 40);
  task.sampling = SamplingOptions();  // the generator must not advance for a step that failed
  task.seed = 3;
  auto undisturbed = harness.Submit(task);
  ASSERT_TRUE(undisturbed->Finish().ok());
  auto call = harness.Submit(task);
  for (int i = 1; i <= 3; ++i) {
    call->Read(10 * i);
    harness.runner.FailSteps(2, true);
  }
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_EQ(call->tokens, undisturbed->tokens);
  EXPECT_EQ(call->complete->rebuilds(), 0u) << "the instance is the same, so its rows are still there";
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineOutageTest, EveryStreamLearnsTheTracesOnce) {
  EngineHarness harness(Slow());
  const observe::Trace trace = observe::BeginTrace("", "order-7");
  std::unique_ptr<TestCall> call;
  {
    const observe::TraceScope scope(trace);
    call = harness.Submit(harness.Task("follow me", 40));
  }
  call->Read(10);
  harness.runner.FailSteps(1, true);  // rows stay, the stream goes
  call->Read(20);
  harness.runner.Restart();
  ASSERT_TRUE(call->Finish().ok());
  const ToyRunner::Traces traces = harness.runner.traces();
  ASSERT_EQ(traces.size(), 1u);
  ASSERT_EQ(traces.begin()->second.size(), 3u);
  for (const worker::v1::TraceContext& each : traces.begin()->second) {
    EXPECT_EQ(each.traceparent(), trace.Traceparent());
  }
}

TEST(EngineOutageTest, ARestartedWorkerIsRebuiltFromTheTokenHistory) {
  EngineHarness harness(Slow());
  std::vector<GenerateTask> tasks;
  std::vector<std::unique_ptr<TestCall>> calls;
  for (int i = 0; i < 10; ++i) {  // some run, some wait
    tasks.push_back(harness.Task("story " + std::string(1 + 4 * i, static_cast<char>('a' + i)), 60));
    calls.push_back(harness.Submit(tasks.back()));
  }
  calls[0]->Read(20);
  harness.runner.Restart();
  calls[0]->Read(40);
  harness.runner.Restart();
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(calls[i]->Finish().ok());
    EXPECT_EQ(calls[i]->tokens, harness.Expected(tasks[i], 60)) << "no token twice, none missing: " << i;
    EXPECT_EQ(calls[i]->text, harness.ExpectedText(tasks[i], 60)) << i;
  }
  EXPECT_EQ(calls[0]->complete->rebuilds(), 2u);
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineOutageTest, StreamsPauseWhileTheWorkerIsAwayAndSaySoOnce) {
  EngineHarness harness(Slow());
  const GenerateTask task = harness.Task("wait for me", 60);
  auto call = harness.Submit(task);
  call->Read(10);
  harness.runner.SetReachable(false);
  ASSERT_TRUE(call->ReadUntilPhase(v1::GENERATE_PHASE_WAITING_FOR_WORKER));
  EXPECT_TRUE(WaitFor([&] { return !harness.is_serving; }));
  const RunnerState state = harness.engine->runner_state();
  EXPECT_FALSE(state.serving);
  EXPECT_THAT(state.cause, testing::Not(IsEmpty()));
  auto newcomer = harness.Submit(harness.Task("me too", 5));
  ASSERT_TRUE(newcomer->submitted.ok());
  absl::SleepFor(absl::Milliseconds(400));
  const size_t before = call->tokens.size();

  harness.runner.Restart();
  harness.runner.SetReachable(true);
  ASSERT_TRUE(call->Finish().ok());
  EXPECT_LT(before, call->tokens.size());
  EXPECT_EQ(call->tokens, harness.Expected(task, 60));
  EXPECT_EQ(CountPhase(*call, v1::GENERATE_PHASE_WAITING_FOR_WORKER), 1);
  EXPECT_TRUE(newcomer->Finish().ok());
  EXPECT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineOutageTest, TheWorkerIsBackWithinAFifthOfASecond) {
  EngineHarness harness(Slow());
  auto call = harness.Submit(harness.Task("quick", 500));
  call->Read(5);
  harness.runner.SetReachable(false);
  ASSERT_TRUE(call->ReadUntilPhase(v1::GENERATE_PHASE_WAITING_FOR_WORKER));
  absl::SleepFor(absl::Seconds(1));  // the back-off is at its longest
  const absl::Time back = absl::Now();
  harness.runner.SetReachable(true);
  call->Read(call->tokens.size() + 1);
  EXPECT_LT(absl::Now() - back, absl::Milliseconds(400));  // 200 and some for a busy machine
  call->Cancel();
}

TEST(EngineOutageTest, AfterTheGraceStreamsEndWithTheCause) {
  EngineHarness harness(Slow(absl::Milliseconds(300)));
  auto call = harness.Submit(harness.Task("too long", 500));
  call->Read(5);
  harness.runner.SetReachable(false);
  const absl::Time lost = absl::Now();
  const absl::Status end = call->Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(end.message()), HasSubstr("nobody listens"));
  EXPECT_GE(absl::Now() - lost, absl::Milliseconds(290));
  EXPECT_LT(absl::Now() - lost, absl::Seconds(2));
  ASSERT_TRUE(WaitFor([&] {
    return harness.Submit(harness.Task("now", 1))->submitted.code() == absl::StatusCode::kUnavailable;
  }));

  harness.runner.SetReachable(true);
  ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  auto later = harness.Submit(harness.Task("again", 5));
  EXPECT_TRUE(later->Finish().ok()) << "the gateway lives on";
}

TEST(EngineOutageTest, AWorkerThatFailsEveryStepCountsAsLost) {
  EngineHarness harness(Slow(absl::Milliseconds(300)));
  auto call = harness.Submit(harness.Task("in vain", 500));
  call->Read(5);
  harness.runner.FailSteps(1000000, true);
  const absl::Status end = call->Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(end.message()), HasSubstr("failed on purpose"));
}

TEST(EngineOutageTest, AStepLongerThanTheGraceIsNoOutage) {
  for (const absl::Duration grace : {absl::ZeroDuration(), absl::Milliseconds(20)}) {
    HarnessOptions options;
    options.runner.step_time = absl::Milliseconds(60);
    options.engine.worker.grace = grace;
    EngineHarness harness(options);
    ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
    const GenerateTask task = harness.Task("slow but steady", 5);
    auto call = harness.Submit(task);
    ASSERT_TRUE(call->Finish().ok());
    EXPECT_EQ(call->tokens, harness.Expected(task, 5));
  }
}

TEST(EngineOutageTest, AStepThatTakesTooLongBeginsAnOutage) {
  HarnessOptions options = Slow(absl::Milliseconds(400));
  options.engine.worker.step_timeout = absl::Milliseconds(500);
  EngineHarness harness(options);
  const GenerateTask task = harness.Task("hung", 100);
  auto call = harness.Submit(task);
  call->Read(1);
  harness.runner.CloseGate();
  EXPECT_TRUE(WaitFor([&] { return !harness.is_serving; }));
  harness.runner.OpenGate();
  ASSERT_TRUE(call->Finish().ok()) << "the grace counts from the end of the step, not from its beginning";
  EXPECT_EQ(call->tokens, harness.Expected(task, 100));
}

TEST(EngineOutageTest, WithoutGraceAnOutageEndsStreamsAtOnce) {
  EngineHarness harness(Slow(absl::ZeroDuration()));
  ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  auto call = harness.Submit(harness.Task("once", 500));
  call->Read(5);
  harness.runner.FailSteps(1, true);
  const absl::Status end = call->Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(end.message(), "the worker was lost: failed on purpose");
  EXPECT_TRUE(WaitFor([&] { return harness.Submit(harness.Task("again", 5))->Finish().ok(); }));
}

TEST(EngineOutageTest, CancellationAndDeadlinesWorkDuringAnOutage) {
  EngineHarness harness(Slow());
  auto cancelled = harness.Submit(harness.Task("one", 500));
  auto late = harness.Submit(harness.Task("two", 500), absl::Now() + absl::Milliseconds(400));
  cancelled->Read(2);
  harness.runner.SetReachable(false);
  ASSERT_TRUE(cancelled->ReadUntilPhase(v1::GENERATE_PHASE_WAITING_FOR_WORKER));
  cancelled->Cancel();
  EXPECT_EQ(cancelled->Finish().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(late->Finish().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(EngineOutageTest, NotServingUntilTheRunnerIsReadyWithItsCause) {
  HarnessOptions options;
  EngineHarness harness(options);
  ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  harness.runner.SetReady(false, "its CPU worker is lost");
  ASSERT_TRUE(WaitFor([&] { return !harness.is_serving; })) << "noticed without a request";
  ASSERT_TRUE(WaitFor([&] { return harness.engine->runner_state().cause == "its CPU worker is lost"; }));
  EXPECT_FALSE(harness.engine->runner_state().loading);
  auto queued = harness.Submit(harness.Task("patience", 3));
  ASSERT_TRUE(queued->submitted.ok());
  harness.runner.SetReady(true, "");
  EXPECT_TRUE(queued->Finish().ok());
}

TEST(EngineOutageTest, ARunnerWithoutItsModelIsLoading) {
  HarnessOptions options;
  options.runner.digest = "";
  EngineHarness harness(options);
  harness.runner.SetReady(false, "loading: 40 %");
  ASSERT_TRUE(WaitFor([&] { return harness.engine->runner_state().loading; }));
  EXPECT_EQ(harness.engine->runner_state().cause, "loading: 40 %");
}

TEST(EngineOutageTest, ARunnerOfAnotherModelIsNotUsed) {
  HarnessOptions options;
  options.runner.digest = "other";
  options.engine.worker.grace = absl::Milliseconds(100);
  EngineHarness harness(options);
  ASSERT_TRUE(WaitFor([&] { return !harness.engine->runner_state().cause.empty(); }));
  EXPECT_THAT(harness.engine->runner_state().cause, HasSubstr("another model"));
  auto call = harness.Submit(harness.Task("hello", 3));
  const absl::Status end = call->Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(harness.runner.steps(), 0);
}

TEST(EngineOutageTest, ARunnerWithAnotherVocabularyIsNotUsed) {
  HarnessOptions options;
  options.padding = 64;
  EngineHarness harness(options);  // fits its runner
  ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  options.engine.worker.model_digest = "toy";
  options.engine.worker.vocabulary_size = harness.tokenizer->vocabulary_size();
  Engine unpadded(options.engine, NewToyWorkerClient(&harness.runner), &harness.metrics);
  unpadded.Start({});
  ASSERT_TRUE(WaitFor([&] { return !unpadded.runner_state().cause.empty(); }));
  EXPECT_THAT(unpadded.runner_state().cause, HasSubstr("vocabulary"));
}

TEST(EngineOutageTest, AbsurdCountsAreNotBelieved) {
  HarnessOptions options;
  options.runner.block_size = 0;
  options.runner.blocks = 0xFFFFFFFF;
  EngineHarness no_size(options);
  ASSERT_TRUE(WaitFor([&] { return !no_size.engine->runner_state().cause.empty(); }));
  EXPECT_THAT(no_size.engine->runner_state().cause, HasSubstr("no room"));

  EngineHarness harness;
  ASSERT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  harness.runner.ClaimBlocks(0xFFFFFFFF);
  harness.runner.Restart();
  ASSERT_TRUE(WaitFor([&] { return !harness.is_serving; }));
  EXPECT_TRUE(WaitFor([&] {
    return harness.engine->runner_state().cause.find("4294967295 KV blocks") != std::string::npos;
  }));
}

TEST(EngineOutageTest, AnExceptionEndsTheRequestsWithItsReasonButNotTheEngine) {
  EngineHarness harness(Slow());
  auto running = harness.Submit(harness.Task("one", 400));
  running->Read(2);
  harness.runner.ThrowInSteps(1);
  const absl::Status end = running->Finish();
  EXPECT_EQ(end.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(end.message()), HasSubstr("thrown on purpose"));
  const GenerateTask task = harness.Task("two", 20);
  auto next = harness.Submit(task);
  ASSERT_TRUE(next->Finish().ok());
  EXPECT_EQ(next->tokens, harness.Expected(task, 20));
  EXPECT_TRUE(WaitFor([&] { return harness.is_serving.load(); }));
  EXPECT_THAT(harness.runner.violations(), IsEmpty());
}

TEST(EngineOutageTest, ASmallerCacheAfterARestartStillServesWhatFits) {
  EngineHarness harness(Slow());
  const GenerateTask task = harness.Task("shrunk", 60);
  auto fits = harness.Submit(task);
  GenerateTask large = harness.Task("x", 400);
  large.prompt.assign(200, kFirstToyPiece);
  auto too_long = harness.Submit(large);
  too_long->Read(5);
  fits->Read(5);
  harness.runner.SetBlocks(20);  // 80 rows
  harness.runner.Restart();
  EXPECT_EQ(too_long->Finish().code(), absl::StatusCode::kUnavailable);
  ASSERT_TRUE(fits->Finish().ok());
  EXPECT_EQ(fits->tokens, harness.Expected(task, 60));
}

}  // namespace
}  // namespace isotherm::gateway
