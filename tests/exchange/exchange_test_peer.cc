#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <string>

#include "tests/exchange/harness.h"

// The process that gets killed: `exchange_test_peer serve|connect SOCKET SHM_DIRECTORY TRANSPORT`. Prints a
// line when it is ready and then serves, or holds its channel open, until it is killed. The server never
// answers layer 1.
namespace isotherm::exchange {
namespace {

void Ready() {
  puts("ready");
  fflush(stdout);
}

int Serve(const std::string& socket, const ServerOptions& options) {
  const Geometry geometry = SmallGeometry();
  FakeExecutor executor(geometry);
  executor.hook = [&](const ServerRequest& request, float* y) {
    if (request.header.layer == 1) pause();
    return FakeExecutor::Answer(geometry, request, y);
  };
  TestServer server(socket, options, PolicyFor(geometry), &executor);
  Ready();
  while (true) pause();
}

int Hold(const std::string& socket, const ClientOptions& options) {
  const auto stub = MakeStub(socket);
  auto channel = Connect(stub.get(), options);
  if (!channel.ok() ||
      !RoundTrip(channel->get(), options.geometry, RandomRequest(options.geometry, {.rows = 1}, 1)).ok()) {
    return 1;
  }
  (*channel)->BeginStep(2);
  Ready();
  while (true) pause();
}

}  // namespace
}  // namespace isotherm::exchange

int main(int argc, char** argv) {
  using namespace isotherm::exchange;
  if (argc != 5) return 2;
  // Not outlive the test that started it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  const absl::StatusOr<Transport> transport = ParseTransport(argv[4]);
  if (!transport.ok()) return 2;
  if (strcmp(argv[1], "serve") == 0)
    return Serve(argv[2], {.transport = *transport, .shm_directory = argv[3]});
  return Hold(argv[2], ClientFor(SmallGeometry(), *transport, argv[3]));
}
