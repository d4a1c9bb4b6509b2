#ifndef ISOTHERM_GPU_WORKER_CUDA_PASS_TABLES_H_
#define ISOTHERM_GPU_WORKER_CUDA_PASS_TABLES_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "gpu_worker/cuda/runtime.h"
#include "gpu_worker/device/device.h"
#include "gpu_worker/kernels/sequence_rows.h"

namespace isotherm::gpu_worker::cuda {

// What differs between passes of one shape, at device addresses that stay: a graph that has them baked in
// reads the new values. The host copy is page-locked, so that one asynchronous copy brings all of it over.
class PassTables {
 public:
  // For passes of at most `max_rows` rows.
  absl::Status Allocate(int64_t max_rows);
  // Enqueues the copy. The pass before must be over. `moved` tells that the addresses changed, as they do
  // when block tables are longer than ever before.
  absl::Status Upload(const PassInput& input, cudaStream_t stream, bool& moved);
  // Brings targets over and returns their device address, good until the next pass.
  absl::StatusOr<const uint32_t*> UploadTargets(absl::Span<const uint32_t> targets, cudaStream_t stream);

  SequenceRows sequences() const;
  const int32_t* tokens() const { return reinterpret_cast<const int32_t*>(device(kTokens)); }
  const int32_t* output_rows() const { return reinterpret_cast<const int32_t*>(device(kOutputRows)); }

  int64_t output_count() const { return outputs_; }

  static int64_t Bytes(int64_t max_rows);

 private:
  // Sections of max_rows words each; the block tables follow.
  enum Section { kTokens, kPositions, kTableOffsets, kOutputRows, kTargets, kBlockTables };

  absl::Status Reserve(int64_t table_words);
  uint32_t* host(Section section) const { return static_cast<uint32_t*>(host_.get()) + section * max_rows_; }
  uint32_t* device(Section section) const {
    return static_cast<uint32_t*>(device_.get()) + section * max_rows_;
  }

  int64_t max_rows_ = 0;
  int64_t table_words_ = 0;
  int64_t rows_ = 0;
  int64_t outputs_ = 0;
  int64_t targets_ = 0;  // of this pass, so far
  PinnedMemory host_;
  DeviceMemory device_;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_CUDA_PASS_TABLES_H_
