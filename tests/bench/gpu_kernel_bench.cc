// gpu_kernel_bench [rates | HOT_SHARE [BUS_OF_64]]
//
// `rates`: bytes a second of a copy within the device's memory, of a product that reads a large matrix from
// it, and of a copy from registered host memory. Otherwise: Time and bytes a second of the decode kernels of
// device cuda, each in a graph of its own over weights that do not fit the caches, beside a copy within the
// device's memory: medians of seven. HOT_SHARE of a layer's neurons are hot, of which a token wants a fifth;
// of the others it wants a twenty-fifth, and BUS_OF_64 of every 64 are read over the bus.

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "common/kernels/packed_row.h"
#include "common/neuron/mask.h"
#include "gpu_worker/kernels/attention.h"
#include "gpu_worker/kernels/mat_mul.h"
#include "gpu_worker/kernels/row_ops.h"
#include "gpu_worker/kernels/sparse_ffn.h"

namespace isotherm::gpu_worker::cuda {
namespace {

using kernels::WeightType;

constexpr int64_t kArenaBytes = int64_t{4} << 30;
constexpr int64_t kScratchBytes = int64_t{256} << 20;
constexpr int64_t kHostBytes = int64_t{1} << 30;
constexpr int kRepeats = 7;
constexpr double kHotWanted = 0.2, kColdWanted = 0.04;

void Check(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", doing, cudaGetErrorString(error));
  std::exit(1);
}

// Filled with 0x11, a small positive scale or value in every format.
template <typename T = uint8_t>
T* DeviceBytes(int64_t bytes) {
  void* memory = nullptr;
  Check(cudaMalloc(&memory, bytes), "allocating");
  Check(cudaMemset(memory, 0x11, bytes), "filling");
  return static_cast<T*>(memory);
}

template <typename T>
T* Upload(const std::vector<T>& values) {
  T* const memory = DeviceBytes<T>(static_cast<int64_t>(values.size() * sizeof(T)));
  Check(cudaMemcpy(memory, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "uploading");
  return memory;
}

// Hands out pieces of memory that were not used lately.
class Arena {
 public:
  Arena(uint8_t* memory, int64_t bytes) : memory_(memory), bytes_(bytes) {}
  const uint8_t* Take(int64_t bytes) {
    if (next_ + bytes > bytes_) next_ = 0;
    const uint8_t* const piece = memory_ + next_;
    next_ += (bytes + 255) / 256 * 256;
    return piece;
  }

 private:
  uint8_t* memory_;
  int64_t bytes_, next_ = 0;
};

// Prints the median time of one of `count` launches in a graph, and what `bytes` each make a second (0:
// leaves that out).
void Time(const char* name, int count, int64_t bytes,
          const std::function<cudaError_t(cudaStream_t)>& launch) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaEvent_t begin = nullptr, end = nullptr;
  Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "making a stream");
  Check(cudaEventCreate(&begin), "making an event");
  Check(cudaEventCreate(&end), "making an event");
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing");
  for (int i = 0; i < count; ++i) Check(launch(stream), name);
  Check(cudaStreamEndCapture(stream, &graph), "capturing");
  Check(cudaGraphInstantiate(&exec, graph, 0), "instantiating");
  std::vector<float> times;
  for (int i = 0; i <= kRepeats; ++i) {
    Check(cudaEventRecord(begin, stream), "recording");
    Check(cudaGraphLaunch(exec, stream), "launching");
    Check(cudaEventRecord(end, stream), "recording");
    Check(cudaStreamSynchronize(stream), name);
    float milliseconds = 0;
    Check(cudaEventElapsedTime(&milliseconds, begin, end), "timing");
    if (i > 0) times.push_back(milliseconds * 1000 / static_cast<float>(count));
  }
  std::sort(times.begin(), times.end());
  const double median = times[times.size() / 2];
  std::printf("%-44s %8.2f us (%.2f to %.2f)", name, median, times.front(), times.back());
  if (bytes > 0) std::printf(" %8.0f GB/s", static_cast<double>(bytes) / median / 1000);
  std::printf("\n");
  std::fflush(stdout);
  Check(cudaGraphExecDestroy(exec), "destroying");
  Check(cudaGraphDestroy(graph), "destroying");
  Check(cudaEventDestroy(begin), "destroying");
  Check(cudaEventDestroy(end), "destroying");
  Check(cudaStreamDestroy(stream), "destroying");
}

uint8_t* PinnedBytes(int64_t bytes) {
  void* memory = nullptr;
  Check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "pinning");
  std::fill_n(static_cast<uint8_t*>(memory), bytes, uint8_t{0x11});
  return static_cast<uint8_t*>(memory);
}

// What all benchmarks share.
struct Memory {
  Arena device{DeviceBytes(kArenaBytes), kArenaBytes};
  Arena host{PinnedBytes(kHostBytes), kHostBytes};
  float* x = Upload(std::vector<float>(1 << 20, 0.5f));
  float* y = DeviceBytes<float>(kScratchBytes);
  float* partials = DeviceBytes<float>(kScratchBytes);
};

