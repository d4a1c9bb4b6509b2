#include "cpu_worker/service/placement_request.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "common/rpc/status.h"

namespace isotherm::cpu_worker {
namespace {

constexpr int64_t kLayers = 3;
constexpr int64_t kFfn = 70;

worker::v1::ApplyPlacementRequest MakeRequest(const neuron::Placement& placement) {
  worker::v1::ApplyPlacementRequest request;
  request.set_epoch(placement.epoch);
  request.set_digest(placement.Digest());
  for (const std::vector<uint64_t>& hot : placement.hot) {
    request.add_layers()->set_hot_mask(hot.data(), hot.size() * sizeof(uint64_t));
  }
  return request;
}

TEST(ParsePlacementTest, TakesWhatTheSenderHas) {
  neuron::Placement sent = neuron::AllCold(kLayers, kFfn);
  sent.epoch = 7;
  neuron::SetBit(sent.hot[1].data(), 69);
  neuron::SetBit(sent.hot[2].data(), 0);
  const absl::StatusOr<neuron::Placement> parsed = ParsePlacement(MakeRequest(sent), kLayers, kFfn);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->epoch, 7u);
  EXPECT_EQ(parsed->ffn, kFfn);
  EXPECT_EQ(parsed->hot, sent.hot);
  EXPECT_EQ(parsed->Digest(), sent.Digest());
}

TEST(ParsePlacementTest, NamesTheFieldAtFault) {
  using Request = worker::v1::ApplyPlacementRequest;
  struct Case {
    std::string field;
    std::function<void(Request&)> spoil;
  };
  const std::vector<Case> cases = {
      {"layers", [](Request& request) { request.clear_layers(); }},
      {"layers", [](Request& request) { request.mutable_layers()->RemoveLast(); }},
      {"layers", [](Request& request) { *request.add_layers() = request.layers(0); }},
      {"layers[1].hot_mask", [](Request& request) { request.mutable_layers(1)->clear_hot_mask(); }},
      {"layers[0].hot_mask",
       [](Request& request) { request.mutable_layers(0)->mutable_hot_mask()->pop_back(); }},
      {"layers[2].hot_mask",
       [](Request& request) { request.mutable_layers(2)->mutable_hot_mask()->append(8, '\0'); }},
      {"layers[2].hot_mask",
       [](Request& request) { request.mutable_layers(2)->mutable_hot_mask()->back() = '\x01'; }},
      {"layers[0].hot_mask",
       [](Request& request) { (*request.mutable_layers(0)->mutable_hot_mask())[8] = '\x40'; }},
      {"digest", [](Request& request) { (*request.mutable_layers(0)->mutable_hot_mask())[0] = '\x01'; }},
      {"digest", [](Request& request) { request.clear_digest(); }},
      {"digest", [](Request& request) { request.set_digest(std::string(1 << 20, 'f')); }},
      {"digest", [](Request& request) { request.set_epoch(8); }},
  };
  for (const Case& test : cases) {
    Request request = MakeRequest(neuron::AllCold(kLayers, kFfn));
    test.spoil(request);
    const absl::Status status = ParsePlacement(request, kLayers, kFfn).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << test.field;
    EXPECT_EQ(rpc::ViolatedField(status).value_or("none"), test.field) << status;
  }
}

}  // namespace
}  // namespace isotherm::cpu_worker
