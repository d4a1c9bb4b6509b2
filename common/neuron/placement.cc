#include "common/neuron/placement.h"

#include "absl/strings/str_format.h"

namespace isotherm::neuron {
namespace {

// 64-bit FNV-1a over little-endian words, with MurmurHash3's finaliser so that every input bit reaches every
// digit. Guards against mistakes, not against forgery: both workers trust each other.
class Fingerprint {
 public:
  void Add(uint64_t word) {
    for (int shift = 0; shift < 64; shift += 8) hash_ = (hash_ ^ ((word >> shift) & 0xff)) * 0x100000001b3u;
  }
  uint64_t Finish() const {
    uint64_t h = hash_;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdu;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53u;
    return h ^ (h >> 33);
  }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

Placement Uniform(int64_t layers, int64_t ffn, bool hot) {
  Placement placement;
  placement.epoch = 1;
  placement.ffn = ffn;
  placement.hot.assign(layers, std::vector<uint64_t>(MaskWords(ffn), 0));
  if (hot) {
    for (std::vector<uint64_t>& mask : placement.hot) SetAll(mask.data(), ffn);
  }
  return placement;
}

}  // namespace

int64_t Placement::HotCount(int64_t layer) const { return CountBits(hot[layer].data(), MaskWords(ffn)); }

int64_t Placement::HotCount() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < layers(); ++layer) count += HotCount(layer);
  return count;
}

std::vector<int32_t> Placement::HotNeurons(int64_t layer) const {
  std::vector<int32_t> neurons;
  neurons.reserve(HotCount(layer));
  ForEachSet(hot[layer].data(), MaskWords(ffn),
             [&](int64_t neuron) { neurons.push_back(static_cast<int32_t>(neuron)); });
  return neurons;
}

std::string Placement::Digest() const {
  Fingerprint fingerprint;
  fingerprint.Add(epoch);
  fingerprint.Add(static_cast<uint64_t>(ffn));
  fingerprint.Add(static_cast<uint64_t>(layers()));
  for (const std::vector<uint64_t>& mask : hot) {
    for (uint64_t word : mask) fingerprint.Add(word);
  }
  return absl::StrFormat("%016x", fingerprint.Finish());
}

Placement AllHot(int64_t layers, int64_t ffn) { return Uniform(layers, ffn, true); }
Placement AllCold(int64_t layers, int64_t ffn) { return Uniform(layers, ffn, false); }

}  // namespace isotherm::neuron
