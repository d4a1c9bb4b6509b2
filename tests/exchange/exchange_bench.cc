#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "tests/exchange/harness.h"

// Round-trip percentiles of a decode exchange (one row of hidden 4096, FFN 11008) with an executor that does
// nothing, client and server in one process: what the transport itself costs.
namespace isotherm::exchange {
namespace {

constexpr Geometry kGeometry{.layers = 32, .hidden = 4096, .ffn = 11008, .max_rows = 1};

absl::Status Measure(Transport transport, int64_t exchanges, int spin_us) {
  TempDirectory directory("/dev/shm");
  const std::string socket = directory.path() + "/socket";
  FakeExecutor executor(kGeometry);
  executor.hook = [](const ServerRequest& request, float* y) {
    std::memcpy(y, request.x, kGeometry.hidden * sizeof(float));
    return ServerAnswer{};
  };
  TestServer server(socket, {.shm_directory = directory.path(), .spin_us = spin_us}, PolicyFor(kGeometry),
                    &executor);
  const auto stub = MakeStub(socket);
  ClientOptions options = ClientFor(kGeometry, transport, directory.path());
  options.spin_us = spin_us;
  auto channel = Connect(stub.get(), options);
  if (!channel.ok()) return channel.status();

  const std::vector<float> x(kGeometry.hidden, 1.0f);
  const int64_t warm_up = exchanges / 10;
  std::vector<double> microseconds;
  for (int64_t i = 0; i < warm_up + exchanges; ++i) {
    const RequestHeader header{
        .step = static_cast<uint64_t>(i / 32), .layer = i % 32, .rows = 1, .placement_epoch = 7};
    if (i % 32 == 0) (*channel)->BeginStep(header.step);
    const absl::Time start = absl::Now();
    const absl::StatusOr<RequestBuffers> buffers = (*channel)->Begin(header);
    if (!buffers.ok()) return buffers.status();
    std::memcpy(buffers->x, x.data(), x.size() * sizeof(float));
    std::memset(buffers->masks, 0, (kGeometry.ffn + 63) / 64 * 8);
    if (absl::Status status = (*channel)->Send(0); !status.ok()) return status;
    if (absl::Status status = (*channel)->Await().status(); !status.ok()) return status;
    if (i >= warm_up) microseconds.push_back(absl::ToDoubleMicroseconds(absl::Now() - start));
    if (i % 32 == 31) (*channel)->EndStep();
  }
  std::sort(microseconds.begin(), microseconds.end());
  const auto percentile = [&](double share) {
    return microseconds[static_cast<size_t>(share * static_cast<double>(microseconds.size() - 1))];
  };
  std::printf(
      "%-6s spin %3d us  hidden %ld  rows 1  p50 %.1f  p90 %.1f  p99 %.1f  max %.1f us  (%ld exchanges)\n",
      TransportName(transport), spin_us, static_cast<long>(kGeometry.hidden), percentile(0.5),
      percentile(0.9), percentile(0.99), microseconds.back(), static_cast<long>(exchanges));
  return absl::OkStatus();
}

}  // namespace
}  // namespace isotherm::exchange

int main(int argc, char** argv) {
  using namespace isotherm::exchange;
  const int64_t exchanges = argc > 1 ? std::max(10L, std::atol(argv[1])) : 20'000;
  const int spin_us = argc > 2 ? std::atoi(argv[2]) : 0;
  for (const Transport transport : {Transport::kSharedMemory, Transport::kInline}) {
    if (const absl::Status status = Measure(transport, exchanges, spin_us); !status.ok()) {
      std::fprintf(stderr, "%s: %s\n", TransportName(transport), status.ToString().c_str());
      return 1;
    }
  }
  return 0;
}
