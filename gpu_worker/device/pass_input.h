#ifndef ISOTHERM_GPU_WORKER_DEVICE_PASS_INPUT_H_
#define ISOTHERM_GPU_WORKER_DEVICE_PASS_INPUT_H_

#include <cstdint>
#include <vector>

namespace isotherm::gpu_worker {

// What differs between two passes of the same shape. Row r is one token of one sequence.
struct PassInput {
  uint64_t step = 0;
  std::vector<uint32_t> tokens;
  std::vector<int32_t> positions;
  // Per row: where its sequence's block table starts in `block_tables`.
  std::vector<int32_t> table_offsets;
  std::vector<uint32_t> block_tables;
  // Rows whose logits are wanted, and how many of these only to be scored against a target.
  std::vector<int32_t> output_rows;
  int64_t scored_rows = 0;
  int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
};

// Rows [begin, end) of a pass.
struct RowRange {
  int64_t begin = 0, end = 0;
  int64_t count() const { return end - begin; }
};

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_DEVICE_PASS_INPUT_H_
