#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>

#include "absl/time/clock.h"
#include "common/exchange/doorbell.h"
#include "common/exchange/frame.h"
#include "common/exchange/negotiate.h"
#include "common/exchange/region.h"
#include "tests/exchange/harness.h"

// Peers that break the protocol on purpose, with the region or the stream in their own hands.
namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;
using RawStream = grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>;

Descriptor GoodDescriptor(uint64_t generation) {
  return {.step = 1, .generation = generation, .placement_epoch = 7, .layer = 2, .rows = 4, .sequence = 1};
}

// A client without our library: opens by hand and keeps the region's mapping.
class RawClient {
 public:
  RawClient(const std::string& socket, const std::string& directory, Transport transport)
      : stub_(MakeStub(socket)) {
    stream_ = stub_->Exchange(&context_);
    const Geometry geometry = SmallGeometry();
    const ClientOptions options = ClientFor(geometry, transport, directory);
    worker::v1::ExchangeRequest request;
    *request.mutable_open() = MakeOpen(options, transport, *ProveHost(directory));
    worker::v1::ExchangeResponse response;
    if (!stream_->Write(request) || !stream_->Read(&response)) return;
    if (transport == Transport::kSharedMemory) {
      region_ = std::move(*Region::Attach(directory, response.opened().region_name(),
                                          static_cast<int64_t>(response.opened().region_bytes()), geometry));
      request.mutable_attached();
      stream_->Write(request);
    }
  }

  Region* region() { return region_.get(); }
  void Ring(const Descriptor& descriptor, uint32_t sequence) {
    std::memcpy(region_->slot(sequence).request, &descriptor, sizeof(descriptor));
    StoreWord(&region_->header()->request_doorbell, sequence);
    WakeParked(&region_->header()->server_parked);
  }
  bool Write(const worker::v1::ExchangeRequest& request) { return stream_->Write(request); }
  bool Read(worker::v1::ExchangeResponse* response) { return stream_->Read(response); }

  // The server fails the region, we leave, and it says why.
  absl::Status End() {
    const absl::Time deadline = absl::Now() + absl::Seconds(5);
    while (region_ != nullptr && !region_->failed() && absl::Now() < deadline)
      absl::SleepFor(absl::Milliseconds(1));
    stream_->WritesDone();
    worker::v1::ExchangeResponse ignored;
    while (stream_->Read(&ignored)) {
    }
    const grpc::Status status = stream_->Finish();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  }

 private:
  std::unique_ptr<worker::v1::NeuronService::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReaderWriter<worker::v1::ExchangeRequest, worker::v1::ExchangeResponse>>
      stream_;
  std::unique_ptr<Region> region_;
};

class HostileClientTest : public ::testing::Test {
 protected:
  TempDirectory directory_{"/dev/shm"};
  const std::string socket_ = directory_.path() + "/socket";
  FakeExecutor executor_{SmallGeometry()};
  TestServer server_{socket_, ServerOptions{.shm_directory = directory_.path()}, PolicyFor(SmallGeometry()),
                     &executor_};
};

struct BadDescriptor {
  const char* message;
  std::function<void(Descriptor*)> spoil;
};
const BadDescriptor kBadDescriptors[] = {
    {"layer is 3", [](Descriptor* d) { d->layer = 3; }},
    {"layer is 4294967295", [](Descriptor* d) { d->layer = UINT32_MAX; }},
    {"rows is 0", [](Descriptor* d) { d->rows = 0; }},
    {"rows is 5", [](Descriptor* d) { d->rows = 5; }},
    {"rows is 4294967295", [](Descriptor* d) { d->rows = UINT32_MAX; }},
    {"placement epoch is 6, expected 7", [](Descriptor* d) { d->placement_epoch = 6; }},
    {"generation is ", [](Descriptor* d) { d->generation ^= 1; }},
    {"sequence is 2, expected 1", [](Descriptor* d) { d->sequence = 2; }},
    {"unknown flags 16", [](Descriptor* d) { d->flags = 16; }},
    {"unknown flags", [](Descriptor* d) { d->flags = kFlagStepOpens | kFlagDense; }},
    {"gate value count is 1", [](Descriptor* d) { d->gate_value_count = 1; }},
    {"gate value count is 4294967295",
     [](Descriptor* d) {
       d->flags = kFlagGateValues;
       d->gate_value_count = UINT32_MAX;
     }},
    {"gate value count is 280, expected 0",
     [](Descriptor* d) {
       d->flags = kFlagGateValues;
       d->gate_value_count = 280;
     }},
};

