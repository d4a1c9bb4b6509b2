#include "common/base/command_line.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/cord.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/base/status_macros.h"

namespace isotherm::base {
namespace {

constexpr char kUsageErrorUrl[] = "isotherm/usage-error";
constexpr size_t kHelpColumns = 100;

std::string Dashed(absl::string_view name) { return absl::StrReplaceAll(name, {{"_", "-"}}); }
std::string Underscored(absl::string_view name) { return absl::StrReplaceAll(name, {{"-", "_"}}); }

// Levenshtein's distance.
size_t EditDistance(absl::string_view a, absl::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i + 1);
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, row[j] + 1, row[j + 1] + 1});
    }
  }
  return row.back();
}

bool IsFlagOf(const Program& program, absl::string_view name) {
  if (!program.only_grouped_flags) return true;
  return std::any_of(program.groups.begin(), program.groups.end(), [&](const FlagGroup& group) {
    return std::find(group.flags.begin(), group.flags.end(), name) != group.flags.end();
  });
}

// nullptr where the program has no such flag.
absl::CommandLineFlag* FindFlag(const Program& program, const std::string& name) {
  return IsFlagOf(program, name) ? absl::FindCommandLineFlag(name) : nullptr;
}

// "; did you mean --listen?", or nothing where no flag is near.
std::string Suggestion(const Program& program, const std::string& typed) {
  std::vector<std::string> names = {"help", "version"};
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsFlagOf(program, name)) names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  std::string nearest;
  size_t least = 1 + typed.size() / 3;  // farther apart than this looks like a guess
  for (const std::string& name : names) {
    const bool prefix = typed.size() >= 3 && absl::StartsWith(name, typed);
    const size_t distance = prefix ? 1 : EditDistance(typed, name);
    if (distance < least || (distance == least && nearest.empty())) {
      least = distance;
      nearest = name;
    }
  }
  return nearest.empty() ? "" : absl::StrCat("; did you mean --", Dashed(nearest), "?");
}

// Appends the words of `text` in lines that begin with `indent` and end before kHelpColumns.
void AppendWrapped(absl::string_view text, absl::string_view indent, std::string& out) {
  std::string line(indent);
  for (const absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty())) {
    if (line.size() > indent.size() && line.size() + 1 + word.size() > kHelpColumns) {
      absl::StrAppend(&out, line, "\n");
      line = std::string(indent);
    }
    absl::StrAppend(&line, line.size() > indent.size() ? " " : "", word);
  }
  absl::StrAppend(&out, line, "\n");
}

void AppendFlag(const absl::CommandLineFlag& flag, std::string& out) {
  const std::string name = Dashed(flag.Name());
  if (flag.IsOfType<bool>()) {
    absl::StrAppend(&out, "  --[no]", name, " (default: ", flag.DefaultValue() == "true" ? "on" : "off",
                    ")\n");
  } else if (flag.DefaultValue().empty()) {
    absl::StrAppend(&out, "  --", name, " VALUE\n");
  } else {
    absl::StrAppend(&out, "  --", name, " VALUE (default: ", flag.DefaultValue(), ")\n");
  }
  AppendWrapped(flag.Help(), "      ", out);
}

template <typename T>
bool Holds(const absl::CommandLineFlag& flag) {
  return flag.IsOfType<T>() || flag.IsOfType<std::optional<T>>();
}

// What a value of the flag looks like.
const char* Expected(const absl::CommandLineFlag& flag) {
  if (Holds<bool>(flag)) return "true or false";
  if (Holds<absl::Duration>(flag)) return "a duration such as 500ms, 30s or 5m";
  if (Holds<uint32_t>(flag) || Holds<uint64_t>(flag)) return "a whole number from 0 on";
  if (Holds<int>(flag) || Holds<int64_t>(flag)) return "a whole number";
  return "a number";
}

absl::Status SetFlag(absl::CommandLineFlag& flag, const std::string& value) {
  std::string error;
  if (flag.ParseFrom(value, &error)) return absl::OkStatus();
  return UsageError(absl::StrCat("--", Dashed(flag.Name()), ": '", value, "' is not ", Expected(flag)));
}

// The arguments not yet looked at.
struct Remaining {
  int argc;
  const char* const* argv;
  int next = 1;
  std::optional<std::string> Take() {
    if (next >= argc) return std::nullopt;
    return argv[next++];
  }
};

