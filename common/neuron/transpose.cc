#include "common/neuron/transpose.h"

#include <algorithm>
#include <cstring>

namespace isotherm::neuron::internal {
namespace {

using kernels::WeightType;

// A stripe is this many rows of the file (columns of a neuron's row): two cache lines of F16 or one of int8
// for each neuron, so whole lines are written, while the file is read front to back and a stripe (64 * ffn
// weights) stays within the last-level cache.
constexpr int64_t kStripe = 64;
// Neurons of a stripe that are transposed together: a multiple of every block size; the F32 tile takes 64 KiB
// of L2.
constexpr int64_t kTileNeurons = 256;
constexpr int64_t kQ8Block = 32;

// wanted[begin, end) lie in the tile of file neurons [first, first + count).
struct TileNeurons {
  int64_t first = 0;
  int64_t count = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

// Calls function(tile) for every tile that holds a wanted neuron.
template <typename Function>
void ForEachTile(int64_t ffn, const std::vector<int32_t>& wanted, const Function& function) {
  int64_t begin = 0;
  const int64_t total = static_cast<int64_t>(wanted.size());
  for (int64_t first = 0; first < ffn && begin < total; first += kTileNeurons) {
    const int64_t count = std::min(kTileNeurons, ffn - first);
    int64_t end = begin;
    while (end < total && wanted[end] < first + count) ++end;
    if (end > begin) function(TileNeurons{first, count, begin, end});
    begin = end;
  }
}

template <typename Word>
void ExactStripe(const DownMatrix& down, const NeuronRows& rows, int64_t column, int64_t columns) {
  alignas(64) Word tile[kTileNeurons][kStripe];
  alignas(64) Word segment[kTileNeurons];
  ForEachTile(down.ffn, *rows.wanted, [&](const TileNeurons& neurons) {
    for (int64_t h = 0; h < columns; ++h) {
      const int64_t first_weight = (column + h) * down.ffn + neurons.first;
      std::memcpy(segment, down.data + first_weight * sizeof(Word), neurons.count * sizeof(Word));
      for (int64_t j = 0; j < neurons.count; ++j) tile[j][h] = segment[j];
    }
    for (int64_t k = neurons.begin; k < neurons.end; ++k) {
      std::memcpy(rows.out + k * rows.stride_bytes + column * sizeof(Word),
                  tile[(*rows.wanted)[k] - neurons.first], columns * sizeof(Word));
    }
  });
}

template <typename Word>
void TransposeWords(const DownMatrix& down, const NeuronRows& rows, base::ThreadPool& pool) {
  pool.ParallelFor(down.hidden, kStripe, [&](int64_t begin, int64_t end, int) {
    ExactStripe<Word>(down, rows, begin, end - begin);
  });
  const int64_t bytes = down.hidden * sizeof(Word);
  const int64_t padding = kernels::PackedRowBytes(down.type, down.hidden) - bytes;
  for (size_t k = 0; k < rows.wanted->size(); ++k) {
    std::memset(rows.out + static_cast<int64_t>(k) * rows.stride_bytes + bytes, 0, padding);
  }
}

// Blocks of a Q8_0 row depend on their own 32 values alone, so a stripe is quantised by itself and its quants
// and scales are put where the row keeps them.
SquareSums WriteQ8(const float* values, int64_t column, int64_t columns, int64_t hidden, uint8_t* row) {
  alignas(64) uint8_t packed[2 * kStripe];
  float rounded[kStripe];
  kernels::PackFloatRow(WeightType::kQ8_0, values, columns, packed);
  std::memcpy(row + column, packed, columns);
  std::memcpy(row + hidden + column / kQ8Block * 2, packed + columns, columns / kQ8Block * 2);
  kernels::UnpackRow(WeightType::kQ8_0, packed, columns, rounded);
  SquareSums sums;
  for (int64_t h = 0; h < columns; ++h) {
    const double error = static_cast<double>(rounded[h]) - values[h];
    sums.error += error * error;
    sums.weight += static_cast<double>(values[h]) * values[h];
  }
  return sums;
}

SquareSums Q8Stripe(const DownMatrix& down, const NeuronRows& rows, int64_t column, int64_t columns) {
  alignas(64) float tile[kTileNeurons][kStripe];
  alignas(64) float segment[kTileNeurons];
  const int64_t file_row_bytes = kernels::FileRowBytes(down.type, down.ffn);
  SquareSums sums;
  ForEachTile(down.ffn, *rows.wanted, [&](const TileNeurons& neurons) {
    const int64_t offset = kernels::FileRowBytes(down.type, neurons.first);
    for (int64_t h = 0; h < columns; ++h) {
      kernels::UnpackFileRow(down.type, down.data + (column + h) * file_row_bytes + offset, neurons.count,
                             segment);
      for (int64_t j = 0; j < neurons.count; ++j) tile[j][h] = segment[j];
    }
    for (int64_t k = neurons.begin; k < neurons.end; ++k) {
      const SquareSums part = WriteQ8(tile[(*rows.wanted)[k] - neurons.first], column, columns, down.hidden,
                                      rows.out + k * rows.stride_bytes);
      sums.error += part.error;
      sums.weight += part.weight;
    }
  });
  return sums;
}

}  // namespace

void TransposeExact(const DownMatrix& down, const NeuronRows& rows, base::ThreadPool& pool) {
  down.type == WeightType::kF32 ? TransposeWords<uint32_t>(down, rows, pool)
                                : TransposeWords<uint16_t>(down, rows, pool);
}

SquareSums TransposeToQ8(const DownMatrix& down, const NeuronRows& rows, base::ThreadPool& pool) {
  std::vector<SquareSums> stripes((down.hidden + kStripe - 1) / kStripe);
  pool.ParallelFor(down.hidden, kStripe, [&](int64_t begin, int64_t end, int) {
    stripes[begin / kStripe] = Q8Stripe(down, rows, begin, end - begin);
  });
  const int64_t bytes = down.hidden + down.hidden / kQ8Block * 2;
  const int64_t padding = kernels::PackedRowBytes(WeightType::kQ8_0, down.hidden) - bytes;
  for (size_t k = 0; k < rows.wanted->size(); ++k) {
    std::memset(rows.out + static_cast<int64_t>(k) * rows.stride_bytes + bytes, 0, padding);
  }
  SquareSums total;
  for (const SquareSums& stripe : stripes) {
    total.error += stripe.error;
    total.weight += stripe.weight;
  }
  return total;
}

}  // namespace isotherm::neuron::internal
