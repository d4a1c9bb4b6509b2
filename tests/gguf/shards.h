#ifndef ISOTHERM_TESTS_GGUF_SHARDS_H_
#define ISOTHERM_TESTS_GGUF_SHARDS_H_

#include <cstdint>
#include <functional>
#include <string>

#include "common/gguf/header.h"
#include "tests/gguf/gguf_builder.h"

namespace isotherm::testing {

// PREFIX-00002-of-00003.gguf for number 1.
std::string ShardPath(const std::string& prefix, int64_t number, int64_t count);

// Writes a file's bytes as shards, as llama.cpp's gguf-split does: all metadata in the first, tensors one
// after another. `change` may spoil the header of a shard. Aborts on failure; returns the first one's path.
std::string WriteShards(
    const std::string& prefix, const Bytes& bytes, int64_t count,
    const std::function<void(int64_t number, gguf::Header& header)>& change = [](int64_t, gguf::Header&) {});

}  // namespace isotherm::testing

#endif  // ISOTHERM_TESTS_GGUF_SHARDS_H_
