// The model's way from a GPU worker to a CPU worker that has no copy: both ends, and faults in between.

#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "common/gguf/digest.h"
#include "common/gguf/file.h"
#include "common/rpc/status.h"
#include "cpu_worker/store/model_fetch.h"
#include "gpu_worker/service/model_file_service.h"
#include "tests/cpu_worker/harness.h"
#include "tests/gguf/fixture.h"
#include "tests/gguf/shards.h"
#include "tests/gguf/tiny_llama.h"

namespace isotherm {
namespace {

namespace fs = std::filesystem;
namespace v1 = worker::v1;
using ::testing::HasSubstr;

// What a source says of its file, and what it does wrong.
struct Script {
  std::string digest, name = "tiny.gguf";
  uint64_t claimed_bytes = 0;
  int64_t chunks_left = -1;  // in the next call, then it fails; negative: all
  size_t spoiled_chunk = SIZE_MAX;
  bool empty_chunks = false;  // and no end of them
  uint64_t shift = 0;
};

// A model in memory, sent in small chunks. A call keeps to the script that it began with: it may outlast the
// client, who has given it up.
class ScriptedSource final : public v1::ModelFileService::Service {
 public:
  grpc::Status ListModelFiles(grpc::ServerContext*, const v1::ListModelFilesRequest*,
                              v1::ListModelFilesResponse* response) override {
    const std::lock_guard lock(mutex_);
    response->set_model_digest(script_.digest);
    v1::ModelFile& file = *response->add_files();
    file.set_name(script_.name);
    file.set_bytes(script_.claimed_bytes);
    return grpc::Status::OK;
  }
  grpc::Status ReadModelFile(grpc::ServerContext*, const v1::ReadModelFileRequest* request,
                             grpc::ServerWriter<v1::ModelFileChunk>* writer) override {
    Script script = Begin(static_cast<int64_t>(request->offset()));
    while (script.empty_chunks) {
      if (!writer->Write({})) return grpc::Status::CANCELLED;
    }
    for (size_t at = request->offset(); at < bytes.size(); at += kChunk) {
      if (script.chunks_left-- == 0) return {grpc::StatusCode::UNAVAILABLE, "the wire broke"};
      v1::ModelFileChunk chunk;
      chunk.set_offset(at + script.shift);
      chunk.set_data(bytes.data() + at, std::min(kChunk, bytes.size() - at));
      gguf::Digest checksum;
      checksum.Update({bytes.data() + at, chunk.data().size()});
      chunk.set_checksum(checksum.Hex());
      if (at / kChunk == script.spoiled_chunk) (*chunk.mutable_data())[0] ^= 1;
      writer->Write(chunk);
    }
    return grpc::Status::OK;
  }

  // For the calls from now on.
  void Follow(const Script& script) {
    const std::lock_guard lock(mutex_);
    script_ = script;
  }
  // Asked for so far.
  std::vector<int64_t> offsets() {
    const std::lock_guard lock(mutex_);
    return offsets_;
  }

  static constexpr size_t kChunk = 4096;
  testing::Bytes bytes;  // set before it serves

 private:
  Script Begin(int64_t offset) {
    const std::lock_guard lock(mutex_);
    offsets_.push_back(offset);
    Script now = script_;
    script_.chunks_left = -1;
    return now;
  }

  std::mutex mutex_;
  Script script_;
  std::vector<int64_t> offsets_;
};

class ModelFileTest : public ::testing::Test {
 protected:
  // Otherwise gRPC shuts down after each test, which may take ten seconds just after a connection was closed.
  static void SetUpTestSuite() { grpc_init(); }
  static void TearDownTestSuite() { grpc_shutdown(); }
  void SetUp() override {
    path_ = testing::WriteFile(folder_.path() + "/tiny.gguf", testing::TinyLlama({.ffn = 2048}));
    options_.from = "test";
    options_.directory = folder_.path() + "/cache";
    options_.retry_pause = absl::Milliseconds(1);
    source_.bytes = testing::ReadFile(path_);
    script_.claimed_bytes = source_.bytes.size();
    script_.digest = DigestOf(path_);
  }
  void TearDown() override {
    if (server_ != nullptr) server_->Shutdown();
  }

