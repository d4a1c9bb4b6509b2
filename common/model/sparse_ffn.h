#ifndef ISOTHERM_COMMON_MODEL_SPARSE_FFN_H_
#define ISOTHERM_COMMON_MODEL_SPARSE_FFN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/model/architecture.h"

// What every architecture with a sparse FFN has in common beyond its weights: activation, predictors and
// firing counts.
namespace isotherm::model {

// Sets activation and activation_threshold from isotherm.ffn.activation. Without the key a file has the
// architecture's own activation, which `hyperparameters` holds already; where that is dense, a PowerInfer
// file has ReLU.
absl::Status LoadActivation(const MetadataReader& metadata, Hyperparameters& hyperparameters);

// Sets down, down_bias and down_transposed from PREFIXffn_down or PREFIXffn_down_t.
absl::Status LoadDown(const Hyperparameters& hyperparameters, const std::string& prefix,
                      TensorFinder& tensors, Layer& layer);

// The firing counts of a layer: the F32 tensor `name` [ffn], every one finite and not negative.
absl::StatusOr<TensorRef> FindCounts(const std::string& name, const gguf::File& file, int64_t ffn,
                                     TensorFinder& tensors);

// Sets predictor and activation_counts where the file has them: PREFIXpred_a and pred_b, PowerInfer's fc1 and
// fc2, and PREFIXffn_act_counts.
absl::Status LoadPredictorAndCounts(const MetadataReader& metadata, const Hyperparameters& hyperparameters,
                                    const std::string& prefix, TensorFinder& tensors, Layer& layer);

}  // namespace isotherm::model

#endif  // ISOTHERM_COMMON_MODEL_SPARSE_FFN_H_
