#include "gateway/engine/engine.h"

#include <algorithm>
#include <exception>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/observe/log.h"

namespace isotherm::gateway {
namespace {

// While nothing runs, the runner is asked this often whether it is still there.
constexpr absl::Duration kProbeInterval = absl::Seconds(1);
// How late a deadline or cancellation of a sequence without a step may be noticed.
constexpr absl::Duration kWaitingCheckInterval = absl::Milliseconds(50);

absl::Status GraceStatus(absl::Duration grace, const absl::Status& cause) {
  const std::string how_long =
      grace > absl::ZeroDuration() ? absl::StrCat(" for more than ", absl::FormatDuration(grace)) : "";
  return absl::UnavailableError(
      absl::StrCat("the worker was lost", how_long, ": ", std::string(cause.message())));
}

std::string Describe(const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const std::exception& exception) {
    return exception.what();
  } catch (...) {
    return "an exception of unknown type";
  }
}

}  // namespace

bool RunnerState::operator==(const RunnerState& other) const {
  return serving == other.serving && loading == other.loading && cause == other.cause &&
         context == other.context && runner.instance_id() == other.runner.instance_id();
}

Engine::Engine(EngineOptions options, std::unique_ptr<WorkerClient> client, const GatewayMetrics* metrics)
    : options_(std::move(options)), metrics_(metrics), link_(options_.worker, std::move(client)) {}

void Engine::Start(ServingListener on_serving) {
  on_serving_ = std::move(on_serving);
  thread_ = std::thread([this] { Run(); });
}

void Engine::Stop() {
  {
    base::MutexLock lock(&mutex_);
    draining_ = true;
    stopping_ = true;
  }
  if (thread_.joinable()) thread_.join();
  TakeSubmissions();
  FailAll(absl::UnavailableError("the gateway is shutting down"));
}

absl::Status Engine::Submit(std::unique_ptr<Sequence> sequence) {
  base::MutexLock lock(&mutex_);
  if (draining_) return absl::UnavailableError("draining");
  if (!refusal_.ok()) return refusal_;
  if (state_.context > 0) {
    if (absl::Status fits = sequence->FitInto(state_.context); !fits.ok()) return fits;
  }
  const int64_t queued = static_cast<int64_t>(incoming_.size()) + unstarted_;
  if (queued >= options_.max_queue) {
    return absl::ResourceExhaustedError(absl::StrCat("the queue is full: ", queued, " requests are waiting"));
  }
  sequence->set_id(next_sequence_id_++);
  incoming_.push_back(std::move(sequence));
  return absl::OkStatus();
}

void Engine::Drain() {
  base::MutexLock lock(&mutex_);
  draining_ = true;
}

RunnerState Engine::runner_state() const {
  base::MutexLock lock(&mutex_);
  return state_;
}

void Engine::Run() {
  std::exception_ptr failure;
  while (true) {
    try {
      if (failure != nullptr) Recover(Describe(std::exchange(failure, nullptr)));
      RunOnce();
    } catch (...) {
      failure = std::current_exception();
    }
    base::MutexLock lock(&mutex_);
    if (stopping_) return;
  }
}

void Engine::RunOnce() {
  TakeSubmissions();
  EndAbandoned();
  abandoned_.clear();
  if (link_.Ready()) {
    AdoptRunner();
    if (idle()) {
      link_.Confirm();
      TellEnded();
    } else {
      RunStep();
    }
  } else {
    Suspend();
  }
  if (link_.GraceOver()) FailAll(GraceStatus(options_.worker.grace, link_.cause()));
  Publish();
  Wait();
}

// What the exception left half done goes with the sequences and their cache. The back-off of the link keeps
// an exception that comes again and again from taking a core.
void Engine::Recover(const std::string& what) {
  spdlog::error("the engine failed, all requests end: {}", what);
  const absl::Status status = absl::InternalError(absl::StrCat("the gateway failed: ", what));
  link_.Lose(status);
  FailAll(status);
  abandoned_.clear();
  pool_ = nullptr;
  Publish();
  Wait();
}

void Engine::TakeSubmissions() {
  std::vector<std::unique_ptr<Sequence>> incoming;
  {
    base::MutexLock lock(&mutex_);
    incoming.swap(incoming_);
    unstarted_ += static_cast<int64_t>(incoming.size());
  }
  for (std::unique_ptr<Sequence>& sequence : incoming) {
    const absl::Status fits = pool_ == nullptr ? absl::OkStatus() : sequence->FitInto(context_);
    if (fits.ok()) {
      waiting_.emplace(sequence->id(), std::move(sequence));
    } else {
      sequence->Fail(fits);
    }
  }
}

