#include "gpu_worker/cold/cold_workers.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "gpu_worker/cold/shares.h"

namespace isotherm::gpu_worker {
namespace {

using observe::Registry;

// What shares are judged by: means over fewer exchanges, or over less time, say more about the machine's
// other work than about the workers.
constexpr absl::Duration kMeasureTime = absl::Seconds(5);
constexpr int64_t kMeasureExchanges = 256;

// The placement for worker i of those that divide the neurons.
neuron::Placement SeenBy(const neuron::Placement& placement, const std::vector<std::vector<uint64_t>>& owned,
                         size_t i) {
  return owned.size() == 1 ? placement : RestrictTo(placement, owned[i]);
}

}  // namespace

ColdWorkers::ColdWorkers(ColdWorkersOptions options, neuron::Placement placement)
    : options_(std::move(options)), placement_(std::move(placement)) {
  for (const std::string& address : options_.addresses) {
    const observe::Labels labels = {{"cpu_worker", address}};
    Registry& registry = Registry::Global();
    Member member;
    member.worker = std::make_unique<ColdWorker>(address, options_.worker);
    member.share = registry.GetGauge("isotherm_exchange_worker_share_ratio",
                                     "Share of the cold neurons that a CPU worker computes.", labels);
    member.connected = registry.GetGauge("isotherm_exchange_worker_connected",
                                         "1 while exchanges with a CPU worker are open.", labels);
    member.exchange_bytes = registry.GetCounter("isotherm_exchange_worker_bytes_total",
                                                "Bytes exchanged with a CPU worker, both ways.", labels);
    member.exchange_seconds =
        registry.GetHistogram("isotherm_exchange_worker_seconds", "One layer's exchange with a CPU worker.",
                              observe::ExchangeBuckets(), labels);
    workers_.push_back(std::move(member));
  }
}

bool ColdWorkers::Owns(size_t worker) const {
  return std::binary_search(owners_.begin(), owners_.end(), worker);
}

std::vector<size_t> ColdWorkers::FoundWorkers() const {
  std::vector<size_t> found;
  for (size_t i = 0; i < workers_.size(); ++i) {
    if (workers_[i].worker->found()) found.push_back(i);
  }
  return found;
}

void ColdWorkers::Seek() {
  if (workers_.size() == 1) return;  // EnsureConnected has nobody else to serve with meanwhile
  for (const Member& member : workers_) {
    if (member.worker->found() || member.worker->resting()) continue;
    if (const absl::Status status = member.worker->Find(); !status.ok()) {
      spdlog::debug("{}", std::string(status.message()));
    }
  }
}

bool ColdWorkers::settled() const { return channel() != nullptr && !reshare_ && FoundWorkers() == owners_; }

exchange::Channel* ColdWorkers::channel() const {
  const bool all_there = std::all_of(owners_.begin(), owners_.end(),
                                     [&](size_t owner) { return workers_[owner].worker->connected(); });
  if (owners_.empty() || !all_there) return nullptr;
  if (split_ == nullptr) return workers_[owners_.front()].worker->channel();
  return split_->failed() ? nullptr : split_.get();
}

bool ColdWorkers::others_left() const {
  return std::any_of(owners_.begin(), owners_.end(),
                     [&](size_t owner) { return workers_[owner].worker->connected(); });
}

absl::Status ColdWorkers::EnsureConnected() {
  if (settled()) return absl::OkStatus();
  for (const size_t owner : owners_) {
    ColdWorker& worker = *workers_[owner].worker;
    if (worker.connected()) continue;
    split_.reset();
    worker.Lose();
    if (others_left()) spdlog::warn("CPU worker at {} lost, the others take over", worker.address());
  }
  std::vector<size_t> found = FoundWorkers();
  if (found.empty()) {
    Publish();
    ISOTHERM_ASSIGN_OR_RETURN(found, FindAll());
  }
  return Open(std::move(found));
}

absl::StatusOr<std::vector<size_t>> ColdWorkers::FindAll() {
  std::vector<size_t> found;
  absl::Status error;
  for (size_t i = 0; i < workers_.size(); ++i) {
    const absl::Status status = workers_[i].worker->Find();
    if (status.ok()) {
      found.push_back(i);
    } else {
      error = error.ok() ? status
                         : absl::Status(error.code(), absl::StrCat(error.message(), "; ", status.message()));
    }
  }
  if (found.empty()) return error;
  return found;
}

absl::Status ColdWorkers::Open(std::vector<size_t> owners) {
  while (true) {
    absl::Status error;
    const std::optional<size_t> failed = OpenAs(owners, error);
    if (!failed.has_value()) break;
    owners.erase(std::find(owners.begin(), owners.end(), *failed));
    if (owners.empty()) return error;
    spdlog::warn("{}; the others serve without it", std::string(error.message()));
    if (owners == owners_ && channel() != nullptr) return absl::OkStatus();
  }
  ++openings_;
  opened_ = absl::Now();
  reshare_ = false;
  settled_shares_ = false;
  Publish();
  return absl::OkStatus();
}

std::optional<size_t> ColdWorkers::OpenAs(const std::vector<size_t>& owners, absl::Status& error) {
  const std::vector<double> shares = SharesFor(owners);
  const std::vector<std::vector<uint64_t>> owned = DivideNeurons(placement_.ffn, shares);
  const auto open = [&](size_t i) {
    error = workers_[owners[i]].worker->Open(SeenBy(placement_, owned, i));
    return error.ok();
  };
  // Newcomers first: when one of them fails, the exchanges of the others go on as they are.
  std::vector<size_t> others;
  for (size_t i = 0; i < owners.size(); ++i) {
    if (workers_[owners[i]].worker->connected()) {
      others.push_back(i);
    } else if (!open(i)) {
      return owners[i];
    }
  }
  split_.reset();
  for (const size_t i : others) {
    if (!open(i)) return owners[i];
  }
  owners_ = owners;
  shares_ = shares;
  if (owners.size() == 1) return std::nullopt;
  std::vector<SplitChannel::Member> members;
  for (size_t i = 0; i < owners.size(); ++i) {
    members.push_back({workers_[owners[i]].worker->channel(), owned[i]});
  }
  split_ = std::make_unique<SplitChannel>(options_.worker.geometry, std::move(members));
  return std::nullopt;
}

std::vector<double> ColdWorkers::SharesFor(const std::vector<size_t>& owners) {
  std::vector<double> weights;
  for (const size_t owner : owners) {
    Member& member = workers_[owner];
    if (!options_.shares.empty()) {
      member.speed = options_.shares[owner];
    } else if (member.speed == 0) {
      member.speed = member.worker->read_bandwidth();
    }
    weights.push_back(member.speed);
  }
  return SharesOf(weights);
}

void ColdWorkers::Record(const std::vector<absl::Duration>& latencies) {
  const std::vector<std::vector<absl::Duration>> by_owner =
      split_ == nullptr ? std::vector<std::vector<absl::Duration>>{latencies} : split_->TakeLatencies();
  for (size_t i = 0; i < owners_.size(); ++i) {
    Member& member = workers_[owners_[i]];
    member.exchanges += static_cast<int64_t>(by_owner[i].size());
    for (const absl::Duration latency : by_owner[i]) {
      member.latency += latency;
      member.exchange_seconds.Observe(absl::ToDoubleSeconds(latency));
    }
    const exchange::Channel* const channel = member.worker->channel();
    if (channel == nullptr) continue;
    member.exchange_bytes.Add(static_cast<double>(channel->bytes_exchanged() - member.bytes));
    member.bytes = channel->bytes_exchanged();
  }
  if (split_ != nullptr && options_.shares.empty()) Remeasure();
}

void ColdWorkers::Remeasure() {
  if (workers_[owners_.front()].exchanges < kMeasureExchanges || absl::Now() - opened_ < kMeasureTime) return;
  std::vector<absl::Duration> means;
  double speeds = 0;
  for (const size_t owner : owners_) {
    Member& member = workers_[owner];
    means.push_back(member.latency / member.exchanges);
    speeds += member.speed;
    member.latency = absl::ZeroDuration();
    member.exchanges = 0;
  }
  opened_ = absl::Now();
  const std::vector<double> shares =
      Rebalance(shares_, means, settled_shares_ ? kToleratedSettled : kToleratedSettling);
  settled_shares_ = shares == shares_;
  if (settled_shares_) return;
  // The sum stays, so that the speeds compare with those of workers that are away.
  for (size_t i = 0; i < owners_.size(); ++i) workers_[owners_[i]].speed = shares[i] * speeds;
  reshare_ = true;
}

void ColdWorkers::Publish() {
  for (size_t i = 0; i < workers_.size(); ++i) {
    Member& member = workers_[i];
    const bool owns = Owns(i) && member.worker->connected();
    const size_t place = std::lower_bound(owners_.begin(), owners_.end(), i) - owners_.begin();
    member.connected.Set(owns ? 1 : 0);
    member.share.Set(owns ? shares_[place] : 0);
    member.exchanges = 0;
    member.latency = absl::ZeroDuration();
    member.bytes = 0;
    if (owns && split_ != nullptr) {
      spdlog::info("CPU worker at {} owns {:.1f} % of the neurons", member.worker->address(),
                   100 * shares_[place]);
    }
  }
}

absl::Status ColdWorkers::Follow(neuron::Placement placement) {
  if (channel() == nullptr) return absl::UnavailableError("the CPU worker is not connected");
  const std::vector<std::vector<uint64_t>> owned = DivideNeurons(placement.ffn, shares_);
  for (size_t i = 0; i < owners_.size(); ++i) {
    ISOTHERM_RETURN_IF_ERROR(workers_[owners_[i]].worker->Follow(SeenBy(placement, owned, i)));
  }
  placement_ = std::move(placement);
  return absl::OkStatus();
}

absl::Status ColdWorkers::ReadNeurons(int64_t layer, absl::Span<const int32_t> neurons, int64_t bundle_bytes,
                                      uint8_t* out) const {
  absl::Status status = absl::UnavailableError("no CPU worker is connected");
  for (const Member& member : workers_) {
    if (!member.worker->found()) continue;
    status = member.worker->ReadNeurons(layer, neurons, bundle_bytes, out);
    if (status.ok()) break;
  }
  return status;
}

absl::StatusOr<std::vector<std::vector<uint64_t>>> ColdWorkers::Firings() {
  if (channel() == nullptr) return absl::UnavailableError("the CPU worker is not connected");
  std::vector<std::vector<uint64_t>> sum;
  for (const size_t owner : owners_) {
    ISOTHERM_ASSIGN_OR_RETURN(auto firings, workers_[owner].worker->Firings());
    if (sum.empty()) {
      sum = std::move(firings);
      continue;
    }
    for (size_t layer = 0; layer < sum.size(); ++layer) {
      std::transform(sum[layer].begin(), sum[layer].end(), firings[layer].begin(), sum[layer].begin(),
                     std::plus<>());
    }
  }
  return sum;
}

}  // namespace isotherm::gpu_worker
