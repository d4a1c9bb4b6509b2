#ifndef ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_
#define ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_

#include <functional>
#include <utility>

#include "absl/status/statusor.h"
#include "gateway/api/request_validator.h"
#include "gateway/engine/engine.h"
#include "isotherm/v1/model.grpc.pb.h"
#include "isotherm/worker/v1/model_runner.pb.h"

namespace isotherm::gateway {

// isotherm.v1.ModelService: what the file says about the model, and what the runner does with it now.
class ModelService final : public v1::ModelService::Service {
 public:
  // Asks the runner; called on the callers' threads.
  using FiringSource = std::function<absl::StatusOr<worker::v1::GetRunnerFiringCountsResponse>()>;

  // `file` is the part of the answer that never changes. The others outlive the service.
  ModelService(v1::Model file, const RequestValidator* validator, const Engine* engine, FiringSource firings)
      : file_(std::move(file)), validator_(validator), engine_(engine), firings_(std::move(firings)) {}

  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;
  grpc::Status GetFiringCounts(grpc::ServerContext* context, const v1::GetFiringCountsRequest* request,
                               v1::GetFiringCountsResponse* response) override;

 private:
  v1::Model Describe() const;

  const v1::Model file_;
  const RequestValidator* const validator_;
  const Engine* const engine_;
  const FiringSource firings_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_
