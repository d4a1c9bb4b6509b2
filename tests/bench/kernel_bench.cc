// kernel_bench [THREADS] [Google Benchmark's flags]
//
// Bytes of weights a second that the row kernels stream from memory, beside a plain read of the same memory
// by the same threads. The buffer is many times the last-level cache's share of a core, and every pass reads
// all of it.

#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "common/base/thread_pool.h"
#include "common/kernels/ops.h"
#include "common/kernels/row_kernels.h"
#include "common/kernels/sketch.h"
#include "hwy/aligned_allocator.h"

namespace isotherm::kernels {
namespace {

constexpr int64_t kArenaBytes = int64_t{1} << 30;

int threads = 2;

base::ThreadPool& Pool() {
  static base::ThreadPool pool([] {
    base::ThreadPool::Options options;
    options.threads = threads;
    options.spin_us = 20;
    return options;
  }());
  return pool;
}

// Filled with 0x11: a small positive scale or value in every format.
uint8_t* Arena() {
  static uint8_t* const arena = [] {
    void* const memory =
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    madvise(memory, kArenaBytes, MADV_HUGEPAGE);
    Pool().ParallelFor(kArenaBytes, int64_t{16} << 20, [&](int64_t begin, int64_t end, int) {
      std::memset(static_cast<uint8_t*>(memory) + begin, 0x11, static_cast<size_t>(end - begin));
    });
    return static_cast<uint8_t*>(memory);
  }();
  return arena;
}

std::vector<float> Vector(int64_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

void ReportBytes(benchmark::State& state, int64_t bytes_a_pass) {
  state.SetBytesProcessed(state.iterations() * bytes_a_pass);
  state.SetLabel(ActiveTarget() + ", " + std::to_string(threads) + " threads");
}

// What the machine can do: eight sums of 64-bit words, nothing else.
uint64_t SumOf(const uint8_t* from, int64_t bytes) {
  uint64_t sums[8] = {};
  const uint64_t* const words = reinterpret_cast<const uint64_t*>(from);
  for (int64_t i = 0; i < bytes / 8; i += 8) {
    for (int s = 0; s < 8; ++s) sums[s] += words[i + s];
  }
  for (int s = 1; s < 8; ++s) sums[0] += sums[s];
  return sums[0];
}

void PlainRead(benchmark::State& state) {
  const uint8_t* const arena = Arena();
  for (auto _ : state) {
    Pool().ParallelFor(kArenaBytes, 256 << 10, [&](int64_t begin, int64_t end, int) {
      benchmark::DoNotOptimize(SumOf(arena + begin, end - begin));
    });
  }
  ReportBytes(state, kArenaBytes);
}

void MatMulOf(benchmark::State& state, WeightType type, int64_t columns, int64_t batch) {
  const int64_t stride = PackedRowBytes(type, columns);
  const WeightMatrix weight{Arena(), type, kArenaBytes / stride, columns, stride};
  const std::vector<float> x = Vector(batch * columns);
  std::vector<float> y(batch * weight.rows);
  for (auto _ : state) MatMul(Pool(), weight, x.data(), columns, batch, y.data(), weight.rows);
  ReportBytes(state, weight.rows * stride);
}

// The tokens of a prompt, where arithmetic is what takes the time.
void PromptProductOf(benchmark::State& state, WeightType type, int64_t columns, int64_t tokens) {
  constexpr int64_t kRows = 2048;
  const int64_t stride = PackedRowBytes(type, columns);
  const WeightMatrix weight{Arena(), type, kRows, columns, stride};
  const std::vector<float> x = Vector(columns * tokens);
  std::vector<float> y(tokens * kRows);
  for (auto _ : state) MatMul(Pool(), weight, x.data(), columns, tokens, y.data(), kRows);
  const auto operations = static_cast<double>(2 * kRows * columns * tokens * state.iterations());
  state.counters["GFLOP/s"] = benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsRate);
}

// Single rows scattered over memory, as a sparse layer reads them: every eighth one.
void SparseDotsOf(benchmark::State& state, WeightType type, int64_t columns) {
  constexpr int64_t kEvery = 8;
  constexpr int64_t kGrain = 64;
  const int64_t stride = PackedRowBytes(type, columns);
  const int64_t rows = kArenaBytes / stride / kEvery;
  const RowKernels& kernels = GetRowKernels(type);
  const std::vector<float> x = Vector(columns);
  std::vector<float> y(rows);
  const auto room = hwy::AllocateAligned<uint8_t>(static_cast<size_t>(MostInputBytes(columns)));
  int64_t first = 0;
  for (auto _ : state) {
    const RowInputs inputs = PrepareInputs(kernels, x.data(), 0, 1, columns, room.get());
    const uint8_t* const weights = Arena() + first * stride;
    Pool().ParallelFor(rows, kGrain, [&](int64_t begin, int64_t end, int) {
      const uint8_t* list[kGrain + kRowsAhead];
      for (int64_t r = begin; r < end + kRowsAhead; ++r) {
        list[r - begin] = weights + std::min(r, end - 1) * kEvery * stride;
      }
      kernels.mat_mul_listed(list, end - begin, inputs, 1, columns, y.data() + begin, 0);
    });
    first = (first + 1) % kEvery;
  }
  ReportBytes(state, rows * stride);
}

void AddScaledOf(benchmark::State& state, WeightType type, int64_t columns) {
  const int64_t stride = PackedRowBytes(type, columns);
  const int64_t rows = kArenaBytes / stride;
  const RowKernels& kernels = GetRowKernels(type);
  constexpr int64_t kGrain = 64;
  const std::vector<float> factors(kGrain, 1e-9f);
  std::vector<std::vector<float>> y(threads, std::vector<float>(columns));
  const uint8_t* const arena = Arena();
  for (auto _ : state) {
    Pool().ParallelFor(rows, kGrain, [&](int64_t begin, int64_t end, int member) {
      const uint8_t* list[kGrain + kRowsAhead];
      for (int64_t r = begin; r < end + kRowsAhead; ++r)
        list[r - begin] = arena + std::min(r, rows - 1) * stride;
      const int64_t together = kernels.rows_together > 1 ? kernels.rows_together : end - begin;
      for (int64_t r = begin; r < end; r += together) {
        kernels.add_scaled(list + (r - begin), std::min(together, end - r), factors.data(), columns,
                           y[member].data());
      }
    });
  }
  ReportBytes(state, rows * stride);
}

// Rounding a vector for integer products, on one thread: the others wait for it.
void PrepareOf(benchmark::State& state, WeightType type, int64_t columns) {
  const RowKernels& kernels = GetRowKernels(type);
  const std::vector<float> x = Vector(columns);
  const auto room = hwy::AllocateAligned<uint8_t>(static_cast<size_t>(kernels.input_bytes(columns)));
  for (auto _ : state) {
    kernels.prepare(x.data(), columns, room.get());
    benchmark::ClobberMemory();
  }
  state.SetLabel(ActiveTarget());
}

void SketchOf(benchmark::State& state, int64_t columns) {
  const int64_t stride = SketchRowBytes(columns);
  const int64_t rows = kArenaBytes / stride;
  const std::vector<float> x = Vector(columns);
  std::vector<uint8_t> input(SketchInputBytes(columns));
  SketchInput(x.data(), columns, input.data());
  std::vector<float> scores(rows);
  const uint8_t* const arena = Arena();
  for (auto _ : state) {
    Pool().ParallelFor(rows, 64, [&](int64_t begin, int64_t end, int) {
      SketchScores(arena + begin * stride, end - begin, input.data(), columns, scores.data() + begin);
    });
  }
  ReportBytes(state, rows * stride);
}

template <class... Arguments>
benchmark::internal::Benchmark* Register(const std::string& name, Arguments... arguments) {
  return benchmark::RegisterBenchmark(name.c_str(), arguments...)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

void RegisterAll() {
  constexpr WeightType kTypes[] = {WeightType::kF32,  WeightType::kF16,  WeightType::kBF16, WeightType::kQ8_0,
                                   WeightType::kQ4_0, WeightType::kQ4_1, WeightType::kQ5_0, WeightType::kQ5_1,
                                   WeightType::kQ4_K, WeightType::kQ5_K, WeightType::kQ6_K};
  Register("plain_read", PlainRead);
  for (const WeightType type : kTypes) {
    const std::string name = WeightTypeName(type);
    Register("mat_mul/" + name + "/2048", MatMulOf, type, int64_t{2048}, int64_t{1});
    for (const int64_t tokens : {32, 128, 512}) {
      Register("prompt/" + name + "/2048/" + std::to_string(tokens), PromptProductOf, type, int64_t{2048},
               tokens);
    }
    Register("mat_mul/" + name + "/5632", MatMulOf, type, int64_t{5632}, int64_t{1});
    Register("mat_mul_of_16/" + name + "/2048", MatMulOf, type, int64_t{2048}, int64_t{16});
    Register("sparse_dot/" + name + "/2048", SparseDotsOf, type, int64_t{2048});
    Register("add_scaled/" + name + "/2048", AddScaledOf, type, int64_t{2048});
  }
  for (const WeightType type : {WeightType::kQ8_0, WeightType::kQ4_0}) {
    Register(std::string("prepare/") + WeightTypeName(type) + "/8192", PrepareOf, type, int64_t{8192})
        ->Unit(benchmark::kMicrosecond);
  }
  Register("sketch/2048", SketchOf, int64_t{2048});
  Register("plain_read_again", PlainRead);
}

}  // namespace
}  // namespace isotherm::kernels

int main(int argc, char** argv) {
  using namespace isotherm::kernels;
  if (const char* const reason = UnsupportedCpuReason()) {
    std::fprintf(stderr, "%s\n", reason);
    return 1;
  }
  benchmark::Initialize(&argc, argv);
  if (argc > 2 || (argc == 2 && std::atoi(argv[1]) < 1)) {
    std::fprintf(stderr, "usage: kernel_bench [THREADS] [--benchmark_...]\n");
    return 2;
  }
  if (argc == 2) threads = std::atoi(argv[1]);
  RegisterAll();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
