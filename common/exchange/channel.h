#ifndef ISOTHERM_COMMON_EXCHANGE_CHANNEL_H_
#define ISOTHERM_COMMON_EXCHANGE_CHANNEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/exchange/geometry.h"
#include "common/exchange/shared_bundles.h"
#include "isotherm/worker/v1/neuron.grpc.pb.h"

// One layer's round trip between the GPU worker (client) and a CPU worker (server): inputs and masks there, a
// partial sum back. Two transports behind one contract: slots of a shared-memory region, or the same frames
// inside the gRPC stream.
namespace isotherm::exchange {

enum class Transport { kAuto, kSharedMemory, kInline };
const char* TransportName(Transport transport);  // "auto", "shm", "inline"
absl::StatusOr<Transport> ParseTransport(const std::string& name);

struct RequestHeader {
  uint64_t step = 0;
  int64_t layer = 0;
  int64_t rows = 0;
  uint64_t placement_epoch = 0;
  bool dense = false;            // FfnRequest::dense
  bool has_gate_values = false;  // the compacted array is present
};

// Where the client writes a request: memory inside the slot or the frame.
struct RequestBuffers {
  float* x = nullptr;            // [rows, hidden]
  uint64_t* masks = nullptr;     // [rows, MaskWords(ffn)], cold neurons only
  float* gate_values = nullptr;  // room for rows * ffn values where the geometry has them
};

// The region of a channel, for a device that fills slots and rings by itself.
struct SharedMemory {
  void* base = nullptr;
  int64_t bytes = 0;
  Geometry geometry;
  uint64_t generation = 0;
  absl::Duration timeout;
};

// Client side. Thread-compatible: one driver thread. Up to kSlots exchanges are in flight; they are answered
// in the order in which they were sent, so that the next travels while the CPU worker computes one.
class Channel {
 public:
  virtual ~Channel() = default;
  virtual Transport transport() const = 0;

  // Wakes the worker's threads so that they spin while the step is open; EndStep lets them park.
  virtual void BeginStep(uint64_t step) = 0;
  virtual void EndStep() = 0;

  // Tells the worker's log whom exchanges are for. Between exchanges; a channel that breaks loses it.
  virtual void Note(const worker::v1::SequenceNote& note) = 0;

  // Begin, fill the buffers, Send, (compute the hot half), Await, which is for the oldest one in flight.
  virtual absl::StatusOr<RequestBuffers> Begin(const RequestHeader& header) = 0;
  // `gate_value_count`: how many compacted values were written.
  virtual absl::Status Send(int64_t gate_value_count) = 0;
  struct Answer {
    const float* y = nullptr;  // [rows, hidden]; valid until the next Begin or Await
    int64_t computed = 0;      // FfnStatistics of the worker
    int64_t active = 0;
    absl::Duration latency;  // from Send to the answer's arrival
    absl::Duration wait;     // spent blocked in Await
  };
  // Bounded by the channel's time-out (DeadlineExceeded); Unavailable when the worker is gone, DataLoss when
  // the echo does not match. After any error the channel is dead and every call returns the first error.
  virtual absl::StatusOr<Answer> Await() = 0;

  // Says which neurons, `mask` [MaskWords(ffn)], the next request will probably ask for, of which layer; the
  // worker may fetch them into its caches. Between Await and Begin, or while one exchange is in flight.
  // Nothing happens where there is no shared memory.
  virtual void Expect(int64_t layer, const uint64_t* mask) {}

  // Absent where the transport has none; mapped while the channel lives.
  virtual std::optional<SharedMemory> shared_memory() const = 0;
  // Every neuron's bundles, where the CPU worker shares them, else null; mapped while the channel lives.
  virtual const SharedBundles* bundles() const { return nullptr; }
  // From now on a device rings for this side while a step is open; nothing where there is no shared memory.
  virtual void RingFromDevice() {}
  // Sequence number of the last exchange, and what a device says of those it has made since: the last one's
  // number, the rows of each and the gate values of all. Only between exchanges.
  virtual uint32_t sequence() const = 0;
  virtual void Advance(uint32_t sequence, int64_t rows, int64_t gate_values) = 0;
  // Kills the channel for what a device has met; returns the error that stays.
  virtual absl::Status Fail(const absl::Status& error) = 0;

