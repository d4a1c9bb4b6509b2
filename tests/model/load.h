#ifndef ISOTHERM_TESTS_MODEL_LOAD_H_
#define ISOTHERM_TESTS_MODEL_LOAD_H_

#include <memory>

#include "absl/status/statusor.h"
#include "common/model/model.h"
#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {

// The bytes outlive the model.
inline absl::StatusOr<std::unique_ptr<model::Model>> LoadModel(const Bytes& bytes) {
  auto file = gguf::File::Parse(bytes, "models/test.gguf");
  if (!file.ok()) return file.status();
  return model::Model::FromFile(*std::move(file));
}

}  // namespace isotherm::testing

#endif  // ISOTHERM_TESTS_MODEL_LOAD_H_
