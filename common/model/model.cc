#include "common/model/model.h"

#include <filesystem>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/base/status_macros.h"
#include "common/gguf/split.h"
#include "common/model/architecture.h"
#include "common/model/metadata_reader.h"
#include "common/model/tensor_finder.h"

namespace isotherm::model {
namespace {

constexpr char kArchitectureKey[] = "general.architecture";

absl::StatusOr<const Architecture*> FindArchitecture(const gguf::File& file) {
  const MetadataReader metadata(file, /*architecture=*/"");
  ISOTHERM_ASSIGN_OR_RETURN(const std::string name, metadata.String(kArchitectureKey));
  for (const Architecture& architecture : Architectures()) {
    if (name == architecture.name) return &architecture;
  }
  const auto append_name = [](std::string* out, const Architecture& architecture) {
    out->append(architecture.name);
  };
  return absl::UnimplementedError(metadata.Message(
      kArchitectureKey, absl::StrCat("is ", file.DescribeValue(kArchitectureKey),
                                     "; supported: ", absl::StrJoin(Architectures(), ", ", append_name))));
}

}  // namespace

std::string ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kRelu:
      return "relu";
    case Activation::kFatRelu:
      return "fatrelu";
    case Activation::kRelu2:
      return "relu2";
    case Activation::kDRelu:
      return "drelu";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<Model>> Model::Open(const std::string& path) {
  ISOTHERM_ASSIGN_OR_RETURN(std::unique_ptr<gguf::File> file, gguf::File::Open(path));
  return FromFile(std::move(file));
}

absl::StatusOr<std::unique_ptr<Model>> Model::FromFile(std::unique_ptr<gguf::File> file) {
  ISOTHERM_ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(*file));
  const MetadataReader metadata(*file, architecture->name);
  TensorFinder tensors(*file);
  ModelParts parts;
  parts.hyperparameters.architecture = architecture->name;
  ISOTHERM_ASSIGN_OR_RETURN(parts.hyperparameters.name, metadata.StringOr("general.name", ""));
  ISOTHERM_RETURN_IF_ERROR(architecture->load(metadata, tensors, parts));
  ISOTHERM_RETURN_IF_ERROR(tensors.CheckAllUsed());

  auto model = std::unique_ptr<Model>(new Model());
  ISOTHERM_ASSIGN_OR_RETURN(
      model->profile_tokens_,
      metadata.IntegerOr("isotherm.profile.tokens", 0, std::numeric_limits<int64_t>::max(), 0));
  model->hyperparameters_ = std::move(parts.hyperparameters);
  model->layers_ = std::move(parts.layers);
  model->token_embedding_ = parts.token_embedding;
  model->position_embedding_ = parts.position_embedding;
  model->rope_factors_ = parts.rope_factors;
  model->output_norm_ = parts.output_norm;
  model->output_ = parts.output;
  model->digest_ = file->StructureDigest();
  model->file_ = std::move(file);
  return model;
}

std::string Model::DisplayName() const {
  const std::string name = gguf::WithoutShardSuffix(std::filesystem::path(file_->path()).filename().string());
  return std::string(absl::StripSuffix(name, ".gguf"));
}

}  // namespace isotherm::model
