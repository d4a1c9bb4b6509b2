// Runs a fuzz target over the files of its corpus, without libFuzzer.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace isotherm {
namespace {

TEST(CorpusTest, EveryFile) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ISOTHERM_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path().filename());
    std::ifstream in(entry.path(), std::ios::binary);
    const std::vector<uint8_t> bytes(std::istreambuf_iterator<char>(in), {});
    ASSERT_FALSE(bytes.empty());
    EXPECT_EQ(LLVMFuzzerTestOneInput(bytes.data(), bytes.size()), 0);
    ++files;
  }
  EXPECT_GT(files, 0) << ISOTHERM_FUZZ_CORPUS;
}

TEST(CorpusTest, NoBytes) { EXPECT_EQ(LLVMFuzzerTestOneInput(nullptr, 0), 0); }

}  // namespace
}  // namespace isotherm
