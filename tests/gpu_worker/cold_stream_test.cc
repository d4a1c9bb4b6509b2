// Cold neurons brought over from another process's memory: every one of them, with its number, in batches.

#include "gpu_worker/cuda/cold_stream.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "common/base/unique_fd.h"
#include "common/neuron/mask.h"

namespace isotherm::gpu_worker::cuda {
namespace {

constexpr int64_t kBundleBytes = 24 << 10;
constexpr int64_t kFfn = 5000;  // 117 MiB: several batches
constexpr int64_t kLayers = 2;

// Bundles whose every word tells layer, neuron and place.
class Bundles {
 public:
  Bundles() {
    const int64_t bytes = kLayers * kFfn * kBundleBytes;
    EXPECT_EQ(ftruncate(file_.get(), bytes), 0);
    auto* const data =
        static_cast<uint32_t*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0));
    for (int64_t i = 0; i < bytes / 4; ++i) data[i] = Word(i);
    munmap(data, bytes);
    EXPECT_EQ(fcntl(file_.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE), 0);
    auto mapped = exchange::SharedBundles::Map(
        file_.get(), *exchange::OfferBundles({file_.get(), bytes, {0, kFfn * kBundleBytes}}), kLayers);
    EXPECT_TRUE(mapped.ok()) << mapped.status();
    shared = *std::move(mapped);
  }
  static uint32_t Word(int64_t i) { return static_cast<uint32_t>(i) * 2654435761u; }

  std::unique_ptr<exchange::SharedBundles> shared;

 private:
  const base::UniqueFd file_{memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
};

class ColdStreamTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
      GTEST_SKIP() << "device cuda needs an NVIDIA GPU";
    }
    stream_ = *MakeStream();
    staging_ = *AllocateDevice(ColdStream::kStagingBytes);
    hot_mask_ = *AllocateDevice(neuron::MaskWords(kFfn) * 8);
    layout_.bundle_bytes = kBundleBytes;
    auto cold = ColdStream::Attach(*bundles_.shared, kLayers, kFfn, staging_.get());
    ASSERT_TRUE(cold.ok()) << cold.status();
    cold_ = *std::move(cold);
  }

  void SetHot(const std::vector<uint64_t>& mask) {
    ASSERT_EQ(cudaMemcpy(hot_mask_.get(), mask.data(), mask.size() * 8, cudaMemcpyHostToDevice), cudaSuccess);
  }

  // The neurons that came, in their order, after a look at every word of them. Copies to the host are
  // enqueued, as computing would be, and looked at in the end.
  std::vector<int32_t> Bring(int64_t layer, uint64_t epoch) {
    std::vector<int32_t> ids(kFfn);
    std::vector<uint32_t> words(kFfn * kBundleBytes / 4);
    int64_t count = 0;
    const absl::Status status =
        cold_->ForEachBatch(layer, layout_, static_cast<uint64_t*>(hot_mask_.get()), epoch, stream_.get(),
                            [&](const ColdStream::Batch& batch) {
                              cudaMemcpyAsync(ids.data() + count, batch.ids, batch.count * 4,
                                              cudaMemcpyDeviceToHost, stream_.get());
                              const cudaError_t error = cudaMemcpyAsync(
                                  words.data() + count * kBundleBytes / 4, batch.bundles,
                                  batch.count * kBundleBytes, cudaMemcpyDeviceToHost, stream_.get());
                              count += batch.count;
                              return ToStatus(error, "reading a batch");
                            });
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(cudaStreamSynchronize(stream_.get()), cudaSuccess);
    ids.resize(count);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t first = (layer * kFfn + ids[k]) * kBundleBytes / 4;
      for (int64_t w = 0; w < kBundleBytes / 4; ++w) {
        if (words[k * kBundleBytes / 4 + w] != Bundles::Word(first + w)) {
          ADD_FAILURE() << "layer " << layer << " neuron " << ids[k] << " word " << w;
          return ids;
        }
      }
    }
    return ids;
  }

  Bundles bundles_;
  Stream stream_;
  DeviceMemory staging_, hot_mask_;
  neuron::BundleLayout layout_;
  std::unique_ptr<ColdStream> cold_;
};

std::vector<int32_t> ColdNeurons(const std::vector<uint64_t>& hot) {
  std::vector<int32_t> cold;
  for (int32_t j = 0; j < kFfn; ++j) {
    if (!neuron::TestBit(hot.data(), j)) cold.push_back(j);
  }
  return cold;
}

TEST_F(ColdStreamTest, BringsEveryColdNeuronAndFollowsTheEpoch) {
  std::mt19937 random(7);
  std::vector<uint64_t> hot(neuron::MaskWords(kFfn));
  uint64_t epoch = 0;
  for (const int percent : {0, 30, 97}) {
    std::fill(hot.begin(), hot.end(), 0);
    for (int64_t j = 0; j < kFfn; ++j) {
      if (static_cast<int>(random() % 100) < percent) neuron::SetBit(hot.data(), j);
    }
    SetHot(hot);
    ++epoch;
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      EXPECT_EQ(Bring(layer, epoch), ColdNeurons(hot)) << percent << " % hot, layer " << layer;
    }
    EXPECT_EQ(Bring(0, epoch), ColdNeurons(hot));
  }
  neuron::SetAll(hot.data(), kFfn);
  SetHot(hot);
  EXPECT_TRUE(Bring(0, epoch + 1).empty());
}

TEST_F(ColdStreamTest, BundlesThatDoNotFitAreAnError) {
  layout_.bundle_bytes = ColdStream::kStagingBytes;
  EXPECT_EQ(cold_
                ->ForEachBatch(0, layout_, static_cast<uint64_t*>(hot_mask_.get()), 1, stream_.get(),
                               [](const ColdStream::Batch&) { return absl::OkStatus(); })
                .code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace isotherm::gpu_worker::cuda
