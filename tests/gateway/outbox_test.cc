#include "gateway/engine/outbox.h"

#include <gtest/gtest.h>

#include <thread>

namespace isotherm::gateway {
namespace {

v1::GenerateChunk Chunk(const std::string& text, uint32_t token) {
  v1::GenerateChunk chunk;
  chunk.set_text(text);
  chunk.add_tokens(token);
  return chunk;
}

v1::GenerateProgress Progress(v1::GeneratePhase phase) {
  v1::GenerateProgress progress;
  progress.set_phase(phase);
  return progress;
}

TEST(OutboxTest, UnreadChunksGrowTogetherAndNewerProgressReplacesOlder) {
  Outbox outbox;
  outbox.Push(Progress(v1::GENERATE_PHASE_QUEUED));
  outbox.Push(Progress(v1::GENERATE_PHASE_PREFILL));
  outbox.Push(Chunk("a", 1));
  outbox.Push(Chunk("b", 2));
  outbox.Complete({});
  EXPECT_EQ(outbox.Next()->progress().phase(), v1::GENERATE_PHASE_PREFILL);
  const v1::GenerateResponse chunk = *outbox.Next();
  EXPECT_EQ(chunk.chunk().text(), "ab");
  EXPECT_EQ(chunk.chunk().tokens_size(), 2);
  EXPECT_TRUE(outbox.Next()->has_complete());
  EXPECT_FALSE(outbox.Next().has_value());
  EXPECT_TRUE(outbox.status().ok());
}

TEST(OutboxTest, WhatIsHeldIsBoundedAndNoTextIsLost) {
  Outbox outbox;
  for (uint32_t i = 0; i < 1000; ++i) {
    outbox.Push(Progress(v1::GENERATE_PHASE_DECODE));
    outbox.Push(Chunk("x", i));
  }
  outbox.Fail(absl::UnavailableError("over"));
  int events = 0, tokens = 0;
  while (const auto event = outbox.Next()) {
    ++events;
    tokens += event->chunk().tokens_size();
  }
  EXPECT_LE(events, 9);
  EXPECT_EQ(tokens, 1000);
  EXPECT_EQ(outbox.status().message(), "over");
}

TEST(OutboxTest, TheFirstEndCounts) {
  Outbox completed, failed;
  completed.Complete({});
  completed.Fail(absl::InternalError("too late"));
  EXPECT_TRUE(completed.status().ok());
  failed.Fail(absl::UnavailableError("first"));
  failed.Fail(absl::InternalError("too late"));
  EXPECT_EQ(failed.status().message(), "first");
}

TEST(OutboxTest, NextWaitsForAnEvent) {
  Outbox outbox;
  std::thread writer([&] { outbox.Push(Chunk("late", 1)); });
  EXPECT_EQ(outbox.Next()->chunk().text(), "late");
  writer.join();
}

}  // namespace
}  // namespace isotherm::gateway
