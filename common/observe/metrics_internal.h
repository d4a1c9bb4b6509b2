#ifndef ISOTHERM_COMMON_OBSERVE_METRICS_INTERNAL_H_
#define ISOTHERM_COMMON_OBSERVE_METRICS_INTERNAL_H_

#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "common/base/mutex.h"
#include "common/observe/metrics.h"

// Keeps prometheus-cpp out of the room's headers; for the room's own sources.
namespace isotherm::observe {

struct Registry::Impl {
  prometheus::Registry registry;
  base::Mutex mutex;
  // What SetState shows now, by name and identifying labels.
  std::map<std::pair<std::string, Labels>, prometheus::Gauge*> states ABSL_GUARDED_BY(mutex);
};

}  // namespace isotherm::observe

#endif  // ISOTHERM_COMMON_OBSERVE_METRICS_INTERNAL_H_
