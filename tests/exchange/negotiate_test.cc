#include "common/exchange/negotiate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "common/exchange/region_layout.h"
#include "tests/exchange/harness.h"

namespace isotherm::exchange {
namespace {

using ::testing::HasSubstr;

TEST(TransportTest, NamesRoundTrip) {
  for (const Transport transport : {Transport::kAuto, Transport::kSharedMemory, Transport::kInline}) {
    EXPECT_EQ(*ParseTransport(TransportName(transport)), transport);
    EXPECT_EQ(*FromProto(ToProto(transport)), transport);
  }
  EXPECT_EQ(ParseTransport("shared").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FromProto(worker::v1::EXCHANGE_TRANSPORT_UNSPECIFIED).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(FromProto(static_cast<worker::v1::ExchangeTransport>(99)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ChooseTransportTest, Table) {
  constexpr Transport kAuto = Transport::kAuto, kShm = Transport::kSharedMemory, kInline = Transport::kInline;
  struct Case {
    Transport client, server;
    bool same_host;
    std::optional<Transport> chosen;
  };
  for (const Case& c : {Case{kAuto, kAuto, true, kShm}, Case{kAuto, kAuto, false, kInline},
                        Case{kShm, kAuto, true, kShm}, Case{kShm, kAuto, false, std::nullopt},
                        Case{kAuto, kShm, true, kShm}, Case{kAuto, kShm, false, std::nullopt},
                        Case{kInline, kAuto, true, kInline}, Case{kAuto, kInline, true, kInline},
                        Case{kInline, kShm, true, std::nullopt}, Case{kShm, kInline, true, std::nullopt}}) {
    const absl::StatusOr<Transport> chosen = ChooseTransport(c.client, c.server, c.same_host);
    SCOPED_TRACE(std::string(TransportName(c.client)) + " " + TransportName(c.server));
    if (c.chosen.has_value()) {
      ASSERT_TRUE(chosen.ok()) << chosen.status();
      EXPECT_EQ(*chosen, *c.chosen);
    } else {
      EXPECT_EQ(chosen.status().code(), absl::StatusCode::kFailedPrecondition);
    }
  }
}

TEST(CheckOpenTest, NamesBothValues) {
  const Geometry geometry = SmallGeometry();
  const ServerPolicy policy = PolicyFor(geometry);
  const worker::v1::ExchangeOpen good =
      MakeOpen(ClientFor(geometry, Transport::kAuto, "/dev/shm"), Transport::kAuto, {});
  ASSERT_TRUE(CheckOpen(good, policy).ok()) << CheckOpen(good, policy).status();
  EXPECT_EQ(*CheckOpen(good, policy), geometry);
  struct Case {
    const char* message;
    std::function<void(worker::v1::ExchangeOpen*)> spoil;
  };
  const Case cases[] = {
      {"protocol version differs: the GPU worker has 2, this CPU worker 5",
       [](auto* o) { o->set_protocol_version(2); }},
      {"region layout version differs: the GPU worker has 9, this CPU worker 2",
       [](auto* o) { o->set_region_layout_version(9); }},
      {"bundle layout version differs: the GPU worker has 9",
       [](auto* o) { o->set_bundle_layout_version(9); }},
      {"model digest differs: the GPU worker has x, this CPU worker model",
       [](auto* o) { o->set_model_digest("x"); }},
      {"placement epoch differs: the GPU worker has 0, this CPU worker 7",
       [](auto* o) { o->set_placement_epoch(0); }},
      {"placement digest differs: the GPU worker has , this CPU worker placement",
       [](auto* o) { o->clear_placement_digest(); }},
      {"number of layers differs: the GPU worker has 0, this CPU worker 3",
       [](auto* o) { o->clear_geometry(); }},
      {"hidden size differs", [](auto* o) { o->mutable_geometry()->set_hidden_size(6); }},
      {"FFN size differs", [](auto* o) { o->mutable_geometry()->set_ffn_size(71); }},
      {"number of slots differs: the GPU worker has 4, this CPU worker 2",
       [](auto* o) { o->mutable_geometry()->set_slots(4); }},
      {"max_rows is 0", [](auto* o) { o->mutable_geometry()->set_max_rows(0); }},
      {"4294967295 rows an exchange, this CPU worker allows 4096",
       [](auto* o) { o->mutable_geometry()->set_max_rows(UINT32_MAX); }},
  };
  for (const Case& c : cases) {
    worker::v1::ExchangeOpen open = good;
    c.spoil(&open);
    EXPECT_THAT(std::string(CheckOpen(open, policy).status().message()), HasSubstr(c.message));
  }
}

TEST(CheckPolicyTest, RefusesHotMasksOfAnotherShape) {
  ServerPolicy policy = PolicyFor(SmallGeometry());
  EXPECT_EQ(CheckPolicy(policy), absl::OkStatus()) << "no placement yet";
  policy.hot.assign(3, std::vector<uint64_t>(2));
  EXPECT_EQ(CheckPolicy(policy), absl::OkStatus());
  policy.hot[2].pop_back();
  EXPECT_EQ(CheckPolicy(policy).code(), absl::StatusCode::kInternal);
  policy.hot.pop_back();
  EXPECT_EQ(CheckPolicy(policy).code(), absl::StatusCode::kInternal);
}

TEST(CheckGeometryTest, RefusesNumbersWhoseProductsCouldOverflow) {
  EXPECT_TRUE(CheckGeometry({80, 8192, 28672, 4096, true}).ok());
  for (const Geometry& geometry :
       {Geometry{0, 1, 1, 1, false}, Geometry{1, 0, 1, 1, false}, Geometry{1, 1, 0, 1, false},
        Geometry{1, 1, 1, 0, false}, Geometry{-1, 1, 1, 1, false}, Geometry{1, INT64_MAX, 1, 1, false},
        Geometry{1, 1, INT64_MAX, INT64_MAX, false}, Geometry{1, 1 << 20, 1, 1 << 16, false},
        Geometry{1, 1, 1 << 20, 1 << 16, false}}) {
    EXPECT_EQ(CheckGeometry(geometry).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(CheckInlineFitsTest, NamesTheRowsThatWouldFit) {
  Geometry geometry{.layers = 1, .hidden = 1024, .ffn = 4096, .max_rows = 4000, .gate_values = true};
  const absl::Status error = CheckInlineFits(geometry, 64 << 20);
  EXPECT_THAT(std::string(error.message()), HasSubstr("lower the rows of a step to 3196"));
  geometry.max_rows = 3196;
  EXPECT_EQ(CheckInlineFits(geometry, 64 << 20), absl::OkStatus());
  geometry.max_rows = 3197;
  EXPECT_FALSE(CheckInlineFits(geometry, 64 << 20).ok());
}

TEST(ProveHostTest, TellsDirectoriesOfDifferentFileSystemsApart) {
  const absl::StatusOr<HostProof> proof = ProveHost("/dev/shm");
  ASSERT_TRUE(proof.ok()) << proof.status();
  EXPECT_FALSE(proof->boot_id.empty());
  EXPECT_EQ(*proof, *ProveHost("/dev/shm"));
  EXPECT_NE(*proof, *ProveHost("/proc"));
  EXPECT_FALSE(ProveHost("/nowhere").ok());
}

}  // namespace
}  // namespace isotherm::exchange
