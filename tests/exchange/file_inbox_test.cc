#include "common/exchange/file_inbox.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "common/base/random_id.h"
#include "common/exchange/region_file.h"

namespace isotherm::exchange {
namespace {

class FileInboxTest : public ::testing::Test {
 protected:
  FileInboxTest() { std::filesystem::create_directory(directory_); }
  ~FileInboxTest() override { std::filesystem::remove_all(directory_); }

  const std::string directory_ = ::testing::TempDir() + base::RandomId().substr(0, 12);
  const base::UniqueFd file_{open("/dev/null", O_RDONLY | O_CLOEXEC)};
};

bool IsSameFile(int a, int b) {
  struct stat first, second;
  return fstat(a, &first) == 0 && fstat(b, &second) == 0 && first.st_ino == second.st_ino &&
         first.st_dev == second.st_dev;
}

TEST_F(FileInboxTest, WhatIsSentArrives) {
  const auto inbox = FileInbox::Create(directory_);
  ASSERT_TRUE(inbox.ok()) << inbox.status();
  EXPECT_EQ((*inbox)->Take().status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(SendFile(file_.get(), directory_, (*inbox)->name()).ok());
  const absl::StatusOr<base::UniqueFd> taken = (*inbox)->Take();
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_NE(taken->get(), file_.get());
  EXPECT_TRUE(IsSameFile(taken->get(), file_.get()));
  EXPECT_EQ(fcntl(taken->get(), F_GETFD), FD_CLOEXEC);
  EXPECT_EQ((*inbox)->Take().status().code(), absl::StatusCode::kNotFound);
}

TEST_F(FileInboxTest, IsForThisUserAloneAndLeavesNothing) {
  auto inbox = FileInbox::Create(directory_);
  ASSERT_TRUE(inbox.ok()) << inbox.status();
  const std::string path = directory_ + "/" + (*inbox)->name();
  struct stat status;
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u & ~0077u);
  inbox->reset();
  EXPECT_NE(stat(path.c_str(), &status), 0);
}

TEST_F(FileInboxTest, NamesThatLeadElsewhereAreRefused) {
  for (const char* name : {"", "socket", "isotherm-exchange-/../socket"}) {
    EXPECT_EQ(SendFile(file_.get(), directory_, name).code(), absl::StatusCode::kFailedPrecondition) << name;
  }
  EXPECT_EQ(SendFile(file_.get(), directory_, MakeRegionName()).code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(FileInbox::Create(directory_ + "/" + std::string(100, 'x')).ok());
}

TEST_F(FileInboxTest, OnlyAbandonedOnesAreRemoved) {
  const auto inbox = FileInbox::Create(directory_);
  ASSERT_TRUE(inbox.ok()) << inbox.status();
  auto killed = FileInbox::Create(directory_);
  ASSERT_TRUE(killed.ok()) << killed.status();
  // As a killed process leaves it: another name for a socket that is closed.
  const std::string left = directory_ + "/" + MakeRegionName();
  std::filesystem::rename(directory_ + "/" + (*killed)->name(), left);
  killed->reset();
  ASSERT_TRUE(std::filesystem::exists(std::filesystem::symlink_status(left)));
  RemoveAbandonedRegionFiles(directory_);
  EXPECT_FALSE(std::filesystem::exists(std::filesystem::symlink_status(left)));
  EXPECT_TRUE(SendFile(file_.get(), directory_, (*inbox)->name()).ok());
}

}  // namespace
}  // namespace isotherm::exchange
