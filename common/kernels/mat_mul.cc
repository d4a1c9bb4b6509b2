#include <algorithm>
#include <memory>

#include "common/kernels/ops.h"
#include "common/kernels/row_kernels.h"

namespace isotherm::kernels {
namespace {

// Rows in a grain are a multiple of the largest row tile of the kernels.
constexpr int64_t kRowTile = 4;

// A grain of weights takes some microseconds to stream, many times what drawing a ticket costs.
constexpr int64_t kGrainBytes = 64 << 10;

// Grains for each member, so that a member that was interrupted leaves the rest to the others.
constexpr int64_t kGrainsPerMember = 8;

// F32 values of one unpacked tile of weights: half of a 1 MiB second-level cache, the rest is for oneDNN's
// own copies.
constexpr int64_t kTileFloats = (512 << 10) / sizeof(float);

int64_t RoundUp(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

int64_t RowGrain(const WeightMatrix& weight, int members) {
  const int64_t balanced = weight.rows / (members * kGrainsPerMember);
  const int64_t worthwhile = kGrainBytes / std::max<int64_t>(weight.stride_bytes, 1);
  const int64_t at_most = weight.rows / members;
  return RoundUp(std::max<int64_t>(1, std::min(std::max(balanced, worthwhile), at_most)), kRowTile);
}

int64_t TileRows(const WeightMatrix& weight, int members) {
  // oneDNN's micro kernels are up to 48 columns wide.
  constexpr int64_t kMicroKernel = 48;
  const int64_t cached = kTileFloats / weight.columns / kMicroKernel * kMicroKernel;
  const int64_t balanced = RoundUp((weight.rows + members - 1) / members, kMicroKernel);
  return std::max(kMicroKernel, std::min(cached, balanced));
}

// Grows to the largest tile the thread has met and then stays.
float* TileScratch(int64_t floats) {
  thread_local std::unique_ptr<float[]> scratch;
  thread_local int64_t capacity = 0;
  if (capacity < floats) {
    scratch = std::make_unique_for_overwrite<float[]>(static_cast<size_t>(floats));
    capacity = floats;
  }
  return scratch.get();
}

}  // namespace

void MatMul(base::ThreadPool& pool, const WeightMatrix& weight, const float* x, int64_t ldx, int64_t batch,
            float* y, int64_t ldy) {
  const RowKernels& kernels = GetRowKernels(weight.type);
  if (batch <= kGemmRows) {
    pool.ParallelFor(weight.rows, RowGrain(weight, pool.threads()), [&](int64_t begin, int64_t end, int) {
      kernels.mat_mul(weight.data + begin * weight.stride_bytes, weight.stride_bytes, end - begin, x, ldx,
                      batch, weight.columns, y + begin, ldy);
    });
    return;
  }
  pool.ParallelFor(weight.rows, TileRows(weight, pool.threads()), [&](int64_t begin, int64_t end, int) {
    float* const tile = TileScratch((end - begin) * weight.columns);
    for (int64_t row = begin; row < end; ++row) {
      kernels.unpack(weight.data + row * weight.stride_bytes, weight.columns,
                     tile + (row - begin) * weight.columns);
    }
    GemmNT(batch, end - begin, weight.columns, x, ldx, tile, weight.columns, false, y + begin, ldy);
  });
}

}  // namespace isotherm::kernels