TEST_F(HostileClientTest, SharedMemoryDescriptorsAreChecked) {
  for (const BadDescriptor& bad : kBadDescriptors) {
    RawClient client(socket_, directory_.path(), Transport::kSharedMemory);
    ASSERT_NE(client.region(), nullptr);
    Descriptor descriptor = GoodDescriptor(client.region()->generation());
    bad.spoil(&descriptor);
    client.Ring(descriptor, 1);
    const absl::Status error = client.End();
    EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(error.message()), HasSubstr(bad.message));
  }
}

TEST_F(HostileClientTest, InlineDescriptorsAreChecked) {
  for (const BadDescriptor& bad : kBadDescriptors) {
    RawClient client(socket_, directory_.path(), Transport::kInline);
    Descriptor descriptor = GoodDescriptor(/*generation=*/0);
    bad.spoil(&descriptor);
    worker::v1::ExchangeRequest request;
    PutDescriptor(descriptor, request.mutable_frame());
    const auto count = static_cast<int64_t>(std::min<uint32_t>(descriptor.gate_value_count, 280));
    request.mutable_frame()->mutable_payload()->resize(
        static_cast<size_t>(MakeFrameLayout(SmallGeometry(), 4, count).bytes));
    ASSERT_TRUE(client.Write(request));
    const absl::Status error = client.End();
    EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument) << bad.message;
    EXPECT_THAT(std::string(error.message()), HasSubstr(bad.message));
  }
}

TEST_F(HostileClientTest, InlinePayloadsOfTheWrongLengthAreRefused) {
  const auto right = static_cast<size_t>(MakeFrameLayout(SmallGeometry(), 4, 0).bytes);
  for (const size_t bytes : {size_t{0}, right - 1, right + 1}) {
    RawClient client(socket_, directory_.path(), Transport::kInline);
    worker::v1::ExchangeRequest request;
    PutDescriptor(GoodDescriptor(0), request.mutable_frame());
    request.mutable_frame()->mutable_payload()->resize(bytes);
    ASSERT_TRUE(client.Write(request));
    EXPECT_EQ(client.End().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
}

TEST_F(HostileClientTest, MessagesOutOfOrderAreRefused) {
  worker::v1::ExchangeRequest empty, attached, short_header;
  attached.mutable_attached();
  short_header.mutable_frame()->set_header("short");
  for (const auto& message : {empty, attached, short_header}) {
    RawClient client(socket_, directory_.path(), Transport::kInline);
    ASSERT_TRUE(client.Write(message));
    EXPECT_EQ(client.End().code(), absl::StatusCode::kInvalidArgument);

    const auto stub = MakeStub(socket_);
    grpc::ClientContext context;
    const auto stream = stub->Exchange(&context);
    stream->Write(message);
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT) << "before `open`";
  }
}

TEST_F(HostileClientTest, ADoorbellThatJumpsIsRefused) {
  RawClient client(socket_, directory_.path(), Transport::kSharedMemory);
  client.Ring(GoodDescriptor(client.region()->generation()), 3);
  const absl::Status error = client.End();
  EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(error.message()), HasSubstr("the doorbell jumped from 0 to 3"));
}

TEST_F(HostileClientTest, ExpectationsThatCannotBeAreDropped) {
  RawClient client(socket_, directory_.path(), Transport::kSharedMemory);
  const uint64_t generation = client.region()->generation();
  const auto expect = [&](uint32_t layer, uint32_t sequence) {
    const Region::Slot slot = client.region()->slot(sequence);
    *slot.expected = {.layer = layer};
    std::fill_n(slot.expected_mask, 2, ~uint64_t{0});
    StoreWord(&client.region()->header()->expectation_doorbell, sequence);
    WakeParked(&client.region()->header()->server_parked);
    absl::SleepFor(absl::Milliseconds(5));
  };
  const auto exchange = [&](uint32_t sequence) {
    Descriptor descriptor = GoodDescriptor(generation);
    descriptor.sequence = sequence;
    client.Ring(descriptor, sequence);
    const absl::Time deadline = absl::Now() + absl::Seconds(5);
    while (LoadWord(&client.region()->header()->answer_doorbell) != sequence && absl::Now() < deadline) {
      absl::SleepFor(absl::Milliseconds(1));
    }
    return LoadWord(&client.region()->header()->answer_doorbell) == sequence;
  };
  expect(/*layer=*/UINT32_MAX, 1);
  EXPECT_TRUE(exchange(1));
  expect(/*layer=*/0, 7);  // of a request far ahead
  EXPECT_TRUE(exchange(2));
  EXPECT_TRUE(executor_.TakeExpected().empty());
  expect(/*layer=*/2, 3);
  EXPECT_TRUE(exchange(3));
  const std::vector<FakeExecutor::Expected> expected = executor_.TakeExpected();
  ASSERT_EQ(expected.size(), 1u);
  EXPECT_EQ(expected[0].layer, 2);
  EXPECT_EQ(expected[0].mask, (std::vector<uint64_t>{~uint64_t{0}, 63})) << "there are 70 neurons";
}

