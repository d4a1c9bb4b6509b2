#include "common/gguf/writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/gguf/fixture.h"
#include "tests/gguf/gguf_builder.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm::gguf {
namespace {

using ::isotherm::testing::Bytes;
using ::isotherm::testing::GgufBuilder;
using ::isotherm::testing::ReadFile;
using ::isotherm::testing::WriteFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A folder of its own for each test, so that files left over are seen.
class WriterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "writerXXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return folder_ + "/" + name; }
  std::vector<std::string> Files() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder_))
      names.push_back(entry.path().filename());
    return names;
  }

  std::string folder_;
};

Bytes Counting(size_t count) {
  Bytes bytes(count);
  std::iota(bytes.begin(), bytes.end(), uint8_t{1});
  return bytes;
}

std::unique_ptr<Writer> CreateOrDie(const std::string& path, const Header& header) {
  auto writer = Writer::Create(path, header);
  EXPECT_TRUE(writer.ok()) << writer.status();
  return writer.ok() ? *std::move(writer) : nullptr;
}

TEST_F(WriterTest, WritesWhatTheReaderReads) {
  Header header;
  header.Set("text", "first");
  header.Set<uint16_t>("number", 7);
  header.Set("yes", true);
  header.Set("half", 0.5);
  header.SetArray<std::string>("names", {"a", "", "ccc"});
  header.SetArray<float>("floats", {1.5f, -2.0f});
  header.Set("text", "second");
  header.Set<int64_t>("gone", 1);
  header.Remove("gone");
  header.AddTensor("odd", TensorType::kI8, {3, 7});
  header.AddTensor("blocks", TensorType::kQ8_0, {64, 2, 1});
  const auto writer = CreateOrDie(Path("out.gguf"), header);
  ASSERT_NE(writer, nullptr);
  const Bytes odd = Counting(21), blocks = Counting(136);
  // In pieces, empty ones included.
  ASSERT_TRUE(writer->Append(absl::MakeConstSpan(odd).first(5)).ok());
  ASSERT_TRUE(writer->Append({}).ok());
  ASSERT_TRUE(writer->Append(absl::MakeConstSpan(odd).subspan(5)).ok());
  ASSERT_TRUE(writer->Append(blocks).ok());
  ASSERT_TRUE(writer->Commit().ok());
  EXPECT_THAT(Files(), ElementsAre("out.gguf"));

  const auto file = File::Open(Path("out.gguf"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->version(), 3u);
  EXPECT_FALSE((*file)->is_powerinfer());
  EXPECT_THAT((*file)->MetadataKeys(), ElementsAre("text", "number", "yes", "half", "names", "floats"));
  EXPECT_EQ(*(*file)->GetString("text"), "second");
  EXPECT_EQ(*(*file)->GetInteger("number"), 7);
  EXPECT_EQ(*(*file)->GetBool("yes"), true);
  EXPECT_EQ(*(*file)->GetFloat("half"), 0.5);
  EXPECT_THAT(*(*file)->GetStringArray("names"), ElementsAre("a", "", "ccc"));
  EXPECT_THAT(*(*file)->GetFloatArray("floats"), ElementsAre(1.5f, -2.0f));
  const TensorInfo* tensor = (*file)->FindTensor("odd");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->offset % 32, 0u);
  EXPECT_THAT((*file)->Data(*tensor), ::testing::ElementsAreArray(odd));
  tensor = (*file)->FindTensor("blocks");
  ASSERT_NE(tensor, nullptr);
  EXPECT_THAT(tensor->dims, ElementsAre(64, 2, 1, 1));
  EXPECT_EQ(tensor->rank, 3);
  EXPECT_EQ(tensor->offset % 32, 0u);
  EXPECT_THAT((*file)->Data(*tensor), ::testing::ElementsAreArray(blocks));
}

TEST_F(WriterTest, CopiesMetadataByteForByte) {
  const Bytes source = GgufBuilder()
                           .SetAlignment(64)
                           .Add<uint32_t>("general.alignment", 64)
                           .Add<int8_t>("i8", -3)
                           .Add("double", 0.1)
                           .AddArray<std::string>("words", {"x", "yz", ""})
                           .AddArray<bool>("none", {})
                           .Add<uint16_t>("split.count", 1)
                           .Add("last", "end")
                           .Build();
  const auto from = File::Parse(source, "source");
  ASSERT_TRUE(from.ok()) << from.status();
  Header header;
  header.CopyMetadata(**from);
  ASSERT_TRUE(CreateOrDie(Path("copy"), header)->Commit().ok());
  const auto to = File::Open(Path("copy"));
  ASSERT_TRUE(to.ok()) << to.status();
  EXPECT_THAT((*to)->MetadataKeys(), ElementsAre("i8", "double", "words", "none", "last"));
  for (const std::string& key : (*to)->MetadataKeys()) {
    EXPECT_EQ((*to)->EncodedValue(key), (*from)->EncodedValue(key)) << key;
  }
}

