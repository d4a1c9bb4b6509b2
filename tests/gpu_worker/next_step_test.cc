#include "gpu_worker/service/next_step.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace isotherm::gpu_worker {
namespace {

namespace v1 = worker::v1;

constexpr int64_t kBlock = 4;  // rows

v1::StepSuccess Logits(const std::vector<float>& values) {
  v1::StepSuccess success;
  success.add_outputs()->set_logits(
      std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  return success;
}

// Three tokens from position 2 on, in two blocks.
v1::StepRequest Request() {
  v1::StepRequest request;
  request.set_step_id(7);
  v1::SequenceSlice& slice = *request.add_slices();
  slice.set_sequence_id(3);
  slice.set_position(2);
  for (const uint32_t token : {5, 6, 7}) slice.add_tokens(token);
  for (const uint32_t block : {9, 1}) slice.add_block_table(block);
  slice.set_output(v1::STEP_OUTPUT_LAST_LOGITS);
  return request;
}

// The token guessed among so many; -1 for no guess.
int64_t Guessed(v1::StepRequest request, const v1::StepSuccess& success, uint32_t choices) {
  for (v1::SequenceSlice& slice : *request.mutable_slices()) slice.set_greedy_choices(choices);
  const auto guess = GuessNextStep(request, success, kBlock);
  return guess.has_value() ? int64_t{guess->slices(0).tokens(0)} : -1;
}

TEST(NextStepTest, IsTheSequencesNextRowWithTheLargestLogitsToken) {
  v1::StepRequest request = Request();
  request.mutable_slices(0)->set_greedy_choices(4);
  const auto guess = GuessNextStep(request, Logits({0.5f, -1, 2.5f, 1}), kBlock);
  ASSERT_TRUE(guess.has_value());
  ASSERT_EQ(1, guess->slices_size());
  const v1::SequenceSlice& next = guess->slices(0);
  EXPECT_EQ(8u, guess->step_id());
  EXPECT_EQ(3u, next.sequence_id());
  EXPECT_EQ(5u, next.position());
  ASSERT_EQ(1, next.tokens_size());
  EXPECT_EQ(2u, next.tokens(0));
  EXPECT_EQ(v1::STEP_OUTPUT_LAST_LOGITS, next.output());
  EXPECT_EQ(2, next.block_table_size());
}

TEST(NextStepTest, TheFirstOfEqualsIsTakenWhereverItIs) {
  for (const int64_t count : {1, 15, 16, 17, 48, 53}) {
    for (int64_t largest = 0; largest < count; ++largest) {
      std::vector<float> logits(count, -2);
      std::fill(logits.begin() + largest, logits.end(), 3.0f);
      EXPECT_EQ(largest, Guessed(Request(), Logits(logits), count)) << count;
    }
  }
}

TEST(NextStepTest, PaddingOfTheVocabularyIsNoToken) {
  EXPECT_EQ(1, Guessed(Request(), Logits({0, 1, 5}), 2));
  EXPECT_EQ(-1, Guessed(Request(), Logits({0, 1}), 3)) << "fewer logits than tokens";
}

TEST(NextStepTest, LogitsThatNoSamplerTakesAreNotGuessedFrom) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(-1, Guessed(Request(), Logits({nan, nan}), 2));
}

TEST(NextStepTest, NothingIsGuessedUnlessTheRequestLeavesNoChoice) {
  const v1::StepSuccess success = Logits({0, 1});
  v1::StepRequest request = Request();
  EXPECT_EQ(-1, Guessed(request, success, 0));

  request.mutable_slices(0)->set_output(v1::STEP_OUTPUT_NONE);
  EXPECT_EQ(-1, Guessed(request, success, 2));

  request = Request();
  request.mutable_slices(0)->mutable_block_table()->RemoveLast();
  EXPECT_EQ(-1, Guessed(request, success, 2)) << "no block for the row";
  request.mutable_slices(0)->set_position(0);
  EXPECT_EQ(1, Guessed(request, success, 2)) << "room in the block there is";

  request = Request();
  *request.add_slices() = request.slices(0);
  EXPECT_EQ(-1, Guessed(request, success, 2)) << "two sequences";
}

TEST(NextStepTest, OnlyTheVeryStepCounts) {
  v1::StepRequest request = Request();
  request.mutable_slices(0)->set_greedy_choices(2);
  const v1::StepRequest guess = *GuessNextStep(request, Logits({0, 1}), kBlock);
  v1::StepRequest asked = guess;
  asked.set_step_id(99);
  asked.add_ended(2);
  asked.mutable_slices(0)->set_greedy_choices(2);
  asked.mutable_slices(0)->add_block_table(4);
  EXPECT_TRUE(IsGuessed(guess, asked)) << "with a later row's block";

  const auto differs = [&](auto change) {
    v1::StepRequest other = asked;
    change(*other.mutable_slices(0));
    return !IsGuessed(guess, other);
  };
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.set_sequence_id(4); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.set_position(6); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.set_tokens(0, 0); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.add_tokens(0); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.clear_tokens(); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.set_output(v1::STEP_OUTPUT_NONE); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.set_block_table(1, 8); }));
  EXPECT_TRUE(differs([](v1::SequenceSlice& slice) { slice.clear_block_table(); }));

  v1::StepRequest joined = asked;
  *joined.add_slices() = asked.slices(0);
  EXPECT_FALSE(IsGuessed(guess, joined));
  EXPECT_FALSE(IsGuessed(guess, v1::StepRequest()));
}

}  // namespace
}  // namespace isotherm::gpu_worker
