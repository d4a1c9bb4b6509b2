#ifndef ISOTHERM_COMMON_EXCHANGE_SHM_CLIENT_H_
#define ISOTHERM_COMMON_EXCHANGE_SHM_CLIENT_H_

#include <memory>

#include "common/exchange/client_channel.h"
#include "common/exchange/region.h"

namespace isotherm::exchange {

// Requests and answers in the slots of a region; the stream is only the life line.
class ShmClient final : public ClientChannel {
 public:
  // The server knows that the region is mapped. `bundles` may be null.
  ShmClient(const ClientOptions& options, std::unique_ptr<Region> region,
            std::unique_ptr<SharedBundles> bundles, std::unique_ptr<ClientStream> stream);
  // Ends the stream before the region that its thread may still fail.
  ~ShmClient() override { stream_.reset(); }

  Transport transport() const override { return Transport::kSharedMemory; }
  void BeginStep(uint64_t step) override;
  void RingFromDevice() override { device_rings_ = true; }
  void EndStep() override;
  void Expect(int64_t layer, const uint64_t* mask) override;
  std::optional<SharedMemory> shared_memory() const override {
    return SharedMemory{region_->header(), region_->bytes(), geometry_, generation_, timeout_};
  }
  const SharedBundles* bundles() const override { return bundles_.get(); }
  bool failed() const override { return dead() || region_->failed(); }

 protected:
  RequestBuffers Prepare(const Descriptor& request) override;
  absl::Status Publish(const Descriptor& request) override;
  absl::StatusOr<Arrival> Receive(const Descriptor& request) override;
  void Kill() override;

 private:
  std::unique_ptr<Region> region_;
  std::unique_ptr<SharedBundles> bundles_;  // null: not shared
  bool device_rings_ = false;
};

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_SHM_CLIENT_H_
