#include "common/gguf/cursor.h"

#include <gtest/gtest.h>

#include <limits>
#include <vector>

namespace isotherm::gguf {
namespace {

TEST(CursorTest, ReadsInOrder) {
  const std::vector<uint8_t> bytes = {1, 2, 0, 3, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c', 9};
  Cursor cursor(bytes);
  EXPECT_EQ(cursor.Read<uint8_t>(), 1);
  EXPECT_EQ(cursor.Read<uint16_t>(), 2);
  EXPECT_EQ(cursor.ReadString(), "abc");
  EXPECT_EQ(cursor.position(), 14u);
  EXPECT_EQ(cursor.remaining(), 1u);
}

TEST(CursorTest, FailedReadDoesNotMove) {
  const std::vector<uint8_t> bytes = {4, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c'};
  Cursor cursor(bytes);
  EXPECT_EQ(cursor.ReadString(), std::nullopt);
  EXPECT_EQ(cursor.ReadBytes(12), std::nullopt);
  EXPECT_EQ(cursor.position(), 0u);
  EXPECT_TRUE(cursor.ReadBytes(8));
  EXPECT_EQ(cursor.Read<uint32_t>(), std::nullopt);
  EXPECT_EQ(cursor.position(), 8u);
}

TEST(CursorTest, LengthsNearTheTopOfTheirRange) {
  std::vector<uint8_t> bytes(16, 0xff);  // a string of 2^64 - 1 bytes
  Cursor cursor(bytes);
  EXPECT_EQ(cursor.ReadString(), std::nullopt);
  EXPECT_TRUE(cursor.ReadBytes(1));
  EXPECT_EQ(cursor.ReadBytes(std::numeric_limits<uint64_t>::max()), std::nullopt);
  EXPECT_EQ(cursor.position(), 1u);
}

TEST(CursorTest, Empty) {
  Cursor cursor({});
  EXPECT_EQ(cursor.Read<uint8_t>(), std::nullopt);
  EXPECT_TRUE(cursor.ReadBytes(0));
}

}  // namespace
}  // namespace isotherm::gguf