  virtual bool failed() const = 0;
  virtual int64_t bytes_exchanged() const = 0;
};

struct ClientOptions {
  Transport transport = Transport::kAuto;
  std::string shm_directory = "/dev/shm";
  absl::Duration exchange_timeout = absl::Seconds(10);
  absl::Duration connect_timeout = absl::Seconds(5);
  int spin_us = 0;  // before parking in Await
  std::string model_digest;
  uint64_t placement_epoch = 0;
  std::string placement_digest;
  Geometry geometry;
  // What the worker's gRPC server receives at most; an inline frame must fit.
  int64_t max_message_bytes = 64 << 20;
};

// Opens the Exchange stream on the stub's channel and negotiates the transport. The stub outlives the result.
absl::StatusOr<std::unique_ptr<Channel>> Connect(worker::v1::NeuronService::Stub* stub,
                                                 const ClientOptions& options);

// What the server side computes. Called from one thread for a channel at a time; everything in `request` was
// checked against the geometry, the masks against the hot neurons of the placement. In shared memory a client
// that breaks the protocol can still change the values of x and gate_values, never the header or the masks.
struct ServerRequest {
  RequestHeader header;
  const float* x = nullptr;            // [rows, hidden]
  const uint64_t* masks = nullptr;     // [rows, MaskWords(ffn)]
  const float* gate_values = nullptr;  // one for each mask bit; null unless header.has_gate_values
};
struct ServerAnswer {
  int64_t computed = 0;
  int64_t active = 0;
};
enum class StepState : uint32_t {
  kClosed = 0,
  kOpen = 1,
  kOpenOnDevice = 2,  // a device rings, which wakes nobody: whoever sleeps is late for every layer
};
class Executor {
 public:
  virtual ~Executor() = default;
  // Fills y[rows, hidden]. A non-OK status ends the channel with it.
  virtual absl::StatusOr<ServerAnswer> Execute(const ServerRequest& request, float* y) = 0;
  // Called when a step opens and closes, so that the executor's threads may spin in between.
  virtual void OnStep(StepState state) {}
  // Between two requests: the next one will probably ask for these neurons, `mask` [MaskWords(ffn)], of this
  // layer. Returns soon after stop() has become true: the request is there. stop() is thread-safe.
  virtual void OnExpectation(int64_t layer, const uint64_t* mask, absl::FunctionRef<bool()> stop) {}
};

// What a server accepts; read for every stream that opens, and again when a request names another placement
// epoch: if it is the one accepted now, it holds from that request on, and the earlier one no longer.
struct ServerPolicy {
  std::string model_digest;
  uint64_t placement_epoch = 0;
  std::string placement_digest;
  std::vector<std::vector<uint64_t>> hot;  // masks must not touch these
  int64_t layers = 0, hidden = 0, ffn = 0;
  int64_t max_rows_limit = 4096;
  std::optional<BundleFile> bundles;  // shared with clients on this host
};

struct ServerOptions {
  Transport transport = Transport::kAuto;  // kSharedMemory and kInline refuse the other
  std::string shm_directory = "/dev/shm";
  int spin_us = 0;
  // While a step is open on a device; at least spin_us.
  int device_spin_us = 0;
  // Waits are bounded by this and recheck the stream.
  absl::Duration wait_slice = absl::Milliseconds(50);
  // What this gRPC server receives at most; an inline frame must fit.
  int64_t max_message_bytes = 64 << 20;
};

// Serves one Exchange stream to its end on the calling thread(s): call it from NeuronService::Exchange.
// Returns when the client closes the stream (OK), breaks the protocol (InvalidArgument, FailedPrecondition)
// or the server is cancelled.
absl::Status ServeExchange(
    grpc::ServerContext* context,
    grpc::ServerReaderWriter<worker::v1::ExchangeResponse, worker::v1::ExchangeRequest>* stream,
    const ServerOptions& options, const std::function<absl::StatusOr<ServerPolicy>()>& policy,
    Executor* executor);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_CHANNEL_H_