  static std::string DigestOf(const std::string& path) {
    return (*gguf::File::Open(path))->StructureDigest();
  }
  void ServeModel(const std::string& path) {
    service_ = std::make_unique<gpu_worker::ModelFileService>(path);
    Serve(service_.get());
  }
  void ServeScript() { Serve(&source_); }
  void Serve(grpc::Service* service) {
    const std::string address = absl::StrCat("unix:", folder_.path(), "/socket");
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::InsecureServerCredentials());
    builder.RegisterService(service);
    server_ = builder.BuildAndStart();
    stub_ = v1::ModelFileService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  }
  absl::StatusOr<std::string> Fetch() {
    source_.Follow(script_);
    return cpu_worker::FetchModel(*stub_, options_);
  }
  std::string Cached(const std::string& name) const {
    return absl::StrCat(options_.directory, "/", script_.digest, "/", name);
  }

  cpu_worker::TempDirectory folder_;
  std::string path_;
  cpu_worker::FetchOptions options_;
  Script script_;
  // Outlive the server.
  ScriptedSource source_;
  std::unique_ptr<gpu_worker::ModelFileService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::ModelFileService::Stub> stub_;
};

TEST_F(ModelFileTest, CopiesAFileAndUsesTheCopy) {
  ASSERT_GT(source_.bytes.size(), gpu_worker::ModelFileService::kChunkBytes);
  ServeModel(path_);
  auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(*fetched, Cached("tiny.gguf"));
  EXPECT_EQ(testing::ReadFile(*fetched), source_.bytes);
  EXPECT_FALSE(fs::exists(Cached("tiny.gguf.part")));
  const auto written = fs::last_write_time(*fetched);
  fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fs::last_write_time(*fetched), written);
}

TEST_F(ModelFileTest, CopiesTheShardsOfASplitModel) {
  const std::string first = testing::WriteShards(folder_.path() + "/split", source_.bytes, 3);
  ServeModel(first);
  const auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(fs::path(*fetched).filename(), fs::path(first).filename());
  EXPECT_EQ(DigestOf(*fetched), DigestOf(first));
}

TEST_F(ModelFileTest, TheServiceRefusesWhatItDoesNotHave) {
  ServeModel(path_);
  struct Case {
    std::string digest;
    uint32_t file;
    uint64_t offset;
    grpc::StatusCode code;
  };
  const uint64_t bytes = source_.bytes.size();
  for (const Case& c : {Case{"abc", 0, 0, grpc::StatusCode::FAILED_PRECONDITION},
                        Case{script_.digest, 1, 0, grpc::StatusCode::INVALID_ARGUMENT},
                        Case{script_.digest, 0, bytes + 1, grpc::StatusCode::INVALID_ARGUMENT},
                        Case{script_.digest, 0, bytes, grpc::StatusCode::OK}}) {
    grpc::ClientContext context;
    v1::ReadModelFileRequest request;
    request.set_model_digest(c.digest);
    request.set_file(c.file);
    request.set_offset(c.offset);
    const auto reader = stub_->ReadModelFile(&context, request);
    v1::ModelFileChunk chunk;
    EXPECT_FALSE(reader->Read(&chunk));
    EXPECT_EQ(reader->Finish().error_code(), c.code);
  }
}

TEST_F(ModelFileTest, ContinuesAfterABreak) {
  script_.chunks_left = 3;
  ServeScript();
  const auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(testing::ReadFile(*fetched), source_.bytes);
  EXPECT_THAT(source_.offsets(), ::testing::ElementsAre(0, 3 * ScriptedSource::kChunk));
}

