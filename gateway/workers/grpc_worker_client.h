#ifndef ISOTHERM_GATEWAY_WORKERS_GRPC_WORKER_CLIENT_H_
#define ISOTHERM_GATEWAY_WORKERS_GRPC_WORKER_CLIENT_H_

#include <memory>
#include <string>

#include "common/rpc/channel.h"
#include "gateway/workers/worker_client.h"

namespace isotherm::gateway {

// ModelRunnerService at `address` ("unix:/path" or "host:port"). Does not connect until asked. An answer that
// does not fit its request (another step id, outputs missing) ends the stream as a broken connection does.
// Logits come through memory in `shm_directory` where the runner sees that, too; empty: inside messages.
std::unique_ptr<WorkerClient> NewGrpcWorkerClient(const std::string& address,
                                                  const rpc::ClientCredentials& credentials = {},
                                                  const std::string& shm_directory = "");

// Asks the runner at `address` how often each neuron fired, on a connection of its own, so from any thread.
// The runner answers after the step in progress.
absl::StatusOr<worker::v1::GetRunnerFiringCountsResponse> FetchFiringCounts(
    const std::string& address, const rpc::ClientCredentials& credentials, absl::Duration timeout);

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_WORKERS_GRPC_WORKER_CLIENT_H_
