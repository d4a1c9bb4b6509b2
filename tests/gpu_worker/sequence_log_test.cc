#include "gpu_worker/service/sequence_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace isotherm::gpu_worker {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Keeps notes as "+3" for a sequence that begins and "-3" for one that is over; exchanges nothing.
class NoteTaker final : public exchange::Channel {
 public:
  std::vector<std::string> TakeNotes() { return std::exchange(notes_, {}); }
  void Note(const worker::v1::SequenceNote& note) override {
    notes_.push_back(absl::StrCat(note.has_begins() ? "+" : "-", note.sequence_id()));
  }

  exchange::Transport transport() const override { return exchange::Transport::kInline; }
  void BeginStep(uint64_t) override {}
  void EndStep() override {}
  absl::StatusOr<exchange::RequestBuffers> Begin(const exchange::RequestHeader&) override {
    return Nothing();
  }
  absl::Status Send(int64_t) override { return Nothing(); }
  absl::StatusOr<Answer> Await() override { return Nothing(); }
  std::optional<exchange::SharedMemory> shared_memory() const override { return std::nullopt; }
  uint32_t sequence() const override { return 0; }
  void Advance(uint32_t, int64_t, int64_t) override {}
  absl::Status Fail(const absl::Status& error) override { return error; }
  bool failed() const override { return false; }
  int64_t bytes_exchanged() const override { return 0; }

 private:
  static absl::Status Nothing() { return absl::UnimplementedError("exchanges nothing"); }
  std::vector<std::string> notes_;
};

class SequenceLogTest : public ::testing::Test {
 protected:
  SequenceLogTest() : before_(spdlog::default_logger()) {
    auto logger =
        std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_st>(out_));
    logger->set_pattern("%v");
    spdlog::set_default_logger(std::move(logger));
  }
  ~SequenceLogTest() override { spdlog::set_default_logger(before_); }

  // A step with two tokens of each of these, traced where the id is below 10.
  static worker::v1::StepRequest Step(const std::vector<uint64_t>& ids,
                                      const std::vector<uint64_t>& ended = {}) {
    worker::v1::StepRequest request;
    request.set_step_id(40);
    for (const uint64_t id : ids) {
      worker::v1::SequenceSlice* slice = request.add_slices();
      slice->set_sequence_id(id);
      slice->add_tokens(1);
      slice->add_tokens(2);
      if (id < 10) slice->mutable_trace()->set_request_id(absl::StrCat("order-", id));
    }
    request.mutable_ended()->Add(ended.begin(), ended.end());
    return request;
  }
  std::vector<std::string> TakeLines() {
    const std::string text = out_.str();
    out_.str("");
    return absl::StrSplit(text, '\n', absl::SkipEmpty());
  }

  std::ostringstream out_;
  const std::shared_ptr<spdlog::logger> before_;
  SequenceLog log_;
  NoteTaker channel_;
};

TEST_F(SequenceLogTest, SaysWhatASequenceTook) {
  worker::v1::StepSuccess success;
  success.mutable_statistics()->set_seconds(0.5);
  success.mutable_statistics()->set_cpu_worker_wait_seconds(0.125);
  for (const worker::v1::StepRequest& request : {Step({3, 10}), Step({3, 4, 10})}) {
    log_.Begin(request);
    log_.Count(request, success);
  }
  EXPECT_THAT(TakeLines(),
              ElementsAre("sequence 3 begins, request order-3", "sequence 4 begins, request order-4"));
  log_.Begin(Step({}, {3, 10, 99}));
  EXPECT_THAT(TakeLines(),
              ElementsAre("sequence 3 is over: 4 rows in 2 steps of 1.000 s, 0.250 s of it waiting "
                          "for CPU workers"));
  log_.EndAll();
  EXPECT_THAT(TakeLines(),
              ElementsAre("sequence 4 ends with its gateway's stream: 2 rows in 1 steps of 0.500 s, "
                          "0.125 s of it waiting for CPU workers"));
}

TEST_F(SequenceLogTest, AFailureIsSaidOnceUntilItChanges) {
  const worker::v1::StepRequest request = Step({3});
  log_.Begin(request);
  TakeLines();
  for (const char* message : {"lost", "lost", "full"}) log_.Count(request, absl::UnavailableError(message));
  EXPECT_THAT(TakeLines(),
              ElementsAre("sequence 3: step 40 failed: lost", "sequence 3: step 40 failed: full"));
  log_.Count(request, worker::v1::StepSuccess());
  log_.Count(request, absl::UnavailableError("full"));
  EXPECT_THAT(TakeLines(), ElementsAre("sequence 3: step 40 failed: full"));
}

TEST_F(SequenceLogTest, TellsTheCpuWorkersOnceAndThoseOfANewChannelAgain) {
  log_.Begin(Step({3, 4}));
  log_.Tell(channel_, 1);
  EXPECT_THAT(channel_.TakeNotes(), ElementsAre("+3", "+4"));
  log_.Tell(channel_, 1);
  EXPECT_THAT(channel_.TakeNotes(), IsEmpty());
  log_.Begin(Step({4, 5}, {3}));
  log_.Tell(channel_, 1);
  EXPECT_THAT(channel_.TakeNotes(), ElementsAre("-3", "+5"));
  log_.Begin(Step({5}, {4}));
  log_.Tell(channel_, 2);
  EXPECT_THAT(channel_.TakeNotes(), ElementsAre("+5")) << "the new channel's workers never knew the others";
}

}  // namespace
}  // namespace isotherm::gpu_worker
