#ifndef ISOTHERM_GATEWAY_ENGINE_DURATIONS_H_
#define ISOTHERM_GATEWAY_ENGINE_DURATIONS_H_

#include "absl/time/time.h"
#include "google/protobuf/duration.pb.h"

namespace isotherm::gateway {

inline google::protobuf::Duration ToProto(absl::Duration duration) {
  google::protobuf::Duration proto;
  proto.set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  proto.set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(duration)));
  return proto;
}

}  // namespace isotherm::gateway

#endif  // ISOTHERM_GATEWAY_ENGINE_DURATIONS_H_
