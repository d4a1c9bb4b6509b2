#include "common/observe/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <exception>
#include <utility>

#include "common/observe/metrics_internal.h"

namespace isotherm::observe {
namespace {

// prometheus-cpp throws on a name or label that the text format does not allow, and on a name used for two
// kinds of metric. Both are mistakes in the program that shall not end it.
template <typename Metric, typename Make>
Metric* MakeOrNull(const std::string& name, const Make& make) {
  try {
    return &make();
  } catch (const std::exception& error) {
    spdlog::error("metric {} is not counted: {}", name, error.what());
    return nullptr;
  }
}

// 10^(i/3) for i in [from, to], rounded to three digits so that bucket labels stay short.
std::vector<double> ThirdsOfDecades(int from, int to) {
  static constexpr double kSteps[] = {1, 2.15, 4.64};
  std::vector<double> bounds;
  for (int i = from; i <= to; ++i) {
    const int decade = i >= 0 ? i / 3 : (i - 2) / 3;
    const double step = kSteps[i - 3 * decade];
    // Division by a power of ten rounds once; multiplication by its inexact inverse would show as
    // 0.00021500000000000002.
    bounds.push_back(decade < 0 ? step / std::pow(10.0, -decade) : step * std::pow(10.0, decade));
  }
  return bounds;
}

prometheus::Family<prometheus::Gauge>& GaugeFamily(prometheus::Registry& registry, const std::string& name,
                                                   const std::string& help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

}  // namespace

void Counter::Add(double value) const {
  if (impl_ != nullptr) static_cast<prometheus::Counter*>(impl_)->Increment(value);
}

void Gauge::Set(double value) const {
  if (impl_ != nullptr) static_cast<prometheus::Gauge*>(impl_)->Set(value);
}

void Gauge::Add(double value) const {
  if (impl_ != nullptr) static_cast<prometheus::Gauge*>(impl_)->Increment(value);
}

void Histogram::Observe(double value) const {
  if (impl_ != nullptr) static_cast<prometheus::Histogram*>(impl_)->Observe(value);
}

std::vector<double> LatencyBuckets() { return ThirdsOfDecades(-12, 9); }
std::vector<double> ExchangeBuckets() { return ThirdsOfDecades(-18, 0); }

Registry::Registry() : impl_(std::make_shared<Impl>()) {}

Registry& Registry::Global() {
  static Registry& registry = *new Registry;  // never destroyed: handles live as long as the process
  return registry;
}

Counter Registry::GetCounter(const std::string& name, const std::string& help, const Labels& labels) {
  Counter counter;
  counter.impl_ = MakeOrNull<prometheus::Counter>(name, [&]() -> prometheus::Counter& {
    return prometheus::BuildCounter().Name(name).Help(help).Register(impl_->registry).Add(labels);
  });
  return counter;
}

Gauge Registry::GetGauge(const std::string& name, const std::string& help, const Labels& labels) {
  Gauge gauge;
  gauge.impl_ = MakeOrNull<prometheus::Gauge>(
      name, [&]() -> prometheus::Gauge& { return GaugeFamily(impl_->registry, name, help).Add(labels); });
  return gauge;
}

Histogram Registry::GetHistogram(const std::string& name, const std::string& help,
                                 const std::vector<double>& buckets, const Labels& labels) {
  Histogram histogram;
  histogram.impl_ = MakeOrNull<prometheus::Histogram>(name, [&]() -> prometheus::Histogram& {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(impl_->registry).Add(labels, buckets);
  });
  return histogram;
}

void Registry::SetState(const std::string& name, const std::string& help, const Labels& labels,
                        const Labels& explanation, double value) {
  Labels all = labels;
  all.insert(explanation.begin(), explanation.end());
  base::MutexLock lock(&impl_->mutex);
  prometheus::Gauge*& shown = impl_->states[{name, labels}];
  prometheus::Gauge* gauge = MakeOrNull<prometheus::Gauge>(name, [&]() -> prometheus::Gauge& {
    prometheus::Family<prometheus::Gauge>& family = GaugeFamily(impl_->registry, name, help);
    prometheus::Gauge& present = family.Add(all);
    if (shown != nullptr && shown != &present) family.Remove(shown);
    shown = &present;
    return present;
  });
  if (gauge != nullptr) gauge->Set(value);
}

std::string Registry::Render() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace isotherm::observe
