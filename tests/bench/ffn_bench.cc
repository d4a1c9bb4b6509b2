// ffn_bench [THREADS] [SECONDS] [HIDDEN FFN TYPE [SHARE [ROWS [GIB [private]]]]]
//
// How near the sparse FFN comes to the memory's read bandwidth; without a shape at that of the acceptance
// test: hidden 2048, FFN 5632, f16 (or q8_0, q4_0), a share of 0.1 of the neurons, one token. Four things are
// timed in turn over layers that no cache holds, so that all see the same machine: a plain read of a layer's
// bundles, the FFN with every neuron computed for one token, the FFN with each token's share of the neurons,
// scattered, and the same after the neurons were asked for in advance. Medians of the rates; bytes are those
// of the rows that must be read. The layers together take at least GIB, 1 unless told: more than the TLB
// reaches, as a model does, from about 8 on. They lie where a CPU worker keeps its neurons, or with `private`
// in memory that no other process could map.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/base/thread_pool.h"
#include "common/kernels/row_kernels.h"
#include "common/neuron/bandwidth.h"
#include "common/neuron/ffn.h"
#include "common/neuron/mask.h"
#include "cpu_worker/store/bundle_memory.h"

namespace isotherm::neuron {
namespace {

struct Shape {
  int64_t hidden = 2048;
  int64_t ffn = 5632;
  kernels::WeightType type = kernels::WeightType::kF16;
  double share = 0.1;
  int64_t rows = 1;
  // Of all layers; the least is beyond the last-level cache of any server.
  int64_t gib = 1;
  bool private_memory = false;
};

using Clock = std::chrono::steady_clock;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

BundleLayout MakeLayout(const Shape& shape) {
  const int64_t row = kernels::PackedRowBytes(shape.type, shape.hidden);
  return {shape.type, shape.type, shape.type, shape.hidden, row, 2 * row, 3 * row};
}

// Positive numbers, so that every gate fires, as after a predictor that is never wrong: the same in every
// row.
void Fill(base::ThreadPool& pool, const Shape& shape, uint8_t* memory, int64_t rows) {
  std::vector<float> values(shape.hidden);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = 0.03f + static_cast<float>(state >> 8) * 0x1p-29f;
  }
  const int64_t bytes = kernels::PackedRowBytes(shape.type, shape.hidden);
  std::vector<uint8_t> row(bytes);
  kernels::PackFloatRow(shape.type, values.data(), shape.hidden, row.data());
  pool.ParallelFor(rows, 256, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) std::copy_n(row.data(), bytes, memory + r * bytes);
  });
}

class Bench {
 public:
  Bench(int threads, const Shape& shape, int64_t layers, cpu_worker::BundleMemory* memory)
      : pool_({.threads = threads, .spin_us = 5000}),
        shape_(shape),
        layout_(MakeLayout(shape)),
        memory_(memory->data()),
        executor_(&pool_, shape.hidden, shape.ffn, shape.rows),
        x_(shape.rows * shape.hidden, 0.01f),
        y_(shape.rows * shape.hidden),
        all_(MaskWords(shape.ffn)) {
    const int64_t huge = memory->Populate(pool_);
    std::printf("%.2f GB%s", memory->bytes() * 1e-9, memory->file() < 0 ? ", private; " : "; ");
    if (memory->file() >= 0) std::printf("%.2f of them in huge pages; ", huge * 1e-9);
    Fill(pool_, shape, memory_, layers * shape.ffn * 3);
    SetAll(all_.data(), shape.ffn);
    std::mt19937 random(1);
    std::bernoulli_distribution active(shape.share);
    const int64_t words = MaskWords(shape.ffn);
    for (int64_t layer = 0; layer < layers; ++layer) {
      std::vector<uint64_t>& masks = scattered_.emplace_back(shape.rows * words);
      for (int64_t i = 0; i < shape.rows * shape.ffn; ++i) {
        if (active(random)) SetBit(&masks[i / shape.ffn * words], i % shape.ffn);
      }
    }
  }

  static int64_t LayerBytes(const Shape& shape) { return shape.ffn * MakeLayout(shape).bundle_bytes; }

  double Read(int64_t layer) {
    return MeasureReadBandwidth(pool_, Layer(layer), LayerBytes(shape_), absl::ZeroDuration());
  }
  double Dense(int64_t layer) { return Run(layer, 1, all_, true); }
  double Sparse(int64_t layer) { return Run(layer, shape_.rows, scattered_[layer], false); }
  // As Sparse, when the neurons have been asked for in advance.
  double Prefetched(int64_t layer) {
    const std::vector<uint64_t> wanted = Union(scattered_[layer]);
    executor_.Prefetch({Layer(layer), &layout_, nullptr, shape_.ffn}, wanted.data(), [] { return false; });
    return Sparse(layer);
  }
  // Bytes of the rows that the layer's tokens want.
  int64_t SparseBytes(int64_t layer) const { return UnionBytes(scattered_[layer]); }

 private:
  const uint8_t* Layer(int64_t layer) const { return memory_ + layer * LayerBytes(shape_); }

  std::vector<uint64_t> Union(const std::vector<uint64_t>& masks) const {
    const auto words = static_cast<size_t>(MaskWords(shape_.ffn));
    std::vector<uint64_t> all(words);
    for (size_t i = 0; i < masks.size(); ++i) all[i % words] |= masks[i];
    return all;
  }
  int64_t UnionBytes(const std::vector<uint64_t>& masks) const {
    const std::vector<uint64_t> all = Union(masks);
    return CountBits(all.data(), static_cast<int64_t>(all.size())) * layout_.bundle_bytes;
  }

