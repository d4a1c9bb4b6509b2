#ifndef ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_
#define ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_

#include <utility>

#include "gateway/api/request_validator.h"
#include "gateway/engine/engine.h"
#include "isotherm/v1/model.grpc.pb.h"

namespace isotherm::gateway {

// isotherm.v1.ModelService: what the file says about the model, and what the runner does with it now.
class ModelService final : public v1::ModelService::Service {
 public:
  // `file` is the part of the answer that never changes. The others outlive the service.
  ModelService(v1::Model file, const RequestValidator* validator, const Engine* engine)
      : file_(std::move(file)), validator_(validator), engine_(engine) {}

  grpc::Status ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                          v1::ListModelsResponse* response) override;
  grpc::Status GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                        v1::GetModelResponse* response) override;

 private:
  v1::Model Describe() const;

  const v1::Model file_;
  const RequestValidator* const validator_;
  const Engine* const engine_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_API_MODEL_SERVICE_H_
