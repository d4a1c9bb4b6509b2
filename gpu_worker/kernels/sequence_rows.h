#ifndef ISOTHERM_GPU_WORKER_KERNELS_SEQUENCE_ROWS_H_
#define ISOTHERM_GPU_WORKER_KERNELS_SEQUENCE_ROWS_H_

#include <cstdint>

namespace isotherm::gpu_worker::cuda {

// Where the token rows of a pass stand in their sequences; all pointers are to device memory.
struct SequenceRows {
  const int32_t* positions = nullptr;
  const int32_t* table_offsets = nullptr;  // where a row's block table starts in block_tables
  const uint32_t* block_tables = nullptr;
  int64_t rows = 0;
};

}  // namespace isotherm::gpu_worker::cuda

#endif  // ISOTHERM_GPU_WORKER_KERNELS_SEQUENCE_ROWS_H_
