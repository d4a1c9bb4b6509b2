#ifndef ISOTHERM_GPU_WORKER_PREDICT_REMOTE_PREDICTOR_H_
#define ISOTHERM_GPU_WORKER_PREDICT_REMOTE_PREDICTOR_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "gpu_worker/predict/predictor.h"
#include "isotherm/worker/v1/predictor.grpc.pb.h"

namespace isotherm::gpu_worker {

struct RemotePredictorOptions {
  std::string model_digest;
  int64_t hidden = 0;
  int64_t ffn = 0;
  absl::Duration timeout = absl::Seconds(2);
  // How long to leave a lost predictor alone before it is tried again.
  absl::Duration retry_interval = absl::Seconds(1);
};

// A predictor behind PredictorService. Lost, late or malformed answers never fail a step: its rows are then
// computed in full, and exact() and name() ("all (predictor lost)") say so until the predictor is back.
absl::StatusOr<std::unique_ptr<Predictor>> MakeRemotePredictor(
    std::unique_ptr<worker::v1::PredictorService::Stub> stub, const RemotePredictorOptions& options);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_PREDICT_REMOTE_PREDICTOR_H_