  double Run(int64_t layer, int64_t rows, const std::vector<uint64_t>& masks, bool dense) {
    const BundleView view{Layer(layer), &layout_, nullptr, shape_.ffn};
    FfnRequest request;
    request.rows = rows;
    request.x = x_.data();
    request.masks = masks.data();
    request.ffn = shape_.ffn;
    request.dense = dense;
    const Clock::time_point start = Clock::now();
    const FfnStatistics statistics = executor_.Run(view, request, y_.data());
    const double seconds = SecondsSince(start);
    if (statistics.active != statistics.computed) std::abort();
    return static_cast<double>(UnionBytes(masks)) / seconds;
  }

  base::ThreadPool pool_;
  const Shape shape_;
  const BundleLayout layout_;
  uint8_t* const memory_;
  FfnExecutor executor_;
  std::vector<float> x_, y_;
  std::vector<uint64_t> all_;
  std::vector<std::vector<uint64_t>> scattered_;
};

struct Quartiles {
  double low, median, high;
};

Quartiles Summarise(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {values[values.size() / 4], values[values.size() / 2], values[values.size() * 3 / 4]};
}

void Print(const char* name, const std::vector<double>& rates, double plain) {
  const Quartiles q = Summarise(rates);
  std::printf("%-12s %6.2f GB/s (quartiles %.2f to %.2f), %5.1f %% of the plain read\n", name,
              q.median * 1e-9, q.low * 1e-9, q.high * 1e-9, 100 * q.median / plain);
}

// False: not a type that the bench takes.
bool ParseType(const std::string& name, kernels::WeightType* type) {
  if (name != "f16" && name != "q8_0" && name != "q4_0") return false;
  *type = name == "f16"    ? kernels::WeightType::kF16
          : name == "q8_0" ? kernels::WeightType::kQ8_0
                           : kernels::WeightType::kQ4_0;
  return true;
}

int Main(int threads, double seconds, const Shape& shape) {
  const int64_t layers = (shape.gib << 30) / Bench::LayerBytes(shape) + 1;
  const int64_t bytes = layers * Bench::LayerBytes(shape);
  absl::StatusOr<cpu_worker::BundleMemory> memory = shape.private_memory
                                                        ? cpu_worker::BundleMemory::MapPrivate(bytes)
                                                        : cpu_worker::BundleMemory::Map(bytes);
  if (!memory.ok()) {
    std::fprintf(stderr, "ffn_bench: %s\n", memory.status().ToString().c_str());
    return 1;
  }
  Bench bench(threads, shape, layers, &*memory);
  std::vector<double> read, dense, sparse, prefetched;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; SecondsSince(start) < seconds || i < layers; ++i) {
    read.push_back(bench.Read(i % layers));
    dense.push_back(bench.Dense((i + layers / 3) % layers));
    sparse.push_back(bench.Sparse((i + 2 * layers / 3) % layers));
    prefetched.push_back(bench.Prefetched((i + layers / 2) % layers));
  }
  std::printf(
      "hidden %ld, FFN %ld, %s, %g of the neurons for each of %ld tokens, %d threads, kernels %s, %zu "
      "rounds\n",
      static_cast<long>(shape.hidden), static_cast<long>(shape.ffn), kernels::WeightTypeName(shape.type),
      shape.share, static_cast<long>(shape.rows), threads, kernels::ActiveTarget().c_str(), read.size());
  const double plain = Summarise(read).median;
  Print("plain read", read, plain);
  Print("all", dense, plain);
  Print("scattered", sparse, plain);
  Print("asked for", prefetched, plain);
  std::printf("scattered: %.1f us for %.2f MB\n", bench.SparseBytes(0) / Summarise(sparse).median * 1e6,
              bench.SparseBytes(0) * 1e-6);
  return 0;
}

}  // namespace
}  // namespace isotherm::neuron

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const double seconds = argc > 2 ? std::atof(argv[2]) : 5;
  isotherm::neuron::Shape shape;
  bool known = argc < 6;
  if (argc > 5) {
    shape.hidden = std::atoll(argv[3]);
    shape.ffn = std::atoll(argv[4]);
    known = isotherm::neuron::ParseType(argv[5], &shape.type);
  }
  if (argc > 6) shape.share = std::atof(argv[6]);
  if (argc > 7) shape.rows = std::atoll(argv[7]);
  if (argc > 8) shape.gib = std::atoll(argv[8]);
  shape.private_memory = argc > 9 && std::string(argv[9]) == "private";
  const bool valid = known && threads >= 1 && seconds >= 0 && shape.hidden >= 32 && shape.hidden % 32 == 0 &&
                     shape.ffn >= 1 && shape.share > 0 && shape.share <= 1 && shape.rows >= 1 &&
                     shape.gib >= 1;
  if (!valid || argc == 4 || argc == 5) {
    std::fprintf(
        stderr,
        "usage: ffn_bench [THREADS] [SECONDS] [HIDDEN FFN f16|q8_0|q4_0 [SHARE [ROWS [GIB [private]]]]]\n");
    return 2;
  }
  return isotherm::neuron::Main(threads, seconds, shape);
}
