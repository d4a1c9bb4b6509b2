#ifndef ISOTHERM_COMMON_OBSERVE_METRICS_H_
#define ISOTHERM_COMMON_OBSERVE_METRICS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace isotherm::observe {

using Labels = std::map<std::string, std::string>;

// Handles are cheap to copy, thread-safe and live as long as the process. Names start with "isotherm_" and
// end in the unit
// ("_seconds", "_bytes") and, for counters, "_total". The same name and labels give the same time series.
//
// A default-constructed handle, or one whose name or labels Prometheus does not allow (an error in the log),
// counts nothing.
class Counter {
 public:
  void Add(double value = 1) const;

 private:
  friend class Registry;
  void* impl_ = nullptr;
};

class Gauge {
 public:
  void Set(double value) const;
  void Add(double value) const;

 private:
  friend class Registry;
  void* impl_ = nullptr;
};

class Histogram {
 public:
  void Observe(double value) const;

 private:
  friend class Registry;
  void* impl_ = nullptr;
};

// 100 us to 1,000 s, three steps a decade.
std::vector<double> LatencyBuckets();
// 1 us to 1 s, three steps a decade, for exchanges.
std::vector<double> ExchangeBuckets();

// Thread-safe. Getting a handle takes locks and a few lookups: where it matters, get it once.
class Registry {
 public:
  // The process's registry.
  static Registry& Global();
  Counter GetCounter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge GetGauge(const std::string& name, const std::string& help, const Labels& labels = {});
  Histogram GetHistogram(const std::string& name, const std::string& help, const std::vector<double>& buckets,
                         const Labels& labels = {});
  // A gauge whose meaning needs words: the series with `labels` and `explanation` together gets the value,
  // and the one that an earlier call with the same `labels` left is dropped. Not for series that GetGauge
  // hands out.
  void SetState(const std::string& name, const std::string& help, const Labels& labels,
                const Labels& explanation, double value);
  // Prometheus text exposition of everything.
  std::string Render() const;

 private:
  Registry();
  friend class Exposer;
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// Serves GET /metrics of the global registry on "host:port" (port 0 picks one). An address in use is an error
// that says so.
class Exposer {
 public:
  static absl::StatusOr<std::unique_ptr<Exposer>> Start(const std::string& address);
  ~Exposer();
  int port() const;

 private:
  Exposer();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace isotherm::observe

#endif  // ISOTHERM_COMMON_OBSERVE_METRICS_H_
