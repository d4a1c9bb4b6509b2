#ifndef ISOTHERM_COMMON_EXCHANGE_INLINE_SERVER_H_
#define ISOTHERM_COMMON_EXCHANGE_INLINE_SERVER_H_

#include "absl/status/status.h"
#include "common/exchange/session.h"

namespace isotherm::exchange {

// Tells the client that the transport is inline and answers its frames until the stream ends (OK) or a
// request is wrong.
absl::Status ServeInline(ServerStream* stream, Session* session);

}  // namespace isotherm::exchange

#endif  // ISOTHERM_COMMON_EXCHANGE_INLINE_SERVER_H_
