#include <cstring>

#include "common/kernels/sketch.h"
#include "common/neuron/mask.h"
#include "gpu_worker/host/host_device.h"

namespace isotherm::gpu_worker {
namespace {

// Bits of up to 64 neurons. The comparison is a template parameter so that the loop has no branch.
template <bool kStrict>
uint64_t WordFromScores(const float* scores, const float* bias, float threshold, int64_t count) {
  uint64_t word = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float score = bias == nullptr ? scores[i] : scores[i] + bias[i];
    const bool keep = kStrict ? score > threshold : score >= threshold;
    word |= uint64_t{keep} << i;
  }
  return word;
}

}  // namespace

void HostDevice::MaskAll(int64_t rows, uint64_t* masks) {
  for (int64_t r = 0; r < rows; ++r) neuron::SetAll(masks + r * neuron::MaskWords(ffn_.ffn), ffn_.ffn);
}

void HostDevice::MaskFromScores(const float* scores, const float* bias, float threshold, bool strict,
                                int64_t rows, uint64_t* masks) {
  if (!failure_.ok()) return;
  const int64_t words = neuron::MaskWords(ffn_.ffn);
  const auto from_scores = strict ? WordFromScores<true> : WordFromScores<false>;
  // 64 words are 4,096 comparisons, a few microseconds.
  pool_.ParallelFor(rows * words, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % words * 64;
      const float* row = scores + i / words * ffn_.ffn;
      masks[i] = from_scores(row + first, bias == nullptr ? nullptr : bias + first, threshold,
                             std::min<int64_t>(64, ffn_.ffn - first));
    }
  });
}

void HostDevice::SketchScores(const uint8_t* sketch, const float* x, int64_t rows, float* scores) {
  if (!failure_.ok()) return;
  const int64_t input_bytes = kernels::SketchInputBytes(ffn_.hidden);
  const int64_t sketch_bytes = kernels::SketchRowBytes(ffn_.hidden);
  auto* inputs =
      reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(sketch_inputs_.data()) + 63) & ~uintptr_t{63});
  for (int64_t r = 0; r < rows; ++r)
    kernels::SketchInput(x + r * ffn_.hidden, ffn_.hidden, inputs + r * input_bytes);
  // 64 sketched rows fit the second-level cache, so that they are read from memory once for all token rows.
  pool_.ParallelFor(ffn_.ffn, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = 0; r < rows; ++r) {
      kernels::SketchScores(sketch + begin * sketch_bytes, end - begin, inputs + r * input_bytes, ffn_.hidden,
                            scores + r * ffn_.ffn + begin);
    }
  });
}

void HostDevice::MaskFromHost(const float* input, int64_t rows, uint64_t* masks,
                              absl::FunctionRef<absl::Status(const float*, uint64_t*)> fill) {
  if (!failure_.ok()) return;
  Latch(fill(input, masks));
}

}  // namespace isotherm::gpu_worker
