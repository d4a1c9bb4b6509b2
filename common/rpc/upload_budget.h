#ifndef ISOTHERM_COMMON_RPC_UPLOAD_BUDGET_H_
#define ISOTHERM_COMMON_RPC_UPLOAD_BUDGET_H_

#include <cstdint>
#include <string>

namespace isotherm::rpc {

// What a TCP connection may send. gRPC 1.51 takes in a message of any length before it says that it is too
// long, and when memory runs short it cancels calls of everybody. What gives such a sender away is that it
// sends and no call arrives.
struct UploadLimit {
  int64_t bytes = 0;           // 0: none
  int64_t bytes_per_call = 0;  // more for each call that has arrived: the largest message
};

// One connection's account. Calls are told apart by the port they come from alone, so that clients of the
// same port on two machines pay for each other, which is only ever too lenient.
class UploadBudget {
 public:
  // `connection` stays open meanwhile. Of a Unix socket nothing is known and nothing exceeded.
  UploadBudget(int connection, const UploadLimit& limit);

  // False where nothing can be exceeded.
  bool limited() const { return limit_.bytes > 0 && port_ != 0; }
  bool Exceeded() const;

 private:
  int connection_;
  UploadLimit limit_;
  int port_ = 0;
  uint32_t calls_before_ = 0;
};

// A call has arrived from `peer`, as gRPC names it: "ipv4:10.0.0.1:4711". Thread-safe.
void CountArrivedCall(const std::string& peer);

}  // namespace isotherm::rpc

#endif  // ISOTHERM_COMMON_RPC_UPLOAD_BUDGET_H_