void Engine::EndAbandoned() {
  const absl::Time now = absl::Now();
  EndAbandonedIn(running_, now);
  if (now - waiting_checked_ < kWaitingCheckInterval) return;
  waiting_checked_ = now;
  EndAbandonedIn(waiting_, now);
}

void Engine::EndAbandonedIn(Sequences& sequences, absl::Time now) {
  for (auto it = sequences.begin(); it != sequences.end();) {
    Sequence& sequence = *it->second;
    absl::Status end;
    if (now >= sequence.caller().deadline()) {
      end =
          absl::DeadlineExceededError(sequence.started() ? "the deadline passed while the request was running"
                                                         : "the deadline passed in the queue");
    } else if (sequence.caller().Gone()) {
      end = absl::CancelledError("the caller is gone");
    }
    const auto next = std::next(it);
    if (!end.ok()) {
      sequence.Fail(end);
      if (sequence.started()) ended_.push_back(sequence.id());
      abandoned_.insert(sequences.extract(it));
    }
    it = next;
  }
}

bool Engine::AttendCallers() {
  TakeSubmissions();
  EndAbandoned();
  base::MutexLock lock(&mutex_);
  return !stopping_;
}

// Another instance starts with an empty KV cache, whatever its predecessor held.
void Engine::AdoptRunner() {
  const worker::v1::GetRunnerResponse& runner = link_.runner();
  if (pool_ != nullptr && runner.instance_id() == instance_id_) return;
  for (auto& [id, sequence] : running_) {
    if (sequence->ForgetRows()) metrics_->worker_rebuilds.Add();
  }
  waiting_.merge(running_);
  ended_.clear();
  pool_ = std::make_unique<KvBlockPool>(runner.kv_blocks(), runner.kv_block_size());
  instance_id_ = runner.instance_id();
  context_ = std::min<int64_t>(runner.context_length(), pool_->total_blocks() * pool_->block_size());
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    const absl::Status fits = it->second->FitInto(context_);
    if (!fits.ok()) it->second->Fail(fits);
    it = fits.ok() ? std::next(it) : waiting_.erase(it);
  }
}

void Engine::Suspend() {
  for (Sequences* sequences : {&running_, &waiting_}) {
    for (auto& [id, sequence] : *sequences) sequence->WaitForWorker();
  }
}

ScheduleSnapshot Engine::Snapshot() const {
  ScheduleSnapshot snapshot;
  for (const auto& [id, sequence] : running_) snapshot.running.push_back(sequence->Snapshot());
  for (const auto& [id, sequence] : waiting_) snapshot.waiting.push_back(sequence->Snapshot());
  snapshot.free_blocks = pool_->free_blocks();
  snapshot.limits = {pool_->block_size(), link_.runner().max_decode_rows(),
                     link_.runner().max_prefill_rows()};
  return snapshot;
}

void Engine::RunStep() {
  const StepPlan plan = PlanStep(Snapshot());
  for (const uint64_t id : plan.preempted) Preempt(id);
  for (const uint64_t id : plan.admitted) {
    auto node = waiting_.extract(id);
    node.mapped()->AttachTo(pool_.get());
    running_.insert(std::move(node));
  }
  CountSequences();  // a step can be long
  Execute(plan.slices);
}

void Engine::Preempt(uint64_t id) {
  auto node = running_.extract(id);
  node.mapped()->ForgetRows();
  metrics_->preemptions.Add();
  waiting_.insert(std::move(node));
}

