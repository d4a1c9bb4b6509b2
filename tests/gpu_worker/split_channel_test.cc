#include "gpu_worker/cold/split_channel.h"

#include <gtest/gtest.h>

#include <deque>
#include <numeric>

#include "common/neuron/mask.h"
#include "gpu_worker/cold/shares.h"

namespace isotherm::gpu_worker {
namespace {

constexpr int64_t kHidden = 3;
constexpr int64_t kMostRows = 5;

// Answers with sums of small integers, which are the same in any order: y[i] = x[i] times the sum over the
// row's wanted neurons of their number and gate value.
class FakeChannel final : public exchange::Channel {
 public:
  explicit FakeChannel(const exchange::Geometry& geometry)
      : geometry_(geometry),
        words_(neuron::MaskWords(geometry.ffn)),
        x_(kMostRows * kHidden),
        masks_(kMostRows * words_),
        gate_values_(kMostRows * geometry.ffn),
        y_(kMostRows * kHidden) {}

  exchange::Transport transport() const override { return exchange::Transport::kSharedMemory; }
  void BeginStep(uint64_t step) override { step_ = step; }
  void EndStep() override { step_ = 0; }
  void Note(const worker::v1::SequenceNote& note) override { noted.push_back(note.sequence_id()); }
  absl::StatusOr<exchange::RequestBuffers> Begin(const exchange::RequestHeader& header) override {
    if (!error.ok()) return error;
    header_ = header;
    return exchange::RequestBuffers{x_.data(), masks_.data(), gate_values_.data()};
  }
  absl::Status Send(int64_t gate_value_count) override {
    in_flight_.push_back({header_, x_, masks_, gate_values_, gate_value_count});
    return absl::OkStatus();
  }
  absl::StatusOr<Answer> Await() override {
    if (!error.ok()) return error;
    const Request request = std::move(in_flight_.front());
    in_flight_.pop_front();
    Answer answer{.y = y_.data(), .latency = latency, .wait = absl::Milliseconds(1)};
    int64_t read = 0;
    for (int64_t row = 0; row < request.header.rows; ++row) {
      double sum = 0;
      neuron::ForEachSet(request.masks.data() + row * words_, words_, [&](int64_t neuron) {
        sum += static_cast<double>(neuron + 1);
        if (request.header.has_gate_values) sum += request.gate_values[read];
        ++read;
        ++answer.computed;
      });
      for (int64_t i = row * kHidden; i < (row + 1) * kHidden; ++i) {
        y_[i] = static_cast<float>(request.x[i] * sum);
      }
    }
    if (request.header.has_gate_values && read != request.gate_value_count)
      return absl::DataLossError("gate values");
    answer.active = answer.computed / 2;
    bytes += answer.computed;
    return answer;
  }
  std::optional<exchange::SharedMemory> shared_memory() const override { return std::nullopt; }
  uint32_t sequence() const override { return 0; }
  void Advance(uint32_t, int64_t, int64_t) override {}
  absl::Status Fail(const absl::Status& status) override { return error = status; }
  bool failed() const override { return !error.ok(); }
  int64_t bytes_exchanged() const override { return bytes; }
  uint64_t step() const { return step_; }

  absl::Status error;
  absl::Duration latency = absl::Milliseconds(1);
  int64_t bytes = 0;
  std::vector<uint64_t> noted;

 private:
  struct Request {
    exchange::RequestHeader header;
    std::vector<float> x;
    std::vector<uint64_t> masks;
    std::vector<float> gate_values;
    int64_t gate_value_count = 0;
  };