TEST_F(ModelFileTest, ContinuesWhatAnEarlierProcessLeft) {
  fs::create_directories(fs::path(Cached("x")).parent_path());
  std::ofstream(Cached("tiny.gguf.part"), std::ios::binary)
      .write(reinterpret_cast<const char*>(source_.bytes.data()), 5000);
  ServeScript();
  const auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(testing::ReadFile(*fetched), source_.bytes);
  EXPECT_THAT(source_.offsets(), ::testing::ElementsAre(5000));
}

TEST_F(ModelFileTest, StartsAnewWhereMoreIsThereThanThereShouldBe) {
  fs::create_directories(fs::path(Cached("x")).parent_path());
  std::ofstream(Cached("tiny.gguf.part"), std::ios::binary) << std::string(source_.bytes.size() + 1, 'x');
  ServeScript();
  const auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(testing::ReadFile(*fetched), source_.bytes);
}

TEST_F(ModelFileTest, RenamesWhatAnEarlierProcessCompleted) {
  fs::create_directories(fs::path(Cached("x")).parent_path());
  fs::copy(path_, Cached("tiny.gguf.part"));
  ServeScript();
  const auto fetched = Fetch();
  ASSERT_TRUE(fetched.ok()) << fetched.status();
  EXPECT_EQ(testing::ReadFile(*fetched), source_.bytes);
}

TEST_F(ModelFileTest, AnEndlessStreamOfNothingIsRefused) {
  script_.empty_chunks = true;
  ServeScript();
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ModelFileTest, AChunkThatIsWrongEndsTheFetchAndTheNextContinues) {
  script_.spoiled_chunk = 2;
  ServeScript();
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(fs::exists(Cached("tiny.gguf")));
  script_.spoiled_chunk = SIZE_MAX;
  EXPECT_TRUE(Fetch().ok());
  EXPECT_EQ(testing::ReadFile(Cached("tiny.gguf")), source_.bytes);
}

TEST_F(ModelFileTest, ABeginningOfAnotherModelIsFoundByTheDigest) {
  fs::create_directories(fs::path(Cached("x")).parent_path());
  std::ofstream(Cached("tiny.gguf.part"), std::ios::binary) << std::string(5000, 'x');
  ServeScript();
  const auto fetched = Fetch();
  EXPECT_EQ(fetched.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(fetched.status().message()), HasSubstr("was removed"));
  EXPECT_TRUE(Fetch().ok());
}

TEST_F(ModelFileTest, TrustsNoSource) {
  ServeScript();
  for (const char* name : {"", "../tiny.gguf", "a/b", ".hidden", "line\nbreak"}) {
    script_.name = name;
    EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
  script_.name = "tiny.gguf";
  for (const char* digest : {"", "../..", "xyz"}) {
    const std::string good = std::exchange(script_.digest, digest);
    EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kInvalidArgument) << digest;
    script_.digest = good;
  }
  for (const uint64_t bytes : {uint64_t{0}, UINT64_MAX}) {
    script_.claimed_bytes = bytes;
    EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
  script_.claimed_bytes = uint64_t{1} << 60;
  const absl::Status no_room = Fetch().status();
  EXPECT_EQ(no_room.code(), absl::StatusCode::kResourceExhausted) << no_room;
  EXPECT_THAT(std::string(no_room.message()), HasSubstr("GB free"));
  for (const int64_t difference : {-1, 1}) {
    script_.claimed_bytes = source_.bytes.size() + difference;
    EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kDataLoss) << difference;
  }
  script_.claimed_bytes = source_.bytes.size();
  script_.shift = 1;
  fs::remove_all(options_.directory);
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(ModelFileTest, WaitsForTheSourceUntilPatienceOrTheCallerEnds) {
  stub_ = v1::ModelFileService::NewStub(
      grpc::CreateChannel("unix:/nobody/is/here", grpc::InsecureChannelCredentials()));
  options_.patience = absl::Milliseconds(50);
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kUnavailable);
  options_.patience = absl::Hours(1);
  int asked = 0;
  options_.cancelled = [&] { return ++asked == 3; };
  EXPECT_EQ(Fetch().status().code(), absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace isotherm
