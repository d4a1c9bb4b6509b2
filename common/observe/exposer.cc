#include <prometheus/exposer.h>

#include <exception>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "common/base/listen.h"
#include "common/base/status_macros.h"
#include "common/observe/metrics.h"
#include "common/observe/metrics_internal.h"

namespace isotherm::observe {

struct Exposer::Impl {
  // One thread: scrapes are rare, and a second scraper can wait for the first.
  explicit Impl(const std::string& address) : exposer(address, /*num_threads=*/1) {}
  prometheus::Exposer exposer;
};

Exposer::Exposer() = default;
Exposer::~Exposer() = default;

absl::StatusOr<std::unique_ptr<Exposer>> Exposer::Start(const std::string& address) {
  // The library reports every failure to bind alike and by an exception; this one says what is wrong.
  ISOTHERM_RETURN_IF_ERROR(base::CheckCanListen(address));
  try {
    std::unique_ptr<Exposer> exposer(new Exposer);
    exposer->impl_ = std::make_unique<Impl>(address);
    const std::shared_ptr<Registry::Impl>& registry = Registry::Global().impl_;
    exposer->impl_->exposer.RegisterCollectable(
        std::shared_ptr<prometheus::Collectable>(registry, &registry->registry));
    return exposer;
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, ": ", error.what()));
  }
}

int Exposer::port() const { return impl_->exposer.GetListeningPorts().front(); }

}  // namespace isotherm::observe
