#include "common/model/architecture.h"

namespace isotherm::model {
namespace {

constexpr Architecture kArchitectures[] = {
    {"arcee", &LoadArcee},       {"bamboo", &LoadBamboo},   {"falcon", &LoadFalcon},
    {"llama", &LoadLlama},       {"minicpm", &LoadMiniCpm}, {"mistral", &LoadLlama},
    {"nemotron", &LoadNemotron}, {"opt", &LoadOpt},         {"qwen2", &LoadQwen2},
};

}  // namespace

absl::Span<const Architecture> Architectures() { return kArchitectures; }

}  // namespace isotherm::model
