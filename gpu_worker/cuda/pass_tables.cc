#include "gpu_worker/cuda/pass_tables.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"

namespace isotherm::gpu_worker::cuda {
namespace {

// A context of 64 Ki tokens in blocks of 16, sixteen times.
constexpr int64_t kFirstTableWords = int64_t{1} << 16;
constexpr int64_t kWordBytes = sizeof(uint32_t);

}  // namespace

int64_t PassTables::Bytes(int64_t max_rows) {
  return (kBlockTables * max_rows + kFirstTableWords) * kWordBytes;
}

absl::Status PassTables::Allocate(int64_t max_rows) {
  max_rows_ = max_rows;
  return Reserve(kFirstTableWords);
}

absl::Status PassTables::Reserve(int64_t table_words) {
  const int64_t bytes = (kBlockTables * max_rows_ + table_words) * kWordBytes;
  ISOTHERM_ASSIGN_OR_RETURN(host_, AllocatePinned(bytes));
  ISOTHERM_ASSIGN_OR_RETURN(device_, AllocateDevice(bytes));
  table_words_ = table_words;
  return absl::OkStatus();
}

absl::Status PassTables::Upload(const PassInput& input, cudaStream_t stream, bool& moved) {
  rows_ = input.rows();
  outputs_ = static_cast<int64_t>(input.output_rows.size());
  targets_ = 0;
  if (rows_ > max_rows_) {
    return absl::InternalError(absl::StrCat("a pass of ", rows_, " rows, configured for ", max_rows_));
  }
  const auto words = static_cast<int64_t>(input.block_tables.size());
  moved = words > table_words_;
  if (moved) {
    ISOTHERM_RETURN_IF_ERROR(Reserve(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(words)))));
  }
  std::copy(input.tokens.begin(), input.tokens.end(), host(kTokens));
  std::copy(input.positions.begin(), input.positions.end(), host(kPositions));
  std::copy(input.table_offsets.begin(), input.table_offsets.end(), host(kTableOffsets));
  std::copy(input.output_rows.begin(), input.output_rows.end(), host(kOutputRows));
  std::copy(input.block_tables.begin(), input.block_tables.end(), host(kBlockTables));
  return ToStatus(cudaMemcpyAsync(device_.get(), host_.get(), (kBlockTables * max_rows_ + words) * kWordBytes,
                                  cudaMemcpyHostToDevice, stream),
                  "uploading a pass");
}

absl::StatusOr<const uint32_t*> PassTables::UploadTargets(absl::Span<const uint32_t> targets,
                                                          cudaStream_t stream) {
  const auto count = static_cast<int64_t>(targets.size());
  if (targets_ + count > max_rows_) {
    return absl::InternalError(
        absl::StrCat(targets_ + count, " targets in a pass of at most ", max_rows_, " rows"));
  }
  std::copy(targets.begin(), targets.end(), host(kTargets) + targets_);
  uint32_t* const to = device(kTargets) + targets_;
  ISOTHERM_RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(to, host(kTargets) + targets_, count * kWordBytes, cudaMemcpyHostToDevice, stream),
      "uploading targets"));
  targets_ += count;
  return to;
}

SequenceRows PassTables::sequences() const {
  return {reinterpret_cast<const int32_t*>(device(kPositions)),
          reinterpret_cast<const int32_t*>(device(kTableOffsets)), device(kBlockTables), rows_};
}

}  // namespace isotherm::gpu_worker::cuda