  const exchange::Geometry geometry_;
  const int64_t words_;
  std::vector<float> x_;
  std::vector<uint64_t> masks_;
  std::vector<float> gate_values_, y_;
  exchange::RequestHeader header_;
  std::deque<Request> in_flight_;
  uint64_t step_ = 0;
};

struct Group {
  Group(const exchange::Geometry& geometry, const std::vector<double>& shares) {
    std::vector<SplitChannel::Member> members;
    for (std::vector<uint64_t>& owned : DivideNeurons(geometry.ffn, shares)) {
      channels.push_back(std::make_unique<FakeChannel>(geometry));
      members.push_back({channels.back().get(), std::move(owned)});
    }
    split = std::make_unique<SplitChannel>(geometry, std::move(members));
  }
  std::vector<std::unique_ptr<FakeChannel>> channels;
  std::unique_ptr<SplitChannel> split;
};

// Every third neuron of every row.
absl::Status Send(exchange::Channel& channel, const exchange::Geometry& geometry,
                  const exchange::RequestHeader& header) {
  const auto buffers = channel.Begin(header);
  if (!buffers.ok()) return buffers.status();
  const int64_t words = neuron::MaskWords(geometry.ffn);
  std::iota(buffers->x, buffers->x + header.rows * kHidden, 1.0f);
  std::fill_n(buffers->masks, header.rows * words, 0);
  int64_t values = 0;
  for (int64_t row = 0; row < header.rows; ++row) {
    for (int64_t neuron = row % 3; neuron < geometry.ffn; neuron += 3) {
      neuron::SetBit(buffers->masks + row * words, neuron);
      if (header.has_gate_values) buffers->gate_values[values++] = static_cast<float>(neuron % 7);
    }
  }
  return channel.Send(values);
}

// Returns the answer, its y copied out.
absl::StatusOr<std::vector<float>> Exchange(exchange::Channel& channel, const exchange::Geometry& geometry,
                                            const exchange::RequestHeader& header,
                                            exchange::Channel::Answer* counts) {
  if (const absl::Status sent = Send(channel, geometry, header); !sent.ok()) return sent;
  const auto answer = channel.Await();
  if (!answer.ok()) return answer.status();
  *counts = *answer;
  return std::vector<float>(answer->y, answer->y + header.rows * kHidden);
}

TEST(SplitChannelTest, AnswersAsOneWorkerWould) {
  for (const int64_t ffn : {1, 2, 63, 64, 65, 200}) {
    for (const std::vector<double>& shares :
         {std::vector<double>{1}, {0.5, 0.5}, {0.02, 0.98}, {0.2, 0.3, 0.1, 0.4}}) {
      for (const bool gate_values : {false, true}) {
        const exchange::Geometry geometry{2, kHidden, ffn, kMostRows, gate_values};
        FakeChannel one(geometry);
        Group group(geometry, shares);
        for (int64_t rows = 1; rows <= kMostRows; ++rows) {
          const exchange::RequestHeader header{
              .step = 1, .layer = 1, .rows = rows, .has_gate_values = gate_values};
          exchange::Channel::Answer expected, counts;
          const auto whole = Exchange(one, geometry, header, &expected);
          const auto divided = Exchange(*group.split, geometry, header, &counts);
          ASSERT_TRUE(divided.ok()) << divided.status();
          EXPECT_EQ(*divided, *whole);
          EXPECT_EQ(counts.computed, expected.computed);
        }
        EXPECT_EQ(group.split->bytes_exchanged(), one.bytes_exchanged());
      }
    }
  }
}

TEST(SplitChannelTest, HasTwoInFlight) {
  const exchange::Geometry geometry{1, kHidden, 70, kMostRows, true};
  FakeChannel one(geometry);
  Group group(geometry, {0.3, 0.7});
  const auto header = [](int64_t rows) {
    return exchange::RequestHeader{.rows = rows, .has_gate_values = rows % 2 == 0};
  };
  ASSERT_TRUE(Send(*group.split, geometry, header(1)).ok());
  for (int64_t rows = 1; rows < kMostRows; ++rows) {
    ASSERT_TRUE(Send(*group.split, geometry, header(rows + 1)).ok());
    exchange::Channel::Answer counts;
    const auto whole = Exchange(one, geometry, header(rows), &counts);
    const auto answer = group.split->Await();
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(std::vector<float>(answer->y, answer->y + whole->size()), *whole);
  }
  EXPECT_TRUE(group.split->Await().ok());
  EXPECT_EQ(group.split->Await().status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(SplitChannelTest, TellsEveryWorkerOfStepsAndWhomTheyAreFor) {
  Group group({1, kHidden, 10, kMostRows, false}, {0.5, 0.5});
  worker::v1::SequenceNote note;
  note.set_sequence_id(3);
  group.split->Note(note);
  for (const auto& channel : group.channels) EXPECT_EQ(channel->noted, std::vector<uint64_t>{3});
  group.split->BeginStep(7);
  for (const auto& channel : group.channels) EXPECT_EQ(channel->step(), 7);
  group.split->EndStep();
  for (const auto& channel : group.channels) EXPECT_EQ(channel->step(), 0);
}

TEST(SplitChannelTest, TakesAsLongAsTheSlowestAndSaysWhoTookHowLong) {
  const exchange::Geometry geometry{1, kHidden, 10, kMostRows, false};
  Group group(geometry, {0.5, 0.5});
  group.channels[1]->latency = absl::Milliseconds(5);
  exchange::Channel::Answer answer;
  ASSERT_TRUE(Exchange(*group.split, geometry, {.rows = 1}, &answer).ok());
  EXPECT_EQ(answer.latency, absl::Milliseconds(5));
  EXPECT_EQ(answer.wait, absl::Milliseconds(2));
  const std::vector<std::vector<absl::Duration>> latencies = {{absl::Milliseconds(1)},
                                                              {absl::Milliseconds(5)}};
  EXPECT_EQ(group.split->TakeLatencies(), latencies);
  EXPECT_EQ(group.split->TakeLatencies(), std::vector<std::vector<absl::Duration>>(2));
}

TEST(SplitChannelTest, TheFirstErrorStays) {
  const exchange::Geometry geometry{1, kHidden, 10, kMostRows, false};
  Group group(geometry, {0.5, 0.5});
  EXPECT_FALSE(group.split->failed());
  group.channels[1]->error = absl::UnavailableError("gone");
  EXPECT_TRUE(group.split->failed());
  exchange::Channel::Answer answer;
  EXPECT_EQ(Exchange(*group.split, geometry, {.rows = 1}, &answer).status(), absl::UnavailableError("gone"));
  group.channels[1]->error = absl::OkStatus();
  EXPECT_EQ(group.split->Begin({.rows = 1}).status(), absl::UnavailableError("gone"));
  EXPECT_FALSE(group.channels[0]->failed());
}

TEST(SplitChannelTest, RefusesRowsThatDoNotFit) {
  for (const int64_t rows : {int64_t{0}, kMostRows + 1}) {
    Group group({1, kHidden, 10, kMostRows, false}, {0.5, 0.5});
    EXPECT_EQ(group.split->Begin({.rows = rows}).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace isotherm::gpu_worker
