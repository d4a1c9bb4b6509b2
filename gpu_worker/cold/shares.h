#ifndef ISOTHERM_GPU_WORKER_COLD_SHARES_H_
#define ISOTHERM_GPU_WORKER_COLD_SHARES_H_

#include <cstdint>
#include <vector>

#include "absl/time/time.h"
#include "common/neuron/placement.h"

// How several CPU workers divide the cold neurons of a layer. Pure functions.
namespace isotherm::gpu_worker {

// A share below this is raised to it: a worker that is asked nothing would never be measured again.
inline constexpr double kLeastShare = 1.0 / 64;

// Weights, none negative, as shares: their sum is 1 and none is below kLeastShare (of at most 32). All zero:
// equal.
std::vector<double> SharesOf(const std::vector<double>& weights);

// For each share the neurons of a layer that are its own: every neuron has exactly one owner. Owners follow
// from the neuron's number alone, spread so that any range of numbers is divided like the whole: a hot set
// that moves moves no owner, and a share that grows a little moves few.
std::vector<std::vector<uint64_t>> DivideNeurons(int64_t ffn, const std::vector<double>& shares);

// The placement as the owner of some neurons sees it: those that it will never be asked for count as hot.
neuron::Placement RestrictTo(const neuron::Placement& placement, const std::vector<uint64_t>& owned);

// How much longer than the fastest worker the slowest may take before shares that have settled move again,
// and until they have settled: every move opens all exchanges anew and adds the answers' parts in another
// way.
inline constexpr double kToleratedSettled = 1.25;
inline constexpr double kToleratedSettling = 1.1;

// New shares from how long an exchange took each worker on average; the old ones while the slowest took less
// than `tolerated` times as long as the fastest. Goes half of the way (the square root of the quotient),
// because wire and wake-up do not shrink with the share.
std::vector<double> Rebalance(const std::vector<double>& shares, const std::vector<absl::Duration>& latencies,
                              double tolerated);

}  // namespace isotherm::gpu_worker

#endif  // ISOTHERM_GPU_WORKER_COLD_SHARES_H_
