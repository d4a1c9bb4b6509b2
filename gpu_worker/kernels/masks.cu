#include <algorithm>

#include "common/kernels/sketch_layout.h"
#include "common/neuron/mask.h"
#include "gpu_worker/kernels/chain.cuh"
#include "gpu_worker/kernels/decode.cuh"
#include "gpu_worker/kernels/masks.h"
#include "gpu_worker/kernels/reduce.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

namespace sketch = kernels::sketch;

constexpr int kThreads = 256;

// A warp makes half a mask word. Null scores: every neuron.
__global__ void MaskKernel(const float* scores, const float* __restrict__ bias, float threshold, bool strict,
                           int64_t rows, int64_t ffn, uint32_t* masks) {
  JoinChain();
  const int64_t halves = 2 * neuron::MaskWords(ffn);
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / kWarp);
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int64_t lane = threadIdx.x % kWarp;
  for (int64_t i = warp; i < rows * halves; i += warps) {
    const int64_t neuron = i % halves * kWarp + lane;
    bool keep = neuron < ffn;
    if (keep && scores != nullptr) {
      const float score = scores[i / halves * ffn + neuron] + (bias == nullptr ? 0.0f : bias[neuron]);
      keep = strict ? score > threshold : score >= threshold;
    }
    const uint32_t bits = __ballot_sync(kAllLanes, keep);
    if (lane == 0) masks[i] = bits;
  }
}

cudaError_t LaunchMask(const float* scores, const float* bias, float threshold, bool strict, int64_t rows,
                       int64_t ffn, uint64_t* masks, cudaStream_t stream) {
  const unsigned blocks = Blocks(rows * 2 * neuron::MaskWords(ffn), kThreads / kWarp);
  return LaunchChained(MaskKernel, blocks, kThreads, 0, stream, scores, bias, threshold, strict, rows, ffn,
                       reinterpret_cast<uint32_t*>(masks));
}

// A warp quantises a block of 32 columns, one a lane, as common/kernels/sketch.cc does.
__global__ void SketchInputKernel(const float* x, int64_t rows, int64_t columns, uint8_t* inputs) {
  JoinChain();
  const int64_t panels = sketch::Panels(columns);
  const int64_t blocks = panels * sketch::kLanes;
  const int64_t warp = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  const int column_in_block = threadIdx.x % kWarp;
  if (warp >= rows * blocks) return;
  const int64_t block = warp % blocks;
  const int64_t column = block * sketch::kBlockColumns + column_in_block;
  const float value = column < columns ? x[warp / blocks * columns + column] : 0.0f;
  const float scale = WarpMax(fabsf(value)) / 127;
  const int quant = static_cast<int>(roundf(value * (scale != 0 ? 1 / scale : 0.0f)));
  const int sum = WarpSum(quant);

  const int64_t lane = block % sketch::kLanes;
  uint8_t* panel = inputs + (warp / blocks * panels + block / sketch::kLanes) * sketch::kInputBytes;
  panel[column_in_block / 4 * sketch::kVectorBytes + 4 * lane + column_in_block % 4] =
      static_cast<uint8_t>(quant);
  if (column_in_block == 0) {
    reinterpret_cast<int32_t*>(panel + sketch::kQuantBytes)[lane] = -8 * sum;
    reinterpret_cast<float*>(panel + sketch::kQuantBytes + sketch::kOffsetBytes)[lane] = scale;
  }
}