struct Shape {
  const char* name;
  WeightType type;
  int64_t hidden, ffn, heads, kv_heads;
};

class Bench {
 public:
  Bench(Memory& memory, const Shape& shape, double hot_share, int bus_of_64)
      : memory_(memory), shape_(shape), hot_share_(hot_share), bus_of_64_(bus_of_64) {}

  void Run() {
    std::printf("%s: %s, hidden %lld, FFN %lld\n", shape_.name, kernels::WeightTypeName(shape_.type),
                static_cast<long long>(shape_.hidden), static_cast<long long>(shape_.ffn));
    const int64_t key = shape_.hidden / shape_.heads * shape_.kv_heads;
    for (const int64_t rows : {1, 8}) {
      Product("Q, K and V", shape_.type, {shape_.hidden, key, key}, shape_.hidden, rows);
      Product("attention output", shape_.type, {shape_.hidden}, shape_.hidden, rows);
      Product("predictor, 512 rows", WeightType::kQ8_0, {512}, shape_.hidden, rows);
      Product("predictor, 512 columns", WeightType::kQ8_0, {shape_.ffn}, 512, rows);
      Norm(rows);
      Attend(rows);
      Ffn(rows, 0);
      Ffn(rows, bus_of_64_);
    }
  }

 private:
  void Product(const char* what, WeightType type, const std::vector<int64_t>& outputs, int64_t columns,
               int64_t rows) {
    const int64_t stride = kernels::PackedRowBytes(type, columns);
    const int64_t all = std::accumulate(outputs.begin(), outputs.end(), int64_t{0});
    Time(Name(what, rows), 40, all * stride, [&](cudaStream_t stream) {
      cuda::Product products[kMostProducts];
      float* y = memory_.y;
      for (size_t i = 0; i < outputs.size(); ++i) {
        products[i] = {
            {memory_.device.Take(outputs[i] * stride), type, outputs[i], columns, stride}, nullptr, y};
        y += outputs[i] * rows;
      }
      return MatMul(products, static_cast<int>(outputs.size()), memory_.x, rows, stream);
    });
  }

  void Norm(int64_t rows) {
    const RowNorm norm{.weight = memory_.x, .epsilon = 1e-5f};
    Time(Name("add and norm", rows), 40, 0, [&](cudaStream_t stream) {
      return AddAndNormalize({memory_.x}, norm, rows, shape_.hidden, memory_.y,
                             memory_.y + rows * shape_.hidden, stream);
    });
  }

  void Attend(int64_t rows) {
    constexpr int64_t kContext = 192, kBlock = 16;
    kernels::PagedKv kv;
    kv.kv_heads = shape_.kv_heads;
    kv.head_dim = shape_.hidden / shape_.heads;
    kv.block_size = kBlock;
    kv.block_bytes = kv.kv_heads * kBlock * kernels::KvRowBytes(kv.type, kv.head_dim);
    const int64_t blocks = kContext / kBlock;
    std::vector<uint32_t> table(blocks);
    std::iota(table.begin(), table.end(), 0u);
    const SequenceRows sequences{Upload(std::vector<int32_t>(rows, kContext - 1)),
                                 Upload(std::vector<int32_t>(rows, 0)), Upload(table), rows};
    const int64_t splits = kContext / kSplitTokens;
    Time(Name("attention over 192 tokens", rows), 40, 2 * blocks * kv.block_bytes, [&](cudaStream_t stream) {
      kv.k = const_cast<uint8_t*>(memory_.device.Take(blocks * kv.block_bytes));
      kv.v = const_cast<uint8_t*>(memory_.device.Take(blocks * kv.block_bytes));
      return Attention(sequences, kv, memory_.x, shape_.heads, 0.1f, splits, memory_.partials, memory_.y,
                       stream);
    });
  }

