#include "common/observe/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>

#include <nlohmann/json.hpp>
#include <sstream>

namespace isotherm::observe {
namespace {

// What logging `message` as a warning writes.
std::string Line(LogFormat format, const std::string& process, const std::string& message) {
  std::ostringstream out;
  spdlog::logger logger("test", std::make_shared<spdlog::sinks::ostream_sink_st>(out));
  logger.set_formatter(MakeFormatter(process, format));
  logger.warn("{}", message);
  return out.str();
}

TEST(LogTest, TextHasTimeLevelProcessAndMessage) {
  EXPECT_THAT(
      Line(LogFormat::kText, "gate%way", "80% done"),
      testing::MatchesRegex("[0-9-]+T[0-9:.]+[+-][0-9]+:[0-9]+ (warn|warning) +gate%way: 80% done\n"));
}

TEST(LogTest, JsonIsOneObjectALineWhateverTheMessage) {
  const std::string nasty =
      "quote \" backslash \\ newline \n tab \t nul " + std::string(1, '\0') + " caf\xC3\xA9";
  const std::string line = Line(LogFormat::kJson, "gateway", nasty);
  EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
  EXPECT_EQ(line.back(), '\n');
  const nlohmann::json parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed.size(), 4u);
  EXPECT_EQ(parsed["message"], nasty);
  EXPECT_EQ(parsed["level"], "warn");
  EXPECT_EQ(parsed["process"], "gateway");
  EXPECT_THAT(parsed["time"].get<std::string>(),
              testing::MatchesRegex("[0-9]+-[0-9]+-[0-9]+T[0-9]+:[0-9]+:[0-9]+\\.[0-9]+Z"));
}

TEST(LogTest, BytesThatAreNotUtf8DoNotBreakTheLine) {
  const nlohmann::json parsed = nlohmann::json::parse(Line(LogFormat::kJson, "p", "bad \xFF byte"));
  EXPECT_EQ(parsed["message"], "bad \xEF\xBF\xBD byte");
}

TEST(LogTest, LevelsAndFormatsAreChecked) {
  for (const char* level : {"debug", "info", "warn", "error"})
    EXPECT_TRUE(InitLogging("p", level, "text").ok());
  EXPECT_TRUE(InitLogging("p", "error", "json").ok());
  EXPECT_FALSE(spdlog::should_log(spdlog::level::warn));
  EXPECT_TRUE(spdlog::should_log(spdlog::level::err));
  const absl::Status level = InitLogging("p", "loud", "text");
  EXPECT_EQ(level.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(level.message(), testing::HasSubstr("'loud'"));
  EXPECT_THAT(InitLogging("p", "info", "xml").message(), testing::HasSubstr("'xml'"));
  EXPECT_THAT(InitLogging("p", "info", "text"), absl::OkStatus());
}

}  // namespace
}  // namespace isotherm::observe
