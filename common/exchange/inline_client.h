#ifndef ISOTHERM_COMMON_EXCHANGE_INLINE_CLIENT_H_
#define ISOTHERM_COMMON_EXCHANGE_INLINE_CLIENT_H_

#include <memory>
#include <vector>

#include "common/exchange/client_channel.h"

namespace isotherm::exchange {

// Requests and answers as frames of the stream. The caller writes into the outgoing message and reads from
// the received one.
class InlineClient final : public ClientChannel {
 public:
  InlineClient(const ClientOptions& options, std::unique_ptr<ClientStream> stream);

  Transport transport() const override { return Transport::kInline; }
  void BeginStep(uint64_t step) override { SendStep(step, kFlagStepOpens); }
  void EndStep() override { SendStep(step_, kFlagStepCloses); }
  std::optional<SharedMemory> shared_memory() const override { return std::nullopt; }
  bool failed() const override { return dead() || stream_->ended(); }

 protected:
  RequestBuffers Prepare(const Descriptor& request) override;
  absl::Status Publish(const Descriptor& request) override;
  absl::StatusOr<Arrival> Receive(const Descriptor& request) override;
  void Kill() override { stream_->Cancel(); }

 private:
  void SendStep(uint64_t step, DescriptorFlag flag);

  uint64_t step_ = 0;
  worker::v1::ExchangeRequest request_, step_message_;
  worker::v1::ExchangeResponse response_;
  // F32 [max_rows, hidden] on this side of BF16 frames; otherwise empty.
  std::vector<float> x_, y_;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_INLINE_CLIENT_H_
