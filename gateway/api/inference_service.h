#ifndef ISOTHERM_GATEWAY_API_INFERENCE_SERVICE_H_
#define ISOTHERM_GATEWAY_API_INFERENCE_SERVICE_H_

#include "gateway/api/request_validator.h"
#include "gateway/engine/engine.h"
#include "isotherm/v1/inference.grpc.pb.h"

namespace isotherm::gateway {

// isotherm.v1.InferenceService: validates, hands over to the engine, passes on what comes back.
class InferenceService final : public v1::InferenceService::Service {
 public:
  // All outlive the service.
  InferenceService(const RequestValidator* validator, const text::Tokenizer* tokenizer,
                   const GatewayMetrics* metrics, Engine* engine)
      : validator_(validator), tokenizer_(tokenizer), metrics_(metrics), engine_(engine) {}

  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override;
  grpc::Status Tokenize(grpc::ServerContext* context, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override;
  grpc::Status Detokenize(grpc::ServerContext* context, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override;
  grpc::Status Score(grpc::ServerContext* context, const v1::ScoreRequest* request,
                     v1::ScoreResponse* response) override;

 private:
  absl::Status RunGenerate(grpc::ServerContext* context, const v1::GenerateRequest& request,
                           grpc::ServerWriter<v1::GenerateResponse>* writer);
  absl::Status RunScore(grpc::ServerContext* context, const v1::ScoreRequest& request,
                        v1::ScoreResponse* response);
  absl::Status Submit(std::unique_ptr<Sequence> sequence);
  // A request that never reached the engine counts as failed too.
  absl::Status Refused(absl::Status status) const;

  const RequestValidator* const validator_;
  const text::Tokenizer* const tokenizer_;
  const GatewayMetrics* const metrics_;
  Engine* const engine_;
};

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_API_INFERENCE_SERVICE_H_
