#include "gpu_worker/kernels/exchange_answer.cuh"
#include "gpu_worker/kernels/merge_and_normalize.h"
#include "gpu_worker/kernels/rms_norm.cuh"

namespace isotherm::gpu_worker::cuda {
namespace {

// The hot neurons' part with the answer added to its x. Every block waits for the answer by itself. A
// failure makes the pass void: the blocks go on together with whatever is there.
struct ColdTerm {
  static constexpr bool kAdds = true;
  ExchangeRegion region;
  ExchangeCall call;
  ExchangeState* state;
  ExchangeRecord* record;
  RowTerm hot;
  bool has_answer = false;
  uint64_t begin_ns = 0;

  template <typename Values>
  __device__ Values First(int64_t row, int64_t n, int64_t i) const {
    return hot.First<Values>(row, n, i);
  }
  __device__ void Await() {
    begin_ns = NowNs();
    has_answer = state->failure == ExchangeFailure::kNone && AwaitAnswer(region, state->sequence, state);
  }
  template <typename Values>
  __device__ Values Second(int64_t row, int64_t n, int64_t i) const {
    const auto* const y = reinterpret_cast<const float*>(Slot(region, state->sequence) + region.y);
    return __ldcv(reinterpret_cast<const Values*>(y + row * n) + i);
  }
  __device__ void Conclude() const {
    if (has_answer && blockIdx.x == 0 && threadIdx.x == 0)
      RecordAnswer(region, call, state, record, begin_ns);
  }
  template <typename Values>
  __device__ Values AddTo(const Values& y, const Values& first, const Values& second, int64_t i) const {
    return hot.AddTo(y, Sum(first, second), hot.Second<Values>(0, 0, i), i);
  }
};

}  // namespace

cudaError_t MergeAndNormalize(const ExchangeRegion& region, const ExchangeCall& call, ExchangeState* state,
                              ExchangeRecord* record, const RowAddend& hot, const RowNorm& norm, float* y,
                              float* out, cudaStream_t stream) {
  const ColdTerm term{region, call, state, record, {hot}};
  return LaunchRmsNorm(norm, term, y, call.rows, call.hidden, out, stream);
}

}  // namespace isotherm::gpu_worker::cuda
