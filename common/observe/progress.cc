#include "common/observe/progress.h"

#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/observe/log.h"

namespace isotherm::observe {
namespace {

constexpr absl::Duration kInterval = absl::Seconds(2);

std::string Amount(double amount, const std::string& unit) {
  if (unit == "bytes") return absl::StrFormat("%.2f", amount / 1e9);
  return absl::StrFormat("%.*f", amount < 10 && amount != std::floor(amount) ? 1 : 0, amount);
}

std::string UnitName(const std::string& unit) { return unit == "bytes" ? "GB" : unit; }

std::string Rate(int64_t done, const std::string& unit, absl::Duration elapsed) {
  const double seconds = std::max(absl::ToDoubleSeconds(elapsed), 1e-9);
  return absl::StrCat(Amount(static_cast<double>(done) / seconds, unit), " ", UnitName(unit), "/s");
}

}  // namespace

std::string ProgressLine(const std::string& what, int64_t done, int64_t total, const std::string& unit,
                         absl::Duration elapsed) {
  const double share =
      total > 0 ? std::min(1.0, static_cast<double>(done) / static_cast<double>(total)) : 1.0;
  std::string line =
      absl::StrFormat("%s: %d%% (%s of %s %s), %s", what, static_cast<int>(100 * share),
                      Amount(static_cast<double>(done), unit), Amount(static_cast<double>(total), unit),
                      UnitName(unit), Rate(done, unit, elapsed));
  if (share > 0 && share < 1) {
    const double left = absl::ToDoubleSeconds(elapsed) * (1 - share) / share;
    absl::StrAppendFormat(&line, ", %.0f s left", std::ceil(left));
  }
  return line;
}

Progress::Progress(std::string what, int64_t total, std::string unit, base::Clock& clock)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      clock_(clock),
      start_(clock.Now()),
      last_shown_(start_) {}

void Progress::Advance(int64_t amount) {
  base::MutexLock lock(&mutex_);
  done_ += amount;
  const absl::Time now = clock_.Now();
  if (now - last_shown_ < kInterval) return;
  last_shown_ = now;
  Show(ProgressLine(what_, done_, total_, unit_, now - start_), /*last=*/false);
}

void Progress::Finish() {
  base::MutexLock lock(&mutex_);
  if (!shown_) return;
  const absl::Duration elapsed = clock_.Now() - start_;
  Show(absl::StrFormat("%s: done, %s %s in %.1f s, %s", what_, Amount(static_cast<double>(done_), unit_),
                       UnitName(unit_), absl::ToDoubleSeconds(elapsed), Rate(done_, unit_, elapsed)),
       /*last=*/true);
}

void Progress::Show(const std::string& line, bool last) {
  shown_ = true;
  if (!isatty(STDERR_FILENO) || CurrentLogFormat() == LogFormat::kJson) {
    spdlog::info("{}", line);
    return;
  }
  // "\033[K" erases what a longer line before left behind.
  std::fprintf(stderr, "\r%s\033[K%s", line.c_str(), last ? "\n" : "");
  std::fflush(stderr);
}

}  // namespace isotherm::observe
