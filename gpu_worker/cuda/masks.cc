#include "gpu_worker/kernels/masks.h"

#include <vector>

#include "common/kernels/sketch.h"
#include "common/neuron/mask.h"
#include "gpu_worker/cuda/cuda_device.h"

namespace isotherm::gpu_worker {

void CudaDevice::MaskAll(int64_t rows, uint64_t* masks) {
  Enqueue("mask of all", [&] { return cuda::MaskAll(rows, ffn_.ffn, masks, stream()); });
}

void CudaDevice::MaskFromScores(const float* scores, const float* bias, float threshold, bool strict,
                                int64_t rows, uint64_t* masks) {
  Enqueue("mask from scores", [&] {
    return cuda::MaskFromScores(scores, bias, threshold, strict, rows, ffn_.ffn, masks, stream());
  });
}

void CudaDevice::SketchScores(const uint8_t* sketch, const float* x, int64_t rows, float* scores) {
  auto* const inputs = static_cast<uint8_t*>(sketch_inputs_.get()) + (forked_ ? fork_sketch_inputs_ : 0);
  Enqueue("sketch input", [&] { return cuda::SketchInput(x, rows, ffn_.hidden, inputs, stream()); });
  Enqueue("sketch scores", [&] {
    return cuda::SketchScores(sketch, kernels::SketchRowBytes(ffn_.hidden), ffn_.ffn, inputs, rows,
                              ffn_.hidden, scores, stream());
  });
}

void CudaDevice::MaskFromHost(const float* input, int64_t rows, uint64_t* masks,
                              absl::FunctionRef<absl::Status(const float*, uint64_t*)> fill) {
  LeaveGraph();
  std::vector<float> values(rows * ffn_.hidden);
  std::vector<uint64_t> bits(rows * neuron::MaskWords(ffn_.ffn));
  if (failure_.ok()) Latch(Read(input, static_cast<int64_t>(values.size()), values.data()));
  if (failure_.ok()) Latch(fill(values.data(), bits.data()));
  Enqueue("uploading masks", [&] {
    return cudaMemcpyAsync(masks, bits.data(), bits.size() * sizeof(uint64_t), cudaMemcpyHostToDevice,
                           stream());
  });
  // `bits` ends here.
  if (failure_.ok()) Latch(Wait("uploading masks"));
}

}  // namespace isotherm::gpu_worker
