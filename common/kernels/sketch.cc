#include "common/kernels/sketch.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "common/kernels/pack_kernels.h"
#include "common/kernels/sketch_layout.h"

namespace isotherm::kernels {
namespace {

using namespace sketch;

constexpr int64_t kAlignment = 64;
constexpr int64_t kLaneBytes = 4;

// Spreads the bytes of one block over its lane of `vectors` vectors.
void ScatterToLane(const void* block, int64_t vectors, int64_t lane, uint8_t* panel) {
  for (int64_t v = 0; v < vectors; ++v) {
    std::memcpy(panel + v * kVectorBytes + lane * kLaneBytes,
                static_cast<const uint8_t*>(block) + v * kLaneBytes, kLaneBytes);
  }
}

}  // namespace

int64_t SketchRowBytes(int64_t columns) {
  const int64_t used = Panels(columns) * (kNibbleBytes + kScaleBytes);
  return (used + kAlignment - 1) / kAlignment * kAlignment;
}

void SketchRow(const float* row, int64_t columns, uint8_t* sketch) {
  // Blocks of Q4_0: their pairs of nibbles are the pairs of the layout.
  const auto quantize = GetPackKernels().quantize_q4_0;
  std::memset(sketch, 0, static_cast<size_t>(SketchRowBytes(columns)));
  uint8_t* const scales = sketch + Panels(columns) * kNibbleBytes;
  for (int64_t block = 0; block < columns / kBlockColumns; ++block) {
    uint8_t nibbles[kBlockColumns / 2];
    uint16_t scale;
    quantize(row + block * kBlockColumns, kBlockColumns, nibbles, &scale);
    ScatterToLane(nibbles, kNibbleVectors, block % kLanes, sketch + block / kLanes * kNibbleBytes);
    std::memcpy(scales + block * sizeof(scale), &scale, sizeof(scale));
  }
}

int64_t SketchInputBytes(int64_t columns) { return Panels(columns) * kInputBytes; }

void SketchInput(const float* x, int64_t columns, uint8_t* input) {
  const auto quantize = GetPackKernels().quantize_q8_f32;
  std::memset(input, 0, static_cast<size_t>(SketchInputBytes(columns)));
  for (int64_t block = 0; block < columns / kBlockColumns; ++block) {
    int8_t quants[kBlockColumns];
    float scale;
    quantize(x + block * kBlockColumns, kBlockColumns, quants, &scale);
    const int32_t offset = -8 * std::accumulate(quants, quants + kBlockColumns, int32_t{0});
    uint8_t* const panel = input + block / kLanes * kInputBytes;
    const int64_t lane = block % kLanes;
    ScatterToLane(quants, kQuantVectors, lane, panel);
    std::memcpy(panel + kQuantBytes + lane * sizeof(offset), &offset, sizeof(offset));
    std::memcpy(panel + kQuantBytes + kOffsetBytes + lane * sizeof(scale), &scale, sizeof(scale));
  }
}

void SketchScores(const uint8_t* sketches, int64_t num_rows, const uint8_t* input, int64_t columns,
                  float* scores) {
  ScoreRows(sketches, SketchRowBytes(columns), num_rows, input, Panels(columns), scores);
}

}  // namespace isotherm::kernels
