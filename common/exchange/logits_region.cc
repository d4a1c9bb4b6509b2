#include "common/exchange/logits_region.h"

#include <sys/mman.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/exchange/negotiate.h"

namespace isotherm::exchange {
namespace {

namespace v1 = worker::v1;

// Four times what the answer to a step may weigh as a message. A peer cannot make this process map more.
constexpr int64_t kMostBytes = int64_t{256} << 20;

absl::StatusOr<int64_t> CheckedBytes(int64_t rows, int64_t row_bytes) {
  if (rows > 0 && row_bytes > 0 && row_bytes % sizeof(float) == 0 && rows <= kMostBytes / row_bytes) {
    return rows * row_bytes;
  }
  return absl::InvalidArgumentError(absl::StrCat("logits of ", rows, " rows of ", row_bytes,
                                                 " bytes: at most ", kMostBytes, " bytes in all are shared"));
}

// Calls function(output, row) for every slice that wants logits, in order; `row` is the one that the request
// gave it.
template <typename Function>
void ForEachLogitRow(const v1::StepRequest& request, v1::StepSuccess& success, const Function& function) {
  int64_t row = request.first_logits_row();
  for (int i = 0; i < request.slices_size(); ++i) {
    if (request.slices(i).output() != v1::STEP_OUTPUT_LAST_LOGITS) continue;
    function(*success.mutable_outputs(i), row++);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<LogitsRegion>> LogitsRegion::Create(const std::string& directory, int64_t rows,
                                                                   int64_t row_bytes) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, CheckedBytes(rows, row_bytes));
  ISOTHERM_ASSIGN_OR_RETURN(const HostProof proof, ProveHost(directory));
  RemoveAbandonedRegionFiles(directory);
  ISOTHERM_ASSIGN_OR_RETURN(RegionFile file, CreateRegionFile(directory));
  absl::Status allocated = AllocateRegionFile(file.fd.get(), bytes, directory, "the region for logits");
  absl::StatusOr<std::byte*> base = allocated.ok() ? MapRegionFile(file.fd.get(), bytes) : allocated;
  if (!base.ok()) {
    file.RemoveName();
    return base.status();
  }
  v1::LogitsRegion offer;
  offer.set_boot_id(proof.boot_id);
  offer.set_shm_device(proof.shm_device);
  offer.set_name(file.name);
  offer.set_rows(static_cast<uint32_t>(rows));
  offer.set_row_bytes(static_cast<uint32_t>(row_bytes));
  return std::unique_ptr<LogitsRegion>(new LogitsRegion(std::move(offer), std::move(file), *base));
}

absl::StatusOr<std::unique_ptr<LogitsRegion>> LogitsRegion::Attach(const std::string& directory,
                                                                   const v1::LogitsRegion& offer) {
  ISOTHERM_ASSIGN_OR_RETURN(const int64_t bytes, CheckedBytes(offer.rows(), offer.row_bytes()));
  ISOTHERM_ASSIGN_OR_RETURN(const HostProof proof, ProveHost(directory));
  if (proof != HostProof{offer.boot_id(), offer.shm_device()}) {
    return absl::FailedPreconditionError("the gateway is on another host or sees another --shm-directory");
  }
  ISOTHERM_ASSIGN_OR_RETURN(const base::UniqueFd fd, OpenRegionFile(directory, offer.name(), bytes));
  ISOTHERM_ASSIGN_OR_RETURN(std::byte* const base, MapRegionFile(fd.get(), bytes));
  return std::unique_ptr<LogitsRegion>(new LogitsRegion(offer, RegionFile(), base));
}

LogitsRegion::~LogitsRegion() {
  RemoveName();
  munmap(base_, static_cast<size_t>(offer_.rows()) * offer_.row_bytes());
}

char* LogitsRegion::Row(int64_t row) const {
  return row < offer_.rows() ? reinterpret_cast<char*>(base_) + row * offer_.row_bytes() : nullptr;
}

int64_t LogitsRegion::Put(const v1::StepRequest& request, v1::StepSuccess& success) {
  int64_t put = 0;
  ForEachLogitRow(request, success, [&](v1::SliceOutput& output, int64_t row) {
    char* const to = Row(row);
    if (to == nullptr || output.logits().size() != offer_.row_bytes()) return;
    std::memcpy(to, output.logits().data(), offer_.row_bytes());
    output.clear_logits();
    output.set_logits_in_region(true);
    ++put;
  });
  return put;
}

absl::Status LogitsRegion::Take(const v1::StepRequest& request, v1::StepSuccess& success) const {
  absl::Status status;
  ForEachLogitRow(request, success, [&](v1::SliceOutput& output, int64_t row) {
    if (!output.logits_in_region()) return;
    const char* const from = Row(row);
    if (from == nullptr) {
      status = absl::FailedPreconditionError(
          absl::StrCat("logits in row ", row, " of a region of ", offer_.rows()));
      return;
    }
    output.mutable_logits()->assign(from, offer_.row_bytes());
    output.set_logits_in_region(false);
  });
  return status;
}

}  // namespace isotherm::exchange