TEST_F(HostileClientTest, TheExecutorsMasksAreOutOfReach) {
  std::atomic<Region*> region{nullptr};
  std::atomic<bool> stayed{false};
  FakeExecutor executor(SmallGeometry());
  executor.hook = [&](const ServerRequest& request, float*) {
    while (region.load() == nullptr) absl::SleepFor(absl::Milliseconds(1));
    region.load()->slot(1).masks[0] = ~uint64_t{0};
    stayed = request.masks[0] == 5;
    return ServerAnswer{};
  };
  const std::string socket = directory_.path() + "/hooked";
  TestServer server(socket, ServerOptions{.shm_directory = directory_.path()}, PolicyFor(SmallGeometry()),
                    &executor);
  RawClient client(socket, directory_.path(), Transport::kSharedMemory);
  client.region()->slot(1).masks[0] = 5;
  client.Ring(GoodDescriptor(client.region()->generation()), 1);
  region = client.region();
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (LoadWord(&client.region()->header()->answer_doorbell) != 1 && absl::Now() < deadline) {
    absl::SleepFor(absl::Milliseconds(1));
  }
  EXPECT_TRUE(stayed);
}

TEST_F(HostileClientTest, OverwritingTheHeaderHurtsNobodyElse) {
  RawClient client(socket_, directory_.path(), Transport::kSharedMemory);
  RegionHeader* header = client.region()->header();
  header->generation = header->region_bytes = ~uint64_t{0};
  header->slots = header->hidden = header->ffn = header->max_rows = UINT32_MAX;
  client.Ring(GoodDescriptor(client.region()->generation()), 1);
  const absl::Time deadline = absl::Now() + absl::Seconds(5);
  while (LoadWord(&header->answer_doorbell) != 1 && absl::Now() < deadline)
    absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(LoadWord(&header->answer_doorbell), 1u);
}

// A worker that answers the first request with what `spoil` makes of it.
class HostileWorkerTest : public ::testing::TestWithParam<Transport> {
 protected:
  using Spoil = std::function<void(Descriptor* answer, std::string* y, uint32_t* doorbell)>;

  absl::Status ExchangeWith(const Spoil& spoil) {
    const TempDirectory directory("/dev/shm");
    const std::string socket = directory.path() + "/socket";
    TestServer server(socket, [&](grpc::ServerContext*, RawStream* stream) {
      return GetParam() == Transport::kInline ? AnswerInline(stream, spoil)
                                              : AnswerShm(directory.path(), stream, spoil);
    });
    const auto stub = MakeStub(socket);
    const Geometry geometry = SmallGeometry();
    auto channel = Connect(stub.get(), ClientFor(geometry, GetParam(), directory.path()));
    if (!channel.ok()) return channel.status();
    const absl::Status status =
        RoundTrip(channel->get(), geometry, RandomRequest(geometry, {.step = 9, .layer = 2, .rows = 3}, 1));
    EXPECT_TRUE((*channel)->failed());
    return status;
  }

 private:
  static absl::Status AnswerShm(const std::string& directory, RawStream* stream, const Spoil& spoil) {
    worker::v1::ExchangeRequest request;
    stream->Read(&request);
    auto region = *Region::Create(directory, SmallGeometry());
    worker::v1::ExchangeResponse response;
    response.mutable_opened()->set_transport(worker::v1::EXCHANGE_TRANSPORT_SHARED_MEMORY);
    response.mutable_opened()->set_region_name(region->name());
    response.mutable_opened()->set_region_bytes(static_cast<uint64_t>(region->bytes()));
    stream->Write(response);
    stream->Read(&request);
    while (LoadWord(&region->header()->request_doorbell) == 0 && !region->failed())
      absl::SleepFor(absl::Milliseconds(1));
    Descriptor answer = *region->slot(1).request;
    std::string y;
    uint32_t doorbell = 1;
    spoil(&answer, &y, &doorbell);
    *region->slot(1).answer = answer;
    StoreWord(&region->header()->answer_doorbell, doorbell);
    WakeParked(&region->header()->client_parked);
    while (stream->Read(&request)) {
    }
    return absl::OkStatus();
  }

