#include "gateway/api/model_service.h"

#include "common/base/status_macros.h"
#include "common/rpc/server.h"

namespace isotherm::gateway {
namespace {

v1::ModelState StateOf(const RunnerState& runner) {
  if (runner.serving) return v1::MODEL_STATE_READY;
  return runner.loading ? v1::MODEL_STATE_LOADING : v1::MODEL_STATE_UNAVAILABLE;
}

}  // namespace

v1::Model ModelService::Describe() const {
  const RunnerState state = engine_->runner_state();
  v1::Model model = file_;
  model.set_state(StateOf(state));
  model.set_state_cause(state.cause);
  model.set_context_length(static_cast<uint32_t>(state.context));
  model.set_predictor(state.runner.predictor());
  model.set_hot_share(state.runner.hot_share());
  model.set_transport(state.runner.transport());
  return model;
}

grpc::Status ModelService::ListModels(grpc::ServerContext* context, const v1::ListModelsRequest* request,
                                      v1::ListModelsResponse* response) {
  return rpc::Handle("isotherm.v1.ModelService/ListModels", context, [&] {
    *response->add_models() = Describe();
    return absl::OkStatus();
  });
}

grpc::Status ModelService::GetModel(grpc::ServerContext* context, const v1::GetModelRequest* request,
                                    v1::GetModelResponse* response) {
  return rpc::Handle("isotherm.v1.ModelService/GetModel", context, [&]() -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(validator_->CheckModel(request->name()));
    *response->mutable_model() = Describe();
    return absl::OkStatus();
  });
}

grpc::Status ModelService::GetFiringCounts(grpc::ServerContext* context,
                                           const v1::GetFiringCountsRequest* request,
                                           v1::GetFiringCountsResponse* response) {
  return rpc::Handle("isotherm.v1.ModelService/GetFiringCounts", context, [&]() -> absl::Status {
    ISOTHERM_RETURN_IF_ERROR(validator_->CheckModel(request->model()));
    ISOTHERM_ASSIGN_OR_RETURN(worker::v1::GetRunnerFiringCountsResponse firings, firings_());
    response->set_tokens(firings.tokens());
    for (worker::v1::LayerFiringCounts& layer : *firings.mutable_layers()) {
      response->add_layers()->mutable_neurons()->Swap(layer.mutable_neurons());
    }
    return absl::OkStatus();
  });
}

}  // namespace isotherm::gateway
