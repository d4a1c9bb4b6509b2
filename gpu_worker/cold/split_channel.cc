#include "gpu_worker/cold/split_channel.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/kernels/ops.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker {

SplitChannel::SplitChannel(const exchange::Geometry& geometry, std::vector<Member> members)
    : geometry_(geometry),
      words_(neuron::MaskWords(geometry.ffn)),
      members_(std::move(members)),
      x_(geometry.max_rows * geometry.hidden),
      masks_(geometry.max_rows * words_),
      gate_values_(geometry.gate_values ? geometry.max_rows * geometry.ffn : 0),
      y_(geometry.max_rows * geometry.hidden),
      latencies_(members_.size()) {}

exchange::Transport SplitChannel::transport() const {
  const bool any_inline = std::any_of(members_.begin(), members_.end(), [](const Member& member) {
    return member.channel->transport() == exchange::Transport::kInline;
  });
  return any_inline ? exchange::Transport::kInline : exchange::Transport::kSharedMemory;
}

void SplitChannel::BeginStep(uint64_t step) {
  for (const Member& member : members_) member.channel->BeginStep(step);
}

void SplitChannel::EndStep() {
  for (const Member& member : members_) member.channel->EndStep();
}

void SplitChannel::Note(const worker::v1::SequenceNote& note) {
  for (const Member& member : members_) member.channel->Note(note);
}

absl::StatusOr<exchange::RequestBuffers> SplitChannel::Begin(const exchange::RequestHeader& header) {
  ISOTHERM_RETURN_IF_ERROR(error_);
  if (header.rows < 1 || header.rows > geometry_.max_rows) {
    return Fail(absl::InvalidArgumentError(absl::StrCat("exchange request: rows is ", header.rows,
                                                        ", must be in [1, ", geometry_.max_rows, "]")));
  }
  header_ = header;
  return exchange::RequestBuffers{x_.data(), masks_.data(),
                                  gate_values_.empty() ? nullptr : gate_values_.data()};
}

absl::Status SplitChannel::Send(int64_t) {
  ISOTHERM_RETURN_IF_ERROR(error_);
  for (const Member& member : members_) {
    if (const absl::Status sent = SendTo(member); !sent.ok()) return Fail(sent);
  }
  rows_in_flight_.push_back(header_.rows);
  return absl::OkStatus();
}

absl::Status SplitChannel::SendTo(const Member& member) {
  ISOTHERM_ASSIGN_OR_RETURN(const exchange::RequestBuffers to, member.channel->Begin(header_));
  std::copy_n(x_.data(), header_.rows * geometry_.hidden, to.x);
  for (int64_t w = 0; w < header_.rows * words_; ++w) to.masks[w] = masks_[w] & member.owned[w % words_];
  if (!header_.has_gate_values) return member.channel->Send(0);
  int64_t read = 0, written = 0;
  for (int64_t row = 0; row < header_.rows; ++row) {
    neuron::ForEachSet(masks_.data() + row * words_, words_, [&](int64_t neuron) {
      const float value = gate_values_[read++];
      if (neuron::TestBit(member.owned.data(), neuron)) to.gate_values[written++] = value;
    });
  }
  return member.channel->Send(written);
}

absl::StatusOr<exchange::Channel::Answer> SplitChannel::Await() {
  ISOTHERM_RETURN_IF_ERROR(error_);
  if (rows_in_flight_.empty()) return Fail(absl::FailedPreconditionError("exchange: Await out of turn"));
  const int64_t count = rows_in_flight_.front() * geometry_.hidden;
  rows_in_flight_.pop_front();
  Answer sum{.y = y_.data()};
  for (size_t i = 0; i < members_.size(); ++i) {
    const absl::StatusOr<Answer> answer = members_[i].channel->Await();
    if (!answer.ok()) return Fail(answer.status());
    if (i == 0) {
      std::copy_n(answer->y, count, y_.data());
    } else {
      kernels::Add(answer->y, y_.data(), count);
    }
    sum.computed += answer->computed;
    sum.active += answer->active;
    sum.latency = std::max(sum.latency, answer->latency);
    sum.wait += answer->wait;
    latencies_[i].push_back(answer->latency);
  }
  return sum;
}

const exchange::SharedBundles* SplitChannel::bundles() const {
  for (const Member& member : members_) {
    if (member.channel->bundles() != nullptr) return member.channel->bundles();
  }
  return nullptr;
}

absl::Status SplitChannel::Fail(const absl::Status& error) {
  error_.Update(error);
  return error_;
}

bool SplitChannel::failed() const {
  return !error_.ok() || std::any_of(members_.begin(), members_.end(),
                                     [](const Member& member) { return member.channel->failed(); });
}

int64_t SplitChannel::bytes_exchanged() const {
  int64_t bytes = 0;
  for (const Member& member : members_) bytes += member.channel->bytes_exchanged();
  return bytes;
}

std::vector<std::vector<absl::Duration>> SplitChannel::TakeLatencies() {
  return std::exchange(latencies_, std::vector<std::vector<absl::Duration>>(members_.size()));
}

}  // namespace isotherm::gpu_worker