  static absl::Status AnswerInline(RawStream* stream, const Spoil& spoil) {
    worker::v1::ExchangeRequest request;
    stream->Read(&request);
    worker::v1::ExchangeResponse response;
    response.mutable_opened()->set_transport(worker::v1::EXCHANGE_TRANSPORT_INLINE);
    stream->Write(response);
    stream->Read(&request);
    Descriptor answer = *TakeDescriptor(request.frame());
    std::string y(static_cast<size_t>(AnswerBytes(SmallGeometry(), 3)), '\0');
    uint32_t doorbell = 1;
    spoil(&answer, &y, &doorbell);
    PutDescriptor(answer, response.mutable_frame());
    response.mutable_frame()->set_payload(y);
    for (uint32_t i = 0; i < doorbell; ++i) stream->Write(response);
    while (stream->Read(&request)) {
    }
    return absl::OkStatus();
  }
};

INSTANTIATE_TEST_SUITE_P(Transports, HostileWorkerTest,
                         ::testing::Values(Transport::kSharedMemory, Transport::kInline),
                         [](const auto& info) { return std::string(TransportName(info.param)); });

TEST_P(HostileWorkerTest, EchoesAreChecked) {
  struct Case {
    const char* message;
    std::function<void(Descriptor*)> spoil;
  };
  const Case cases[] = {
      {"step 9 was sent, 8 came back", [](Descriptor* d) { d->step = 8; }},
      {"layer 2 was sent, 1 came back", [](Descriptor* d) { d->layer = 1; }},
      {"rows 3 was sent, 2 came back", [](Descriptor* d) { d->rows = 2; }},
      {"generation", [](Descriptor* d) { d->generation += 1; }},
      {"sequence 1 was sent, 7 came back", [](Descriptor* d) { d->sequence = 7; }},
      {"placement epoch 7 was sent, 1 came back", [](Descriptor* d) { d->placement_epoch = 1; }},
      {"claims 211 neurons computed", [](Descriptor* d) { d->computed = 211; }},  // 3 rows x 70 neurons
      {"and 2 active",
       [](Descriptor* d) {
         d->computed = 1;
         d->active = 2;
       }},
  };
  for (const Case& c : cases) {
    const absl::Status error =
        ExchangeWith([&](Descriptor* answer, std::string*, uint32_t*) { c.spoil(answer); });
    EXPECT_EQ(error.code(), absl::StatusCode::kDataLoss) << error;
    EXPECT_THAT(std::string(error.message()), HasSubstr(c.message));
  }
}

TEST_P(HostileWorkerTest, AnswersThatDoNotFitAreRefused) {
  const absl::Status error = ExchangeWith([](Descriptor*, std::string* y, uint32_t* doorbell) {
    if (GetParam() == Transport::kInline) {
      y->pop_back();
    } else {
      *doorbell = 2;
    }
  });
  EXPECT_EQ(error.code(), absl::StatusCode::kDataLoss) << error;
}

TEST(HostileInlineWorkerTest, AnswersToNothingAreRefused) {
  const Geometry geometry = SmallGeometry();
  for (int extra = 1; extra <= 3; ++extra) {
    const TempDirectory directory("/dev/shm");
    const std::string socket = directory.path() + "/socket";
    TestServer server(socket, [extra](grpc::ServerContext*, RawStream* stream) {
      worker::v1::ExchangeRequest request;
      stream->Read(&request);
      worker::v1::ExchangeResponse response;
      response.mutable_opened()->set_transport(worker::v1::EXCHANGE_TRANSPORT_INLINE);
      for (int i = 0; i <= extra; ++i) stream->Write(response);
      while (stream->Read(&request)) {
      }
      return absl::OkStatus();
    });
    const auto stub = MakeStub(socket);
    const auto channel = Connect(stub.get(), ClientFor(geometry, Transport::kInline, directory.path()));
    // The surplus may be there before Connect returns.
    const absl::Status error =
        channel.ok() ? RoundTrip(channel->get(), geometry, RandomRequest(geometry, {.rows = 1}, 1))
                     : channel.status();
    EXPECT_EQ(error.code(), absl::StatusCode::kDataLoss) << error;
  }
}

}  // namespace
}  // namespace isotherm::exchange
