#include "common/exchange/logits_region.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <string>

#include "common/base/random_id.h"
#include "common/base/unique_fd.h"

namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;
namespace v1 = worker::v1;

constexpr int64_t kRows = 3;
constexpr int64_t kRowBytes = 4 * 1237;  // rows that start anywhere in a page

class LogitsRegionTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(directory_);
    auto created = LogitsRegion::Create(directory_, kRows, kRowBytes);
    ASSERT_TRUE(created.ok()) << created.status();
    gateway_ = *std::move(created);
  }
  ~LogitsRegionTest() override {
    gateway_.reset();
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
    std::filesystem::remove_all(directory_);
  }

  // As many slices as `wants` has letters: l wants logits, n nothing.
  static v1::StepRequest Request(const std::string& wants, uint32_t first_row) {
    v1::StepRequest request;
    request.set_first_logits_row(first_row);
    for (const char want : wants) {
      request.add_slices()->set_output(want == 'l' ? v1::STEP_OUTPUT_LAST_LOGITS : v1::STEP_OUTPUT_NONE);
    }
    return request;
  }
  static std::string Logits(int slice) { return std::string(kRowBytes, static_cast<char>('a' + slice)); }
  static v1::StepSuccess Success(const v1::StepRequest& request) {
    v1::StepSuccess success;
    for (int i = 0; i < request.slices_size(); ++i) {
      v1::SliceOutput* output = success.add_outputs();
      if (request.slices(i).output() == v1::STEP_OUTPUT_LAST_LOGITS) output->set_logits(Logits(i));
    }
    return success;
  }

  const std::string directory_ = testing::TempDir() + "logits-" + base::RandomId().substr(0, 8);
  std::unique_ptr<LogitsRegion> gateway_;
};

TEST_F(LogitsRegionTest, CarriesTheLogitsOfStepsInFlightTogether) {
  const auto worker = LogitsRegion::Attach(directory_, gateway_->offer());
  ASSERT_TRUE(worker.ok()) << worker.status();
  gateway_->RemoveName();
  const v1::StepRequest first = Request("nl", 0), second = Request("lnl", 1);
  v1::StepSuccess of_first = Success(first), of_second = Success(second);
  EXPECT_EQ((*worker)->Put(first, of_first), 1);
  EXPECT_EQ((*worker)->Put(second, of_second), 2);
  EXPECT_TRUE(of_second.outputs(2).logits().empty());
  ASSERT_TRUE(gateway_->Take(first, of_first).ok());
  ASSERT_TRUE(gateway_->Take(second, of_second).ok());
  EXPECT_EQ(of_first.SerializeAsString(), Success(first).SerializeAsString());
  EXPECT_EQ(of_second.SerializeAsString(), Success(second).SerializeAsString());
}

TEST_F(LogitsRegionTest, WhatDoesNotFitStaysInTheMessage) {
  const auto worker = LogitsRegion::Attach(directory_, gateway_->offer());
  ASSERT_TRUE(worker.ok()) << worker.status();
  const v1::StepRequest beyond = Request("ll", kRows - 1);
  v1::StepSuccess success = Success(beyond);
  EXPECT_EQ((*worker)->Put(beyond, success), 1);
  EXPECT_EQ(success.outputs(1).logits(), Logits(1));
  ASSERT_TRUE(gateway_->Take(beyond, success).ok());
  EXPECT_EQ(success.SerializeAsString(), Success(beyond).SerializeAsString());

  const v1::StepRequest far = Request("l", 0xffffffff);
  success = Success(far);
  EXPECT_EQ((*worker)->Put(far, success), 0);
  success = Success(far);
  success.mutable_outputs(0)->mutable_logits()->pop_back();
  EXPECT_EQ((*worker)->Put(Request("l", 0), success), 0);
}

TEST_F(LogitsRegionTest, AWorkerCannotPointOutsideTheRegion) {
  const v1::StepRequest request = Request("ll", kRows - 1);
  v1::StepSuccess success = Success(request);
  for (v1::SliceOutput& output : *success.mutable_outputs()) output.set_logits_in_region(true);
  EXPECT_EQ(gateway_->Take(request, success).code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(LogitsRegionTest, BadOffersAreRefused) {
  struct Case {
    const char* message;
    std::function<void(v1::LogitsRegion&)> spoil;
  };
  const Case cases[] = {{"another host", [](auto& offer) { offer.set_boot_id("elsewhere"); }},
                        {"another host", [](auto& offer) { offer.set_shm_device(offer.shm_device() + 1); }},
                        {"named a region", [](auto& offer) { offer.set_name("../" + offer.name()); }},
                        {"cannot open", [](auto& offer) { offer.set_name(offer.name() + "0"); }},
                        {"announced were", [](auto& offer) { offer.set_rows(kRows - 1); }},
                        {"at most", [](auto& offer) { offer.set_rows(0); }},
                        {"at most", [](auto& offer) { offer.set_rows(0xffffffff); }},
                        {"at most", [](auto& offer) { offer.set_row_bytes(kRowBytes + 1); }},
                        {"at most", [](auto& offer) {
                           offer.set_rows(0x80000000);
                           offer.set_row_bytes(0xfffffffc);
                         }}};
  for (const auto& [message, spoil] : cases) {
    v1::LogitsRegion offer = gateway_->offer();
    spoil(offer);
    const absl::Status status = LogitsRegion::Attach(directory_, offer).status();
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  EXPECT_EQ(LogitsRegion::Create(directory_, 1 << 20, 1 << 20).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(LogitsRegionTest, AFileWithHolesIsRefused) {
  const std::string path = directory_ + "/" + gateway_->offer().name();
  ASSERT_EQ(truncate(path.c_str(), 0), 0);
  ASSERT_EQ(truncate(path.c_str(), kRows * kRowBytes), 0);
  EXPECT_THAT(std::string(LogitsRegion::Attach(directory_, gateway_->offer()).status().message()),
              HasSubstr("holes"));
}

}  // namespace
}  // namespace isotherm::exchange
