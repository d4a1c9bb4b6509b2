#include <algorithm>

#include "common/base/round_up.h"
#include "common/kernels/ops.h"
#include "common/kernels/row_kernels.h"
#include "hwy/aligned_allocator.h"

namespace isotherm::kernels {
namespace {

// Rows in a grain are a multiple of the largest row tile of the kernels.
constexpr int64_t kRowTile = 8;

// A grain of weights takes some microseconds to stream, many times what drawing a ticket costs.
constexpr int64_t kGrainBytes = 64 << 10;

// Grains for each member, so that a member that was interrupted leaves the rest to the others.
constexpr int64_t kGrainsPerMember = 8;

// F32 values of one unpacked tile of weights: half of a 1 MiB second-level cache, the rest is for oneDNN's
// own copies.
constexpr int64_t kTileFloats = (512 << 10) / sizeof(float);

// oneDNN's AVX-512 kernel for F32 computes 8 rows by 48, 32 or 16 columns at a time.
constexpr int64_t kGemmTileRows = 32;
constexpr int64_t kGemmColumns = 16;

// Edge of the squares that a transposition works in: a cache line of floats.
constexpr int64_t kSquare = 16;

// Rows a member takes at a time: enough bytes to be worth it, few enough to balance.
int64_t RowGrain(const WeightMatrix& weight, int members) {
  const int64_t balanced = weight.rows / (members * kGrainsPerMember);
  const int64_t worthwhile = kGrainBytes / std::max<int64_t>(weight.stride_bytes, 1);
  const int64_t at_most = weight.rows / members;
  return base::RoundUp(std::max<int64_t>(1, std::min(std::max(balanced, worthwhile), at_most)), kRowTile);
}

int64_t TileRows(const WeightMatrix& weight, int members) {
  const int64_t cached = kTileFloats / std::max<int64_t>(weight.columns, 1) / kGemmTileRows * kGemmTileRows;
  const int64_t balanced = base::RoundUp((weight.rows + members - 1) / members, kGemmTileRows);
  return std::max(kGemmTileRows, std::min(cached, balanced));
}

// Grows to the largest size it has met and then stays.
template <class T>
class Scratch {
 public:
  T* Room(int64_t count) {
    if (capacity_ < count) {
      values_ = hwy::AllocateAligned<T>(static_cast<size_t>(count));
      capacity_ = count;
    }
    return values_.get();
  }

 private:
  hwy::AlignedFreeUniquePtr<T[]> values_;
  int64_t capacity_ = 0;
};

// out[j * ldo + i] = in[i * ldi + j].
void Transpose(const float* in, int64_t ldi, int64_t rows, int64_t columns, float* out, int64_t ldo) {
  for (int64_t i0 = 0; i0 < rows; i0 += kSquare) {
    for (int64_t j0 = 0; j0 < columns; j0 += kSquare) {
      const int64_t i1 = std::min(i0 + kSquare, rows);
      const int64_t j1 = std::min(j0 + kSquare, columns);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) out[j * ldo + i] = in[i * ldi + j];
      }
    }
  }
}

// The product as weights [rows, columns] . x^T [columns, batch]: of all ways to ask oneDNN this was the
// fastest by far (200 GFLOP/s a core where x . weights^T reached 50 to 150), and it is x that is transposed,
// once, not the weights.
class GemmProduct {
 public:
  GemmProduct(base::ThreadPool& pool, const WeightMatrix& weight, int64_t batch)
      : pool_(pool), weight_(weight), batch_(batch), width_(base::RoundUp(batch, kGemmColumns)) {}

  void Compute(const float* x, int64_t ldx, float* y, int64_t ldy) {
    thread_local Scratch<float> scratch;
    float* const inputs = scratch.Room(weight_.columns * width_);
    pool_.ParallelFor(weight_.columns, kSquare * 4, [&](int64_t begin, int64_t end, int) {
      float* const out = inputs + begin * width_;
      Transpose(x + begin, ldx, batch_, end - begin, out, width_);
      for (int64_t c = 0; c < end - begin; ++c)
        std::fill(out + c * width_ + batch_, out + (c + 1) * width_, 0.0f);
    });
    pool_.ParallelFor(weight_.rows, TileRows(weight_, pool_.threads()), [&](int64_t begin, int64_t end, int) {
      ComputeTile(begin, end - begin, inputs, y + begin, ldy);
    });
  }

 private:
  void ComputeTile(int64_t first_row, int64_t rows, const float* inputs, float* y, int64_t ldy) const {
    thread_local Scratch<float> scratch;
    float* const tile = scratch.Room(rows * (weight_.columns + width_));
    float* const products = tile + rows * weight_.columns;
    const auto unpack = GetRowKernels(weight_.type).unpack;
    for (int64_t r = 0; r < rows; ++r) {
      unpack(weight_.data + (first_row + r) * weight_.stride_bytes, weight_.columns,
             tile + r * weight_.columns);
    }
    GemmNN(rows, width_, weight_.columns, tile, weight_.columns, inputs, width_, false, products, width_);
    Transpose(products, width_, rows, batch_, y, ldy);
  }

  base::ThreadPool& pool_;
  const WeightMatrix& weight_;
  const int64_t batch_;
  const int64_t width_;  // of the transposed input, zeros past the batch
};

}  // namespace

void MatMul(base::ThreadPool& pool, const WeightMatrix& weight, const float* x, int64_t ldx, int64_t batch,
            float* y, int64_t ldy) {
  if (batch > kGemmRows) return GemmProduct(pool, weight, batch).Compute(x, ldx, y, ldy);
  const RowKernels& kernels = GetRowKernels(weight.type);
  thread_local Scratch<uint8_t> scratch;
  const RowInputs inputs = PrepareInputs(kernels, x, ldx, batch, weight.columns,
                                         scratch.Room(batch * kernels.input_bytes(weight.columns)));
  pool.ParallelFor(weight.rows, RowGrain(weight, pool.threads()), [&](int64_t begin, int64_t end, int) {
    kernels.mat_mul(weight.data + begin * weight.stride_bytes, weight.stride_bytes, end - begin, inputs,
                    batch, weight.columns, y + begin, ldy);
  });
}

}  // namespace isotherm::kernels
