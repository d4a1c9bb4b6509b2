#include "common/rpc/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/base/command_line.h"

namespace isotherm::rpc {
namespace {

using testing::HasSubstr;

TEST(StatusTest, EveryCodeSurvivesTheRoundTrip) {
  EXPECT_TRUE(FromGrpc(ToGrpc(absl::OkStatus())).ok());
  for (int code = 1; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "why");
    EXPECT_EQ(FromGrpc(ToGrpc(status)), status) << code;
    EXPECT_EQ(ToGrpc(status).error_details(), "") << code;
  }
}

TEST(StatusTest, RetryInfoIsReadBack) {
  const grpc::Status sent = ResourceExhausted("queue full", absl::Milliseconds(1250));
  EXPECT_EQ(sent.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const absl::Status received = FromGrpc(sent);
  EXPECT_EQ(received.message(), "queue full");
  EXPECT_EQ(RetryAfter(received), absl::Milliseconds(1250));
  EXPECT_EQ(ViolatedField(received), std::nullopt);
}

// What a client with Google's own classes decodes: google.rpc.Status { code: 8, message: "m", details: [Any {
// type_url:
// ".../google.rpc.RetryInfo", value: RetryInfo { retry_delay: { seconds: 2 } } }] }, written out by hand.
TEST(StatusTest, DetailsAreInTheWireFormOfGoogleRpc) {
  const std::string url = "type.googleapis.com/google.rpc.RetryInfo";
  const std::string retry_info("\x0A\x02\x08\x02", 4);
  std::string any = std::string("\x0A") + static_cast<char>(url.size()) + url;
  any += std::string("\x12") + static_cast<char>(retry_info.size()) + retry_info;
  const std::string expected = std::string("\x08\x08\x12\x01m\x1A", 6) + static_cast<char>(any.size()) + any;
  EXPECT_EQ(ResourceExhausted("m", absl::Seconds(2)).error_details(), expected);
}

TEST(StatusTest, InvalidFieldNamesTheFieldInWordsAndInDetails) {
  const absl::Status received = FromGrpc(ToGrpc(InvalidField("sampling.temperature", "is negative")));
  EXPECT_EQ(received.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(received.message(), "sampling.temperature: is negative");
  EXPECT_EQ(ViolatedField(received), "sampling.temperature");
}

TEST(StatusTest, LongMessagesAreCutBetweenCharacters) {
  std::string text = "x";
  for (int i = 0; i < 5000; ++i) text += "\xC3\xA9";  // é
  const grpc::Status sent = ToGrpc(InvalidField("prompt", text));
  EXPECT_LT(sent.error_message().size(), 1100u);
  EXPECT_LT(sent.error_details().size(), 2500u);
  EXPECT_THAT(sent.error_message(), testing::EndsWith("\xC3\xA9..."));
}

TEST(StatusTest, PayloadsForThisProcessStayHere) {
  EXPECT_EQ(ToGrpc(base::UsageError("no such flag")).error_details(), "");
}

TEST(StatusTest, GarbageInDetailsIsIgnored) {
  const grpc::Status sent(grpc::StatusCode::UNAVAILABLE, "gone", "\xFF\xFF\xFFnot a message");
  EXPECT_EQ(FromGrpc(sent), absl::UnavailableError("gone"));
}

}  // namespace
}  // namespace isotherm::rpc