TEST_F(WriterTest, PowerInferFilesKeepMagicAndTypeNumbers) {
  Header header(Header::Form::kPowerInfer);
  header.AddTensor("blk.0.gpu_idx", TensorType::kI32, {2});
  const auto writer = CreateOrDie(Path("out"), header);
  ASSERT_TRUE(writer->Append(Counting(8)).ok());
  ASSERT_TRUE(writer->Commit().ok());
  const Bytes bytes = ReadFile(Path("out"));
  EXPECT_EQ(std::string(bytes.begin(), bytes.begin() + 4), "PWRI");
  // Magic, version, counts, name, rank and dimension come before the type.
  EXPECT_EQ(bytes[24 + 8 + 13 + 4 + 8], 18);
  const auto file = File::Open(Path("out"));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors()[0].type, TensorType::kI32);
}

TEST_F(WriterTest, NothingIsSeenBeforeCommit) {
  WriteFile(Path("out"), Counting(3));
  Header header;
  header.AddTensor("t", TensorType::kF32, {2});
  {
    const auto writer = CreateOrDie(Path("out"), header);
    ASSERT_TRUE(writer->Append(Counting(8)).ok());
    EXPECT_EQ(ReadFile(Path("out")), Counting(3));
  }
  EXPECT_THAT(Files(), ElementsAre("out"));
  EXPECT_EQ(ReadFile(Path("out")), Counting(3));
}

TEST_F(WriterTest, TooLittleAndTooMuchDataAreRefused) {
  Header header;
  header.AddTensor("t", TensorType::kF32, {2});
  const auto writer = CreateOrDie(Path("out"), header);
  EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(writer->Append(Counting(9)).code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(writer->Append(Counting(7)).ok());
  EXPECT_EQ(writer->Append(Counting(2)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kFailedPrecondition);
  ASSERT_TRUE(writer->Append(Counting(1)).ok());
  EXPECT_EQ(writer->Append(Counting(1)).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(writer->Commit().ok());
}

TEST_F(WriterTest, HeadersNoReaderWouldAcceptAreRefused) {
  const auto expect = [&](const Header& header, const std::string& message) {
    const auto writer = Writer::Create(Path("out"), header);
    EXPECT_EQ(writer.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_THAT(writer.status().message(), HasSubstr(message));
    EXPECT_THAT(writer.status().message(), HasSubstr("/out: "));
  };
  const auto with_tensor = [](const std::string& name, TensorType type, std::vector<int64_t> dims) {
    Header header;
    header.AddTensor(name, type, std::move(dims));
    return header;
  };
  Header empty_key;
  empty_key.Set("", 1);
  expect(empty_key, "metadata key '' has a name of 0 bytes");
  expect(with_tensor(std::string(65, 'x'), TensorType::kF32, {1}), "has a name of 65 bytes");
  expect(with_tensor("t", TensorType::kF32, {}), "tensor 't' has 0 dimensions");
  expect(with_tensor("t", TensorType::kF32, {1, 1, 1, 1, 1}), "has 5 dimensions");
  expect(with_tensor("t", TensorType::kF32, {4, 0}), "has a dimension of 0");
  expect(with_tensor("t", TensorType::kQ4_K, {128}), "blocks of 256 (Q4_K) do not divide");
  expect(with_tensor("t", static_cast<TensorType>(77), {4}), "is of type 77");
  Header twice = with_tensor("t", TensorType::kF32, {1});
  twice.AddTensor("t", TensorType::kF16, {1});
  expect(twice, "tensor 't' is there twice");
  EXPECT_THAT(Files(), ElementsAre());
}

TEST_F(WriterTest, PlacesThatCannotBeWrittenAreNamed) {
  const auto missing = Writer::Create(Path("no/such/folder"), Header());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("no/such/folder: cannot be written"));
  // As root a rename would replace the device.
  const auto device = Writer::Create("/dev/full", Header());
  EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(device.status().message(), HasSubstr("/dev/full: is not a regular file"));
  EXPECT_EQ(Writer::Create(folder_, Header()).status().code(), absl::StatusCode::kInvalidArgument);
}

// A limit on the size of files stands for a full disk: the same calls fail.
TEST_F(WriterTest, AFileThatDoesNotFitLeavesNothingBehind) {
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit small = before;
  small.rlim_cur = 4096;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  Header header;
  header.AddTensor("t", TensorType::kI8, {8192});
  absl::Status status;
  {
    auto writer = Writer::Create(Path("out"), header);
    status = writer.status();
    // Where nothing can be reserved, writing is what fails.
    if (status.ok()) status = (*writer)->Append(Counting(8192));
  }
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("/out: its "));
  EXPECT_THAT(status.message(), HasSubstr("ulimit -f"));
  EXPECT_THAT(Files(), ElementsAre());
}

}  // namespace
}  // namespace isotherm::gguf
