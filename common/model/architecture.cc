#include "common/model/architecture.h"

namespace isotherm::model {
namespace {

constexpr Architecture kArchitectures[] = {
    {"llama", &LoadLlama},
};

}  // namespace

absl::Span<const Architecture> Architectures() { return kArchitectures; }

}  // namespace isotherm::model
