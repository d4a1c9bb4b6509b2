#include "common/base/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/time/time.h"

ABSL_FLAG(std::string, test_model, "", "The GGUF file to serve.");
ABSL_FLAG(int32_t, test_threads, 4, "Threads.");
ABSL_FLAG(std::optional<absl::Duration>, test_deadline, std::nullopt, "Unset: never.");
ABSL_FLAG(bool, test_warm_up, true, "Runs the model once before serving.");

namespace isotherm::base {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const Program kServer = {.name = "server",
                         .summary = "Serves.",
                         .arguments = "",
                         .examples = "# one\nserver --test-model m.gguf",
                         .groups = {{"Model", {"test_model", "test_warm_up"}}}};
const Program kTool = {
    .name = "tool", .summary = "Reads.", .arguments = "FILE...", .examples = "", .groups = {}};

absl::StatusOr<ParsedCommandLine> Parse(const Program& program, std::vector<const char*> arguments) {
  arguments.insert(arguments.begin(), program.name.c_str());
  return ParseCommandLine(program, static_cast<int>(arguments.size()), arguments.data());
}

class CommandLineTest : public testing::Test {
 private:
  absl::FlagSaver saver_;  // each test starts from the defaults
};

TEST_F(CommandLineTest, EverySpellingOfAFlagSetsIt) {
  ASSERT_TRUE(Parse(kServer, {"--test-model=a b=c", "-test_threads", "-7", "--notest-warm-up"}).ok());
  EXPECT_EQ(absl::GetFlag(FLAGS_test_model), "a b=c");
  EXPECT_EQ(absl::GetFlag(FLAGS_test_threads), -7);
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_warm_up));
  ASSERT_TRUE(Parse(kServer, {"--test_warm_up", "--test-model", ""}).ok());
  EXPECT_TRUE(absl::GetFlag(FLAGS_test_warm_up));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_model), "");
  ASSERT_TRUE(Parse(kServer, {"--no-test-warm-up"}).ok());
  EXPECT_FALSE(absl::GetFlag(FLAGS_test_warm_up));
}

TEST_F(CommandLineTest, AnUnknownFlagIsAUsageErrorThatSuggestsTheNearest) {
  const absl::Status status = Parse(kServer, {"--test-modle=x"}).status();
  EXPECT_TRUE(IsUsageError(status));
  EXPECT_THAT(status.message(), HasSubstr("unknown flag --test-modle"));
  EXPECT_THAT(status.message(), HasSubstr("did you mean --test-model?"));
  EXPECT_THAT(Parse(kServer, {"--test-thr"}).status().message(), HasSubstr("--test-threads?"));
  EXPECT_THAT(Parse(kServer, {"--zzzzzzzzz"}).status().message(), testing::Not(HasSubstr("did you mean")));
}

TEST_F(CommandLineTest, BadValuesNameTheFlagAndTheValue) {
  const absl::Status status = Parse(kServer, {"--test-threads=many"}).status();
  EXPECT_TRUE(IsUsageError(status));
  EXPECT_EQ(status.message(), "--test-threads: 'many' is not a whole number");
  EXPECT_EQ(Parse(kServer, {"--test-deadline=5"}).status().message(),
            "--test-deadline: '5' is not a duration such as 500ms, 30s or 5m");
  EXPECT_THAT(Parse(kServer, {"--test-threads"}).status().message(), HasSubstr("needs a value"));
  EXPECT_EQ(absl::GetFlag(FLAGS_test_threads), 4);
}

TEST_F(CommandLineTest, ArgumentsAreKeptInOrderWhereTheProgramTakesThem) {
  const absl::StatusOr<ParsedCommandLine> parsed =
      Parse(kTool, {"a", "--test-threads", "2", "-", "--", "--test-model"});
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_THAT(parsed->arguments, ElementsAre("a", "-", "--test-model"));
  EXPECT_EQ(parsed->answer, "");
  EXPECT_TRUE(IsUsageError(Parse(kServer, {"stray"}).status()));
}

TEST_F(CommandLineTest, HelpTeaches) {
  const std::string help = Parse(kServer, {"--help"}).value().answer;
  EXPECT_THAT(help, HasSubstr("Usage: server [flags]\n"));
  EXPECT_THAT(help, HasSubstr("  server --test-model m.gguf\n"));
  EXPECT_THAT(help, HasSubstr("Model:\n  --test-model VALUE\n      The GGUF file to serve.\n"));
  EXPECT_THAT(help, HasSubstr("  --[no]test-warm-up (default: on)\n"));
  EXPECT_THAT(help, HasSubstr("Other:\n  --test-deadline VALUE\n      Unset: never.\n"));
  EXPECT_THAT(help, HasSubstr("  --test-threads VALUE (default: 4)\n"));
}

TEST_F(CommandLineTest, HelpFoldsLongTextAndShowsDefaultsEvenAfterFlagsWereSet) {
  Program wordy = kServer;
  wordy.summary = std::string(300, 'x') + " " + std::string(60, 'y') + " " + std::string(60, 'z');
  const std::string help = Parse(wordy, {"--test-threads=9", "-h"}).value().answer;
  EXPECT_THAT(help, HasSubstr(std::string(60, 'y') + "\n" + std::string(60, 'z')));
  EXPECT_THAT(help, HasSubstr("(default: 4)"));
}

TEST_F(CommandLineTest, VersionIsOneLine) {
  EXPECT_THAT(Parse(kServer, {"--version"}).value().answer,
              testing::MatchesRegex("server [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST_F(CommandLineTest, OnlyUsageErrorsAreUsageErrors) {
  EXPECT_FALSE(IsUsageError(absl::OkStatus()));
  EXPECT_FALSE(IsUsageError(absl::InvalidArgumentError("a bad file")));
}

}  // namespace
}  // namespace isotherm::base