// Takes the flag `argument` ("--name", "-name", "--name=value"), with the following argument where that is
// its value.
absl::Status TakeFlag(const Program& program, const std::string& argument, Remaining& remaining) {
  const std::string body = argument.substr(absl::StartsWith(argument, "--") ? 2 : 1);
  const size_t equals = body.find('=');
  const std::string name = Underscored(body.substr(0, equals));

  absl::CommandLineFlag* flag = FindFlag(program, name);
  if (flag == nullptr && equals == std::string::npos && absl::StartsWith(name, "no")) {
    absl::CommandLineFlag* negated = FindFlag(program, name.substr(absl::StartsWith(name, "no_") ? 3 : 2));
    if (negated != nullptr && negated->IsOfType<bool>()) return SetFlag(*negated, "false");
  }
  if (flag == nullptr) {
    return UsageError(absl::StrCat("unknown flag --", Dashed(name), Suggestion(program, name)));
  }
  if (equals != std::string::npos) return SetFlag(*flag, body.substr(equals + 1));
  if (flag->IsOfType<bool>()) return SetFlag(*flag, "true");
  const std::optional<std::string> value = remaining.Take();
  if (!value) return UsageError(absl::StrCat("--", Dashed(name), " needs a value"));
  return SetFlag(*flag, *value);
}

}  // namespace

absl::StatusOr<ParsedCommandLine> ParseCommandLine(const Program& program, int argc,
                                                   const char* const* argv) {
  ParsedCommandLine parsed;
  Remaining remaining{argc, argv};
  while (const std::optional<std::string> argument = remaining.Take()) {
    if (*argument == "--help" || *argument == "-help" || *argument == "-h") {
      parsed.answer = HelpText(program);
      return parsed;
    }
    if (*argument == "--version" || *argument == "-version") {
      parsed.answer = absl::StrCat(program.name, " ", Version(), "\n");
      return parsed;
    }
    if (*argument == "--") {
      while (const std::optional<std::string> rest = remaining.Take()) parsed.arguments.push_back(*rest);
    } else if (argument->size() > 1 && absl::StartsWith(*argument, "-")) {
      ISOTHERM_RETURN_IF_ERROR(TakeFlag(program, *argument, remaining));
    } else {
      parsed.arguments.push_back(*argument);
    }
  }
  if (program.arguments.empty() && !parsed.arguments.empty()) {
    return UsageError(absl::StrCat("'", parsed.arguments[0], "' is not a flag, and ", program.name,
                                   " takes nothing else; see --help"));
  }
  return parsed;
}

std::string HelpText(const Program& program) {
  std::string out = absl::StrCat(program.name, " ", Version(), "\n\n");
  AppendWrapped(program.summary, "", out);
  absl::StrAppend(&out, "\nUsage: ", program.name, " [flags]", program.arguments.empty() ? "" : " ",
                  program.arguments, "\n");
  if (!program.examples.empty()) {
    absl::StrAppend(&out, "\nExamples:\n");
    for (const absl::string_view line : absl::StrSplit(program.examples, '\n')) {
      absl::StrAppend(&out, line.empty() ? "" : "  ", line, "\n");
    }
  }

  std::map<std::string, absl::CommandLineFlag*> ungrouped;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!flag->IsRetired() && IsFlagOf(program, name)) ungrouped.emplace(name, flag);
  }
  for (const FlagGroup& group : program.groups) {
    absl::StrAppend(&out, "\n", group.title, ":\n");
    for (const std::string& name : group.flags) {
      if (const auto found = ungrouped.find(name); found != ungrouped.end()) {
        AppendFlag(*found->second, out);
        ungrouped.erase(found);
      }
    }
  }
  absl::StrAppend(&out, "\nOther:\n");
  for (const auto& [name, flag] : ungrouped) AppendFlag(*flag, out);
  absl::StrAppend(&out, "  --help\n      Prints this text.\n  --version\n      Prints the version.\n");
  return out;
}

std::string Version() { return ISOTHERM_VERSION; }

absl::Status UsageError(const std::string& message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsageErrorUrl, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) { return status.GetPayload(kUsageErrorUrl).has_value(); }

}  // namespace isotherm::base