  void Ffn(int64_t rows, int bus_of_64) {
    const int64_t row_bytes = kernels::PackedRowBytes(shape_.type, shape_.hidden);
    const int64_t words = neuron::MaskWords(shape_.ffn);
    std::mt19937 random(1);
    std::uniform_real_distribution<double> uniform(0, 1);
    std::vector<uint64_t> hot_mask(words), masks(rows * words);
    std::vector<int32_t> hot_ids;
    int64_t hot_active = 0, bus_active = 0;
    for (int64_t id = 0; id < shape_.ffn; ++id) {
      const bool hot = uniform(random) < hot_share_;
      if (hot) hot_ids.push_back(static_cast<int32_t>(id));
      if (hot) hot_mask[id / 64] |= uint64_t{1} << (id % 64);
      bool any = false;
      for (int64_t r = 0; r < rows; ++r) {
        const bool active = uniform(random) < (hot ? kHotWanted : kColdWanted);
        any |= active;
        if (active) masks[r * words + id / 64] |= uint64_t{1} << (id % 64);
      }
      if (any) (hot ? hot_active : bus_active) += hot || id % 64 < bus_of_64;
    }
    NeuronSet hot{.bundle_bytes = 3 * row_bytes,
                  .ids = Upload(hot_ids),
                  .count = static_cast<int64_t>(hot_ids.size()),
                  .hidden = shape_.hidden,
                  .ffn = shape_.ffn,
                  .firings = DeviceBytes<unsigned>(shape_.ffn * 4)};
    NeuronSet bus = hot;
    bus.ids = nullptr;
    bus.of_64 = std::max(bus_of_64, 1);
    bus.count = shape_.ffn / 64 * bus_of_64;
    bus.without = Upload(hot_mask);
    auto* const counters = DeviceBytes<FfnCounters>(2 * sizeof(FfnCounters));
    auto* const values = DeviceBytes<float>(2 * rows * shape_.ffn * 4);
    auto* const partials = DeviceBytes<float>(DownPartialFloats(shape_.ffn, shape_.hidden, rows) * 4);
    const FfnRows ffn_rows{memory_.x, Upload(masks), rows};
    const auto next = [&] {
      hot.bundles = memory_.device.Take(hot.count * hot.bundle_bytes);
      bus.bundles = memory_.host.Take(shape_.ffn * bus.bundle_bytes);
      return FfnParts{{bus, values + rows * shape_.ffn, counters + 1}, {hot, values, counters}};
    };
    const BundleRow gate{shape_.type}, up{shape_.type, row_bytes}, down{shape_.type, 2 * row_bytes};
    std::printf("%lld rows: %lld of %lld hot neurons active, %lld over the bus\n",
                static_cast<long long>(rows), static_cast<long long>(hot_active),
                static_cast<long long>(hot.count), static_cast<long long>(bus_active));
    Time(
        Name("gates and up projection", rows), 20, 2 * (hot_active + bus_active) * row_bytes,
        [&](cudaStream_t stream) { return GateRows(next(), gate, &up, ffn_rows, GateActivation{}, stream); });
    Time(Name("down projection", rows), 20, (hot_active + bus_active) * row_bytes,
         [&](cudaStream_t stream) { return DownRows(next(), down, rows, partials, memory_.y, stream); });
  }

  static const char* Name(const char* what, int64_t rows) {
    static char name[64];
    std::snprintf(name, sizeof name, "%lld x %s", static_cast<long long>(rows), what);
    return name;
  }

  Memory& memory_;
  const Shape shape_;
  const double hot_share_;
  const int bus_of_64_;
};

void ReadByProduct() {
  constexpr int64_t kRows = 64 << 10, kColumns = 8 << 10, kStride = 2 * kColumns;
  constexpr int64_t kBytes = kRows * kStride;
  static_assert(kBytes == int64_t{1} << 30);
  const uint8_t* const weights = DeviceBytes(kBytes);
  float* const x = Upload(std::vector<float>(kColumns, 0.5f));
  float* const y = DeviceBytes<float>(kRows * 4);
  const Product product{{weights, WeightType::kF16, kRows, kColumns, kStride}, nullptr, y};
  Time("product with 1 GiB of F16", 4, kBytes,
       [&](cudaStream_t stream) { return MatMul(&product, 1, x, 1, stream); });
}

void CopyFromHost() {
  constexpr int64_t kBytes = int64_t{256} << 20;
  const uint8_t* const from = PinnedBytes(kBytes);
  auto* const to = DeviceBytes(kBytes);
  Time("copy from the host of 256 MiB", 4, kBytes, [&](cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, kBytes, cudaMemcpyHostToDevice, stream);
  });
}

void CopyWithinDevice() {
  constexpr int64_t kBytes = int64_t{1} << 30;
  auto* const from = DeviceBytes(kBytes);
  auto* const to = DeviceBytes(kBytes);
  Time("copy of 1 GiB, read and written", 4, 2 * kBytes, [&](cudaStream_t stream) {
    return cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream);
  });
  Check(cudaFree(from), "freeing");
  Check(cudaFree(to), "freeing");
}

}  // namespace
}  // namespace isotherm::gpu_worker::cuda

int main(int argc, char** argv) {
  using namespace isotherm::gpu_worker::cuda;
  if (argc == 2 && std::string_view(argv[1]) == "rates") {
    CopyWithinDevice();
    ReadByProduct();
    CopyFromHost();
    return 0;
  }
  const double hot_share = argc > 1 ? std::atof(argv[1]) : 0.35;
  const int bus_of_64 = argc > 2 ? std::atoi(argv[2]) : 12;
  if (!(hot_share > 0 && hot_share <= 1) || bus_of_64 < 0 || bus_of_64 > 64) {
    std::fprintf(stderr, "usage: gpu_kernel_bench [rates | HOT_SHARE, 0 to 1 [BUS_OF_64, 0 to 64]]\n");
    return 2;
  }
  CopyWithinDevice();
  Memory memory;
  for (const Shape& shape : {Shape{"7B", WeightType::kF16, 4096, 11008, 32, 32},
                             Shape{"70B", WeightType::kQ4_0, 8192, 28672, 64, 8}}) {
    Bench(memory, shape, hot_share, bus_of_64).Run();
  }
}