// A step that the runner refuses for good is taken apart, so that only the sequence at fault ends.
void Engine::Execute(absl::Span<const PlannedSlice> slices) {
  worker::v1::StepRequest request;
  request.set_step_id(next_step_id_++);
  request.mutable_ended()->Add(ended_.begin(), ended_.end());
  const absl::Time now = absl::Now();
  for (const PlannedSlice& slice : slices) {
    const absl::Status filled =
        running_.at(slice.id)->Fill(slice, now, link_.connections(), request.add_slices());
    if (!filled.ok()) {
      request.mutable_slices()->RemoveLast();
      EndRunning(slice.id, filled);
    }
  }
  if (request.slices().empty()) return;
  if (request.slices_size() == 1 && running_.size() == 1 && waiting_.empty()) {
    running_.begin()->second->OfferNext(request.mutable_slices(0));
  }
  ended_.clear();

  const absl::StatusOr<worker::v1::StepSuccess> success =
      link_.Step(request, [this] { return AttendCallers(); });
  if (success.ok()) {
    AcceptOutputs(request, *success);
  } else if (absl::IsUnavailable(success.status())) {
    return;
  } else if (slices.size() == 1) {
    EndRunning(slices[0].id, success.status());
  } else {
    spdlog::warn("a step of {} sequences was refused, trying them one by one: {}", slices.size(),
                 std::string(success.status().message()));
    for (size_t i = 0; i < slices.size() && link_.connected(); ++i) {
      if (running_.contains(slices[i].id)) Execute(slices.subspan(i, 1));
    }
  }
}

void Engine::TellEnded() {
  if (ended_.empty()) return;
  worker::v1::StepRequest request;
  request.set_step_id(next_step_id_++);
  request.mutable_ended()->Add(ended_.begin(), ended_.end());
  ended_.clear();
  // For the worker's log alone: if that fails, so does the next step.
  link_.Step(request, [this] { return AttendCallers(); }).IgnoreError();
}

void Engine::AcceptOutputs(const worker::v1::StepRequest& request, const worker::v1::StepSuccess& success) {
  const absl::Time now = absl::Now();
  int64_t rows = 0;
  for (int i = 0; i < request.slices_size(); ++i) {
    const worker::v1::SequenceSlice& slice = request.slices(i);
    rows += slice.tokens_size();
    const auto it = running_.find(slice.sequence_id());
    if (it == running_.end()) continue;  // abandoned in the meantime
    const absl::StatusOr<bool> over =
        it->second->Accept(slice, success.outputs(i), success.statistics(), now);
    if (!over.ok()) {
      EndRunning(slice.sequence_id(), over.status());
    } else if (*over) {
      ended_.push_back(it->first);
      running_.erase(it);
    }
  }
  metrics_->batch_size.Observe(request.slices_size());
  metrics_->iteration_tokens.Observe(static_cast<double>(rows));
}

void Engine::EndRunning(uint64_t id, const absl::Status& status) {
  auto node = running_.extract(id);
  if (node.empty()) return;
  node.mapped()->Fail(status);
  ended_.push_back(id);
}

void Engine::FailAll(const absl::Status& status) {
  for (Sequences* sequences : {&running_, &waiting_}) {
    while (!sequences->empty()) sequences->extract(sequences->begin()).mapped()->Fail(status);
  }
}

void Engine::CountSequences() {
  metrics_->requests_running.Set(static_cast<double>(running_.size()));
  metrics_->requests_waiting.Set(static_cast<double>(waiting_.size()));
  if (pool_ != nullptr) {
    metrics_->kv_cache_usage.Set(1 - static_cast<double>(pool_->free_blocks()) /
                                         static_cast<double>(pool_->total_blocks()));
  }
  const int64_t unstarted = std::count_if(waiting_.begin(), waiting_.end(),
                                          [](const auto& entry) { return !entry.second->started(); });
  base::MutexLock lock(&mutex_);
  unstarted_ = unstarted;
}

void Engine::Publish() {
  CountSequences();
  RunnerState state;
  state.serving = link_.cause().ok() && link_.connected();
  state.loading = link_.loading();
  state.cause = std::string(link_.cause().message());
  state.context = context_;
  state.runner = link_.runner();

  bool serving_changed = false;
  {
    base::MutexLock lock(&mutex_);
    refusal_ = link_.GraceOver() ? GraceStatus(options_.worker.grace, link_.cause()) : absl::OkStatus();
    if (state == state_) return;
    serving_changed = state.serving != state_.serving || state.cause != state_.cause;
    state_ = state;
  }
  if (serving_changed && on_serving_) on_serving_(state.serving, state.cause);
}

void Engine::Wait() {
  if (link_.connected() && !idle()) return;
  bool probe = false;
  {
    base::MutexLock lock(&mutex_);
    if (link_.connected()) {
      probe = !mutex_.AwaitWithTimeout(absl::Condition(this, &Engine::Stirred), kProbeInterval);
    } else {
      mutex_.AwaitWithTimeout(absl::Condition(this, &Engine::Stopping),
                              std::min(link_.RetryIn(), kWaitingCheckInterval));
    }
  }
  if (probe) link_.Probe();
}

}  // namespace isotherm::gateway
