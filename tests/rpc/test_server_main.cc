// A process around the server shell, for the tests of signals, exit codes and idling.

#include <cstdio>
#include <string>

#include "absl/flags/flag.h"
#include "common/base/status_macros.h"
#include "common/rpc/main.h"
#include "tests/rpc/test_service.h"

ABSL_FLAG(std::string, listen, "127.0.0.1:0", "Address to serve on.");
ABSL_FLAG(bool, throw_in_body, false, "Throws instead of serving.");

int main(int argc, char** argv) {
  const isotherm::base::Program program = {.name = "rpc_test_server",
                                           .summary = "Serves a test service.",
                                           .arguments = "",
                                           .examples = "rpc_test_server --listen 127.0.0.1:0",
                                           .groups = {{"Serving", {"listen"}}}};
  return isotherm::rpc::RunMain(program, argc, argv, []() -> absl::Status {
    if (absl::GetFlag(FLAGS_throw_in_body)) throw std::runtime_error("thrown on purpose");
    isotherm::rpc::TestService service;
    isotherm::rpc::ServerOptions options;
    options.listen = {absl::GetFlag(FLAGS_listen)};
    options.metrics_listen = "127.0.0.1:0";
    ISOTHERM_ASSIGN_OR_RETURN(const auto server, isotherm::rpc::Server::Start(options, {&service}));
    server->SetServing(isotherm::rpc::kPredictorService, true, "");
    std::printf("%d\n", server->ports().front());
    std::fflush(stdout);
    return server->ServeUntilSignal();
  });
}
