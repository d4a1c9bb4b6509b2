#ifndef ISOTHERM_TESTS_GGUF_FIXTURE_H_
#define ISOTHERM_TESTS_GGUF_FIXTURE_H_

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {

// A file of tests/reference/data, by name. CTest sets the variable; without it the repository is the working
// directory.
inline std::string FixturePath(const std::string& name) {
  const char* source = std::getenv("ISOTHERM_SOURCE_DIR");
  return std::string(source != nullptr ? source : ".") + "/tests/reference/data/" + name;
}

// Empty if it cannot be read.
inline Bytes ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

}  // namespace isotherm::testing

#endif  // ISOTHERM_TESTS_GGUF_FIXTURE_H_