// Half a warp has a neuron, a lane one block of each panel: the order of sums that sketch_layout.h promises.
template <int kBatch>
__global__ void SketchScoresKernel(const uint8_t* __restrict__ sketches, int64_t sketch_bytes,
                                   int64_t neurons, const uint8_t* inputs, int64_t batch, int64_t panels,
                                   float* scores) {
  extern __shared__ uint4 memory[];
  JoinChain();
  const auto* staged = reinterpret_cast<const uint8_t*>(memory);
  const int64_t input_bytes = panels * sketch::kInputBytes;
  for (int64_t i = threadIdx.x; i < batch * input_bytes / 16; i += blockDim.x) {
    memory[i] = reinterpret_cast<const uint4*>(inputs)[i];
  }
  __syncthreads();
  const int lane = threadIdx.x % sketch::kLanes;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (blockDim.x / sketch::kLanes);
  // Whole warps stay together for the shuffles below.
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / sketch::kLanes;
  for (int64_t j = first; j - first % 2 < neurons; j += step) {
    const uint8_t* row = sketches + min(j, neurons - 1) * sketch_bytes;
    const uint8_t* scales = row + panels * sketch::kNibbleBytes;
    float sums[kBatch] = {};
#pragma unroll 4
    for (int64_t panel = 0; panel < panels; ++panel) {
      int nibbles[sketch::kNibbleVectors];
#pragma unroll
      for (int v = 0; v < sketch::kNibbleVectors; ++v) {
        nibbles[v] = LoadOnce<int>(row + panel * sketch::kNibbleBytes + v * sketch::kVectorBytes + 4 * lane);
      }
      const float weight_scale =
          HalfBits(LoadOnce<unsigned short>(scales + panel * sketch::kScaleBytes + 2 * lane));
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        if (b >= batch) break;
        const uint8_t* input = staged + b * input_bytes + panel * sketch::kInputBytes;
        const auto* quants = reinterpret_cast<const int*>(input) + lane;
        int product = reinterpret_cast<const int*>(input + sketch::kQuantBytes)[lane];
#pragma unroll
        for (int v = 0; v < sketch::kNibbleVectors; ++v) {
          product = __dp4a(nibbles[v] & 0x0f0f0f0f, quants[16 * v], product);
          product = __dp4a(nibbles[v] >> 4 & 0x0f0f0f0f, quants[16 * (v + sketch::kNibbleVectors)], product);
        }
        const float scale =
            reinterpret_cast<const float*>(input + sketch::kQuantBytes + sketch::kOffsetBytes)[lane];
        sums[b] = fmaf(static_cast<float>(product) * scale, weight_scale, sums[b]);
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      float sum = sums[b];
#pragma unroll
      for (int offset = sketch::kLanes / 2; offset > 0; offset /= 2) {
        sum += __shfl_xor_sync(kAllLanes, sum, offset);
      }
      if (lane == 0 && b < batch && j < neurons) scores[b * neurons + j] = sum;
    }
  }
}

template <int kBatch>
cudaError_t LaunchSketchScores(const uint8_t* sketches, int64_t sketch_bytes, int64_t neurons,
                               const uint8_t* inputs, int64_t batch, int64_t panels, float* scores,
                               cudaStream_t stream) {
  const auto kernel = SketchScoresKernel<kBatch>;
  const auto shared = static_cast<int>(batch * panels * sketch::kInputBytes);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const unsigned blocks =
      std::min(Blocks(neurons, kThreads / sketch::kLanes), static_cast<unsigned>(8 * Multiprocessors()));
  return LaunchChained(kernel, blocks, kThreads, shared, stream, sketches, sketch_bytes, neurons, inputs,
                       batch, panels, scores);
}

}  // namespace

cudaError_t MaskAll(int64_t rows, int64_t ffn, uint64_t* masks, cudaStream_t stream) {
  return LaunchMask(nullptr, nullptr, 0, false, rows, ffn, masks, stream);
}

cudaError_t MaskFromScores(const float* scores, const float* bias, float threshold, bool strict, int64_t rows,
                           int64_t ffn, uint64_t* masks, cudaStream_t stream) {
  return LaunchMask(scores, bias, threshold, strict, rows, ffn, masks, stream);
}

cudaError_t SketchInput(const float* x, int64_t rows, int64_t columns, uint8_t* inputs, cudaStream_t stream) {
  const int64_t warps = rows * sketch::Panels(columns) * sketch::kLanes;
  const auto blocks = static_cast<unsigned>(CeilDiv<int64_t>(warps, kThreads / kWarp));
  return LaunchChained(SketchInputKernel, blocks, kThreads, 0, stream, x, rows, columns, inputs);
}

cudaError_t SketchScores(const uint8_t* sketches, int64_t sketch_bytes, int64_t neurons,
                         const uint8_t* inputs, int64_t rows, int64_t columns, float* scores,
                         cudaStream_t stream) {
  constexpr int64_t kBatch = 8;
  const int64_t panels = sketch::Panels(columns);
  for (int64_t first = 0; first < rows; first += kBatch) {
    const int64_t batch = rows - first < kBatch ? rows - first : kBatch;
    const auto launch = batch == 1 ? LaunchSketchScores<1> : LaunchSketchScores<kBatch>;
    const cudaError_t error =
        launch(sketches, sketch_bytes, neurons, inputs + first * panels * sketch::kInputBytes, batch, panels,
               scores + first * neurons, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace isotherm::gpu_worker::cuda
